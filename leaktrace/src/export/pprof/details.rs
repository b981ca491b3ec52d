//! What a snapshot knows and pprof has no field for: a field of our own, as JSON, schema `leaktrace.file/1`.
//! Fields may be added within a version; a reader takes missing ones for their defaults.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    verdict::VerdictDetails,
    watch::{EventDetails, MemoryDetails, OverheadDetails, WatchDetails},
};
use crate::model::{
    estimate::Moments,
    memory::{MemoryView, WatchView},
    overhead::OverheadView,
    snapshot::{
        AllocatorView, BlockView, Confidence, ContainerView, Exited, Finding, Harm, MappingTotals, Mode,
        SiteView, Snapshot, TargetView, Totals,
    },
};

/// Value of [`Details::schema`].
pub(super) const SCHEMA: &str = "leaktrace.file/1";

/// The whole object.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) schema: String,
    pub(super) time: i64,
    pub(super) since: i64,
    pub(super) host: String,
    pub(super) mode: ModeName,
    #[serde(default)]
    pub(super) sample_interval_bytes: u64,
    pub(super) last: bool,
    pub(super) losses: BTreeMap<String, u64>,
    pub(super) notes: Vec<String>,
    pub(super) targets: Vec<TargetDetails>,
    /// One for each sample, in their order.
    pub(super) sites: Vec<SiteDetails>,
    /// Locations about which there is more to say than pprof can, by id.
    pub(super) locations: BTreeMap<u64, LocationDetails>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    events: Vec<EventDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    watched: Option<WatchDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verdict: Option<VerdictDetails>,
    /// Ids of mappings whose place in their file is not known.
    #[serde(default)]
    pub(super) unplaced_mappings: Vec<u64>,
}

/// [`Mode`] without its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeName {
    #[default]
    Exact,
    Sampled,
    Growth,
}

/// A process without its sites.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TargetDetails {
    pid: u32,
    start_time: i64,
    since: i64,
    comm: String,
    cmdline: String,
    exited: Option<(Option<i32>, Option<i32>)>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    oom_killed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    harm: Option<HarmDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen_ns: Option<u64>,
    execed: bool,
    parent: Option<u32>,
    allocators: Vec<AllocatorDetails>,
    totals: Sums,
    growth_bytes_per_second: Option<f64>,
    heap_before_attach_bytes: Option<u64>,
    unmatched_frees: Option<u64>,
    rss_bytes: Option<u64>,
    sites_cut: u64,
    cut_totals: Sums,
    stack_ends: BTreeMap<String, u64>,
    losses: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unseen: Vec<String>,
    /// Program, allocator, reserved, stack, break.
    mappings_bytes: [u64; 5],
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<OverheadDetails>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct HarmDetails {
    reason: String,
    function: Option<String>,
    module: Option<String>,
    module_offset: Option<u64>,
}

impl From<&Harm> for HarmDetails {
    fn from(harm: &Harm) -> Self {
        let Harm { reason, function, module, module_offset } = harm.clone();
        HarmDetails { reason, function, module, module_offset }
    }
}

impl From<HarmDetails> for Harm {
    fn from(details: HarmDetails) -> Self {
        let HarmDetails { reason, function, module, module_offset } = details;
        Harm { reason, function, module, module_offset }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ContainerDetails {
    id: String,
    runtime: String,
    name: Option<String>,
    pod: Option<String>,
    pod_uid: Option<String>,
    namespace: Option<String>,
    image: Option<String>,
    compose_project: Option<String>,
    compose_service: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct AllocatorDetails {
    name: String,
    file: String,
    probed: u32,
    failed: Vec<(String, String)>,
}

/// All of [`Totals`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sums {
    outstanding: (u64, u64),
    allocated: (u64, u64),
    freed: (u64, u64),
    error: (u64, u64),
    unverified: (u64, u64),
    /// Interval, samples and sums of an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampled: Option<(u64, u64, [f64; 5])>,
}

/// What a site has besides its stack, its labels and the values of its sample.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SiteDetails {
    /// Which of the targets.
    pub(super) target: usize,
    pub(super) id: String,
    pub(super) totals: Sums,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) growth_bytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oldest_age_ns: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lifetimes: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<FindingDetails>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) is_runtimes: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) suppressed: Option<String>,
    pub(super) stack_end: String,
    /// Address, bytes, age in ns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<(u64, u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FindingDetails {
    confidence: String,
    evidence: String,
    growth_bytes_per_second: Option<f64>,
}

