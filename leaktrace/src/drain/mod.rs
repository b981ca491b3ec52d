//! From kernel maps and rings to decoded values. `decode` is pure; `batch` and `maps` make the system calls.

pub mod batch;
pub mod decode;
pub mod maps;
