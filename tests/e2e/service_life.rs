//! The service as a service manager and an operator see it: readiness and watchdog, its log, its own limits, alerts
//! however rare summaries are.
use crate::service::{config, receiver, rounds};
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    compile::{self, Build},
    container::{Bundle, Root},
    http, lines,
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, Instant},
};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Result<Manager> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Manager(socket))
    }

    fn hear(&self) -> Result<String> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).context("the service says nothing to its manager")?;
        Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
    }

    /// The next message that begins so; what comes before it.
    fn until(&self, start: &str) -> Result<Vec<String>> {
        let mut before = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(Instant::now() < deadline, "no {start} among {before:?}");
            let message = self.hear().with_context(|| format!("waiting for {start} after {before:?}"))?;
            if message.starts_with(start) {
                return Ok(before);
            }
            before.push(message);
        }
    }
}

#[test]
fn a_service_manager_is_told_of_readiness_life_reloads_and_the_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let manager = Manager::at(&path)?;
    let text = config("", "");
    let environment = [("NOTIFY_SOCKET", path.to_string_lossy().into_owned())];
    let environment = [
        (environment[0].0, environment[0].1.as_str()),
        // A second; half of it is how often it must be told.
        ("WATCHDOG_USEC", "1000000"),
    ];
    let mut agent = Agent::start_with(tempfile::tempdir()?, &text, &environment)?;
    let before = manager.until("READY=1")?;
    ensure!(before == ["STATUS=0 targets hold 0 B"], "before it was ready: {before:?}");
    for _ in 0..3 {
        manager.until("WATCHDOG=1")?;
    }
    agent.reload(&text)?;
    manager.until("RELOADING=1\nMONOTONIC_USEC=")?;
    manager.until("READY=1")?;
    ensure!(agent.stop()?.success(), "{}", agent.log());
    manager.until("STOPPING=1")?;
    Ok(())
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let manager = Manager::at(&path)?;
    let path = path.to_string_lossy().into_owned();
    let environment = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "1")];
    let mut agent = Agent::start_with(tempfile::tempdir()?, &config("", ""), &environment)?;
    agent.until_work("summaries", 15)?;
    ensure!(agent.stop()?.success(), "{}", agent.log());
    let said = manager.until("STOPPING=1")?;
    ensure!(said.iter().any(|message| message == "READY=1"), "{said:?}");
    ensure!(said.iter().all(|message| !message.starts_with("WATCHDOG")), "{said:?}");
    Ok(())
}

/// Its queue is full after some messages; the loop goes on all the same.
#[test]
fn a_service_manager_that_does_not_listen_holds_nothing_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let _manager = Manager::at(&path)?;
    let path = path.to_string_lossy().into_owned();
    // Every 25 ms: more than any queue holds.
    let environment = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "50000")];
    let mut agent = Agent::start_with(tempfile::tempdir()?, &config("", ""), &environment)?;
    for _ in 0..3 {
        let before = agent.work("summaries")?;
        agent.until_work("summaries", before + 2)?;
    }
    ensure!(agent.stop()?.success(), "{}", agent.log());
    Ok(())
}

#[test]
fn a_log_in_json_is_one_object_a_line() -> Result<()> {
    let mut agent = Agent::start(&format!("{}[log]\nformat = \"json\"\n", config("", "")))?;
    agent.reload("wrong = \"\\u001b[31m\"")?;
    agent.until_work("reloads_failed", 1)?;
    ensure!(agent.stop()?.success());
    let log = agent.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect::<Result<_>>()?;
    let is_told = |level: &str, text: &str| {
        lines.iter().any(|line| {
            line["level"] == level
                && line["timestamp"].is_string()
                && line["fields"]["message"].as_str().is_some_and(|message| message.contains(text))
        })
    };
    ensure!(is_told("INFO", "answering on http://") && is_told("ERROR", "there is no key"), "{log}");
    Ok(())
}

#[test]
fn above_its_own_limits_the_agent_says_so_and_takes_no_more_targets() -> Result<()> {
    for (limit, says) in [("rss = \"1M\"", "limits.rss is"), ("map_memory = \"1M\"", "limits.map_memory is")]
    {
        let mut agent = Agent::start(&config("\"comm:svc-limited\"", limit))?;
        agent.until("health", "the limit is an issue", |health| {
            let mut issues = health["issues"].as_array()?.iter();
            let said =
                issues.find(|issue| issue["kind"] == "agent_limit")?["message"].as_str()?.contains(says);
            (said && health["healthy"] == false).then_some(())
        })?;
        let mut fixture = rounds("svc-limited")?;
        agent.until_work("targets_refused", 1)?;
        ensure!(agent.json("stats")?["targets"] == 0, "a target although the agent is above its limit");
        agent.reload(&config("\"comm:svc-limited\"", ""))?;
        agent.until("stats", "the process is traced after all", |stats| {
            (stats["targets"] == 1).then_some(())
        })?;
        agent.until("health", "the issue is gone", |health| (health["healthy"] == true).then_some(()))?;
        fixture.act()?;
        agent.until_held(fixture.pid(), 100_000)?;
        ensure!(agent.stop()?.success(), "{}", agent.log());
        fixture.release()?;
    }
    Ok(())
}

