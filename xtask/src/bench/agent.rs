//! What the agent itself needs: to look at a full table, and to idle beside processes that do nothing.
use super::{
    Options,
    facts::{self, Facts, mib, seconds},
    idle,
    kernel_memory::{maps_bytes, slab_bytes},
    rounds::{one_line, progress},
};
use anyhow::{Context, Result};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
};
use std::time::{Duration, Instant};

/// A table for each.
pub(super) fn measure(options: &Options) -> String {
    let idle = |blocks, command| {
        let targets = idle::TARGETS;
        format!(
            "{targets} idle targets with {} sites and {blocks} live blocks at each, `{command}`",
            options.sites
        )
    };
    let sections = [
        (format!("{} live blocks at {} sites", options.blocks, options.sites), full(options)),
        (idle(1, "attach"), idle::attach(options, 1)),
        (idle(10, "attach"), idle::attach(options, 10)),
        (idle(1, "agent"), idle::service(options, 1)),
    ];
    let text = sections.map(|(title, facts)| {
        let facts =
            facts.map_or_else(|error| format!("Not measured: {}\n\n", one_line(&error)), |f| f.to_string());
        format!("### {title}\n\n{facts}")
    });
    text.concat()
}

/// Memory at one time.
struct Memory {
    own: u64,
    maps: u64,
    slab: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Memory> {
        Ok(Memory { own: proc::status_bytes(pid, "RssAnon")?, maps: maps_bytes(pid)?, slab: slab_bytes()? })
    }
}

fn full(options: &Options) -> Result<Facts> {
    progress("the agent with a full table");
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    let words = [options.blocks.to_string(), options.sites.to_string()];
    let mut fixture = Fixture::start(&program, &words.each_ref().map(String::as_str), &[])?;
    let bound = (2 * options.blocks).to_string();
    let flags = ["--max-blocks", &bound, "--top", "10", "--interval", "1ms", "--mode", "exact"];
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
    let empty = Memory::of(leaktrace.pid())?;
    fixture.act()?;
    let pid = fixture.pid();
    leaktrace.until_settled("all blocks are reported", |report| {
        let count = report.target(pid).map_or(0, |target| target.outstanding_count);
        if count == options.blocks { Ok(()) } else { Err(format!("{count} blocks")) }
    })?;
    let filled = Memory::of(leaktrace.pid())?;
    let most = proc::status_bytes(leaktrace.pid(), "VmHWM")?;
    let summaries = summary_times(&mut leaktrace, options.rounds)?;
    let last = Instant::now();
    let end = leaktrace.interrupt()?;
    let per_block = |filled: u64, empty: u64| filled.saturating_sub(empty) as f64 / options.blocks as f64;
    let mut facts = Facts::default();
    let times = summaries.iter().map(Duration::as_secs_f64);
    facts.add_bounded("one summary over everything", facts::spread(times, "s"), "1 s");
    facts.add("last summary and detaching", seconds(last.elapsed()));
    facts.add("agent's own memory, empty", mib(empty.own));
    facts.add_bounded("agent's own memory, full", mib(filled.own), "64 MiB");
    facts.add("agent's resident memory at most, files and shared maps included", mib(most));
    facts.add(&format!("kernel maps before the first block, for at most {bound} blocks"), mib(empty.maps));
    let by_maps = format!("{:.0} bytes", per_block(filled.maps, empty.maps));
    facts.add_bounded("kernel memory for each live block, sites and stacks included", by_maps, "120 bytes");
    let by_slab = format!("{:.0} bytes", per_block(filled.slab, empty.slab));
    facts.add("the same as the growth of the whole host's kernel memory", by_slab);
    facts.add("losses", format!("{:?}", end.losses));
    Ok(facts)
}

/// From one line to the next: at an interval of a millisecond they follow one another without a pause. Lines that
/// were waiting already come at once and say nothing.
fn summary_times(leaktrace: &mut Leaktrace, rounds: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while times.len() < rounds.max(1) as usize {
        let before = Instant::now();
        leaktrace.next_report()?.context("leaktrace ended")?;
        let time = before.elapsed();
        if time > Duration::from_micros(500) {
            times.push(time);
        }
    }
    Ok(times)
}
