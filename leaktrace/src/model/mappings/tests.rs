//! Scenarios, and a comparison with a model that keeps every page by itself.
use leaktrace_common::event::Header;
use proptest::prelude::*;

use super::*;

const ANONYMOUS: u32 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u32;
const RW: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

fn blank(change: Change, time_ns: u64) -> MappingChange {
    MappingChange {
        header: Header { kind: 4, tgid: 1, tid: 1, generation: 0, time_ns },
        change: change as u32,
        in_allocator: 0,
        address: 0,
        length_bytes: 0,
        old_address: 0,
        old_length_bytes: 0,
        protection: RW,
        flags: ANONYMOUS,
        result: 0,
        stack: 0,
        fd: -1,
        reserved: 0,
    }
}

fn map(address: u64, length_bytes: u64, stack: u64) -> MappingChange {
    MappingChange { address, length_bytes, stack, result: address as i64, ..blank(Change::Map, 10) }
}

fn unmap(address: u64, length_bytes: u64) -> MappingChange {
    MappingChange { address, length_bytes, ..blank(Change::Unmap, 20) }
}

fn remap(old: (u64, u64), new: (u64, u64), flags: i32, result: i64) -> [MappingChange; 2] {
    let fields = MappingChange {
        old_address: old.0,
        old_length_bytes: old.1,
        address: new.0,
        length_bytes: new.1,
        flags: flags as u32,
        result,
        ..blank(Change::Remap, 30)
    };
    [fields, MappingChange { change: Change::Remapped as u32, ..fields }]
}

fn feed(records: &[MappingChange]) -> Mappings {
    let mut mappings = Mappings::new(None);
    records.iter().for_each(|record| mappings.apply(record));
    mappings
}

fn site(mappings: &Mappings, stack: u64) -> (u64, u64, u64, u64) {
    let totals = mappings.sites().find(|(s, _)| *s == stack).map(|(_, totals)| *totals).unwrap();
    (totals.allocated_bytes, totals.allocated_count, totals.freed_bytes, totals.freed_count)
}

#[test]
fn terabytes_for_a_shadow_are_reserved_and_no_leak() {
    let no_reserve = ANONYMOUS | libc::MAP_NORESERVE as u32;
    let shadow = MappingChange { flags: no_reserve, ..map(0x1000_0000_0000, 14 << 40, 7) };
    let small = MappingChange { flags: no_reserve, ..map(0x1000, 64 << 10, 8) };
    let large = map(0x2000_0000, 1 << 30, 9);
    let mappings = feed(&[shadow, small, large]);
    let mut sites: Vec<u64> = mappings.sites().map(|(stack, _)| stack).collect();
    sites.sort_unstable();
    assert_eq!(sites, [8, 9]);
    assert_eq!(mappings.totals().reserved_bytes, 14 << 40);
}

#[test]
fn a_hole_leaves_two_pieces_of_one_mapping() {
    let mut mappings = feed(&[map(0x10000, 0x4000, 7), unmap(0x11000, 0x1000)]);
    assert_eq!(site(&mappings, 7), (0x4000, 1, 0x1000, 0));
    assert_eq!(mappings.totals().program_bytes, 0x3000);
    mappings.apply(&unmap(0x10000, 0x1000));
    mappings.apply(&unmap(0x12000, 0x2000));
    assert_eq!(site(&mappings, 7), (0x4000, 1, 0x4000, 1));
    assert_eq!(mappings.live().count(), 0);
}

#[test]
fn one_munmap_can_take_several_mappings_and_parts_of_others() {
    let mappings = feed(&[
        map(0x10000, 0x2000, 1),
        map(0x12000, 0x2000, 2),
        map(0x14000, 0x2000, 3),
        unmap(0x11000, 0x4000),
    ]);
    assert_eq!(site(&mappings, 1), (0x2000, 1, 0x1000, 0));
    assert_eq!(site(&mappings, 2), (0x2000, 1, 0x2000, 1));
    assert_eq!(site(&mappings, 3), (0x2000, 1, 0x1000, 0));
}

#[test]
fn lengths_are_rounded_up_to_pages() {
    let mappings = feed(&[map(0x10000, 1, 1), map(0x20000, 4097, 2), unmap(0x20000, 1)]);
    assert_eq!(site(&mappings, 1), (4096, 1, 0, 0));
    assert_eq!(site(&mappings, 2), (8192, 1, 4096, 0));
}

#[test]
fn failed_calls_change_nothing() {
    let refused = MappingChange { result: -12, ..map(0x10000, 0x1000, 1) };
    let mut mappings = feed(&[refused, map(0x20000, 0x3000, 2)]);
    assert_eq!(mappings.sites().count(), 1);
    mappings.apply(&unmap(0x21000, 0x9000));
    assert_eq!(site(&mappings, 2).2, 0x2000);
    mappings.apply(&blank(Change::UnmapFailed, 21));
    assert_eq!(site(&mappings, 2), (0x3000, 1, 0, 0));
    for record in remap((0x20000, 0x3000), (0x20000, 0x9000), 0, -12) {
        mappings.apply(&record);
    }
    assert_eq!(site(&mappings, 2), (0x3000, 1, 0, 0));
    assert_eq!(mappings.totals().program_bytes, 0x3000);
}

