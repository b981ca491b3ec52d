use super::*;
use crate::unwind::{
    elf::Packing,
    fixture::{AT_ENTRY, Cfi, Fixture, TEXT},
    packed::pack,
};
use leaktrace_common::unwind::saved;
use proptest::prelude::*;

/// `DW_CFA_advance_loc`.
const fn advance(bytes: u8) -> u8 {
    0x40 | bytes
}

/// `DW_CFA_def_cfa_offset`, in one byte of LEB128.
const fn cfa_offset(bytes: u8) -> [u8; 2] {
    [0x0e, bytes]
}

fn build(fixture: &Fixture) -> Table {
    build_with(fixture, &Options { synthesize: false, ..Options::default() })
}

fn build_with(fixture: &Fixture, options: &Options) -> Table {
    Table::read(Source::Bytes(&fixture.bytes()), options).unwrap()
}

fn of_eh_frame(make: impl FnOnce(&mut Cfi)) -> Table {
    let mut cfi = Cfi::new(false);
    make(&mut cfi);
    build(&Fixture::new(&cfi))
}

/// The kind and CFA offset in force at an offset in the text.
fn at(table: &Table, offset: u64) -> Option<(u8, i32)> {
    table.rule_at(TEXT + offset).map(|rule| (rule.kind, rule.cfa_offset))
}

const NO_CFI: Option<(u8, i32)> = Some((kind::NO_CFI, 0));
const UNSUPPORTED: Option<(u8, i32)> = Some((kind::UNSUPPORTED, 0));

#[test]
fn each_row_holds_from_its_address_to_the_next() {
    let table = of_eh_frame(|cfi| {
        let [set, bytes] = cfa_offset(16);
        cfi.fde(TEXT + 0x10, 0x20, &[advance(1), set, bytes, 0x86, 2, advance(3), 0x0d, 6]);
    });
    assert_eq!(table.base_address, TEXT);
    assert_eq!(at(&table, 0xf), NO_CFI);
    assert_eq!(at(&table, 0x10), Some((kind::REGISTER, 8)));
    let pushed = table.rule_at(TEXT + 0x13).unwrap();
    assert_eq!((pushed.cfa_register, pushed.cfa_offset), (7, 16));
    assert_eq!((pushed.saved, pushed.rbp_offset), (saved::RBP, -16));
    assert_eq!(table.rule_at(TEXT + 0x14).unwrap().cfa_register, 6);
    assert_eq!(at(&table, 0x2f), Some((kind::REGISTER, 16)));
    assert_eq!(at(&table, 0x30), NO_CFI);
    assert_eq!(at(&table, 0x1_0000), None);
}

#[test]
fn the_entry_point_of_the_dynamic_linker_ends_a_complete_stack() {
    let bytes = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    let source = Source::Bytes(&bytes);
    let elf = Elf::read(&source).unwrap();
    for synthesize in [false, true] {
        let table = Table::build(source, &elf, &Options { synthesize, ..Options::default() });
        // The return address of the call behind the first instruction, looked up at the byte before.
        assert_eq!(table.rule_at(elf.entry + 7).map(|rule| rule.kind), Some(kind::OUTERMOST));
    }
}

#[test]
fn entries_count_by_address_whatever_their_order_in_the_file() {
    let table = of_eh_frame(|cfi| {
        let [set, bytes] = cfa_offset(24);
        cfi.fde(TEXT + 0x100, 0x10, &[set, bytes]).fde(TEXT, 0x10, &[]);
    });
    assert_eq!((at(&table, 0), at(&table, 0x80)), (Some((kind::REGISTER, 8)), NO_CFI));
    assert_eq!(at(&table, 0x100), Some((kind::REGISTER, 24)));
}

#[test]
fn of_two_that_overlap_the_one_that_begins_later_holds_to_its_end() {
    let table = of_eh_frame(|cfi| {
        let [set, bytes] = cfa_offset(24);
        cfi.fde(TEXT, 0x100, &[]).fde(TEXT + 0x40, 0x10, &[set, bytes]);
    });
    let found = [0x3f, 0x40, 0x4f, 0x50].map(|offset| at(&table, offset));
    assert_eq!(
        found,
        [Some((kind::REGISTER, 8)), Some((kind::REGISTER, 24)), Some((kind::REGISTER, 24)), NO_CFI]
    );
}

