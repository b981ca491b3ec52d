//! `cargo xtask nightly`: what takes too long for `cargo xtask test`, part by part, with a table at the end that is also
//! written to `target/nightly/results.md`. A new long test is a new part.
use crate::{
    command,
    kernels::Extent,
    test::{self, Tally},
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    fmt::Write as _,
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

/// A part of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The release binary.
    Build,
    /// Every kernel in every way that it can be booted.
    Kernels,
    /// Load on every kernel from 6.12 on.
    Soak,
    /// A thousand attachments.
    Survival,
    /// The service for half an hour.
    Service,
    /// Every parser of foreign bytes for ten minutes each.
    Fuzz,
}

const ALL: [Part; 6] = [Part::Build, Part::Kernels, Part::Soak, Part::Survival, Part::Service, Part::Fuzz];

/// For each target.
const FUZZ_SECONDS: u64 = 600;

/// What came of one part.
struct Line {
    part: Part,
    tally: Tally,
    took: Duration,
}

/// Runs all parts, or the build and the one asked for; fails when anything in them fails.
pub(crate) fn run(part: Option<Part>, soak_minutes: u64) -> ExitCode {
    let parts = match part {
        None => ALL.to_vec(),
        Some(Part::Build) => vec![Part::Build],
        Some(part) => vec![Part::Build, part],
    };
    let mut lines: Vec<Line> = Vec::new();
    for part in parts {
        println!("\n=== {} ===", name(part));
        let began = Instant::now();
        let tally = check(part, soak_minutes);
        lines.push(Line { part, tally, took: began.elapsed() });
    }
    let table = table(&lines);
    println!("\n{table}");
    let mut total = Tally::default();
    lines.iter().for_each(|line| total.add(&line.tally));
    if let Err(error) = keep(&table) {
        total.fail(format!("{error:#}"));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Build => "build",
        Part::Kernels => "kernels",
        Part::Soak => "soak on kernels",
        Part::Survival => "survival",
        Part::Service => "soak of the service",
        Part::Fuzz => "fuzz",
    }
}

fn check(part: Part, soak_minutes: u64) -> Tally {
    match part {
        Part::Build => Tally::of("release build", command::run(&mut command::cargo(&["build", "--release"]))),
        Part::Kernels => test::on_kernels(Extent::Whole),
        Part::Soak => test::on_kernels(Extent::Soak(Duration::from_secs(soak_minutes * 60))),
        Part::Survival => end_to_end("survival", ("LEAKTRACE_CYCLES", "1000")),
        Part::Service => end_to_end("soak", ("LEAKTRACE_SOAK", "1800")),
        Part::Fuzz => test::fuzzed(FUZZ_SECONDS),
    }
}

/// The end-to-end tests of one module, at full length.
fn end_to_end(module: &str, length: (&str, &str)) -> Tally {
    if let Err(error) = test::ready_for_tracing() {
        return Tally::of(module, Err(error));
    }
    let words = ["test", "--release", "-p", "leaktrace-tests", "--features", "e2e", "--test", "e2e", "--"];
    let mut cargo = command::cargo(&words);
    cargo
        .arg("--test-threads=2")
        .arg(format!("{module}::"))
        .env("RUST_BACKTRACE", "0")
        .env(length.0, length.1);
    test::counted(module, cargo)
}

fn table(lines: &[Line]) -> String {
    let mut text = "| part | passed | failed | time |\n|---|--:|--:|--:|\n".to_owned();
    for line in lines {
        let (passed, failed) = (line.tally.passed, line.tally.failed);
        let took = test::seconds(line.took);
        let _ = writeln!(text, "| {} | {passed} | {failed} | {took} |", name(line.part));
    }
    for failure in lines.iter().flat_map(|line| &line.tally.failures) {
        let _ = write!(text, "\nfailed: {failure}\n");
    }
    text
}

fn keep(table: &str) -> Result<()> {
    let folder = command::root().join("target/nightly");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join("results.md");
    fs::write(&file, table).with_context(|| format!("cannot write {}", file.display()))
}
