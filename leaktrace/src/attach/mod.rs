//! From a discovered allocator to probes in the kernel: host facts → plan → effects.
//!
//! `host` and `capabilities` are what is known of the host (`hidden` what is to be overlooked), `preflight` what
//! follows from it, `selftest` what probes cost on it, `costs` what the governor reckons with. `prologue` and `plan`
//! choose the instruction of each probe, and are pure; `live_text` looks whether a process has it there. `object`
//! creates the maps and loads programs, `links` and `tracepoints` attach them, `shared` writes arrays; `sys` is the thin
//! layer over bpf(2) and perf_event_open(2), `minimal` the smallest programs, `private_stacks` what keeps programs on
//! the stack of their thread.

pub mod arrays;
pub mod btf;
pub mod capabilities;
pub mod costs;
pub mod hidden;
pub mod host;
pub mod links;
pub mod live_text;
pub mod minimal;
pub mod object;
pub mod plan;
pub mod preflight;
pub mod private_stacks;
pub mod prologue;
pub mod selftest;
pub mod shared;
pub mod sys;
pub mod tracefs;
pub mod tracepoints;