#[test]
fn every_page_begins_with_the_rule_in_force() {
    let table = of_eh_frame(|cfi| {
        cfi.fde(TEXT + 0x10, 0x2_8000, &[]).fde(TEXT + 0x5_0000, 0x10, &[]);
    });
    let counts: Vec<u16> = table.pages.iter().map(|page| page.rows).collect();
    assert_eq!(counts, [2, 1, 2, 0, 0, 2]);
    for page in table.pages.iter().filter(|page| page.rows > 0) {
        assert_eq!(table.rows[page.first as usize] & 0xffff, 0);
    }
    assert_eq!(at(&table, 0x1_0000), Some((kind::REGISTER, 8)));
    assert_eq!((at(&table, 0x2_8010), at(&table, 0x3_0000)), (NO_CFI, None));
}

#[test]
fn text_that_ends_with_a_page_needs_no_row_after_it() {
    let table = of_eh_frame(|cfi| {
        cfi.fde(TEXT, 0x1_0000, &[]);
    });
    assert_eq!((table.pages.len(), table.rows.len()), (1, 1));
}

#[test]
fn an_undefined_return_address_is_the_outermost_frame() {
    let table = of_eh_frame(|cfi| {
        cfi.fde(TEXT, 0x10, &[0x07, 16]);
    });
    assert_eq!(at(&table, 5), Some((kind::OUTERMOST, 0)));
}

#[test]
fn the_plt_of_either_linkage_is_known_by_its_expression() {
    for threshold in [11, 9] {
        let expression = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x30 + threshold, 0x2a, 0x33, 0x24, 0x22];
        let table = of_eh_frame(|cfi| {
            cfi.fde(TEXT, 0x10, &[&[0x0f, 11], &expression[..]].concat());
        });
        assert_eq!(at(&table, 0), Some((kind::PLT, i32::from(threshold))));
    }
}

#[test]
fn a_realigned_stack_is_known_with_where_it_saved_rbx() {
    // def_cfa_expression breg6 -8, deref; expression rbp, breg6 0; expression rbx, breg6 -24.
    let code = [0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0, 0x10, 3, 2, 0x76, 0x68];
    let table = of_eh_frame(|cfi| {
        cfi.fde(TEXT, 0x10, &code).fde(TEXT + 0x10, 0x10, &code[..10]).fde(TEXT + 0x20, 0x10, &code[..5]);
    });
    let rule = table.rule_at(TEXT).unwrap();
    assert_eq!((rule.kind, rule.cfa_offset, rule.saved, rule.rbx_offset), (kind::DRAP, -8, saved::RBX, -24));
    assert_eq!(table.rule_at(TEXT + 0x10).unwrap().saved, 0);
    assert_eq!(at(&table, 0x20), UNSUPPORTED, "rbp is not where such functions save it");
}

#[test]
fn what_a_rule_cannot_say_is_unsupported() {
    let cases: [&[u8]; 6] = [
        &[0x0c, 0, 8],                               // CFA by rax
        &[0x0f, 2, 0x77, 8],                         // an expression
        &[0x90, 2],                                  // the return address at CFA - 16
        &[0x09, 6, 12],                              // rbp in r12
        &[0x07, 3],                                  // rbx lost
        &[0x0e, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], // an offset of more than 32 bits
    ];
    for case in cases {
        let table = of_eh_frame(|cfi| {
            cfi.fde(TEXT, 0x10, case);
        });
        assert_eq!(at(&table, 0), UNSUPPORTED, "{case:x?}");
        assert_eq!(table.facts.unsupported_rows, 1);
    }
}

#[test]
fn a_program_that_breaks_off_is_unsupported_from_there_on() {
    let table = of_eh_frame(|cfi| {
        cfi.fde(TEXT, 0x10, &[advance(4), 0x0e, 16, advance(4), 0x3f]).fde(TEXT + 0x10, 0x10, &[]);
    });
    let found = [0, 4, 8, 0xf, 0x10].map(|offset| at(&table, offset));
    let register = |offset| Some((kind::REGISTER, offset));
    assert_eq!(found, [register(8), register(16), UNSUPPORTED, UNSUPPORTED, register(8)]);
}

#[test]
fn a_signal_frame_is_known_by_its_cfa_and_other_uses_of_s_are_unsupported() {
    // def_cfa_expression breg7 160, deref.
    let table = of_eh_frame(|cfi| {
        cfi.cie("zRS", AT_ENTRY);
        cfi.fde(TEXT, 0x10, &[0x0f, 4, 0x77, 0xa0, 0x01, 0x06]).fde(TEXT + 0x10, 0x10, &[]);
    });
    assert_eq!((at(&table, 0), at(&table, 0x10)), (Some((kind::SIGNAL, 0)), UNSUPPORTED));
}