/// About the outermost function of a location.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LocationDetails {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) guessed: bool,
    /// It is inlined into the next location.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) inlined: bool,
    /// Its line is known and 0: code that belongs to no line.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) line_zero: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Details {
    /// Of a snapshot, without sites and locations.
    pub(super) fn of(snapshot: &Snapshot) -> Details {
        let (mode, sample_interval_bytes) = match snapshot.mode {
            Mode::Exact => (ModeName::Exact, 0),
            Mode::Sampled { interval_bytes } => (ModeName::Sampled, interval_bytes),
            Mode::Growth => (ModeName::Growth, 0),
        };
        Details {
            schema: SCHEMA.to_owned(),
            time: snapshot.time,
            since: snapshot.since,
            host: snapshot.host.clone(),
            mode,
            sample_interval_bytes,
            last: snapshot.last,
            losses: snapshot.losses.clone(),
            notes: snapshot.notes.clone(),
            targets: snapshot.targets.iter().map(TargetDetails::from).collect(),
            sites: Vec::new(),
            locations: BTreeMap::new(),
            events: snapshot.events.iter().map(EventDetails::from).collect(),
            watched: snapshot.watched.as_ref().map(WatchDetails::from),
            verdict: snapshot.verdict.as_ref().map(VerdictDetails::from),
            unplaced_mappings: Vec::new(),
        }
    }

    /// The snapshot, its targets without sites.
    pub(super) fn snapshot(self) -> Snapshot {
        Snapshot {
            time: self.time,
            since: self.since,
            host: self.host,
            mode: match self.mode {
                ModeName::Exact => Mode::Exact,
                ModeName::Sampled => Mode::Sampled { interval_bytes: self.sample_interval_bytes },
                ModeName::Growth => Mode::Growth,
            },
            last: self.last,
            targets: self.targets.into_iter().map(TargetView::from).collect(),
            losses: self.losses,
            notes: self.notes,
            events: self.events.into_iter().filter_map(EventDetails::view).collect(),
            watched: self.watched.map(WatchView::from),
            verdict: self.verdict.and_then(VerdictDetails::view),
        }
    }
}

impl From<&ContainerView> for ContainerDetails {
    fn from(view: &ContainerView) -> Self {
        let ContainerView {
            id,
            runtime,
            name,
            pod,
            pod_uid,
            namespace,
            image,
            compose_project,
            compose_service,
        } = view.clone();
        ContainerDetails {
            id,
            runtime,
            name,
            pod,
            pod_uid,
            namespace,
            image,
            compose_project,
            compose_service,
        }
    }
}

impl From<ContainerDetails> for ContainerView {
    fn from(details: ContainerDetails) -> Self {
        let ContainerDetails {
            id,
            runtime,
            name,
            pod,
            pod_uid,
            namespace,
            image,
            compose_project,
            compose_service,
        } = details;
        ContainerView { id, runtime, name, pod, pod_uid, namespace, image, compose_project, compose_service }
    }
}

impl From<&TargetView> for TargetDetails {
    fn from(view: &TargetView) -> Self {
        let mappings = &view.mappings;
        TargetDetails {
            pid: view.pid,
            start_time: view.start_time,
            since: view.since,
            comm: view.comm.clone(),
            cmdline: view.cmdline.clone(),
            exited: view.exited.map(|exited| (exited.code, exited.signal)),
            oom_killed: view.exited.is_some_and(|exited| exited.oom_killed),
            harm: view.harm.as_ref().map(HarmDetails::from),
            container: view.container.as_ref().map(ContainerDetails::from),
            unseen_ns: view.unseen_ns,
            execed: view.execed,
            parent: view.parent,
            allocators: view.allocators.iter().map(AllocatorDetails::from).collect(),
            totals: Sums::from(&view.totals),
            growth_bytes_per_second: view.growth_bytes_per_second,
            heap_before_attach_bytes: view.heap_before_attach_bytes,
            unmatched_frees: view.unmatched_frees,
            rss_bytes: view.rss_bytes,
            sites_cut: view.sites_cut,
            cut_totals: Sums::from(&view.cut_totals),
            stack_ends: view.stack_ends.clone(),
            losses: view.losses.clone(),
            unseen: view.unseen.clone(),
            mappings_bytes: [
                mappings.program_bytes,
                mappings.allocator_bytes,
                mappings.reserved_bytes,
                mappings.stack_bytes,
                mappings.break_bytes,
            ],
            memory: view.memory.as_ref().map(MemoryDetails::from),
            overhead: view.overhead.as_ref().map(OverheadDetails::from),
        }
    }
}

