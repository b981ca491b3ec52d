//! Builds unwind tables from arbitrary bytes taken as an ELF file, full and pruned, and checks what must hold of
//! every table. The seeds in `corpus/` are small files with each kind of section; the test
//! `unwind::table::tests::seeds_of_the_fuzzer` writes them.
#![no_main]

use leaktrace::unwind::{
    source::Source,
    store::{Capacity, Store},
    table::{Limits, Options, Table},
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    section_bytes: 1 << 20,
    unpacked_bytes: 1 << 20,
    fdes: 1000,
    rows: 10_000,
    rules: 100,
    pages: 1000,
};

fuzz_target!(|file: &[u8]| {
    for prune in [false, true] {
        if let Ok(table) =
            Table::read(Source::Bytes(file), &Options { prune, synthesize: true, limits: LIMITS })
        {
            check(&table);
        }
    }
});

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
