//! Programs that probes could harm: functions that keep values below the stack pointer, translators, code that is moved
//! or read as data. They survive, or are refused with the reason, and nothing of them is shown as "nothing leaks".
use crate::service;
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::Agent,
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::{self, Leaktrace},
    report::Report,
    scenario::Case,
};
use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
};

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
    let object = program.to_string_lossy().into_owned();
    let mut flags = vec!["--object".to_owned(), object];
    flags.extend(["--function".to_owned(), given(&program, "bump_free", "free")?]);
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

/// A translator: what runs a program under it, and a word of the reason why it is refused.
struct Translator {
    words: &'static [&'static str],
    reason: &'static str,
}

const TRANSLATORS: [Translator; 4] = [
    Translator { words: &["valgrind", "-q", "--tool=none"], reason: "Valgrind" },
    Translator { words: &["valgrind", "-q", "--tool=memcheck"], reason: "Valgrind" },
    Translator {
        words: &["valgrind", "-q", "--tool=callgrind", "--callgrind-out-file=/dev/null"],
        reason: "Valgrind",
    },
    Translator { words: &["qemu-x86_64-static"], reason: "QEMU" },
];

impl Translator {
    fn command(&self, words: &[&str]) -> Command {
        let (program, rest) = self.words.split_first().unwrap_or((&"", &[]));
        let mut command = Command::new(program);
        command.args(rest).args(words);
        command
    }

    /// A fixture under it, which waits.
    fn start(&self, program: &Path) -> Result<Fixture> {
        let mut fixture = Fixture::spawn(self.command(&[&program.to_string_lossy()]))
            .with_context(|| format!("is {:?} installed? `cargo xtask setup --tests`", self.words))?;
        fixture.wait_ready_after_others()?;
        Ok(fixture)
    }
}

/// It does what it had not done before, and ends as it should.
fn survives(mut fixture: Fixture) -> Result<()> {
    fixture.act().context("the program died")?;
    let status = fixture.release()?;
    ensure!(status.success(), "the program ended with {status}");
    Ok(())
}

#[test]
fn a_program_under_a_translator_is_refused_and_lives() -> Result<()> {
    let program = compile::fixture("late.c", Build::Gcc, &[])?;
    for translator in TRANSLATORS {
        let fixture = translator.start(&program)?;
        let pid = fixture.pid().to_string();
        let said = leaktrace::output(&["attach", "--format", "json", "--count", "1", "-p", &pid])?;
        let errors = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.code() == Some(1) && said.stdout.is_empty(), "{}: {errors}", said.status);
        ensure!(errors.contains(translator.reason) && !errors.contains("panicked"), "{errors}");
        let said = leaktrace::output(&["doctor", "-p", &pid])?;
        let text = String::from_utf8_lossy(&said.stdout);
        ensure!(!said.status.success() && text.contains(translator.reason), "{text}");
        survives(fixture).with_context(|| format!("{:?}", translator.words))?;
    }
    Ok(())
}

/// Of the translator nothing is traced, so that nothing is shown as nothing.
#[test]
fn run_sets_no_probes_in_a_translator() -> Result<()> {
    let program = compile::fixture("late.c", Build::Gcc, &[])?;
    for translator in TRANSLATORS {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("report.json");
        let mut command = leaktrace::command(&["run", "--format", "json", "-o"])?;
        command.arg(&file).arg("--").args(translator.words).arg(&program);
        let mut fixture = Fixture::spawn(command)?;
        fixture.wait_ready_after_others().with_context(|| format!("{:?}", translator.words))?;
        fixture.act().with_context(|| format!("{:?}: the program died", translator.words))?;
        let status = fixture.release()?;
        let text = std::fs::read_to_string(&file)?;
        let last = Report::parse(text.lines().last().context("no summary")?)?;
        let verdict = last.verdict.as_ref().context("no verdict")?;
        // The exit code says so where not even the translator's starter was traced.
        let wanted = if last.targets.is_empty() { 4 } else { 0 };
        ensure!(status.code() == Some(wanted), "{:?} ended with {status}: {verdict:?}", translator.words);
        ensure!(verdict.outcome == "not-known", "{verdict:?}");
        ensure!(last.notes.iter().any(|note| note.contains(translator.reason)), "{:?}", last.notes);
        let alive = last.targets.iter().filter(|target| !target.execed).collect::<Vec<_>>();
        ensure!(alive.is_empty(), "{:?} is shown as traced: {alive:?}", translator.words);
    }
    Ok(())
}

