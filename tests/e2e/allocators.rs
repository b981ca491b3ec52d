//! Exact mode equals the ledger for every function of every allocator: C, C++ and Rust, dynamic and static.
use anyhow::Result;
use leaktrace_tests::{
    compile::{self, Build, library},
    scenario::Case,
};

const EVERYWHERE: &[&str] = &[
    "leak_malloc",
    "leak_calloc",
    "leak_malloc_zero",
    "leak_malloc_large",
    "leak_realloc_null",
    "leak_realloc_grow",
    "leak_realloc_fails",
    "leak_reallocarray",
    "leak_memalign",
    "leak_aligned_alloc",
    "leak_posix_memalign",
    "leak_valloc",
    "leak_strdup",
];

fn calls(build: Build) -> Result<Case> {
    Ok(Case::new(compile::fixture("calls.c", build, &[])?).must_have(EVERYWHERE))
}

fn musl(build: Build) -> Result<Case> {
    calls(build)
}

fn preloaded(case: Case, name: &str) -> Result<Case> {
    let path = library(name)?;
    Ok(case.variable("LD_PRELOAD", &path.to_string_lossy()))
}

fn jemalloc(case: Case) -> Result<Case> {
    preloaded(case, "libjemalloc.so.2")
}

fn tcmalloc(case: Case) -> Result<Case> {
    preloaded(case, "libtcmalloc_minimal.so.4")
}

fn mimalloc(case: Case) -> Result<Case> {
    preloaded(case, "libmimalloc.so.2.0")
}

fn cxx(build: Build) -> Result<Case> {
    Ok(Case::new(compile::fixture("cxx.cpp", build, &[])?)
        // A call that the new_handler leaves by longjmp is known to be lost; the sites after it must be exact.
        .allow_losses(&["lost_returns"])
        .must_have(&["leak_new", "leak_new_array_aligned_nothrow", "none_new_throws", "leak_new_after_all"]))
}

const JEMALLOC_ONLY: &[&str] = &[
    "leak_mallocx",
    "leak_mallocx_aligned",
    "leak_rallocx",
    "leak_rallocx_fails",
    "leak_xallocx",
    "none_nallocx",
];
const TCMALLOC_ONLY: &[&str] =
    &["leak_tc_malloc", "leak_tc_new", "leak_tc_realloc", "leak_tc_posix_memalign"];
const MIMALLOC_ONLY: &[&str] = &[
    "leak_mi_malloc",
    "leak_mi_zalloc_aligned",
    "leak_mi_new",
    "leak_mi_rezalloc",
    "leak_mi_recalloc",
    "leak_mi_realloc_aligned",
    "none_mi_reallocf_fails",
    "leak_mi_heap_malloc",
    "leak_mi_posix_memalign",
];

#[test]
fn glibc_equals_the_ledger() -> Result<()> {
    calls(Build::Gcc)?.must_have(&["leak_pvalloc"]).run()
}

#[test]
fn glibc_equals_the_ledger_without_frame_pointers() -> Result<()> {
    calls(Build::NoFramePointers)?.run()
}

#[test]
fn glibc_equals_the_ledger_at_a_fixed_address() -> Result<()> {
    calls(Build::NoPie)?.run()
}

#[test]
fn glibc_equals_the_ledger_built_by_clang_and_lld() -> Result<()> {
    calls(Build::Clang)?.run()
}

#[test]
fn glibc_equals_the_ledger_linked_statically() -> Result<()> {
    calls(Build::Static)?.run()
}

#[test]
fn glibc_equals_the_ledger_as_static_pie() -> Result<()> {
    calls(Build::StaticPie)?.run()
}

#[test]
fn musl_equals_the_ledger() -> Result<()> {
    musl(Build::Musl)?.run()
}

#[test]
fn musl_equals_the_ledger_linked_statically() -> Result<()> {
    musl(Build::MuslStatic)?.run()
}

#[test]
fn jemalloc_equals_the_ledger() -> Result<()> {
    jemalloc(calls(Build::Gcc)?)?.must_have(JEMALLOC_ONLY).run()
}

#[test]
fn tcmalloc_equals_the_ledger() -> Result<()> {
    tcmalloc(calls(Build::Gcc)?)?.must_have(TCMALLOC_ONLY).run()
}

