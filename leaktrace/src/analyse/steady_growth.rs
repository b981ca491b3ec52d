//! Rule: what a site holds grows through the whole time it was watched, and little of it is freed.
//!
//! The summaries are cut into thirds. A leak rises from each third to the next; a warm-up rises only at first; a
//! cache that has filled, or a queue that fills and empties, does not rise at the end. How sure the rule is
//! depends on how much was freed meanwhile and on how long it watched.
use crate::model::{
    history::Point,
    sites::Site,
    snapshot::{Confidence, Finding},
    units,
};

/// Fewer summaries than this say nothing.
const MIN_POINTS: usize = 4;
/// Each of the two rises between thirds is at least this part of the whole rise.
const MIN_SHARE_OF_RISE: f64 = 0.25;
/// The whole rise is at least this many times the largest fall between two summaries.
const RISE_TO_FALL: f64 = 3.0;
/// At most this share of what was allocated meanwhile was freed: it hardly ever is.
const RARELY_FREED: f64 = 0.05;
/// Above this share freed the rule is the least sure.
const OFTEN_FREED: f64 = 0.5;
/// Watched for less than this, even a steady rise is not sure.
const MIN_SURE_NS: u64 = 8_000_000_000;

pub(super) fn judge(site: &Site, points: &[Point]) -> Option<Finding> {
    let (first, last) = (points.first()?, points.last()?);
    let watched_ns = last.time_ns.checked_sub(first.time_ns).filter(|ns| *ns > 0)?;
    if points.len() < MIN_POINTS
        || !rises_throughout(points)
        || last.outstanding_count <= first.outstanding_count
    {
        return None;
    }
    let allocated = last.allocated_count.saturating_sub(first.allocated_count);
    let freed = last.freed_count.saturating_sub(first.freed_count);
    let freed_share = freed as f64 / allocated.max(1) as f64;
    let grew_bytes = last.outstanding_bytes.saturating_sub(first.outstanding_bytes);
    let growth = grew_bytes as f64 / (watched_ns as f64 / 1e9);
    let old = site.oldest_age_ns.is_none_or(|age| age >= watched_ns / 2);
    let confidence = match freed_share {
        _ if !old => Confidence::Low,
        share if share > OFTEN_FREED => Confidence::Low,
        share if share <= RARELY_FREED && watched_ns >= MIN_SURE_NS => Confidence::High,
        _ => Confidence::Medium,
    };
    let mut evidence = format!(
        "grew {} for {}; {} of {} freed meanwhile",
        units::rate(growth).trim_start_matches('+'),
        units::duration(watched_ns),
        units::count(freed),
        units::counted(allocated, "block"),
    );
    if let Some(age) = site.oldest_age_ns {
        evidence.push_str(&format!("; the oldest is {} old", units::duration(age)));
    }
    Some(Finding { confidence, evidence, growth_bytes_per_second: Some(growth) })
}

/// Whether the bytes rise from third to third, and clearly more than they ever fall.
fn rises_throughout(points: &[Point]) -> bool {
    let mean = |part: &[Point]| {
        part.iter().map(|point| point.outstanding_bytes as f64).sum::<f64>() / part.len().max(1) as f64
    };
    let third = points.len() / 3;
    let Some((head, rest)) = points.split_at_checked(third) else { return false };
    let Some((middle, tail)) = rest.split_at_checked(rest.len() - third) else { return false };
    let (low, mid, high) = (mean(head), mean(middle), mean(tail));
    let rise = high - low;
    let steps = points.iter().zip(points.iter().skip(1));
    let largest_fall = steps
        .map(|(before, after)| before.outstanding_bytes.saturating_sub(after.outstanding_bytes))
        .max()
        .unwrap_or(0);
    let whole = match (points.first(), points.last()) {
        (Some(first), Some(last)) => last.outstanding_bytes as f64 - first.outstanding_bytes as f64,
        _ => 0.0,
    };
    rise > 0.0
        && mid - low >= rise * MIN_SHARE_OF_RISE
        && high - mid >= rise * MIN_SHARE_OF_RISE
        && whole >= largest_fall as f64 * RISE_TO_FALL
}
