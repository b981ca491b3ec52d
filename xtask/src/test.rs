//! `cargo xtask test`: everything that continuous integration checks, part by part, with totals at the end. What
//! the tests check is in the crates; this runs them and counts.
mod tally;

use crate::{command, fuzz, kernels, setup};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};
pub(crate) use tally::Tally;

/// A part of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Toolchain, and the programs that tests use.
    Setup,
    /// rustfmt on every workspace.
    Format,
    /// clippy with warnings as errors.
    Clippy,
    /// Unit, documentation and golden tests.
    Unit,
    /// Every parser of foreign bytes, for some seconds each.
    Fuzz,
    /// The release binary.
    Build,
    /// Real programs under tracing, as root.
    E2e,
    /// Other kernels, in an emulator.
    Kernels,
}

/// How often the tests of survival attach and detach; the tests themselves default to 1,000.
const CYCLES: &str = "LEAKTRACE_CYCLES";
const CI_CYCLES: &str = "100";

const ALL: [Part; 8] =
    [Part::Setup, Part::Format, Part::Clippy, Part::Unit, Part::Fuzz, Part::Build, Part::E2e, Part::Kernels];

/// Runs all parts, or the one asked for with what it needs; fails when anything in them fails.
pub(crate) fn run(part: Option<Part>, filter: Option<&str>) -> ExitCode {
    let parts: Vec<Part> = match part {
        None => ALL.to_vec(),
        Some(part @ (Part::E2e | Part::Kernels)) => vec![Part::Build, part],
        Some(part) => vec![part],
    };
    let started = Instant::now();
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for part in parts {
        println!("\n=== {} ===", name(part));
        let began = Instant::now();
        let tally = check(part, filter);
        lines.push(line(part, &tally, began.elapsed()));
        let stop = part == Part::Build && tally.failed > 0;
        total.add(&tally);
        if stop {
            lines.push("end to end and kernels  not run: there is no release binary".to_owned());
            total.failed += 1;
            break;
        }
    }
    println!("\n=== totals ({}) ===", seconds(started.elapsed()));
    for line in lines {
        println!("{line}");
    }
    for failure in &total.failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Setup => "setup",
        Part::Format => "format",
        Part::Clippy => "clippy",
        Part::Unit => "unit",
        Part::Fuzz => "fuzz",
        Part::Build => "build",
        Part::E2e => "end to end",
        Part::Kernels => "kernels",
    }
}

fn line(part: Part, tally: &Tally, took: Duration) -> String {
    format!("{:<11} {:>5} passed {:>4} failed {:>8}", name(part), tally.passed, tally.failed, seconds(took))
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn check(part: Part, filter: Option<&str>) -> Tally {
    match part {
        Part::Setup => Tally::of("setup", setup::run(true)),
        Part::Format => format(),
        Part::Clippy => Tally::of("clippy", clippy()),
        Part::Unit => counted("unit", command::cargo(&["test", "--workspace", "--no-fail-fast"])),
        Part::Fuzz => fuzzed(fuzz::SECONDS),
        Part::Build => Tally::of("release build", command::run(&mut command::cargo(&["build", "--release"]))),
        Part::E2e => end_to_end(filter),
        Part::Kernels => on_kernels(kernels::Extent::Short),
    }
}

/// Each scenario in each guest is a check.
pub(crate) fn on_kernels(extent: kernels::Extent) -> Tally {
    let rows = match kernels::matrix(&kernels::Options::of(extent)) {
        Ok(rows) => rows,
        Err(error) => return Tally::of("kernels", Err(error)),
    };
    let mut tally = Tally::default();
    for row in rows {
        tally.passed += u64::try_from(row.passed.len()).unwrap_or(u64::MAX);
        for (scenario, why) in &row.failed {
            tally.fail(format!("{} {scenario}: {}", row.label, why.lines().next().unwrap_or_default()));
        }
    }
    tally
}

/// Each target counts as one test.
pub(crate) fn fuzzed(seconds: u64) -> Tally {
    let mut tally = Tally::default();
    match fuzz::targets() {
        Ok(targets) => targets.iter().for_each(|target| {
            tally.add(&Tally::of(&format!("fuzzing {target}"), fuzz::one(target, seconds)));
        }),
        Err(error) => tally.add(&Tally::of("fuzz targets", Err(error))),
    }
    tally
}

/// Every workspace of the repository; the kernel side and the fuzz targets are not members of the main one.
fn format() -> Tally {
    let mut tally = Tally::default();
    for manifest in ["Cargo.toml", "leaktrace-ebpf/Cargo.toml", "leaktrace/fuzz/Cargo.toml"] {
        if command::root().join(manifest).is_file() {
            let mut cargo = command::cargo(&["fmt", "--all", "--check", "--manifest-path", manifest]);
            tally.add(&Tally::of(&format!("format of {manifest}"), command::run(&mut cargo)));
        }
    }
    tally
}

fn clippy() -> Result<()> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "leaktrace-tests/e2e",
        "--",
        "-D",
        "warnings",
    ];
    command::run(&mut command::cargo(&arguments))
}

fn end_to_end(filter: Option<&str>) -> Tally {
    if let Err(error) = ready_for_tracing() {
        return Tally::of("end to end", Err(error));
    }
    // Optimised, as the tests read megabytes of reports.
    let arguments =
        ["test", "--release", "-p", "leaktrace-tests", "--features", "e2e", "--test", "e2e", "--"];
    let mut cargo = command::cargo(&arguments);
    cargo.arg("--test-threads=2").args(filter).env("RUST_BACKTRACE", "0");
    if std::env::var_os(CYCLES).is_none() {
        println!(
            "{CYCLES}={CI_CYCLES}: set it to 1000 for the full test of survival, which takes about half an hour"
        );
        cargo.env(CYCLES, CI_CYCLES);
    }
    counted("end to end", cargo)
}

pub(crate) fn ready_for_tracing() -> Result<()> {
    if !command::is_root() {
        bail!("the end-to-end tests attach to the kernel and need root: run `sudo -E cargo xtask test`");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("this kernel has no BTF (/sys/kernel/btf/vmlinux): it needs CONFIG_DEBUG_INFO_BTF");
    }
    Ok(())
}

/// Runs `cargo test` with its output shown as it comes, and counts what it says.
pub(crate) fn counted(what: &str, mut cargo: Command) -> Tally {
    let mut tally = Tally::default();
    if let Err(error) = show_and_count(&mut cargo, &mut tally) {
        tally.fail(format!("{what}: {error:#}"));
    }
    tally
}

fn show_and_count(cargo: &mut Command, tally: &mut Tally) -> Result<()> {
    let line = command::describe(cargo);
    let mut child = cargo.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{line}`"))?;
    let output = child.stdout.take().context("no standard output")?;
    for text in BufReader::new(output).split(b'\n') {
        let text = text.with_context(|| format!("the output of `{line}` broke off"))?;
        let text = String::from_utf8_lossy(&text);
        writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")?;
        tally.read(&text);
    }
    let status = child.wait().with_context(|| format!("`{line}` got lost"))?;
    if !status.success() && tally.failed == 0 {
        bail!(
            "`{line}` ended with {status} although no test failed: it did not build, or a test took it down"
        );
    }
    Ok(())
}
