//! Process life under `attach`: fork with both sides allocating, vfork, exec, posix_spawn, and the end of a target.
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    report::Report,
    scenario::{Case, latest},
};
use std::path::PathBuf;

fn program() -> Result<PathBuf> {
    compile::fixture("fork.c", Build::Gcc, &[])
}

/// The kernel does not put a process's probes into what it forks before it runs, so the first moments of a child
/// are not seen under `attach` (`run` holds it: see `run::forked_and_executed_programs_are_followed`). They are not
/// passed over in silence, and they leave the parent's numbers alone.
fn a_child_is_a_target_and_says_what_was_not_seen(how: &str, link: &str) -> Result<()> {
    let case = Case::new(program()?).arguments(&[how]).flags(&["--link", link]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    let parent = fixture.pid();
    let of_parent = ledger.of(parent);
    let child = ledger.pids().into_iter().find(|pid| *pid != parent).context("the fixture made no child")?;
    let report =
        leaktrace.until_settled("the parent's numbers are right and the child is there", |report| {
            case.judge(&of_parent, &report.only(parent), parent)?;
            report.target(child).map(|_| ()).ok_or_else(|| "the child is not in the report".to_owned())
        })?;
    let said =
        report.notes.iter().any(|note| note.contains(&format!("process {child}: what it allocated in")));
    ensure!(said, "nothing is said of the child's first moments: {:?}", report.notes);
    Ok(())
}

#[test]
fn a_forked_child_is_a_target_and_says_what_was_not_seen() -> Result<()> {
    a_child_is_a_target_and_says_what_was_not_seen("fork", "session")
}

#[test]
fn a_forked_child_is_a_target_with_perf_links_too() -> Result<()> {
    a_child_is_a_target_and_says_what_was_not_seen("fork", "perf")
}

#[test]
fn a_program_started_by_vfork_is_a_target() -> Result<()> {
    a_child_is_a_target_and_says_what_was_not_seen("vfork", "session")
}

#[test]
fn a_program_started_by_posix_spawn_is_a_target() -> Result<()> {
    a_child_is_a_target_and_says_what_was_not_seen("spawn", "session")
}

#[test]
fn exec_wipes_the_heap_and_the_new_image_is_traced() -> Result<()> {
    Case::new(program()?).arguments(&["exec"]).must_have(&["leak_after_exec"]).run()
}

/// The kernel's links are the first thread's and end with it: the new program has a moment without probes.
#[test]
fn exec_from_another_thread_than_the_first_is_traced_and_says_what_was_not_seen() -> Result<()> {
    let case = Case::new(program()?).arguments(&["exec", "thread"]).must_have(&["leak_after_exec"]);
    case.run_twin(true)?;
    let report = case.run_twin(false)?;
    let target = report.targets.iter().find(|target| target.unseen_ns.is_some());
    ensure!(target.is_some(), "no target says for how long it was not seen");
    let said = report.notes.iter().any(|note| note.contains("it executed this program while it was traced"));
    ensure!(said, "nothing is said of the program's first moments: {:?}", report.notes);
    Ok(())
}

/// The news of the exec is read long before the C library is mapped again.
#[test]
fn a_program_whose_libraries_are_searched_for_long_is_traced_from_its_first_allocation() -> Result<()> {
    let nowhere: Vec<String> = (0..13_000).map(|folder| format!("/{folder:08}")).collect();
    Case::new(program()?)
        .arguments(&["exec"])
        .variable("LD_LIBRARY_PATH", &nowhere.join(":"))
        .must_have(&["leak_after_exec"])
        .run()
}

#[test]
fn without_following_a_child_is_not_a_target() -> Result<()> {
    let case = Case::new(program()?).arguments(&["fork"]).flags(&["--no-follow"]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    let parent = fixture.pid();
    let of_parent = ledger.of(parent);
    let report = leaktrace
        .until_settled("the parent's numbers are right", |report| case.judge(&of_parent, report, parent))?;
    ensure!(report.targets.iter().all(|target| target.pid == parent), "the child is in the report");
    ensure!(ledger.pids().len() == 2, "the fixture did not fork");
    Ok(())
}

#[test]
fn a_target_that_exits_is_reported_and_then_attach_ends() -> Result<()> {
    let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?).variable("FIXTURE_EXIT", "7");
    let mut fixture = case.start(false)?;
    let pid = fixture.pid();
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    let status = fixture.release()?;
    ensure!(status.code() == Some(7), "the fixture ended with {status}");
    let (reports, status) = leaktrace.finish()?;
    ensure!(status.success(), "leaktrace ended with {status}: {}", leaktrace.errors());
    let target = latest(&reports, pid)?;
    let exited = target.exited.context("the last word on the target does not say that it exited")?;
    ensure!(exited.code == Some(7) && exited.signal.is_none(), "{exited:?} instead of code 7");
    // It is reported once as ended; summaries after that need not repeat it.
    let word =
        reports.iter().rev().find(|report| report.target(pid).is_some()).context("no summary has it")?;
    case.judge(&ledger, word, pid).map_err(anyhow::Error::msg).context("the summary that reports its end")
}

#[test]
fn a_target_that_is_killed_is_reported_with_its_signal() -> Result<()> {
    let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?);
    let mut fixture = case.start(false)?;
    let pid = fixture.pid();
    let mut leaktrace = case.attach(&fixture)?;
    fixture.act()?;
    drop(fixture);
    let (reports, _) = leaktrace.finish()?;
    let exited = latest(&reports, pid)?.exited.context("it does not say that the target ended")?;
    ensure!(exited.signal == Some(libc::SIGKILL), "{exited:?} instead of signal 9");
    Ok(())
}