impl From<TargetDetails> for TargetView {
    fn from(details: TargetDetails) -> Self {
        let [program_bytes, allocator_bytes, reserved_bytes, stack_bytes, break_bytes] =
            details.mappings_bytes;
        TargetView {
            pid: details.pid,
            start_time: details.start_time,
            since: details.since,
            comm: details.comm,
            cmdline: details.cmdline,
            exited: details.exited.map(|(code, signal)| Exited {
                code,
                signal,
                oom_killed: details.oom_killed,
            }),
            harm: details.harm.map(Harm::from),
            container: details.container.map(ContainerView::from),
            unseen_ns: details.unseen_ns,
            execed: details.execed,
            parent: details.parent,
            allocators: details.allocators.into_iter().map(AllocatorView::from).collect(),
            totals: Totals::from(&details.totals),
            growth_bytes_per_second: details.growth_bytes_per_second,
            heap_before_attach_bytes: details.heap_before_attach_bytes,
            unmatched_frees: details.unmatched_frees,
            rss_bytes: details.rss_bytes,
            sites: Vec::new(),
            sites_cut: details.sites_cut,
            cut_totals: Totals::from(&details.cut_totals),
            stack_ends: details.stack_ends,
            losses: details.losses,
            unseen: details.unseen,
            mappings: MappingTotals {
                program_bytes,
                allocator_bytes,
                reserved_bytes,
                stack_bytes,
                break_bytes,
            },
            memory: details.memory.map(MemoryView::from),
            overhead: details.overhead.map(OverheadView::from),
        }
    }
}

impl From<&AllocatorView> for AllocatorDetails {
    fn from(view: &AllocatorView) -> Self {
        AllocatorDetails {
            name: view.name.clone(),
            file: view.file.clone(),
            probed: view.probed,
            failed: view.failed.clone(),
        }
    }
}

impl From<AllocatorDetails> for AllocatorView {
    fn from(details: AllocatorDetails) -> Self {
        AllocatorView {
            name: details.name,
            file: details.file,
            probed: details.probed,
            failed: details.failed,
        }
    }
}

impl From<&Totals> for Sums {
    fn from(totals: &Totals) -> Self {
        Sums {
            outstanding: (totals.outstanding_bytes, totals.outstanding_count),
            allocated: (totals.allocated_bytes, totals.allocated_count),
            freed: (totals.freed_bytes, totals.freed_count),
            error: (totals.error_bytes, totals.error_count),
            unverified: (totals.unverified_bytes, totals.unverified_count),
            sampled: totals.sampled.map(|samples| samples.parts()),
        }
    }
}

impl From<&Sums> for Totals {
    fn from(sums: &Sums) -> Self {
        Totals {
            outstanding_bytes: sums.outstanding.0,
            outstanding_count: sums.outstanding.1,
            allocated_bytes: sums.allocated.0,
            allocated_count: sums.allocated.1,
            freed_bytes: sums.freed.0,
            freed_count: sums.freed.1,
            error_bytes: sums.error.0,
            error_count: sums.error.1,
            unverified_bytes: sums.unverified.0,
            unverified_count: sums.unverified.1,
            sampled: sums.sampled.and_then(Moments::from_parts),
        }
    }
}

impl SiteDetails {
    pub(super) fn of(target: usize, site: &SiteView) -> SiteDetails {
        let used = site.lifetimes.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        SiteDetails {
            target,
            id: site.id.clone(),
            totals: Sums::from(&site.totals),
            growth_bytes_per_second: site.growth_bytes_per_second,
            oldest_age_ns: site.oldest_age_ns,
            lifetimes: site.lifetimes.get(..used).unwrap_or_default().to_vec(),
            finding: site.finding.as_ref().map(FindingDetails::from),
            is_runtimes: site.is_runtimes,
            suppressed: site.suppressed.clone(),
            stack_end: site.stack_end.to_owned(),
            blocks: site.blocks.iter().map(|block| (block.address, block.size_bytes, block.age_ns)).collect(),
        }
    }

    pub(super) fn finding(&self) -> Option<Finding> {
        self.finding.as_ref().map(FindingDetails::finding)
    }

    pub(super) fn blocks(&self) -> Vec<BlockView> {
        let block = |(address, size_bytes, age_ns): &(u64, u64, u64)| BlockView {
            address: *address,
            size_bytes: *size_bytes,
            age_ns: *age_ns,
        };
        self.blocks.iter().map(block).collect()
    }
}

impl From<&Finding> for FindingDetails {
    fn from(finding: &Finding) -> Self {
        FindingDetails {
            confidence: confidence_name(finding.confidence).to_owned(),
            evidence: finding.evidence.clone(),
            growth_bytes_per_second: finding.growth_bytes_per_second,
        }
    }
}

impl FindingDetails {
    pub(super) fn finding(&self) -> Finding {
        Finding {
            confidence: match self.confidence.as_str() {
                "high" => Confidence::High,
                "medium" => Confidence::Medium,
                _ => Confidence::Low,
            },
            evidence: self.evidence.clone(),
            growth_bytes_per_second: self.growth_bytes_per_second,
        }
    }
}

/// The name in labels, JSON and here.
pub(super) fn confidence_name(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Low => "low",
        Confidence::Medium => "medium",
        Confidence::High => "high",
    }
}
