//! The governor of one target: from what tracing costs it, reading by reading, to decisions. Pure: no clock and no
//! process is looked at here; `meter` reads and `tracer` acts.
//!
//! ```text
//!             over for a while, records cost                  calm for long
//!   within ────────────────────────────────▶ widened ───────────────────────▶ narrower, at last within
//!      │  over for a while, traps cost          │
//!      └────────────────┬──────────────────────┘
//!                       ▼            time is up
//!                     paused ─────────────────────▶ tried again, as wide as before
//! ```
//! It does not flap: a reading is smoothed, a decision needs the cost to stay on one side for some time, narrowing
//! needs room for twice the cost, and each pause that follows soon after another is twice as long, up to a bound.
use std::time::Duration;

use crate::model::{events::EventKind, overhead::GovernorState, units};

/// Time constant of the smoothing.
const SMOOTHING_NS: f64 = 2e9;
/// Below this part of the whole cost there is nothing to be gained by recording less.
const MIN_RECORDS_PART: f64 = 0.2;
/// Samples get at least this much further apart.
const MIN_STEP: u64 = 4;
/// And at most this much at once.
const MAX_STEP: u64 = 1024;
/// Of the budget, what widening aims at for records.
const AIM: f64 = 0.5;
/// Narrowing needs the cost to stay below this part of the budget, with records twice as dear.
const ROOM: f64 = 0.5;
/// Warnings come at most this often.
const WARNING_NS: u64 = 60_000_000_000;

/// What is allowed, and how patient the governor is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GovernorOptions {
    /// What tracing may cost a target, as a share of one core.
    pub budget_share: f64,
    /// Whether it acts; else it warns.
    pub acts: bool,
    /// Over the budget for this long, it acts.
    pub patience: Duration,
    /// Well below the budget for this long, it narrows.
    pub calm: Duration,
    /// The first pause.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Mean bytes between samples at the most.
    pub widest_interval_bytes: u64,
}

impl GovernorOptions {
    /// The budget that `attach` has when nothing is said.
    pub const DEFAULT_BUDGET_SHARE: f64 = 0.05;

    /// With this budget and patience as it is good for a service.
    pub fn new(budget_share: f64, acts: bool) -> GovernorOptions {
        GovernorOptions {
            budget_share,
            acts,
            patience: Duration::from_secs(3),
            calm: Duration::from_secs(30),
            first_pause: Duration::from_secs(30),
            longest_pause: Duration::from_secs(30 * 60),
            widest_interval_bytes: 64 << 20,
        }
    }
}

/// What tracing cost a target since the reading before. Shares are of one core.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Reading {
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// Probes that were hit.
    pub traps_share: f64,
    /// What was done for allocations that were recorded: stacks, blocks, returns.
    pub records_share: f64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take samples this many bytes apart.
    Interval(u64),
    /// Watch no allocations.
    Pause,
    /// Watch them again.
    Resume,
    /// Nothing: it is said, that is all.
    Warn,
}

/// A decision and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is to be done.
    pub action: Action,
    /// What kind of event it is.
    pub kind: EventKind,
    /// What and why, as a sentence with numbers.
    pub reason: String,
}

/// The state machine of one target.
#[derive(Clone, Debug)]
pub struct Governor {
    options: GovernorOptions,
    asked_interval_bytes: u64,
    interval_bytes: u64,
    smoothed: Option<Reading>,
    /// The last cost that was worked out, for people: it outlives a decision.
    shown_share: f64,
    over_since_ns: Option<u64>,
    calm_since_ns: Option<u64>,
    paused_until_ns: Option<u64>,
    next_pause_ns: u64,
    /// Since when allocations are watched.
    watching_since_ns: Option<u64>,
    warned_ns: Option<u64>,
}

