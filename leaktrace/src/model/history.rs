//! What each site of one process image held at earlier summaries: a short time series of bounded size.
use std::{borrow::Cow, collections::HashMap};

use super::site_id::PlaceId;

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

/// Summaries without news that are kept aside until they go into the series.
const MAX_HELD: usize = 32;

/// The series of all sites of one process image.
#[derive(Debug, Default)]
pub struct History {
    series: HashMap<PlaceId, Vec<Point>>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
    /// The last summary that is in the series.
    entered_ns: Option<u64>,
    /// Summaries since then: every site of that one was as it had been.
    held: Vec<u64>,
}

impl History {
    /// Adds the points of one summary: sites that are missing keep what they had.
    pub fn record(&mut self, time_ns: u64, points: impl IntoIterator<Item = (PlaceId, Point)>) {
        self.enter_held();
        for (id, point) in points {
            let series = self.series.entry(id).or_default();
            if series.len() == series.capacity() {
                // Doubling would keep room for points that never come.
                series.reserve_exact(POINTS_AT_A_TIME);
            }
            series.push(point);
            if series.len() > MAX_POINTS {
                thin(series, |point| point.time_ns);
            }
        }
        self.first_ns.get_or_insert(time_ns);
        self.last_ns = Some(time_ns);
        self.entered_ns = Some(time_ns);
    }

    /// Adds a summary at which every site of the summary before was as it had been. The same as recording those
    /// points, but costs next to nothing.
    pub fn hold(&mut self, time_ns: u64) {
        self.held.push(time_ns);
        self.last_ns = Some(time_ns);
        if self.held.len() >= MAX_HELD {
            self.enter_held();
        }
    }

    /// The points of a site, oldest first.
    pub fn points(&self, id: PlaceId) -> Cow<'_, [Point]> {
        let series = self.series.get(&id).map_or(&[][..], Vec::as_slice);
        if self.held.is_empty() || !self.stands(series) {
            return Cow::Borrowed(series);
        }
        let mut series = series.to_vec();
        Extension::of(&series, &self.held).apply(&mut series);
        Cow::Owned(series)
    }

    /// When the first summary was made, in ns of CLOCK_BOOTTIME.
    pub fn first_ns(&self) -> Option<u64> {
        self.first_ns
    }

    /// Bytes per second that a site's outstanding bytes changed by since the previous summary; `None` for the
    /// first one.
    pub fn growth_bytes_per_second(&self, id: PlaceId, time_ns: u64, outstanding_bytes: u64) -> Option<f64> {
        let previous_ns = self.last_ns?;
        let seconds = time_ns.checked_sub(previous_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        // Summaries that are held did not change it. A site that was not in the one before held nothing of what is shown.
        let series = self.series.get(&id).filter(|series| self.stands(series));
        let before = series.and_then(|series| series.last()).map_or(0, |point| point.outstanding_bytes);
        Some((outstanding_bytes as f64 - before as f64) / seconds)
    }

    /// Whether a site was in the last summary that is in the series: of others the summaries since say nothing.
    fn stands(&self, series: &[Point]) -> bool {
        series.last().is_some_and(|point| Some(point.time_ns) == self.entered_ns)
    }

    /// Puts the summaries that are held into the series. Most sites came at the same time and have points at the same
    /// times, so that what becomes of one series is what becomes of the next.
    fn enter_held(&mut self) {
        let Some(entered_ns) = self.entered_ns else { return };
        let held = std::mem::take(&mut self.held);
        let Some(last_ns) = held.last().copied() else { return };
        let mut extension: Option<Extension> = None;
        for series in self.series.values_mut() {
            if series.last().is_none_or(|point| point.time_ns != entered_ns) {
                continue;
            }
            match extension.as_ref().filter(|extension| extension.fits(series)) {
                Some(extension) => extension.apply(series),
                None => extension.insert(Extension::of(series, &held)).apply(series),
            }
        }
        self.entered_ns = Some(last_ns);
    }
}

/// What becomes of a series when points follow that differ from its last one in time alone. It depends on times alone.
#[derive(Debug)]
struct Extension {
    before: Vec<u64>,
    /// Which of its points stay.
    kept: Vec<usize>,
    /// When the points are that follow them.
    times: Vec<u64>,
}

