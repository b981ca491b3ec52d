//! The readers of what comes from outside, each as a function of bytes: what fuzzers and the test that replays their seeds
//! call. No part of what leaktrace does for its users.
use std::io::Write as _;

use axum::{extract::Query, http::HeaderMap};

use crate::{
    agent::http::{host, query},
    discover::{
        allocators::HookTable, container, elf::ElfFile, maps, object::ObjectFile, options::FunctionAt,
        process, scan,
    },
    export::pprof,
    symbolize::{self, Limits, Module, finder::Finder},
};

/// Larger inputs say nothing that small ones do not.
const MAX_BYTES: usize = 1 << 20;
/// Addresses that are looked up in one file.
const MAX_LOOKUPS: u64 = 16;

fn file_of(bytes: &[u8]) -> Option<std::fs::File> {
    let mut file = symbolize::anonymous_file().ok()?;
    file.write_all(bytes.get(..MAX_BYTES).unwrap_or(bytes)).ok()?;
    Some(file)
}

/// Symbols, lines and inlined functions of a file, with and without debug information.
pub fn symbols(bytes: &[u8]) {
    let Some(module) = file_of(bytes).and_then(|file| Module::open("/fuzzed".to_owned(), file).ok()) else {
        return;
    };
    let limits = Limits { file_bytes: 8 << 20, debug_dirs: Vec::new(), ..Limits::default() };
    let mut finder = Finder::new(limits);
    for step in 0..MAX_LOOKUPS {
        let Some(address) = module.virtual_offset(step * 64).or_else(|| module.first_code(step * 64)) else {
            return;
        };
        for lines in [true, false] {
            assert!(!finder.resolve(&module, address, lines).is_empty());
        }
    }
}

/// Allocation functions of a file, their extents and relocations.
pub fn elf(bytes: &[u8]) {
    let Some(object) = file_of(bytes).and_then(|file| ObjectFile::of_file(file).ok()) else { return };
    let table = HookTable::new(&[]);
    let _ = scan::scan(&object, &table, true, &[] as &[FunctionAt]);
    let Ok(file) = ElfFile::parse(&object) else { return };
    for address in (0x1000..0x1400).step_by(16) {
        if let Some(extent) = file.function_extent(address) {
            assert!(extent.contains(&address));
        }
    }
    let _ = (file.slots_of(b"malloc"), file.soname(), file.build_id());
}

/// Perf maps, in two parts, as they grow.
pub fn perf_map(bytes: &[u8]) {
    symbolize::read_perf_map(bytes);
}

/// Snapshot files; what was read is written and read again.
pub fn snapshot(bytes: &[u8]) {
    if let Ok(snapshot) = pprof::read(bytes) {
        let again = pprof::read(&pprof::write(&snapshot));
        assert!(again.is_ok_and(|again| again.time == snapshot.time), "what was read cannot be written");
    }
}

/// Texts of /proc.
pub fn proc(bytes: &[u8]) {
    for entry in maps::parse(bytes) {
        assert!(entry.start < entry.end);
    }
    process::read_texts(bytes);
    container::read_groups(&String::from_utf8_lossy(bytes));
}

/// What runtimes write about containers.
pub fn container(bytes: &[u8]) {
    container::read_descriptions(bytes);
}

/// Queries of HTTP, and the name that a request asks for.
pub fn http(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some((first, second)) = text.split_once('\n') else { return };
    let mut headers = HeaderMap::new();
    if let Ok(value) = second.parse() {
        headers.insert("host", value);
    }
    let Ok(uri) = format!("/?{first}").parse() else { return };
    let _ = host::demand(&uri, &headers, &[], "host");
    if let Ok(Query(query)) = Query::<query::HistoryQuery>::try_from_uri(&uri) {
        let _ = (query::time("from", query.from.as_deref(), 0), query::time("to", query.to.as_deref(), 0));
    }
    let _ = Query::<query::LeaksQuery>::try_from_uri(&uri);
    let _ = Query::<query::CompareQuery>::try_from_uri(&uri);
    let _ = Query::<query::HeapQuery>::try_from_uri(&uri);
}
