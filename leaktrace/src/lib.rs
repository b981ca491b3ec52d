//! leaktrace finds memory leaks in running Linux processes: which process, from which call stack, how fast, and how
//! sure it is. This text is the map of the code; the README is for users.
//!
//! # How it works
//! eBPF programs (`leaktrace-ebpf`) sit on allocator functions and on the system calls that map memory. They keep one
//! table of live blocks for each process and one total for each call stack; nothing is sent for an ordinary
//! allocation. A stack is walked in the kernel by tables that user space makes of `.eh_frame`, interned under a hash,
//! and sent once. The agent reads totals and blocks when a summary is due, and everything that is printed, written or
//! compared is made from one immutable value, [`model::snapshot::Snapshot`].
//!
//! ```text
//!   process ──malloc──▶ probe ──▶ IN FLIGHT ──▶ LIVE, SITES ──batch──▶ drain ──▶ model ──▶ analyse ──▶ render
//!                                     │                                  ▲                        └──▶ export
//!                                     └─ walk (SLABS, PAGES, RULES) ─ STACKS ring ─▶ symbolize
//! ```
//!
//! # The modules, in the order in which data flows
//! Arrows point down this list only.
//!
//! | module | does | invariant |
//! |---|---|---|
//! | [`discover`] | processes, their containers, the files they map, the allocators in them | opens files under /proc; attaches nothing |
//! | [`attach`] | host facts → plan (which function, instruction, link type) → effects | `plan` and `prologue` are pure; only this module and `drain` talk to bpf(2) |
//! | [`drain`] | kernel maps, rings and side-band perf events → values | `decode` is pure |
//! | [`unwind`] | tables from `.eh_frame` for the kernel's walker, and its twin | reads files, never maps them into memory |
//! | [`symbolize`] | address → function, file, line, inlined calls, or why not | works after the process is gone |
//! | [`model`] | blocks, sites, mappings, history, snapshots | opens no file, reads no clock |
//! | [`analyse`] | sites and their history → findings; one rule a file | pure |
//! | [`render`] | text for people | pure; escapes what targets say |
//! | [`export`] | JSON, pprof files, folded stacks, flame graphs, metrics; all serialisation | does no more I/O than writing whole files |
//! | [`agent`] | the loop, targets that come and go, launching a program, the service | owns all state that lives longer than a summary |
//! | [`cli`] | one file for each subcommand | prints; nothing else does |
//!
//! # The agent's parts
//! - `tracer` owns the targets: `targets` makes them, `life` follows them to their end, `news` takes in what the kernel
//!   sends, in the order of its times, `summary` makes snapshots. `tracer/standing` makes targets of what [`agent::orders`]
//!   mean, when a tracepoint tells of an exec, a new name or a move into a control group.
//! - `code` remembers for some seconds what a process had mapped when: rings are not read at one moment, and each stack is
//!   understood by the code of its own time.
//! - Side-band perf events tell of each executable mapping ([`drain::sideband`]); `builder` makes tables on a thread of its
//!   own, `tables` publishes them, `deferred` walks copies of the stacks that came before their tables with the twin of the
//!   kernel's walker, `naming` finds names, where a stack is to be shown.
//! - `stillness` knows which targets have done nothing since the last summary, by counters that are read before anything
//!   else: what was shown of them is shown again, a little older, and their sites and blocks are not read.
//! - `governor` decides from what a target's probes cost (`meter`) whether to sample it less or to pause it. It is pure;
//!   its decisions become events.
//! - `growth` watches memory without probes: `watcher` reads, [`analyse::memory_growth`] judges, `pilot` says which process
//!   to sample and for how long.
//! - `service` runs the tracer by a configuration: `schedule` says when a file is due, `writer` writes it on a thread of its
//!   own, `store` keeps few, `alerts` judge each summary. `http` answers from the last summary; it never waits for the loop
//!   except for a whole snapshot.
//!
//! # Things that are absent on purpose
//! - Nothing is injected into a target, written to it, or stopped in it. Only `run` holds its own children, with
//!   ptrace, at the moments when their probes must be set before they go on.
//! - No return probe sits on a function that an exception may cross: one on `operator new` turns a caught `bad_alloc`
//!   into `std::terminate`. Its exits are probed instead.
//! - No probe sits on a byte that was not decoded from its function's start.
//! - Nothing is evicted from the table of live blocks: the oldest blocks are the leak. What does not fit is counted.
//!   (In exact mode a thread leaves the entries of the blocks that it freed last, marked as freed, for the next allocation at
//!   their addresses: that is cheaper than to insert and delete.)
//! - Perf-event uprobes are never opened with `inherit`: it makes the target's fork fail (Linux 6.18).
//!
//! # The kernel boundary
//! `leaktrace-common` defines every key, value, event and counter with asserted layouts. A hook descriptor in the
//! attach cookie says what a probed function does with its arguments, and which process it is probed for; a new allocator
//! is a row in [`discover::allocators`]. A sampled call that is passed over looks nothing up: its interval comes from an
//! array by the cookie, and a filter of live sampled blocks ends most frees. What every recorded call needs, its thread's
//! state and its site's totals, is looked for in arrays before it is in hash maps (`leaktrace_common::near`). Uprobe
//! programs can be preempted since Linux 6.0, so scratch memory is per thread.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod agent;
pub mod analyse;
pub mod attach;
pub mod cli;
pub mod discover;
pub mod drain;
pub mod export;
#[doc(hidden)]
pub mod foreign;
mod guard;
pub mod model;
pub mod render;
pub mod symbolize;
pub mod unwind;