#[test]
fn mimalloc_equals_the_ledger() -> Result<()> {
    mimalloc(calls(Build::Gcc)?)?.must_have(MIMALLOC_ONLY).run()
}

#[test]
fn every_new_and_delete_of_libstdcxx_on_glibc_equals_the_ledger() -> Result<()> {
    cxx(Build::Gcc)?.run()
}

#[test]
fn every_new_and_delete_built_by_clang_equals_the_ledger() -> Result<()> {
    cxx(Build::Clang)?.run()
}

#[test]
fn every_new_and_delete_linked_statically_equals_the_ledger() -> Result<()> {
    cxx(Build::Static)?.run()
}

#[test]
fn every_new_and_delete_of_jemalloc_equals_the_ledger_and_bad_alloc_is_caught() -> Result<()> {
    jemalloc(cxx(Build::Gcc)?)?.run()
}

#[test]
fn every_new_and_delete_of_tcmalloc_equals_the_ledger_and_bad_alloc_is_caught() -> Result<()> {
    tcmalloc(cxx(Build::Gcc)?)?.run()
}

/// Debian's mimalloc is compiled as C: its own operator new aborts where it should throw, traced or not. What throws
/// here is a constructor, and the exceptions of the program.
#[test]
fn every_new_and_delete_of_mimalloc_equals_the_ledger_and_exceptions_are_caught() -> Result<()> {
    mimalloc(cxx(Build::Gcc)?.arguments(&["no-throw-by-new"]))?.run()
}

#[test]
fn rust_equals_the_ledger() -> Result<()> {
    Case::new(compile::rust_fixture("rust_leak.rs")?)
        .must_have(&["leak_box", "leak_vector", "leak_cycle", "leak_aligned", "leak_on_thread"])
        .run()
}

#[test]
fn rust_on_a_preloaded_jemalloc_equals_the_ledger() -> Result<()> {
    jemalloc(Case::new(compile::rust_fixture("rust_leak.rs")?))?.run()
}

/// The core scenarios on each way to attach a probe, forced.
macro_rules! on_each_link {
    ($($link:ident)+) => {
        $(mod $link {
            use super::*;

            const LINK: &[&str] = &["--link", stringify!($link)];

            #[test]
            fn glibc_equals_the_ledger() -> Result<()> {
                calls(Build::Gcc)?.flags(LINK).run()
            }

            #[test]
            fn musl_equals_the_ledger() -> Result<()> {
                musl(Build::Musl)?.flags(LINK).run()
            }

            #[test]
            fn jemalloc_equals_the_ledger() -> Result<()> {
                jemalloc(calls(Build::Gcc)?)?.flags(LINK).run()
            }

            #[test]
            fn tcmalloc_equals_the_ledger() -> Result<()> {
                tcmalloc(calls(Build::Gcc)?)?.flags(LINK).run()
            }

            #[test]
            fn mimalloc_equals_the_ledger() -> Result<()> {
                mimalloc(calls(Build::Gcc)?)?.flags(LINK).run()
            }

            #[test]
            fn bad_alloc_is_caught_with_glibc() -> Result<()> {
                cxx(Build::Gcc)?.flags(LINK).run()
            }

            #[test]
            fn bad_alloc_is_caught_with_jemalloc() -> Result<()> {
                jemalloc(cxx(Build::Gcc)?)?.flags(LINK).run()
            }

            #[test]
            fn bad_alloc_is_caught_with_tcmalloc() -> Result<()> {
                tcmalloc(cxx(Build::Gcc)?)?.flags(LINK).run()
            }

            #[test]
            fn exceptions_are_caught_with_mimalloc() -> Result<()> {
                mimalloc(cxx(Build::Gcc)?.arguments(&["no-throw-by-new"]))?.flags(LINK).run()
            }
        })+
    };
}

on_each_link!(session multi perf);

/// The linker leaves out what a program does not use: here there is no `free`, and musl's `malloc` is one that needs none.
#[test]
fn a_static_program_that_never_frees_is_traced() -> Result<()> {
    let program = compile::fixture("never_frees.c", Build::MuslStatic, &[])?;
    Case::new(program).must_have(&["leak_forever"]).run_twin(false).map(drop)
}
