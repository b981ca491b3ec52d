//! The load under which kernel programs are preempted, moved and interrupted at every place: `fixtures/storm.c`, whose
//! ledger is compared after each round.
use crate::{life, shipped};
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::Ledger,
    missed::{self, MISSED},
    report::{Report, Target},
};
use std::time::{Duration, Instant};

/// Threads for each processor.
const THREADS: &str = "threads=6";
/// A round is so long, or as long as there is time in all.
const ROUND: Duration = Duration::from_secs(60);
/// Standard errors that an estimate may be wrong by.
const ERRORS: u64 = 6;

/// How to trace, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) link: String,
    pub(crate) mode: String,
    pub(crate) time: Duration,
}

/// After each round: to the byte in exact mode, within the error of an estimate in sampled mode.
pub(crate) fn equals_the_ledger(setting: &Setting) -> Result<()> {
    let round = setting.time.min(ROUND).as_secs().max(1);
    let mut fixture = Fixture::start(&shipped("storm"), &[THREADS, &format!("seconds={round}")], &[])?;
    let pid = fixture.pid();
    let mut flags = vec!["--mode", setting.mode.as_str(), "--link", &setting.link, "--interval", "1s"];
    if setting.mode == "sampled" {
        flags.extend(["--sample-interval", "16384"]);
    }
    let mut leaktrace = Leaktrace::attach(&[pid], &flags)?;
    let (began, mut rounds, mut calls) = (Instant::now(), 0, 0);
    while rounds == 0 || began.elapsed() < setting.time {
        let ledger = fixture.act()?;
        rounds += 1;
        calls = ledger.entries.iter().filter_map(|entry| entry.allocated_count).sum();
        leaktrace
            .until_settled("the report equals the ledger", |report| judge(setting, &ledger, report, pid))
            .with_context(|| format!("round {rounds}, after {calls} allocations"))?;
    }
    leaktrace.interrupt()?;
    life::no_probe_remains(pid)?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    println!("FACT storm {} {}: {rounds} rounds, {calls} allocations", setting.link, setting.mode);
    Ok(())
}

fn judge(setting: &Setting, ledger: &Ledger, report: &Report, pid: u32) -> Result<(), String> {
    let target = report.target(pid).ok_or("it is not in the report")?;
    let rules = Rules { allowed_losses: vec![MISSED], ..Rules::default() };
    let mut found = compare::losses(report, &rules);
    match setting.mode.as_str() {
        "sampled" => found.extend(estimate(ledger, target)),
        _ => found.extend(missed::differences(ledger, target, report, &rules)),
    }
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

/// What is wrong with the estimated number of blocks. (Estimates of bytes are of what the allocator took, which the
/// ledger does not know.)
fn estimate(ledger: &Ledger, target: &Target) -> Option<String> {
    let heap = ledger.entries.iter().filter(|entry| entry.kind == "heap");
    let truth: u64 = heap.filter_map(|entry| entry.count).sum();
    let (is, error) = (target.outstanding_count, target.estimate.error_count);
    (is.abs_diff(truth) > ERRORS * error)
        .then(|| format!("an estimate of {is} blocks ± {error} instead of {truth}"))
}
