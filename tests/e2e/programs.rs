//! Real programs, as Debian ships them: traced without loss, with a sane summary, and correct.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    leaktrace::{self, Leaktrace},
    lines, proc,
    report::{Report, Target},
};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

const STARTUP: Duration = Duration::from_secs(20);

/// A server that is stopped when the test ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // SAFETY: the child has not been waited for, so that the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let _ = self.0.wait();
    }
}

fn no_losses(report: &Report) -> Result<()> {
    let lost = compare::losses(report, &Rules::default());
    ensure!(lost.is_empty(), "{lost:?}; notes: {:?}", report.notes);
    Ok(())
}

/// The numbers add up and most stacks have names.
fn sane(target: &Target) -> Result<()> {
    let found = compare::differences(&Default::default(), target, &Rules::default());
    ensure!(found.is_empty(), "{found:?}");
    ensure!(target.allocated_count >= target.outstanding_count, "more outstanding than allocated");
    let named =
        target.sites.iter().filter(|site| site.frames.iter().any(|frame| frame.function.is_some())).count();
    ensure!(2 * named >= target.sites.len(), "only {named} of {} sites have a name", target.sites.len());
    Ok(())
}

/// Runs a command to its end, untraced and under `leaktrace run`: the same output and exit code; returns the report.
fn same_under_tracing(
    program: &str,
    arguments: &[&str],
    input: &str,
    environment: &[(&str, &str)],
) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let run = |mut command: Command| -> Result<Output> {
        command
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?)
    };
    let mut plain = Command::new(program);
    plain.args(arguments);
    let mut traced =
        leaktrace::command(&["run", "--format", "json", "--top", "0", "--max-blocks", "2M", "-o"])?;
    traced.arg(&file).arg("--").arg(program).args(arguments);
    let (plain, traced) = (run(plain)?, run(traced)?);
    let errors = String::from_utf8_lossy(&traced.stderr);
    ensure!(plain.stdout == traced.stdout, "another output under tracing; standard error: {errors}");
    ensure!(
        plain.status.code() == traced.status.code(),
        "{} instead of {}: {errors}",
        traced.status,
        plain.status
    );
    ensure!(!plain.stdout.is_empty(), "no output at all");
    let text = std::fs::read_to_string(&file).context("no report")?;
    Report::parse(text.lines().last().context("an empty report")?)
}

#[test]
fn sqlite3_works_and_frees_what_it_allocates() -> Result<()> {
    let script = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);\n\
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 20000) \
        INSERT INTO t SELECT x, printf('%032d', x) FROM c;\n\
        CREATE INDEX i ON t(b);\n\
        SELECT count(*), sum(a), max(b) FROM t;\n\
        SELECT b FROM t WHERE a % 1000 = 0 ORDER BY b DESC;\n";
    let report = same_under_tracing("/usr/bin/sqlite3", &[":memory:"], script, &[])?;
    no_losses(&report)?;
    let target = report.targets.first().context("no target")?;
    sane(target)?;
    ensure!(target.allocated_count > 1000, "only {} allocations", target.allocated_count);
    ensure!(
        target.outstanding_bytes < 1 << 20,
        "{} bytes outstanding after the end",
        target.outstanding_bytes
    );
    Ok(())
}

#[test]
fn python3_on_malloc_works() -> Result<()> {
    let script = "import json, collections\n\
        rows = [{'n': i, 's': str(i) * 3} for i in range(20000)]\n\
        text = json.dumps(rows)\n\
        print(len(text), sum(r['n'] for r in json.loads(text)))\n\
        print(collections.Counter(text).most_common(3))\n";
    let report = same_under_tracing("/usr/bin/python3", &["-"], script, &[("PYTHONMALLOC", "malloc")])?;
    no_losses(&report)?;
    let target = report.targets.first().context("no target")?;
    sane(target)?;
    ensure!(target.allocated_count > 100_000, "only {} allocations", target.allocated_count);
    Ok(())
}

