//! The service over real programs: every endpoint, targets that come and go, a reload, alerts and their webhook, the
//! event stream, a Unix socket, tokens and limits.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    compile::{self, Build},
    fixture::Fixture,
    http, lines,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    time::Instant,
};

const TOKEN: &str = "0123456789abcdef";

/// A program that leaks 100 blocks of 1000 bytes a round.
pub(crate) fn rounds(name: &str) -> Result<Fixture> {
    Fixture::start(&compile::fixture("rounds.c", Build::Gcc, &[])?, &[name], &[])
}

/// A configuration for tests: every call, short intervals, any port; `more` goes behind it.
pub(crate) fn config(targets: &str, more: &str) -> String {
    format!(
        "targets = [{targets}]\n[trace]\nmode = \"exact\"\ninterval = \"200ms\"\n[limits]\ncpu = 64\n{more}\n\
         [http]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n"
    )
}

/// A target and an agent that has seen one round of it.
fn traced(name: &str, more: &str) -> Result<(Fixture, Agent)> {
    let mut fixture = rounds(name)?;
    let agent = Agent::start(&config(&format!("\"pid:{}\"", fixture.pid()), more))?;
    fixture.act()?;
    agent.until_held(fixture.pid(), 100_000)?;
    Ok((fixture, agent))
}

fn post(agent: &Agent, header: &str) -> Result<http::Answer> {
    http::request(agent.address(), "POST", "/api/v1/snapshots", &[header, "content-length: 0"])
}

#[test]
fn every_endpoint_answers_with_the_numbers_of_the_ledger() -> Result<()> {
    let (mut fixture, mut agent) = traced("svc-all", "[snapshots]\ndirectory = \"@DIR@/files\"")?;
    let pid = fixture.pid();
    let target = agent.json(&format!("targets/{pid}"))?;
    ensure!(target["comm"] == "svc-all" && target["outstanding_count"] == 100, "{target}");
    let site = &target["sites"][0];
    ensure!(site["frames"][0]["function"] == "leak_round", "{site}");
    for _ in 0..6 {
        fixture.act()?;
        let before = agent.work("summaries")?;
        agent.until_work("summaries", before + 2)?;
    }
    agent.until_held(pid, 700_000)?;
    let history = agent.json(&format!("history?target={pid}"))?;
    let points = history["points"].as_array().context("no points")?;
    ensure!(
        points.len() > 6 && points.last().is_some_and(|last| last["outstanding_bytes"] == 700_000),
        "{history}"
    );
    let middle = points.get(points.len() / 2).and_then(|point| point["time"].as_str()).context("no time")?;
    let part = agent.json(&format!("history?target={pid}&from={middle}"))?;
    ensure!(part["points"].as_array().is_some_and(|part| part.len() < points.len()), "from is ignored");
    let leaks = agent.json("leaks")?;
    ensure!(leaks["leaks"][0]["pid"] == pid && leaks["leaks"][0]["site"]["id"] == site["id"], "{leaks}");
    let health = agent.json("health")?;
    ensure!(health["healthy"] == true && health["peak"]["outstanding_bytes"] == 700_000, "{health}");
    let report = agent.get("/api/v1/report")?.text();
    ensure!(report.contains("Recommendations") && report.contains("leak_round"), "{report}");
    let heap = agent.get(&format!("/debug/pprof/heap?pid={pid}"))?;
    ensure!(heap.status == 200 && heap.body.starts_with(&[0x1f, 0x8b]), "no gzip: {}", heap.status);
    let openapi = agent.json("openapi.json")?;
    ensure!(openapi["openapi"] == "3.1.0", "{openapi}");
    let taken = post(&agent, &format!("authorization: Bearer {TOKEN}"))?;
    ensure!(taken.status == 201, "{}", taken.text());
    let id = taken.json()?["id"].as_str().context("no id")?.to_owned();
    ensure!(taken.header("location") == format!("/api/v1/snapshots/{id}"), "{:?}", taken.headers);
    fixture.act()?;
    agent.until_held(pid, 800_000)?;
    let diff = agent.until(&format!("snapshots/compare?base={id}&other=now"), "a difference", |diff| {
        diff["sites"].as_array().is_some_and(|sites| !sites.is_empty()).then(|| diff.clone())
    })?;
    ensure!(diff["sites"][0]["bytes"] == 100_000 && diff["sites"][0]["id"] == site["id"], "{diff}");
    let listed = agent.json("snapshots")?;
    ensure!(listed["snapshots"][0]["id"] == id && listed["snapshots"][0]["reason"] == "request", "{listed}");
    ensure!(agent.stop()?.success(), "{}", agent.log());
    ensure!(fixture.release()?.success(), "the target did not survive");
    Ok(())
}

