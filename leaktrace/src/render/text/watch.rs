//! The lines about watching itself: memory, what tracing costs, what was decided.
use std::fmt::{self, Write as _};

use super::{Paint, Printer};
use crate::{
    model::{
        events::EventView,
        memory::{MemoryView, WatchView},
        overhead::{GovernorState, OverheadView},
        snapshot::{Mode, TargetView, Totals},
    },
    render::{escape::escape, units},
};

/// Rises of less than this in an hour are as good as none.
const MIN_GROWTH_BYTES_PER_HOUR: f64 = 65536.0;

/// Whether findings can rest on allocations; else memory is all that is seen.
pub(super) fn sees_allocations(target: &TargetView, mode: Mode) -> bool {
    let is_paused = target.overhead.as_ref().is_some_and(|overhead| overhead.state == GovernorState::Paused);
    mode != Mode::Growth && !is_paused
}

/// The head of a target of which memory is all that is seen.
pub(super) fn anonymous(memory: &MemoryView) -> String {
    format!(
        "{} of anonymous memory{}",
        units::bytes(memory.now.private_bytes()),
        trend(memory.growth_bytes_per_hour)
    )
}

fn trend(bytes_per_hour: Option<f64>) -> String {
    match bytes_per_hour {
        Some(growth) if growth.abs() >= MIN_GROWTH_BYTES_PER_HOUR => {
            let sign = if growth < 0.0 { '−' } else { '+' };
            format!(", {sign}{} an hour", units::bytes(growth.abs() as u64))
        }
        Some(_) => ", steady".to_owned(),
        None => String::new(),
    }
}

/// What resident memory consists of, where allocations say nothing.
pub(super) fn memory(memory: &MemoryView, mode: Mode) -> Vec<String> {
    if mode != Mode::Growth {
        return Vec::new();
    }
    let now = &memory.now;
    [
        (now.anonymous_bytes, "anonymous"),
        (now.file_bytes, "of files"),
        (now.shared_bytes, "shared"),
        (now.swapped_bytes, "swapped"),
    ]
    .into_iter()
    .filter(|(bytes, _)| *bytes > 0)
    .map(|(bytes, what)| format!("{} {what}", units::bytes(bytes)))
    .collect()
}

/// Cost and state.
pub(super) fn overhead(overhead: &OverheadView) -> Vec<String> {
    let mut words = Vec::new();
    let budget =
        overhead.budget_share.map_or_else(String::new, |share| format!(" of {} allowed", percent(share)));
    match overhead.state {
        GovernorState::Paused => {
            let retry = overhead
                .retry_in_ns
                .map_or_else(String::new, |ns| format!(", again in {}", units::duration(ns)));
            words.push(format!("paused, allocations are not watched{retry}"));
        }
        state => {
            let over = if state == GovernorState::Over { ": too much" } else { "" };
            words.push(format!("about {} of a core{budget}{over}", percent(overhead.estimated_share)));
        }
    }
    if overhead.sample_interval_bytes > 0 && overhead.state == GovernorState::Widened {
        words.push(format!("a sample every {}", units::bytes(overhead.sample_interval_bytes)));
    }
    if overhead.paused_ns > 0 {
        words.push(format!("not watched for {} in all", units::duration(overhead.paused_ns)));
    }
    words
}

/// What of a site may be gone.
pub(super) fn unverified(totals: &Totals) -> String {
    format!(
        "of it {} from before a pause, which may be freed",
        super::sum(totals.unverified_bytes, totals.unverified_count)
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

impl Printer<'_> {
    pub(super) fn watched(&mut self, view: &WatchView) -> fmt::Result {
        let processes = if view.processes == 1 { "process" } else { "processes" };
        write!(self.out, "\nWatched for growth: {} {processes}", units::count(view.processes))?;
        if view.unwatched > 0 {
            write!(self.out, ", {} more could not be", units::count(view.unwatched))?;
        }
        self.out.write_str(".\n")?;
        for process in &view.fastest {
            let mut line = format!(
                "  PID {} {}: {} of anonymous memory{}",
                process.pid,
                escape(&process.comm),
                units::bytes(process.anonymous_bytes),
                trend(process.growth_bytes_per_hour)
            );
            if let Some(reason) = &process.reason {
                write!(line, "; {reason}")?;
            }
            let paint = if process.reason.is_some() { Paint::Yellow } else { Paint::Dim };
            self.painted(paint, &line)?;
            self.out.write_char('\n')?;
        }
        Ok(())
    }

    pub(super) fn events(&mut self, events: &[EventView]) -> fmt::Result {
        for event in events {
            let (time, kind) = (units::wall_time(event.time), event.kind.name().replace('_', " "));
            let (pid, comm) = (event.pid, escape(&event.comm));
            writeln!(self.out, "Event: {time} PID {pid} {comm} {kind}: {}", escape(&event.reason))?;
        }
        Ok(())
    }
}
