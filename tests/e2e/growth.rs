//! Growth mode: memory is watched, and nothing is put into the process.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
    report::Target,
};

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
