//! JSON, one object per line.
//!
//! # Schema `leaktrace.snapshot/1`
//! Sizes, counts, ages and rates are numbers; addresses are strings `"0x…"`; ids are strings of 16 hexadecimal
//! digits; times are RFC 3339 in UTC with nanoseconds; what is not known is `null`. Fields may be added, never
//! renamed or removed, within a version.
//!
//! | object | field | meaning |
//! |---|---|---|
//! | snapshot | `schema` `time` `host` | `"leaktrace.snapshot/1"`; when it was taken; host name |
//! | | `mode` | `"exact"`, `"sampled"` or `"growth"` |
//! | | `sample_interval_bytes` | mean bytes between samples when sampled, else null |
//! | | `since` | when tracing began |
//! | | `last` | whether this is the final snapshot of the run |
//! | | `targets` `losses` `notes` | processes; what was not recorded or only approximately, by cause; sentences |
//! | | `events` | decisions since the previous snapshot that change what is recorded: `[{"time", "pid", "comm", "kind", "reason"}]`; `kind` is `"widened"` `"narrowed"` `"paused"` `"resumed"` `"over_budget"` `"auto_started"` `"auto_stopped"` `"auto_failed"` `"killed_by_tracing"` |
//! | | `watched` | null, or what is watched without being traced: `{"processes", "unwatched", "fastest": [{"pid", "comm", "rss_bytes", "anonymous_bytes", "growth_bytes_per_hour", "reason"}]}` |
//! | | `verdict` | null, or in the last snapshot of `run` what it comes to: `{"outcome", "exit_code", "reasons", "limit_bytes", "leaked", "suppressed", "in_baseline"}`; `outcome` is `"clean"` `"leaks"` `"not-known"` `"program-failed"`, `exit_code` that of leaktrace, `reasons` sentences, `limit_bytes` that of `--fail-on-leak`, null without it; the last three are `{"bytes", "count", "sites"}` of findings, of what suppressions hid and of what the baseline had |
//! | target | `pid` `start_time` `since` | process; when it started; when its tracing began |
//! | | `comm` `cmdline` | name; command line, words joined by spaces |
//! | | `exited` | null while it runs, else `{"code", "signal", "oom_killed"}`: one of the first two is a number, or none without kernel BTF |
//! | | `killed_by_tracing` | null, or that tracing has probably killed it: `{"reason", "function", "module", "module_offset"}`, the last three null where it is not known at which probe |
//! | | `container` | null outside of one, else `{"id", "name", "runtime", "pod", "pod_uid", "namespace", "image", "compose_project", "compose_service"}`, null where not known |
//! | | `unseen_ns` | how long its program ran before its probes were set; null where tracing began later, or with the first instruction |
//! | | `execed` `parent` | whether this image was replaced by exec; the traced parent, or null |
//! | | `outstanding_…` `allocated_…` `freed_…` `…_bytes` `…_count` | sums over all heap sites since tracing began: of bytes asked for; when sampled, estimates of bytes that the allocator took |
//! | | `error_bytes` `error_count` | from the outstanding sum to the farther end of its 95 % interval; 0 when exact |
//! | | `low_bytes` `high_bytes` `low_count` `high_count` | the ends of that interval; null when exact, an upper end also where nothing bounds it |
//! | | `unverified_bytes` `unverified_count` | of the outstanding ones, what was allocated before a pause in which frees were not watched |
//! | | `samples` | live blocks that were recorded, when sampled; else null. Below 20 an estimate is a rough one |
//! | | `growth_bytes_per_second` | of all sites since the previous snapshot, null in the first |
//! | | `heap_before_attach_bytes` | heap from before tracing; 0 for `run`, null if not known |
//! | | `unmatched_frees` | frees of blocks that were not recorded; null where a size filter or sampling makes them meaningless |
//! | | `rss_bytes` | resident set size |
//! | | `memory` | null or `rss` `anonymous` `file` `shared` `swapped`, each `…_bytes`, `growth_bytes_per_hour` of anonymous memory (null at first), `finding` as of a site |
//! | | `overhead` | null or what tracing costs, shares of one core: `estimated_share` `budget_share` `target_cpu_share` (what the process used itself), `state` (`"within_budget"` `"over_budget"` `"widened"` `"paused"`), `sample_interval_bytes` now, `paused_ns` in all, `retry_in_ns` while paused |
//! | | `allocators` | `[{"name", "file", "probed", "failed": [{"function", "reason"}]}]` |
//! | | `mappings` | bytes by purpose: `program` `allocator` `reserved` `stack` `break`, each `…_bytes` |
//! | | `sites` `sites_cut` `cut_outstanding_bytes` `cut_outstanding_count` | what is shown; what `--top` left out |
//! | | `stack_ends` `losses` | how many call stacks end for which reason; losses of this process alone |
//! | | `unseen` | why a part of what it allocated was not seen, as clauses |
//! | site | `id` | the same in the next run of the same build; `model::site_id` says how it is made |
//! | | `kind` | `"heap"` or `"mapping"` |
//! | | `outstanding_…` … `samples` | sums; with `--older`, outstanding counts only blocks that old |
//! | | `growth_bytes_per_second` | since the previous snapshot |
//! | | `oldest_age_ns` | age of the oldest live block, null without one or where blocks were not read |
//! | | `lifetimes` | freed blocks (when sampled, freed samples) by lifetime: item 0 below 1024 ns, item b up to 2^(b+10) ns; no trailing zeros |
//! | | `finding` | null or `{"confidence": "low"/"medium"/"high", "evidence", "growth_bytes_per_second"}` |
//! | | `runtime` | whether a runtime keeps it for itself, once the process has ended |
//! | | `suppressed` | null, or what keeps it from being a finding: a suppression, or `"baseline"` |
//! | | `frames` | from the allocation function's caller outwards, inlined ones before the one they are inlined into |
//! | | `stack_end` | `"complete"` or why the stack is cut |
//! | | `blocks` | with `--show-allocs`: `[{"address", "size_bytes", "age_ns"}]` |
//! | frame | `address` `module` `build_id` `module_offset` | return address, null in answers of an agent to requests without its token; mapped file; its build id; place in the file |
//! | | `function` `offset` `file` `line` | demangled name; offset from its start; source |
//! | | `inlined` `guessed` `reason` | inlined into the next; found by a guess; why there is no function name |
//!
//! # Schema `leaktrace.call/1`
//! One call, with `--trace`: `schema` `time` `pid` `tid` `comm` `function` `free` (whether memory was given back)
//! `address` `size_bytes` `old_address` (of a reallocation) `frames`.
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