#[test]
fn every_error_is_a_problem_document() -> Result<()> {
    let agent = Agent::start(&config("", ""))?;
    let long = format!("/api/v1/targets/{}", "9".repeat(3000));
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("DELETE", "/api/v1/health", 405),
        ("GET", "/api/v1/targets/1", 404),
        ("GET", "/api/v1/targets/x", 400),
        ("GET", &long, 400),
        ("GET", "/api/v1/history", 400),
        ("GET", "/api/v1/history?target=1&from=yesterday", 400),
        ("GET", "/api/v1/leaks?limit=0", 400),
        ("GET", "/api/v1/leaks?nothing=1", 400),
        ("GET", "/api/v1/snapshots/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/api/v1/snapshots/compare?base=a&other=b", 404),
        ("GET", "/debug/pprof/heap?pid=1", 404),
        ("POST", "/api/v1/snapshots", 401),
    ] {
        let answer = http::request(agent.address(), method, path, &[])?;
        ensure!(answer.status == status, "{method} {path}: {} {}", answer.status, answer.text());
        ensure!(answer.header("content-type") == "application/problem+json", "{method} {path}");
        let problem = answer.json()?;
        ensure!(problem["status"] == status && problem["detail"].is_string(), "{problem}");
    }
    let large = http::request(agent.address(), "POST", "/api/v1/snapshots", &["content-length: 99999999"])?;
    ensure!(large.status == 413, "{}", large.status);
    ensure!(post(&agent, "authorization: Bearer 0123456789abcdeX")?.status == 401);
    ensure!(
        post(&agent, &format!("authorization: Bearer {TOKEN}"))?.status == 409,
        "no folder is configured"
    );
    Ok(())
}

#[test]
fn without_a_token_nothing_can_be_changed_and_a_unix_socket_serves() -> Result<()> {
    let text = "[http]\nlisten = \"unix:@DIR@/http.sock\"\n[snapshots]\ndirectory = \"@DIR@/files\"\n";
    let mut agent = Agent::start(text)?;
    ensure!(agent.address().starts_with("unix:"), "{}", agent.address());
    ensure!(agent.json("health")?["healthy"] == true);
    ensure!(post(&agent, &format!("authorization: Bearer {TOKEN}"))?.status == 403);
    ensure!(agent.stop()?.success());
    ensure!(!agent.folder().join("http.sock").exists(), "the socket's file is left");
    Ok(())
}

#[test]
fn a_name_selects_processes_that_start_later_and_they_are_kept_when_they_end() -> Result<()> {
    let agent = Agent::start(&config("\"comm:svc-later\"", ""))?;
    ensure!(agent.json("targets")?["targets"].as_array().is_some_and(Vec::is_empty));
    let mut fixture = rounds("svc-later")?;
    let pid = fixture.pid();
    agent.until("targets", "the new process is traced", |answer| {
        answer["targets"].as_array()?.iter().any(|target| target["pid"] == pid).then_some(())
    })?;
    fixture.act()?;
    agent.until_held(pid, 100_000)?;
    fixture.release()?;
    agent.until(&format!("targets/{pid}"), "it has ended", |target| {
        (target["exited"].is_object() && target["outstanding_bytes"] == 100_000).then_some(())
    })?;
    ensure!(agent.json("stats")?["targets"] == 0);
    Ok(())
}

#[test]
fn a_reload_keeps_what_was_traced_and_a_wrong_one_changes_nothing() -> Result<()> {
    let (mut fixture, mut agent) = traced("svc-reload", "")?;
    let pid = fixture.pid();
    agent.reload(&config(&format!("\"pid:{pid}\""), "[alerts]\nhysterese = 1"))?;
    agent.until_work("reloads_failed", 1)?;
    ensure!(
        agent.log().contains("did you mean \\\"hysteresis\\\"")
            || agent.log().contains("did you mean \"hysteresis\""),
        "{}",
        agent.log()
    );
    let other = rounds("svc-other")?;
    let more = "[alerts.outstanding]\nwarning = \"50K\"";
    agent.reload(&config(&format!("\"pid:{pid}\", \"pid:{}\"", other.pid()), more))?;
    agent.until_work("reloads", 1)?;
    agent.until("health", "the new threshold", |health| {
        (health["issues"][0]["kind"] == "outstanding_bytes" && health["issues"][0]["pid"] == pid)
            .then_some(())
    })?;
    agent.until("stats", "both are traced", |stats| (stats["targets"] == 2).then_some(()))?;
    fixture.act()?;
    agent.until_held(pid, 200_000)?;
    ensure!(agent.is_running()?);
    Ok(())
}

