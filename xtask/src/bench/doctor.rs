//! What `leaktrace doctor` says of a process.
use crate::command;
use anyhow::{Context, Result};
use leaktrace_tests::leaktrace::binary;
use serde_json::Value;
use std::process::{Command, Stdio};

/// The process's part of `leaktrace.doctor/1`.
pub(super) fn process(pid: u32) -> Result<Value> {
    let mut doctor = Command::new(binary()?);
    doctor.args(["doctor", "--format", "json", "-p", &pid.to_string()]);
    // Its exit code says whether the process can be traced; what it says is whole either way.
    let output = doctor.stdin(Stdio::null()).output().context("cannot run leaktrace doctor")?;
    let about = || format!("`{}` gave no JSON", command::describe(&doctor));
    let said: Value = serde_json::from_slice(&output.stdout).with_context(about)?;
    said["processes"].get(0).cloned().context("doctor said nothing of the process")
}
