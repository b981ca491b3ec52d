//! The difference between two snapshots as one line of JSON, schema `leaktrace.diff/1`: `old` and `new` (`time`,
//! `since`, `host`, `outstanding_bytes`, `outstanding_count`, `sites_cut`, `processes`), `same_run` (whether a
//! process is in both), `unchanged` (sites), `sites_left_out` (by `--top`) and `sites`, what grew most first:
//! `id`, `kind`, `bytes` and `count` (the change), `error_bytes` (half width of the 95 % interval of the change),
//! `old` and `new` (sums), `processes` (by name, how many in the newer file), `finding`, `frames`, `stack_end`, the
//! last three as in `leaktrace.snapshot/1`.
use std::collections::BTreeMap;

use serde::Serialize;

use super::json::{FindingJson, FrameJson, Time, TotalsJson, kind, line};
use crate::model::diff::{Diff, Row, Side};

/// The line, newline included; the first `top` sites, 0 for all.
pub fn diff(diff: &Diff, top: usize) -> String {
    let shown = if top == 0 { diff.rows.len() } else { top.min(diff.rows.len()) };
    line(&DiffJson {
        schema: "leaktrace.diff/1",
        old: SideJson::from(&diff.old),
        new: SideJson::from(&diff.new),
        same_run: diff.is_one_run(),
        unchanged: diff.unchanged,
        sites_left_out: diff.rows.len() - shown,
        sites: diff.rows.iter().take(shown).map(RowJson::from).collect(),
    })
}

#[derive(Serialize)]
struct DiffJson<'a> {
    schema: &'static str,
    old: SideJson<'a>,
    new: SideJson<'a>,
    same_run: bool,
    unchanged: u64,
    sites_left_out: usize,
    sites: Vec<RowJson<'a>>,
}

#[derive(Serialize)]
struct SideJson<'a> {
    time: Time,
    since: Time,
    host: &'a str,
    outstanding_bytes: u64,
    outstanding_count: u64,
    sites_cut: u64,
    processes: Vec<ProcessJson<'a>>,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    comm: &'a str,
    start_time: Time,
}

impl<'a> From<&'a Side> for SideJson<'a> {
    fn from(side: &'a Side) -> Self {
        let process = |process: &'a crate::model::diff::Process| ProcessJson {
            pid: process.pid,
            comm: &process.comm,
            start_time: Time(process.start_time),
        };
        SideJson {
            time: Time(side.time),
            since: Time(side.since),
            host: &side.host,
            outstanding_bytes: side.totals.outstanding_bytes,
            outstanding_count: side.totals.outstanding_count,
            sites_cut: side.sites_cut,
            processes: side.processes.iter().map(process).collect(),
        }
    }
}

#[derive(Serialize)]
struct RowJson<'a> {
    id: &'a str,
    kind: &'static str,
    bytes: i64,
    count: i64,
    error_bytes: u64,
    old: TotalsJson,
    new: TotalsJson,
    processes: &'a BTreeMap<String, u64>,
    finding: Option<FindingJson<'a>>,
    frames: Vec<FrameJson<'a>>,
    stack_end: &'static str,
}

impl<'a> From<&'a Row> for RowJson<'a> {
    fn from(row: &'a Row) -> Self {
        RowJson {
            id: &row.id,
            kind: kind(row.kind),
            bytes: row.bytes(),
            count: row.count(),
            error_bytes: row.error_bytes(),
            old: TotalsJson::from(&row.old),
            new: TotalsJson::from(&row.new),
            processes: &row.processes,
            finding: row.finding.as_ref().map(FindingJson::from),
            frames: row.frames.iter().map(FrameJson::from).collect(),
            stack_end: row.stack_end,
        }
    }
}
