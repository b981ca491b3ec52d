//! The service with the tools that operators use: promtool, a real Prometheus, go tool pprof, schemathesis.
use crate::{
    service::{config, rounds},
    service_alerts::Limited,
};
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{agent::Agent, fixture::Fixture, http, lines, root};
use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

fn traced(name: &str) -> Result<(Fixture, Agent)> {
    let mut fixture = rounds(name)?;
    let more = "[alerts]\ngrowth_window = \"1s\"\n[snapshots]\ndirectory = \"@DIR@/files\"";
    let agent = Agent::start(&config(&format!("\"pid:{}\"", fixture.pid()), more))?;
    fixture.act()?;
    agent.until_held(fixture.pid(), 100_000)?;
    Ok((fixture, agent))
}

pub(crate) fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}: `cargo xtask setup --tests` installs it"))?;
    child.stdin.take().context("no standard input")?.write_all(input)?;
    Ok(child.wait_with_output()?)
}

pub(crate) fn well(what: &str, output: &Output) -> Result<()> {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    ensure!(output.status.success(), "{what}: {}: {}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn promtool_accepts_the_metrics_and_both_formats_say_the_same() -> Result<()> {
    let (fixture, agent) = traced("svc-\"metrics\"")?;
    let text = agent.get("/metrics")?;
    ensure!(text.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", text.headers);
    well("promtool check metrics", &run(Command::new("promtool").args(["check", "metrics"]), &text.body)?)?;
    let page = text.text();
    let line = format!(
        "leaktrace_target_outstanding_bytes{{pid=\"{}\",comm=\"svc-\\\"metrics\\\"\",container=\"\"}} 100000\n",
        fixture.pid()
    );
    ensure!(page.contains(&line), "{page}");
    let open = http::request(agent.address(), "GET", "/metrics", &["accept: application/openmetrics-text"])?;
    ensure!(open.header("content-type").starts_with("application/openmetrics-text"), "{:?}", open.headers);
    let names = |page: &str| -> BTreeSet<String> {
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
    };
    ensure!(open.text().ends_with("# EOF\n") && names(&open.text()) == names(&page), "{}", open.text());
    Ok(())
}

/// A Prometheus of Debian that scrapes the agent. It is killed when this is dropped.
struct Prometheus(
    Child,
    String,
    #[expect(dead_code, reason = "its folder lives as long as it")] tempfile::TempDir,
);

impl Prometheus {
    fn scraping(agent: &Agent) -> Result<Prometheus> {
        let folder = tempfile::tempdir()?;
        let target = agent.address().trim_start_matches("http://").to_owned();
        let file = folder.path().join("prometheus.yml");
        let rules = root().join("packaging/prometheus/leaktrace.rules.yml");
        fs::write(
            &file,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
                 scrape_configs: [{{job_name: leaktrace, static_configs: [{{targets: [{target:?}]}}]}}]\n"
            ),
        )?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run prometheus: `cargo xtask setup --tests` installs it")?;
        Ok(Prometheus(child, format!("http://127.0.0.1:{port}"), folder))
    }

    /// How many series an expression yields; an error of Prometheus is one here.
    fn query(&self, expression: &str) -> Result<usize> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let Ok(answer) = http::request(&self.1, "GET", &format!("/api/v1/query?query={escaped}"), &[]) else {
            return Ok(0);
        };
        // An answer without a length comes in chunks.
        let text = answer.text();
        let json =
            text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to)).unwrap_or("{}");
        if answer.status == 503 {
            return Ok(0);
        }
        let answer: serde_json::Value = serde_json::from_str(json).with_context(|| text.clone())?;
        if answer.pointer("/status").is_some_and(|status| status == "error") {
            bail!("{expression}: {answer}");
        }
        Ok(answer.pointer("/data/result").and_then(serde_json::Value::as_array).map_or(0, Vec::len))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_expression_of_the_dashboard_has_data_in_a_prometheus_that_scrapes() -> Result<()> {
    let limit = Limited::new()?;
    let mut fixture = rounds("svc-scraped")?;
    limit.take(fixture.pid())?;
    let more = "[alerts]\ngrowth_window = \"1s\"";
    let agent = Agent::start(&config(&format!("\"pid:{}\"", fixture.pid()), more))?;
    let prometheus = Prometheus::scraping(&agent)?;
    let text = fs::read_to_string(root().join("packaging/grafana/leaktrace.json"))?;
    let dashboard: serde_json::Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions: Vec<&str> = targets.filter_map(|target| target["expr"].as_str()).collect();
    ensure!(expressions.len() >= panels.len(), "panels without expressions");
    for expression in expressions {
        let filled = expression.replace("$instance", ".*").replace("$comm", ".*");
        lines::poll(&format!("{expression} has data"), Duration::from_secs(90), || {
            fixture.act()?;
            std::thread::sleep(Duration::from_millis(200));
            Ok((prometheus.query(&filled)? > 0).then_some(()))
        })
        .with_context(|| agent.get("/metrics").map(|page| page.text()).unwrap_or_default())?;
    }
    Ok(())
}

#[test]
fn go_tool_pprof_reads_the_heap_of_a_running_agent() -> Result<()> {
    let (_fixture, agent) = traced("svc-pprof")?;
    let output = Command::new("go")
        .args(["tool", "pprof", "-top"])
        .arg(format!("{}/debug/pprof/heap", agent.address()))
        .env("PPROF_TMPDIR", agent.folder())
        .env("HOME", agent.folder())
        .output()
        .context("cannot run go")?;
    well("go tool pprof", &output)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("leak_round"), "{said}");
    Ok(())
}

#[test]
fn a_snapshot_is_had_from_a_running_agent() -> Result<()> {
    let (fixture, agent) = traced("svc-asked")?;
    let pid = fixture.pid().to_string();
    let file = agent.folder().join("asked.pb.gz");
    let file = file.to_string_lossy();
    let words = ["snapshot", "--agent", agent.address(), "-p", &pid, "-o", &file];
    well("leaktrace snapshot --agent", &leaktrace_tests::leaktrace::output(&words)?)?;
    let report = leaktrace_tests::leaktrace::output(&["report", &file, "--format", "json"])?;
    let report: serde_json::Value = serde_json::from_slice(&report.stdout)?;
    ensure!(report["targets"][0]["outstanding_bytes"] == 100_000, "{report}");
    let words = ["snapshot", "--agent", agent.address(), "-p", "1", "-o", &file];
    let refused = leaktrace_tests::leaktrace::output(&words)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("does not trace process 1"), "{said}");
    Ok(())
}

#[test]
fn the_api_keeps_to_its_description_whatever_is_asked() -> Result<()> {
    let tool = root().join("target/schemathesis/bin/schemathesis");
    ensure!(tool.is_file(), "{} is not there: `cargo xtask setup --tests`", tool.display());
    let (_fixture, mut agent) = traced("svc-schema")?;
    let output = Command::new(tool)
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", agent.address()))
        .args([
            "--url",
            agent.address(),
            "--max-examples",
            "15",
            "--seed",
            "1",
            "--no-color",
            "--workers",
            "1",
        ])
        .args(["--header", "Authorization: Bearer 0123456789abcdef", "--exclude-path", "/api/v1/stream"])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "30",
            "--suppress-health-check",
            "all",
        ])
        .current_dir(agent.folder())
        .output()?;
    well("schemathesis", &output)?;
    ensure!(agent.is_running()?, "{}", agent.log());
    Ok(())
}
