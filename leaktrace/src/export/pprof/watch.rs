//! The parts of a file about watching itself: memory, what tracing cost, what was decided. Names that a reader does not
//! know cost that entry alone.
use serde::{Deserialize, Serialize};

use super::details::FindingDetails;
use crate::model::{
    events::{EventKind, EventView},
    memory::{Memory, MemoryView, WatchView, WatchedView},
    overhead::{GovernorState, OverheadView},
};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct MemoryDetails {
    /// RSS, anonymous, files, shared, swapped.
    now_bytes: [u64; 5],
    growth_bytes_per_hour: Option<f64>,
    finding: Option<FindingDetails>,
}

impl From<&MemoryView> for MemoryDetails {
    fn from(view: &MemoryView) -> Self {
        let now = &view.now;
        MemoryDetails {
            now_bytes: [
                now.rss_bytes,
                now.anonymous_bytes,
                now.file_bytes,
                now.shared_bytes,
                now.swapped_bytes,
            ],
            growth_bytes_per_hour: view.growth_bytes_per_hour,
            finding: view.finding.as_ref().map(FindingDetails::from),
        }
    }
}

impl From<MemoryDetails> for MemoryView {
    fn from(details: MemoryDetails) -> Self {
        let [rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swapped_bytes] = details.now_bytes;
        MemoryView {
            now: Memory { rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swapped_bytes },
            growth_bytes_per_hour: details.growth_bytes_per_hour,
            finding: details.finding.as_ref().map(FindingDetails::finding),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OverheadDetails {
    estimated_share: f64,
    budget_share: Option<f64>,
    target_cpu_share: Option<f64>,
    state: String,
    sample_interval_bytes: u64,
    paused_ns: u64,
    retry_in_ns: Option<u64>,
}

impl From<&OverheadView> for OverheadDetails {
    fn from(view: &OverheadView) -> Self {
        OverheadDetails {
            estimated_share: view.estimated_share,
            budget_share: view.budget_share,
            target_cpu_share: view.target_cpu_share,
            state: view.state.name().to_owned(),
            sample_interval_bytes: view.sample_interval_bytes,
            paused_ns: view.paused_ns,
            retry_in_ns: view.retry_in_ns,
        }
    }
}

impl From<OverheadDetails> for OverheadView {
    fn from(details: OverheadDetails) -> Self {
        let state = GovernorState::ALL.into_iter().find(|state| state.name() == details.state);
        OverheadView {
            estimated_share: details.estimated_share,
            budget_share: details.budget_share,
            target_cpu_share: details.target_cpu_share,
            state: state.unwrap_or_default(),
            sample_interval_bytes: details.sample_interval_bytes,
            paused_ns: details.paused_ns,
            retry_in_ns: details.retry_in_ns,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EventDetails {
    time: i64,
    pid: u32,
    comm: String,
    kind: String,
    reason: String,
}

impl From<&EventView> for EventDetails {
    fn from(view: &EventView) -> Self {
        EventDetails {
            time: view.time,
            pid: view.pid,
            comm: view.comm.clone(),
            kind: view.kind.name().to_owned(),
            reason: view.reason.clone(),
        }
    }
}

impl EventDetails {
    /// The event, where its kind is known.
    pub(super) fn view(self) -> Option<EventView> {
        let kind = EventKind::ALL.into_iter().find(|kind| kind.name() == self.kind)?;
        Some(EventView { time: self.time, pid: self.pid, comm: self.comm, kind, reason: self.reason })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WatchDetails {
    processes: u64,
    unwatched: u64,
    fastest: Vec<WatchedDetails>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct WatchedDetails {
    pid: u32,
    comm: String,
    rss_bytes: u64,
    anonymous_bytes: u64,
    growth_bytes_per_hour: Option<f64>,
    reason: Option<String>,
}

impl From<&WatchView> for WatchDetails {
    fn from(view: &WatchView) -> Self {
        let details = |process: &WatchedView| WatchedDetails {
            pid: process.pid,
            comm: process.comm.clone(),
            rss_bytes: process.rss_bytes,
            anonymous_bytes: process.anonymous_bytes,
            growth_bytes_per_hour: process.growth_bytes_per_hour,
            reason: process.reason.clone(),
        };
        WatchDetails {
            processes: view.processes,
            unwatched: view.unwatched,
            fastest: view.fastest.iter().map(details).collect(),
        }
    }
}

impl From<WatchDetails> for WatchView {
    fn from(details: WatchDetails) -> Self {
        let view = |process: WatchedDetails| WatchedView {
            pid: process.pid,
            comm: process.comm,
            rss_bytes: process.rss_bytes,
            anonymous_bytes: process.anonymous_bytes,
            growth_bytes_per_hour: process.growth_bytes_per_hour,
            reason: process.reason,
        };
        WatchView {
            processes: details.processes,
            unwatched: details.unwatched,
            fastest: details.fastest.into_iter().map(view).collect(),
        }
    }
}
