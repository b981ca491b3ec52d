//! The part that acts over time: it adds and drops targets as processes come and go, publishes their unwind
//! tables, drains the kernel and makes snapshots. What is shown of a snapshot is left to `render` and `export`.

pub mod attachment;
pub mod bans;
mod builder;
pub mod clock;
mod code;
mod deferred;
pub mod diagnose;
pub mod examine;
pub mod functions;
pub mod governor;
pub mod growth;
pub mod http;
mod interrupts;
pub mod launch;
pub mod listing;
pub mod meter;
mod naming;
pub mod options;
pub mod orders;
pub mod ptrace;
pub mod service;
pub mod session;
mod stillness;
pub mod tables;
pub mod target;
pub mod tracer;
pub mod view;
