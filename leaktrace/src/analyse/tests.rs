//! Each kind of site, leaking and clean.
use leaktrace_common::heap::{Block, LIFETIME_BUCKETS, SiteTotals};

use super::*;
use crate::model::{
    blocks::Blocks,
    site_id::PlaceId,
    sites::Corrections,
    snapshot::{Confidence, Finding, SiteKind, Totals},
    stacks::{ImageKey, Stacks},
};

const SECOND: u64 = 1_000_000_000;
const BLOCK: Block = Block { size_bytes: 0, born_ns: 0, stack: 0, threshold: 0, generation: 0, function: 0 };

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
        place: PlaceId(1),
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

fn judge<F: AsRef<[Frame]>>(
    site: &Site,
    points: &[Point],
    life: Life,
    frames: impl FnOnce() -> F,
) -> Option<Finding> {
    super::judge(site, points, life, frames).finding
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

fn in_module(module: &str, function: Option<&str>) -> Frame {
    Frame { module: Some(module.to_owned()), function: function.map(str::to_owned), ..Frame::default() }
}

const LIBC: &str = "/lib/libc.so.6";

#[test]
fn runtimes_are_known_by_every_form_of_their_names() {
    let points = series(&[(1, 1)]);
    for name in [
        "_IO_file_doallocate",
        "__GI__IO_file_doallocate",
        "__GI__IO_wfile_doallocate",
        "__tls_get_addr",
        "_dl_allocate_tls",
        "__new_exitfn",
        "__GI___cxa_atexit",
        "setlocale",
        "__GI_setlocale",
        "__setlocale.part.0",
        "setenv@@GLIBC_2.2.5",
        "_nl_intern_locale_data",
    ] {
        let frames =
            vec![in_module(LIBC, Some(name)), in_module(LIBC, None), in_module("/srv/app", Some("main"))];
        assert_eq!(judge(&site(&points), &points, Life::Ended, || frames), None, "{name}");
    }
    for name in ["setlocale_of_mine", "dlopen_all", "setenvironment", "strdup", "fopen", "__GI_opendir"] {
        let frames = vec![in_module(LIBC, Some(name)), in_module("/srv/app", Some("main"))];
        assert!(judge(&site(&points), &points, Life::Ended, || frames).is_some(), "{name}");
    }
}

#[test]
fn what_a_runtime_holds_counts_and_not_what_it_has_had() {
    let stream = || vec![in_module(LIBC, Some("_IO_file_doallocate")), in_module("/srv/app", Some("main"))];
    let thread = || {
        vec![in_module("/lib/ld-linux-x86-64.so.2", Some("_dl_allocate_tls")), in_module("/srv/app", None)]
    };
    let of = |held, made| series(&[(held, made)]);
    for (points, is_stream, is_thread) in
        [(of(1, 1000), true, true), (of(4, 4), false, true), (of(1000, 1000), false, false)]
    {
        assert_eq!(judge(&site(&points), &points, Life::Ended, stream).is_none(), is_stream);
        assert_eq!(judge(&site(&points), &points, Life::Ended, thread).is_none(), is_thread);
    }
}

#[test]
fn a_stack_that_was_cut_within_a_runtime_may_be_anybodys() {
    let points = series(&[(1, 1)]);
    let frames = || vec![in_module(LIBC, None), in_module(LIBC, Some("qsort_r"))];
    assert_eq!(judge(&site(&points), &points, Life::Ended, frames), None);
    let cut = Site { stack_end: "no_cfi", ..site(&points) };
    assert!(judge(&cut, &points, Life::Ended, frames).is_some());
}

#[test]
fn the_reserve_of_a_stripped_program_is_known_by_its_shape() {
    let reserve = |bytes| {
        let mut site = site(&series(&[(1, 1)]));
        site.totals.outstanding_bytes = bytes;
        site
    };
    let frames = || vec![in_module("/srv/app", None), in_module(LIBC, None), in_module("/srv/app", None)];
    let of_main = || vec![in_module("/srv/app", None), in_module("/srv/app", None), in_module(LIBC, None)];
    assert_eq!(judge(&reserve(72_704), &[], Life::Ended, frames), None);
    assert_eq!(judge(&reserve(73_728), &[], Life::Ended, frames), None);
    assert!(judge(&reserve(73_729), &[], Life::Ended, frames).is_some());
    assert!(judge(&reserve(72_704), &[], Life::Ended, of_main).is_some());
}

#[test]
fn what_is_a_runtimes_is_said_of_processes_that_were_killed_too() {
    let points = series(&[(1, 1)]);
    let frames = || vec![in_module(LIBC, Some("_IO_file_doallocate")), in_module("/srv/app", Some("main"))];
    for (life, said) in [(Life::Ended, true), (Life::CutShort, true), (Life::Running, false)] {
        assert_eq!(super::judge(&site(&points), &points, life, frames).is_runtimes, said, "{life:?}");
    }
}

fn stacks_of(image: ImageKey, hashes: impl IntoIterator<Item = u64>) -> Stacks {
    let mut stacks = Stacks::default();
    for stack in hashes {
        stacks.insert(image, stack, &[stack], "complete", |address| Frame {
            function: Some(format!("f{address}")),
            module: Some("/srv/app".to_owned()),
            ..Frame::default()
        });
    }
    stacks
}

fn summarise(input: &Input<'_>, history: &mut History, selection: &Selection, life: Life) -> Shown {
    let ranked = rank(input, history, selection, &mut |_| {});
    show(&ranked, input, history, selection, life)
}

/// Three sites that grow, one of them from the middle on, until all of them stand still.
#[test]
fn a_summary_that_is_repeated_is_the_one_that_would_be_read() {
    const GROWING_SECONDS: u64 = 20;
    let image = ImageKey { tgid: 1, generation: 0 };
    let stacks = stacks_of(image, 1..=4);
    let mut corrections = Corrections::default();
    corrections.add(1, 100, 1);
    let mut blocks = Blocks::default();
    let mut heap = vec![(4, SiteTotals { allocated_bytes: 9, allocated_count: 1, ..SiteTotals::ZERO })];
    for stack in 1..=3 {
        heap.push((stack, SiteTotals::ZERO));
    }
    let selection = Selection { top: 3, ..Selection::default() };
    let (mut read, mut repeated) = (History::default(), History::default());
    let mut kept = None;
    let mut confidences = Vec::new();
    for second in 1..=200 {
        for (stack, totals) in heap.iter_mut().filter(|(stack, _)| *stack < 4) {
            let begins = if *stack == 3 { GROWING_SECONDS / 2 } else { 0 };
            if (begins..GROWING_SECONDS).contains(&second) {
                totals.allocated_bytes += 100 * *stack;
                totals.allocated_count += 1;
                let born_ns = second * SECOND - 5;
                let block = Block { size_bytes: 100 * *stack, born_ns, stack: *stack, ..BLOCK };
                blocks.push(second << 16 | *stack << 12, &block, 0);
            }
        }
        let now_ns = second * SECOND + second % 7;
        let unverified_before_ns = if second > 3 { 3 * SECOND } else { 0 };
        let input = Input {
            image,
            now_ns,
            heap: &heap,
            corrections: &corrections,
            blocks: Some(&blocks),
            unverified_before_ns,
            mappings: None,
            stacks: &stacks,
        };
        let expected = summarise(&input, &mut read, &selection, Life::Running);
        let shown = match &mut kept {
            Some(ranked) => {
                let input = Input { heap: &[], blocks: None, ..input };
                repeat(ranked, &input, &mut repeated, &selection, Life::Running)
            }
            None => {
                let ranked = rank(&input, &mut repeated, &selection, &mut |_| {});
                let shown = show(&ranked, &input, &repeated, &selection, Life::Running);
                assert_eq!(ranked.is_still(), second >= GROWING_SECONDS);
                kept = Some(ranked).filter(Ranked::is_still);
                shown
            }
        };
        assert_eq!(shown, expected, "second {second}");
        confidences.push(shown.sites[0].finding.as_ref().map(|finding| finding.confidence));
    }
    assert!(kept.is_some());
    assert_eq!(confidences[18], Some(Confidence::High), "it grew");
    assert_eq!(confidences[22], Some(Confidence::High), "it has only just stopped");
    assert_eq!(confidences[199], None, "it stopped long ago");
}

#[test]
fn a_summary_brings_growth_findings_and_order_together() {
    let image = ImageKey { tgid: 1, generation: 0 };
    let stacks = stacks_of(image, 1..=2);
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
    assert_eq!(last.sums.growth_bytes_per_second, Some(1000.0));
    assert!(last.sites[0].finding.is_none() && last.sites[0].totals.outstanding_count == 9);
    assert_eq!(last.sites[1].finding.as_ref().map(|finding| finding.confidence), Some(Confidence::High));
}
