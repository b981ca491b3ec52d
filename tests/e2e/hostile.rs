//! Programs whose files are made to stop whoever reads them: they cost their own names, and tracing goes on.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

#[path = "../../leaktrace/src/symbolize/crafted.rs"]
mod crafted;

/// The fixture with other sections.
fn program(folder: &Path, sections: &crafted::Sections, packed: bool) -> Result<PathBuf> {
    let path = folder.join("held");
    fs::copy(compile::fixture("held.c", Build::NoPie, &[])?, &path)?;
    for (name, content) in sections {
        let file = folder.join("section");
        fs::write(&file, content)?;
        let what = if content.is_empty() {
            format!("--remove-section={name}")
        } else {
            format!("--update-section={name}={}", file.display())
        };
        ensure!(Command::new("objcopy").arg(what).arg(&path).status()?.success(), "objcopy {name}");
    }
    if packed {
        let packed = Command::new("objcopy").arg("--compress-debug-sections=zlib").arg(&path).status()?;
        ensure!(packed.success(), "objcopy packs");
    }
    Ok(path)
}

/// The address of the function that allocates.
fn keeps(program: &Path) -> Result<u64> {
    let said = Command::new("nm").arg(program).output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = text.lines().find(|line| line.ends_with(" T keeps")).context("no such symbol")?;
    Ok(u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16)?)
}

/// Runs a program to its end; its last report as text, what was said, and how long it took.
fn traced(words: &[&str]) -> Result<(String, String, Duration)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(&file).arg("--").args(words).stdin(Stdio::null());
    let begun = Instant::now();
    let Output { status, stderr, .. } = command.output()?;
    let (took, errors) = (begun.elapsed(), String::from_utf8_lossy(&stderr).into_owned());
    ensure!(status.success(), "{status}: {errors}");
    ensure!(!errors.contains("panicked"), "{errors}");
    let text = fs::read_to_string(&file).with_context(|| errors.clone())?;
    Ok((text.lines().last().context("no report")?.to_owned(), errors, took))
}

/// The report of a program with hostile debug information: sums are right, functions have names, lines are missing, and
/// it says why.
fn loses_its_lines_alone(program: &Path, why: &str) -> Result<()> {
    let (report, _, took) = traced(&[&program.to_string_lossy()])?;
    ensure!(took < Duration::from_secs(60), "it took {took:?}");
    ensure!(report.contains("\"keeps\""), "no name: {report}");
    ensure!(report.contains("100000"), "no sum: {report}");
    ensure!(report.contains(why), "no reason: {report}");
    Ok(())
}

#[test]
fn debug_information_that_takes_for_ever_costs_lines_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    loses_its_lines_alone(
        &program(folder.path(), &crafted::many_units(20_000, 200_000), false)?,
        "too long to read",
    )
}

#[test]
fn debug_information_that_makes_its_reader_panic_costs_lines_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = keeps(&compile::fixture("held.c", Build::NoPie, &[])?)?;
    let sections = crafted::file_that_is_not_there(address, 64);
    loses_its_lines_alone(&program(folder.path(), &sections, false)?, "cannot be read")
}

#[test]
fn two_hundred_mebibytes_of_zeros_cost_next_to_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let zeros = vec![(".debug_info", vec![0; 200 << 20])];
    let path = program(folder.path(), &zeros, true)?;
    ensure!(fs::metadata(&path)?.len() < 1 << 20, "it was not packed");
    let (report, _, took) = traced(&[&path.to_string_lossy()])?;
    ensure!(report.contains("\"keeps\""), "no name: {report}");
    ensure!(took < Duration::from_secs(60), "it took {took:?}");
    Ok(())
}

/// A signal is heard while names are looked up: the second one of a session ends the wait.
#[test]
fn signals_are_heard_while_names_are_looked_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = program(folder.path(), &crafted::many_units(20_000, 200_000), false)?;
    let mut command = leaktrace::command(&["run", "--top", "0", "--"])?;
    let mut child = command.arg(&path).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The program has ended by then, and its names are being looked up.
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_reader = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("leaktrace-names"))
    };
    while !leaktrace_tests::proc::children(child.id())?.iter().any(is_reader) {
        ensure!(Instant::now() < deadline && child.try_wait()?.is_none(), "no names are looked up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let begun = Instant::now();
    for _ in 0..2 {
        // SAFETY: no memory; the process is this one's child.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = child.wait()?;
    ensure!(begun.elapsed() < Duration::from_secs(4), "it took {:?} ({status})", begun.elapsed());
    Ok(())
}

#[test]
fn a_map_of_generated_code_that_is_no_plain_file_is_not_opened() -> Result<()> {
    let program = compile::fixture("generated.c", Build::Gcc, &[])?;
    let program = program.to_string_lossy();
    let (good, ..) = traced(&[&program, "good"])?;
    ensure!(good.contains("made_here"), "a good map is read: {good}");
    for place in ["pipe", "/proc/kmsg", "/sys/kernel/tracing/trace_pipe", "/dev/zero", "/etc/shadow"] {
        let (report, errors, took) = traced(&[&program, place])?;
        ensure!(took < Duration::from_secs(30), "{place}: it took {took:?}: {errors}");
        ensure!(report.contains("generated code without a perf map"), "{place}: {report}");
    }
    Ok(())
}
