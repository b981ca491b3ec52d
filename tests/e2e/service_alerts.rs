//! Alerts over real programs that come near their memory limits, and how soon alerts are there. That they fire, rise and
//! end is tested in `service`, that rare summaries do not hold them up in `service_life`.
use crate::service::{config, receiver, rounds};
use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    compile::{self, Build},
    container,
    fixture::Fixture,
};
use std::{fs, path::PathBuf};

/// A control group with a memory limit of [`LIMIT_BYTES`]; it is removed when this is dropped.
pub(crate) struct Limited(PathBuf);

const LIMIT_BYTES: u32 = 64 << 20;

impl Limited {
    /// Where the memory controller is: in a hierarchy of its own (version 1), or in the one of all (version 2).
    pub(crate) fn new() -> Result<Limited> {
        let old = PathBuf::from("/sys/fs/cgroup/memory");
        let (mount, file) = if old.is_dir() {
            (old, "memory.limit_in_bytes")
        } else {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max")
        };
        let _ = fs::write(mount.join("cgroup.subtree_control"), "+memory");
        let folder = mount.join(container::name("limited"));
        fs::create_dir(&folder).with_context(|| format!("no control group {}", folder.display()))?;
        let limited = Limited(folder);
        fs::write(limited.0.join(file), LIMIT_BYTES.to_string())
            .context("the memory controller sets no limit")?;
        Ok(limited)
    }

    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn the_share_of_a_memory_limit_is_an_alert() -> Result<()> {
    let limit = Limited::new()?;
    let mut fixture = rounds("svc-limit")?;
    limit.take(fixture.pid())?;
    let more = "[alerts]\nmemory_limit = { warning = 0.01 }\n[snapshots]\ndirectory = \"@DIR@/files\"\non_memory_limit = 0.01";
    let agent = Agent::start(&config(&format!("\"pid:{}\"", fixture.pid()), more))?;
    for _ in 0..20 {
        fixture.act()?;
    }
    agent.until("health", "the limit is near", |health| {
        let issues = health["issues"].as_array()?;
        issues.iter().any(|issue| issue["kind"] == "memory_limit_share").then_some(())
    })?;
    agent.until("snapshots", "a file because of that", |files| {
        files["snapshots"].as_array()?.iter().any(|file| file["reason"] == "limit").then_some(())
    })
}

/// 4 KiB 50 times a second: the limit is five minutes away, or more where the machine is busy. The other process in the
/// same group gives back what it takes.
#[test]
fn the_time_to_a_memory_limit_is_an_alert_for_the_process_that_grows_and_not_for_its_twin() -> Result<()> {
    let program = compile::fixture("grow.c", Build::Gcc, &[])?;
    let limit = Limited::new()?;
    let twin = Fixture::start(&program, &["4096", "clean"], &[])?;
    let grows = Fixture::start(&program, &["4096"], &[])?;
    limit.take(twin.pid())?;
    limit.take(grows.pid())?;
    let (url, messages) = receiver(0)?;
    let more = format!(
        "[alerts]\nwebhook = \"{url}\"\ngrowth_window = \"2s\"\ntime_to_limit = {{ warning = \"30m\" }}"
    );
    let targets = format!("\"pid:{}\", \"pid:{}\"", twin.pid(), grows.pid());
    let agent = Agent::start(&config(&targets, &more))?;
    let hear = || messages.recv_timeout(PATIENCE).with_context(|| agent.log());
    let fired = hear()?;
    ensure!(fired["pid"] == grows.pid() && fired["state"] == "firing", "{fired}");
    ensure!(fired["kind"] == "time_to_limit_seconds" && fired["severity"] == "warning", "{fired}");
    let left_seconds = fired["value"].as_f64().context("no value")?;
    let fastest = f64::from(LIMIT_BYTES) / 2.0 / (50.0 * 4096.0);
    ensure!((fastest..=1800.0).contains(&left_seconds) && fired["threshold"] == 1800.0, "{fired}");
    ensure!(
        fired["message"].as_str().is_some_and(|text| text.contains("reaches its memory limit in")),
        "{fired}"
    );
    // The twin is watched as well, and for as long.
    agent.until("targets", "both are traced", |answer| {
        (answer["targets"].as_array()?.len() == 2).then_some(())
    })?;
    let before = agent.work("summaries")?;
    agent.until_work("summaries", before + 20)?;
    grows.release()?;
    let over = hear()?;
    ensure!(over["pid"] == fired["pid"] && over["state"] == "resolved", "{over}");
    ensure!(over["kind"] == fired["kind"], "{over}");
    Ok(())
}

/// Alerts are evaluated within 5 s of the time that a threshold is reached, as long as the configuration asks for nothing
/// else, and delivered within 30 s, although the receiver fails at first. Each time it is reached just after a summary:
/// nothing can take longer.
#[test]
fn alerts_are_evaluated_within_5_s_and_delivered_within_30_s() -> Result<()> {
    let (url, messages) = receiver(3)?;
    let more = format!(
        "[alerts]\nwebhook = \"{url}\"\n[alerts.outstanding]\nwarning = \"150000\"\ncritical = \"250000\""
    );
    let mut fixture = rounds("svc-prompt")?;
    let text = config(&format!("\"pid:{}\"", fixture.pid()), &more);
    let agent = Agent::start(&text.replace("interval = \"200ms\"\n", ""))?;
    fixture.act()?;
    agent.until_held(fixture.pid(), 100_000)?;
    for severity in ["warning", "critical"] {
        let before = agent.work("summaries")?;
        agent.until_work("summaries", before + 1)?;
        let not_yet = Timestamp::now();
        fixture.act()?;
        let reached = Timestamp::now();
        let message = messages.recv_timeout(PATIENCE).with_context(|| agent.log())?;
        let delivered = Timestamp::now();
        ensure!(message["severity"] == severity && message["state"] == "firing", "{message}");
        let evaluated: Timestamp = message["time"].as_str().context("no time")?.parse()?;
        ensure!(evaluated >= not_yet, "evaluated at {evaluated}, before {not_yet}");
        let after = evaluated.duration_since(reached);
        ensure!(after <= SignedDuration::from_secs(5), "evaluated after {after:#}: {message}");
        let after = delivered.duration_since(reached);
        ensure!(after <= SignedDuration::from_secs(30), "delivered after {after:#}: {message}");
    }
    ensure!(agent.work("webhook_attempts_failed")? == 3);
    Ok(())
}
