//! What leaktrace needs while its targets do nothing: ten of them, with many sites and blocks, a summary each second.
use super::{
    Options,
    facts::{self, Facts, mib},
    kernel_memory::maps_bytes,
    rounds::progress,
};
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::Agent,
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
};
use std::{thread::sleep, time::Duration};

/// Processes that are traced.
pub(super) const TARGETS: u64 = 10;
/// After the targets have come to rest, and three times while they rest.
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 3;

/// So many live blocks at each site.
fn targets(options: &Options, blocks: u64) -> Result<Vec<Fixture>> {
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    let sites = sites(options);
    let words = [(blocks * sites).to_string(), sites.to_string()];
    let words = words.each_ref().map(String::as_str);
    (0..TARGETS).map(|_| Fixture::start(&program, &words, &[])).collect()
}

/// Of each target.
fn sites(options: &Options) -> u64 {
    (options.sites / TARGETS).max(1)
}

/// `leaktrace attach` with what a person would look at.
pub(super) fn attach(options: &Options, blocks: u64) -> Result<Facts> {
    progress("idle targets, attach");
    let mut fixtures = targets(options, blocks)?;
    let expected = TARGETS * sites(options) * blocks;
    let pids: Vec<u32> = fixtures.iter().map(Fixture::pid).collect();
    let mut leaktrace = Leaktrace::attach(&pids, &["--mode", "exact", "--interval", "1s", "--top", "10"])?;
    for fixture in &mut fixtures {
        fixture.act()?;
    }
    leaktrace.until_settled("all blocks are reported", |report| {
        let held: u64 = report.targets.iter().map(|target| target.outstanding_count).sum();
        if held == expected { Ok(()) } else { Err(format!("{held} blocks")) }
    })?;
    let mut facts = Facts::default();
    rest(leaktrace.pid(), &mut facts)?;
    facts.add("losses", format!("{:?}", leaktrace.interrupt()?.losses));
    Ok(facts)
}

/// The service, with its own defaults but for the mode, which fills the sites, and the interval.
pub(super) fn service(options: &Options, blocks: u64) -> Result<Facts> {
    progress("idle targets, agent");
    let mut fixtures = targets(options, blocks)?;
    let expected = TARGETS * sites(options) * blocks;
    let pids: Vec<String> = fixtures.iter().map(|fixture| format!("\"pid:{}\"", fixture.pid())).collect();
    let mut agent = Agent::start(&format!(
        "targets = [{}]\n[trace]\nmode = \"exact\"\ninterval = \"1s\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
        pids.join(", ")
    ))?;
    agent.until("targets", "all targets are traced", |answer| {
        (answer["targets"].as_array()?.len() == pids.len()).then_some(())
    })?;
    for fixture in &mut fixtures {
        fixture.act()?;
    }
    agent.until("targets", "all blocks are reported", |answer| {
        let held: u64 = answer["targets"]
            .as_array()?
            .iter()
            .filter_map(|target| target["outstanding_count"].as_u64())
            .sum();
        (held == expected).then_some(())
    })?;
    let before = agent.work("summaries")?;
    let mut facts = Facts::default();
    rest(agent.pid(), &mut facts)?;
    let summaries = agent.work("summaries")?.saturating_sub(before);
    facts.add("summaries meanwhile", summaries.to_string());
    let status = agent.stop()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(facts)
}

/// Watches the process while there is nothing to do.
fn rest(pid: u32, facts: &mut Facts) -> Result<()> {
    sleep(SETTLE);
    let mut shares = Vec::new();
    let mut before = proc::cpu_time(pid)?;
    while shares.len() < WINDOWS {
        sleep(WINDOW);
        let now = proc::cpu_time(pid)?;
        let used = now.checked_sub(before).context("processor time went backwards")?;
        shares.push(100.0 * used.as_secs_f64() / WINDOW.as_secs_f64());
        before = now;
    }
    facts.add_bounded("share of one core", facts::spread(shares, "%"), "1 %");
    facts.add_bounded("own memory", mib(proc::status_bytes(pid, "RssAnon")?), "64 MiB");
    facts.add("resident memory, files and shared maps included", mib(proc::status_bytes(pid, "VmRSS")?));
    facts.add("kernel maps", mib(maps_bytes(pid)?));
    Ok(())
}