mod verdict;
mod watch;
use verdict::VerdictJson;
use watch::{EventJson, MemoryJson, OverheadJson, WatchJson};

use crate::model::snapshot::{
    AllocatorView, BlockView, CallView, Confidence, ContainerView, Exited, Finding, Frame, Harm,
    MappingTotals, Mode, SiteKind, SiteView, Snapshot, TargetView, Totals, WallNs,
};

/// A snapshot as one line, newline included, to be written in one piece.
pub fn snapshot(snapshot: &Snapshot) -> String {
    line(&SnapshotJson::from(snapshot))
}

/// A call as one line, newline included.
pub fn call(call: &CallView) -> String {
    line(&CallJson {
        schema: "leaktrace.call/1",
        time: Time(call.time),
        pid: call.pid,
        tid: call.tid,
        comm: &call.comm,
        function: &call.function,
        free: call.free,
        address: Address(call.address),
        size_bytes: call.size_bytes,
        old_address: call.old_address.map(Address),
        frames: call.frames.iter().map(FrameJson::from).collect(),
    })
}

pub(super) fn line(value: &impl Serialize) -> String {
    // Serialising fails only for maps whose keys are not strings, and there are none.
    let mut text = plain(serde_json::to_string(value).unwrap_or_default());
    text.push('\n');
    text
}

/// JSON may hold control characters from DEL on as they are; a terminal that shows it may act on them. They stand only in
/// strings.
pub(super) fn plain(json: String) -> String {
    let acts = |c: char| matches!(c, '\u{7f}'..='\u{9f}');
    if !json.contains(acts) {
        return json;
    }
    let mut plain = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

#[derive(Clone, Copy)]
struct Address(u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

pub(super) struct Time(pub(super) WallNs);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0)).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&format_args!("{time:.9}"))
    }
}

