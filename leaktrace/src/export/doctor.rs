//! What `doctor` found, as one JSON object on one line.
//!
//! # Schema `leaktrace.doctor/1`
//! The rules of the other schemas hold: what is not known is `null`, fields may be added within a version.
//!
//! | object | field | meaning |
//! |---|---|---|
//! | diagnosis | `schema` `time` `host` `version` | `"leaktrace.doctor/1"`; when; host name; leaktrace's version |
//! | | `works` | whether leaktrace can work here and trace each of the processes |
//! | | `checks` | `[{"topic", "level": "ok"/"unknown"/"warning"/"missing", "finding", "remedy"}]` |
//! | | `links` | `[{"name", "available", "used"}]`, the best first; `available` is null where it was not tried |
//! | | `costs` | null or `{"link", "took_ns", "rows": [{"what", "ns", "how"}]}`: ns that a probe adds to a call |
//! | | `costs_problem` | why `costs` is null |
//! | | `limits` | `[{"what", "value", "option"}]` |
//! | | `processes` | with `-p` |
//! | process | `pid` `refused` | process; why it cannot be traced, or null |
//! | | `comm` `cmdline` `executable` `start_time` `user_id` `rss_bytes` | facts |
//! | | `seccomp` `inner_pid` `heap_bytes` | `"none"`, `"strict"` or `"filter"`; pid in its own namespace; heap so far |
//! | | `allocators` `files` `generated_code_bytes` `notes` | below; code without a file; what was not found out |
//! | allocator | `name` `file` `deleted` `left_out` | which; where; whether the file has no name any more; needs no probe |
//! | | `failed` | `[{"function", "reason"}]` |
//! | | `hooks` | what would be probed |
//! | hook | `function` `action` `file_offset` `instruction_offset` | what and where |
//! | | `instruction` `emulated` `skips_null` | what is there; whether the kernel emulates it; NULL does not hit it |
//! | | `link` `with_return` `exits` `expected_ns` | link type; how its end is seen; cost of the probes for a call |
//! | file | `path` `deleted` `build_id` `problem` | which; why nothing else is known of it |
//! | | `symbols` `debug_info` | sections with names; `"inside"`, `"separate"` or null |
//! | | `table` | `sources` `functions` `rows` `rules` `bytes` `took_ns` `unsupported_rows` `lost` `problem` |
use serde::Serialize;

use super::json::{Time, line};
use crate::{
    attach::preflight::{Check, Level},
    model::diagnosis::{
        AllocatorDiagnosis, CostTable, Diagnosis, FileDiagnosis, HookDiagnosis, ProcessDiagnosis,
    },
};

/// The diagnosis as one line, newline included.
pub fn diagnosis(diagnosis: &Diagnosis) -> String {
    line(&DiagnosisJson {
        schema: "leaktrace.doctor/1",
        time: Time(diagnosis.time),
        host: &diagnosis.host,
        version: env!("CARGO_PKG_VERSION"),
        works: diagnosis.works(),
        checks: diagnosis.checks.iter().map(CheckJson::from).collect(),
        links: diagnosis
            .links
            .iter()
            .map(|link| LinkJson { name: link.name, available: link.available, used: link.used })
            .collect(),
        costs: diagnosis.costs.as_ref().ok().map(CostsJson::from),
        costs_problem: diagnosis.costs.as_ref().err().map(String::as_str),
        limits: diagnosis
            .limits
            .iter()
            .map(|limit| LimitJson { what: limit.what, value: limit.value, option: limit.option })
            .collect(),
        processes: diagnosis.processes.iter().map(ProcessJson::from).collect(),
    })
}

#[derive(Serialize)]
struct DiagnosisJson<'a> {
    schema: &'static str,
    time: Time,
    host: &'a str,
    version: &'static str,
    works: bool,
    checks: Vec<CheckJson<'a>>,
    links: Vec<LinkJson>,
    costs: Option<CostsJson>,
    costs_problem: Option<&'a str>,
    limits: Vec<LimitJson>,
    processes: Vec<ProcessJson<'a>>,
}