#[test]
fn code_that_returns_from_a_signal_is_known_without_cfi_or_with_ordinary_cfi() {
    let long = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x100, &[]).fde(TEXT + 0x8_0000, 0x10, &[]);
    let mut fixture = Fixture::new(&cfi);
    for place in [0x40, 0x200, 0x8_0000, 0xf_fffb - 0xa_0000] {
        fixture.text[place..place + long.len()].copy_from_slice(&long);
    }
    fixture.text[0x300..0x308].copy_from_slice(&[0x41, 0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]);
    fixture.text[0x400..0x407].copy_from_slice(&[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]);
    let table = build(&fixture);
    assert_eq!(table.facts.signal_returns, 4);
    assert_eq!(at(&table, 0x40), Some((kind::REGISTER, 8)), "in the middle of a function");
    assert_eq!((at(&table, 0x1fe), at(&table, 0x1ff)), (NO_CFI, Some((kind::SIGNAL, 0))));
    assert_eq!((at(&table, 0x208), at(&table, 0x209)), (Some((kind::SIGNAL, 0)), NO_CFI));
    assert_eq!(at(&table, 0x8_0000 - 1), Some((kind::SIGNAL, 0)));
    assert_eq!((at(&table, 0x301), at(&table, 0x3ff)), (NO_CFI, Some((kind::SIGNAL, 0))));
}

#[test]
fn debug_frame_fills_what_eh_frame_leaves_open() {
    let mut debug = Cfi::new(true);
    debug.fde(TEXT, 0x10, &[0x0e, 32]).fde(TEXT + 0x100, 0x10, &[0x0e, 48]).fde(0, 0x10, &[]);
    let mut eh = Cfi::new(false);
    eh.fde(TEXT, 0x10, &[]);
    let mut fixture = Fixture::new(&eh);
    fixture.debug_frame = debug.bytes;
    let table = build(&fixture);
    assert_eq!((at(&table, 0), at(&table, 0x100)), (Some((kind::REGISTER, 8)), Some((kind::REGISTER, 48))));
    assert_eq!((table.facts.eh_frame_fdes, table.facts.debug_frame_fdes), (1, 1));
    assert_eq!(table.facts.lost_fdes, 1, "the linker left one of a discarded function, at 0");
}

#[test]
fn a_compressed_debug_frame_is_read_like_any_other() {
    let mut debug = Cfi::new(true);
    debug.fde(TEXT + 0x100, 0x10, &[0x0e, 48]);
    for (packing, zstd) in [(Packing::Elf, false), (Packing::Elf, true), (Packing::Gnu, false)] {
        let mut fixture = Fixture::new(&Cfi::default());
        fixture.debug_frame = pack(&debug.bytes, packing, zstd);
        fixture.packing = Some(packing);
        let table = build(&fixture);
        assert_eq!(at(&table, 0x100), Some((kind::REGISTER, 48)), "{packing:?} {zstd}");
        assert_eq!((table.facts.debug_frame_fdes, table.facts.problem), (1, None));
    }
}

#[test]
fn a_compressed_debug_frame_that_cannot_be_unpacked_is_named_as_the_problem() {
    let mut fixture = Fixture::new(&Cfi::default());
    fixture.debug_frame = vec![1; 100];
    fixture.packing = Some(Packing::Elf);
    let table = build(&fixture);
    assert_eq!(table.pages, []);
    let problem = table.facts.problem.unwrap();
    assert!(problem.contains("its compressed .debug_frame is larger than is unpacked"), "{problem}");
}

#[test]
fn a_file_without_section_headers_is_read_by_its_program_headers() {
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x10, &[]);
    let mut fixture = Fixture::new(&cfi);
    fixture.is_stripped = true;
    let table = build(&fixture);
    assert!(table.facts.is_stripped);
    assert_eq!(at(&table, 0), Some((kind::REGISTER, 8)));
}

#[test]
fn pruning_keeps_the_rules_that_hold_at_calls() {
    let mut cfi = Cfi::new(false);
    let rows: Vec<u8> = (2u8..10).flat_map(|n| [advance(8), 0x0e, 8 * n]).collect();
    cfi.fde(TEXT, 0x80, &rows);
    let mut fixture = Fixture::new(&cfi);
    fixture.text[0x13] = 0xe8;
    fixture.text[0x2f..0x31].copy_from_slice(&[0xff, 0xd0]);
    fixture.text[0x39..0x3b].copy_from_slice(&[0xff, 0xe0]);
    let full = build(&fixture);
    let pruned = build_with(&fixture, &Options { prune: true, synthesize: false, ..Options::default() });
    assert_eq!((full.rows.len(), pruned.rows.len()), (10, 4));
    for call in [0x13, 0x14, 0x17, 0x2f] {
        assert_eq!(at(&pruned, call), at(&full, call), "{call:#x}");
    }
    assert_eq!(at(&pruned, 0), NO_CFI);
}