#[test]
fn a_whole_mapping_whose_unmapping_failed_is_not_counted_as_freed() {
    let mappings = feed(&[map(0x10000, 0x1000, 1), unmap(0x10000, 0x1000), blank(Change::UnmapFailed, 21)]);
    assert_eq!(site(&mappings, 1), (0x1000, 1, 0, 0));
    assert!(mappings.sites().all(|(_, totals)| totals.lifetimes.iter().all(|count| *count == 0)));
}

#[test]
fn a_failure_in_one_thread_does_not_bring_back_what_another_unmapped() {
    let other = |mut record: MappingChange| {
        record.header.tid = 2;
        record
    };
    let mappings = feed(&[
        map(0x10000, 0x1000, 1),
        map(0x20000, 0x1000, 2),
        unmap(0x10000, 0x1000),
        other(unmap(0x20000, 0x1000)),
        other(blank(Change::UnmapFailed, 21)),
    ]);
    assert_eq!(site(&mappings, 1).3, 1);
    assert_eq!(site(&mappings, 2).3, 0);
}

#[test]
fn a_fixed_mapping_replaces_what_lies_under_it() {
    let mappings = feed(&[map(0x10000, 0x4000, 1), map(0x11000, 0x1000, 2)]);
    assert_eq!(site(&mappings, 1), (0x4000, 1, 0x1000, 0));
    assert_eq!(site(&mappings, 2), (0x1000, 1, 0, 0));
}

#[test]
fn growing_and_shrinking_stay_with_the_mapping() {
    let mut mappings = feed(&[map(0x10000, 0x2000, 1)]);
    for record in remap((0x10000, 0x2000), (0x50000, 0x5000), libc::MREMAP_MAYMOVE, 0x50000) {
        mappings.apply(&record);
    }
    assert_eq!(site(&mappings, 1), (0x5000, 1, 0, 0));
    assert_eq!(
        mappings.live().next().map(|m| (m.address, m.size_bytes, m.born_ns)),
        Some((0x50000, 0x5000, 10))
    );
    for record in remap((0x50000, 0x5000), (0x50000, 0x1000), 0, 0x50000) {
        mappings.apply(&record);
    }
    assert_eq!(site(&mappings, 1), (0x5000, 1, 0x4000, 0));
    mappings.apply(&unmap(0x50000, 0x1000));
    assert_eq!(site(&mappings, 1), (0x5000, 1, 0x5000, 1));
}

#[test]
fn a_move_to_a_fixed_place_replaces_what_lies_there() {
    let mut mappings = feed(&[map(0x10000, 0x2000, 1), map(0x50000, 0x4000, 2)]);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for record in remap((0x10000, 0x2000), (0x51000, 0x2000), flags, 0x51000) {
        mappings.apply(&record);
    }
    assert_eq!(site(&mappings, 1), (0x2000, 1, 0, 0));
    assert_eq!(site(&mappings, 2), (0x4000, 1, 0x2000, 0));
}

#[test]
fn with_dontunmap_the_old_place_stays_mapped() {
    let mut mappings = feed(&[map(0x10000, 0x2000, 1)]);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    for record in remap((0x10000, 0x2000), (0x50000, 0x2000), flags, 0x50000) {
        mappings.apply(&record);
    }
    assert_eq!(site(&mappings, 1), (0x4000, 2, 0, 0));
}

#[test]
fn memory_from_before_tracing_is_no_error() {
    let mut mappings = feed(&[unmap(0x10000, 0x1000), blank(Change::UnmapFailed, 21)]);
    for record in remap((0x70000, 0x1000), (0x90000, 0x2000), libc::MREMAP_MAYMOVE, 0x90000) {
        mappings.apply(&record);
    }
    assert_eq!(mappings.sites().count(), 0);
    assert_eq!(mappings.totals(), MappingTotals::default());
}

#[test]
fn each_class_is_summed_apart() {
    let with = |address, change: fn(&mut MappingChange)| {
        let mut record = map(address, 0x1000, 5);
        change(&mut record);
        record
    };
    let mappings = feed(&[
        with(0x10000, |r| r.in_allocator = 1),
        with(0x20000, |r| r.protection = 0),
        with(0x30000, |r| {
            r.in_allocator = 1;
            r.protection = 0;
        }),
        with(0x40000, |r| {
            r.flags |= libc::MAP_STACK as u32;
            r.protection = 0;
        }),
        with(0x50000, |r| {
            r.flags = libc::MAP_PRIVATE as u32;
            r.fd = 3;
        }),
        with(0x60000, |r| r.flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32),
    ]);
    assert_eq!(
        mappings.totals(),
        MappingTotals {
            program_bytes: 0x1000,
            allocator_bytes: 0x1000,
            reserved_bytes: 0x2000,
            stack_bytes: 0x1000,
            break_bytes: 0
        }
    );
    assert_eq!(site(&mappings, 5), (0x1000, 1, 0, 0));
}