#[derive(Serialize)]
pub(super) struct SnapshotJson<'a> {
    schema: &'static str,
    time: Time,
    host: &'a str,
    mode: &'static str,
    sample_interval_bytes: Option<u64>,
    since: Time,
    last: bool,
    pub(super) targets: Vec<TargetJson<'a>>,
    losses: &'a BTreeMap<String, u64>,
    notes: &'a [String],
    events: Vec<EventJson<'a>>,
    watched: Option<WatchJson<'a>>,
    verdict: Option<VerdictJson<'a>>,
}

impl<'a> From<&'a Snapshot> for SnapshotJson<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        let (mode, sample_interval_bytes) = match snapshot.mode {
            Mode::Exact => ("exact", None),
            Mode::Sampled { interval_bytes } => ("sampled", Some(interval_bytes)),
            Mode::Growth => ("growth", None),
        };
        SnapshotJson {
            schema: "leaktrace.snapshot/1",
            time: Time(snapshot.time),
            host: &snapshot.host,
            mode,
            sample_interval_bytes,
            since: Time(snapshot.since),
            last: snapshot.last,
            targets: snapshot.targets.iter().map(TargetJson::from).collect(),
            losses: &snapshot.losses,
            notes: &snapshot.notes,
            events: snapshot.events.iter().map(EventJson::from).collect(),
            watched: snapshot.watched.as_ref().map(WatchJson::from),
            verdict: snapshot.verdict.as_ref().map(VerdictJson::from),
        }
    }
}

#[derive(Serialize)]
struct ExitedJson {
    code: Option<i32>,
    signal: Option<i32>,
    oom_killed: bool,
}

impl From<Exited> for ExitedJson {
    fn from(exited: Exited) -> Self {
        ExitedJson { code: exited.code, signal: exited.signal, oom_killed: exited.oom_killed }
    }
}

#[derive(Serialize)]
struct HarmJson<'a> {
    reason: &'a str,
    function: Option<&'a str>,
    module: Option<&'a str>,
    module_offset: Option<u64>,
}

impl<'a> From<&'a Harm> for HarmJson<'a> {
    fn from(harm: &'a Harm) -> Self {
        HarmJson {
            reason: &harm.reason,
            function: harm.function.as_deref(),
            module: harm.module.as_deref(),
            module_offset: harm.module_offset,
        }
    }
}

#[derive(Serialize)]
pub(super) struct ContainerJson<'a> {
    id: &'a str,
    name: Option<&'a str>,
    runtime: &'a str,
    pod: Option<&'a str>,
    pod_uid: Option<&'a str>,
    namespace: Option<&'a str>,
    image: Option<&'a str>,
    compose_project: Option<&'a str>,
    compose_service: Option<&'a str>,
}