/// A standing order says once that it is not traced, and `ps` says why.
#[test]
fn a_standing_order_passes_a_translator_by_without_noise() -> Result<()> {
    let program = compile::fixture("late.c", Build::Gcc, &[])?;
    let [translator, ..] = TRANSLATORS;
    let fixture = translator.start(&program)?;
    let pid = fixture.pid();
    let words = ["--comm", "none-amd64-linu*", "--format", "json"];
    let mut leaktrace = Leaktrace::spawn(&[&["attach", "--interval", "100ms"], &words[..]].concat())?;
    leaktrace.until("it is told of", |report| {
        let is_told =
            report.notes.iter().any(|note| note.contains("Valgrind") && note.contains(&pid.to_string()));
        if is_told && report.targets.is_empty() { Ok(()) } else { Err(format!("{:?}", report.notes)) }
    })?;
    let errors = leaktrace.errors();
    ensure!(!errors.contains("WARN") && !errors.contains("ERROR"), "{errors}");
    let said = leaktrace::output(&[&["ps", "--watch", "0s"], &words[..]].concat())?;
    let listed: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let processes = listed["processes"].as_array().context("no processes")?;
    let own = processes.iter().find(|process| process["pid"] == pid).context("it is not listed")?;
    ensure!(own["traceable"] == false && own["problem"].to_string().contains("Valgrind"), "{own}");
    leaktrace.interrupt()?;
    survives(fixture)
}