#[test]
fn the_break_grows_from_where_it_was_first_seen() {
    let at = |address| MappingChange { address, ..blank(Change::Break, 1) };
    let mut mappings = feed(&[at(0x1000_0000), at(0x1002_1000)]);
    assert_eq!(mappings.totals().break_bytes, 0x21000);
    mappings.apply(&at(0x1000_1000));
    assert_eq!(mappings.totals().break_bytes, 0x1000);
    let mut known = Mappings::new(Some(0x1000_0000));
    known.apply(&at(0x1000_3000));
    assert_eq!(known.totals().break_bytes, 0x3000);
}

#[test]
fn nonsense_from_a_target_is_ignored() {
    let mappings = feed(&[
        map(u64::MAX - 4095, 0x2000, 1),
        map(0x1001, 0x1000, 1),
        map(0x1000, 0, 1),
        map(0x1000, u64::MAX, 1),
        unmap(0, u64::MAX),
        MappingChange { change: 99, ..map(0x1000, 0x1000, 1) },
    ]);
    assert_eq!(mappings.sites().count(), 0);
}

/// Every page by itself: which mmap call it belongs to.
#[derive(Default)]
struct Pages {
    pages: BTreeMap<u64, u64>,
    stacks: Vec<u64>,
}

impl Pages {
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Map { page, pages, stack } => {
                self.stacks.push(stack);
                let id = self.stacks.len() as u64 - 1;
                (page..page + pages).for_each(|page| {
                    self.pages.insert(page, id);
                });
            }
            Step::Unmap { page, pages, fails } => {
                if !fails {
                    (page..page + pages).for_each(|page| {
                        self.pages.remove(&page);
                    });
                }
            }
            Step::Remap { old, old_pages, new, new_pages, fails } => {
                if fails {
                    return;
                }
                let moved: Vec<Option<u64>> =
                    (old..old + old_pages).map(|page| self.pages.remove(&page)).collect();
                (new..new + new_pages).for_each(|page| {
                    self.pages.remove(&page);
                });
                for index in 0..new_pages {
                    let from = index.min(old_pages - 1) as usize;
                    if let Some(id) = moved[from] {
                        self.pages.insert(new + index, id);
                    }
                }
            }
        }
    }

    fn outstanding(&self) -> BTreeMap<u64, (u64, u64)> {
        let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        for id in self.pages.values() {
            let sum = sums.entry(self.stacks[*id as usize]).or_default();
            sum.0 += PAGE_BYTES;
            sum.1 += u64::from(seen.insert(*id));
        }
        sums
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, pages: u64, stack: u64 },
    Unmap { page: u64, pages: u64, fails: bool },
    Remap { old: u64, old_pages: u64, new: u64, new_pages: u64, fails: bool },
}

impl Step {
    fn records(&self, time_ns: u64) -> Vec<MappingChange> {
        let mut records = match *self {
            Step::Map { page, pages, stack } => vec![map(page * PAGE_BYTES, pages * PAGE_BYTES - 5, stack)],
            Step::Unmap { page, pages, fails } => {
                let mut records = vec![unmap(page * PAGE_BYTES, pages * PAGE_BYTES - 7)];
                if fails {
                    records.push(blank(Change::UnmapFailed, 0));
                }
                records
            }
            Step::Remap { old, old_pages, new, new_pages, fails } => remap(
                (old * PAGE_BYTES, old_pages * PAGE_BYTES),
                (new * PAGE_BYTES, new_pages * PAGE_BYTES),
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                if fails { -14 } else { (new * PAGE_BYTES) as i64 },
            )
            .to_vec(),
        };
        records.iter_mut().for_each(|record| record.header.time_ns = time_ns);
        records
    }
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (1u64..40, 1u64..12);
    prop_oneof![
        (place(), 1u64..5).prop_map(|((page, pages), stack)| Step::Map { page, pages, stack }),
        (place(), any::<bool>()).prop_map(|((page, pages), fails)| Step::Unmap { page, pages, fails }),
        (place(), 0u64..40, 1u64..12, prop::bool::weighted(0.3)).prop_map(
            |((old, old_pages), shift, new_pages, fails)| {
                Step::Remap { old, old_pages, new: 60 + shift, new_pages, fails }
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_interval_map_equals_a_map_of_single_pages(steps in prop::collection::vec(step(), 1..60)) {
        let mut pages = Pages::default();
        let mut mappings = Mappings::new(None);
        for (index, step) in steps.iter().enumerate() {
            pages.apply(step);
            step.records(index as u64).iter().for_each(|record| mappings.apply(record));
            let outstanding: BTreeMap<u64, (u64, u64)> = mappings
                .sites()
                .map(|(stack, t)| (stack, (t.allocated_bytes - t.freed_bytes, t.allocated_count - t.freed_count)))
                .filter(|(_, sums)| *sums != (0, 0))
                .collect();
            prop_assert_eq!(&outstanding, &pages.outstanding(), "after step {}: {:?}", index, step);
            let live: u64 = mappings.live().map(|mapping| mapping.size_bytes).sum();
            prop_assert_eq!(live, mappings.totals().program_bytes);
        }
    }
}