impl<'a> From<&'a ContainerView> for ContainerJson<'a> {
    fn from(container: &'a ContainerView) -> Self {
        ContainerJson {
            id: &container.id,
            name: container.name.as_deref(),
            runtime: &container.runtime,
            pod: container.pod.as_deref(),
            pod_uid: container.pod_uid.as_deref(),
            namespace: container.namespace.as_deref(),
            image: container.image.as_deref(),
            compose_project: container.compose_project.as_deref(),
            compose_service: container.compose_service.as_deref(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct TotalsJson {
    outstanding_bytes: u64,
    outstanding_count: u64,
    allocated_bytes: u64,
    allocated_count: u64,
    freed_bytes: u64,
    freed_count: u64,
    error_bytes: u64,
    error_count: u64,
    low_bytes: Option<u64>,
    high_bytes: Option<u64>,
    low_count: Option<u64>,
    high_count: Option<u64>,
    unverified_bytes: u64,
    unverified_count: u64,
    samples: Option<u64>,
}

impl From<&Totals> for TotalsJson {
    fn from(totals: &Totals) -> Self {
        let bytes = totals.sampled.map(|samples| samples.bytes());
        let count = totals.sampled.map(|samples| samples.count());
        TotalsJson {
            outstanding_bytes: totals.outstanding_bytes,
            outstanding_count: totals.outstanding_count,
            allocated_bytes: totals.allocated_bytes,
            allocated_count: totals.allocated_count,
            freed_bytes: totals.freed_bytes,
            freed_count: totals.freed_count,
            error_bytes: totals.error_bytes,
            error_count: totals.error_count,
            low_bytes: bytes.map(|bytes| bytes.low),
            high_bytes: bytes.and_then(|bytes| bytes.high),
            low_count: count.map(|count| count.low),
            high_count: count.and_then(|count| count.high),
            unverified_bytes: totals.unverified_bytes,
            unverified_count: totals.unverified_count,
            samples: totals.sampled.map(|samples| samples.samples),
        }
    }
}

#[derive(Serialize)]
pub(super) struct TargetJson<'a> {
    pid: u32,
    start_time: Time,
    comm: &'a str,
    cmdline: &'a str,
    exited: Option<ExitedJson>,
    killed_by_tracing: Option<HarmJson<'a>>,
    container: Option<ContainerJson<'a>>,
    unseen_ns: Option<u64>,
    execed: bool,
    parent: Option<u32>,
    since: Time,
    #[serde(flatten)]
    totals: TotalsJson,
    growth_bytes_per_second: Option<f64>,
    heap_before_attach_bytes: Option<u64>,
    unmatched_frees: Option<u64>,
    rss_bytes: Option<u64>,
    memory: Option<MemoryJson<'a>>,
    overhead: Option<OverheadJson>,
    allocators: Vec<AllocatorJson<'a>>,
    mappings: MappingsJson,
    pub(super) sites: Vec<SiteJson<'a>>,
    sites_cut: u64,
    cut_outstanding_bytes: u64,
    cut_outstanding_count: u64,
    stack_ends: &'a BTreeMap<String, u64>,
    losses: &'a BTreeMap<String, u64>,
    unseen: &'a [String],
}

impl<'a> From<&'a TargetView> for TargetJson<'a> {
    fn from(target: &'a TargetView) -> Self {
        TargetJson {
            pid: target.pid,
            start_time: Time(target.start_time),
            comm: &target.comm,
            cmdline: &target.cmdline,
            exited: target.exited.map(ExitedJson::from),
            killed_by_tracing: target.harm.as_ref().map(HarmJson::from),
            container: target.container.as_ref().map(ContainerJson::from),
            unseen_ns: target.unseen_ns,
            execed: target.execed,
            parent: target.parent,
            since: Time(target.since),
            totals: TotalsJson::from(&target.totals),
            growth_bytes_per_second: target.growth_bytes_per_second,
            heap_before_attach_bytes: target.heap_before_attach_bytes,
            unmatched_frees: target.unmatched_frees,
            rss_bytes: target.rss_bytes,
            memory: target.memory.as_ref().map(MemoryJson::from),
            overhead: target.overhead.as_ref().map(OverheadJson::from),
            allocators: target.allocators.iter().map(AllocatorJson::from).collect(),
            mappings: MappingsJson::from(&target.mappings),
            sites: target.sites.iter().map(SiteJson::from).collect(),
            sites_cut: target.sites_cut,
            cut_outstanding_bytes: target.cut_totals.outstanding_bytes,
            cut_outstanding_count: target.cut_totals.outstanding_count,
            stack_ends: &target.stack_ends,
            losses: &target.losses,
            unseen: &target.unseen,
        }
    }
}

#[derive(Serialize)]
struct AllocatorJson<'a> {
    name: &'a str,
    file: &'a str,
    probed: u32,
    failed: Vec<FailedJson<'a>>,
}

#[derive(Serialize)]
struct FailedJson<'a> {
    function: &'a str,
    reason: &'a str,
}

impl<'a> From<&'a AllocatorView> for AllocatorJson<'a> {
    fn from(allocator: &'a AllocatorView) -> Self {
        let failed = allocator.failed.iter().map(|(function, reason)| FailedJson { function, reason });
        AllocatorJson {
            name: &allocator.name,
            file: &allocator.file,
            probed: allocator.probed,
            failed: failed.collect(),
        }
    }
}

#[derive(Serialize)]
struct MappingsJson {
    program_bytes: u64,
    allocator_bytes: u64,
    reserved_bytes: u64,
    stack_bytes: u64,
    break_bytes: u64,
}

impl From<&MappingTotals> for MappingsJson {
    fn from(totals: &MappingTotals) -> Self {
        MappingsJson {
            program_bytes: totals.program_bytes,
            allocator_bytes: totals.allocator_bytes,
            reserved_bytes: totals.reserved_bytes,
            stack_bytes: totals.stack_bytes,
            break_bytes: totals.break_bytes,
        }
    }
}