fn redis(socket: &Path, words: &[&str]) -> Result<String> {
    let said = Command::new("redis-cli")
        .arg("-s")
        .arg(socket)
        .args(words)
        .output()
        .context("cannot run redis-cli")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

#[test]
fn redis_on_jemalloc_shows_what_it_stores_and_what_it_forgets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("redis.sock");
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"]);
    command.arg(&socket).current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(command.spawn().context("cannot run redis-server")?);
    lines::poll("redis answers", STARTUP, || Ok((redis(&socket, &["ping"])? == "PONG").then_some(())))?;
    let pid = server.0.id();
    let mut leaktrace = Leaktrace::attach(&[pid], &["--max-blocks", "2M"])?;
    let load = Command::new("redis-benchmark")
        .arg("-s")
        .arg(&socket)
        .args(["-q", "-c", "8", "-n", "20000", "-r", "1000", "-t", "set,get,lpush,lpop"])
        .output()
        .context("cannot run redis-benchmark")?;
    ensure!(load.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&load.stderr));
    redis(&socket, &["flushall", "sync"])?;
    let store = "for i = 1, 2000 do redis.call('set', 'key' .. i, string.rep('x', 5000)) end return 'stored'";
    ensure!(redis(&socket, &["eval", store, "0"])? == "stored", "the keys were not stored");
    ensure!(
        redis(&socket, &["dbsize"])? == "2000" && redis(&socket, &["strlen", "key77"])? == "5000",
        "wrong keys"
    );
    let full = leaktrace.until_settled("2,000 values of 5,000 bytes are outstanding", |report| {
        let bytes = report.target(pid).ok_or("no target")?.outstanding_bytes;
        if bytes >= 10_000_000 { Ok(()) } else { Err(format!("{bytes} bytes")) }
    })?;
    ensure!(redis(&socket, &["flushall", "sync"])? == "OK", "flushall failed");
    let empty = leaktrace.until_settled("they are not outstanding any more", |report| {
        let bytes = report.target(pid).ok_or("no target")?.outstanding_bytes;
        if bytes < 5_000_000 { Ok(()) } else { Err(format!("{bytes} bytes")) }
    })?;
    for report in [&full, &empty] {
        no_losses(report)?;
        sane(report.target(pid).context("no target")?)?;
    }
    leaktrace.interrupt()?;
    ensure!(redis(&socket, &["ping"])? == "PONG", "redis does not answer after tracing");
    ensure!(proc::damaged_text(pid)?.is_empty(), "{:?}", proc::damaged_text(pid)?);
    Ok(())
}

const NGINX: &str = "daemon off; worker_processes 1; error_log stderr; pid nginx.pid;\n\
    events { worker_connections 256; }\n\
    http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;\n\
    scgi_temp_path s; server { listen 127.0.0.1:PORT; location / { return 200 'hello'; } } }\n";

#[test]
fn nginx_under_load_works_and_keeps_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let configuration = folder.path().join("nginx.conf");
    std::fs::write(&configuration, NGINX.replace("PORT", &port.to_string()))?;
    let mut command = Command::new("/usr/sbin/nginx");
    command
        .arg("-p")
        .arg(folder.path())
        .arg("-c")
        .arg(&configuration)
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let server = Server(command.spawn().context("cannot run nginx")?);
    lines::poll("nginx listens", STARTUP, || Ok(TcpStream::connect(("127.0.0.1", port)).ok()))?;
    let worker =
        lines::poll("a worker of nginx", STARTUP, || Ok(proc::children(server.0.id())?.first().copied()))?;
    let mut leaktrace = Leaktrace::attach(&[server.0.id(), worker], &[])?;
    let url = format!("http://127.0.0.1:{port}/");
    let load = Command::new("wrk").args(["-t1", "-c16", "-d3s", &url]).output().context("cannot run wrk")?;
    let said = String::from_utf8_lossy(&load.stdout).into_owned();
    ensure!(load.status.success() && said.contains("requests in"), "wrk: {said}");
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "errors under tracing: {said}");
    let report = leaktrace.until_settled("the connections are closed", |report| {
        let bytes = report.target(worker).ok_or("no target")?.outstanding_bytes;
        if bytes < 256 << 10 { Ok(()) } else { Err(format!("{bytes} bytes outstanding")) }
    })?;
    no_losses(&report)?;
    let target = report.target(worker).context("no worker")?;
    sane(target)?;
    ensure!(target.allocated_count > 100, "only {} allocations under load", target.allocated_count);
    leaktrace.interrupt()?;
    ensure!(proc::damaged_text(worker)?.is_empty(), "{:?}", proc::damaged_text(worker)?);
    Ok(())
}
