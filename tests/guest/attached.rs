//! `leaktrace attach` to running fixtures: exact, sampled, and by their control group.
use crate::shipped;
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    container::Group,
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::Ledger,
    missed::{self, MISSED},
    report::{Report, Target},
    scenario::Case,
};

/// Mean bytes between samples.
pub(crate) const INTERVAL: &str = "4096";
/// Sites whose interval of 95 % must cover the truth: 38 are there, and fewer would come about once in 100,000 times.
const COVERED: usize = 27;
/// Times that a running fixture allocates anew.
const EPOCHS: usize = 3;

/// Fixtures that act while they are traced. (One that forks is traced from its first allocation by `run` only.)
const TOGETHER: &[&str] = &["threads", "calls", "cxx", "mappings", "exchange"];

/// A call that C++'s new_handler leaves by longjmp is known to be lost.
fn case(name: &str, words: &[&str]) -> Case {
    Case::new(shipped(name)).arguments(words).allow_losses(&["lost_returns", MISSED])
}

/// All of them under one leaktrace, which starts slowly under emulation.
pub(crate) fn equals_the_ledgers(link: &str) -> Result<()> {
    let cases: Vec<Case> = TOGETHER.iter().map(|name| case(name, &[])).collect();
    let mut fixtures = cases.iter().map(|case| case.start(false)).collect::<Result<Vec<_>>>()?;
    let library = shipped("libownalloc.so");
    let mut late = case("dlopen", &[&library.to_string_lossy()]).start(false)?;
    let mut pids: Vec<u32> = fixtures.iter().map(Fixture::pid).collect();
    pids.push(late.pid());
    let mut leaktrace = Leaktrace::attach(&pids, &["--link", link, "--symbols-prefix", "own_"])?;
    let mut ledgers = Vec::new();
    for (case, fixture) in cases.iter().zip(&mut fixtures) {
        let ledger = fixture.act().with_context(|| format!("{}", case.program.display()))?;
        ledgers.push((case.clone(), fixture.pid(), ledger));
    }
    let ledger = opened_late(&mut late, &mut leaktrace)?;
    ledgers.push((case("dlopen", &[]), late.pid(), ledger));
    leaktrace.until_settled("all ledgers are equalled", |report| judge(&ledgers, report))?;
    let last = leaktrace.interrupt()?;
    judge(&ledgers, &last).map_err(anyhow::Error::msg).context("the last summary")?;
    fixtures.push(late);
    for fixture in fixtures {
        let status = fixture.release()?;
        ensure!(status.success(), "a fixture ended with {status} after tracing");
    }
    Ok(())
}

fn judge(ledgers: &[(Case, u32, Ledger)], report: &Report) -> Result<(), String> {
    let wrong = ledgers.iter().filter_map(|(case, pid, ledger)| {
        let why = case.judge(ledger, report, *pid).err()?;
        Some(format!("{}: {why}", case.program.display()))
    });
    let wrong: Vec<String> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// It opens a library with an allocator, and allocates one block at a time until that is seen.
fn opened_late(fixture: &mut Fixture, leaktrace: &mut Leaktrace) -> Result<Ledger> {
    fixture.send("")?;
    fixture.wait_ready()?;
    let pid = fixture.pid();
    leaktrace.until("the library's allocator is traced", |report| {
        fixture.send("p").map_err(|error| error.to_string())?;
        let sites = report.target(pid).map(|target| target.sites.as_slice()).unwrap_or_default();
        sites.iter().any(|site| site.has("probe_library")).then_some(()).ok_or_else(|| "not yet".to_owned())
    })?;
    fixture.act()
}

/// Some epochs of one running fixture.
pub(crate) fn estimates_cover_the_ledger(link: &str) -> Result<()> {
    let mut fixture = Fixture::start(&shipped("sampled"), &[INTERVAL], &[])?;
    let flags = ["--mode", "sampled", "--sample-interval", INTERVAL, "--link", link];
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
    for epoch in 0..EPOCHS {
        let ledger = fixture.act()?;
        let mark = ledger.entries.iter().find(|entry| entry.site == "epoch_mark").context("no mark")?.bytes;
        // The last block of each epoch is always sampled and has a size of its own.
        let is_over = |report: &Report| {
            let target = report.target(fixture.pid()).ok_or("no target")?;
            let seen = target.sites.iter().find(|site| site.has("epoch_mark"));
            let seen = seen.map(|site| site.outstanding_bytes);
            if seen == Some(mark) { Ok(()) } else { Err(format!("the mark is {seen:?} instead of {mark}")) }
        };
        let report = leaktrace.until_settled("the epoch is over", is_over)?;
        let target = report.target(fixture.pid()).context("no target")?;
        judge_estimates(&ledger, target).with_context(|| format!("epoch {epoch}"))?;
        let lost = compare::losses(&report, &Rules { allowed_losses: vec![MISSED], ..Rules::default() });
        ensure!(lost.is_empty(), "losses: {lost:?}");
    }
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

/// Enough intervals cover the truth.
pub(crate) fn judge_estimates(ledger: &Ledger, target: &Target) -> Result<()> {
    let interval: u64 = INTERVAL.parse()?;
    let (mut covered, mut missed) = (0, Vec::new());
    for entry in ledger.entries.iter().filter(|entry| entry.site != "epoch_mark") {
        let site = target.sites.iter().find(|site| site.kind == "heap" && site.has(&entry.site));
        // A site that holds nothing sampled may be missing: it is under three intervals.
        let (low, high) = match site.map(|site| site.estimate) {
            None => (0, 3 * interval),
            Some(estimate) => {
                (estimate.low_bytes.context("no low_bytes")?, estimate.high_bytes.context("no high_bytes")?)
            }
        };
        if (low..=high).contains(&entry.bytes) {
            covered += 1;
        } else {
            missed.push(format!("{}: {} is not in {low}..={high}", entry.site, entry.bytes));
        }
    }
    ensure!(covered >= COVERED, "{covered} sites cover the truth: {}", missed.join("\n"));
    Ok(())
}

/// A fixture that is in a control group.
pub(crate) fn control_group_equals_the_ledger() -> Result<()> {
    let group = Group::new("traced")?;
    let case = case("calls", &[]);
    let mut fixture = case.start(false)?;
    std::fs::write(group.path().join("cgroup.procs"), fixture.pid().to_string())?;
    let path = group.path().to_string_lossy().into_owned();
    let words =
        ["attach", "--format", "json", "--top", "0", "--interval", "200ms", "--cgroup", path.as_str()];
    let mut leaktrace = Leaktrace::spawn(&words)?;
    let pid = fixture.pid();
    leaktrace.until("it is traced", |report| {
        report.target(pid).map(drop).ok_or_else(|| format!("{:?}", report.notes))
    })?;
    let ledger = fixture.act()?;
    let report = leaktrace.until_settled("the report equals the ledger", |report| {
        let target = report.target(pid).ok_or("it is gone")?;
        let found = missed::differences(&ledger, target, report, &case.rules);
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    })?;
    let lost = compare::losses(&report, &case.rules);
    ensure!(lost.is_empty(), "{}", lost.join("\n"));
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}
