//! Harness of the end-to-end tests and of the benchmark: compiles fixtures, runs them and leaktrace side by side, and
//! compares what leaktrace reports with what the fixtures say they have allocated. What is tested is in `tests/e2e`.
//!
//! A fixture prints a ledger and blocks on standard input ([`fixture`]), so that no test has to sleep; the tests wait
//! for a summary that equals the ledger, with a deadline, and then for a second one ([`scenario`]).

pub mod agent;
pub mod compare;
pub mod compile;
pub mod container;
pub mod fixture;
pub mod http;
pub mod leaktrace;
pub mod ledger;
pub mod lines;
pub mod missed;
pub mod oracle;
pub mod proc;
pub mod report;
pub mod scenario;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// A time to wait, as many times longer as `LEAKTRACE_PATIENCE` says: under emulation everything is slow.
pub fn patience(time: Duration) -> Duration {
    let factor = std::env::var("LEAKTRACE_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    time.saturating_mul(factor)
}
