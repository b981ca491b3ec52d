//! `leaktrace::foreign::container` on arbitrary bytes. The seeds in `corpus/` are small.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| leaktrace::foreign::container(bytes));
