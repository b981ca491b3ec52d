//! The parts of a snapshot about watching itself: memory, what tracing costs, what was decided.
use serde::Serialize;

use super::{FindingJson, Time};
use crate::model::{
    events::EventView,
    memory::{MemoryView, WatchView, WatchedView},
    overhead::OverheadView,
};

#[derive(Serialize)]
pub(super) struct EventJson<'a> {
    time: Time,
    pid: u32,
    comm: &'a str,
    kind: &'static str,
    reason: &'a str,
}

impl<'a> From<&'a EventView> for EventJson<'a> {
    fn from(event: &'a EventView) -> Self {
        EventJson {
            time: Time(event.time),
            pid: event.pid,
            comm: &event.comm,
            kind: event.kind.name(),
            reason: &event.reason,
        }
    }
}

#[derive(Serialize)]
pub(super) struct MemoryJson<'a> {
    rss_bytes: u64,
    anonymous_bytes: u64,
    file_bytes: u64,
    shared_bytes: u64,
    swapped_bytes: u64,
    growth_bytes_per_hour: Option<f64>,
    finding: Option<FindingJson<'a>>,
}

impl<'a> From<&'a MemoryView> for MemoryJson<'a> {
    fn from(view: &'a MemoryView) -> Self {
        MemoryJson {
            rss_bytes: view.now.rss_bytes,
            anonymous_bytes: view.now.anonymous_bytes,
            file_bytes: view.now.file_bytes,
            shared_bytes: view.now.shared_bytes,
            swapped_bytes: view.now.swapped_bytes,
            growth_bytes_per_hour: view.growth_bytes_per_hour,
            finding: view.finding.as_ref().map(FindingJson::from),
        }
    }
}

#[derive(Serialize)]
pub(super) struct OverheadJson {
    estimated_share: f64,
    budget_share: Option<f64>,
    target_cpu_share: Option<f64>,
    state: &'static str,
    sample_interval_bytes: u64,
    paused_ns: u64,
    retry_in_ns: Option<u64>,
}

impl From<&OverheadView> for OverheadJson {
    fn from(view: &OverheadView) -> Self {
        OverheadJson {
            estimated_share: view.estimated_share,
            budget_share: view.budget_share,
            target_cpu_share: view.target_cpu_share,
            state: view.state.name(),
            sample_interval_bytes: view.sample_interval_bytes,
            paused_ns: view.paused_ns,
            retry_in_ns: view.retry_in_ns,
        }
    }
}

#[derive(Serialize)]
pub(super) struct WatchJson<'a> {
    processes: u64,
    unwatched: u64,
    fastest: Vec<WatchedJson<'a>>,
}

impl<'a> From<&'a WatchView> for WatchJson<'a> {
    fn from(view: &'a WatchView) -> Self {
        WatchJson {
            processes: view.processes,
            unwatched: view.unwatched,
            fastest: view.fastest.iter().map(WatchedJson::from).collect(),
        }
    }
}

#[derive(Serialize)]
struct WatchedJson<'a> {
    pid: u32,
    comm: &'a str,
    rss_bytes: u64,
    anonymous_bytes: u64,
    growth_bytes_per_hour: Option<f64>,
    reason: Option<&'a str>,
}

impl<'a> From<&'a WatchedView> for WatchedJson<'a> {
    fn from(view: &'a WatchedView) -> Self {
        WatchedJson {
            pid: view.pid,
            comm: &view.comm,
            rss_bytes: view.rss_bytes,
            anonymous_bytes: view.anonymous_bytes,
            growth_bytes_per_hour: view.growth_bytes_per_hour,
            reason: view.reason.as_deref(),
        }
    }
}
