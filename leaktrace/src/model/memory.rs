//! The memory of a process as the kernel accounts for it, and how it changes: a short time series of bounded size.
//! Whether it grows is judged in `analyse`.
use super::snapshot::Finding;

/// Points kept of a process; when there are more, the ones that lie closest together leave.
pub const MAX_POINTS: usize = 24;

/// Resident memory by what is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Memory {
    /// All resident memory.
    pub rss_bytes: u64,
    /// Of it private and without a file: heap, stacks, private mappings.
    pub anonymous_bytes: u64,
    /// Of it from files.
    pub file_bytes: u64,
    /// Of it shared memory: tmpfs, System V, shared anonymous mappings.
    pub shared_bytes: u64,
    /// Anonymous memory that was written to swap.
    pub swapped_bytes: u64,
}

impl Memory {
    /// What a leak makes grow, wherever it lies.
    pub fn private_bytes(&self) -> u64 {
        self.anonymous_bytes.saturating_add(self.swapped_bytes)
    }
}

/// The memory of a target at the time of a snapshot.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MemoryView {
    /// Now.
    pub now: Memory,
    /// Trend of anonymous memory, swapped or not, over the time that the process was watched; `None` at first.
    pub growth_bytes_per_hour: Option<f64>,
    /// The verdict, where it keeps growing.
    pub finding: Option<Finding>,
}

/// A process that is watched but not traced.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct WatchedView {
    /// The process.
    pub pid: u32,
    /// Its name. Hostile: escape before printing.
    pub comm: String,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Of it anonymous.
    pub anonymous_bytes: u64,
    /// Trend of its anonymous memory; `None` at first.
    pub growth_bytes_per_hour: Option<f64>,
    /// Why it would be traced, where it keeps growing.
    pub reason: Option<String>,
}

/// What is watched without being traced.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct WatchView {
    /// How many processes.
    pub processes: u64,
    /// Processes that could not be watched.
    pub unwatched: u64,
    /// Those that grow fastest.
    pub fastest: Vec<WatchedView>,
}

/// A process's anonymous memory at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemoryPoint {
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// How much.
    pub bytes: u64,
}

/// Anonymous memory of one process over time.
#[derive(Clone, Debug, Default)]
pub struct MemorySeries {
    points: Vec<MemoryPoint>,
}

impl MemorySeries {
    /// Adds a point.
    pub fn record(&mut self, point: MemoryPoint) {
        self.points.push(point);
        if self.points.len() > MAX_POINTS {
            self.thin();
        }
    }

    /// Forgets what is older than `window_ns` before the last point.
    pub fn keep(&mut self, window_ns: u64) {
        let last_ns = self.points.last().map_or(0, |point| point.time_ns);
        self.points.retain(|point| last_ns.saturating_sub(point.time_ns) <= window_ns);
    }

    /// Oldest first.
    pub fn points(&self) -> &[MemoryPoint] {
        &self.points
    }

    /// The slope of the straight line with the least squares; `None` before there are three points.
    pub fn bytes_per_second(&self) -> Option<f64> {
        if self.points.len() < 3 {
            return None;
        }
        let first = self.points.first()?;
        let number = self.points.len() as f64;
        let coordinates = |point: &MemoryPoint| {
            (point.time_ns.saturating_sub(first.time_ns) as f64 / 1e9, point.bytes as f64)
        };
        let sums = self.points.iter().map(coordinates).fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
        let mean = (sums.0 / number, sums.1 / number);
        let (mut above, mut below) = (0.0, 0.0);
        for (x, y) in self.points.iter().map(coordinates) {
            above += (x - mean.0) * (y - mean.1);
            below += (x - mean.0).powi(2);
        }
        (below > 0.0).then(|| above / below)
    }

    /// Removes the point between whose neighbours the least time lies; the first and the last stay.
    fn thin(&mut self) {
        let gaps = self
            .points
            .iter()
            .zip(self.points.iter().skip(2))
            .map(|(before, after)| after.time_ns.saturating_sub(before.time_ns));
        if let Some((index, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
            self.points.remove(index + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: impl IntoIterator<Item = (u64, u64)>) -> MemorySeries {
        let mut series = MemorySeries::default();
        for (seconds, bytes) in points {
            series.record(MemoryPoint { time_ns: seconds * 1_000_000_000, bytes });
        }
        series
    }

    #[test]
    fn a_long_series_keeps_its_ends_in_bounded_space() {
        let series = series((0..1000).map(|second| (second, second)));
        let points = series.points();
        assert!(points.len() <= MAX_POINTS);
        assert_eq!((points[0].bytes, points[points.len() - 1].bytes), (0, 999));
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        let near = |left: Option<f64>, right: f64| (left.unwrap() - right).abs() < 1e-6;
        assert!(near(series((0..100).map(|second| (second, 7 * second))).bytes_per_second(), 7.0));
        assert!(near(series((0..100).map(|second| (second, 1000 - 3 * second))).bytes_per_second(), -3.0));
        assert_eq!(series([(0, 1), (1, 2)]).bytes_per_second(), None);
        assert_eq!(series([(5, 1), (5, 2), (5, 3)]).bytes_per_second(), None);
    }

    #[test]
    fn a_window_forgets_the_past() {
        let mut series = series([(0, 9), (10, 1), (20, 2), (30, 3)]);
        series.keep(20_000_000_000);
        assert_eq!(series.points().len(), 3);
    }
}