/// A server that takes one message after the other; the first `refused` are answered with 500.
pub(crate) fn receiver(refused: usize) -> Result<(String, mpsc::Receiver<serde_json::Value>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}/", listener.local_addr()?);
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        for number in 0.. {
            let (stream, _) = listener.accept()?;
            let mut reader = BufReader::new(stream);
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line)? > 2 {
                if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = text.trim().parse()?;
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let status = if number < refused { "500 No" } else { "204 Yes" };
            write!(reader.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
            if number >= refused {
                sender.send(serde_json::from_slice(&body)?)?;
            }
        }
        Ok(())
    });
    Ok((address, messages))
}

#[test]
fn an_alert_is_delivered_although_the_receiver_fails_at_first_and_its_end_too() -> Result<()> {
    let (url, messages) = receiver(2)?;
    let more = format!(
        "[alerts]\nwebhook = \"{url}\"\n[alerts.outstanding]\nwarning = \"150000\"\ncritical = \"250000\""
    );
    let (mut fixture, agent) = traced("svc-alert", &more)?;
    let expect = |state: &str, severity: &str| -> Result<()> {
        let message = messages.recv_timeout(PATIENCE).with_context(|| agent.log())?;
        ensure!(message["state"] == state && message["severity"] == severity, "{message}");
        ensure!(message["schema"] == "leaktrace.alert/1" && message["comm"] == "svc-alert", "{message}");
        Ok(())
    };
    fixture.act()?;
    expect("firing", "warning")?;
    fixture.act()?;
    expect("firing", "critical")?;
    fixture.release()?;
    expect("resolved", "critical")?;
    ensure!(agent.work("webhook_attempts_failed")? == 2 && agent.work("webhook_dropped")? == 0);
    Ok(())
}

#[test]
fn the_stream_sends_live_summaries_to_several_and_a_slow_one_holds_nobody_up() -> Result<()> {
    let (mut fixture, agent) = traced("svc-stream", "")?;
    let _slow = http::send(agent.address(), "GET", "/api/v1/stream?top=100", &[])?;
    let mut reader = BufReader::new(http::send(agent.address(), "GET", "/api/v1/stream?top=1", &[])?);
    fixture.act()?;
    let deadline = Instant::now() + PATIENCE;
    let mut line = String::new();
    loop {
        ensure!(Instant::now() < deadline, "no event says what the target holds");
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the stream has ended");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let summary: serde_json::Value = serde_json::from_str(data.trim())?;
        ensure!(summary["schema"] == "leaktrace.snapshot/1", "{summary}");
        let target = &summary["targets"][0];
        if target["outstanding_bytes"] == 200_000 {
            ensure!(target["sites"].as_array().is_some_and(|sites| sites.len() <= 1), "{target}");
            break;
        }
    }
    Ok(())
}

#[test]
fn too_many_streams_and_connections_are_refused_and_others_still_answered() -> Result<()> {
    let text = "[http]\nlisten = \"127.0.0.1:0\"\nmax_streams = 3\nmax_connections = 3\n";
    let agent = Agent::start(text)?;
    let mut open = Vec::new();
    for number in 0..3 {
        if number == 2 {
            ensure!(agent.get("/api/v1/health")?.status == 200, "there is one place left");
        }
        let mut reader = BufReader::new(http::send(agent.address(), "GET", "/api/v1/stream", &[])?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        ensure!(line.contains("200"), "{line}");
        open.push(reader);
    }
    // Streams do not give way to anybody.
    lines::poll("a connection is refused", PATIENCE, || {
        Ok(agent.get("/api/v1/health").is_err().then_some(()))
    })?;
    drop(open);
    lines::poll("connections are taken again", PATIENCE, || {
        Ok(agent.get("/api/v1/health").is_ok_and(|answer| answer.status == 200).then_some(()))
    })
}
