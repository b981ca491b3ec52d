//! What tracing costs a target, from one look to the next: probe hits at their measured price, and the work for what
//! was recorded at typical prices. Pure; the tracer brings the numbers.
use leaktrace_common::{
    counter::Counter,
    hook::{COST_UNIT_NS, Hits},
};

use super::governor::Reading;
use crate::drain::maps::Tally;

/// Typical of Linux 6.18 on a virtual machine: entering a thread, inserting a block, adding to its site.
const RECORD_NS: u64 = 700;
/// Taking a block out and accounting for it.
const END_NS: u64 = 350;
/// Walking a frame.
const FRAME_NS: u64 = 40;
/// The kernel tells processor time in ticks: it may lag behind by one.
const TICK_NS: u64 = 10_000_000;

/// The counts of a target at one time.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// Probe hits.
    pub hits: Hits,
    /// Kernel counters.
    pub tally: Tally,
    /// Processor time that it has used, where that is known.
    pub cpu_ns: Option<u64>,
}

/// Turns counts into shares of one core.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    last: Option<Counts>,
    cpu_share: Option<f64>,
}

impl Meter {
    /// Takes the next counts in; the cost since the ones before, if there were any. A return that is seen costs
    /// `return_ns`.
    pub fn read(&mut self, counts: Counts, return_ns: u64) -> Option<Reading> {
        let before = self.last.replace(counts)?;
        let wall_ns = counts.time_ns.checked_sub(before.time_ns).filter(|ns| *ns > 0)? as f64;
        let since = |counter| counts.tally.of(counter).saturating_sub(before.tally.of(counter));
        let traps_ns = counts.hits.cost.wrapping_sub(before.hits.cost).saturating_mul(COST_UNIT_NS) as f64;
        let records_ns = since(Counter::AllocationHits)
            .saturating_mul(RECORD_NS + return_ns)
            .saturating_add(since(Counter::FreeHits).saturating_mul(END_NS))
            .saturating_add(since(Counter::Frames).saturating_mul(FRAME_NS)) as f64;
        let used_ns = counts.cpu_ns.zip(before.cpu_ns).map(|(now, then)| now.saturating_sub(then));
        self.cpu_share = used_ns.map(|used| used as f64 / wall_ns);
        // It runs in the target's own time, so it cannot cost more than the target used.
        let bound = used_ns.map_or(f64::MAX, |used| used.saturating_add(TICK_NS) as f64);
        let fit = (bound / (traps_ns + records_ns).max(1.0)).min(1.0);
        Some(Reading {
            time_ns: counts.time_ns,
            traps_share: traps_ns * fit / wall_ns,
            records_share: records_ns * fit / wall_ns,
        })
    }

    /// Starts anew: what lies before says nothing about what comes.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Processor time that the target used lately, as a share of one core.
    pub fn cpu_share(&self) -> Option<f64> {
        self.cpu_share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(seconds: u64, hits: u64, recorded: u64, cpu_ns: Option<u64>) -> Counts {
        let mut tally = Tally::ZERO;
        tally.add(Counter::AllocationHits, recorded);
        let hits = Hits { count: hits, cost: hits * 5, random: 0 };
        Counts { time_ns: seconds * 1_000_000_000, hits, tally, cpu_ns }
    }

    #[test]
    fn hits_and_records_have_their_price() {
        let mut meter = Meter::default();
        assert_eq!(meter.read(counts(10, 500, 500, None), 300), None, "a first look tells nothing");
        let reading = meter.read(counts(12, 100_500, 1500, None), 300).unwrap();
        assert!((reading.traps_share - 100_000.0 * 5.0 * 128.0 / 2e9).abs() < 1e-9);
        assert!((reading.records_share - 1000.0 * 1000.0 / 2e9).abs() < 1e-9);
        meter.forget();
        assert_eq!(meter.read(counts(20, 0, 0, None), 300), None);
    }

    #[test]
    fn it_cannot_cost_more_than_the_target_used() {
        let mut meter = Meter::default();
        meter.read(counts(0, 0, 0, Some(0)), 300);
        let reading = meter.read(counts(1, 10_000_000, 0, Some(190_000_000)), 300).unwrap();
        assert!((reading.traps_share - 0.2).abs() < 1e-9, "{reading:?}");
        assert_eq!(meter.cpu_share(), Some(0.19));
    }

    #[test]
    fn no_time_no_reading() {
        let mut meter = Meter::default();
        meter.read(counts(1, 0, 0, Some(0)), 300);
        assert_eq!(meter.read(counts(1, 5, 5, Some(5)), 300), None);
    }
}
