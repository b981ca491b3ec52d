//! Real servers with a folder of their own, and what puts them under load. Nothing outside that folder is touched, and
//! they end with the value.
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{lines, proc};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// For a server to answer.
const STARTUP: Duration = Duration::from_secs(20);

/// A running server.
pub(super) struct Server {
    child: Child,
    folder: TempDir,
    port: u16,
}

/// What a load generator found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) per_second: f64,
    pub(super) p99_ms: f64,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: the child has not been waited for, so that the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let _ = self.child.wait();
    }
}

fn start(mut command: Command, folder: TempDir, port: u16) -> Result<Server> {
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    Ok(Server { child, folder, port })
}

/// Debian's redis (on jemalloc) on a Unix socket, without files.
pub(super) fn redis() -> Result<Server> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.args(["--unixsocket", "redis.sock"]);
    let server = start(command, folder, 0)?;
    let socket = server.folder.path().join("redis.sock");
    lines::poll("redis listens", STARTUP, || Ok(UnixStream::connect(&socket).ok()))?;
    Ok(server)
}

const NGINX: &str = "daemon off; worker_processes 1; error_log stderr; pid nginx.pid;\n\
    events { worker_connections 256; }\n\
    http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;\n\
    scgi_temp_path s; server { listen 127.0.0.1:PORT; location / { return 200 'hello'; } } }\n";

/// nginx with one worker that answers by itself.
pub(super) fn nginx() -> Result<Server> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let configuration = folder.path().join("nginx.conf");
    fs::write(&configuration, NGINX.replace("PORT", &port.to_string()))?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&configuration);
    let server = start(command, folder, port)?;
    lines::poll("nginx listens", STARTUP, || Ok(TcpStream::connect(("127.0.0.1", port)).ok()))?;
    lines::poll("a worker of nginx", STARTUP, || Ok(proc::children(server.child.id())?.first().copied()))?;
    Ok(server)
}

impl Server {
    /// Its processes.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let pid = self.child.id();
        Ok([vec![pid], proc::children(pid)?].concat())
    }

    /// SET of 100,000 keys by 20 clients, each of which waits for the answer.
    pub(super) fn redis_set(&self, requests: u32) -> Result<Load> {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(self.folder.path().join("redis.sock"));
        command.args(["--csv", "-t", "set", "-P", "1", "-c", "20", "-d", "64", "-r", "100000", "-n"]);
        redis_load(&said(command.arg(requests.to_string()))?)
    }

    /// Requests by 16 connections, each of which waits for the answer.
    pub(super) fn nginx_get(&self, seconds: u32) -> Result<Load> {
        let mut command = Command::new("wrk");
        command.args(["-t1", "-c16", "--latency"]).arg(format!("-d{seconds}s"));
        wrk_load(&said(command.arg(format!("http://127.0.0.1:{}/", self.port)))?)
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line of names and a line of values, all in quotes.
fn redis_load(text: &str) -> Result<Load> {
    let mut lines = text.lines().filter(|line| line.starts_with('"'));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let value = |wanted: &str| {
        let mut both = names.split(',').zip(values.split(','));
        let found = both.find(|(name, _)| name.trim_matches('"') == wanted);
        let number = found.and_then(|(_, value)| value.trim_matches('"').parse().ok());
        number.with_context(|| format!("redis-benchmark said nothing of {wanted}: {text}"))
    };
    Ok(Load { per_second: value("rps")?, p99_ms: value("p99_latency_ms")? })
}

fn wrk_load(text: &str) -> Result<Load> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("errors under load: {text}");
    }
    let after = |wanted: &str| {
        let found = text.lines().find_map(|line| line.trim().strip_prefix(wanted));
        found.map(str::trim).with_context(|| format!("wrk said nothing of {wanted} {text}"))
    };
    Ok(Load { per_second: after("Requests/sec:")?.parse()?, p99_ms: milliseconds(after("99%")?)? })
}

fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)] {
        if let Some(Ok(value)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(value * factor);
        }
    }
    bail!("{text:?} is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_benchmark_says_is_read_by_the_names_of_its_columns() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                    \"SET\",\"50000.50\",\"0.1\",\"0.375\",\"2.0\"\n";
        assert_eq!(redis_load(text).unwrap(), Load { per_second: 50000.5, p99_ms: 0.375 });
        assert!(redis_load("\"SET\",\"1\"\n").is_err());
    }

    #[test]
    fn what_wrk_says_is_read_with_its_units() {
        let text =
            "  Latency Distribution\n     50%  200.00us\n     99%    1.25ms\nRequests/sec:  40123.50\n";
        assert_eq!(wrk_load(text).unwrap(), Load { per_second: 40123.5, p99_ms: 1.25 });
        assert_eq!(milliseconds("250.00us").unwrap(), 0.25);
        assert_eq!(milliseconds("1.00s").unwrap(), 1000.0);
        assert!(wrk_load("  Socket errors: connect 1").is_err());
    }
}
