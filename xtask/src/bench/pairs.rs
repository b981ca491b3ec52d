//! The price of a malloc+free pair: untraced, under leaktrace, under leaktrace with its probes forced to the first
//! instruction, and under a bpftrace script that records the same.
use super::table::{Row, Table};
use anyhow::{Context, Result, bail};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::Said,
    lines,
};
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Pairs in one measurement: some tenths of a second each.
const UNTRACED_PAIRS: &str = "10000000";
const TRACED_PAIRS: &str = "200000";
const SLOW_PAIRS: &str = "20000";

/// A way to trace the process, while the value lives.
enum Tracer {
    None,
    Leaktrace(&'static [&'static str]),
    Bpftrace,
}

/// Rounds that alternate between the tracers; the process is a new one each time.
pub(super) fn measure(rounds: u32) -> Result<Table> {
    let tracers = [
        ("untraced", UNTRACED_PAIRS, Tracer::None),
        ("leaktrace, sampled", TRACED_PAIRS, Tracer::Leaktrace(&["--mode", "sampled"])),
        ("leaktrace, exact", TRACED_PAIRS, Tracer::Leaktrace(&["--mode", "exact"])),
        (
            "leaktrace, exact, probes at offset 0",
            SLOW_PAIRS,
            Tracer::Leaktrace(&["--mode", "exact", "--probe-offset-zero"]),
        ),
        ("bpftrace script", SLOW_PAIRS, Tracer::Bpftrace),
    ];
    let mut rows: Vec<Row> =
        tracers.iter().map(|(name, ..)| Row { name: (*name).to_owned(), values: Vec::new() }).collect();
    for _ in 0..rounds {
        for (row, (name, pairs, tracer)) in rows.iter_mut().zip(&tracers) {
            row.values.push(nanoseconds(pairs, tracer).context(*name)?);
        }
    }
    Ok(Table { unit: "ns", rows })
}

fn nanoseconds(pairs: &str, tracer: &Tracer) -> Result<f64> {
    let program = compile::fixture("pairs.c", Build::Gcc, &[])?;
    let mut fixture = Fixture::start(&program, &[pairs], &[])?;
    match tracer {
        Tracer::None => timed(&mut fixture),
        Tracer::Leaktrace(flags) => {
            let leaktrace = Leaktrace::attach(&[fixture.pid()], flags)?;
            let time = timed(&mut fixture)?;
            leaktrace.interrupt()?;
            Ok(time)
        }
        Tracer::Bpftrace => {
            let _script = Bpftrace::start(fixture.pid())?;
            timed(&mut fixture)
        }
    }
}

/// The first measurement warms up, the second counts.
fn timed(fixture: &mut Fixture) -> Result<f64> {
    let mut once = || {
        fixture.send("")?;
        match fixture.hear()? {
            Said::Timed { pairs, ns } => Ok(ns as f64 / pairs as f64),
            other => bail!("{other:?} instead of a time"),
        }
    };
    once()?;
    once()
}

/// The usual way to do it by hand: sizes by thread at entry, blocks by address at return, sums by stack.
struct Bpftrace(Child);

impl Bpftrace {
    fn start(pid: u32) -> Result<Bpftrace> {
        let libc = library("libc.so.6")?;
        let libc = libc.display();
        let script = format!(
            "uprobe:{libc}:malloc /pid == {pid}/ {{ @size[tid] = arg0; }}\n\
             uretprobe:{libc}:malloc /pid == {pid} && @size[tid]/ {{\n\
               @bytes[retval] = @size[tid]; @site[retval] = ustack(); @live[ustack()] = sum(@size[tid]); delete(@size[tid]); }}\n\
             uprobe:{libc}:free /pid == {pid} && @bytes[arg0]/ {{ delete(@bytes[arg0]); delete(@site[arg0]); }}\n\
             BEGIN {{ printf(\"ready\\n\"); }}\n\
             END {{ clear(@size); clear(@bytes); clear(@site); clear(@live); }}\n"
        );
        let mut child = Command::new("bpftrace")
            .args(["-p", &pid.to_string(), "-e", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run bpftrace")?;
        let said = lines::Lines::new("bpftrace", child.stdout.take().context("no standard output")?);
        let started = Bpftrace(child);
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while let Some(line) = said.next_before(deadline)? {
            if line == "ready" {
                return Ok(started);
            }
        }
        bail!("bpftrace ended before it was ready: try `bpftrace -e` by hand")
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