#[test]
fn above_its_share_of_the_cpu_summaries_become_rarer() -> Result<()> {
    let agent = Agent::start(&config("", "").replace("cpu = 64", "cpu = 0.000001"))?;
    agent.until("health", "the limit is an issue", |health| {
        let mut issues = health["issues"].as_array()?.iter();
        issues
            .any(|issue| issue["message"].as_str().is_some_and(|text| text.contains("become rarer")))
            .then_some(())
    })?;
    // Sixteen times 200 ms, by then.
    lines::poll("summaries are rare", PATIENCE, || {
        let before = agent.work("summaries")?;
        std::thread::sleep(Duration::from_secs(2));
        Ok((agent.work("summaries")? <= before + 1).then_some(()))
    })
}

/// Alerts are evaluated every few seconds by what targets hold then, although a summary is an hour away; also of targets
/// that come in between.
#[test]
fn alerts_do_not_wait_for_rare_summaries() -> Result<()> {
    let (url, messages) = receiver(0)?;
    let more = format!("[alerts]\nwebhook = \"{url}\"\n[alerts.outstanding]\nwarning = \"150000\"");
    let mut first = rounds("svc-rare-one")?;
    let targets = format!("\"pid:{}\", \"comm:svc-rare-two\"", first.pid());
    let agent = Agent::start(&config(&targets, &more).replace("200ms", "1h"))?;
    let fires = |pid: u32, state: &str| -> Result<()> {
        let message = messages.recv_timeout(PATIENCE).with_context(|| agent.log())?;
        ensure!(message["pid"] == pid && message["state"] == state, "{message}");
        Ok(())
    };
    first.act()?;
    first.act()?;
    fires(first.pid(), "firing")?;
    ensure!(agent.work("summaries")? == 1, "there was another summary");
    let mut second = rounds("svc-rare-two")?;
    agent.until("stats", "the second is traced", |stats| (stats["targets"] == 2).then_some(()))?;
    second.act()?;
    second.act()?;
    let (one, two) = (first.pid(), second.pid());
    fires(two, "firing")?;
    first.release()?;
    fires(one, "resolved")?;
    ensure!(agent.work("summaries")? < 6, "summaries are not rare");
    Ok(())
}

#[test]
fn a_file_is_written_when_the_kernel_kills_a_target_for_lack_of_memory() -> Result<()> {
    let root = Root::of(&compile::fixture("oom.c", Build::Gcc, &[])?)?;
    let bundle = Bundle::new("svc-oom", root, Some(64 << 20), false)?;
    let more = "[snapshots]\ndirectory = \"@DIR@/files\"\non_oom = true";
    let agent = Agent::start(&config(&format!("\"container:{}\"", bundle.name()), more))?;
    let mut fixture = bundle.start()?;
    fixture.wait_ready().with_context(|| fixture.errors())?;
    agent.until("targets", "the container is traced", |answer| {
        let mut targets = answer["targets"].as_array()?.iter();
        targets.any(|target| target["comm"] == "app").then_some(())
    })?;
    fixture.send("")?;
    let id = agent.until("snapshots", "a file because of that", |files| {
        let mut files = files["snapshots"].as_array()?.iter();
        Some(files.find(|file| file["reason"] == "oom")?["id"].as_str()?.to_owned())
    })?;
    let file = agent.folder().join("files").join(format!("leaktrace-{id}.pb.gz"));
    let said = leaktrace_tests::leaktrace::output(&["report", &file.to_string_lossy(), "--format", "json"])?;
    let report: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let target = &report["targets"][0];
    ensure!(target["exited"]["oom_killed"] == true, "{target}");
    ensure!(target["sites"][0]["frames"].to_string().contains("takes_all_memory"), "{target}");
    Ok(())
}

/// One that promises a body and never sends it keeps its place only as long as `http.timeout` allows.
#[test]
fn a_slow_client_gives_its_place_up_in_time() -> Result<()> {
    let text = config("", "")
        .replace("[http]\n", "[http]\nmax_concurrent = 1\ntimeout = \"5s\"\nmax_connections = 8\n");
    let agent = Agent::start(&text)?;
    let mut slow = http::send(agent.address(), "POST", "/api/v1/snapshots", &["content-length: 5"])?;
    lines::poll("there is no place left", PATIENCE, || {
        Ok((agent.get("/api/v1/health")?.status == 503).then_some(()))
    })?;
    let mut answer = [0; 64];
    let length = slow.read(&mut answer)?;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    lines::poll("its place is free", PATIENCE, || {
        Ok((agent.get("/api/v1/health")?.status == 200).then_some(()))
    })?;
    // Heads that never end: the connections are closed.
    let mut idle: Vec<_> = (0..8).map(|_| http::connect(agent.address())).collect::<Result<_>>()?;
    for stream in &mut idle {
        stream.write_all(b"GET /api/v1/health HT")?;
    }
    lines::poll("others are answered although nobody hung up", PATIENCE, || {
        Ok(agent.get("/api/v1/health").is_ok_and(|answer| answer.status == 200).then_some(()))
    })?;
    drop(idle);
    Ok(())
}
