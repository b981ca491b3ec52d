//! From kernel maps and rings to decoded values. `decode` is pure; `batch`, `maps` and `sideband` make the system
//! calls; `slots` says whose place in the kernel's arrays is whose, `targets` writes what is traced, `sites` reads what was counted.

pub mod batch;
pub mod bigger;
pub mod decode;
pub mod maps;
pub mod perf_ring;
pub mod sideband;
pub mod sites;
pub mod slots;
pub mod targets;
pub mod threads;
