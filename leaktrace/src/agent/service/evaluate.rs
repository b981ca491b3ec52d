//! What alerts are evaluated by, and whom their changes are told. Which are active then is `alerts`' business.
use std::collections::BTreeMap;

use super::{
    Service,
    alerts::{Change, Observation},
    schedule::Seen,
};
use crate::{
    agent::clock,
    discover::memory_limit,
    export::api,
    model::service::{MemoryLimit, Severity, Work, is_live, key},
};

impl Service {
    pub(super) fn look_at_limits(&mut self) {
        let live = self.snapshot.targets.iter().filter(|target| is_live(target));
        self.limits = live.filter_map(|target| Some((key(target), memory_limit::of(target.pid)?))).collect();
    }

    pub(super) fn evaluate(&mut self) {
        let window_ns = self.config.alerts.growth_window.ns();
        let mut observed = BTreeMap::new();
        self.seen.clear();
        for target in self.snapshot.targets.iter().filter(|target| is_live(target)) {
            let key = key(target);
            let limit = self.limits.get(&key);
            let growth = self.shared.with_series(|series| series.growth_bytes_per_hour(key, window_ns));
            let left = limit.map(|limit| limit.limit_bytes.saturating_sub(limit.used_bytes) as f64);
            let seconds_to_limit = match (left, growth) {
                (Some(left), Some(growth)) if growth > 0.0 => Some(left / growth * 3600.0),
                _ => None,
            };
            let held = self.held.get(&target.pid).map(|held| held.outstanding_bytes);
            let outstanding_bytes = held.unwrap_or(target.totals.outstanding_bytes);
            let limit_share = limit.map(MemoryLimit::share);
            self.seen.insert(key, Seen { outstanding_bytes, limit_share });
            observed.insert(
                key,
                Observation {
                    comm: target.comm.clone(),
                    outstanding_bytes,
                    growth_bytes_per_hour: growth,
                    limit_share,
                    seconds_to_limit,
                },
            );
        }
        let changes = self.evaluator.evaluate(clock::wall_ns(), &observed, &self.faults, &self.config.alerts);
        for change in changes {
            self.tell(&change);
        }
    }

    fn tell(&self, change: &Change) {
        let (alert, is_active) = match change {
            Change::Fired(alert) => (alert, true),
            Change::Resolved(alert) => (alert, false),
        };
        match (is_active, alert.severity) {
            (true, Severity::Critical) => {
                tracing::error!(kind = alert.kind.name(), "critical: {}", alert.message);
            }
            (true, Severity::Warning) => {
                tracing::warn!(kind = alert.kind.name(), "warning: {}", alert.message);
            }
            (false, _) => tracing::info!(kind = alert.kind.name(), "over: {}", alert.message),
        }
        if is_active {
            self.shared.counts.add(Work::AlertsFired);
        }
        self.webhook.send(api::alert_message(alert, is_active, &self.snapshot.host, clock::wall_ns()));
    }
}
