//! `leaktrace::foreign::perf_map` on arbitrary bytes. The seeds in `corpus/` are small.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| leaktrace::foreign::perf_map(bytes));
