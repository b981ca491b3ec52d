//! What the HTTP API answers and the webhook says, as JSON. Field names are described by `agent/http/openapi.json`;
//! fields may be added, never renamed or removed, within `/api/v1`. Snapshots, targets and sites look as in
//! `leaktrace.snapshot/1`.
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::json::{SiteJson, SnapshotJson, TargetJson, Time};
use crate::model::{
    series::{SeriesPoint, TargetKey},
    service::{Alert, MemoryLimit, OwnUse, Severity, SnapshotFile, View, Work, is_live, key},
    sites::Order,
    snapshot::{Confidence, Mode, Snapshot, TargetView, WallNs},
};

/// Growth below this share of what is held, in an hour, is none.
const STABLE_SHARE: f64 = 0.01;

fn text(value: &impl Serialize) -> String {
    // Serialising fails only for maps whose keys are not strings, and there are none.
    super::json::plain(serde_json::to_string(value).unwrap_or_default())
}

#[derive(Serialize)]
struct AlertJson<'a> {
    severity: &'static str,
    kind: &'static str,
    pid: Option<u32>,
    start_time: Option<Time>,
    comm: Option<&'a str>,
    value: f64,
    threshold: f64,
    since: Time,
    message: &'a str,
}

impl<'a> From<&'a Alert> for AlertJson<'a> {
    fn from(alert: &'a Alert) -> Self {
        AlertJson {
            severity: alert.severity.name(),
            kind: alert.kind.name(),
            pid: alert.target.map(|key| key.pid),
            start_time: alert.target.map(|key| Time(key.start_time)),
            comm: alert.target.map(|_| alert.comm.as_str()),
            value: alert.value,
            threshold: alert.threshold,
            since: Time(alert.since),
            message: &alert.message,
        }
    }
}

/// What the webhook is sent: schema `leaktrace.alert/1`.
pub fn alert_message(alert: &Alert, is_active: bool, host: &str, time: WallNs) -> String {
    #[derive(Serialize)]
    struct Message<'a> {
        schema: &'static str,
        state: &'static str,
        time: Time,
        host: &'a str,
        #[serde(flatten)]
        alert: AlertJson<'a>,
    }
    text(&Message {
        schema: "leaktrace.alert/1",
        state: if is_active { "firing" } else { "resolved" },
        time: Time(time),
        host,
        alert: AlertJson::from(alert),
    })
}

/// `GET /api/v1/health`; `now` is the time of the answer.
pub fn health(view: &View, now: WallNs) -> String {
    #[derive(Serialize)]
    struct Health<'a> {
        status: &'static str,
        healthy: bool,
        time: Time,
        age_seconds: f64,
        stale: bool,
        targets: usize,
        outstanding_bytes: u64,
        issues: Vec<AlertJson<'a>>,
        trend: Trend,
        peak: Peak,
    }
    #[derive(Serialize)]
    struct Trend {
        direction: &'static str,
        growth_bytes_per_hour: Option<f64>,
    }
    #[derive(Serialize)]
    struct Peak {
        outstanding_bytes: u64,
        time: Time,
    }
    let worst = view.alerts.iter().map(|alert| alert.severity).max();
    let growth = (!view.growth.is_empty()).then(|| view.growth.values().sum::<f64>());
    let held = view.outstanding_bytes();
    let direction = match growth {
        None => "unknown",
        Some(growth) if growth.abs() <= held as f64 * STABLE_SHARE => "stable",
        Some(growth) if growth > 0.0 => "growing",
        Some(_) => "shrinking",
    };
    let is_stale = view.is_stale(now);
    let status = match worst {
        Some(Severity::Critical) => "critical",
        _ if is_stale => "stale",
        worst => worst.map_or("ok", Severity::name),
    };
    text(&Health {
        status,
        healthy: worst.is_none() && !is_stale,
        time: Time(view.snapshot.time),
        age_seconds: (view.age_ns(now) / 1_000_000) as f64 / 1000.0,
        stale: is_stale,
        targets: view.live().count(),
        outstanding_bytes: held,
        issues: view.alerts.iter().map(AlertJson::from).collect(),
        trend: Trend { direction, growth_bytes_per_hour: growth },
        peak: Peak { outstanding_bytes: view.peak.0, time: Time(view.peak.1) },
    })
}

#[derive(Serialize)]
struct OwnJson {
    rss_bytes: u64,
    map_bytes: u64,
    cpu_seconds: f64,
    cpu_share: f64,
    open_files: u64,
}

