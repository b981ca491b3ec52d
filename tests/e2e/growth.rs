//! Growth mode: memory is watched, and nothing is put into the process; with --auto, not until it keeps growing.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
    report::{Report, Target},
};
use std::time::Instant;

const FLAGS: [&str; 4] = ["--mode", "growth", "--interval", "500ms"];
/// Summaries in which a process that does not grow is watched: growth is told after 5 s.
const CLEAN_REPORTS: usize = 16;

fn start(step: &str, words: &[&str]) -> Result<Fixture> {
    let program = compile::fixture("grow.c", Build::Gcc, &[])?;
    Fixture::start(&program, &[&[step], words].concat(), &[])
}

/// A process that grows by `step` bytes 50 times a second, and whose mapping sites run through `grow_by`.
fn grows(step: &str) -> Result<()> {
    let fixture = start(step, &[])?;
    let pid = fixture.pid();
    let mut leaktrace = Leaktrace::attach(&[pid], &FLAGS)?;
    let report = leaktrace.until("growth is found", |report| {
        let memory = report.target(pid).and_then(|target| target.memory.as_ref()).ok_or("no memory")?;
        if memory.finding.is_some() { Ok(()) } else { Err(format!("no finding: {memory:?}")) }
    })?;
    ensure!(report.mode == "growth", "mode {}", report.mode);
    let target = report.target(pid).context("no target")?;
    let memory = target.memory.as_ref().context("no memory")?;
    ensure!(memory.growth_bytes_per_hour.is_some_and(|growth| growth > 1e8), "{memory:?}");
    ensure!(memory.rss_bytes >= memory.anonymous_bytes + memory.file_bytes, "{memory:?}");
    ensure!(target.allocated_count == 0 && target.overhead.is_none(), "allocations were recorded");
    ensure!(maps_through(target, "grow_by"), "no mapping by grow_by: {:?}", stacks(target));
    let probes = proc::damaged_text(pid)?;
    ensure!(probes.is_empty(), "probes in its text: {probes:?}");
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

fn maps_through(target: &Target, function: &str) -> bool {
    target.sites.iter().any(|site| site.kind == "mapping" && site.has(function) && site.outstanding_bytes > 0)
}

fn stacks(target: &Target) -> Vec<String> {
    target.sites.iter().map(|site| format!("{}: {}", site.kind, site.stack())).collect()
}

#[test]
fn a_heap_that_grows_by_moves_of_the_break_is_found_without_probes() -> Result<()> {
    grows("65536")
}

#[test]
fn a_heap_that_grows_by_mappings_is_found_without_probes() -> Result<()> {
    grows("300000")
}

#[test]
fn a_process_that_gives_back_what_it_takes_does_not_grow() -> Result<()> {
    for step in ["65536", "300000"] {
        let fixture = start(step, &["clean"])?;
        let pid = fixture.pid();
        let mut leaktrace = Leaktrace::attach(&[pid], &FLAGS)?;
        for _ in 0..CLEAN_REPORTS {
            let report = leaktrace.next_report()?.context("leaktrace ended")?;
            let target = report.target(pid).context("no target")?;
            let memory = target.memory.as_ref().context("no memory")?;
            ensure!(memory.finding.is_none(), "{memory:?}");
            let found: Vec<_> = target.sites.iter().filter_map(|site| site.finding.as_ref()).collect();
            ensure!(found.is_empty(), "{found:?}");
        }
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

#[test]
fn a_process_without_an_allocator_is_no_error() -> Result<()> {
    let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
    let mut leaktrace = Leaktrace::attach(&[child.id()], &FLAGS)?;
    let report = leaktrace.next_report()?.context("leaktrace ended")?;
    let about_allocators: Vec<_> = report.notes.iter().filter(|note| note.contains("allocator")).collect();
    ensure!(about_allocators.is_empty(), "{about_allocators:?}");
    leaktrace.interrupt()?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn what_keeps_growing_is_sampled_for_a_while_and_what_does_not_is_left_alone() -> Result<()> {
    let (grower, steady) = (start("65536", &[])?, start("65536", &["clean"])?);
    let (pid, other) = (grower.pid().to_string(), steady.pid().to_string());
    let mut words =
        vec!["attach", "--auto", "-p", &pid, "-p", &other, "--format", "json", "--interval", "300ms"];
    words.extend([
        "--auto-growth",
        "1M",
        "--auto-after",
        "3s",
        "--auto-duration",
        "4s",
        "--auto-targets",
        "1",
    ]);
    words.extend(["--sample-interval", "4k"]);
    let mut leaktrace = Leaktrace::spawn(&words)?;
    let first = leaktrace.next_report()?.context("leaktrace ended")?;
    ensure!(first.targets.is_empty(), "something is traced from the start");
    let mut steps = Vec::new();
    let mut saw_site = false;
    let mut follow = |report: &Report| -> Result<(), String> {
        steps.extend(report.events.iter().map(|event| (event.pid, event.kind.clone(), event.reason.clone())));
        let target = report.target(grower.pid());
        saw_site |= target.is_some_and(|target| target.sites.iter().any(|site| site.has("grow_by")));
        match report.target(steady.pid()) {
            Some(_) => Err("the steady process is traced".to_owned()),
            None if steps.iter().any(|(_, kind, _)| kind == "auto_stopped") => Ok(()),
            None => Err(format!("{steps:?}")),
        }
    };
    leaktrace.until("the grower was sampled", &mut follow)?;
    ensure!(saw_site, "no site of the grower was seen");
    let kinds: Vec<_> = steps.iter().map(|(pid, kind, _)| (*pid, kind.as_str())).collect();
    ensure!(kinds == [(grower.pid(), "auto_started"), (grower.pid(), "auto_stopped")], "{steps:?}");
    ensure!(steps.iter().any(|(_, _, reason)| reason.contains("anonymous memory grew by")), "{steps:?}");
    let after = leaktrace.next_report()?.context("leaktrace ended")?;
    ensure!(after.targets.is_empty(), "it is still traced");
    let watched = after.watched.context("nothing is watched")?;
    ensure!(watched.processes == 2 && watched.unwatched == 0, "{watched:?}");
    ensure!(watched.fastest.first().is_some_and(|process| process.pid == grower.pid()), "{watched:?}");
    let probes = proc::damaged_text(grower.pid())?;
    ensure!(probes.is_empty(), "probes in its text: {probes:?}");
    leaktrace.interrupt()?;
    ensure!(grower.release()?.success() && steady.release()?.success(), "a fixture did not survive");
    Ok(())
}

/// Sleeping processes of the next test.
const SLEEPERS: usize = 500;
/// What watching them may cost: a hundredth of a core in a release build; this may be a debug build.
const MOST_SHARE: f64 = 0.03;

#[test]
fn watching_five_hundred_processes_costs_next_to_nothing() -> Result<()> {
    let mut sleepers = Sleepers::start(SLEEPERS)?;
    let words = ["attach", "--auto", "--mode", "growth", "--format", "json", "--interval", "5s"];
    let mut leaktrace = Leaktrace::spawn(&words)?;
    leaktrace.next_report()?.context("leaktrace ended")?;
    let (began, before) = (Instant::now(), proc::cpu_time(leaktrace.pid())?);
    let mut last = None;
    for _ in 0..4 {
        last = leaktrace.next_report()?;
    }
    let used = proc::cpu_time(leaktrace.pid())?.saturating_sub(before);
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    let watched = last.and_then(|report| report.watched).context("nothing is watched")?;
    println!("{} processes: {:.2} % of a core", watched.processes, share * 100.0);
    ensure!(watched.processes as usize >= SLEEPERS && watched.unwatched == 0, "{watched:?}");
    ensure!(share < MOST_SHARE, "{used:?} of processor time is {share}");
    leaktrace.interrupt()?;
    sleepers.end()
}

/// Processes that do nothing; they are killed when this is dropped.
struct Sleepers(Vec<std::process::Child>);

impl Sleepers {
    fn start(count: usize) -> Result<Sleepers> {
        let mut sleepers = Sleepers(Vec::new());
        for _ in 0..count {
            sleepers.0.push(std::process::Command::new("sleep").arg("1000").spawn()?);
        }
        Ok(sleepers)
    }

    fn end(&mut self) -> Result<()> {
        for mut child in self.0.drain(..) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