#[test]
fn too_many_rules_are_unsupported_and_counted() {
    let rows: Vec<u8> = (2u8..50).flat_map(|n| [advance(1), 0x0e, n]).collect();
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x80, &rows);
    let options = Options {
        limits: Limits { rules: 10, ..Limits::default() },
        synthesize: false,
        ..Options::default()
    };
    let table = build_with(&Fixture::new(&cfi), &options);
    assert_eq!((table.rules.len(), table.facts.lost_rules), (10, 48 - 8));
    assert_eq!((at(&table, 6), at(&table, 20)), (Some((kind::REGISTER, 7)), UNSUPPORTED));
}

#[test]
fn too_many_rows_end_in_an_unsupported_one() {
    let rows: Vec<u8> = (2u8..50).flat_map(|n| [advance(1), 0x0e, n]).collect();
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x80, &rows);
    let options =
        Options { limits: Limits { rows: 10, ..Limits::default() }, synthesize: false, ..Options::default() };
    let table = build_with(&Fixture::new(&cfi), &options);
    assert_eq!((table.rows.len(), table.facts.lost_rows), (10, 40));
    assert_eq!((at(&table, 8), at(&table, 9)), (Some((kind::REGISTER, 9)), UNSUPPORTED));
    assert_eq!(at(&table, 0x90), UNSUPPORTED);
}

#[test]
fn a_page_full_of_rows_loses_the_last_one_only() {
    let rows: Vec<u8> = (0..0xffffu32).flat_map(|n| [advance(1), 0x0e, 8 + (n as u8 & 1) * 8]).collect();
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x1_0000, &[&[0x0e, 16][..], &rows].concat());
    let table = build(&Fixture::new(&cfi));
    assert_eq!((table.pages[0].rows, table.facts.lost_rows), (u16::MAX, 1));
    assert_eq!((at(&table, 0xfffd), at(&table, 0xffff)), (Some((kind::REGISTER, 8)), UNSUPPORTED));
}

#[test]
fn segments_far_apart_make_no_more_pages_than_the_limit() {
    let mut cfi = Cfi::new(false);
    cfi.fde(TEXT, 0x10, &[]).fde(TEXT + 0xf_0000, 0x10, &[]);
    let options =
        Options { limits: Limits { pages: 4, ..Limits::default() }, synthesize: false, ..Options::default() };
    let table = build_with(&Fixture::new(&cfi), &options);
    assert!(table.pages.len() <= 4);
    assert!(table.facts.lost_rows > 0);
}

#[test]
fn an_enormous_cie_is_refused() {
    let mut cfi = Cfi::default();
    cfi.cie("zR", &[AT_ENTRY, &[0; 4000]].concat());
    (0..100u64).for_each(|n| {
        cfi.fde(TEXT + 16 * n, 16, &[]);
    });
    let table = build(&Fixture::new(&cfi));
    assert_eq!((table.pages.len(), table.facts.lost_fdes), (0, 100));
}

#[test]
fn the_work_is_bounded_by_the_size_of_the_file() {
    // 1,000 bytes of nested `remember_state` and `restore_state` in the CIE, to be run for every FDE.
    let mut cfi = Cfi::default();
    cfi.cie("zR", &[AT_ENTRY, &[0x0a, 0x0b].repeat(480)].concat());
    (0..10_000u64).for_each(|n| {
        cfi.fde(TEXT + 16 * n, 16, &[]);
    });
    let table = build(&Fixture::new(&cfi));
    assert_eq!(at(&table, 0), Some((kind::REGISTER, 8)));
    assert_eq!(at(&table, 16 * 9_999), UNSUPPORTED, "the budget is spent before");
}

/// A file that has everything.
fn rich() -> Fixture {
    let mut eh = Cfi::new(false);
    eh.fde(
        TEXT,
        0x40,
        &[advance(1), 0x0e, 16, 0x86, 2, advance(3), 0x0d, 6, 0x0a, advance(9), 0x0c, 7, 8, 0x0b],
    );
    eh.fde(TEXT + 0x40, 0x20, &[0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0]);
    eh.cie("zRS", AT_ENTRY);
    eh.fde(TEXT + 0x80, 0x10, &[0x0f, 4, 0x77, 0xa0, 0x01, 0x06]);
    let mut debug = Cfi::new(true);
    debug.fde(TEXT + 0xa0, 0x10, &[0x0e, 48]).fde(TEXT + 0xb0, 0x10, &[0x07, 16]);
    Fixture { text: vec![0xe8; 0x9000], debug_frame: debug.bytes, ..Fixture::new(&eh) }
}

