//! What leaktrace prints with `--format json`: `leaktrace.snapshot/1`, read independently of the code that writes it.
//! A field that the schema names and a line lacks is an error here.
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The schema that is understood.
pub const SCHEMA: &str = "leaktrace.snapshot/1";

/// One summary.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Must be [`SCHEMA`].
    pub schema: String,
    /// When it was taken.
    pub time: serde_json::Value,
    /// Host name.
    pub host: String,
    /// How allocations were recorded.
    pub mode: serde_json::Value,
    /// When tracing began.
    pub since: serde_json::Value,
    /// Traced processes.
    pub targets: Vec<Target>,
    /// What was lost, by cause.
    pub losses: BTreeMap<String, u64>,
    /// What did not work, in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What was decided.
    pub events: Vec<Event>,
    /// What is watched without being traced.
    pub watched: Option<Watched>,
    /// What a run comes to.
    pub verdict: Option<Verdict>,
}

/// What a run comes to.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Verdict {
    pub outcome: String,
    pub exit_code: i32,
    pub reasons: Vec<String>,
    pub limit_bytes: Option<u64>,
    pub leaked: Amount,
    pub suppressed: Amount,
    pub in_baseline: Amount,
}

/// Bytes and blocks of call stacks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Amount {
    pub bytes: u64,
    pub count: u64,
    pub sites: u64,
}

/// A decision that changes what is recorded.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Event {
    pub pid: u32,
    pub kind: String,
    pub reason: String,
}

/// Processes that are watched without being traced.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Watched {
    pub processes: u64,
    pub unwatched: u64,
    pub fastest: Vec<WatchedProcess>,
}

/// One of them.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct WatchedProcess {
    pub pid: u32,
    pub comm: String,
    pub anonymous_bytes: u64,
    pub growth_bytes_per_hour: Option<f64>,
}

/// A process's memory.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Memory {
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub shared_bytes: u64,
    pub swapped_bytes: u64,
    pub growth_bytes_per_hour: Option<f64>,
    pub finding: Option<serde_json::Value>,
}

/// What tracing costs a process.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Overhead {
    pub estimated_share: f64,
    pub budget_share: Option<f64>,
    pub target_cpu_share: Option<f64>,
    pub state: String,
    pub sample_interval_bytes: u64,
    pub paused_ns: u64,
    pub retry_in_ns: Option<u64>,
}

/// A traced process.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Target {
    pub pid: u32,
    pub start_time: serde_json::Value,
    pub comm: String,
    pub cmdline: String,
    pub exited: Option<Exited>,
    pub killed_by_tracing: Option<serde_json::Value>,
    pub container: Option<serde_json::Value>,
    pub unseen_ns: Option<u64>,
    #[serde(default)]
    pub execed: bool,
    pub outstanding_bytes: u64,
    pub outstanding_count: u64,
    pub allocated_bytes: u64,
    pub allocated_count: u64,
    pub freed_bytes: u64,
    pub freed_count: u64,
    pub heap_before_attach_bytes: Option<u64>,
    pub unmatched_frees: Option<u64>,
    pub unverified_bytes: u64,
    pub memory: Option<Memory>,
    pub overhead: Option<Overhead>,
    #[serde(flatten)]
    pub estimate: Estimate,
    pub sites: Vec<Site>,
    #[serde(default)]
    pub stack_ends: BTreeMap<String, u64>,
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
    pub unseen: Vec<String>,
}

/// How sure the outstanding sums are; all null or 0 when every call was recorded.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Estimate {
    pub samples: Option<u64>,
    pub error_bytes: u64,
    pub error_count: u64,
    pub low_bytes: Option<u64>,
    pub high_bytes: Option<u64>,
    pub low_count: Option<u64>,
    pub high_count: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Exited {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub oom_killed: bool,
}

/// An allocation call stack.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Site {
    pub id: String,
    pub kind: String,
    pub outstanding_bytes: u64,
    pub outstanding_count: u64,
    pub allocated_bytes: u64,
    pub allocated_count: u64,
    pub freed_bytes: u64,
    pub freed_count: u64,
    pub oldest_age_ns: Option<u64>,
    pub unverified_bytes: u64,
    pub finding: Option<serde_json::Value>,
    pub runtime: bool,
    pub suppressed: Option<String>,
    #[serde(flatten)]
    pub estimate: Estimate,
    pub frames: Vec<Frame>,
    pub stack_end: String,
    #[serde(default)]
    pub blocks: Vec<Block>,
}

/// A live block, with `--show-allocs`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Block {
    pub size_bytes: u64,
}

/// One frame.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the schema describes its fields")]
pub struct Frame {
    pub address: serde_json::Value,
    pub module: Option<String>,
    pub build_id: Option<String>,
    pub function: Option<String>,
    pub offset: Option<u64>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: bool,
    pub reason: Option<String>,
    pub guessed: bool,
}

impl Report {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Report> {
        let start: String = line.chars().take(400).collect();
        let report: Report =
            serde_json::from_str(line).with_context(|| format!("not a summary in {SCHEMA}: {start}"))?;
        if report.schema != SCHEMA {
            bail!("schema {:?} instead of {SCHEMA}", report.schema);
        }
        Ok(report)
    }

    /// The same report with one process alone.
    pub fn only(&self, pid: u32) -> Report {
        let mut report = self.clone();
        report.targets.retain(|target| target.pid == pid);
        report
    }

    /// The process as it is now: the image that still runs, else the last one.
    pub fn target(&self, pid: u32) -> Option<&Target> {
        let of_pid = || self.targets.iter().filter(|target| target.pid == pid);
        of_pid().find(|target| target.exited.is_none() && !target.execed).or_else(|| of_pid().next_back())
    }
}

impl Site {
    /// Whether a function of this name is on the stack.
    pub fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.function.as_deref() == Some(function))
    }

    /// The stack on one line, for messages.
    pub fn stack(&self) -> String {
        let name = |frame: &Frame| match (&frame.function, &frame.module) {
            (Some(function), _) => function.clone(),
            (None, Some(module)) => {
                format!("({module}: {})", frame.reason.as_deref().unwrap_or("no reason given"))
            }
            (None, None) => {
                format!("({}: {})", frame.address, frame.reason.as_deref().unwrap_or("no reason given"))
            }
        };
        let names = self.frames.iter().map(name).collect::<Vec<_>>().join(" < ");
        if self.stack_end == "complete" { names } else { format!("{names} < [{}]", self.stack_end) }
    }
}
