//! What must hold of anything that is made from arbitrary bytes. A test replays the seeds with it, so that it is compiled
//! without a fuzzer, too.
use leaktrace::{
    foreign,
    unwind::{
        source::Source,
        store::{Capacity, Store},
        table::{Limits, Options, Table},
    },
};

/// A target: its name, which is also that of its folder of seeds, and what takes an input.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them. Each has a file in `fuzz_targets` for libFuzzer.
pub(crate) const TARGETS: [Target; 8] = [
    ("unwind_table", unwind_table),
    ("symbols", foreign::symbols),
    ("elf", foreign::elf),
    ("perf_map", foreign::perf_map),
    ("snapshot", foreign::snapshot),
    ("proc", foreign::proc),
    ("container", foreign::container),
    ("http", foreign::http),
];

const LIMITS: Limits = Limits {
    section_bytes: 1 << 20,
    unpacked_bytes: 1 << 20,
    fdes: 1000,
    rows: 10_000,
    rules: 100,
    pages: 1000,
};

/// Unwind tables of a file, full and pruned.
///
/// # Panics
/// When one breaks a rule that all tables keep.
pub(crate) fn unwind_table(file: &[u8]) {
    for prune in [false, true] {
        let options = Options { prune, synthesize: true, limits: LIMITS };
        if let Ok(table) = Table::read(Source::Bytes(file), &options) {
            check(&table);
        }
    }
}

fn check(table: &Table) {
    assert!(table.rules.len() <= LIMITS.rules);
    assert!(table.rows.len() <= LIMITS.rows);
    assert!(table.pages.len() <= LIMITS.pages);
    let mut next = 0;
    for page in &table.pages {
        assert_eq!(page.first as usize, next);
        let rows = &table.rows[next..next + usize::from(page.rows)];
        assert!(rows.is_sorted_by(|a, b| a & 0xffff < b & 0xffff));
        assert!(rows.first().is_none_or(|row| row & 0xffff == 0));
        assert!(rows.iter().all(|row| ((row >> 16) as usize) < table.rules.len()));
        next += rows.len();
    }
    assert_eq!(next, table.rows.len());
    let added = Store::new(Capacity::for_bytes(1 << 20)).add((), table);
    assert!(added.placed.is_some());
}
