//! Code that comes and goes while a program is traced: libraries opened and closed, at one address too, generated code,
//! libraries without a file. No stack stays cut for it, and each bears the names of the code that it was taken in.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::{self, Leaktrace},
    report::{Report, Site},
};
use std::path::Path;

const LIBRARIES: usize = 20;
const BLOCKS: u64 = 10;
const TURNS: u64 = 8;

/// A folder with the libraries, of which neighbours differ in what their frames look like.
fn libraries() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("mapped-code-").tempdir()?;
    for number in 0..LIBRARIES {
        let name = format!("-DNAME=l{number}");
        let frame = if number % 2 == 0 { "-DFRAME=40" } else { "-DFRAME=2000" };
        let flags = ["-O2", "-g", "-fomit-frame-pointer", "-shared", "-fPIC", "-Wl,--build-id", &name, frame];
        let output = format!("lib{number}.so");
        let file = compile::plain("gcc", "life_library.c", &flags, &output)?;
        std::fs::copy(file, folder.path().join(output)).context("a library cannot be copied")?;
    }
    Ok(folder)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// That the function has allocated so many blocks that are still there, and all of them from `main` through whole stacks.
fn judge(report: &Report, function: &str, blocks: u64) -> Result<(), String> {
    let of_function = |site: &&Site| site.kind == "heap" && site.has(function);
    let sites: Vec<&Site> =
        report.targets.iter().flat_map(|target| &target.sites).filter(of_function).collect();
    let found: u64 = sites.iter().map(|site| site.outstanding_count).sum();
    let cut = |site: &&&Site| site.stack_end != "complete" || !site.has("main");
    if let Some(site) = sites.iter().find(cut) {
        return Err(format!("{function}: {} ends with {}", site.stack(), site.stack_end));
    }
    if found != blocks {
        let ends = report.targets.iter().map(|target| (&target.stack_ends, &target.losses));
        return Err(format!(
            "{function}: {found} blocks instead of {blocks}; {:?}",
            ends.collect::<Vec<_>>()
        ));
    }
    Ok(())
}

/// Attaches to the fixture before it maps anything, and compares.
fn attached(how: &str, wanted: &[(String, u64)]) -> Result<()> {
    let folder = libraries()?;
    let program = compile::fixture("mapped_code.c", Build::NoFramePointers, &[])?;
    let mut fixture = Fixture::start(&program, &[how, text(folder.path())?], &[])?;
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &["--verify-unwind"])?;
    fixture.act()?;
    let report = leaktrace.until_settled("every stack is whole and has the right names", |report| {
        wanted.iter().try_for_each(|(function, blocks)| judge(report, function, *blocks))
    })?;
    ensure!(!report.losses.contains_key("reuse_mismatches"), "{:?}", report.losses);
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

fn each_library() -> Vec<(String, u64)> {
    (0..LIBRARIES).map(|number| (format!("leak_in_l{number}"), BLOCKS)).collect()
}

fn one(function: &str) -> [(String, u64); 1] {
    [(function.to_owned(), BLOCKS)]
}

#[test]
fn stacks_in_libraries_that_were_just_opened_are_whole() -> Result<()> {
    attached("many", &each_library())
}

#[test]
fn two_libraries_in_turn_at_one_address_are_told_apart() -> Result<()> {
    attached("turns", &[("leak_in_l0".to_owned(), BLOCKS * TURNS), ("leak_in_l1".to_owned(), BLOCKS * TURNS)])
}

#[test]
fn stacks_through_generated_code_are_whole() -> Result<()> {
    attached("generated", &one("use"))
}

#[test]
fn generated_code_has_the_names_of_its_perf_map() -> Result<()> {
    attached("named", &one("made_at_run_time"))
}

#[test]
fn a_library_in_memory_without_a_file_has_tables_and_names() -> Result<()> {
    attached("memory", &one("leak_in_l3"))
}

#[test]
fn a_library_that_was_deleted_at_once_has_tables_and_names() -> Result<()> {
    attached("deleted", &one("leak_in_l4"))
}