/// The same in a file that a fuzzer can take in at a glance.
fn small(is_stripped: bool) -> Fixture {
    let mut fixture = Fixture { is_stripped, ..rich() };
    fixture.text.truncate(0xd0);
    fixture
}

#[test]
fn seeds_of_the_fuzzer() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/unwind_table");
    for (name, is_stripped) in [("sections", false), ("stripped", true)] {
        let seed = small(is_stripped).bytes();
        if std::env::var_os("LEAKTRACE_WRITE_SEEDS").is_some() {
            std::fs::write(folder.join(name), &seed).unwrap();
        }
        let stored = std::fs::read(folder.join(name)).unwrap();
        assert!(stored == seed, "{name} is out of date: run this test with LEAKTRACE_WRITE_SEEDS=1");
    }
}

/// What holds of every table, whatever it was built from.
fn check(table: &Table, limits: &Limits) -> Result<(), TestCaseError> {
    prop_assert!(table.rules.len() <= limits.rules);
    prop_assert!(table.rows.len() <= limits.rows);
    prop_assert!(table.pages.len() <= limits.pages);
    let mut next = 0;
    for page in &table.pages {
        prop_assert_eq!(page.first, next);
        next += u32::from(page.rows);
        let rows = &table.rows[page.first as usize..next as usize];
        prop_assert!(rows.is_sorted_by(|a, b| a & 0xffff < b & 0xffff));
        prop_assert!(rows.first().is_none_or(|row| row & 0xffff == 0));
        prop_assert!(rows.iter().all(|row| ((row >> 16) as usize) < table.rules.len()));
    }
    prop_assert_eq!(next as usize, table.rows.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn damaged_files_give_a_bounded_table_or_an_error(
        is_stripped: bool,
        prune: bool,
        synthesize: bool,
        // Half of the changes hit the headers and the CFI, which are small beside the text.
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..12),
        length in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = Fixture { is_stripped, ..rich() }.bytes();
        let small: Vec<usize> = (0..0x100).chain(file.len() - 0x300..file.len()).collect();
        for (place, value, in_small) in changes {
            let at = if in_small { *place.get(&small) } else { place.index(file.len()) };
            file[at] = value;
        }
        if let Some(length) = length {
            file.truncate(length.index(file.len()));
        }
        let limits = Limits { rows: 500, rules: 40, pages: 30, fdes: 50, section_bytes: 1 << 20, unpacked_bytes: 1 << 20 };
        if let Ok(table) = Table::read(Source::Bytes(&file), &Options { synthesize, prune, limits }) {
            check(&table, &limits)?;
        }
    }

    #[test]
    fn arbitrary_call_frame_information_gives_a_bounded_table(
        entries in prop::collection::vec((0u64..0x3_0000, 0u64..0x2_0000, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        initial in prop::collection::vec(any::<u8>(), 0..12),
        is_debug_frame: bool,
    ) {
        let mut cfi = Cfi::new(is_debug_frame);
        cfi.cie("zRS", &initial);
        for (offset, length, code) in entries {
            cfi.fde(TEXT + offset, length, &code);
        }
        let mut fixture = Fixture::new(&Cfi::default());
        *(if is_debug_frame { &mut fixture.debug_frame } else { &mut fixture.eh_frame }) = cfi.bytes;
        let options = Options { synthesize: false, ..Options::default() };
        check(&build_with(&fixture, &options), &options.limits)?;
    }
}

#[test]
#[ignore = "a measurement: name files in LEAKTRACE_UNWIND_FILES, separated by colons"]
fn cost_of_building_tables() {
    let files = std::env::var("LEAKTRACE_UNWIND_FILES").unwrap();
    for path in files.split(':') {
        let file = std::fs::File::open(path).unwrap();
        for prune in [false, true] {
            let options = Options { prune, ..Options::default() };
            let table = Table::read(Source::File(&file), &options).unwrap();
            let (kib, rows, rules) = (table.size_bytes() >> 10, table.rows.len(), table.rules.len());
            println!("{path}: {rows} rows, {rules} rules, {kib} KiB, {:?}", table.facts);
        }
    }
}
