//! When snapshot files are due: intervals, cron-like times and events. Pure: times come in as values.
use std::{collections::BTreeMap, str::FromStr as _};

use croner::Cron;

use super::{config::Snapshots, store::Reason};
use crate::model::{
    series::TargetKey,
    snapshot::{TargetView, WallNs},
};

/// What of a target may ask for a file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Used share of its memory limit.
    pub limit_share: Option<f64>,
}

/// The schedule.
#[derive(Debug, Default)]
pub struct Schedule {
    settings: Snapshots,
    cron: Vec<Cron>,
    next_interval: Option<WallNs>,
    next_cron: Option<WallNs>,
    last_event: Option<WallNs>,
    /// An event that waits for the gap to pass.
    pending: Option<Reason>,
    /// What targets held in the last file.
    held: BTreeMap<TargetKey, u64>,
    /// Targets that were near their limit already.
    near_limit: Vec<TargetKey>,
}

impl Schedule {
    /// Takes new settings; what was seen so far stays.
    pub fn set(&mut self, settings: Snapshots, now: WallNs) {
        self.cron = settings.cron.iter().filter_map(|text| Cron::from_str(text).ok()).collect();
        self.next_interval = settings.every.map(|every| now.saturating_add(ns(every.ns())));
        self.settings = settings;
        self.next_cron = self.cron_after(now);
    }

    /// A process ended.
    pub fn ended(&mut self, target: &TargetView) {
        if self.settings.on_oom && target.exited.is_some_and(|exited| exited.oom_killed) {
            self.pending = Some(Reason::Oom);
        }
        if self.settings.on_exit && target.totals.outstanding_bytes > 0 {
            self.pending.get_or_insert(Reason::Exit);
        }
    }

    /// A file is wanted as soon as the gap between events allows.
    pub fn ask(&mut self, reason: Reason) {
        self.pending.get_or_insert(reason);
    }

    /// Whether a file is due now, and why.
    pub fn due(&mut self, now: WallNs, targets: &BTreeMap<TargetKey, Seen>) -> Option<Reason> {
        self.events(targets);
        let mut reason = None;
        if self.next_cron.is_some_and(|next| now >= next) {
            self.next_cron = self.cron_after(now);
            reason = Some(Reason::Cron);
        }
        if let (Some(next), Some(every)) = (self.next_interval, self.settings.every)
            && now >= next
        {
            self.next_interval = Some(now.saturating_add(ns(every.ns())));
            reason = Some(Reason::Interval);
        }
        let gap = ns(self.settings.min_gap.ns());
        let rested = self.last_event.is_none_or(|last| now.saturating_sub(last) >= gap);
        if rested && let Some(event) = self.pending.take() {
            self.last_event = Some(now);
            reason = Some(event);
        }
        if reason.is_some() {
            self.held = targets.iter().map(|(key, seen)| (*key, seen.outstanding_bytes)).collect();
        }
        reason
    }

    fn events(&mut self, targets: &BTreeMap<TargetKey, Seen>) {
        self.held.retain(|key, _| targets.contains_key(key));
        self.near_limit.retain(|key| targets.contains_key(key));
        for (key, seen) in targets {
            let before = *self.held.entry(*key).or_insert(seen.outstanding_bytes);
            let grown = seen.outstanding_bytes.saturating_sub(before);
            if self.settings.on_growth.is_some_and(|size| grown >= size.0.max(1)) {
                self.pending.get_or_insert(Reason::Growth);
            }
            let is_near = match (self.settings.on_memory_limit, seen.limit_share) {
                (Some(threshold), Some(share)) => share >= threshold,
                _ => false,
            };
            let was_near = self.near_limit.contains(key);
            if is_near && !was_near {
                self.near_limit.push(*key);
                self.pending.get_or_insert(Reason::Limit);
            } else if !is_near && was_near {
                self.near_limit.retain(|near| near != key);
            }
        }
    }

