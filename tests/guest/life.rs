//! What lasts: the service, many attachments, and what is left of one that is killed.
use crate::shipped;
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    agent::Agent,
    fixture::Fixture,
    leaktrace::{self, Leaktrace},
    ledger::Said,
    lines, proc,
};
use std::time::Duration;

/// How long a killed process's probes may take to go: the kernel removes them with the last of its files.
const PROBES_GO: Duration = Duration::from_secs(120);

fn churn() -> Result<Fixture> {
    Fixture::start(&shipped("churn"), &[], &[])
}

/// No breakpoint is left, the program's own checks hold, and it ends as it should.
fn unharmed(mut fixture: Fixture) -> Result<()> {
    ensure!(fixture.is_running()?, "the target is dead: {}", fixture.errors());
    let pid = fixture.pid();
    no_probe_remains(pid)?;
    fixture.send("")?;
    let Said::Checked { rounds, errors } = fixture.hear()? else { bail!("no verdict of the target") };
    ensure!(errors == 0, "{errors} errors in {rounds} operations");
    ensure!(rounds > 0, "the target did nothing");
    ensure!(fixture.release()?.success(), "the target did not end well");
    Ok(())
}

/// The text is as its files have it.
pub(crate) fn no_probe_remains(pid: u32) -> Result<()> {
    lines::poll("no probe remains in the text", PROBES_GO, || {
        Ok(proc::damaged_text(pid)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}", proc::damaged_text(pid)))
}

/// With each kind of links in turn.
pub(crate) fn survives_attachments(times: u32, links: &[String]) -> Result<()> {
    let mut fixture = churn()?;
    let pid = fixture.pid().to_string();
    for (cycle, link) in (0..times).zip(links.iter().cycle()) {
        let words =
            ["attach", "-p", &pid, "--format", "json", "--interval", "10ms", "--count", "1", "--link", link];
        let said = leaktrace::output(&words)?;
        let errors = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success() && !said.stdout.is_empty(), "cycle {cycle}: {} {errors}", said.status);
        ensure!(fixture.is_running()?, "the target died in cycle {cycle}: {}", fixture.errors());
    }
    unharmed(fixture)
}

/// Killed while it traces.
pub(crate) fn leaves_no_probe_when_killed() -> Result<()> {
    let fixture = churn()?;
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &[])?;
    ensure!(!proc::damaged_text(fixture.pid())?.is_empty(), "no breakpoint in the text of a traced process");
    leaktrace.kill()?;
    unharmed(fixture)
}

/// The numbers of the ledger, by each endpoint that has them.
pub(crate) fn the_agent_answers() -> Result<()> {
    let mut fixture = Fixture::start(&shipped("rounds"), &["guest-rounds"], &[])?;
    let pid = fixture.pid();
    let config = format!(
        "targets = [\"pid:{pid}\"]\n[trace]\nmode = \"exact\"\ninterval = \"500ms\"\n[limits]\ncpu = 64\n\
         [http]\nlisten = \"127.0.0.1:0\"\n"
    );
    let mut agent = Agent::start(&config)?;
    fixture.act()?;
    agent.until_held(pid, 100_000)?;
    says(&agent, &format!("targets/{pid}"), "/outstanding_count", &100.into())?;
    says(&agent, &format!("targets/{pid}"), "/sites/0/frames/0/function", &"leak_round".into())?;
    says(&agent, "leaks", "/leaks/0/pid", &pid.into())?;
    says(&agent, "health", "/healthy", &true.into())?;
    let metrics = agent.get("/metrics")?;
    ensure!(metrics.status == 200 && metrics.text().contains("leaktrace_"), "no metrics: {}", metrics.status);
    let heap = agent.get(&format!("/debug/pprof/heap?pid={pid}"))?;
    ensure!(heap.status == 200 && heap.body.starts_with(&[0x1f, 0x8b]), "no gzip: {}", heap.status);
    ensure!(agent.stop()?.success(), "{}", agent.log());
    no_probe_remains(pid)?;
    ensure!(fixture.release()?.success(), "the target did not survive");
    Ok(())
}

/// The answer to `path` has `value` at the JSON pointer.
fn says(agent: &Agent, path: &str, pointer: &str, value: &serde_json::Value) -> Result<()> {
    let answer = agent.json(path)?;
    ensure!(answer.pointer(pointer) == Some(value), "{path}: {pointer} is not {value}: {answer}");
    Ok(())
}
