//! Which alerts are active: observations and thresholds → changes. Pure; delivering them is for the log, the
//! webhook and the API.
use std::collections::BTreeMap;

use super::config::{Alerts as Settings, Thresholds};
use crate::model::{
    series::TargetKey,
    service::{Alert, AlertKind as Kind, OwnFault, Severity},
    snapshot::WallNs,
    units::{bytes, duration},
};

/// What is known of one target when alerts are evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Its name. Hostile.
    pub comm: String,
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Where it was watched for long enough.
    pub growth_bytes_per_hour: Option<f64>,
    /// Where it has a limit.
    pub limit_share: Option<f64>,
    /// Where it has a limit and grows.
    pub seconds_to_limit: Option<f64>,
}

/// What happened to an alert.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is new, or its severity changed.
    Fired(Alert),
    /// It is over.
    Resolved(Alert),
}

/// The active alerts.
#[derive(Clone, Debug, Default)]
pub struct Evaluator {
    active: BTreeMap<(Option<TargetKey>, Kind), Alert>,
}

/// A quantity, its thresholds, and in which direction it is bad.
struct Rule {
    kind: Kind,
    value: Option<f64>,
    warning: Option<f64>,
    critical: Option<f64>,
    /// Small values are bad.
    inverse: bool,
}

impl Rule {
    fn reaches(&self, threshold: Option<f64>, slack: f64) -> Option<f64> {
        let (value, threshold) = (self.value?, threshold?);
        let reached = if self.inverse {
            value <= threshold * (1.0 + slack)
        } else {
            value >= threshold * (1.0 - slack)
        };
        reached.then_some(threshold)
    }

    /// Severity and threshold, given the severity so far: what is active stays until its value is clearly better.
    fn judge(&self, before: Option<Severity>, hysteresis: f64) -> Option<(Severity, f64)> {
        let slack = |severity| if before >= Some(severity) { hysteresis } else { 0.0 };
        let critical = self.reaches(self.critical, slack(Severity::Critical));
        let warning = self.reaches(self.warning, slack(Severity::Warning));
        critical
            .map(|threshold| (Severity::Critical, threshold))
            .or_else(|| warning.map(|threshold| (Severity::Warning, threshold)))
    }

    fn message(&self, comm: &str, pid: u32, threshold: f64) -> String {
        let value = self.value.unwrap_or_default();
        let comm = crate::render::escape::escape(comm);
        let size = |value: f64| bytes(value.max(0.0) as u64);
        let time = |seconds: f64| duration((seconds.max(0.0) * 1e9) as u64);
        match self.kind {
            Kind::Outstanding => {
                format!("{comm} (pid {pid}) holds {}, threshold {}", size(value), size(threshold))
            }
            Kind::GrowthPerHour => {
                format!("{comm} (pid {pid}) grows by {} an hour, threshold {}", size(value), size(threshold))
            }
            Kind::MemoryLimit => format!(
                "{comm} (pid {pid}) has used {:.0} % of its memory limit, threshold {:.0} %",
                value * 100.0,
                threshold * 100.0
            ),
            Kind::TimeToLimit => format!(
                "{comm} (pid {pid}) reaches its memory limit in {} at the present growth, threshold {}",
                time(value),
                time(threshold)
            ),
            Kind::SnapshotFailed | Kind::AgentLimit | Kind::KilledByTracing => String::new(),
        }
    }
}

fn rules(seen: &Observation, settings: &Settings) -> [Rule; 4] {
    let pair = |thresholds: &Thresholds<super::values::Size>| {
        let number = |size: Option<super::values::Size>| size.map(|size| size.0 as f64);
        (number(thresholds.warning), number(thresholds.critical))
    };
    let outstanding = pair(&settings.outstanding);
    let growth = pair(&settings.growth_per_hour);
    let seconds = |span: Option<super::values::Span>| span.map(|span| span.0.as_secs_f64());
    let rule = |kind, value, (warning, critical), inverse| Rule { kind, value, warning, critical, inverse };
    let limit = (settings.memory_limit.warning, settings.memory_limit.critical);
    let time = (seconds(settings.time_to_limit.warning), seconds(settings.time_to_limit.critical));
    [
        rule(Kind::Outstanding, Some(seen.outstanding_bytes as f64), outstanding, false),
        rule(Kind::GrowthPerHour, seen.growth_bytes_per_hour, growth, false),
        rule(Kind::MemoryLimit, seen.limit_share, limit, false),
        rule(Kind::TimeToLimit, seen.seconds_to_limit, time, true),
    ]
}

impl Evaluator {
    /// Compares all targets with the thresholds; targets that are missing are gone, and their alerts over.
    pub fn evaluate(
        &mut self,
        now: WallNs,
        targets: &BTreeMap<TargetKey, Observation>,
        own: &[OwnFault],
        settings: &Settings,
    ) -> Vec<Change> {
        let mut still = BTreeMap::new();
        let mut changes = Vec::new();
        for (key, seen) in targets {
            for rule in rules(seen, settings) {
                let before = self.active.remove(&(Some(*key), rule.kind));
                let judged = rule.judge(before.as_ref().map(|alert| alert.severity), settings.hysteresis);
                let now_active = judged.map(|(severity, threshold)| Alert {
                    kind: rule.kind,
                    severity,
                    target: Some(*key),
                    comm: seen.comm.clone(),
                    value: rule.value.unwrap_or_default(),
                    threshold,
                    since: before.as_ref().map_or(now, |alert| alert.since),
                    message: rule.message(&seen.comm, key.pid, threshold),
                });
                step(before, now_active, &mut still, &mut changes);
            }
        }
        for fault in own {
            let before = self.active.remove(&(None, fault.kind));
            let alert = Alert {
                kind: fault.kind,
                severity: match fault.kind {
                    Kind::KilledByTracing => Severity::Critical,
                    _ => Severity::Warning,
                },
                target: None,
                comm: String::new(),
                value: 1.0,
                threshold: 1.0,
                since: before.as_ref().map_or(now, |alert| alert.since),
                message: fault.message.clone(),
            };
            step(before, Some(alert), &mut still, &mut changes);
        }
        changes.extend(std::mem::take(&mut self.active).into_values().map(Change::Resolved));
        self.active = still;
        changes
    }

