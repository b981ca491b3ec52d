//! The end-to-end tests: real programs under tracing on this kernel, as root. `cargo xtask test` builds what they need
//! and runs them; a test that cannot run says why and fails.
#![expect(clippy::indexing_slicing, reason = "a key that JSON lacks is null, and a test fails by panicking")]

mod allocators;
mod answers;
mod bounds;
mod containers;
mod doctor;
mod files;
mod fixtures;
mod gate;
mod gate_clean;
mod gate_leaking;
mod gate_unknown;
mod governor;
mod growth;
mod harm;
mod hostile;
mod hostile_http;
mod leader;
mod libraries;
mod life;
mod mappings;
mod mappings_life;
mod memory;
mod output;
mod packaging;
mod programs;
mod refusals;
mod run;
mod sampled;
mod service;
mod service_alerts;
mod service_disk;
mod service_life;
mod service_tools;
mod soak;
mod stacks;
mod survival;
mod threads;