/// The program moves its code while it is traced, or has done so before.
#[test]
fn code_that_was_moved_keeps_its_names_and_its_stacks() -> Result<()> {
    let program = compile::fixture("moves_text.c", Build::Gcc, &[])?;
    for (arguments, order) in [(&[][..], "m"), (&["early"], "")] {
        let case = Case::new(program.clone()).arguments(arguments).must_have(&["leak"]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        fixture.send(order)?;
        let ledger = fixture.ledger()?;
        let report = leaktrace.until_settled("the report equals the ledger", |report| {
            case.judge(&ledger, report, fixture.pid())
        })?;
        let target = report.target(fixture.pid()).context("no target")?;
        let stacks = target.sites.iter().filter(|site| site.has("leak")).count();
        ensure!(stacks == 1, "one stack is shown as {stacks} ({order:?})");
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

/// The program that moves its own allocator.
fn moves_own_allocator() -> Result<PathBuf> {
    let flags = ["-O2", "-g", "-fno-builtin", "-fno-optimize-sibling-calls", "-std=gnu17", "-DOWN"];
    compile::plain("gcc", "moves_text.c", &flags, "moves_own")
}

#[test]
fn functions_that_were_moved_are_told_of_and_not_probed() -> Result<()> {
    let fixture = Fixture::start(&moves_own_allocator()?, &["early"], &[])?;
    let pid = fixture.pid().to_string();
    let words = ["attach", "--format", "json", "--count", "1", "--interval", "10ms", "-p", &pid];
    let said = leaktrace::output(&words)?;
    let report = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(report.contains("moved this code out of its file"), "{report}");
    survives(fixture)
}

/// What cannot be prevented is told of: here under `run`.
#[test]
fn a_program_that_tracing_has_killed_is_reported() -> Result<()> {
    let program = moves_own_allocator()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command = leaktrace::command(&["run", "--format", "json", "-o"])?;
    command.arg(&file).arg("--").arg(&program);
    let mut fixture = Fixture::spawn(command)?;
    fixture.wait_ready()?;
    fixture.send("m")?;
    let status = fixture.wait()?;
    ensure!(status.code() == Some(128 + libc::SIGTRAP), "it ended with {status}");
    let text = std::fs::read_to_string(&file)?;
    let last = Report::parse(text.lines().last().context("no summary")?)?;
    let target = last.targets.iter().find(|target| target.killed_by_tracing.is_some());
    let harm = target.and_then(|target| target.killed_by_tracing.as_ref()).context("nothing is said")?;
    ensure!(harm["function"] == "malloc" && harm["reason"].to_string().contains("SIGTRAP"), "{harm}");
    ensure!(last.events.iter().any(|event| event.kind == "killed_by_tracing"), "{:?}", last.events);
    Ok(())
}

/// Programs that end themselves by the same signals are not tracing's.
#[test]
fn a_program_that_traps_by_itself_is_not_blamed_on_tracing() -> Result<()> {
    let program = compile::fixture("traps.c", Build::Gcc, &[])?;
    for (how, signal) in [("int3", libc::SIGTRAP), ("ud2", libc::SIGILL), ("raise", libc::SIGTRAP)] {
        let case = Case::new(program.clone()).arguments(&[how]);
        let mut fixture = case.start(false)?;
        let pid = fixture.pid();
        let mut leaktrace = case.attach(&fixture)?;
        fixture.send("")?;
        let status = fixture.wait()?;
        ensure!(status.signal() == Some(signal), "{how}: it ended with {status}");
        let (reports, _) = leaktrace.finish()?;
        let target = leaktrace_tests::scenario::latest(&reports, pid)?;
        let died = target.exited.context("its end is not told")?;
        ensure!(died.signal == Some(signal) && target.killed_by_tracing.is_none(), "{how}: {target:?}");
    }
    Ok(())
}

/// The agent raises an alert, and traces that program again only when it is told to.
#[test]
fn standing_orders_leave_a_program_alone_that_tracing_has_killed() -> Result<()> {
    let program = moves_own_allocator()?;
    let state = tempfile::tempdir()?;
    let state_path = state.path().to_string_lossy().into_owned();
    let environment = [("STATE_DIRECTORY", state_path.as_str())];
    let config = service::config("\"comm:moves_own\"", "");
    let agent = Agent::start_with(tempfile::tempdir()?, &config, &environment)?;
    let mut fixture = Fixture::start(&program, &[], &[])?;
    until_traced(&agent, fixture.pid())?;
    fixture.send("m")?;
    let status = fixture.wait()?;
    ensure!(status.signal() == Some(libc::SIGTRAP), "it ended with {status}");
    agent.until("health", "an alert", |health| {
        let issues = health["issues"].as_array()?;
        issues.iter().any(|issue| issue["kind"] == "killed_by_tracing").then_some(())
    })?;
    let again = Fixture::start(&program, &[], &[])?;
    let pid = again.pid();
    let mut ps = leaktrace::command(&["ps", "--watch", "0s", "--format", "json", "--comm", "moves_own"])?;
    let said = ps.envs(environment).output()?;
    let listed: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let problem = listed["processes"][0]["problem"].to_string();
    ensure!(problem.contains("--forget build-id:"), "{listed}");
    let mut doctor = leaktrace::command(&["doctor", "-p", &pid.to_string()])?;
    let said = doctor.envs(environment).output()?;
    ensure!(String::from_utf8_lossy(&said.stdout).contains("--forget build-id:"), "doctor does not say it");
    agent.until("targets", "it is not traced", |answer| {
        let targets = answer["targets"].as_array()?;
        targets.iter().all(|target| target["pid"] != pid).then_some(())
    })?;
    let mut forget = leaktrace::command(&["agent", "--forget", "all"])?;
    ensure!(forget.envs(environment).status()?.success(), "it could not be forgotten");
    let third = Fixture::start(&program, &[], &[])?;
    until_traced(&agent, third.pid())?;
    survives(again)
}

fn until_traced(agent: &Agent, pid: u32) -> Result<()> {
    agent.until("targets", "it is traced", |answer| {
        let targets = answer["targets"].as_array()?;
        targets.iter().any(|target| target["pid"] == pid).then_some(())
    })
}

/// A call with a return probe returns by a system call, which such a thread would catch and be killed for. The program
/// is static: where others share what is probed, each tracer of theirs asks for the return.
#[test]
fn a_thread_that_catches_its_own_system_calls_lives_and_its_calls_are_counted() -> Result<()> {
    let case = Case::new(compile::fixture("dispatch.c", Build::Static, &[])?);
    let mut fixture = case.start(false)?;
    let pid = fixture.pid();
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act().context("the program died")?;
    ensure!(ledger.entries.len() == 2, "{ledger:?}");
    leaktrace.until("its calls are counted", |report| {
        let target = report.target(pid).ok_or("no target")?;
        let lost = target.losses.get("dispatched_calls").copied().unwrap_or(0);
        let after: u64 = target
            .sites
            .iter()
            .filter(|site| site.has("leak_after"))
            .map(|site| site.outstanding_count)
            .sum();
        if lost >= 700 && after == 50 { Ok(()) } else { Err(format!("{lost} lost, {after} after")) }
    })?;
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}
