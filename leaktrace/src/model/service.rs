//! What the service knows at one time: the last summary with limits, alerts and its own use. Immutable; metrics and
//! answers are made from it.
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::{
    series::TargetKey,
    snapshot::{Confidence, Finding, SiteView, Snapshot, TargetView, WallNs},
};

/// A memory limit and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// memory.max.
    pub limit_bytes: u64,
    /// memory.current without file pages that can be dropped at once, as the kubelet counts it.
    pub used_bytes: u64,
}

impl MemoryLimit {
    /// Used part of the limit.
    pub fn share(&self) -> f64 {
        self.used_bytes as f64 / self.limit_bytes.max(1) as f64
    }
}

/// How bad an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl Severity {
    /// The word in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertKind {
    /// Bytes that a target holds.
    Outstanding,
    /// Bytes by which it grows in an hour.
    GrowthPerHour,
    /// Share of the memory limit.
    MemoryLimit,
    /// Seconds until the limit.
    TimeToLimit,
    /// Snapshot files cannot be written.
    SnapshotFailed,
    /// The agent itself is above one of its limits.
    AgentLimit,
    /// Tracing has probably killed a program.
    KilledByTracing,
}

impl AlertKind {
    /// The word in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            AlertKind::Outstanding => "outstanding_bytes",
            AlertKind::GrowthPerHour => "growth_bytes_per_hour",
            AlertKind::MemoryLimit => "memory_limit_share",
            AlertKind::TimeToLimit => "time_to_limit_seconds",
            AlertKind::SnapshotFailed => "snapshot_failed",
            AlertKind::AgentLimit => "agent_limit",
            AlertKind::KilledByTracing => "killed_by_tracing",
        }
    }
}

/// An alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// What it is about.
    pub kind: AlertKind,
    /// How bad it is.
    pub severity: Severity,
    /// The target; none for the agent itself.
    pub target: Option<TargetKey>,
    /// Name of the target. Hostile.
    pub comm: String,
    /// What was seen, in the kind's unit.
    pub value: f64,
    /// What it was compared with.
    pub threshold: f64,
    /// Since when it is active.
    pub since: WallNs,
    /// A sentence.
    pub message: String,
}

/// Something that is wrong with the agent itself.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnFault {
    /// What it is about.
    pub kind: AlertKind,
    /// A sentence.
    pub message: String,
}

/// What the agent itself uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnUse {
    /// Resident memory.
    pub rss_bytes: u64,
    /// Kernel memory of its maps.
    pub map_bytes: u64,
    /// Processor time since it began.
    pub cpu_seconds: f64,
    /// Share of one CPU over the last half minute or so.
    pub cpu_share: f64,
    /// Open files.
    pub open_files: u64,
}

/// A snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// What names it: letters, digits and `-`.
    pub id: String,
    /// Why it was written.
    pub reason: &'static str,
    /// Its size.
    pub size_bytes: u64,
    /// When it was written.
    pub modified: SystemTime,
}

macro_rules! tallies {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $name:literal; )+) => {
        /// What the service counts of its own work; the one list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Work { $( $(#[doc = $doc])+ $variant, )+ }

        impl Work {
            /// Every one in index order.
            pub const ALL: &'static [Work] = &[ $( Work::$variant, )+ ];

            /// The stable name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $( Work::$variant => $name, )+ }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $( Work::$variant => concat!($($doc),+), )+ }
            }
        }
    };
}

tallies! {
    /// Summaries that were made.
    Summaries = "summaries";
    /// Processes that matched but were not traced: not traceable, or a limit was reached.
    TargetsRefused = "targets_refused";
    /// Processes that ended before they could be traced; of those that were gone at once it is not known whether they matched.
    TargetsMissed = "targets_missed";
    /// Traced processes that ended, as summaries showed them.
    TargetsEnded = "targets_ended";
    /// Ended processes that were dropped before they were in a file.
    EndedDropped = "ended_dropped";
    /// Snapshot files that were written.
    SnapshotsWritten = "snapshots_written";
    /// Snapshot files that could not be written.
    SnapshotsFailed = "snapshots_failed";
    /// Snapshot files that were due while earlier ones were still being written.
    SnapshotsSkipped = "snapshots_skipped";
    /// Snapshot files that were removed by the rules of what is kept.
    SnapshotsRemoved = "snapshots_removed";
    /// Alerts that fired or changed.
    AlertsFired = "alerts_fired";
    /// Alerts that were delivered to the webhook.
    WebhookDelivered = "webhook_delivered";
    /// Attempts to deliver an alert that failed.
    WebhookAttemptsFailed = "webhook_attempts_failed";
    /// Alerts that were given up: no attempt succeeded, or too many waited.
    WebhookDropped = "webhook_dropped";
    /// Configurations that were taken over.
    Reloads = "reloads";
    /// Configurations that were refused.
    ReloadsFailed = "reloads_failed";
    /// HTTP requests that were answered.
    HttpRequests = "http_requests";
    /// HTTP requests that were answered with an error.
    HttpErrors = "http_errors";
    /// HTTP connections that were refused because there were too many.
    HttpConnectionsRefused = "http_connections_refused";
}

