//! What cannot be seen does not pass `--fail-on-leak`: the exit code is 4, with the reason.
use anyhow::{Context, Result, ensure};

use super::gate::{Judged, c, expect, judge};
use leaktrace_tests::{compile, leaktrace, report::Report};

const GATE: &str = "--fail-on-leak";

/// It is not known, for a reason that has this in it.
fn not_known(judged: &Judged, reason: &str) -> Result<()> {
    expect(judged, 4, "not-known")?;
    let reasons = &judged.verdict.reasons;
    ensure!(reasons.iter().any(|given| given.contains(reason)), "{reasons:?} does not have {reason:?}");
    Ok(())
}

const HELLO: &str = "#include <stdio.h>\n#include <stdlib.h>\n\
    int main(void) { puts(\"hello\"); free(malloc(100)); return 0; }";

#[test]
fn a_stripped_static_program_is_not_known() -> Result<()> {
    let program = compile::text("hello_stripped.c", HELLO, &["gcc", "-O1", "-static", "-s"])?;
    let program = program.to_string_lossy();
    not_known(&judge(&[GATE], &[&program])?, "no allocator was found")?;
    // Also where a shell that is seen runs it.
    not_known(&judge(&[GATE], &["sh", "-c", &format!("true; {program}; true")])?, "no allocator was found")
}

#[test]
fn a_process_that_cannot_be_traced_is_not_known() -> Result<()> {
    let program = compile::text(
        "exit32.c",
        "void _start(void) { for (;;) __asm__ volatile(\"int $0x80\" : : \"a\"(1), \"b\"(0) : \"memory\"); }",
        &["gcc", "-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-no-pie"],
    )?;
    let program = program.to_string_lossy();
    let judged = judge(&[GATE], &[&program])?;
    not_known(&judged, "is not traced")?;
    let Report { targets, losses, notes, .. } = &judged.report;
    ensure!(targets.is_empty() && losses.get("processes_not_traced") == Some(&1), "{losses:?}");
    ensure!(notes.iter().any(|note| note.contains("is not traced")), "{notes:?}");
    // Nothing at all was traced: that is said even where nobody asked for leaks.
    expect(&judge(&[], &[&program])?, 4, "not-known")
}

#[test]
fn a_host_on_which_nothing_can_be_traced_is_not_known() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let marker = folder.path().join("ran");
    let leaktrace = leaktrace::binary()?;
    // Without capabilities no program is loaded.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(leaktrace);
    command.args(["run", GATE, "--format", "json", "-o"]).arg(&file).args(["--", "touch"]).arg(&marker);
    let said = command.output().context("setpriv (util-linux) cannot be run")?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.code() == Some(4), "ended with {}: {errors}", said.status);
    let text = std::fs::read_to_string(&file).with_context(|| errors.clone())?;
    let report = Report::parse(text.trim_end())?;
    let verdict = report.verdict.as_ref().context("no verdict")?;
    ensure!(verdict.outcome == "not-known" && verdict.reasons.len() >= 2, "{verdict:?}");
    ensure!(!report.notes.is_empty() && !marker.exists(), "{:?}", report.notes);
    Ok(())
}

#[test]
fn lost_blocks_are_not_known() -> Result<()> {
    let text = "#include <stdlib.h>\nstatic void *all[9000];\n\
        int main(void) { for (int i = 0; i < 9000; i++) all[i] = malloc(16);\n\
        for (int i = 0; i < 9000; i++) free(all[i]); return 0; }";
    let program = c("many_blocks", text)?;
    let program = program.to_string_lossy();
    expect(&judge(&[GATE], &[&program])?, 0, "clean")?;
    not_known(&judge(&[GATE, "--max-blocks", "100"], &[&program])?, "block table was full")
}

#[test]
fn children_beyond_those_that_can_be_traced_are_not_known() -> Result<()> {
    let program = compile::plain("gcc", "crowd.c", &["-O1", "-Wall", "-Wextra", "-Werror"], "crowd")?;
    // Each child leaks a little, which is allowed here.
    let flags = ["--fail-on-leak=1M"];
    not_known(&judge(&flags, &[&program.to_string_lossy(), "280"])?, "children were not traced")
}

#[test]
fn what_is_not_recorded_or_not_over_is_not_known() -> Result<()> {
    let program = c("hello_seen", HELLO)?;
    let program = program.to_string_lossy();
    not_known(&judge(&[GATE, "--mode", "growth"], &[&program])?, "--mode growth")?;
    not_known(&judge(&[GATE, "--mode", "sampled"], &[&program])?, "samples alone")?;
    not_known(&judge(&[GATE, "--duration", "300ms"], &["sleep", "2"])?, "still ran")
}

#[test]
fn a_child_that_is_killed_with_what_it_holds_is_not_known() -> Result<()> {
    let text = "#include <signal.h>\n#include <stdlib.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
        static void *volatile kept;\nint main(void) { int p[2]; char c; pipe(p); int child = fork();\n\
        if (child == 0) { kept = malloc(500); write(p[1], \"x\", 1); for (;;) pause(); }\n\
        read(p[0], &c, 1); kill(child, SIGTERM); wait(0); return 0; }";
    not_known(
        &judge(&[GATE], &[&c("killed_child", text)?.to_string_lossy()])?,
        "was killed while it held 500 B",
    )
}

#[test]
fn the_programs_own_failure_comes_first() -> Result<()> {
    let program = compile::text(
        "failing_stripped.c",
        "#include <stdlib.h>\nint main(int argc, char **argv) { malloc(9); if (argc > 1) abort(); return 5; }",
        &["gcc", "-O1", "-static", "-s", "-w"],
    )?;
    let program = program.to_string_lossy();
    expect(&judge(&[GATE], &[&program])?, 5, "program-failed")?;
    expect(&judge(&[GATE], &[&program, "x"])?, 134, "program-failed")
}
