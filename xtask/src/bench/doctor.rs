//! What `leaktrace doctor` says of a process, as far as it is used here (`leaktrace.doctor/1`).
use crate::command;
use anyhow::{Context, Result};
use leaktrace_tests::leaktrace::binary;
use serde::Deserialize;
use std::process::{Command, Stdio};

#[derive(Deserialize)]
struct Diagnosis {
    processes: Vec<Process>,
}

/// A process.
#[derive(Debug, Deserialize)]
pub(super) struct Process {
    pub(super) allocators: Vec<Allocator>,
    pub(super) files: Vec<MappedFile>,
}

/// An allocator in it.
#[derive(Debug, Deserialize)]
pub(super) struct Allocator {
    pub(super) file: String,
    pub(super) hooks: Vec<Hook>,
}

/// A place that would be probed.
#[derive(Debug, Deserialize)]
pub(super) struct Hook {
    pub(super) function: String,
    pub(super) file_offset: u64,
    pub(super) link: String,
}

/// A file whose code it maps.
#[derive(Debug, Deserialize)]
pub(super) struct MappedFile {
    pub(super) path: String,
    pub(super) table: UnwindTable,
}

/// The unwind table of a file.
#[derive(Debug, Deserialize)]
pub(super) struct UnwindTable {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) took_ns: u64,
}

/// Asks about a process.
pub(super) fn process(pid: u32) -> Result<Process> {
    let mut doctor = Command::new(binary()?);
    doctor.args(["doctor", "--format", "json", "-p", &pid.to_string()]);
    // Its exit code says whether the process can be traced; what it says is whole either way.
    let output = doctor.stdin(Stdio::null()).output().context("cannot run leaktrace doctor")?;
    let about = || format!("`{}` did not say what it should", command::describe(&doctor));
    let said: Diagnosis = serde_json::from_slice(&output.stdout).with_context(about)?;
    said.processes.into_iter().next().context("doctor said nothing of the process")
}