#[derive(Serialize)]
struct CheckJson<'a> {
    topic: &'static str,
    level: &'static str,
    finding: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> From<&'a Check> for CheckJson<'a> {
    fn from(check: &'a Check) -> Self {
        CheckJson {
            topic: check.topic,
            level: match check.level {
                Level::Ok => "ok",
                Level::Unknown => "unknown",
                Level::Warning => "warning",
                Level::Missing => "missing",
            },
            finding: &check.finding,
            remedy: check.remedy.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct LinkJson {
    name: &'static str,
    available: Option<bool>,
    used: bool,
}

#[derive(Serialize)]
struct CostsJson {
    link: &'static str,
    took_ns: u64,
    rows: Vec<CostJson>,
}

#[derive(Serialize)]
struct CostJson {
    what: &'static str,
    ns: Option<u64>,
    how: &'static str,
}

impl From<&CostTable> for CostsJson {
    fn from(costs: &CostTable) -> Self {
        let rows = costs.rows.iter().map(|row| CostJson { what: row.what, ns: row.ns, how: row.how });
        CostsJson { link: costs.link, took_ns: costs.took_ns, rows: rows.collect() }
    }
}

#[derive(Serialize)]
struct LimitJson {
    what: &'static str,
    value: u64,
    option: Option<&'static str>,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    refused: Option<&'a str>,
    comm: &'a str,
    cmdline: &'a str,
    executable: Option<&'a str>,
    start_time: Option<Time>,
    user_id: u32,
    rss_bytes: u64,
    seccomp: &'static str,
    inner_pid: Option<u32>,
    heap_bytes: Option<u64>,
    allocators: Vec<AllocatorJson<'a>>,
    files: Vec<FileJson<'a>>,
    generated_code_bytes: u64,
    notes: &'a [String],
}

impl<'a> From<&'a ProcessDiagnosis> for ProcessJson<'a> {
    fn from(process: &'a ProcessDiagnosis) -> Self {
        ProcessJson {
            pid: process.pid,
            refused: process.refused.as_deref(),
            comm: &process.comm,
            cmdline: &process.cmdline,
            executable: process.executable.as_deref(),
            start_time: (process.start_time != 0).then_some(Time(process.start_time)),
            user_id: process.user_id,
            rss_bytes: process.rss_bytes,
            seccomp: process.seccomp,
            inner_pid: process.inner_pid,
            heap_bytes: process.heap_bytes,
            allocators: process.allocators.iter().map(AllocatorJson::from).collect(),
            files: process.files.iter().map(FileJson::from).collect(),
            generated_code_bytes: process.generated_code_bytes,
            notes: &process.notes,
        }
    }
}

#[derive(Serialize)]
struct AllocatorJson<'a> {
    name: &'a str,
    file: &'a str,
    deleted: bool,
    hooks: Vec<HookJson<'a>>,
    failed: Vec<FailedJson<'a>>,
    left_out: &'a [String],
}

impl<'a> From<&'a AllocatorDiagnosis> for AllocatorJson<'a> {
    fn from(allocator: &'a AllocatorDiagnosis) -> Self {
        let failed = allocator.failed.iter().map(|(function, reason)| FailedJson { function, reason });
        AllocatorJson {
            name: &allocator.name,
            file: &allocator.file,
            deleted: allocator.deleted,
            hooks: allocator.hooks.iter().map(HookJson::from).collect(),
            failed: failed.collect(),
            left_out: &allocator.left_out,
        }
    }
}

#[derive(Serialize)]
struct FailedJson<'a> {
    function: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct HookJson<'a> {
    function: &'a str,
    action: &'static str,
    file_offset: u64,
    instruction_offset: u64,
    instruction: &'a str,
    emulated: bool,
    skips_null: bool,
    link: &'static str,
    with_return: bool,
    exits: u32,
    expected_ns: Option<u64>,
}

impl<'a> From<&'a HookDiagnosis> for HookJson<'a> {
    fn from(hook: &'a HookDiagnosis) -> Self {
        HookJson {
            function: &hook.function,
            action: hook.action,
            file_offset: hook.file_offset,
            instruction_offset: hook.instruction_offset,
            instruction: &hook.instruction,
            emulated: hook.emulated,
            skips_null: hook.skips_null,
            link: hook.link,
            with_return: hook.with_return,
            exits: hook.exits,
            expected_ns: hook.expected_ns,
        }
    }
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: &'a str,
    deleted: bool,
    build_id: Option<&'a str>,
    problem: Option<&'a str>,
    symbols: &'a [&'static str],
    debug_info: Option<&'static str>,
    table: TableJson<'a>,
}

impl<'a> From<&'a FileDiagnosis> for FileJson<'a> {
    fn from(file: &'a FileDiagnosis) -> Self {
        let table = &file.table;
        FileJson {
            path: &file.path,
            deleted: file.deleted,
            build_id: file.build_id.as_deref(),
            problem: file.problem.as_deref(),
            symbols: &file.symbols,
            debug_info: file.debug_info,
            table: TableJson {
                sources: &table.sources,
                functions: table.functions,
                rows: table.rows,
                rules: table.rules,
                bytes: table.bytes,
                took_ns: table.took_ns,
                unsupported_rows: table.unsupported_rows,
                lost: table.lost,
                problem: table.problem.as_deref(),
            },
        }
    }
}

#[derive(Serialize)]
struct TableJson<'a> {
    sources: &'a [&'static str],
    functions: u64,
    rows: u64,
    rules: u64,
    bytes: u64,
    took_ns: u64,
    unsupported_rows: u64,
    lost: u64,
    problem: Option<&'a str>,
}
