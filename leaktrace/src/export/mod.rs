//! Snapshots as files and streams for other programs. All serialisation lives here; text for people is `render`'s.

pub mod api;
pub mod diff;
pub mod doctor;
pub mod file;
pub mod flamegraph;
pub mod folded;
pub mod json;
pub mod metrics;
pub mod pprof;
pub mod ps;
pub mod speedscope;