#[test]
fn several_processes_are_traced_apart() -> Result<()> {
    let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?);
    let (mut leaky, mut clean) = (case.start(false)?, case.start(true)?);
    let mut leaktrace = Leaktrace::attach(&[leaky.pid(), clean.pid()], &[])?;
    let (of_leaky, of_clean) = (leaky.act()?, clean.act()?);
    leaktrace.until_settled("both reports equal their ledgers", |report| {
        case.judge(&of_leaky, report, leaky.pid())?;
        case.judge(&of_clean, report, clean.pid())
    })?;
    leaktrace.interrupt()?;
    ensure!(leaky.release()?.success() && clean.release()?.success(), "a fixture did not survive");
    Ok(())
}

/// One stack stands for all then, in every process.
#[test]
fn without_stacks_the_sums_of_several_processes_are_still_told_apart() -> Result<()> {
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    let case = |blocks: &str| Case::new(program.clone()).arguments(&[blocks, "4"]);
    let mut fixtures = [case("1000").start(false)?, case("2000").start(false)?];
    let pids = fixtures.each_ref().map(Fixture::pid);
    let mut leaktrace = Leaktrace::attach(&pids, &["--combined-only"])?;
    for fixture in &mut fixtures {
        fixture.act()?;
    }
    let report = leaktrace.until_settled("each process has its own blocks", |report| {
        for (pid, blocks) in pids.into_iter().zip([1000, 2000]) {
            let count = report.target(pid).ok_or("no target")?.outstanding_count;
            if count != blocks {
                return Err(format!("process {pid}: {count} blocks instead of {blocks}"));
            }
        }
        Ok(())
    })?;
    let mut of_heap =
        report.targets.iter().flat_map(|target| &target.sites).filter(|site| site.outstanding_count >= 1000);
    ensure!(of_heap.clone().count() == 2, "more than one site in a process");
    ensure!(of_heap.all(|site| site.frames.is_empty()), "a site has a stack");
    leaktrace.interrupt()?;
    for fixture in fixtures {
        ensure!(fixture.release()?.success(), "a fixture did not survive");
    }
    Ok(())
}

/// A process that is attached to late: what it allocated before is unknown, and its frees are no error.
#[test]
fn frees_of_blocks_from_before_are_counted_and_harmless() -> Result<()> {
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    let case = Case::new(program).arguments(&["1000", "4"]);
    let mut fixture = case.start(true)?;
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    let report = leaktrace
        .until_settled("the report equals the ledger", |report| case.judge(&ledger, report, fixture.pid()))?;
    let target = report.target(fixture.pid()).context("no target")?;
    ensure!(
        target.heap_before_attach_bytes.is_some_and(|bytes| bytes > 0),
        "the heap from before is not mentioned"
    );
    ensure!(
        target.unmatched_frees == Some(0),
        "{:?} unmatched frees instead of none",
        target.unmatched_frees
    );
    Ok(())
}

/// What is shown of a target at rest is not read again: it must be the same, only older, and end with the next call.
#[test]
fn a_target_at_rest_grows_older_and_is_seen_to_go_on() -> Result<()> {
    let case = Case::new(compile::fixture("rounds.c", Build::Gcc, &[])?);
    let mut fixture = case.start(false)?;
    let pid = fixture.pid();
    let mut leaktrace = case.attach(&fixture)?;
    for round in 0..3 {
        let ledger = fixture.act()?;
        let mut before = leaktrace
            .until_settled("the report equals the ledger", |report| case.judge(&ledger, report, pid))?;
        for _ in 0..20 {
            let report = leaktrace.next_report()?.context("leaktrace has ended")?;
            if let Err(wrong) = case.judge(&ledger, &report, pid) {
                bail!("round {round}, at rest: {wrong}");
            }
            let sites = |report: &Report| report.target(pid).map(|target| target.sites.clone());
            let then = sites(&before).context("no target")?;
            let now = sites(&report).context("no target")?;
            ensure!(then.iter().map(|site| &site.id).eq(now.iter().map(|site| &site.id)), "other sites");
            ensure!(
                then.iter().zip(&now).all(|(then, now)| match (then.oldest_age_ns, now.oldest_age_ns) {
                    (Some(then), Some(now)) => then < now,
                    (then, now) => then == now,
                }),
                "no older: {then:?} {now:?}"
            );
            before = report;
        }
    }
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}