/// The name of a kind, in labels of files too.
pub(super) fn kind(kind: SiteKind) -> &'static str {
    match kind {
        SiteKind::Heap => "heap",
        SiteKind::Mapping => "mapping",
    }
}

#[derive(Serialize)]
pub(super) struct SiteJson<'a> {
    id: &'a str,
    kind: &'static str,
    #[serde(flatten)]
    totals: TotalsJson,
    growth_bytes_per_second: Option<f64>,
    oldest_age_ns: Option<u64>,
    lifetimes: &'a [u32],
    finding: Option<FindingJson<'a>>,
    runtime: bool,
    suppressed: Option<&'a str>,
    frames: Vec<FrameJson<'a>>,
    stack_end: &'static str,
    blocks: Vec<BlockJson>,
}

impl<'a> From<&'a SiteView> for SiteJson<'a> {
    fn from(site: &'a SiteView) -> Self {
        let used = site.lifetimes.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        SiteJson {
            id: &site.id,
            kind: kind(site.kind),
            totals: TotalsJson::from(&site.totals),
            growth_bytes_per_second: site.growth_bytes_per_second,
            oldest_age_ns: site.oldest_age_ns,
            lifetimes: site.lifetimes.get(..used).unwrap_or_default(),
            finding: site.finding.as_ref().map(FindingJson::from),
            runtime: site.is_runtimes,
            suppressed: site.suppressed.as_deref(),
            frames: site.frames.iter().map(FrameJson::from).collect(),
            stack_end: site.stack_end,
            blocks: site.blocks.iter().map(BlockJson::from).collect(),
        }
    }
}

impl SiteJson<'_> {
    /// Leaves out where the process has its memory.
    pub(super) fn hide_addresses(&mut self) {
        self.frames.iter_mut().for_each(|frame| frame.address = None);
        self.blocks.iter_mut().for_each(|block| block.address = None);
    }
}

#[derive(Serialize)]
pub(super) struct FindingJson<'a> {
    confidence: &'static str,
    evidence: &'a str,
    growth_bytes_per_second: Option<f64>,
}

impl<'a> From<&'a Finding> for FindingJson<'a> {
    fn from(finding: &'a Finding) -> Self {
        FindingJson {
            confidence: match finding.confidence {
                Confidence::Low => "low",
                Confidence::Medium => "medium",
                Confidence::High => "high",
            },
            evidence: &finding.evidence,
            growth_bytes_per_second: finding.growth_bytes_per_second,
        }
    }
}

#[derive(Serialize)]
struct BlockJson {
    address: Option<Address>,
    size_bytes: u64,
    age_ns: u64,
}

impl From<&BlockView> for BlockJson {
    fn from(block: &BlockView) -> Self {
        BlockJson {
            address: Some(Address(block.address)),
            size_bytes: block.size_bytes,
            age_ns: block.age_ns,
        }
    }
}

#[derive(Serialize)]
pub(super) struct FrameJson<'a> {
    address: Option<Address>,
    module: Option<&'a str>,
    build_id: Option<&'a str>,
    module_offset: Option<u64>,
    function: Option<&'a str>,
    offset: Option<u64>,
    file: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    guessed: bool,
    reason: Option<&'static str>,
}

impl<'a> From<&'a Frame> for FrameJson<'a> {
    fn from(frame: &'a Frame) -> Self {
        FrameJson {
            address: Some(Address(frame.address)),
            module: frame.module.as_deref(),
            build_id: frame.build_id.as_deref(),
            module_offset: frame.module_offset,
            function: frame.function.as_deref(),
            offset: frame.offset,
            file: frame.file.as_deref(),
            line: frame.line,
            inlined: frame.inlined,
            guessed: frame.guessed,
            reason: frame.reason,
        }
    }
}

#[derive(Serialize)]
struct CallJson<'a> {
    schema: &'static str,
    time: Time,
    pid: u32,
    tid: u32,
    comm: &'a str,
    function: &'a str,
    free: bool,
    address: Address,
    size_bytes: Option<u64>,
    old_address: Option<Address>,
    frames: Vec<FrameJson<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_stands_in_json_as_it_is() {
        let all: String = ('\0'..='\u{a1}').collect();
        let text = line(&all);
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), all);
    }
}
