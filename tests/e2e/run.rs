//! `leaktrace run`: from the first allocation to the exit code.
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace,
    ledger::Ledger,
    report::Report,
    scenario::{Case, latest},
};
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, ExitStatus},
};

struct Ran {
    ledger: Ledger,
    reports: Vec<Report>,
    status: ExitStatus,
}

/// Runs a fixture to its end under `leaktrace run`; the fixture has the standard streams, the report goes to a file.
fn run(flags: &[&str], environment: &[(&str, &str)], words: &[&str], waits: bool) -> Result<Ran> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command: Command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(&file).args(flags).arg("--").args(words).envs(environment.iter().copied());
    let mut fixture = Fixture::spawn(command)?;
    let ledger = if waits {
        fixture.wait_ready()?;
        fixture.act()?
    } else {
        fixture.ledger()?
    };
    let errors = fixture.errors();
    let status = fixture.release()?;
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("no report; standard error: {errors}"))?;
    let reports = text.lines().map(Report::parse).collect::<Result<Vec<_>>>()?;
    ensure!(text.ends_with('\n'), "the last line of the report is cut off");
    Ok(Ran { ledger, reports, status })
}

/// The last word on each process of the ledger equals the ledger.
fn judge(case: &Case, ran: &Ran) -> Result<()> {
    let last = ran.reports.last().context("no summary at all")?;
    for pid in ran.ledger.pids() {
        let target = latest(&ran.reports, pid)?;
        let found = leaktrace_tests::compare::differences(&ran.ledger.of(pid), target, &case.rules);
        ensure!(found.is_empty(), "process {pid}: {}", found.join("\n"));
    }
    let lost = leaktrace_tests::compare::losses(last, &case.rules);
    ensure!(lost.is_empty(), "{}", lost.join("\n"));
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn early() -> Result<String> {
    let library = compile::fixture("early_library.c", Build::Library, &[])?;
    Ok(text(&compile::fixture("early.c", Build::Gcc, &[&library])?))
}

fn early_equals_the_ledger(environment: &[(&str, &str)], flags: &[&str]) -> Result<()> {
    let program = early()?;
    let mut case = Case::new(program.clone().into());
    if !environment.is_empty() {
        // Preloaded allocators bring libstdc++, which keeps a reserve for exceptions.
        case = case.allow_others();
    }
    for word in ["leaky", "clean"] {
        let ran = run(flags, environment, &[&program, word], false)?;
        ensure!(ran.ledger.is_clean() == (word == "clean"), "the wrong twin ran");
        ensure!(ran.status.success(), "ended with {}", ran.status);
        judge(&case, &ran).context(word)?;
        let target = ran.reports.last().and_then(|report| report.targets.first()).context("no target")?;
        let before = target.heap_before_attach_bytes.unwrap_or(0);
        ensure!(before == 0, "{before} bytes of heap from before the start of the program");
    }
    Ok(())
}

#[test]
fn constructors_of_libraries_are_traced() -> Result<()> {
    early_equals_the_ledger(&[], &[])
}

#[test]
fn constructors_of_libraries_are_traced_with_perf_links() -> Result<()> {
    early_equals_the_ledger(&[], &["--link", "perf"])
}

#[test]
fn a_preloaded_allocator_is_traced_from_its_first_block() -> Result<()> {
    for name in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2.0"] {
        let path = text(&library(name)?);
        early_equals_the_ledger(&[("LD_PRELOAD", &path)], &[]).context(name)?;
    }
    Ok(())
}

#[test]
fn a_static_program_is_traced_from_its_first_block() -> Result<()> {
    for build in [Build::Static, Build::StaticPie, Build::MuslStatic] {
        let program = text(&compile::fixture("calls.c", build, &[])?);
        let ran = run(&[], &[], &[&program], true)?;
        // A static glibc allocates for its loader before main.
        let mut case = Case::new(program.into()).allow_others();
        if build == Build::MuslStatic {
            case = case.alias("strdup", "leak_strdup").alias("reallocarray", "leak_reallocarray");
        }
        judge(&case, &ran).with_context(|| format!("{build:?}"))?;
    }
    Ok(())
}

#[test]
fn forked_and_executed_programs_are_followed() -> Result<()> {
    let program = text(&compile::fixture("fork.c", Build::Gcc, &[])?);
    for how in [&["fork"][..], &["vfork"], &["spawn"], &["exec"], &["exec", "thread"]] {
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(how.iter().copied()).collect();
        let ran = run(&[], &[], &words, true)?;
        judge(&Case::new(program.clone().into()), &ran).with_context(|| how.join(" "))?;
    }
    Ok(())
}

#[test]
fn a_shell_script_is_followed_into_its_commands() -> Result<()> {
    let program = early()?;
    let ran = run(&[], &[], &["/bin/sh", "-c", &format!("true; '{program}'; exit 9")], false)?;
    judge(&Case::new(program.into()), &ran)?;
    ensure!(ran.status.code() == Some(9), "ended with {} instead of 9", ran.status);
    Ok(())
}