    fn cron_after(&self, now: WallNs) -> Option<WallNs> {
        let after = chrono::DateTime::from_timestamp_nanos(now);
        self.cron
            .iter()
            .filter_map(|cron| cron.find_next_occurrence(&after, false).ok()?.timestamp_nanos_opt())
            .min()
    }
}

fn ns(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::service::values::{Size, Span},
        model::snapshot::Exited,
    };

    const SECOND: i64 = 1_000_000_000;
    const KEY: TargetKey = TargetKey { pid: 1, start_time: 0 };

    fn schedule(settings: Snapshots) -> Schedule {
        let mut schedule = Schedule::default();
        schedule.set(settings, 0);
        schedule
    }

    fn held(outstanding_bytes: u64, limit_share: Option<f64>) -> BTreeMap<TargetKey, Seen> {
        BTreeMap::from([(KEY, Seen { outstanding_bytes, limit_share })])
    }

    #[test]
    fn nothing_is_due_without_a_schedule() {
        let mut schedule = schedule(Snapshots::default());
        assert_eq!(schedule.due(i64::MAX / 2, &held(u64::MAX, Some(1.0))), None);
    }

    #[test]
    fn an_interval_is_due_again_and_again_and_not_made_up_for() {
        let mut schedule = schedule(Snapshots { every: Some(Span::seconds(10)), ..Snapshots::default() });
        let due = [5, 10, 15, 100, 105, 110]
            .map(|second| schedule.due(second * SECOND, &BTreeMap::new()).is_some());
        assert_eq!(due, [false, true, false, true, false, true]);
    }

    #[test]
    fn cron_times_are_utc() {
        let mut schedule =
            schedule(Snapshots { cron: vec!["30 3 * * *".to_owned()], ..Snapshots::default() });
        let minute = 60 * SECOND;
        assert_eq!(schedule.due(209 * minute, &BTreeMap::new()), None);
        assert_eq!(schedule.due(210 * minute, &BTreeMap::new()), Some(Reason::Cron));
        assert_eq!(schedule.due(211 * minute, &BTreeMap::new()), None);
    }

    #[test]
    fn growth_counts_from_the_last_file_and_events_keep_their_distance() {
        let settings =
            Snapshots { on_growth: Some(Size(100)), min_gap: Span::seconds(10), ..Snapshots::default() };
        let mut schedule = schedule(settings);
        assert_eq!(schedule.due(0, &held(1000, None)), None);
        assert_eq!(schedule.due(SECOND, &held(1100, None)), Some(Reason::Growth));
        assert_eq!(schedule.due(2 * SECOND, &held(1150, None)), None);
        assert_eq!(schedule.due(3 * SECOND, &held(1200, None)), None);
        assert_eq!(schedule.due(11 * SECOND, &held(1200, None)), Some(Reason::Growth));
    }

    #[test]
    fn a_limit_that_comes_near_and_an_exit_ask_once() {
        let settings = Snapshots {
            on_memory_limit: Some(0.8),
            on_exit: true,
            on_oom: true,
            min_gap: Span::seconds(0),
            ..Snapshots::default()
        };
        let mut schedule = schedule(settings);
        assert_eq!(schedule.due(0, &held(1, Some(0.7))), None);
        assert_eq!(schedule.due(1, &held(1, Some(0.8))), Some(Reason::Limit));
        assert_eq!(schedule.due(2, &held(1, Some(0.9))), None);
        schedule.ended(&TargetView::default());
        assert_eq!(schedule.due(3, &BTreeMap::new()), None);
        let mut target = TargetView::default();
        target.totals.outstanding_bytes = 1;
        schedule.ended(&target);
        assert_eq!(schedule.due(4, &BTreeMap::new()), Some(Reason::Exit));
        target.exited = Some(Exited { oom_killed: true, ..Exited::default() });
        schedule.ended(&target);
        assert_eq!(schedule.due(5, &BTreeMap::new()), Some(Reason::Oom));
    }
}
