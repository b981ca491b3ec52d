//! Joining, ordering and cutting.
use std::time::Instant;

use leaktrace_common::heap::Block;

use super::*;
use crate::model::{
    ranked::{Judged, Ranked, Shown},
    snapshot::{BlockView, Frame},
};

const IMAGE: ImageKey = ImageKey { tgid: 9, generation: 0 };

fn totals(allocated: (u64, u64), freed: (u64, u64)) -> SiteTotals {
    SiteTotals {
        allocated_bytes: allocated.0,
        allocated_count: allocated.1,
        freed_bytes: freed.0,
        freed_count: freed.1,
        ..SiteTotals::ZERO
    }
}

fn block(size_bytes: u64, born_ns: u64, stack: u64) -> Block {
    Block { size_bytes, born_ns, stack, threshold: 0, generation: 0, function: 0 }
}

/// Stacks 1 to 4; 3 and 4 have the same frames at different addresses.
fn stacks() -> Stacks {
    let mut stacks = Stacks::default();
    for (hash, name) in [(1, "one"), (2, "two"), (3, "three"), (4, "three")] {
        stacks.insert(IMAGE, hash, &[hash], "complete", |address| Frame {
            address,
            function: Some(name.to_owned()),
            offset: Some(1),
            ..Frame::default()
        });
    }
    stacks
}

fn run(
    heap: &[(u64, SiteTotals)],
    blocks: Option<&Blocks>,
    history: &History,
    selection: Selection,
) -> Shown {
    let stacks = stacks();
    let corrections = Corrections::default();
    let input = Input {
        image: IMAGE,
        now_ns: 1_000_000_000,
        heap,
        corrections: &corrections,
        blocks,
        unverified_before_ns: 0,
        mappings: None,
        stacks: &stacks,
    };
    shown(collect(&input, history, selection.older_ns), &input, &selection)
}

fn shown(sites: Vec<Site>, input: &Input<'_>, selection: &Selection) -> Shown {
    Ranked::of(sites, 0, input, selection, &mut |_| {}).show(input, selection, |_, _| Judged::default())
}

fn names(shown: &Shown) -> Vec<&str> {
    shown.sites.iter().map(|site| site.frames[0].function.as_deref().unwrap()).collect()
}

#[test]
fn stacks_with_the_same_frames_are_one_site() {
    let heap = [(1, totals((10, 1), (0, 0))), (3, totals((100, 2), (50, 1))), (4, totals((7, 1), (7, 1)))];
    let shown = run(&heap, None, &History::default(), Selection::default());
    assert_eq!(names(&shown), ["three", "one"]);
    assert_eq!(shown.sites[0].totals.outstanding_bytes, 50);
    assert_eq!(shown.sites[0].totals.freed_count, 2);
    assert_eq!(shown.sums.totals.allocated_bytes, 117);
}

#[test]
fn the_cut_says_what_it_hides() {
    let heap = [(1, totals((10, 1), (0, 0))), (2, totals((30, 9), (0, 0))), (3, totals((20, 2), (0, 0)))];
    let shown = run(&heap, None, &History::default(), Selection { top: 1, ..Selection::default() });
    assert_eq!(names(&shown), ["two"]);
    assert_eq!((shown.sums.sites_cut, shown.sums.cut_totals.outstanding_bytes), (2, 30));
    assert_eq!(shown.sums.stack_ends["complete"], 3);
    let by_count = Selection { order: Order::Count, ..Selection::default() };
    assert_eq!(names(&run(&heap, None, &History::default(), by_count)), ["two", "three", "one"]);
}

