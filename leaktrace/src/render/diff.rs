//! The difference between two snapshots as text: what grew, most first.
use std::fmt::{self, Write};

use super::{
    escape::escape,
    text::{self, Style},
    units, words,
};
use crate::model::{
    diff::{Diff, Process, Row, Side, difference},
    snapshot::SiteKind,
};

/// Processes that are named before the rest is counted.
const NAMED: usize = 5;

/// The difference, with the first `top` of the sites that grew; 0 shows all.
pub fn diff(diff: &Diff, top: usize, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_diff(&mut out, diff, top, style);
    out
}

fn write_diff(out: &mut String, diff: &Diff, top: usize, style: Style) -> fmt::Result {
    side(out, "old", &diff.old)?;
    side(out, "new", &diff.new)?;
    let (old, new) = (&diff.old.totals, &diff.new.totals);
    writeln!(
        out,
        "{} in {}: {} → {} outstanding",
        bytes(difference(old.outstanding_bytes, new.outstanding_bytes)),
        blocks(difference(old.outstanding_count, new.outstanding_count), "block"),
        units::bytes(old.outstanding_bytes),
        units::bytes(new.outstanding_bytes),
    )?;
    for caution in cautions(diff) {
        writeln!(out, "Note: {caution}")?;
    }
    let grown = diff.rows.iter().filter(|row| row.has_grown());
    let count = grown.clone().count();
    let shown = if top == 0 { count } else { top.min(count) };
    let width = shown.to_string().len();
    for (index, one) in grown.clone().take(shown).enumerate() {
        row(out, index + 1, width, one, style)?;
    }
    rest(out, "more grew", grown.skip(shown))?;
    rest(out, "shrank", diff.rows.iter().filter(|row| !row.has_grown()))?;
    if count == 0 {
        writeln!(out, "\n  No call stack grew.")?;
    }
    if diff.unchanged > 0 {
        writeln!(out, "\n  … {} unchanged", units::counted(diff.unchanged, "call stack"))?;
    }
    Ok(())
}

fn side(out: &mut String, name: &str, side: &Side) -> fmt::Result {
    let traced = u64::try_from(side.time.saturating_sub(side.since)).unwrap_or(0);
    writeln!(
        out,
        "{name}: {}, {} traced on {}, {}, {}",
        units::wall_time(side.time),
        units::duration(traced),
        escape(&side.host),
        words::mode(side.mode),
        processes(&side.processes)
    )
}

fn processes(processes: &[Process]) -> String {
    let named = |process: &Process| format!("{} {}", escape(&process.comm), process.pid);
    let mut names: Vec<String> = processes.iter().take(NAMED).map(named).collect();
    if processes.len() > NAMED {
        names.push(format!("{} more", processes.len() - NAMED));
    }
    if names.is_empty() { "no process".to_owned() } else { names.join(", ") }
}

/// What makes the two sides hard to compare.
fn cautions(diff: &Diff) -> Vec<String> {
    let mut cautions = Vec::new();
    if !diff.is_one_run() && !diff.old.processes.is_empty() && !diff.new.processes.is_empty() {
        cautions.push(
            "the processes are not the same ones: what each holds since its own tracing began is compared"
                .to_owned(),
        );
    }
    if diff.new.time < diff.old.time {
        cautions.push("the first file is the newer one".to_owned());
    }
    if std::mem::discriminant(&diff.old.mode) != std::mem::discriminant(&diff.new.mode) {
        cautions.push("allocations were recorded in two ways".to_owned());
    }
    for (name, side) in [("old", &diff.old), ("new", &diff.new)] {
        if side.sites_cut > 0 {
            let stacks = units::counted(side.sites_cut, "call stack");
            cautions.push(format!("the {name} file leaves out {stacks}, which cannot be compared"));
        }
    }
    cautions
}

fn row(out: &mut String, number: usize, width: usize, row: &Row, style: Style) -> fmt::Result {
    let noun = if row.kind == SiteKind::Mapping { "mapping" } else { "block" };
    write!(out, "\n  {number:>width$}. {} in {}", bytes(row.bytes()), blocks(row.count(), noun))?;
    if row.old.allocated_count == 0 {
        write!(out, ", new")?;
    } else {
        let (old, new) = (row.old.outstanding_bytes, row.new.outstanding_bytes);
        write!(out, ": {} → {}", units::bytes(old), units::bytes(new))?;
    }
    if row.error_bytes() > 0 && row.bytes().unsigned_abs() <= row.error_bytes() {
        write!(out, " (within the sampling error of {})", units::bytes(row.error_bytes()))?;
    }
    let names: Vec<String> = row.processes.iter().map(|(comm, count)| in_process(comm, *count)).collect();
    writeln!(out, ", {}  [{}]", names.join(", "), escape(&row.id))?;
    let indent = width + 4;
    if let Some(finding) = &row.finding {
        writeln!(out, "{:indent$}{}: {}", "", words::verdict(finding.confidence), escape(&finding.evidence))?;
    }
    out.write_str(&text::stack(&row.frames, row.stack_end, indent, style))
}

fn in_process(comm: &str, count: u64) -> String {
    match count {
        0 | 1 => escape(comm),
        _ => format!("{} × {}", units::count(count), escape(comm)),
    }
}

/// The sum of what is not shown one by one; nothing where there is none.
fn rest<'a>(out: &mut String, what: &str, rows: impl Iterator<Item = &'a Row>) -> fmt::Result {
    let (mut count, mut sum) = (0, 0_i64);
    for row in rows {
        count += 1;
        sum = sum.saturating_add(row.bytes());
    }
    if count > 0 {
        writeln!(out, "\n  … {} {what}: {}", units::counted(count, "call stack"), bytes(sum))?;
    }
    Ok(())
}

fn bytes(change: i64) -> String {
    format!("{}{}", sign(change), units::bytes(change.unsigned_abs()))
}

fn blocks(change: i64, noun: &str) -> String {
    format!("{}{}", sign(change), units::counted(change.unsigned_abs(), noun))
}

fn sign(change: i64) -> &'static str {
    match change {
        0 => "±",
        1.. => "+",
        _ => "-",
    }
}
