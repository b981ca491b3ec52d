//! The price of a malloc+free pair, with one thread and with two: untraced, under leaktrace in its modes, under what
//! else one would use, and under probes with nothing in them.
use super::{
    fixture,
    rounds::{Measured, Way, alternate, one_line},
    table::Table,
    tracer::{EXACT, GROWTH, OFFSET_ZERO, SAMPLED, Tracer},
};
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
};
use std::{
    cell::RefCell,
    process::{Command, Stdio},
};

const UNTRACED: &str = "untraced";
const FLOOR: &str = "floor: empty probes";
const SAMPLED_NAME: &str = "leaktrace, sampled";
const EXACT_NAME: &str = "leaktrace, exact";
const OFFSET_ZERO_NAME: &str = "leaktrace, exact, probes at offset 0";
const BPFTRACE: &str = "bpftrace script";
const HEAPTRACK: &str = "heaptrack, from the start";
const JEMALLOC: &str = "jemalloc instead of glibc, untraced";
const PROFILED: &str = "jemalloc with its own profiler, sampling every 512 KiB";

/// What a sceptic would divide, and what it should stay under.
const RATIOS: &[(&str, &str, Option<&str>)] = &[
    (SAMPLED_NAME, FLOOR, Some("at most 1.05")),
    (EXACT_NAME, FLOOR, None),
    (OFFSET_ZERO_NAME, EXACT_NAME, None),
    (BPFTRACE, EXACT_NAME, None),
    (BPFTRACE, SAMPLED_NAME, None),
    (HEAPTRACK, SAMPLED_NAME, None),
    (PROFILED, JEMALLOC, None),
];

/// Two tables for each number of threads, each with its ratios; and what comes close to the floor measured closer.
pub(super) fn measure(rounds: u32) -> String {
    let sections = [section(rounds, 1), section(rounds, 2), NOTES.to_owned()].concat();
    let near = [near_floor(rounds, 1), near_floor(rounds, 2)].map(|near| {
        near.unwrap_or_else(|error| {
            format!("The floor and sampled mode could not be measured alone: {}\n\n", one_line(&error))
        })
    });
    sections + &near.concat()
}

/// The floor and sampled mode taking turns with one process: between processes, and within the seconds in which leaktrace
/// starts, times differ by more than these two do.
fn near_floor(rounds: u32, threads: u32) -> Result<String> {
    let words = [format!("threads={threads}"), "ms=1500".to_owned()];
    let words = words.each_ref().map(String::as_str);
    let program = compile::fixture("pairs.c", Build::Gcc, &[])?;
    let fixture = &RefCell::new(Fixture::start(&program, &words, &[])?);
    let way =
        |name: &str, tracer| Way::new(name, move || fixture::pair_ns_of(&mut fixture.borrow_mut(), tracer));
    let ways = [way(FLOOR, Tracer::Floor), way(SAMPLED_NAME, SAMPLED)];
    let tables = alternate(2 * rounds, &titles(threads, "in one process"), &ways);
    Ok(tables.iter().map(|table| format!("{table}{}\n", ratios(table))).collect())
}

fn section(rounds: u32, threads: u32) -> String {
    let threads_word = format!("threads={threads}");
    let words = [threads_word.as_str()];
    let attached = |name: &str, tracer| Way::new(name, move || fixture::pair_ns(&words, Build::Gcc, tracer));
    let ways = [
        attached(UNTRACED, Tracer::None),
        attached("leaktrace, growth", GROWTH),
        attached(FLOOR, Tracer::Floor),
        attached(SAMPLED_NAME, SAMPLED),
        attached(EXACT_NAME, EXACT),
        attached(OFFSET_ZERO_NAME, OFFSET_ZERO),
        attached(BPFTRACE, Tracer::Bpftrace),
        Way::new(HEAPTRACK, || heaptrack(&words)),
        Way::new(JEMALLOC, || jemalloc(&words, "")),
        Way::new(PROFILED, || jemalloc(&words, "prof:true,prof_active:true,lg_prof_sample:19")),
    ];
    let tables = alternate(rounds, &titles(threads, "processes of their own"), &ways);
    tables.iter().map(|table| format!("{table}{}\n", ratios(table))).collect()
}

fn titles(threads: u32, processes: &str) -> [(String, &'static str); 2] {
    let plural = if threads == 1 { "thread" } else { "threads" };
    ["processor time", "time, waiting included"]
        .map(|what| (format!("One malloc+free pair, {threads} {plural}, {processes}: {what}"), "ns"))
}

fn ratios(table: &Table) -> String {
    RATIOS.iter().filter_map(|(one, other, wanted)| table.ratio(one, other, *wanted)).collect()
}

const NOTES: &str = "heaptrack and jemalloc's profiler are chosen when a program is started, and for that program; the \
    others are attached to it while it runs. heaptrack also keeps a second process busy, which is not counted; \
    jemalloc's profiler does not write profiles here.\n\n";

/// Launched, as its manual recommends.
fn heaptrack(words: &[&str]) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let program = compile::fixture("pairs.c", Build::Gcc, &[])?;
    let help = Command::new("heaptrack").arg("--help").output().context("cannot run heaptrack")?;
    let mut command = Command::new("heaptrack");
    // Newer versions open a window at the end unless told not to.
    if String::from_utf8_lossy(&help.stdout).contains("--record-only") {
        command.arg("--record-only");
    }
    command.arg("-o").arg(folder.path().join("record")).arg(program).args(words);
    let mut fixture = Fixture::spawn(command)?;
    fixture.wait_ready_after_others()?;
    let price = fixture::timed(&mut fixture)?;
    fixture.release()?;
    Ok(Measured { values: price.to_vec(), note: None })
}

fn jemalloc(words: &[&str], options: &str) -> Result<Measured> {
    let jemalloc = library("libjemalloc.so.2")?;
    let jemalloc = jemalloc.to_str().context("its path is no text")?;
    if options.contains("prof:true") {
        has_profiler(jemalloc)?;
    }
    let program = compile::fixture("pairs.c", Build::Gcc, &[])?;
    let environment = [("LD_PRELOAD", jemalloc), ("MALLOC_CONF", options)];
    let mut fixture = Fixture::start(&program, words, &environment)?;
    let price = fixture::timed(&mut fixture)?;
    let said = fixture.errors();
    ensure!(said.is_empty(), "jemalloc said: {said}");
    Ok(Measured { values: price.to_vec(), note: None })
}

/// A build without it takes the options and does nothing.
fn has_profiler(jemalloc: &str) -> Result<()> {
    let mut command = Command::new("/bin/true");
    command.env("LD_PRELOAD", jemalloc).env("MALLOC_CONF", "stats_print:true").stdin(Stdio::null());
    let said = command.output().context("cannot run /bin/true")?;
    if String::from_utf8_lossy(&said.stderr).contains("config.prof: true") {
        return Ok(());
    }
    bail!("{jemalloc} was built without its profiler (--enable-prof)")
}
