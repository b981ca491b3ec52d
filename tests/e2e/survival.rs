//! The target survives: attach and detach a thousand times, kill the agent a hundred times, and every byte of the
//! program's data and text is as it was. `LEAKTRACE_CYCLES` changes the number of attachments; there are at most as many
//! kills.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace::{self, Leaktrace},
    ledger::Said,
    lines, proc,
};
use std::time::Duration;

const KILLS: u32 = 100;

fn cycles() -> Result<u32> {
    match std::env::var("LEAKTRACE_CYCLES") {
        Ok(text) => text.parse().with_context(|| format!("LEAKTRACE_CYCLES is {text:?}")),
        Err(_) => Ok(1000),
    }
}

fn churn(environment: &[(&str, &str)]) -> Result<Fixture> {
    Fixture::start(&compile::fixture("churn.c", Build::Gcc, &[])?, &[], environment)
}

/// No breakpoint is left, the program's own checks hold, and it ends as it should.
fn unharmed(mut fixture: Fixture) -> Result<u64> {
    ensure!(fixture.is_running()?, "the target is dead: {}", fixture.errors());
    let pid = fixture.pid();
    lines::poll("the text is as its files have it", Duration::from_secs(20), || {
        Ok(proc::damaged_text(pid)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}", proc::damaged_text(pid)))?;
    fixture.send("")?;
    let Said::Checked { rounds, errors } = fixture.hear()? else { anyhow::bail!("no verdict of the target") };
    ensure!(errors == 0, "{errors} errors in {rounds} operations");
    ensure!(rounds > 10_000, "only {rounds} operations");
    ensure!(fixture.release()?.success(), "the target did not end well");
    Ok(rounds)
}

fn attach_and_detach(times: u32, environment: &[(&str, &str)], flags: &[&str]) -> Result<()> {
    let mut fixture = churn(environment)?;
    let pid = fixture.pid().to_string();
    for cycle in 0..times {
        let mut words = vec!["attach", "-p", &pid, "--format", "json", "--interval", "10ms", "--count", "1"];
        words.extend(flags);
        let said = leaktrace::output(&words)?;
        let errors = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success() && !said.stdout.is_empty(), "cycle {cycle}: {} {errors}", said.status);
        ensure!(fixture.is_running()?, "the target died in cycle {cycle}: {}", fixture.errors());
    }
    unharmed(fixture).map(drop)
}

#[test]
fn a_target_survives_a_thousand_attachments() -> Result<()> {
    attach_and_detach(cycles()?, &[], &[])
}

#[test]
fn a_target_on_jemalloc_survives_attachments() -> Result<()> {
    let path = library("libjemalloc.so.2")?;
    attach_and_detach(cycles()?.div_ceil(10), &[("LD_PRELOAD", &path.to_string_lossy())], &[])
}

#[test]
fn a_target_survives_attachments_with_multi_links() -> Result<()> {
    attach_and_detach(cycles()?.div_ceil(10), &[], &["--link", "multi"])
}

#[test]
fn a_target_survives_attachments_with_perf_links() -> Result<()> {
    attach_and_detach(cycles()?.div_ceil(20), &[], &["--link", "perf"])
}

/// A generator with a fixed start, so that a failure can be repeated.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % 400_000)
    }
}

#[test]
fn a_target_survives_that_the_agent_is_killed_at_any_moment() -> Result<()> {
    let mut fixture = churn(&[])?;
    let pid = fixture.pid().to_string();
    let mut moments = Moments(0x9e37_79b9_7f4a_7c15);
    for kill in 0..cycles()?.min(KILLS) {
        let mut agent = Leaktrace::spawn(&["attach", "-p", &pid, "--format", "json", "--interval", "20ms"])?;
        std::thread::sleep(moments.next());
        agent.kill()?;
        ensure!(fixture.is_running()?, "the target died after kill {kill}: {}", fixture.errors());
    }
    unharmed(fixture).map(drop)
}

/// Tracing shows in the text while it lasts; otherwise the other tests here would prove nothing.
#[test]
fn a_traced_target_has_breakpoints_in_its_text() -> Result<()> {
    let fixture = churn(&[])?;
    ensure!(proc::damaged_text(fixture.pid())?.is_empty(), "the text is damaged before tracing");
    let leaktrace = Leaktrace::attach(&[fixture.pid()], &[])?;
    ensure!(!proc::damaged_text(fixture.pid())?.is_empty(), "no breakpoint in the text of a traced process");
    leaktrace.interrupt()?;
    unharmed(fixture).map(drop)
}
