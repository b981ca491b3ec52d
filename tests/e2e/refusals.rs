//! What cannot be traced is refused in words that help, without a panic and without output.
use anyhow::{Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace, proc,
};
use std::process::{Command, Stdio};

/// Attaching to `pid` fails, and the message holds one of the words.
fn refused(pid: u32, words: &[&str]) -> Result<()> {
    let said = leaktrace::output(&["attach", "--format", "json", "--count", "1", "-p", &pid.to_string()])?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(
        said.status.code().is_some_and(|code| code != 0 && code != 101),
        "ended with {}: {errors}",
        said.status
    );
    ensure!(!errors.contains("panicked"), "{errors}");
    ensure!(errors.contains(&pid.to_string()), "the message does not name the process: {errors}");
    let lower = errors.to_lowercase();
    ensure!(words.iter().any(|word| lower.contains(word)), "the message has none of {words:?}: {errors}");
    ensure!(said.stdout.is_empty(), "a report all the same: {}", String::from_utf8_lossy(&said.stdout));
    Ok(())
}

#[test]
fn a_process_that_is_gone_is_refused() -> Result<()> {
    let mut child = Command::new("/bin/true").spawn()?;
    let pid = child.id();
    child.wait()?;
    refused(pid, &["no such process", "no process", "does not exist", "gone", "not running"])
}

#[test]
fn a_thread_of_the_kernel_is_refused() -> Result<()> {
    refused(proc::kernel_thread()?, &["kernel thread", "thread of the kernel"])
}

#[test]
fn a_32_bit_program_is_refused() -> Result<()> {
    let program = compile::fixture("idle32.c", Build::Bare32, &[])?;
    let mut child = Command::new(program).stdin(Stdio::null()).spawn()?;
    let result = refused(child.id(), &["32-bit", "32 bit", "architecture"]);
    child.kill()?;
    child.wait()?;
    result
}

#[test]
fn a_wrong_command_line_is_refused() -> Result<()> {
    for words in [
        &["attach"][..],
        &["attach", "-p", "none"],
        &["attach", "-p", "1", "--interval", "soon"],
        &["attach", "-p", "1", "--max-blocks", "-1"],
        &["attach", "-p", "1", "--function", "malloc"],
        &["run"],
    ] {
        let said = leaktrace::output(words)?;
        let errors = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.code() == Some(2), "{words:?} ended with {}: {errors}", said.status);
        ensure!(!errors.is_empty() && said.stdout.is_empty(), "{words:?}: {errors}");
    }
    Ok(())
}