impl From<OwnUse> for OwnJson {
    fn from(own: OwnUse) -> Self {
        OwnJson {
            rss_bytes: own.rss_bytes,
            map_bytes: own.map_bytes,
            cpu_seconds: own.cpu_seconds,
            cpu_share: own.cpu_share,
            open_files: own.open_files,
        }
    }
}

/// `GET /api/v1/stats`.
pub fn stats(view: &View) -> String {
    #[derive(Serialize)]
    struct Stats<'a> {
        version: &'static str,
        host: &'a str,
        time: Time,
        started: Time,
        mode: &'static str,
        sample_interval_bytes: Option<u64>,
        targets: usize,
        ended: usize,
        agent: OwnJson,
        work: BTreeMap<&'static str, u64>,
        losses: &'a BTreeMap<String, u64>,
        notes: &'a [String],
    }
    let (mode, sample_interval_bytes) = match view.snapshot.mode {
        Mode::Exact => ("exact", None),
        Mode::Sampled { interval_bytes } => ("sampled", Some(interval_bytes)),
        Mode::Growth => ("growth", None),
    };
    text(&Stats {
        version: env!("CARGO_PKG_VERSION"),
        host: &view.snapshot.host,
        time: Time(view.snapshot.time),
        started: Time(view.started),
        mode,
        sample_interval_bytes,
        targets: view.live().count(),
        ended: view.ended.len(),
        agent: OwnJson::from(view.own),
        work: Work::ALL.iter().map(|work| (work.name(), view.count(*work))).collect(),
        losses: &view.snapshot.losses,
        notes: &view.snapshot.notes,
    })
}

#[derive(Serialize)]
struct LimitJson {
    limit_bytes: u64,
    used_bytes: u64,
}

impl From<MemoryLimit> for LimitJson {
    fn from(limit: MemoryLimit) -> Self {
        LimitJson { limit_bytes: limit.limit_bytes, used_bytes: limit.used_bytes }
    }
}

#[derive(Serialize)]
struct ServedTarget<'a> {
    #[serde(flatten)]
    target: TargetJson<'a>,
    growth_bytes_per_hour: Option<f64>,
    memory_limit: Option<LimitJson>,
}

fn served<'a>(view: &View, target: &'a TargetView) -> ServedTarget<'a> {
    let key = key(target);
    let live = is_live(target);
    ServedTarget {
        target: TargetJson::from(target),
        growth_bytes_per_hour: view.growth.get(&key).copied().filter(|_| live),
        memory_limit: view.limits.get(&key).copied().filter(|_| live).map(LimitJson::from),
    }
}

/// `GET /api/v1/targets`: all targets without their sites.
pub fn targets(view: &View) -> String {
    #[derive(Serialize)]
    struct Targets<'a> {
        time: Time,
        targets: Vec<ServedTarget<'a>>,
    }
    let bare = |target| {
        let mut served = served(view, target);
        served.target.sites.clear();
        served
    };
    text(&Targets { time: Time(view.snapshot.time), targets: view.all().map(bare).collect() })
}

/// `GET /api/v1/targets/{pid}`.
pub fn target(view: &View, target: &TargetView, with_addresses: bool) -> String {
    let mut served = served(view, target);
    if !with_addresses {
        served.target.sites.iter_mut().for_each(SiteJson::hide_addresses);
    }
    text(&served)
}

/// `GET /api/v1/history`.
pub fn history(key: TargetKey, points: &[SeriesPoint], peak: Option<SeriesPoint>) -> String {
    #[derive(Serialize)]
    struct History {
        pid: u32,
        start_time: Time,
        peak: Option<Point>,
        points: Vec<Point>,
    }
    #[derive(Serialize)]
    struct Point {
        time: Time,
        outstanding_bytes: u64,
        outstanding_count: u64,
        allocated_bytes: u64,
        rss_bytes: Option<u64>,
    }
    let point = |point: &SeriesPoint| Point {
        time: Time(point.time),
        outstanding_bytes: point.outstanding_bytes,
        outstanding_count: point.outstanding_count,
        allocated_bytes: point.allocated_bytes,
        rss_bytes: point.rss_bytes,
    };
    text(&History {
        pid: key.pid,
        start_time: Time(key.start_time),
        peak: peak.as_ref().map(point),
        points: points.iter().map(point).collect(),
    })
}

