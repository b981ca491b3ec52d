//! From kernel maps and rings to decoded values. `decode` is pure; `batch`, `maps` and `sideband` make the system
//! calls.

pub mod batch;
pub mod decode;
pub mod maps;
pub mod perf_ring;
pub mod sideband;