#[test]
fn processes_beyond_those_that_can_be_traced_at_once_are_counted() -> Result<()> {
    const CHILDREN: u64 = 280;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let program = compile::plain("gcc", "crowd.c", &["-O1", "-Wall", "-Wextra", "-Werror"], "crowd")?;
    let mut command = leaktrace::command(&["run", "--format", "json", "-o"])?;
    command.arg(&file).arg("--").arg(program).arg(CHILDREN.to_string());
    let said = command.output().context("leaktrace cannot be started")?;
    ensure!(said.status.success(), "{}: {}", said.status, String::from_utf8_lossy(&said.stderr));
    let reports = std::fs::read_to_string(&file)?.lines().map(Report::parse).collect::<Result<Vec<_>>>()?;
    let traced: BTreeSet<u32> =
        reports.iter().flat_map(|report| report.targets.iter().map(|target| target.pid)).collect();
    let last = reports.last().context("no summary at all")?;
    let lost = last.losses.get("children_not_traced").copied().unwrap_or(0);
    ensure!(lost > 0 && traced.len() as u64 + lost == CHILDREN + 1, "{} traced, {lost} lost", traced.len());
    ensure!(
        last.notes.iter().any(|note| note.contains("as many targets as there can be")),
        "{:?}",
        last.notes
    );
    Ok(())
}

#[test]
fn the_exit_code_is_the_programs_own() -> Result<()> {
    let ran = run(&[], &[("FIXTURE_EXIT", "42")], &[&early()?], false)?;
    ensure!(ran.status.code() == Some(42), "ended with {} instead of 42", ran.status);
    let exited =
        ran.reports.last().and_then(|report| report.targets.first()).and_then(|target| target.exited);
    ensure!(exited.is_some_and(|exited| exited.code == Some(42)), "the report says {exited:?}");
    Ok(())
}

#[test]
fn a_signal_becomes_128_and_its_number() -> Result<()> {
    let said = leaktrace::output(&["run", "--", "/bin/sh", "-c", "kill -TERM $$"])?;
    ensure!(said.status.code() == Some(128 + libc::SIGTERM), "ended with {}", said.status);
    Ok(())
}

#[test]
fn a_program_that_does_not_exist_is_an_error_that_names_it() -> Result<()> {
    let said = leaktrace::output(&["run", "--", "/nonexistent/program"])?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(!said.status.success() && errors.contains("/nonexistent/program"), "{} {errors}", said.status);
    ensure!(!errors.contains("panicked"), "{errors}");
    Ok(())
}

#[test]
fn fail_on_leak_ends_with_3_where_more_is_outstanding() -> Result<()> {
    let program = early()?;
    for (flag, word, code) in [
        ("--fail-on-leak", "leaky", 3),
        ("--fail-on-leak", "clean", 0),
        // 745 + 945 + 486 bytes.
        ("--fail-on-leak=2175", "leaky", 3),
        ("--fail-on-leak=2176", "leaky", 0),
        ("--fail-on-leak=1MiB", "leaky", 0),
    ] {
        let ran = run(&[flag], &[], &[&program, word], false)?;
        ensure!(
            ran.status.code() == Some(code),
            "{flag} with the {word} twin: {} instead of {code}",
            ran.status
        );
    }
    Ok(())
}

#[test]
fn fail_on_leak_leaves_the_code_of_a_failing_program_visible() -> Result<()> {
    let ran = run(&["--fail-on-leak=1MiB"], &[("FIXTURE_EXIT", "5")], &[&early()?], false)?;
    ensure!(ran.status.code() == Some(5), "ended with {} instead of 5", ran.status);
    Ok(())
}

#[test]
fn the_program_owns_its_standard_streams() -> Result<()> {
    let program = early()?;
    let said = leaktrace::output(&["run", "--format", "text", "--", &program])?;
    let (out, errors) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    ensure!(
        out.lines().count() == 4 && out.ends_with("}\n"),
        "standard output is not the program's alone: {out}"
    );
    for site in ["leak_in_library", "leak_in_constructor", "leak_at_start"] {
        ensure!(errors.contains(site), "the report on standard error lacks {site}: {errors}");
    }
    ensure!(!errors.contains('\u{1b}'), "colours without a terminal: {errors}");
    Ok(())
}

#[test]
fn the_id_of_a_site_is_the_same_in_the_next_run() -> Result<()> {
    let program = early()?;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let ran = run(&[], &[], &[&program], false)?;
        let Some(target) = ran.reports.last().and_then(|report| report.targets.first()) else {
            bail!("no target")
        };
        let mut ids: Vec<String> = target.sites.iter().map(|site| site.id.clone()).collect();
        ids.sort();
        runs.push(ids);
    }
    ensure!(runs.first() == runs.last() && runs.first().is_some_and(|ids| ids.len() >= 3), "{runs:?}");
    Ok(())
}

#[test]
fn a_program_that_cannot_be_started_has_the_exit_code_that_shells_give_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text");
    std::fs::write(&text, "no program")?;
    let text = text.to_string_lossy();
    for (program, code, says) in [
        ("/no/such/program", 127, "No such file"),
        ("no-such-program", 127, "on PATH"),
        (&*text, 126, "denied"),
    ] {
        let output = leaktrace_tests::leaktrace::output(&["run", "--", program])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && said.contains(says), "{program}: {said}");
    }
    Ok(())
}
