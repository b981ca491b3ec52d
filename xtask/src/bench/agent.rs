//! What the agent needs to look at a full table: the time of a summary over all blocks and sites, and its memory.
use super::Options;
use anyhow::{Context, Result};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
};
use std::time::{Duration, Instant};

/// Prints a table: each line a quantity, its value, and what it should stay under.
pub(super) fn measure(options: &Options) -> Result<String> {
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    let words = [options.blocks.to_string(), options.sites.to_string()];
    let mut fixture = Fixture::start(&program, &words.each_ref().map(String::as_str), &[])?;
    let bound = (2 * options.blocks).to_string();
    let mut leaktrace =
        Leaktrace::attach(&[fixture.pid()], &["--max-blocks", &bound, "--top", "10", "--interval", "1ms"])?;
    let empty = proc::status_bytes(leaktrace.pid(), "RssAnon")?;
    fixture.act()?;
    let pid = fixture.pid();
    leaktrace.until_settled("all blocks are reported", |report| {
        let count = report.target(pid).map_or(0, |target| target.outstanding_count);
        if count == options.blocks { Ok(()) } else { Err(format!("{count} blocks")) }
    })?;
    let filled = proc::status_bytes(leaktrace.pid(), "RssAnon")?;
    let most = proc::status_bytes(leaktrace.pid(), "VmHWM")?;
    let summary = summary_time(&mut leaktrace, options.rounds)?;
    let last = Instant::now();
    let end = leaktrace.interrupt()?;
    Ok(table(&[
        ("one summary over everything, median", seconds(summary), "1 s".to_owned()),
        ("last summary and detaching", seconds(last.elapsed()), String::new()),
        ("agent's own memory, empty", mib(empty), String::new()),
        ("agent's own memory, full", mib(filled), "64 MiB".to_owned()),
        ("agent's resident memory at most, files and shared maps included", mib(most), String::new()),
        ("losses", format!("{:?}", end.losses), String::new()),
    ]))
}

/// From one line to the next: at an interval of a millisecond they follow one another without a pause. Lines that
/// were waiting already come at once and say nothing.
fn summary_time(leaktrace: &mut Leaktrace, rounds: u32) -> Result<Duration> {
    let mut times = Vec::new();
    while times.len() < rounds.max(1) as usize {
        let before = Instant::now();
        leaktrace.next_report()?.context("leaktrace ended")?;
        let time = before.elapsed();
        if time > Duration::from_micros(500) {
            times.push(time);
        }
    }
    times.sort();
    times.get(times.len() / 2).copied().context("no rounds")
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn table(rows: &[(&str, String, String)]) -> String {
    let mut text = "| | measured | should be under |\n|---|--:|--:|\n".to_owned();
    for (name, value, limit) in rows {
        text.push_str(&format!("| {name} | {value} | {limit} |\n"));
    }
    text
}
