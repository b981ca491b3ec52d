//! Threads: blocks that change hands, calls that a thread leaves by longjmp, and threads that end inside a call.
use anyhow::Result;
use leaktrace_tests::{
    compile::{self, Build, library},
    scenario::Case,
};

#[test]
fn blocks_freed_by_another_of_eight_threads_are_freed() -> Result<()> {
    Case::new(compile::fixture("threads.c", Build::Gcc, &[])?).run()
}

#[test]
fn blocks_freed_by_another_of_eight_threads_are_freed_on_jemalloc() -> Result<()> {
    Case::new(compile::fixture("threads.c", Build::Gcc, &[])?)
        .variable("LD_PRELOAD", &library("libjemalloc.so.2")?.to_string_lossy())
        .run()
}

#[test]
fn blocks_freed_by_another_of_eight_threads_are_freed_with_perf_links() -> Result<()> {
    Case::new(compile::fixture("threads.c", Build::Gcc, &[])?).flags(&["--link", "perf"]).run()
}

/// Addresses that are freed and handed out again at once, by threads that come and go.
fn exchange(preload: Option<&str>, words: &[&str]) -> Result<()> {
    let mut case = Case::new(compile::fixture("exchange.c", Build::Gcc, &[])?)
        .arguments(words)
        .must_have(&["leak_first", "leak_grown"]);
    if let Some(name) = preload {
        case = case.variable("LD_PRELOAD", &library(name)?.to_string_lossy());
    }
    case.run()
}

#[test]
fn addresses_that_threads_pass_on_to_each_other_are_exact() -> Result<()> {
    exchange(None, &[])
}

/// More threads at once than have places of their own in the kernel's array.
#[test]
fn hundreds_of_threads_at_once_are_exact() -> Result<()> {
    exchange(None, &["threads=600", "generations=3", "rounds=200"])
}

#[test]
fn addresses_that_threads_pass_on_to_each_other_are_exact_on_jemalloc() -> Result<()> {
    exchange(Some("libjemalloc.so.2"), &[])
}

#[test]
fn addresses_that_threads_pass_on_to_each_other_are_exact_on_tcmalloc() -> Result<()> {
    exchange(Some("libtcmalloc_minimal.so.4"), &[])
}

#[test]
fn addresses_that_threads_pass_on_to_each_other_are_exact_on_mimalloc() -> Result<()> {
    exchange(Some("libmimalloc.so.2.0"), &[])
}

/// The calls that do not return are counted as such; everything else is exact.
fn leaving(how: &str, link: &str) -> Result<()> {
    let library = compile::fixture("ownalloc.c", Build::Library, &[])?;
    Case::new(compile::fixture("leaving.c", Build::Gcc, &[&library])?)
        .arguments(&[how])
        .flags(&["--symbols-prefix", "own_", "--link", link])
        .allow_losses(&["lost_returns"])
        .must_have(&["leak_before", "leak_deep_inside", "leak_after", "leak_malloc"])
        .run()
}

#[test]
fn a_longjmp_out_of_an_allocator_callback_disturbs_nothing_else() -> Result<()> {
    leaving("longjmp", "session")
}

#[test]
fn a_longjmp_out_of_an_allocator_callback_disturbs_nothing_else_with_multi_links() -> Result<()> {
    leaving("longjmp", "multi")
}

#[test]
fn a_longjmp_out_of_an_allocator_callback_disturbs_nothing_else_with_perf_links() -> Result<()> {
    leaving("longjmp", "perf")
}

#[test]
fn a_thread_that_ends_inside_a_call_disturbs_nothing_else() -> Result<()> {
    leaving("exit", "session")
}

#[test]
fn a_thread_that_is_cancelled_inside_a_call_disturbs_nothing_else() -> Result<()> {
    leaving("cancel", "session")
}
