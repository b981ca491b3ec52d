//! Against the libraries of this machine and damaged copies of them.
use super::{
    super::object::ObjectFile,
    symbols::{NameSet, SymbolKind},
    *,
};
use std::{fs::File, io::Write};

fn libc() -> ObjectFile {
    let path = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap();
    ObjectFile::of_file(File::open(path).unwrap()).unwrap()
}

fn names(list: &[&str]) -> NameSet {
    let mut names = NameSet::default();
    for name in list {
        names.insert(name.as_bytes());
    }
    names
}

fn object_of(bytes: &[u8]) -> ObjectFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    ObjectFile::of_file(file).unwrap()
}

#[test]
fn libc_defines_malloc_with_code_and_an_extent_that_agrees_with_the_symbol() {
    let file = libc();
    let elf = ElfFile::parse(&file).unwrap();
    let names = names(&["malloc", "free", "not_a_symbol_of_libc"]);
    let symbols = elf.symbols(&names).unwrap();
    assert_eq!(symbols.len(), 2);
    for symbol in symbols {
        assert_eq!(symbol.kind, SymbolKind::Function);
        let extent = elf.function_extent(symbol.address).unwrap();
        assert_eq!(extent.start, symbol.address);
        assert!(extent.end >= symbol.address + symbol.size_bytes);
        assert!(elf.code(symbol.address, 16).unwrap().len() == 16);
        let offset = elf.code_offset(symbol.address).unwrap();
        assert_eq!(elf.code_address(offset), Some(symbol.address));
    }
    assert_eq!(elf.soname().unwrap(), b"libc.so.6");
    assert!(elf.build_id().is_some());
}

#[test]
fn a_slot_of_libc_leads_to_the_symbol_it_holds() {
    let file = libc();
    let elf = ElfFile::parse(&file).unwrap();
    let slots = elf.slots_of(b"realloc");
    assert!(!slots.is_empty(), "libc calls its own realloc through the PLT");
    let symbol = elf.slot_symbol(slots[0]).unwrap();
    assert_eq!(symbol.name, b"realloc");
    assert_ne!(symbol.address, 0);
}

#[test]
fn a_name_keeps_its_index() {
    let mut names = NameSet::default();
    let index = names.insert(b"free");
    assert_eq!(names.insert(b"free"), index);
    assert_eq!(names.find(b"free"), Some(index));
    assert_eq!(names.name(index), b"free");
}

#[test]
fn text_is_no_elf_file_and_32_bit_is_foreign() {
    assert!(matches!(ElfFile::parse(&object_of(b"#!/bin/sh\n")), Err(ElfError::NotElf)));
    let mut header = vec![0; 64];
    header[..5].copy_from_slice(b"\x7fELF\x01");
    header[18] = 3;
    let foreign = object_of(&header);
    assert!(matches!(ElfFile::parse(&foreign), Err(ElfError::Foreign { class: 1, machine: 3 })));
}

#[test]
fn truncated_and_damaged_files_give_errors_or_less_but_never_a_panic() {
    let file = libc();
    let good = file.read_at(0, 256 << 10).unwrap();
    let names = names(&["malloc", "free"]);
    let mut seed = 0x1234_5678_9abc_def1u64;
    for round in 0..300 {
        let mut bytes = good.clone();
        bytes.truncate(if round % 3 == 0 { 1 + (seed % 200_000) as usize } else { bytes.len() });
        for _ in 0..20 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 20) as usize % bytes.len().min(if round % 2 == 0 { 1024 } else { usize::MAX });
            bytes[at] = (seed >> 50) as u8;
        }
        let object = object_of(&bytes);
        if let Ok(elf) = ElfFile::parse(&object) {
            drop(elf.symbols(&names));
            elf.function_extent(0x98930);
            elf.relocations();
            elf.slots_of(b"malloc");
            elf.build_id();
            elf.soname();
            elf.code(0x98930, 4096);
        }
    }
}
