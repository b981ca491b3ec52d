//! Bounds: a million live blocks, a table that is full, and the agent's own memory.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    proc,
    scenario::Case,
};

const MILLION: u64 = 1_000_000;

fn million(sites: &str) -> Result<Case> {
    Ok(Case::new(compile::fixture("million.c", Build::Gcc, &[])?).arguments(&["1000000", sites]))
}

#[test]
fn a_million_live_blocks_are_all_there() -> Result<()> {
    million("1000")?.flags(&["--max-blocks", "2M"]).run()
}

#[test]
fn every_one_of_many_sites_is_reported_apart() -> Result<()> {
    let case = Case::new(compile::fixture("million.c", Build::Gcc, &[])?).arguments(&["40960", "4096"]);
    let report = case.run_twin(false)?;
    let sites: Vec<_> = report.targets.iter().flat_map(|target| &target.sites).collect();
    let of_leak = sites.iter().filter(|site| site.has("leak_block")).count();
    ensure!(of_leak == 4096, "{of_leak} sites instead of 4096");
    ensure!(
        sites.iter().filter(|site| site.has("leak_block")).all(|site| site.outstanding_count == 10),
        "unequal"
    );
    Ok(())
}

/// With a bound that leaves the kernel's array of sites unused, and with one that does not.
#[test]
fn sites_beyond_the_bound_are_counted_to_the_unit() -> Result<()> {
    for bound in [100, 40_000] {
        let sites = 2 * bound;
        let allocations = 2 * sites as u64;
        let case = Case::new(compile::fixture("million.c", Build::Gcc, &[])?)
            .arguments(&[&allocations.to_string(), &sites.to_string()])
            .flags(&["--max-sites", &bound.to_string()])
            .allow_losses(&["sites_full"]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        fixture.act()?;
        let report = leaktrace.until_settled("recorded and lost allocations are all", |report| {
            let lost = report.losses.get("sites_full").copied().unwrap_or(0);
            let kept = report.target(fixture.pid()).ok_or("no target")?.outstanding_count;
            if kept + lost == allocations { Ok(()) } else { Err(format!("{kept} kept and {lost} lost")) }
        })?;
        let kept = report.target(fixture.pid()).context("no target")?.sites.len();
        ensure!((bound - 2..=bound).contains(&kept), "{kept} sites kept with a bound of {bound}");
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_counted_to_the_unit_and_the_agent_stays_small() -> Result<()> {
    let case = million("100")?.flags(&["--max-blocks", "100k"]).allow_losses(&["blocks_full"]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    let before = proc::status_bytes(leaktrace.pid(), "RssAnon")?;
    let ledger = fixture.act()?;
    let allocated =
        ledger.entries.first().and_then(|entry| entry.allocated_bytes).context("an empty ledger")?;
    let report = leaktrace.until_settled("recorded and lost blocks are all blocks", |report| {
        let lost = report.losses.get("blocks_full").copied().unwrap_or(0);
        let target = report.target(fixture.pid()).ok_or("no target")?;
        let kept = target.outstanding_count;
        if kept + lost == MILLION { Ok(()) } else { Err(format!("{kept} kept and {lost} lost")) }
    })?;
    let target = report.target(fixture.pid()).context("no target")?;
    ensure!(
        (100_000..=110_000).contains(&target.outstanding_count),
        "{} blocks kept",
        target.outstanding_count
    );
    ensure!(target.outstanding_bytes < allocated, "more bytes than there are");
    let grown = proc::status_bytes(leaktrace.pid(), "RssAnon")?.saturating_sub(before);
    ensure!(grown < 64 << 20, "the agent grew by {} MiB", grown >> 20);
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

#[test]
fn the_blocks_that_fit_keep_their_frees() -> Result<()> {
    let case = million("100")?.flags(&["--max-blocks", "100k"]).allow_losses(&["blocks_full"]);
    let mut fixture = case.start(true)?;
    let mut leaktrace = case.attach(&fixture)?;
    fixture.act()?;
    leaktrace.until_settled("nothing is outstanding after everything was freed", |report| {
        let target = report.target(fixture.pid()).ok_or("no target")?;
        match target.outstanding_count {
            0 => Ok(()),
            count => Err(format!("{count} blocks are outstanding")),
        }
    })?;
    Ok(())
}