/// Everything at one time.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How many there were before.
    pub number: u64,
    /// When the service began.
    pub started: WallNs,
    /// The last summary; processes that ended since the one before are in it.
    pub snapshot: Arc<Snapshot>,
    /// Time from one summary to the next.
    pub period_ns: u64,
    /// Processes that ended earlier, the last one last.
    pub ended: Vec<Arc<TargetView>>,
    /// Memory limits of live targets.
    pub limits: BTreeMap<TargetKey, MemoryLimit>,
    /// Growth of live targets in bytes per hour, where they were watched for long enough.
    pub growth: BTreeMap<TargetKey, f64>,
    /// Active alerts, the worst first.
    pub alerts: Vec<Alert>,
    /// What is wrong with the agent.
    pub faults: Vec<OwnFault>,
    /// What the agent uses.
    pub own: OwnUse,
    /// What it has done, by [`Work`].
    pub work: Vec<u64>,
    /// The most that all targets held together, and when.
    pub peak: (u64, WallNs),
}

/// How much later than due a summary may come before the view is stale.
const LATE_NS: u64 = 15_000_000_000;

impl View {
    /// How old the last summary is.
    pub fn age_ns(&self, now: WallNs) -> u64 {
        u64::try_from(now.saturating_sub(self.snapshot.time)).unwrap_or(0)
    }

    /// Whether it is older than it should be: tracing stands still, or takes far longer than it should.
    pub fn is_stale(&self, now: WallNs) -> bool {
        self.age_ns(now) > self.period_ns.saturating_mul(2).saturating_add(LATE_NS)
    }

    /// Targets that run.
    pub fn live(&self) -> impl Iterator<Item = &TargetView> {
        self.snapshot.targets.iter().filter(|target| is_live(target))
    }

    /// Targets that run, and those that ended lately.
    pub fn all(&self) -> impl Iterator<Item = &TargetView> {
        self.live().chain(self.ended.iter().rev().map(AsRef::as_ref))
    }

    /// Findings of at least this confidence, of one process or of all; the surest and fastest first.
    pub fn findings(&self, at_least: Confidence, pid: Option<u32>) -> Vec<(&TargetView, &SiteView)> {
        let mut found: Vec<(&TargetView, &SiteView, &Finding)> = self
            .all()
            .filter(|target| pid.is_none_or(|pid| target.pid == pid))
            .flat_map(|target| target.sites.iter().map(move |site| (target, site)))
            .filter_map(|(target, site)| Some((target, site, site.finding.as_ref()?)))
            .filter(|(.., finding)| finding.confidence >= at_least)
            .collect();
        found.sort_by(|(_, a_site, a), (_, b_site, b)| {
            let growth = |finding: &Finding| finding.growth_bytes_per_second.unwrap_or(0.0);
            b.confidence
                .cmp(&a.confidence)
                .then_with(|| growth(b).total_cmp(&growth(a)))
                .then_with(|| b_site.totals.outstanding_bytes.cmp(&a_site.totals.outstanding_bytes))
        });
        found.into_iter().map(|(target, site, _)| (target, site)).collect()
    }

    /// How often something was done.
    pub fn count(&self, work: Work) -> u64 {
        self.work.get(work as usize).copied().unwrap_or(0)
    }

    /// Bytes that all live targets hold.
    pub fn outstanding_bytes(&self) -> u64 {
        self.live().map(|target| target.totals.outstanding_bytes).fold(0, u64::saturating_add)
    }
}

/// Whether the process runs and its image is the present one.
pub fn is_live(target: &TargetView) -> bool {
    target.exited.is_none() && !target.execed
}

/// The key of a target.
pub fn key(target: &TargetView) -> TargetKey {
    TargetKey { pid: target.pid, start_time: target.start_time }
}
