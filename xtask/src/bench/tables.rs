//! What building unwind tables takes, of large programs that are on this machine: as `leaktrace doctor` measures it,
//! one thread, one file after the other.
use super::{
    doctor,
    facts::{self, mib},
    rounds::{one_line, progress},
};
use crate::command;
use anyhow::{Context, Result, anyhow, bail};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    lines::Lines,
};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What counts as large.
const LARGE: u64 = 90 << 20;

/// A line for each program.
pub(super) fn measure() -> String {
    let mut text = "### Building the tables of a process\n\n\
        | | files | their size | rows | tables | built in |\n|---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    let mut line = |name: &str, built: Result<Built>| match built {
        Ok(built) => text.push_str(&format!("| {name} | {built} |\n")),
        Err(error) => text.push_str(&format!("| {name} | not measured: {} | | | | |\n", one_line(&error))),
    };
    line("a small program", small(None));
    line("gdb", gdb());
    let libraries = large_libraries();
    if libraries.is_empty() {
        line("a program with a library of 100 MB", Err(anyhow!("no such library is on this machine")));
    }
    for library in libraries {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        line(&format!("a program with {name}"), small(Some(&library)));
    }
    text.push_str("\nThe bounds to stay under for a process of 200 MB: 1 s, 16 MiB.\n");
    text
}

/// Sums over the files that a process maps.
#[derive(Default)]
struct Built {
    files: u32,
    size: u64,
    rows: u64,
    bytes: u64,
    ns: u64,
}

impl std::fmt::Display for Built {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Built { files, size, rows, bytes, ns } = self;
        let time = facts::seconds(Duration::from_nanos(*ns));
        write!(out, "{files} | {} | {rows} | {} | {time}", mib(*size), mib(*bytes))
    }
}

fn of_process(pid: u32) -> Result<Built> {
    progress(&format!("tables of process {pid}"));
    let mut built = Built::default();
    for file in doctor::process(pid)?.files {
        let table = file.table;
        if table.rows == 0 {
            continue;
        }
        built.files += 1;
        built.rows += table.rows;
        built.bytes += table.bytes;
        built.ns += table.took_ns;
        // The vdso has no size on disk.
        built.size += fs::metadata(&file.path).map_or(0, |meta| meta.len());
    }
    Ok(built)
}

/// A fixture, into which a library can be loaded that it does not need.
fn small(library: Option<&Path>) -> Result<Built> {
    let program = compile::fixture("pairs.c", Build::Gcc, &[])?;
    let library = library.map(Path::to_string_lossy);
    let environment: Vec<(&str, &str)> =
        library.iter().map(|library| ("LD_PRELOAD", library.as_ref())).collect();
    let fixture = Fixture::start(&program, &[], &environment)?;
    of_process(fixture.pid())
}

/// gdb waiting for commands.
fn gdb() -> Result<Built> {
    let mut command = Command::new("gdb");
    command.args(["-nx", "-q"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot run gdb")?;
    let ready = child
        .stdin
        .as_mut()
        .context("no standard input")
        .and_then(|stdin| stdin.write_all(b"echo ready\\n\n").context("gdb takes no orders"));
    let lines = Lines::new("gdb", child.stdout.take().context("no standard output")?);
    let heard = ready.and_then(|()| lines.next_before(Instant::now() + Duration::from_secs(60)));
    let built = match heard {
        Ok(Some(_)) => of_process(child.id()),
        Ok(None) => bail!("gdb ended"),
        Err(error) => Err(error),
    };
    let _ = child.kill();
    let _ = child.wait();
    built
}

/// Large libraries that this machine has, by their real names, the largest last.
fn large_libraries() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib/x86_64-linux-gnu"), PathBuf::from("/usr/lib64")];
    if let Ok(sysroot) = command::capture(command::clean("rustc").args(["--print", "sysroot"])) {
        folders.push(Path::new(sysroot.trim()).join("lib"));
    }
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let is_library = |name: &str| {
        ["libLLVM", "librustc_driver"].iter().any(|stem| name.starts_with(stem)) && name.contains(".so")
    };
    let mut found: Vec<(u64, PathBuf)> = files
        .filter(|entry| entry.file_name().to_str().is_some_and(is_library))
        .filter_map(|entry| Some((entry.path().metadata().ok()?.len(), entry.path().canonicalize().ok()?)))
        .filter(|(size, _)| *size >= LARGE)
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, path)| path).collect()
}
