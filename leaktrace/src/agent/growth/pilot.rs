//! Decides which of the processes that keep growing are sampled, and for how long. Pure.
use std::{collections::HashMap, time::Duration};

use crate::{
    analyse::memory_growth::{Growth, GrowthRule},
    model::units,
};

/// A process that was sampled is left alone for this many times as long.
const COOL_DOWN: u64 = 3;

/// Whom `--auto` samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoOptions {
    /// When a process counts as growing.
    pub rule: GrowthRule,
    /// How long it is sampled.
    pub duration: Duration,
    /// How many are sampled at once; 0 watches only.
    pub targets: usize,
}

impl Default for AutoOptions {
    fn default() -> AutoOptions {
        AutoOptions { rule: GrowthRule::AUTO, duration: Duration::from_secs(5 * 60), targets: 3 }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sample it.
    Start {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// Leave it alone.
    Stop {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
    },
}

/// The state.
#[derive(Clone, Debug)]
pub struct Pilot {
    options: AutoOptions,
    /// When sampling ends.
    sampled: HashMap<u32, u64>,
    /// Until when a process is left alone.
    resting: HashMap<u32, u64>,
}

impl Pilot {
    /// Samples nothing yet.
    pub fn new(options: AutoOptions) -> Pilot {
        Pilot { options, sampled: HashMap::new(), resting: HashMap::new() }
    }

    /// Decides: `growing` are the processes that keep growing, the fastest first; `lives` says which processes are
    /// still there. Stops come first.
    pub fn step(&mut self, now_ns: u64, growing: &[(u32, Growth)], lives: impl Fn(u32) -> bool) -> Vec<Step> {
        self.sampled.retain(|pid, _| lives(*pid));
        self.resting.retain(|pid, until_ns| lives(*pid) && *until_ns > now_ns);
        let mut steps = Vec::new();
        let mut over: Vec<u32> =
            self.sampled.iter().filter(|(_, end_ns)| **end_ns <= now_ns).map(|(pid, _)| *pid).collect();
        over.sort_unstable();
        for pid in over {
            self.sampled.remove(&pid);
            self.rest(pid, now_ns);
            let time = units::duration(self.duration_ns());
            let rest = units::duration(self.duration_ns().saturating_mul(COOL_DOWN));
            steps.push(Step::Stop { pid, reason: format!("sampled for {time}; left alone for {rest}") });
        }
        for (pid, growth) in growing {
            let is_known = self.sampled.contains_key(pid) || self.resting.contains_key(pid);
            if is_known || self.sampled.len() >= self.options.targets {
                continue;
            }
            self.sampled.insert(*pid, now_ns.saturating_add(self.duration_ns()));
            let time = units::duration(self.duration_ns());
            steps.push(Step::Start {
                pid: *pid,
                reason: format!("{}; sampled for {time}", growth.evidence()),
            });
        }
        steps
    }

    /// It could not be sampled: it is left alone for a while.
    pub fn failed(&mut self, pid: u32, now_ns: u64) {
        self.sampled.remove(&pid);
        self.rest(pid, now_ns);
    }

    /// The processes that are sampled now.
    pub fn pids(&self) -> Vec<u32> {
        self.sampled.keys().copied().collect()
    }

    /// How many are sampled now.
    pub fn sampled(&self) -> usize {
        self.sampled.len()
    }

    fn rest(&mut self, pid: u32, now_ns: u64) {
        let until_ns = now_ns.saturating_add(self.duration_ns().saturating_mul(COOL_DOWN));
        self.resting.insert(pid, until_ns);
    }

    fn duration_ns(&self) -> u64 {
        u64::try_from(self.options.duration.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn pilot(targets: usize) -> Pilot {
        Pilot::new(AutoOptions { duration: Duration::from_secs(10), targets, ..AutoOptions::default() })
    }

    fn growing(pids: &[u32]) -> Vec<(u32, Growth)> {
        let growth = Growth { bytes: 20 << 20, over_ns: 60 * SECOND, rising_share: 1.0 };
        pids.iter().map(|pid| (*pid, growth)).collect()
    }

    fn started(steps: &[Step]) -> Vec<u32> {
        steps
            .iter()
            .filter_map(|step| if let Step::Start { pid, .. } = step { Some(*pid) } else { None })
            .collect()
    }

    fn stopped(steps: &[Step]) -> Vec<u32> {
        steps
            .iter()
            .filter_map(|step| if let Step::Stop { pid, .. } = step { Some(*pid) } else { None })
            .collect()
    }

    #[test]
    fn the_fastest_are_sampled_up_to_the_bound_and_the_next_when_there_is_room() {
        let mut pilot = pilot(2);
        assert_eq!(started(&pilot.step(0, &growing(&[7, 8, 9]), |_| true)), [7, 8]);
        assert_eq!(pilot.step(5 * SECOND, &growing(&[9, 7]), |_| true), []);
        let steps = pilot.step(10 * SECOND, &growing(&[7, 8, 9]), |_| true);
        assert_eq!((stopped(&steps), started(&steps)), (vec![7, 8], vec![9]));
        assert_eq!(pilot.sampled(), 1);
    }

    #[test]
    fn a_process_rests_after_it_was_sampled() {
        let mut pilot = pilot(1);
        pilot.step(0, &growing(&[7]), |_| true);
        assert_eq!(stopped(&pilot.step(10 * SECOND, &growing(&[7]), |_| true)), [7]);
        assert_eq!(pilot.step(39 * SECOND, &growing(&[7]), |_| true), []);
        assert_eq!(started(&pilot.step(40 * SECOND, &growing(&[7]), |_| true)), [7]);
    }

    #[test]
    fn one_that_ended_or_could_not_be_sampled_makes_room() {
        let mut pilot = pilot(1);
        pilot.step(0, &growing(&[7]), |_| true);
        assert_eq!(started(&pilot.step(SECOND, &growing(&[8]), |pid| pid != 7)), [8]);
        pilot.failed(8, SECOND);
        assert_eq!(started(&pilot.step(2 * SECOND, &growing(&[8, 9]), |_| true)), [9]);
    }

    #[test]
    fn with_no_targets_nothing_is_sampled() {
        assert_eq!(pilot(0).step(0, &growing(&[7]), |_| true), []);
    }

    #[test]
    fn each_step_says_why() {
        let mut pilot = pilot(1);
        let steps = pilot.step(0, &growing(&[7]), |_| true);
        let Some(Step::Start { reason, .. }) = steps.first() else { panic!("{steps:?}") };
        assert!(reason.starts_with("anonymous memory grew by 20.0 MiB in 1m00s"), "{reason}");
        assert!(reason.ends_with("; sampled for 10.0s"), "{reason}");
    }
}