impl Extension {
    fn of(series: &[Point], held: &[u64]) -> Extension {
        let before: Vec<u64> = series.iter().map(|point| point.time_ns).collect();
        let mut moments: Vec<(u64, Option<usize>)> =
            before.iter().enumerate().map(|(index, time)| (*time, Some(index))).collect();
        for time in held {
            moments.push((*time, None));
            if moments.len() > MAX_POINTS {
                thin(&mut moments, |(time, _)| *time);
            }
        }
        let kept = moments.iter().filter_map(|(_, index)| *index).collect();
        let times = moments.iter().filter(|(_, index)| index.is_none()).map(|(time, _)| *time).collect();
        Extension { before, kept, times }
    }

    fn fits(&self, series: &[Point]) -> bool {
        series.iter().map(|point| point.time_ns).eq(self.before.iter().copied())
    }

    fn apply(&self, series: &mut Vec<Point>) {
        let Some(last) = series.last().copied() else { return };
        for (to, from) in self.kept.iter().enumerate() {
            // They only move towards the front.
            if to != *from {
                series.copy_within(*from..=*from, to);
            }
        }
        series.truncate(self.kept.len());
        let room = (self.kept.len() + self.times.len()).next_multiple_of(POINTS_AT_A_TIME);
        series.reserve_exact(room.saturating_sub(series.len()));
        series.extend(self.times.iter().map(|time_ns| Point { time_ns: *time_ns, ..last }));
    }
}

/// Removes the point between whose neighbours the least time lies; the first and the last stay. The points that
/// are left cover the whole time evenly.
fn thin<T>(series: &mut Vec<T>, time_ns: impl Fn(&T) -> u64) {
    let gaps = series
        .iter()
        .zip(series.iter().skip(2))
        .map(|(before, after)| time_ns(after).saturating_sub(time_ns(before)));
    if let Some((index, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) {
        series.remove(index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: PlaceId = PlaceId(1);

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
        assert_eq!(history.growth_bytes_per_second(PlaceId(2), 2_000_000_000, 50), Some(50.0));
    }

    #[test]
    fn a_site_that_comes_back_has_grown_from_nothing() {
        const SECOND: u64 = 1_000_000_000;
        let mut history = History::default();
        history.record(SECOND, [(ID, point(SECOND, 100))]);
        history.record(2 * SECOND, []);
        assert_eq!(history.growth_bytes_per_second(ID, 3 * SECOND, 100), Some(100.0));
        history.record(3 * SECOND, [(ID, point(3 * SECOND, 100))]);
        assert_eq!(history.growth_bytes_per_second(ID, 4 * SECOND, 100), Some(0.0));
        history.hold(4 * SECOND);
        assert_eq!(history.growth_bytes_per_second(ID, 5 * SECOND, 100), Some(0.0));
    }

    #[test]
    fn summaries_without_news_leave_the_same_points_as_recording_them() {
        // Two sites that came at different times, one that left, and long rests between changes.
        let mut recorded = History::default();
        let mut held = History::default();
        let mut now = 0;
        let mut values = [0_u64; 2];
        for (step, rest) in [3, 0, 1, 40, 2, 0, 0, 200, 31, 32, 33, 5].into_iter().enumerate() {
            now += 7 + step as u64;
            values[0] += 10;
            values[1] += 3;
            let mut points = vec![(PlaceId(1), point(now, values[0]))];
            if step > 0 {
                points.push((PlaceId(2), point(now, values[1])));
            }
            if step < 3 {
                points.push((PlaceId(3), point(now, 5)));
            }
            recorded.record(now, points.clone());
            held.record(now, points.clone());
            for _ in 0..rest {
                now += 10;
                let again = points.iter().map(|(id, last)| (*id, Point { time_ns: now, ..*last }));
                recorded.record(now, again);
                held.hold(now);
                for id in 1..=4 {
                    assert_eq!(held.points(PlaceId(id)), recorded.points(PlaceId(id)), "site {id} at {now}");
                }
                let growth = |history: &History| history.growth_bytes_per_second(PlaceId(1), now + 5, 77);
                assert_eq!(growth(&held), growth(&recorded));
            }
        }
        assert_eq!(held.first_ns(), recorded.first_ns());
        let room = |history: &History| history.series.values().map(Vec::capacity).max();
        assert_eq!(room(&held), room(&recorded));
    }
}
