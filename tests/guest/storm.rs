//! The load under which kernel programs are preempted, moved and interrupted at every place: `fixtures/storm.c`, whose
//! ledger is compared after each round.
use crate::{life, shipped};
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::{Entry, Ledger},
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

/// The loss by which leaktrace names mapping calls that the kernel did not tell of.
const MISSED: &str = "mapping_calls_missed";

fn judge(setting: &Setting, ledger: &Ledger, report: &Report, pid: u32) -> Result<(), String> {
    let target = report.target(pid).ok_or("it is not in the report")?;
    let missed = report.losses.get(MISSED).copied().unwrap_or(0);
    let allowed_losses = if missed > 0 { vec![MISSED] } else { Vec::new() };
    let rules = Rules { allowed_losses, ..Rules::default() };
    let mut found = compare::losses(report, &rules);
    let (mappings, heap): (Vec<Entry>, Vec<Entry>) =
        ledger.entries.iter().cloned().partition(|entry| missed > 0 && entry.kind == "mapping");
    found.extend(mappings.iter().filter_map(|entry| short_by_more(entry, target, missed)));
    let exact = Ledger { entries: heap };
    match setting.mode.as_str() {
        "sampled" => found.extend(estimate(&exact, target)),
        _ => found.extend(compare::differences(&exact, target, &rules)),
    }
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

/// Where calls were missed and counted, no more of a site's mappings may lack than that.
fn short_by_more(entry: &Entry, target: &Target, missed: u64) -> Option<String> {
    let truth = entry.allocated_count?;
    let of_entry = target.sites.iter().filter(|site| {
        site.kind == entry.kind
            && site.frames.iter().any(|frame| frame.function.as_ref() == Some(&entry.site))
    });
    let is: u64 = of_entry.map(|site| site.allocated_count).sum();
    let is_covered = is <= truth && truth - is <= missed;
    (!is_covered)
        .then(|| format!("{}: {is} mappings instead of {truth}, and {missed} calls missed", entry.site))
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
