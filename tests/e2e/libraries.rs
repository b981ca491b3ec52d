//! Allocators beyond the one of the C library: opened after attach, several in one process, under a prefix, named by hand.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    scenario::Case,
};
use std::{path::Path, process::Command};

#[test]
fn a_library_opened_after_attach_is_traced_with_its_own_allocator() -> Result<()> {
    for clean in [false, true] {
        opened_late(clean).with_context(|| if clean { "the clean twin" } else { "the leaking twin" })?;
    }
    Ok(())
}

fn opened_late(clean: bool) -> Result<()> {
    let own = compile::fixture("ownalloc.c", Build::Library, &[])?;
    let case = Case::new(compile::fixture("dlopen.c", Build::Gcc, &[])?)
        .arguments(&[&own.to_string_lossy()])
        .flags(&["--symbols-prefix", "own_"]);
    let mut fixture = case.start(clean)?;
    let mut leaktrace = case.attach(&fixture)?;
    // It opens the library, and allocates at `probe_library` until the report shows that.
    fixture.send("")?;
    fixture.wait_ready()?;
    leaktrace.until("the library's allocator is traced", |report| {
        fixture.send("p").map_err(|error| error.to_string())?;
        let sites = report.target(fixture.pid()).map(|target| target.sites.as_slice()).unwrap_or_default();
        sites.iter().any(|site| site.has("probe_library")).then_some(()).ok_or_else(|| "not yet".to_owned())
    })?;
    let ledger = fixture.act()?;
    case.check_ledger(&ledger, clean)?;
    leaktrace
        .until_settled("the report equals the ledger", |report| case.judge(&ledger, report, fixture.pid()))?;
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

#[test]
fn three_allocators_in_one_process_are_traced_together() -> Result<()> {
    let prefixed = compile::prefixed_jemalloc()?;
    let private = library("libjemalloc.so.2")?;
    Case::new(compile::fixture("two_allocators.c", Build::Gcc, &[&prefixed])?)
        .arguments(&[&private.to_string_lossy()])
        // A privately opened jemalloc wants more thread-local storage than glibc keeps in reserve.
        .variable("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384")
        .must_have(&["leak_libc", "leak_prefixed_mallocx", "leak_prefixed_memalign", "leak_private"])
        .run()
}

/// Nothing in the library's names says what its functions do: they are given by their offsets in the file.
#[test]
fn functions_that_no_table_knows_can_be_named_by_hand() -> Result<()> {
    let own = compile::fixture("ownalloc.c", Build::Library, &[])?;
    let [allocate, release] = [offset(&own, "own_malloc")?, offset(&own, "own_free")?];
    let object = own.to_string_lossy();
    let functions = [format!("own_malloc=malloc@{allocate:#x}"), format!("own_free=free@{release:#x}")];
    let [first, second] = &functions;
    Case::new(compile::fixture("leaving.c", Build::Gcc, &[&own])?)
        .arguments(&["longjmp"])
        .flags(&["--object", &object, "--function", first, "--function", second])
        .allow_losses(&["lost_returns"])
        .run()
}

/// The file offset of a function in a small shared library, where GNU ld gives text equal addresses and offsets.
fn offset(library: &Path, name: &str) -> Result<u64> {
    let said = Command::new("readelf")
        .args(["-W", "--dyn-syms"])
        .arg(library)
        .output()
        .context("cannot run readelf")?;
    let table = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = table.lines().find(|line| line.trim_end().ends_with(&format!(" {name}")));
    let value = line.and_then(|line| line.split_ascii_whitespace().nth(1)).context("no such function")?;
    u64::from_str_radix(value, 16).context("no address")
}
