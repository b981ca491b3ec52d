//! Rule: the anonymous memory of a process keeps growing. It is the only rule where allocations are not watched, and
//! what `--auto` picks processes by.
//!
//! Memory that grows is no proof of a leak: caches fill, and an allocator keeps what was freed. So the rule asks for a
//! rise in each third of the time and in most of the steps, and it is never as sure as one that sees blocks.
use crate::model::{
    memory::MemoryPoint,
    snapshot::{Confidence, Finding},
    units,
};

/// Fewer points than this say nothing.
const MIN_POINTS: usize = 4;
/// Each of the two rises between thirds is at least this part of the whole rise.
const MIN_SHARE_OF_RISE: f64 = 0.2;
/// Watched for less than this, a rise may be the process's start.
const SURE_NS: u64 = 60_000_000_000;

/// When memory counts as growing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrowthRule {
    /// It grew by at least this much.
    pub min_growth_bytes: u64,
    /// For at least this long.
    pub min_duration_ns: u64,
    /// In at least this share of the steps from one look to the next.
    pub min_rising_share: f64,
}

impl GrowthRule {
    /// For a finding about a target.
    pub const FINDING: GrowthRule =
        GrowthRule { min_growth_bytes: 1 << 20, min_duration_ns: 5_000_000_000, min_rising_share: 0.5 };
    /// For sampling a process of its own accord, which costs the process something.
    pub const AUTO: GrowthRule =
        GrowthRule { min_growth_bytes: 16 << 20, min_duration_ns: 60_000_000_000, min_rising_share: 0.6 };
}

/// How memory grew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// By how much.
    pub bytes: u64,
    /// In what time.
    pub over_ns: u64,
    /// In how many of the steps.
    pub rising_share: f64,
}

impl Growth {
    /// The rate.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / (self.over_ns.max(1) as f64 / 1e9)
    }

    /// What was seen, as a clause with numbers.
    pub fn evidence(&self) -> String {
        format!(
            "anonymous memory grew by {} in {} ({}), in {:.0} % of the looks",
            units::bytes(self.bytes),
            units::duration(self.over_ns),
            units::rate(self.bytes_per_second()).trim_start_matches('+'),
            self.rising_share * 100.0
        )
    }
}

/// How memory grew, if it kept growing.
pub fn growth(points: &[MemoryPoint], rule: &GrowthRule) -> Option<Growth> {
    let (first, last) = (points.first()?, points.last()?);
    let over_ns = last.time_ns.checked_sub(first.time_ns)?;
    let bytes = last.bytes.checked_sub(first.bytes)?;
    if points.len() < MIN_POINTS
        || over_ns < rule.min_duration_ns.max(1)
        || bytes < rule.min_growth_bytes.max(1)
    {
        return None;
    }
    let steps = points.len() - 1;
    let rising =
        points.iter().zip(points.iter().skip(1)).filter(|(before, after)| after.bytes > before.bytes);
    let rising_share = rising.count() as f64 / steps as f64;
    (rising_share >= rule.min_rising_share && rises_throughout(points)).then_some(Growth {
        bytes,
        over_ns,
        rising_share,
    })
}

/// The finding about a target whose memory keeps growing.
pub fn judge(points: &[MemoryPoint], rule: &GrowthRule) -> Option<Finding> {
    let growth = growth(points, rule)?;
    Some(Finding {
        confidence: if growth.over_ns >= SURE_NS { Confidence::Medium } else { Confidence::Low },
        evidence: growth.evidence(),
        growth_bytes_per_second: Some(growth.bytes_per_second()),
    })
}

/// Whether each third lies clearly above the one before it.
fn rises_throughout(points: &[MemoryPoint]) -> bool {
    let mean = |part: &[MemoryPoint]| {
        part.iter().map(|point| point.bytes as f64).sum::<f64>() / part.len().max(1) as f64
    };
    let third = points.len() / 3;
    let Some((head, rest)) = points.split_at_checked(third) else { return false };
    let Some((middle, tail)) = rest.split_at_checked(rest.len() - third) else { return false };
    let (low, mid, high) = (mean(head), mean(middle), mean(tail));
    let least = (high - low) * MIN_SHARE_OF_RISE;
    high > low && mid - low >= least && high - mid >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: GrowthRule =
        GrowthRule { min_growth_bytes: 100, min_duration_ns: 10_000_000_000, min_rising_share: 0.6 };

    fn points(bytes: impl IntoIterator<Item = u64>) -> Vec<MemoryPoint> {
        let seconds = 0u64..;
        seconds
            .zip(bytes)
            .map(|(second, bytes)| MemoryPoint { time_ns: second * 1_000_000_000, bytes })
            .collect()
    }

    #[test]
    fn steady_growth_is_seen_and_its_rate_is_right() {
        let grown = growth(&points((0..21).map(|n| 1000 + 10 * n)), &RULE).unwrap();
        assert_eq!((grown.bytes, grown.over_ns), (200, 20_000_000_000));
        assert!((grown.bytes_per_second() - 10.0).abs() < 1e-9);
        assert!(grown.evidence().contains("in 100 % of the looks"), "{}", grown.evidence());
    }

    #[test]
    fn too_little_too_short_or_too_few_looks_are_no_growth() {
        assert_eq!(growth(&points((0..21).map(|n| 1000 + n)), &RULE), None);
        assert_eq!(growth(&points((0..9).map(|n| 1000 + 100 * n)), &RULE), None);
        assert_eq!(growth(&points([]), &RULE), None);
        assert_eq!(
            growth(
                &[MemoryPoint { time_ns: 0, bytes: 0 }, MemoryPoint { time_ns: u64::MAX, bytes: 999 }],
                &RULE
            ),
            None
        );
    }

    #[test]
    fn a_warm_up_a_leap_a_sawtooth_and_shrinking_are_no_growth() {
        let warm_up = (0..30).map(|n| if n < 10 { 1000 + 50 * n } else { 1500 });
        assert_eq!(growth(&points(warm_up), &RULE), None);
        let leap = (0..30).map(|n| if n < 25 { 1000 } else { 9000 });
        assert_eq!(growth(&points(leap), &RULE), None);
        let sawtooth = (0..31).map(|n| 1000 + 500 * (n % 2));
        assert_eq!(growth(&points(sawtooth), &RULE), None);
        assert_eq!(growth(&points((0..30).map(|n| 9000 - 10 * n)), &RULE), None);
    }

    #[test]
    fn growth_of_little_duration_is_not_sure() {
        let confidence =
            |seconds: u64| judge(&points((0..seconds).map(|n| n * 100)), &RULE).unwrap().confidence;
        assert_eq!((confidence(30), confidence(90)), (Confidence::Low, Confidence::Medium));
    }
}
