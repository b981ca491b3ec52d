//! Clients that mean no good to the agent, and files that somebody put among its own.
use anyhow::{Result, ensure};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    http, lines,
};
use std::{fs, io::Write as _, net::TcpStream, os::unix::fs::PermissionsExt as _};

const CONFIG: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

#[test]
fn clients_that_never_read_do_not_lock_others_out() -> Result<()> {
    let agent = Agent::start(CONFIG)?;
    let host = agent.address().trim_start_matches("http://").to_owned();
    let mut stalled = Vec::new();
    for _ in 0..260 {
        let mut stream = TcpStream::connect(&host)?;
        stream.set_nonblocking(true)?;
        // As much as fits: what is pipelined is answered until nothing more of the answers is taken.
        let many = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(300);
        let _ = stream.write_all(many.as_bytes());
        stalled.push(stream);
    }
    lines::poll("somebody else is answered", PATIENCE, || {
        Ok(agent.get("/api/v1/health").is_ok_and(|answer| answer.status == 200).then_some(()))
    })?;
    for _ in 0..5 {
        ensure!(agent.get("/api/v1/health")?.status == 200, "and goes on to be answered");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    drop(stalled);
    Ok(())
}

#[test]
fn a_request_for_another_name_is_not_answered() -> Result<()> {
    let agent = Agent::start(&format!("{CONFIG}allowed_hosts = [\"leaks.example.org\"]\n"))?;
    let ask = |host: &str| -> Result<u16> {
        let mut stream = http::connect(agent.address())?;
        write!(stream, "GET /api/v1/health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer)?;
        Ok(answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
    };
    for (host, status) in [
        ("localhost:9464", 200),
        ("127.0.0.1", 200),
        ("leaks.example.org", 200),
        ("evil.example.org", 421),
        ("localhost.evil.example.org", 421),
    ] {
        ensure!(ask(host)? == status, "{host}: {}", ask(host)?);
    }
    Ok(())
}

#[test]
fn health_says_how_old_the_view_is() -> Result<()> {
    let agent = Agent::start(CONFIG)?;
    let health = agent.json("health")?;
    ensure!(health["stale"] == false && health["age_seconds"].is_number(), "{health}");
    Ok(())
}

#[test]
fn what_others_put_into_the_folder_of_snapshots_is_not_served() -> Result<()> {
    let text = format!("{CONFIG}[snapshots]\ndirectory = \"@DIR@/kept\"\n");
    let agent = Agent::start(&text)?;
    let folder = agent.folder().join("kept");
    ensure!(fs::metadata(&folder)?.permissions().mode() & 0o777 == 0o700, "the folder is for nobody else");
    std::os::unix::fs::symlink("/etc/shadow", folder.join("leaktrace-20251120T120000Z-cron.pb.gz"))?;
    let answer = agent.get("/api/v1/snapshots/20251120T120000Z-cron")?;
    ensure!(answer.status == 404, "{} {}", answer.status, answer.text());
    ensure!(agent.json("snapshots")?["snapshots"].as_array().is_none_or(Vec::is_empty));
    Ok(())
}
