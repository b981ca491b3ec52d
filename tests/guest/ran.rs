//! `leaktrace run`: many fixtures in one script, estimates, stacks, the exit code.
use crate::{attached, shipped};
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    leaktrace,
    ledger::{Ledger, Said},
    missed::{self, MISSED},
    oracle,
    report::Report,
    scenario::latest,
};
use std::process::{Command, Output, Stdio};

/// What the script runs; without anything on standard input, each acts at once.
const SCRIPT: &str = "cd /fixtures && ./early && ./calls && ./threads && ./cxx && ./mappings && ./exchange \
    && ./fork fork && ./fork vfork && ./fork spawn && ./fork exec";
/// Processes in the script's ledger: `fork` has two of its own in three of its four ways.
const PROCESSES: usize = 13;

struct Ran {
    ledger: Ledger,
    reports: Vec<Report>,
    said: Output,
}

/// Runs words under `leaktrace run`, and reads what they and leaktrace say.
fn run(flags: &[&str], words: &[&str]) -> Result<Ran> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command: Command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(&file).args(flags).arg("--").args(words).stdin(Stdio::null());
    let said = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    let text = std::fs::read_to_string(&file).with_context(|| format!("no report: {errors}"))?;
    let reports = text.lines().map(Report::parse).collect::<Result<Vec<_>>>()?;
    let ledger = collect(&String::from_utf8_lossy(&said.stdout)).with_context(|| errors.clone())?;
    Ok(Ran { ledger, reports, said })
}

/// The entries of all fixtures that have printed one after another.
fn collect(text: &str) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    for line in text.lines() {
        match Said::parse(line)? {
            Said::Entry(entry) => ledger.entries.push(entry),
            Said::Broken(why) => bail!("a fixture failed by itself: {why}"),
            _ => {}
        }
    }
    Ok(ledger)
}

/// Every process of the script has what its ledger says, to the byte.
pub(crate) fn equals_the_ledgers() -> Result<()> {
    let ran = run(&[], &["/bin/sh", "-c", SCRIPT])?;
    let errors = String::from_utf8_lossy(&ran.said.stderr);
    ensure!(ran.said.status.success(), "ended with {}: {errors}", ran.said.status);
    let pids = ran.ledger.pids();
    ensure!(pids.len() == PROCESSES, "{} processes instead of {PROCESSES}: {errors}", pids.len());
    let mut found = Vec::new();
    let last = ran.reports.last().context("no summary")?;
    for pid in pids {
        let target = latest(&ran.reports, pid)?;
        let rules = rules(&target.comm);
        let differences = missed::differences(&ran.ledger.of(pid), target, last, &rules);
        found.extend(differences.into_iter().map(|text| format!("{} ({pid}): {text}", target.comm)));
    }
    found.extend(compare::losses(last, &rules("cxx")));
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// How to compare a fixture that was traced from its first allocation. A call that C++'s new_handler leaves by longjmp
/// is known to be lost, and some libraries keep blocks of their own from their start: threads' storage, libstdc++'s
/// reserve for exceptions.
fn rules(fixture: &str) -> Rules {
    let keeps_others = matches!(fixture, "threads" | "cxx");
    Rules { allowed_losses: vec!["lost_returns", MISSED], others_allowed: keeps_others, ..Rules::default() }
}

/// Estimates of one run.
pub(crate) fn estimates_cover_the_ledger() -> Result<()> {
    let program = shipped("sampled");
    // Standard input gives one epoch, then its end.
    let script = format!("echo | {} {}", program.display(), attached::INTERVAL);
    let ran =
        run(&["--mode", "sampled", "--sample-interval", attached::INTERVAL], &["/bin/sh", "-c", &script])?;
    ensure!(ran.said.status.success(), "ended with {}", ran.said.status);
    let pid = *ran.ledger.pids().first().context("the fixture said nothing")?;
    attached::judge_estimates(&ran.ledger, latest(&ran.reports, pid)?)
}

/// Against what libgcc's unwinder finds, with libraries, fork and exec.
pub(crate) fn stacks_equal_the_truth() -> Result<()> {
    let libraries = shipped("oracle-libraries");
    let environment = [("ORACLE_LIBRARIES", libraries.to_str().context("a path that is no text")?)];
    let verdict = oracle::run(&shipped("oracle"), &["exec"], &environment, &["--verify-unwind"])?;
    let stacks = verdict.judge()?;
    for (pid, losses) in &verdict.losses {
        ensure!(!losses.contains_key("reuse_mismatches"), "process {pid}: {losses:?}");
    }
    println!("FACT stacks {stacks}");
    Ok(())
}

/// 3 for the leaking twin, 0 for the clean one.
pub(crate) fn fails_on_a_leak_only() -> Result<()> {
    let program = shipped("early");
    let program = program.to_str().context("a path that is no text")?;
    for (twin, code) in [("leaky", 3), ("clean", 0)] {
        let ran = run(&["--fail-on-leak"], &[program, twin])?;
        ensure!(ran.said.status.code() == Some(code), "{twin}: {} instead of {code}", ran.said.status);
    }
    Ok(())
}
