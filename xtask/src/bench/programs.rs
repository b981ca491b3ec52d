//! Real programs as the distribution ships them, untraced and under each mode: how much they do and how long the
//! slowest wait. The cost is not bounded, so that the price of each mode is seen; one row has the default bound.
use super::{
    rounds::{Measured, Way, alternate},
    servers::{self, Load, Server},
    table::Table,
    tracer::{EXACT, GROWTH, SAMPLED, Tracer},
};
use anyhow::{Context, Result, bail};
use leaktrace_tests::lines::Lines;
use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The default of `attach`: samples, and at most 5 % of a core.
const DEFAULT: Tracer = Tracer::Leaktrace(&["--mode", "sampled", "--max-overhead", "5%"]);
/// Within which leaktrace comes to terms with that bound.
const GOVERNED: Duration = Duration::from_secs(12);

const UNTRACED: &str = "untraced";
const FLOOR: &str = "floor: empty probes";
const SAMPLED_NAME: &str = "leaktrace, sampled";

const TRACERS: [(&str, Tracer); 6] = [
    (UNTRACED, Tracer::None),
    ("leaktrace, growth", GROWTH),
    (FLOOR, Tracer::Floor),
    ("leaktrace, sampled within 5 % of a core (the default)", DEFAULT),
    (SAMPLED_NAME, SAMPLED),
    ("leaktrace, exact", EXACT),
];

const REDIS_REQUESTS: u32 = 200_000;
const NGINX_SECONDS: u32 = 4;

/// Two tables for each server, one for sqlite; how fast each is comes first.
pub(super) fn measure(rounds: u32) -> String {
    let redis = |tracer| {
        under(servers::redis, tracer, |server, share| {
            server.redis_set((f64::from(REDIS_REQUESTS) * share) as u32)
        })
    };
    let nginx = |tracer| {
        under(servers::nginx, tracer, |server, share| {
            server.nginx_get((f64::from(NGINX_SECONDS) * share).ceil() as u32)
        })
    };
    [
        section(rounds, "redis SET, one at a time by 20 clients", SERVED, Some("at least 0.85"), &redis),
        section(rounds, "nginx, GET by 16 connections", SERVED, None, &nginx),
        section(rounds, "sqlite3, 100,000 rows inserted, indexed and read", TAKEN, None, &sqlite),
    ]
    .concat()
}

/// What is measured of a server, and of a program that ends.
const SERVED: &[(&str, &str)] = &[("requests a second", "1/s"), ("99th percentile", "ms")];
const TAKEN: &[(&str, &str)] = &[("time", "s")];

/// Measures under each tracer. `wanted` is of the first quantity, sampled against untraced.
fn section(
    rounds: u32,
    title: &str,
    quantities: &[(&str, &'static str)],
    wanted: Option<&str>,
    measure: &dyn Fn(Tracer) -> Result<Measured>,
) -> String {
    let ways = TRACERS.map(|(name, tracer)| Way::new(name, move || measure(tracer)));
    let titles: Vec<_> =
        quantities.iter().map(|(quantity, unit)| (format!("{title}: {quantity}"), *unit)).collect();
    let tables = alternate(rounds, &titles, &ways);
    let ratios = tables.first().map(|first| {
        let lines = [
            first.ratio(FLOOR, UNTRACED, None),
            first.ratio(SAMPLED_NAME, UNTRACED, wanted),
            first.ratio(SAMPLED_NAME, FLOOR, None),
        ];
        lines.into_iter().flatten().collect::<String>()
    });
    let tables: String = tables.iter().map(Table::to_string).collect();
    format!("{tables}{}\n", ratios.unwrap_or_default())
}

/// A new server under the tracer, warmed up by a quarter of the load.
fn under(
    start: impl Fn() -> Result<Server>,
    tracer: Tracer,
    load: impl Fn(&Server, f64) -> Result<Load>,
) -> Result<Measured> {
    let server = start()?;
    let tracing = tracer.attach(&server.pids()?)?;
    warm_up(tracer, || load(&server, 0.25))?;
    let found = load(&server, 1.0)?;
    Ok(Measured { values: vec![found.per_second, found.p99_ms], note: tracing.end()? })
}

/// Does something once, or for as long as it takes leaktrace to find out what it costs and to act on it.
fn warm_up<T>(tracer: Tracer, mut act: impl FnMut() -> Result<T>) -> Result<()> {
    let began = Instant::now();
    let time = if tracer == DEFAULT { GOVERNED } else { Duration::ZERO };
    act()?;
    while began.elapsed() < time {
        act()?;
    }
    Ok(())
}

/// What sqlite3 does.
const SCRIPT: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);\n\
    WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 100000) \
    INSERT INTO t SELECT x, printf('%032d', x * 7919 % 100003) FROM c;\n\
    CREATE INDEX i ON t(b);\n\
    SELECT count(*), sum(a), max(b), count(DISTINCT substr(b, 28)) FROM t;\n\
    SELECT sum(length(g)) FROM (SELECT group_concat(b) AS g FROM t GROUP BY a % 1000);\n\
    DROP TABLE t;\n";

/// The shell of sqlite, which says when it is done.
struct Sqlite {
    child: Child,
    lines: Lines,
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sqlite {
    /// Runs a script; returns how long it took.
    fn run(&mut self, script: &str) -> Result<f64> {
        let stdin = self.child.stdin.as_mut().context("no standard input")?;
        let before = Instant::now();
        stdin.write_all(script.as_bytes())?;
        stdin.write_all(b".print done\n")?;
        stdin.flush()?;
        let deadline = before + Duration::from_secs(120);
        while let Some(line) = self.lines.next_before(deadline)? {
            if line == "done" {
                return Ok(before.elapsed().as_secs_f64());
            }
        }
        bail!("sqlite3 ended")
    }
}

fn sqlite(tracer: Tracer) -> Result<Measured> {
    let mut command = Command::new("sqlite3");
    command
        .args(["-batch", "-bail", ":memory:"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("cannot run sqlite3")?;
    let lines = Lines::new("sqlite3", child.stdout.take().context("no standard output")?);
    let mut sqlite = Sqlite { child, lines };
    sqlite.run("")?;
    let tracing = tracer.attach(&[sqlite.child.id()])?;
    warm_up(tracer, || sqlite.run(SCRIPT))?;
    let time = sqlite.run(SCRIPT)?;
    Ok(Measured::one(time, tracing.end()?))
}
