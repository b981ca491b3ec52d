//! Watching many processes for growth at next to no cost, and sampling those that keep growing for a while.
//!
//! `watcher` looks at memory, one read for each process; `pilot` decides whom to sample and for how long, and is pure;
//! `watch` brings the two together with the tracer.

pub mod meant;
pub mod pilot;
pub mod watch;
pub mod watcher;