impl Governor {
    /// For a target that is sampled every so many bytes; 0 records every call.
    pub fn new(options: GovernorOptions, interval_bytes: u64) -> Governor {
        Governor {
            asked_interval_bytes: interval_bytes,
            interval_bytes,
            smoothed: None,
            shown_share: 0.0,
            over_since_ns: None,
            calm_since_ns: None,
            paused_until_ns: None,
            next_pause_ns: nanoseconds(options.first_pause),
            watching_since_ns: None,
            warned_ns: None,
            options,
        }
    }

    /// What tracing is allowed to cost.
    pub fn budget_share(&self) -> f64 {
        self.options.budget_share
    }

    /// What tracing costs lately: 0 while it is paused.
    pub fn estimated_share(&self) -> f64 {
        if self.paused_until_ns.is_some() { 0.0 } else { self.shown_share }
    }

    /// Mean bytes between samples now.
    pub fn interval_bytes(&self) -> u64 {
        self.interval_bytes
    }

    /// When a pause ends.
    pub fn paused_until_ns(&self) -> Option<u64> {
        self.paused_until_ns
    }

    /// Where it stands.
    pub fn state(&self) -> GovernorState {
        if self.paused_until_ns.is_some() {
            GovernorState::Paused
        } else if self.estimated_share() > self.options.budget_share {
            GovernorState::Over
        } else if self.interval_bytes != self.asked_interval_bytes {
            GovernorState::Widened
        } else {
            GovernorState::Within
        }
    }

    /// Takes the next reading in and decides.
    pub fn step(&mut self, reading: Reading) -> Option<Decision> {
        if let Some(until_ns) = self.paused_until_ns {
            return (reading.time_ns >= until_ns).then(|| self.resume(reading.time_ns));
        }
        let watched_ns =
            reading.time_ns.saturating_sub(*self.watching_since_ns.get_or_insert(reading.time_ns));
        self.smooth(reading);
        let share = self.smoothed.map_or(0.0, |reading| reading.traps_share + reading.records_share);
        self.shown_share = share;
        if share > self.options.budget_share {
            self.calm_since_ns = None;
            let since_ns = *self.over_since_ns.get_or_insert(reading.time_ns);
            let is_due = reading.time_ns.saturating_sub(since_ns) >= nanoseconds(self.options.patience);
            return if is_due { self.too_dear(reading.time_ns, watched_ns) } else { None };
        }
        self.over_since_ns = None;
        self.narrow_when_calm(reading.time_ns)
    }

    fn smooth(&mut self, reading: Reading) {
        self.smoothed = Some(match self.smoothed {
            None => reading,
            Some(before) => {
                let elapsed = reading.time_ns.saturating_sub(before.time_ns) as f64;
                let weight = 1.0 - (-elapsed / SMOOTHING_NS).exp();
                let mix = |old: f64, new: f64| old + (new - old) * weight;
                Reading {
                    time_ns: reading.time_ns,
                    traps_share: mix(before.traps_share, reading.traps_share),
                    records_share: mix(before.records_share, reading.records_share),
                }
            }
        });
    }

    /// The cost stayed above the budget.
    fn too_dear(&mut self, now_ns: u64, watched_ns: u64) -> Option<Decision> {
        let reading = self.smoothed?;
        let cost = self.cost_in_words();
        if !self.options.acts {
            return self.warn(now_ns, cost);
        }
        let share = self.estimated_share();
        // Exact sums and estimates do not mix: where every call is recorded, none is left out, or none is recorded.
        let can_widen = self.records_samples() && self.interval_bytes < self.options.widest_interval_bytes;
        self.forget_readings();
        // What records cost is the less certain part of the estimate, so it is taken away first.
        if can_widen && reading.records_share >= share * MIN_RECORDS_PART {
            Some(self.widen(&reading, cost))
        } else {
            Some(self.pause(now_ns, watched_ns, cost))
        }
    }

