//! Each kind of site, leaking and clean.
use leaktrace_common::heap::LIFETIME_BUCKETS;

use super::*;
use crate::model::{
    site_id::SiteId,
    snapshot::{Confidence, SiteKind, Totals},
};

const SECOND: u64 = 1_000_000_000;

/// One point a second: (outstanding blocks, blocks allocated so far), 100 bytes each.
fn series(values: &[(u64, u64)]) -> Vec<Point> {
    let point = |(second, (held, made)): (usize, &(u64, u64))| Point {
        time_ns: second as u64 * SECOND,
        outstanding_bytes: held * 100,
        outstanding_count: *held,
        allocated_count: *made,
        freed_count: made - held,
    };
    values.iter().enumerate().map(point).collect()
}

fn site(points: &[Point]) -> Site {
    let last = points.last().copied().unwrap_or_default();
    Site {
        id: SiteId(1),
        kind: SiteKind::Heap,
        totals: Totals {
            outstanding_bytes: last.outstanding_bytes,
            outstanding_count: last.outstanding_count,
            allocated_bytes: last.allocated_count * 100,
            allocated_count: last.allocated_count,
            freed_bytes: last.freed_count * 100,
            freed_count: last.freed_count,
            ..Totals::default()
        },
        growth_bytes_per_second: None,
        oldest_age_ns: Some(last.time_ns),
        lifetimes: [0; LIFETIME_BUCKETS],
        stack_end: "complete",
        finding: None,
        stacks: Vec::new(),
    }
}

fn program_frames() -> Vec<Frame> {
    vec![Frame {
        module: Some("/srv/app".to_owned()),
        function: Some("handle".to_owned()),
        ..Frame::default()
    }]
}

fn verdict(values: &[(u64, u64)]) -> Option<Finding> {
    let points = series(values);
    judge(&site(&points), &points, Life::Running, program_frames)
}

#[test]
fn a_steady_leak_is_found_with_high_confidence_and_numbers() {
    let values: Vec<(u64, u64)> = (0..11).map(|s| (s * 50, s * 50)).collect();
    let finding = verdict(&values).unwrap();
    assert_eq!(finding.confidence, Confidence::High);
    assert_eq!(
        finding.evidence,
        "grew 4.9 KiB/s for 10.0s; 0 of 500 blocks freed meanwhile; the oldest is 10.0s old"
    );
    assert_eq!(finding.growth_bytes_per_second, Some(5000.0));
}

#[test]
fn a_leak_seen_for_a_short_time_is_less_sure() {
    assert_eq!(verdict(&[(0, 0), (5, 5), (10, 10), (15, 15)]).unwrap().confidence, Confidence::Medium);
    assert_eq!(verdict(&[(0, 0), (5, 5), (10, 10)]), None);
}

#[test]
fn a_leak_among_many_frees_is_found_too() {
    let tenth: Vec<(u64, u64)> = (0..12).map(|s| (s * 10, s * 100)).collect();
    assert_eq!(verdict(&tenth).unwrap().confidence, Confidence::Low);
    let most: Vec<(u64, u64)> = (0..12).map(|s| (s * 80, s * 100)).collect();
    assert_eq!(verdict(&most).unwrap().confidence, Confidence::Medium);
}

#[test]
fn a_noisy_leak_is_found() {
    let values: Vec<(u64, u64)> = (0..12).map(|s| (s * 50 + (s % 3) * 20, s * 60 + 60)).collect();
    assert!(verdict(&values).is_some());
}

#[test]
fn what_does_not_grow_yields_nothing() {
    let stable = [(100, 100); 12];
    let warm_up =
        [(0, 0), (300, 300), (400, 400), (400, 400), (400, 400), (400, 400), (400, 400), (400, 400)];
    let balanced: Vec<(u64, u64)> = (0..12).map(|s| (0, s * 100)).collect();
    let queue: Vec<(u64, u64)> =
        (0..12).map(|s| ([10, 80, 30, 60][s as usize % 4], 1000 + s * 100)).collect();
    let shrinking: Vec<(u64, u64)> = (0..12).map(|s| (1200 - s * 100, 1200)).collect();
    for values in [&stable[..], &warm_up, &balanced, &queue, &shrinking] {
        assert_eq!(verdict(values), None, "{values:?}");
    }
}

