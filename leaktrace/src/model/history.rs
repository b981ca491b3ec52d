//! What each site of one process image held at earlier summaries: a short time series of bounded size.
use std::collections::HashMap;

use super::site_id::SiteId;

/// Points kept of one site; when there are more, the ones that lie closest together leave.
pub const MAX_POINTS: usize = 24;

/// Room that is made for more points.
const POINTS_AT_A_TIME: usize = 5;

/// What a site held at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Blocks not freed.
    pub outstanding_count: u64,
    /// Blocks allocated since tracing began.
    pub allocated_count: u64,
    /// Blocks freed since tracing began.
    pub freed_count: u64,
}

/// The series of all sites of one process image.
#[derive(Debug, Default)]
pub struct History {
    series: HashMap<SiteId, Vec<Point>>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
}

impl History {
    /// Adds the points of one summary: sites that are missing keep what they had.
    pub fn record(&mut self, time_ns: u64, points: impl IntoIterator<Item = (SiteId, Point)>) {
        for (id, point) in points {
            let series = self.series.entry(id).or_default();
            if series.len() == series.capacity() {
                // Doubling would keep room for points that never come.
                series.reserve_exact(POINTS_AT_A_TIME);
            }
            series.push(point);
            if series.len() > MAX_POINTS {
                thin(series);
            }
        }
        self.first_ns.get_or_insert(time_ns);
        self.last_ns = Some(time_ns);
    }

    /// The points of a site, oldest first.
    pub fn points(&self, id: SiteId) -> &[Point] {
        self.series.get(&id).map_or(&[], Vec::as_slice)
    }

    /// When the first summary was made, in ns of CLOCK_BOOTTIME.
    pub fn first_ns(&self) -> Option<u64> {
        self.first_ns
    }

    /// Bytes per second that a site's outstanding bytes changed by since the previous summary; `None` for the
    /// first one.
    pub fn growth_bytes_per_second(&self, id: SiteId, time_ns: u64, outstanding_bytes: u64) -> Option<f64> {
        let previous_ns = self.last_ns?;
        let seconds = time_ns.checked_sub(previous_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let before = self.points(id).last().map_or(0, |point| point.outstanding_bytes);
        Some((outstanding_bytes as f64 - before as f64) / seconds)
    }
}

/// Removes the point between whose neighbours the least time lies; the first and the last stay. The points that
/// are left cover the whole time evenly.
fn thin(series: &mut Vec<Point>) {
    let gaps = series
        .iter()
        .zip(series.iter().skip(2))
        .map(|(before, after)| after.time_ns.saturating_sub(before.time_ns));
    if let Some((index, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
        series.remove(index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SiteId = SiteId(1);

    fn point(time_ns: u64, outstanding_bytes: u64) -> Point {
        Point { time_ns, outstanding_bytes, ..Point::default() }
    }

    #[test]
    fn a_long_series_keeps_its_ends_and_its_order_in_bounded_space() {
        let mut history = History::default();
        for time in 0..1000 {
            history.record(time, [(ID, point(time, time))]);
        }
        let points = history.points(ID);
        assert!(points.len() <= MAX_POINTS && points.len() > MAX_POINTS / 2);
        assert_eq!((points[0].time_ns, points[points.len() - 1].time_ns), (0, 999));
        assert!(points.windows(2).all(|pair| pair[0].time_ns < pair[1].time_ns));
        assert!(points.iter().filter(|point| point.time_ns < 500).count() > 4, "the past is not forgotten");
    }

    #[test]
    fn growth_is_measured_against_the_previous_summary() {
        let mut history = History::default();
        assert_eq!(history.growth_bytes_per_second(ID, 5, 100), None);
        history.record(1_000_000_000, [(ID, point(1_000_000_000, 100))]);
        assert_eq!(history.growth_bytes_per_second(ID, 3_000_000_000, 300), Some(100.0));
        assert_eq!(history.growth_bytes_per_second(ID, 3_000_000_000, 0), Some(-50.0));
        assert_eq!(history.growth_bytes_per_second(SiteId(2), 2_000_000_000, 50), Some(50.0));
    }
}
