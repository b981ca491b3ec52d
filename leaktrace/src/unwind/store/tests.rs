use super::*;
use crate::unwind::{contents::Contents, table::NO_CFI_RULE, walk::Rules as _};
use leaktrace_common::unwind::{Mapping, kind};
use proptest::prelude::*;

/// A table of `pages` pages with `rows` rows each; the rules' offsets are `first_offset` and those after it.
fn table(pages: u32, rows: u16, rules: u16, first_offset: i32) -> Table {
    let mut table = Table { base_address: 0x40_0000, ..Table::default() };
    table.rules = vec![plain_rule(kind::NO_CFI, 0), plain_rule(kind::UNSUPPORTED, 0)];
    table.rules.extend((0..rules).map(|n| plain_rule(kind::REGISTER, first_offset + i32::from(n))));
    for page in 0..pages {
        table.pages.push(TablePage { first: table.rows.len() as u32, rows });
        let number = |n: u16| 2 + (n + page as u16) % rules.max(1);
        table.rows.extend((0..rows).map(|n| row(n * 8, number(n))));
    }
    table
}

fn plain_rule(kind: u8, cfa_offset: i32) -> Rule {
    let cfa_register = if kind == kind::REGISTER { 7 } else { 0 };
    Rule { kind, saved: 0, cfa_register, reserved: 0, cfa_offset, rbp_offset: 0, rbx_offset: 0 }
}

fn apply(contents: &mut Contents, writes: &[Write]) {
    writes.iter().for_each(|write| contents.apply(write));
}

/// Every row of the table is found in the contents, with the rule that the table has.
fn assert_present(contents: &Contents, table: &Table, placed: Placed) {
    let bias = 0x7000_0000_0000;
    let mapping = Mapping {
        start: 0,
        end: u64::MAX,
        bias,
        first_page: placed.first_page,
        pages: placed.pages as u16,
        salt: 0,
    };
    for (page, _) in (0u64..).zip(&table.pages) {
        for low in (0..0x400).step_by(4) {
            let offset = (page << 16) + low;
            let expected = table.rule_at(table.base_address + offset);
            assert_eq!(contents.rule_at(&mapping, bias + offset).as_ref(), expected, "offset {offset:#x}");
        }
    }
    assert_eq!(contents.rule_at(&mapping, bias + ((table.pages.len() as u64) << 16)), None);
    assert_eq!(contents.rule_at(&mapping, bias - 1), None);
}

#[test]
fn a_table_is_found_where_it_was_placed() {
    let mut store = Store::new(Capacity::for_bytes(2 << 20));
    let mut contents = Contents::default();
    apply(&mut contents, &store.initial_writes());
    let tables = [table(3, 100, 20, 0), table(1, 7, 3, 10), table(2, 0, 0, 0)];
    for (key, table) in tables.iter().enumerate() {
        let added = store.add(key, table);
        apply(&mut contents, &added.writes);
        assert_present(&contents, table, added.placed.unwrap());
    }
    assert_eq!(store.usage().rules, 2 + 20, "the second table's rules are among the first's");
}

#[test]
fn pages_are_written_last_and_rules_first() {
    let mut store = Store::new(Capacity::for_bytes(1 << 20));
    let added = store.add("a", &table(4, 10, 5, 0));
    assert!(matches!(added.writes.first(), Some(Write::Rules { first: 2, rules }) if rules.len() == 5));
    assert!(matches!(added.writes.last(), Some(Write::Pages { first: 0, pages }) if pages.len() == 4));
}

#[test]
fn the_pages_of_one_table_lie_one_after_the_other() {
    let mut store = Store::new(Capacity::for_bytes(4 << 20));
    let added = store.add("a", &table(300, 3000, 5, 0));
    let runs = added.writes.iter().filter(|write| matches!(write, Write::Slab { .. })).count();
    assert_eq!(runs, 4, "900,000 rows fill four slabs, each in one run");
}

#[test]
fn the_same_contents_are_placed_once() {
    let mut store = Store::new(Capacity::for_bytes(1 << 20));
    let first = store.add("a", &table(1, 10, 5, 0));
    let second = store.add("a", &table(1, 10, 5, 0));
    assert_eq!(first.placed, second.placed);
    assert_eq!(second.writes, []);
    assert_eq!(store.acquire(&"a"), first.placed);
    assert_eq!(store.acquire(&"b"), None);
}