    fn warn(&mut self, now_ns: u64, cost: String) -> Option<Decision> {
        if self.warned_ns.is_some_and(|warned| now_ns.saturating_sub(warned) < WARNING_NS) {
            return None;
        }
        self.warned_ns = Some(now_ns);
        let reason =
            format!("{cost}; nothing is done about it, because every call was asked for (--max-overhead)");
        Some(Decision { action: Action::Warn, kind: EventKind::OverBudget, reason })
    }

    fn widen(&mut self, reading: &Reading, cost: String) -> Decision {
        let room =
            (self.options.budget_share * AIM - reading.traps_share).max(self.options.budget_share / 10.0);
        let wanted = (reading.records_share / room).ceil().clamp(MIN_STEP as f64, MAX_STEP as f64) as u64;
        let before = self.interval_bytes;
        let wider = before.saturating_mul(wanted.next_power_of_two());
        self.interval_bytes = wider.min(self.options.widest_interval_bytes);
        let (before, after) = (units::bytes(before), units::bytes(self.interval_bytes));
        Decision {
            action: Action::Interval(self.interval_bytes),
            kind: EventKind::Widened,
            reason: format!("{cost}: a sample every {after} instead of every {before}"),
        }
    }

    fn pause(&mut self, now_ns: u64, watched_ns: u64, cost: String) -> Decision {
        // Having been bearable for longer than the last pause, it is a new case.
        if watched_ns > self.next_pause_ns.saturating_add(nanoseconds(self.options.calm)) {
            self.next_pause_ns = nanoseconds(self.options.first_pause);
        }
        let pause_ns = self.next_pause_ns;
        self.next_pause_ns = pause_ns.saturating_mul(2).min(nanoseconds(self.options.longest_pause));
        self.paused_until_ns = Some(now_ns.saturating_add(pause_ns));
        self.watching_since_ns = None;
        let why =
            if self.records_samples() { "by the mere number of calls" } else { "every call is recorded" };
        let reason = format!(
            "{cost}, {why}: allocations are not watched for {}, memory still is",
            units::duration(pause_ns)
        );
        Decision { action: Action::Pause, kind: EventKind::Paused, reason }
    }

    fn resume(&mut self, now_ns: u64) -> Decision {
        self.paused_until_ns = None;
        self.watching_since_ns = Some(now_ns);
        self.forget_readings();
        self.shown_share = 0.0;
        let reason = "the pause is over: allocations are watched again".to_owned();
        Decision { action: Action::Resume, kind: EventKind::Resumed, reason }
    }

    fn narrow_when_calm(&mut self, now_ns: u64) -> Option<Decision> {
        let reading = self.smoothed?;
        let narrowest = self.asked_interval_bytes;
        let is_wider = self.interval_bytes > narrowest;
        let has_room = reading.traps_share + 2.0 * reading.records_share < self.options.budget_share * ROOM;
        if !is_wider || !has_room {
            self.calm_since_ns = None;
            return None;
        }
        let since_ns = *self.calm_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < nanoseconds(self.options.calm) {
            return None;
        }
        let before = self.interval_bytes;
        self.interval_bytes = (before / 2).max(narrowest);
        self.forget_readings();
        let reason = format!(
            "tracing costs {} of a core, well below the budget of {}: a sample every {} instead of every {}",
            percent(reading.traps_share + reading.records_share),
            percent(self.options.budget_share),
            units::bytes(self.interval_bytes),
            units::bytes(before)
        );
        Some(Decision { action: Action::Interval(self.interval_bytes), kind: EventKind::Narrowed, reason })
    }

    /// After a decision only what comes next counts.
    fn forget_readings(&mut self) {
        self.smoothed = None;
        self.over_since_ns = None;
        self.calm_since_ns = None;
    }

    fn records_samples(&self) -> bool {
        self.asked_interval_bytes > 0
    }

    fn cost_in_words(&self) -> String {
        let (share, budget) = (percent(self.estimated_share()), percent(self.options.budget_share));
        format!("tracing costs {share} of a core, the budget is {budget}")
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
