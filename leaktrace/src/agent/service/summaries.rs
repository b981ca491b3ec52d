//! What each summary leads to: histories, ended processes, the agent's own limits, snapshot files, and the view that
//! everybody else sees. When there is one is left to the loop, alerts to `evaluate`.
use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::oneshot;

use super::{
    Service, own,
    settings::{most_targets, selection},
    store::Reason,
    writer::Reply,
};
use crate::{
    agent::{clock, growth::watch::Watch, tracer::held::Held},
    model::{
        series::{SeriesPoint, TargetKey},
        service::{AlertKind, OwnFault, View, Work, is_live, key},
        sites::Order,
        snapshot::{Snapshot, TargetView, WallNs},
    },
};

/// Ended processes that answers still show.
const MAX_ENDED_SHOWN: usize = 100;
/// Ended processes that wait for the next file.
const MAX_ENDED_UNWRITTEN: usize = 1000;
/// Summaries become rarer by this factor at the most to spare the CPU.
const MAX_STRETCH: u32 = 16;

impl Service {
    /// A summary with all that follows from it.
    pub(super) fn tick(&mut self) {
        let now = clock::wall_ns();
        if self.shared.write_error().is_some() {
            self.schedule.ask(Reason::Retry);
        }
        match self.schedule.due(now, &self.seen).filter(|_| self.shared.store().is_some()) {
            Some(reason) => self.save(reason, None),
            None => {
                let mut snapshot = self.tracer.snapshot(false);
                snapshot.watched = self.watch.as_ref().map(Watch::view);
                self.take(Arc::new(snapshot));
            }
        }
    }

    /// Between two rare summaries: alerts by what targets hold now.
    pub(super) fn between(&mut self) {
        let live = self.snapshot.targets.iter().filter(|target| is_live(target));
        let shown: BTreeSet<u32> = live.map(|target| target.pid).collect();
        if !self.tracer.pids().iter().eq(&shown) {
            // Somebody came or went, of whom nothing or too much is known.
            self.tick();
            return;
        }
        self.held = self.tracer.held();
        let time = clock::wall_ns();
        self.shared.change_series(|series| {
            for target in self.snapshot.targets.iter().filter(|target| is_live(target)) {
                if let Some(held) = self.held.get(&target.pid) {
                    let Held { outstanding_bytes, outstanding_count, allocated_bytes } = *held;
                    let rss_bytes = None;
                    let point = SeriesPoint {
                        time,
                        outstanding_bytes,
                        outstanding_count,
                        allocated_bytes,
                        rss_bytes,
                    };
                    series.record(key(target), point);
                }
            }
        });
        let sum = self.held.values().map(|held| held.outstanding_bytes).fold(0, u64::saturating_add);
        self.rise(sum, time);
        self.look_at_limits();
        self.evaluate();
        self.publish();
    }

    /// Lets no target in while the agent is at its limits, and counts those that were not.
    fn bound_targets(&mut self) {
        let limits = &self.config.limits;
        let is_full = self.own.map_bytes > limits.map_memory.0 || self.own.rss_bytes > limits.rss.0;
        self.tracer.bound_targets(if is_full { 0 } else { most_targets(&self.config) });
        let (refused, missed) = (self.tracer.refused(), self.tracer.missed());
        self.shared.counts.add_many(Work::TargetsRefused, refused.saturating_sub(self.refused));
        self.shared.counts.add_many(Work::TargetsMissed, missed.saturating_sub(self.missed));
        (self.refused, self.missed) = (refused, missed);
    }

    /// A snapshot with all call stacks, with processes that ended since the last file.
    fn whole(&mut self) -> Arc<Snapshot> {
        self.tracer.select(selection(&self.config, true));
        let mut whole = self.tracer.snapshot(false);
        whole.watched = self.watch.as_ref().map(Watch::view);
        self.tracer.select(selection(&self.config, false));
        let mut shown = whole.clone();
        shown.cut(Order::Bytes, selection(&self.config, false).top);
        let earlier: Vec<TargetView> =
            self.unwritten.iter().map(|target| TargetView::clone(target)).collect();
        self.take(Arc::new(shown));
        whole.targets.splice(0..0, earlier);
        Arc::new(whole)
    }

    pub(super) fn save(&mut self, reason: Reason, reply: Reply) {
        let whole = self.whole();
        self.unwritten.clear();
        self.writer.write(whole, reason, reply);
    }

