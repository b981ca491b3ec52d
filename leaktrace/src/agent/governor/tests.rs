//! The state machine, second by second.
use super::*;

const SECOND: u64 = 1_000_000_000;

/// A governor, its clock, and every decision that it took with the second it took it in.
struct Run {
    governor: Governor,
    second: u64,
    decisions: Vec<(u64, Decision)>,
}

impl Run {
    fn new(interval_bytes: u64) -> Run {
        Run::with(GovernorOptions::new(0.05, true), interval_bytes)
    }

    fn with(options: GovernorOptions, interval_bytes: u64) -> Run {
        Run { governor: Governor::new(options, interval_bytes), second: 0, decisions: Vec::new() }
    }

    /// So many seconds of a target whose traps cost `traps`, and its records `records` when it is sampled every
    /// 512 KiB: half of that when samples are twice as far apart. A pause costs nothing.
    fn seconds(&mut self, seconds: u64, traps: f64, records: f64) -> &mut Run {
        for _ in 0..seconds {
            let is_paused = self.governor.paused_until_ns().is_some();
            let interval = self.governor.interval_bytes().max(4096) as f64;
            let records = records * (512.0 * 1024.0 / interval);
            let reading = Reading {
                time_ns: self.second * SECOND,
                traps_share: if is_paused { 0.0 } else { traps },
                records_share: if is_paused { 0.0 } else { records },
            };
            if let Some(decision) = self.governor.step(reading) {
                self.decisions.push((self.second, decision));
            }
            self.second += 1;
        }
        self
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.decisions.iter().map(|(_, decision)| decision.kind).collect()
    }
}

#[test]
fn within_the_budget_nothing_is_done() {
    let mut run = Run::new(512 << 10);
    run.seconds(1000, 0.03, 0.01);
    assert_eq!(run.kinds(), []);
    assert_eq!(run.governor.state(), GovernorState::Within);
    assert!((run.governor.estimated_share() - 0.04).abs() < 1e-9);
}

#[test]
fn a_short_burst_is_no_reason() {
    let mut run = Run::new(512 << 10);
    for _ in 0..20 {
        run.seconds(2, 0.08, 0.0).seconds(20, 0.01, 0.0);
    }
    assert_eq!(run.kinds(), []);
}

#[test]
fn dear_records_are_widened_to_fit_and_stay_so() {
    let mut run = Run::new(512 << 10);
    run.seconds(600, 0.02, 0.1);
    assert_eq!(run.kinds(), [EventKind::Widened], "{:?}", run.decisions);
    assert!(run.decisions[0].0 >= 3, "it is patient");
    assert!(run.governor.estimated_share() < 0.05);
    assert_eq!(run.governor.state(), GovernorState::Widened);
    assert!(run.decisions[0].1.reason.contains("12.0 % of a core, the budget is 5.0 %: a sample every"));
}

#[test]
fn dear_traps_lead_to_a_pause_at_once() {
    let mut run = Run::new(512 << 10);
    run.seconds(10, 0.3, 0.001);
    assert_eq!(run.kinds(), [EventKind::Paused]);
    assert_eq!(run.governor.state(), GovernorState::Paused);
    assert!(run.governor.estimated_share() == 0.0);
}

#[test]
fn what_widening_cannot_help_is_paused_after_it() {
    let mut run = Run::new(4096);
    run.seconds(20, 0.3, 0.01);
    assert_eq!(run.kinds(), [EventKind::Widened, EventKind::Paused]);
}

#[test]
fn exact_mode_is_paused_and_never_widened() {
    let mut run = Run::new(0);
    run.seconds(10, 0.01, 0.1);
    assert_eq!(run.kinds(), [EventKind::Paused]);
    assert_eq!(run.governor.interval_bytes(), 0);
    assert!(run.decisions[0].1.reason.contains("every call is recorded: allocations are not watched"));
    run.seconds(500, 0.001, 0.0);
    assert_eq!(run.kinds(), [EventKind::Paused, EventKind::Resumed], "{:?}", run.decisions);
}

#[test]
fn pauses_double_up_to_a_bound_and_the_share_of_watched_time_shrinks() {
    let mut run = Run::new(512 << 10);
    run.seconds(6 * 3600, 0.5, 0.0);
    let pauses: Vec<u64> = run
        .decisions
        .windows(2)
        .filter(|pair| pair[0].1.kind == EventKind::Paused)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect();
    assert_eq!(pauses[..7], [30, 60, 120, 240, 480, 960, 1800]);
    assert!(pauses[7..].iter().all(|pause| *pause == 1800), "{pauses:?}");
    let resumed = run.decisions.windows(2).filter(|pair| pair[0].1.kind == EventKind::Resumed);
    let watched: u64 = resumed.map(|pair| pair[1].0 - pair[0].0).sum();
    assert!(watched < 6 * 3600 / 100, "watched for {watched} s");
}

#[test]
fn a_load_that_went_away_is_watched_for_good_and_its_next_pause_is_short_again() {
    let mut run = Run::new(512 << 10);
    run.seconds(300, 0.5, 0.0).seconds(3000, 0.01, 0.0);
    assert_eq!(run.kinds().last(), Some(&EventKind::Resumed));
    assert_eq!(run.governor.state(), GovernorState::Within);
    let before = run.decisions.len();
    run.seconds(60, 0.5, 0.0);
    let after: Vec<u64> = run.decisions[before..].iter().map(|(second, _)| *second).collect();
    assert_eq!(after.len(), 3, "{:?}", &run.decisions[before..]);
    assert_eq!(after[1] - after[0], 30);
}

#[test]
fn a_load_around_the_budget_does_not_make_it_flap() {
    let mut run = Run::new(512 << 10);
    for second in 0..3600u64 {
        let records = if second % 20 < 10 { 0.06 } else { 0.02 };
        run.seconds(1, 0.015, records);
    }
    assert!(run.decisions.len() <= 3, "{:?}", run.decisions);
}

#[test]
fn calm_narrows_step_by_step_to_what_was_asked_for_and_no_further() {
    let mut run = Run::new(512 << 10);
    run.seconds(10, 0.01, 0.2);
    let wide = run.governor.interval_bytes();
    assert!(wide > 512 << 10);
    run.seconds(3600, 0.001, 0.001);
    assert_eq!(run.governor.interval_bytes(), 512 << 10);
    assert_eq!(run.governor.state(), GovernorState::Within);
    let narrowed: Vec<u64> = run
        .decisions
        .iter()
        .filter(|(_, d)| d.kind == EventKind::Narrowed)
        .map(|(second, _)| *second)
        .collect();
    assert_eq!(narrowed.len() as u32, (wide >> 19).trailing_zeros());
    assert!(narrowed.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{narrowed:?}");
}

#[test]
fn a_governor_that_may_only_warn_says_so_once_a_minute() {
    let mut run = Run::with(GovernorOptions::new(0.05, false), 0);
    run.seconds(180, 0.5, 0.5);
    assert_eq!(run.kinds(), [EventKind::OverBudget; 3]);
    assert!(run.decisions.iter().all(|(_, decision)| decision.action == Action::Warn));
    assert_eq!(run.governor.state(), GovernorState::Over);
}

#[test]
fn the_interval_never_exceeds_its_bound() {
    let mut run = Run::new(512 << 10);
    run.seconds(60, 0.0, 1e6);
    assert!(run.governor.interval_bytes() <= 64 << 20);
    assert_eq!(run.kinds().last(), Some(&EventKind::Paused));
}