#[test]
fn a_ring_cache_that_has_filled_yields_nothing() {
    let ring: Vec<(u64, u64)> = (0..20).map(|s| ((s * 64).min(256), s * 64)).collect();
    assert_eq!(verdict(&ring), None);
    let wavering: Vec<(u64, u64)> = (0..20).map(|s| (1000 + s % 2 * 8, 1100 + s * 64)).collect();
    assert_eq!(verdict(&wavering), None);
}

#[test]
fn what_is_held_at_the_end_is_a_finding_unless_the_process_was_cut_short() {
    let points = series(&[(3, 10)]);
    let finding = judge(&site(&points), &points, Life::Ended, program_frames).unwrap();
    assert_eq!(finding.confidence, Confidence::High);
    assert!(finding.evidence.starts_with("3 blocks (300 B) of 10 never freed"), "{}", finding.evidence);
    assert_eq!(judge(&site(&points), &points, Life::CutShort, program_frames), None);
    let clean = series(&[(0, 10)]);
    assert_eq!(judge(&site(&clean), &clean, Life::Ended, program_frames), None);
}

#[test]
fn what_the_runtimes_keep_for_themselves_is_no_finding() {
    let points = series(&[(1, 1)]);
    let ended = |frames: Vec<Frame>| judge(&site(&points), &points, Life::Ended, move || frames);
    let frame = |module: &str, function: Option<&str>| Frame {
        module: Some(module.to_owned()),
        function: function.map(str::to_owned),
        ..Frame::default()
    };
    let stdout = vec![
        frame("/lib/libc.so.6", Some("_IO_file_doallocate")),
        frame("/lib/libc.so.6", Some("_IO_doallocbuf")),
        frame("/srv/app", Some("main")),
    ];
    assert_eq!(ended(stdout), None);
    let pool = vec![frame("/lib/libstdc++.so.6.0.30", None), frame("/lib64/ld-linux-x86-64.so.2", None)];
    assert_eq!(ended(pool), None);
    let own = vec![frame("/lib/libc.so.6", Some("strdup")), frame("/srv/app", Some("main"))];
    assert!(ended(own).is_some());
    let lookalike = vec![frame("/srv/libcache.so", None)];
    assert!(ended(lookalike).is_some());
    let rust = vec![
        frame("/srv/app", Some("alloc::alloc::alloc")),
        frame("/srv/app", Some("app::leak")),
        frame("/srv/app", Some("app::main")),
        frame("/srv/app", Some("std::rt::lang_start::{{closure}}")),
    ];
    assert!(ended(rust).is_some(), "main's caller is in every Rust stack");
}

#[test]
fn a_summary_brings_growth_findings_and_order_together() {
    use crate::model::{
        sites::Corrections,
        stacks::{ImageKey, Stacks},
    };
    use leaktrace_common::heap::SiteTotals;
    let image = ImageKey { tgid: 1, generation: 0 };
    let mut stacks = Stacks::default();
    for stack in [1, 2] {
        stacks.insert(image, stack, &[stack], "complete", |address| {
            vec![Frame {
                function: Some(format!("f{address}")),
                module: Some("/srv/app".to_owned()),
                ..Frame::default()
            }]
        });
    }
    let corrections = Corrections::default();
    let mut history = History::default();
    let mut last = Shown::default();
    for second in 1..=12 {
        let totals =
            |bytes, count| SiteTotals { allocated_bytes: bytes, allocated_count: count, ..SiteTotals::ZERO };
        let heap = [(1, totals(5_000_000, 9)), (2, totals(second * 1000, second * 10))];
        let input = Input {
            image,
            now_ns: second * SECOND,
            heap: &heap,
            corrections: &corrections,
            blocks: None,
            unverified_before_ns: 0,
            mappings: None,
            stacks: &stacks,
        };
        last = summarise(&input, &mut history, &Selection::default(), Life::Running);
    }
    assert_eq!(last.growth_bytes_per_second, Some(1000.0));
    assert!(last.sites[0].finding.is_none() && last.sites[0].totals.outstanding_count == 9);
    assert_eq!(last.sites[1].finding.as_ref().map(|finding| finding.confidence), Some(Confidence::High));
}