    pub(super) fn answer_whole(&mut self, reply: oneshot::Sender<Arc<Snapshot>>) {
        let _ = reply.send(self.whole());
    }

    /// Takes a new snapshot over: histories, ended processes, limits, alerts; then everybody may see it.
    fn take(&mut self, snapshot: Arc<Snapshot>) {
        self.number += 1;
        self.shared.counts.add(Work::Summaries);
        self.record(&snapshot);
        let gone: Vec<TargetView> =
            snapshot.targets.iter().filter(|target| !is_live(target)).cloned().collect();
        for target in gone {
            self.schedule.ended(&target);
            self.shared.counts.add_many(Work::TargetsEnded, u64::from(target.exited.is_some()));
            let target = Arc::new(target);
            self.ended.push_back(Arc::clone(&target));
            if self.ended.len() > MAX_ENDED_SHOWN {
                self.ended.pop_front();
            }
            if self.shared.store().is_none() {
                continue;
            }
            if self.unwritten.len() < MAX_ENDED_UNWRITTEN {
                self.unwritten.push(target);
            } else {
                self.shared.counts.add(Work::EndedDropped);
            }
        }
        for event in &snapshot.events {
            tracing::info!(pid = event.pid, comm = event.comm, "{}", event.reason);
        }
        self.snapshot = snapshot;
        self.held.clear();
        self.spare();
        self.bound_targets();
        self.look_at_limits();
        self.evaluate();
        self.publish();
    }

    fn record(&mut self, snapshot: &Snapshot) {
        let mut sum = 0_u64;
        self.shared.change_series(|series| {
            for target in snapshot.targets.iter().filter(|target| !target.execed) {
                let totals = &target.totals;
                if is_live(target) {
                    sum = sum.saturating_add(totals.outstanding_bytes);
                }
                let point = SeriesPoint {
                    time: snapshot.time,
                    outstanding_bytes: totals.outstanding_bytes,
                    outstanding_count: totals.outstanding_count,
                    allocated_bytes: totals.allocated_bytes,
                    rss_bytes: target.rss_bytes,
                };
                series.record(key(target), point);
            }
        });
        self.rise(sum, snapshot.time);
    }

    /// Remembers the most that all targets held together.
    fn rise(&mut self, sum: u64, time: WallNs) {
        if sum >= self.peak.0 {
            self.peak = (sum, time);
        }
    }

    /// Keeps the agent within its own limits.
    fn spare(&mut self) {
        self.own = self.meter.read();
        let limits = &self.config.limits;
        self.faults = own::faults(&self.own, limits);
        if self.own.cpu_share > limits.cpu {
            self.stretch = (self.stretch * 2).min(MAX_STRETCH);
        } else if self.own.cpu_share < limits.cpu / 2.0 {
            self.stretch = (self.stretch / 2).max(1);
        }
        if self.own.rss_bytes > limits.rss.0 {
            let live: Vec<TargetKey> =
                self.snapshot.targets.iter().filter(|target| is_live(target)).map(key).collect();
            self.shared.change_series(|series| series.trim(|key| live.contains(&key)));
            self.ended.clear();
        }
        if let Some(error) = self.shared.write_error() {
            self.faults.push(OwnFault { kind: AlertKind::SnapshotFailed, message: error });
        }
        self.faults.extend(own::killed(self.tracer.bans().entries()));
    }

    fn publish(&self) {
        let window_ns = self.config.alerts.growth_window.ns();
        let growth = self.shared.with_series(|series| {
            self.seen
                .keys()
                .filter_map(|key| Some((*key, series.growth_bytes_per_hour(*key, window_ns)?)))
                .collect()
        });
        let view = View {
            number: self.number,
            started: self.started,
            snapshot: Arc::clone(&self.snapshot),
            period_ns: u64::try_from(self.period().as_nanos()).unwrap_or(u64::MAX),
            ended: self.ended.iter().cloned().collect(),
            limits: self.limits.clone(),
            growth,
            alerts: self.evaluator.active(),
            faults: self.faults.clone(),
            own: self.own,
            work: self.shared.counts.all(),
            peak: self.peak,
        };
        let holds = crate::model::units::bytes(view.outstanding_bytes());
        self.notifier.status(&format!("{} targets hold {holds}", view.live().count()));
        // Receivers live as long as what is shared.
        self.publish.send_replace(Arc::new(view));
    }
}
