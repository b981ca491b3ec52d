//! Programs that probes could harm: functions that keep values below the stack pointer, translators, code that is moved
//! or read as data. They survive, or are refused with the reason, and nothing of them is shown as "nothing leaks".
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace,
    scenario::Case,
};
use std::{path::Path, process::Command};

/// `NAME=SHAPE@OFFSET` for a function of a program, whose text GNU ld gives equal addresses and offsets.
fn given(program: &Path, name: &str, shape: &str) -> Result<String> {
    let said =
        Command::new("readelf").args(["-W", "--syms"]).arg(program).output().context("cannot run readelf")?;
    let table = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = table.lines().find(|line| line.trim_end().ends_with(&format!(" {name}")));
    let address = line.and_then(|line| line.split_ascii_whitespace().nth(1)).context("no such function")?;
    Ok(format!("{name}={shape}@{:#x}", u64::from_str_radix(address, 16).context("no address")?))
}

/// Linux 6.18 makes a call of each of these instructions when it is probed, and the call overwrites what the function
/// keeps below the stack pointer.
#[test]
fn a_leaf_allocator_keeps_what_it_has_below_the_stack_pointer() -> Result<()> {
    let program = compile::fixture("red_zone.c", Build::Gcc, &[])?;
    let mut flags = vec!["--function".to_owned(), given(&program, "bump_free", "free")?];
    for name in ["bump_nop", "bump_jump", "bump_entry"] {
        flags.extend(["--function".to_owned(), given(&program, name, "malloc")?]);
    }
    flags.extend(["--function".to_owned(), given(&program, "label_at_nop", "malloc")?]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for link in ["session", "multi", "perf"] {
        let case = Case::new(program.clone())
            .flags(&flags)
            .flags(&["--mode", "exact", "--link", link])
            .must_have(&["by_nop", "by_jump", "by_entry"]);
        case.run().with_context(|| format!("{link} links"))?;
    }
    let fixture = Fixture::start(&program, &[], &[])?;
    let pid = fixture.pid().to_string();
    let words = ["attach", "--format", "json", "--count", "1", "--interval", "10ms", "-p", &pid];
    let said = leaktrace::output(&[&words[..], &flags].concat())?;
    let report = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(
        report.contains("[\"label_at_nop\",") || report.contains("\"function\":\"label_at_nop\""),
        "{report}"
    );
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}