#[test]
fn growth_orders_by_the_change_since_the_last_summary() {
    let mut history = History::default();
    let place = stacks().view(IMAGE, 1, SiteKind::Heap).place;
    history.record(0, [(place, Point { outstanding_bytes: 500, ..Point::default() })]);
    let heap = [(1, totals((500, 1), (0, 0))), (2, totals((100, 1), (0, 0)))];
    let shown = run(&heap, None, &history, Selection { order: Order::Growth, ..Selection::default() });
    assert_eq!(names(&shown), ["two", "one"]);
    assert_eq!(shown.sites[0].growth_bytes_per_second, Some(100.0));
    assert_eq!(shown.sites[1].growth_bytes_per_second, Some(0.0));
}

#[test]
fn only_old_blocks_count_when_asked() {
    let mut blocks = Blocks::default();
    blocks.push(0x100, &block(10, 100, 1), 0);
    blocks.push(0x200, &block(20, 999_999_999, 1), 0);
    blocks.push(0x300, &block(5, 999_999_999, 2), 0);
    let heap = [(1, totals((30, 2), (0, 0))), (2, totals((5, 1), (0, 0)))];
    let old = Selection { older_ns: Some(500), blocks: 8, ..Selection::default() };
    let shown = run(&heap, Some(&blocks), &History::default(), old);
    assert_eq!(names(&shown), ["one"]);
    assert_eq!(shown.sums.totals.outstanding_bytes, 10);
    assert_eq!(shown.sites[0].blocks, [BlockView { address: 0x100, size_bytes: 10, age_ns: 999_999_900 }]);
    let all = run(
        &heap,
        Some(&blocks),
        &History::default(),
        Selection { order: Order::Age, ..Selection::default() },
    );
    assert_eq!(all.sites[0].oldest_age_ns, Some(999_999_900));
}

#[test]
fn a_corrected_block_is_no_longer_outstanding() {
    let stacks = stacks();
    let history = History::default();
    let mut corrections = Corrections::default();
    corrections.add(1, 16, 1);
    let input = Input {
        image: IMAGE,
        now_ns: 1,
        heap: &[(1, totals((16, 1), (0, 0)))],
        corrections: &corrections,
        blocks: None,
        unverified_before_ns: 0,
        mappings: None,
        stacks: &stacks,
    };
    let sites = collect(&input, &history, None);
    assert_eq!((sites[0].totals.outstanding_bytes, sites[0].totals.freed_count), (0, 1));
    assert_eq!(corrections.count(), 1);
}

/// The bound is generous because this also runs unoptimised on a busy machine; optimised it takes a tenth.
#[test]
fn ten_thousand_sites_and_a_million_blocks_take_seconds_at_the_very_most() {
    let mut blocks = Blocks::with_capacity(1_000_000);
    let mut stacks = Stacks::default();
    let heap: Vec<(u64, SiteTotals)> =
        (0..10_000).map(|s| (s + 2, totals((100 * 64, 100), (0, 0)))).collect();
    for (stack, _) in &heap {
        stacks.insert(IMAGE, *stack, &[stack % 1000, stack / 1000], "complete", |address| Frame {
            address,
            function: Some(format!("f{address}")),
            ..Frame::default()
        });
    }
    let begun = Instant::now();
    for index in 0..1_000_000u64 {
        let address = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20 << 7;
        blocks.push(address, &block(64, index, index % 10_000 + 2), 0);
    }
    assert!(blocks.remove_overlapped().len() < 10);
    let corrections = Corrections::default();
    let history = History::default();
    let input = Input {
        image: IMAGE,
        now_ns: 2_000_000,
        heap: &heap,
        corrections: &corrections,
        blocks: Some(&blocks),
        unverified_before_ns: 0,
        mappings: None,
        stacks: &stacks,
    };
    let selection = Selection { top: 10, blocks: 5, ..Selection::default() };
    let shown = shown(collect(&input, &history, None), &input, &selection);
    let took = begun.elapsed();
    println!("1,000,000 blocks, 10,000 sites: {took:?}");
    assert_eq!(shown.sums.sites_cut, 9_990);
    assert!(took.as_secs() < 10, "{took:?}");
}