/// The child is adopted while it runs: what it allocated before its probes were set is not seen, but what was seen is whole.
#[test]
fn libraries_that_an_executed_program_opens_are_known() -> Result<()> {
    run("exec", &each_library())
}

#[test]
fn libraries_that_a_forked_child_opens_are_known() -> Result<()> {
    run("fork", &each_library())
}

/// Under `run`, to the program's end.
fn run(how: &str, wanted: &[(String, u64)]) -> Result<()> {
    let folder = libraries()?;
    let report = folder.path().join("report.json");
    let program = compile::fixture("mapped_code.c", Build::NoFramePointers, &[])?;
    let mut command = leaktrace::command(&[
        "run",
        "--format",
        "json",
        "--top",
        "0",
        "--verify-unwind",
        "-o",
        text(&report)?,
        "--",
    ])?;
    command.arg(&program).args([how, text(folder.path())?]);
    let mut fixture = Fixture::spawn(command)?;
    fixture.wait_ready()?;
    fixture.act()?;
    let errors = fixture.errors();
    ensure!(fixture.release()?.success(), "it did not end well: {errors}");
    let said = std::fs::read_to_string(&report).context("no report")?;
    let report = Report::parse(said.lines().last().context("an empty report")?)?;
    wanted
        .iter()
        .try_for_each(|(function, blocks)| judge(&report, function, *blocks).map_err(anyhow::Error::msg))
}

#[test]
fn libraries_that_a_program_opens_under_run_are_known() -> Result<()> {
    run("many", &each_library())
}

/// Three tables of the size of the C library's do not fit into 1 MiB together with the rest, so they come and go.
#[test]
fn little_memory_for_tables_costs_no_names() -> Result<()> {
    let folder = libraries()?;
    let program = compile::fixture("mapped_code.c", Build::NoFramePointers, &[])?;
    let mut fixture = Fixture::start(&program, &["many", text(folder.path())?], &[])?;
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &["--unwind-memory", "1M"])?;
    fixture.act()?;
    leaktrace.until_settled("every stack is whole and has the right names", |report| {
        each_library().iter().try_for_each(|(function, blocks)| judge(report, function, *blocks))
    })?;
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

const PYTHON: &str = "
import json, decimal, sqlite3, ssl, ctypes, asyncio, hashlib, lzma, bz2, zlib, csv, array, mmap, select, socket
import multiprocessing, unicodedata, curses, readline, uuid, xml.etree.ElementTree
kept = [json.dumps({'k%d' % i: i}) for i in range(2000)]
print(len(kept), decimal.Decimal(2).sqrt(), zlib.crc32(b'x'))
";

/// Modules are libraries, and what they allocate at their start is seen.
#[test]
fn python_importing_modules_under_run_has_whole_stacks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command =
        leaktrace::command(&["run", "--format", "json", "--top", "0", "--max-blocks", "2M", "-o"])?;
    command.arg(&file).args(["--", "/usr/bin/python3", "-c", PYTHON]).env("PYTHONMALLOC", "malloc");
    let said = command.stdin(std::process::Stdio::null()).output()?;
    ensure!(said.status.success(), "ended with {}: {}", said.status, String::from_utf8_lossy(&said.stderr));
    let text = std::fs::read_to_string(&file).context("no report")?;
    let report = Report::parse(text.lines().last().context("an empty report")?)?;
    let target = report.targets.first().context("no target")?;
    let whole = |end: &str| matches!(end, "complete" | "depth");
    let all: u64 = target.sites.iter().map(|site| site.allocated_count).sum();
    let cut = target.sites.iter().filter(|site| site.kind == "heap" && !whole(&site.stack_end));
    let cut_count: u64 = cut.clone().map(|site| site.allocated_count).sum();
    let examples: Vec<String> =
        cut.take(3).map(|site| format!("{} ends with {}", site.stack(), site.stack_end)).collect();
    ensure!(all > 10_000, "only {all} allocations");
    ensure!(
        cut_count * 1000 <= all,
        "{cut_count} of {all} allocations have cut stacks; {:?}, {:?}, {examples:?}",
        target.stack_ends,
        report.losses
    );
    Ok(())
}
