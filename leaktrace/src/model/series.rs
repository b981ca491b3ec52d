//! What each target held over time, for history, growth and trends: the last points as they were, older ones
//! thinned, in bounded space. Reading clocks is left to who records.
use std::collections::{HashMap, VecDeque};

use super::snapshot::WallNs;

/// Newest points kept of each target, as they were recorded.
const RECENT: usize = 360;
/// Older points kept of each target, spread evenly over the time before.
const OLDER: usize = 256;
/// Targets at the most; the one that ended first leaves.
const TARGETS: usize = 1000;

/// One process, also after its pid is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetKey {
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub start_time: WallNs,
}

/// A target at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesPoint {
    /// When.
    pub time: WallNs,
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Blocks not freed.
    pub outstanding_count: u64,
    /// Bytes allocated since tracing began.
    pub allocated_bytes: u64,
    /// Resident set size.
    pub rss_bytes: Option<u64>,
}

/// The points of one target.
#[derive(Clone, Debug, Default)]
struct TargetSeries {
    older: Vec<SeriesPoint>,
    recent: VecDeque<SeriesPoint>,
    peak: Option<SeriesPoint>,
}

/// The points of all targets.
#[derive(Clone, Debug, Default)]
pub struct Series {
    targets: HashMap<TargetKey, TargetSeries>,
}

impl Series {
    /// Adds a point; times must not go back.
    pub fn record(&mut self, key: TargetKey, point: SeriesPoint) {
        if !self.targets.contains_key(&key) && self.targets.len() >= TARGETS {
            self.forget_stalest();
        }
        self.targets.entry(key).or_default().push(point);
    }

    /// The points of a target within a time, oldest first.
    pub fn points(&self, key: TargetKey, from: WallNs, to: WallNs) -> Vec<SeriesPoint> {
        let Some(series) = self.targets.get(&key) else { return Vec::new() };
        series.all().filter(|point| (from..=to).contains(&point.time)).copied().collect()
    }

    /// The point at which a target held most.
    pub fn peak(&self, key: TargetKey) -> Option<SeriesPoint> {
        self.targets.get(&key)?.peak
    }

    /// Every target that has points.
    pub fn keys(&self) -> Vec<TargetKey> {
        let mut keys: Vec<TargetKey> = self.targets.keys().copied().collect();
        keys.sort();
        keys
    }

    /// By how much the outstanding bytes change in an hour, by least squares over the last `window_ns`; `None`
    /// before half of that time was watched or with fewer than three points.
    pub fn growth_bytes_per_hour(&self, key: TargetKey, window_ns: u64) -> Option<f64> {
        let series = self.targets.get(&key)?;
        let last = series.recent.back()?.time;
        let window = i64::try_from(window_ns).unwrap_or(i64::MAX);
        let points: Vec<&SeriesPoint> =
            series.all().filter(|point| last.saturating_sub(point.time) <= window).collect();
        let first = points.first()?.time;
        if points.len() < 3 || last.saturating_sub(first) < window / 2 {
            return None;
        }
        slope(&points).map(|per_second| per_second * 3600.0)
    }

    /// Forgets all targets but these.
    pub fn trim(&mut self, keep: impl Fn(TargetKey) -> bool) {
        self.targets.retain(|key, _| keep(*key));
    }

    fn forget_stalest(&mut self) {
        let last = |series: &TargetSeries| series.recent.back().map(|point| point.time);
        if let Some(key) = self.targets.iter().min_by_key(|(_, series)| last(series)).map(|(key, _)| *key) {
            self.targets.remove(&key);
        }
    }
}

impl TargetSeries {
    fn push(&mut self, point: SeriesPoint) {
        if self.peak.is_none_or(|peak| point.outstanding_bytes >= peak.outstanding_bytes) {
            self.peak = Some(point);
        }
        self.recent.push_back(point);
        if self.recent.len() > RECENT
            && let Some(oldest) = self.recent.pop_front()
        {
            self.older.push(oldest);
            if self.older.len() > OLDER {
                thin(&mut self.older);
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &SeriesPoint> {
        self.older.iter().chain(&self.recent)
    }
}

/// Removes the inner point between whose neighbours the least time lies.
fn thin(points: &mut Vec<SeriesPoint>) {
    let gaps = points
        .iter()
        .zip(points.iter().skip(2))
        .map(|(before, after)| after.time.saturating_sub(before.time));
    if let Some((index, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
        points.remove(index + 1);
    }
}

/// Bytes per second.
fn slope(points: &[&SeriesPoint]) -> Option<f64> {
    let origin = points.first()?.time;
    let at = |point: &SeriesPoint| point.time.saturating_sub(origin) as f64 / 1e9;
    let count = points.len() as f64;
    let mean_time = points.iter().map(|point| at(point)).sum::<f64>() / count;
    let mean_bytes = points.iter().map(|point| point.outstanding_bytes as f64).sum::<f64>() / count;
    let (mut cross, mut square) = (0.0, 0.0);
    for point in points {
        let time = at(point) - mean_time;
        cross += time * (point.outstanding_bytes as f64 - mean_bytes);
        square += time * time;
    }
    (square > 0.0).then(|| cross / square)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn key(pid: u32) -> TargetKey {
        TargetKey { pid, start_time: 1 }
    }

    fn point(seconds: i64, outstanding_bytes: u64) -> SeriesPoint {
        SeriesPoint { time: seconds * SECOND, outstanding_bytes, ..SeriesPoint::default() }
    }

    #[test]
    fn growth_is_per_hour_and_needs_half_the_window() {
        let mut series = Series::default();
        for second in 0..5 {
            series.record(key(1), point(second, 1000 + 10 * second as u64));
        }
        assert_eq!(series.growth_bytes_per_hour(key(1), 10_000_000_000), None);
        series.record(key(1), point(5, 1050));
        let growth = series.growth_bytes_per_hour(key(1), 10_000_000_000).unwrap();
        assert!((growth - 36_000.0).abs() < 1.0, "{growth}");
        assert_eq!(series.growth_bytes_per_hour(key(2), 1), None);
    }

    #[test]
    fn a_long_series_is_bounded_and_keeps_its_ends_and_its_peak() {
        let mut series = Series::default();
        for second in 0..5000 {
            series.record(key(1), point(second, if second == 7 { 9_000_000 } else { second as u64 }));
        }
        let points = series.points(key(1), 0, i64::MAX);
        assert_eq!(points.len(), RECENT + OLDER);
        assert_eq!((points[0].time, points[points.len() - 1].time), (0, 4999 * SECOND));
        assert!(points.is_sorted_by_key(|point| point.time));
        assert_eq!(series.peak(key(1)).unwrap().time, 7 * SECOND);
        assert_eq!(series.points(key(1), 4998 * SECOND, i64::MAX).len(), 2);
    }

    #[test]
    fn the_target_that_was_not_seen_for_longest_makes_room() {
        let mut series = Series::default();
        for pid in 0..=TARGETS as u32 {
            series.record(key(pid), point(i64::from(pid), 1));
        }
        assert_eq!(series.keys().len(), TARGETS);
        assert!(series.points(key(0), 0, i64::MAX).is_empty());
    }
}