    /// What is active now, the worst first.
    pub fn active(&self) -> Vec<Alert> {
        let mut alerts: Vec<Alert> = self.active.values().cloned().collect();
        alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
        alerts
    }
}

fn step(
    before: Option<Alert>,
    now: Option<Alert>,
    still: &mut BTreeMap<(Option<TargetKey>, Kind), Alert>,
    changes: &mut Vec<Change>,
) {
    match (before, now) {
        (Some(before), None) => changes.push(Change::Resolved(before)),
        (before, Some(now)) => {
            if before.is_none_or(|before| before.severity != now.severity) {
                changes.push(Change::Fired(now.clone()));
            }
            still.insert((now.target, now.kind), now);
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::service::values::{Size, Span};

    const KEY: TargetKey = TargetKey { pid: 7, start_time: 1 };

    fn settings() -> Settings {
        Settings {
            outstanding: Thresholds { warning: Some(Size(1000)), critical: Some(Size(2000)) },
            time_to_limit: Thresholds {
                warning: Some(Span::seconds(100)),
                critical: Some(Span::seconds(10)),
            },
            ..Settings::default()
        }
    }

    fn seen(outstanding_bytes: u64) -> BTreeMap<TargetKey, Observation> {
        BTreeMap::from([(
            KEY,
            Observation { comm: "leaky".to_owned(), outstanding_bytes, ..Observation::default() },
        )])
    }

    /// Severity after each value; a change is marked.
    fn course(values: &[u64]) -> Vec<(Option<Severity>, usize)> {
        let mut evaluator = Evaluator::default();
        let mut time = 0;
        values
            .iter()
            .map(|value| {
                time += 1;
                let changes = evaluator.evaluate(time, &seen(*value), &[], &settings());
                (evaluator.active().first().map(|alert| alert.severity), changes.len())
            })
            .collect()
    }

    #[test]
    fn an_alert_fires_once_rises_and_ends_only_clearly_below_its_threshold() {
        use Severity::{Critical, Warning};
        assert_eq!(
            course(&[999, 1000, 1001, 950, 2000, 1900, 1801, 1799, 899]),
            [
                (None, 0),
                (Some(Warning), 1),
                (Some(Warning), 0),
                (Some(Warning), 0),
                (Some(Critical), 1),
                (Some(Critical), 0),
                (Some(Critical), 0),
                (Some(Warning), 1),
                (None, 1),
            ]
        );
    }

    #[test]
    fn a_share_of_the_limit_fires_at_70_and_90_per_cent_by_default() {
        let mut evaluator = Evaluator::default();
        for (share, severity) in
            [(0.69, None), (0.70, Some(Severity::Warning)), (0.90, Some(Severity::Critical))]
        {
            let seen = Observation { limit_share: Some(share), ..Observation::default() };
            evaluator.evaluate(0, &BTreeMap::from([(KEY, seen)]), &[], &Settings::default());
            assert_eq!(evaluator.active().first().map(|alert| alert.severity), severity, "{share}");
        }
    }

    #[test]
    fn less_time_to_the_limit_is_worse() {
        let mut evaluator = Evaluator::default();
        for (left, severity) in [
            (Some(500.0), None),
            (Some(99.0), Some(Severity::Warning)),
            (Some(105.0), Some(Severity::Warning)),
            (Some(9.0), Some(Severity::Critical)),
            (None, None),
        ] {
            let seen = Observation { seconds_to_limit: left, ..Observation::default() };
            evaluator.evaluate(0, &BTreeMap::from([(KEY, seen)]), &[], &settings());
            assert_eq!(evaluator.active().first().map(|alert| alert.severity), severity, "{left:?}");
        }
    }

    #[test]
    fn the_alerts_of_a_target_that_is_gone_are_over() {
        let mut evaluator = Evaluator::default();
        evaluator.evaluate(1, &seen(5000), &[], &settings());
        let changes = evaluator.evaluate(2, &BTreeMap::new(), &[], &settings());
        assert!(matches!(changes.as_slice(), [Change::Resolved(alert)] if alert.since == 1), "{changes:?}");
    }

    #[test]
    fn faults_of_the_agent_are_alerts_and_names_are_escaped() {
        let mut evaluator = Evaluator::default();
        let fault = OwnFault { kind: Kind::SnapshotFailed, message: "disk full".to_owned() };
        let mut seen = seen(5000);
        seen.values_mut().for_each(|seen| seen.comm = "a\u{1b}[31m".to_owned());
        assert_eq!(evaluator.evaluate(1, &seen, std::slice::from_ref(&fault), &settings()).len(), 2);
        assert_eq!(evaluator.evaluate(2, &seen, &[fault], &settings()).len(), 0);
        assert!(evaluator.active().iter().all(|alert| !alert.message.contains('\u{1b}')));
        assert_eq!(evaluator.evaluate(3, &seen, &[], &settings()).len(), 1);
    }
}