/// `GET /api/v1/leaks`: findings of at least this confidence, the surest and fastest first.
pub fn leaks(
    view: &View,
    at_least: Confidence,
    pid: Option<u32>,
    limit: usize,
    with_addresses: bool,
) -> String {
    #[derive(Serialize)]
    struct Leaks<'a> {
        time: Time,
        total: usize,
        leaks: Vec<Leak<'a>>,
    }
    #[derive(Serialize)]
    struct Leak<'a> {
        pid: u32,
        start_time: Time,
        comm: &'a str,
        ended: bool,
        site: SiteJson<'a>,
    }
    let found = view.findings(at_least, pid);
    let shown = found.iter().take(limit).map(|(target, site)| {
        let mut site = SiteJson::from(*site);
        if !with_addresses {
            site.hide_addresses();
        }
        Leak {
            pid: target.pid,
            start_time: Time(target.start_time),
            comm: &target.comm,
            ended: !is_live(target),
            site,
        }
    });
    text(&Leaks { time: Time(view.snapshot.time), total: found.len(), leaks: shown.collect() })
}

#[derive(Serialize)]
struct FileJson<'a> {
    id: &'a str,
    reason: &'static str,
    size_bytes: u64,
    time: Time,
}

impl<'a> From<&'a SnapshotFile> for FileJson<'a> {
    fn from(file: &'a SnapshotFile) -> Self {
        FileJson {
            id: &file.id,
            reason: file.reason,
            size_bytes: file.size_bytes,
            time: Time(wall_ns(file.modified)),
        }
    }
}

fn wall_ns(time: SystemTime) -> WallNs {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `GET /api/v1/snapshots`.
pub fn snapshots(files: &[SnapshotFile]) -> String {
    #[derive(Serialize)]
    struct Files<'a> {
        snapshots: Vec<FileJson<'a>>,
    }
    text(&Files { snapshots: files.iter().map(FileJson::from).collect() })
}

/// `POST /api/v1/snapshots`.
pub fn snapshot_file(file: &SnapshotFile) -> String {
    text(&FileJson::from(file))
}

/// An event of `GET /api/v1/stream`: the summary with the first sites of each target, on one line.
pub fn summary(snapshot: &Snapshot, top: usize, with_addresses: bool) -> String {
    if top == 0 {
        let mut bare = SnapshotJson::from(snapshot);
        bare.targets.iter_mut().for_each(|target| target.sites.clear());
        return text(&bare);
    }
    let mut cut = snapshot.clone();
    cut.cut(Order::Bytes, top);
    let mut shown = SnapshotJson::from(&cut);
    if !with_addresses {
        let sites = shown.targets.iter_mut().flat_map(|target| &mut target.sites);
        sites.for_each(SiteJson::hide_addresses);
    }
    text(&shown)
}

/// A problem as of RFC 9457.
pub fn problem(status: u16, title: &str, detail: &str) -> String {
    #[derive(Serialize)]
    struct Problem<'a> {
        r#type: &'static str,
        title: &'a str,
        status: u16,
        detail: &'a str,
    }
    text(&Problem { r#type: "about:blank", title, status, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::AlertKind;

    #[test]
    fn health_says_the_worst_and_the_trend() {
        let alert = Alert {
            kind: AlertKind::MemoryLimit,
            severity: Severity::Critical,
            target: Some(TargetKey { pid: 5, start_time: 0 }),
            comm: "a\"b".to_owned(),
            value: 0.95,
            threshold: 0.9,
            since: 0,
            message: "m".to_owned(),
        };
        let mut view = View::default();
        let json: serde_json::Value = serde_json::from_str(&health(&view, 0)).unwrap();
        assert_eq!(
            (json["healthy"].as_bool(), json["trend"]["direction"].as_str()),
            (Some(true), Some("unknown"))
        );
        let late: serde_json::Value = serde_json::from_str(&health(&view, 16_000_000_000)).unwrap();
        assert_eq!(
            (late["status"].as_str(), late["healthy"].as_bool(), late["age_seconds"].as_f64()),
            (Some("stale"), Some(false), Some(16.0))
        );
        view.period_ns = 60_000_000_000;
        let slow: serde_json::Value = serde_json::from_str(&health(&view, 16_000_000_000)).unwrap();
        assert_eq!((slow["status"].as_str(), slow["stale"].as_bool()), (Some("ok"), Some(false)));
        view.alerts.push(alert.clone());
        view.growth.insert(TargetKey { pid: 5, start_time: 0 }, 1000.0);
        let json: serde_json::Value = serde_json::from_str(&health(&view, 0)).unwrap();
        assert_eq!(json["status"], "critical");
        assert_eq!(json["trend"]["direction"], "growing");
        assert_eq!(json["issues"][0]["comm"], "a\"b");
        let message: serde_json::Value = serde_json::from_str(&alert_message(&alert, false, "h", 0)).unwrap();
        assert_eq!(
            (message["state"].as_str(), message["kind"].as_str()),
            (Some("resolved"), Some("memory_limit_share"))
        );
    }
}