#[test]
fn the_table_unused_for_longest_goes_first_and_those_in_use_stay() {
    let mut store = Store::new(Capacity { slabs: 1, pages: 3, rules: 100 });
    for key in ["a", "b", "c"] {
        assert!(store.add(key, &table(1, 10, 5, 0)).placed.is_some());
    }
    assert_eq!(store.add("d", &table(1, 10, 5, 0)).placed, None, "all are in use");
    store.release(&"a");
    store.release(&"b");
    let a = store.acquire(&"a");
    assert!(a.is_some(), "an unused table is still there");
    store.release(&"a");
    let added = store.add("d", &table(1, 10, 5, 0));
    assert_eq!(added.evicted, ["b"]);
    assert!(added.placed.is_some());
    assert!(matches!(added.writes.first(), Some(Write::Pages { first: 1, pages }) if pages[0].rows == 0));
}

#[test]
fn a_table_that_can_never_fit_evicts_nothing() {
    let mut store = Store::new(Capacity { slabs: 1, pages: 3, rules: 100 });
    store.add("a", &table(1, 10, 5, 0));
    store.release(&"a");
    let added = store.add("b", &table(4, 10, 5, 0));
    assert_eq!((added.placed, added.evicted.len()), (None, 0));
    assert!(store.acquire(&"a").is_some());
}

#[test]
fn rules_beyond_the_last_number_are_unsupported_and_counted() {
    let mut store = Store::new(Capacity { slabs: 1, pages: 3, rules: 6 });
    let mut contents = Contents::default();
    apply(&mut contents, &store.initial_writes());
    let added = store.add("a", &table(1, 10, 10, 0));
    apply(&mut contents, &added.writes);
    assert_eq!((store.usage().rules, store.usage().lost_rules), (6, 6));
    let mapping = Mapping { start: 0, end: 1 << 16, bias: 0, first_page: 0, pages: 1, salt: 0 };
    assert_eq!(contents.rule_at(&mapping, 3 * 8).map(|rule| rule.cfa_offset), Some(3));
    assert_eq!(contents.rule_at(&mapping, 4 * 8).map(|rule| rule.kind), Some(kind::UNSUPPORTED));
}

#[test]
fn an_evicted_table_gives_its_rule_numbers_back() {
    let mut store = Store::new(Capacity { slabs: 1, pages: 1, rules: 12 });
    for round in 0..50 {
        assert!(store.add(round, &table(1, 10, 10, 100 * round)).placed.is_some());
        store.release(&round);
    }
    assert_eq!((store.usage().rules, store.usage().lost_rules), (12, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Add { key: u8, pages: u32, rows: u16, rules: u16 },
    Release { key: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let add = (0u8..12, 0u32..6, 0u16..2000, 1u16..20).prop_map(|(key, pages, rows, rules)| Step::Add {
        key,
        pages,
        rows,
        rules,
    });
    prop::collection::vec(prop_oneof![add, (0u8..12).prop_map(|key| Step::Release { key })], 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_comes_and_goes_tables_in_use_stay_intact(steps in steps()) {
        let mut store = Store::new(Capacity { slabs: 1, pages: 24, rules: 60 });
        let mut contents = Contents::default();
        apply(&mut contents, &store.initial_writes());
        let mut there: HashMap<u8, (Table, Placed, u32)> = HashMap::new();
        for step in steps {
            match step {
                Step::Add { key, pages, rows, rules } => {
                    let table = table(pages, rows, rules, i32::from(key) * 3);
                    let added = store.add(key, &table);
                    apply(&mut contents, &added.writes);
                    for key in added.evicted {
                        let gone = there.remove(&key);
                        prop_assert_eq!(gone.map(|(_, _, references)| references), Some(0));
                    }
                    if let Some(placed) = added.placed {
                        there.entry(key).or_insert((table, placed, 0)).2 += 1;
                    }
                }
                Step::Release { key } => {
                    store.release(&key);
                    if let Some((_, _, references)) = there.get_mut(&key) {
                        *references = references.saturating_sub(1);
                    }
                }
            }
            let usage = store.usage();
            let rows: usize = there.values().map(|(table, ..)| table.rows.len()).sum();
            prop_assert_eq!(usage.rows, rows as u64);
            prop_assert_eq!(usage.tables_in_use + usage.tables_kept, there.len());
        }
        if store.usage().lost_rules == 0 {
            for (table, placed, _) in there.values() {
                assert_present(&contents, table, *placed);
            }
        }
        prop_assert_eq!(NO_CFI_RULE, 0);
    }
}
