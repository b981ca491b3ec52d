//! Builds unwind tables from arbitrary bytes taken as an ELF file, full and pruned, and checks what must hold of
//! every table. The seeds in `corpus/` are small files with each kind of section; the test
//! `unwind::table::tests::seeds_of_the_fuzzer` writes them.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|file: &[u8]| check::TARGETS[0].1(file));
