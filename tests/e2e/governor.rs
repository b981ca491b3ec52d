//! The governor on the real kernel: a process that allocates all the time is left alone when tracing it would cost more
//! than is allowed, and what was seen of it before is not held against it.
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::Said,
    proc,
    report::{Report, Target},
};
use std::time::{Duration, Instant};

/// Pairs of malloc and free in a round.
const PAIRS: &str = "50000";
/// For the governor to come to a decision on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn start() -> Result<Fixture> {
    Fixture::start(&compile::fixture("hot.c", Build::Gcc, &[])?, &[PAIRS], &[])
}

/// One round: nanoseconds for each pair.
fn round(fixture: &mut Fixture) -> Result<f64> {
    fixture.send("")?;
    match fixture.hear()? {
        Said::Timed { pairs, ns } => Ok(ns as f64 / pairs as f64),
        other => bail!("the fixture said {other:?} instead of a time"),
    }
}

/// Keeps the fixture hot until an event of this kind, and returns the kinds on the way and the last summary.
fn hot_until(
    kind: &str,
    fixture: &mut Fixture,
    leaktrace: &mut Leaktrace,
) -> Result<(Vec<String>, Report, Vec<f64>)> {
    let deadline = Instant::now() + PATIENCE;
    let (mut kinds, mut times) = (Vec::new(), Vec::new());
    while Instant::now() < deadline {
        times.push(round(fixture)?);
        for report in leaktrace.waiting()? {
            let of_target = report.events.iter().filter(|event| event.pid == fixture.pid());
            kinds.extend(of_target.map(|event| event.kind.clone()));
            if kinds.iter().any(|seen| seen == kind) {
                return Ok((kinds, report, times));
            }
        }
    }
    bail!("no event {kind:?} but {kinds:?}: {}", leaktrace.errors());
}

fn target(report: &Report, pid: u32) -> Result<&Target> {
    report.target(pid).context("no target")
}

fn state(target: &Target) -> &str {
    target.overhead.as_ref().map_or("none", |overhead| overhead.state.as_str())
}

/// Nothing of before the pause is a finding, although the fixture leaks all the time.
fn nothing_is_held_against_it(target: &Target) -> Result<()> {
    for site in target.sites.iter().filter(|site| site.unverified_bytes > 0) {
        ensure!(site.finding.is_none(), "{} has the finding {:?}", site.stack(), site.finding);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[test]
fn what_costs_too_much_is_widened_then_paused_then_tried_again() -> Result<()> {
    let mut fixture = start()?;
    let pid = fixture.pid();
    let flags =
        ["--mode", "sampled", "--sample-interval", "64", "--max-overhead", "1%", "--first-pause", "8s"];
    let mut leaktrace = Leaktrace::attach(&[pid], &flags)?;
    let (kinds, report, times) = hot_until("paused", &mut fixture, &mut leaktrace)?;
    ensure!(kinds == ["widened", "paused"], "{kinds:?}");
    let seen = target(&report, pid)?;
    let overhead = seen.overhead.as_ref().context("no overhead")?;
    ensure!(overhead.state == "paused" && overhead.retry_in_ns.is_some(), "{overhead:?}");
    ensure!(overhead.sample_interval_bytes > 64, "{overhead:?}");
    ensure!(seen.outstanding_bytes > 0 && seen.unverified_bytes == seen.outstanding_bytes, "{seen:?}");
    ensure!(report.notes.iter().any(|note| note.contains("not watched")), "{:?}", report.notes);
    nothing_is_held_against_it(seen)?;

    let probes = proc::damaged_text(pid)?;
    ensure!(probes.is_empty(), "probes in the text of a paused process: {probes:?}");
    let mut paused = Vec::new();
    for _ in 0..5 {
        paused.push(round(&mut fixture)?);
    }
    // The first rounds were traced for sure; the last ones, much faster, may not have been.
    let (traced, paused) = (median(times.into_iter().take(5).collect()), median(paused));
    ensure!(traced > 3.0 * paused, "{traced} ns a pair while traced, {paused} ns while paused");

    // At rest it costs nothing, so that it stays watched.
    let report = leaktrace.until("the pause is over", |report| {
        let target = report.target(pid).ok_or("no target")?;
        if state(target) == "paused" { Err(format!("{:?}", target.overhead)) } else { Ok(()) }
    })?;
    let seen = target(&report, pid)?;
    ensure!(seen.overhead.as_ref().is_some_and(|overhead| overhead.paused_ns >= 6_000_000_000), "{seen:?}");
    ensure!(seen.unverified_bytes > 0, "what was not watched is not marked any more");
    nothing_is_held_against_it(seen)?;
    let probes = proc::damaged_text(pid)?;
    ensure!(!probes.is_empty(), "no probes after the pause");
    let last = leaktrace.interrupt()?;
    nothing_is_held_against_it(target(&last, pid)?)?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

#[test]
fn exact_mode_with_a_budget_of_its_own_is_paused_and_stays_exact() -> Result<()> {
    let mut fixture = start()?;
    let pid = fixture.pid();
    let flags = ["--mode", "exact", "--max-overhead", "2%", "--first-pause", "2s"];
    let mut leaktrace = Leaktrace::attach(&[pid], &flags)?;
    let (kinds, report, _) = hot_until("paused", &mut fixture, &mut leaktrace)?;
    ensure!(kinds == ["paused"], "{kinds:?}");
    let seen = target(&report, pid)?;
    ensure!(seen.estimate.samples.is_none() && seen.estimate.high_bytes.is_none(), "{seen:?}");
    ensure!(seen.overhead.as_ref().is_some_and(|overhead| overhead.sample_interval_bytes == 0), "{seen:?}");
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

#[test]
fn exact_mode_is_warned_and_goes_on() -> Result<()> {
    let mut fixture = start()?;
    let pid = fixture.pid();
    // With this flag the harness leaves the budget at its default.
    let mut leaktrace = Leaktrace::attach(&[pid], &["--mode", "exact", "--first-pause", "8s"])?;
    let (kinds, report, _) = hot_until("over_budget", &mut fixture, &mut leaktrace)?;
    ensure!(kinds == ["over_budget"], "{kinds:?}");
    let seen = target(&report, pid)?;
    ensure!(state(seen) == "over_budget" && seen.estimate.samples.is_none(), "{seen:?}");
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}
