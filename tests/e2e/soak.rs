//! The soak: what months bring, in a minute and a half. Processes start and die twenty times a second, containers come
//! and go, the disk fills and is freed, everybody asks at once, the configuration changes and changes back; then the
//! agent must be as it was: alive, no larger, nothing lost, nothing left open. `LEAKTRACE_SOAK` is how many seconds it
//! takes: 1800 for the whole of it. And leaktrace traces itself, which must find no leak.
#![expect(clippy::print_stdout, reason = "a long test says what it has measured")]
use crate::{
    service::{self, rounds},
    service_disk::Small,
};
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    compile::{self, Build},
    container::{Bundle, Group, Root},
    fixture::Fixture,
    http,
    leaktrace::Leaktrace,
    lines, proc,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const TOKEN: &str = "0123456789abcdef";
/// Between two summaries.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two processes that start.
const PACE: Duration = Duration::from_millis(50);
/// Processes of ours at once, so that a slow machine is not buried.
const MOST_ALIVE: usize = 60;
/// Bytes of the disk that fills.
const DISK_BYTES: u32 = 4 << 20;
/// What the agent may grow by between the second and the last quarter: a share, and bytes besides.
const GROWTH: (f64, u64) = (0.15, 8 << 20);

fn duration() -> Result<Duration> {
    match std::env::var("LEAKTRACE_SOAK") {
        Ok(text) => {
            let seconds = text.parse().with_context(|| format!("LEAKTRACE_SOAK is {text:?}"))?;
            Ok(Duration::from_secs(seconds))
        }
        Err(_) => Ok(Duration::from_secs(90)),
    }
}

/// A generator with a fixed start, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What all workers share. A worker that fails says why, and all stop.
struct Stage<'a> {
    agent: &'a Agent,
    over: AtomicBool,
    failures: Mutex<Vec<String>>,
    /// Processes of ours that have ended.
    ended: Mutex<Vec<u32>>,
    /// Ends that the agent has shown: process and start.
    shown: Mutex<BTreeSet<(u32, String)>>,
    /// Answers by path and status.
    answers: Mutex<BTreeMap<(String, u16), u64>>,
    containers: AtomicU64,
}

impl Stage<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end.
    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }

    fn work(&self, what: &str, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = work() {
            self.over.store(true, Ordering::Relaxed);
            if let Ok(mut failures) = self.failures.lock() {
                failures.push(format!("{what}: {error:#}"));
            }
        }
    }

    fn show(&self, targets: &serde_json::Value) {
        let Ok(mut shown) = self.shown.lock() else { return };
        for target in targets.as_array().into_iter().flatten().filter(|target| target["exited"].is_object()) {
            let pid = target["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
            shown.insert((pid, target["start_time"].to_string()));
        }
    }
}

/// Twenty processes a second that the agent is told to trace by their name.
fn processes(stage: &Stage<'_>, program: &Path) -> Result<()> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut alive: VecDeque<Child> = VecDeque::new();
    let mut next = Instant::now();
    while !stage.is_over() || !alive.is_empty() {
        let mut ended = Vec::new();
        let mut still = VecDeque::new();
        for mut child in std::mem::take(&mut alive) {
            if child.try_wait()?.is_some() {
                ended.push(child.id());
            } else {
                still.push_back(child);
            }
        }
        alive = still;
        stage.ended.lock().map_err(|_| anyhow::anyhow!("a worker failed"))?.extend(ended);
        if !stage.is_over() && alive.len() < MOST_ALIVE && Instant::now() >= next {
            let milliseconds = dice.below(700).to_string();
            let way = match dice.below(10) {
                0 => "kill",
                1 => "fork",
                2 => "exec",
                _ => "exit",
            };
            let mut command = Command::new(program);
            command.args([&milliseconds, way]).stdin(Stdio::null()).stdout(Stdio::null());
            alive.push_back(command.spawn().context("no new process")?);
            next = (next + PACE).max(Instant::now() - PACE * 20);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What runs comes up, acts and goes, again and again.
fn containers(stage: &Stage<'_>, mut start: impl FnMut() -> Result<(Fixture, Option<Group>)>) -> Result<()> {
    while !stage.is_over() {
        let (mut fixture, group) = start()?;
        fixture.wait_ready().with_context(|| fixture.errors())?;
        fixture.act()?;
        stage.rest(Duration::from_millis(700));
        fixture.release()?;
        drop(group);
        stage.containers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The disk fills until a file cannot be written, and is freed until one can.
fn disk(stage: &Stage<'_>, small: &Small) -> Result<()> {
    let filler = small.0.join("filler");
    let mut times = 0;
    while !stage.is_over() {
        let failed = stage.agent.work("snapshots_failed")?;
        // There is less room than this: what fits is written.
        let _ = fs::write(&filler, vec![1; DISK_BYTES as usize]);
        stage.agent.until_work("snapshots_failed", failed + 1)?;
        let written = stage.agent.work("snapshots_written")?;
        fs::remove_file(&filler)?;
        stage.agent.until_work("snapshots_written", written + 1)?;
        times += 1;
        stage.rest(Duration::from_secs(3));
    }
    ensure!(times > 1, "the disk was full {times} times only");
    Ok(())
}

/// Everything that can be asked, as fast as it is answered.
fn hammer(stage: &Stage<'_>, pid: u32, seed: u64) -> Result<()> {
    let fixed = [
        "/api/v1/health",
        "/api/v1/stats",
        "/api/v1/targets",
        "/api/v1/leaks?limit=10",
        "/api/v1/leaks?confidence=high",
        "/api/v1/snapshots",
        "/api/v1/snapshots/compare?base=now&other=now",
        "/api/v1/snapshots/nothing",
        "/api/v1/report",
        "/api/v1/openapi.json",
        "/api/v1/nothing",
        "/debug/pprof/heap",
        "/metrics",
    ];
    let mut paths: Vec<String> = fixed.map(str::to_owned).to_vec();
    paths.push(format!("/api/v1/targets/{pid}"));
    paths.push(format!("/api/v1/history?target={pid}"));
    paths.push(format!("/debug/pprof/heap?pid={pid}"));
    let authorization = format!("authorization: Bearer {TOKEN}");
    let mut dice = Dice(seed);
    while !stage.is_over() {
        let number = usize::try_from(dice.below(paths.len() as u64 + 1))?;
        let address = stage.agent.address();
        let (path, answer) = match paths.get(number) {
            Some(path) => (path.as_str(), http::request(address, "GET", path, &[])),
            None => {
                let headers = [authorization.as_str(), "content-length: 0"];
                ("POST", http::request(address, "POST", "/api/v1/snapshots", &headers))
            }
        };
        let answer = answer.with_context(|| path.to_owned())?;
        // 503 is an answer: a full disk, or too much at once.
        ensure!(answer.status < 500 || answer.status == 503, "{path}: {} {}", answer.status, answer.text());
        if path == "/api/v1/snapshots" && answer.status == 200 {
            // One of those that there are, which may be removed before it is asked for.
            let listed = answer.json()?;
            let id = listed["snapshots"][0]["id"].as_str().unwrap_or("none").to_owned();
            let file = http::request(address, "GET", &format!("/api/v1/snapshots/{id}"), &[])?;
            ensure!(matches!(file.status, 200 | 404 | 503), "{id}: {}", file.status);
        }
        let mut answers = stage.answers.lock().map_err(|_| anyhow::anyhow!("a worker failed"))?;
        *answers.entry((path.to_owned(), answer.status)).or_default() += 1;
        drop(answers);
        stage.rest(Duration::from_millis(20));
    }
    Ok(())
}

/// Streams that are opened, read for a moment or not at all, and dropped.
fn streams(stage: &Stage<'_>) -> Result<()> {
    let mut dice = Dice(77);
    while !stage.is_over() {
        let mut reader =
            BufReader::new(http::send(stage.agent.address(), "GET", "/api/v1/stream?top=5", &[])?);
        let mut line = String::new();
        for _ in 0..dice.below(30) {
            reader.read_line(&mut line)?;
        }
        drop(reader);
        stage.rest(Duration::from_millis(dice.below(300)));
    }
    Ok(())
}

/// One stream that stays open, and the list of targets: together they show every end.
fn listen(stage: &Stage<'_>) -> Result<()> {
    let mut reader = BufReader::new(http::send(stage.agent.address(), "GET", "/api/v1/stream?top=0", &[])?);
    let (mut line, mut last) = (String::new(), 0);
    while !stage.is_over() {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the stream has ended");
        if let Some(id) = line.strip_prefix("id: ") {
            let id: u64 = id.trim().parse()?;
            ensure!(id > last, "summary {id} comes after {last}");
            last = id;
        }
        if let Some(data) = line.strip_prefix("data: ") {
            let summary: serde_json::Value = serde_json::from_str(data.trim())?;
            stage.show(&summary["targets"]);
        }
    }
    Ok(())
}

fn poll_targets(stage: &Stage<'_>) -> Result<()> {
    while !stage.is_over() {
        stage.show(&stage.agent.json("targets")?["targets"]);
        stage.rest(Duration::from_millis(500));
    }
    Ok(())
}

/// Another configuration and the first one again, and now and then one that is wrong.
fn reloads(stage: &Stage<'_>, configs: &[String; 2], period: Duration) -> Result<()> {
    while !stage.is_over() {
        stage.rest(period);
        for (text, count) in
            [(&configs[1], "reloads"), (&"wrong = 1".to_owned(), "reloads_failed"), (&configs[0], "reloads")]
        {
            let before = stage.agent.work(count)?;
            stage.agent.reload(text)?;
            stage.agent.until_work(count, before + 1)?;
            stage.rest(Duration::from_secs(2));
        }
    }
    Ok(())
}

/// The agent's memory and its count of summaries, twice a second.
fn measure(stage: &Stage<'_>, until: Instant) -> Result<Vec<(Instant, u64, u64)>> {
    let mut measured = Vec::new();
    while !stage.is_over() && Instant::now() < until {
        let rss_bytes = proc::status_bytes(stage.agent.pid(), "VmRSS")?;
        measured.push((Instant::now(), rss_bytes, stage.agent.work("summaries")?));
        stage.rest(Duration::from_millis(500));
    }
    Ok(measured)
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// It is no larger at the end than when it was warm.
fn has_not_grown(measured: &[(Instant, u64, u64)]) -> Result<()> {
    let quarters: Vec<u64> = measured
        .chunks(measured.len().div_ceil(4).max(1))
        .filter_map(|quarter| median(quarter.iter().map(|(_, rss_bytes, _)| *rss_bytes)))
        .collect();
    let [_, warm, _, last] = quarters.as_slice() else { bail!("too short to tell: {quarters:?}") };
    println!("resident bytes by quarter: {quarters:?}");
    let most = warm + (*warm as f64 * GROWTH.0) as u64 + GROWTH.1;
    ensure!(*last <= most, "the agent has grown: {quarters:?} bytes by quarter");
    Ok(())
}

/// Summaries come at their interval, give or take what a busy machine takes.
fn summaries_came(measured: &[(Instant, u64, u64)]) -> Result<()> {
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else {
        bail!("nothing was measured")
    };
    let expected = (last.0 - first.0).as_secs_f64() / INTERVAL.as_secs_f64();
    let came = last.2 - first.2;
    println!("{came} summaries, {expected:.0} intervals");
    ensure!(came as f64 > expected * 0.5, "{came} summaries in {expected:.0} intervals");
    let mut since = first;
    for at in measured {
        if at.2 > since.2 {
            since = at;
        }
        let silence = at.0 - since.0;
        ensure!(silence < Duration::from_secs(30), "no summary for {silence:?}");
    }
    Ok(())
}

/// Every process that ended was shown, or is counted among those that were not traced.
fn nothing_is_lost(stage: &Stage<'_>) -> Result<()> {
    let mut shown: HashMap<u32, u64> = HashMap::new();
    for (pid, _) in stage.shown.lock().map_err(|_| anyhow::anyhow!("a worker failed"))?.iter() {
        *shown.entry(*pid).or_default() += 1;
    }
    let ended = stage.ended.lock().map_err(|_| anyhow::anyhow!("a worker failed"))?;
    let mut not_shown = Vec::new();
    for pid in ended.iter() {
        match shown.get_mut(pid) {
            Some(times @ 1..) => *times -= 1,
            _ => not_shown.push(*pid),
        }
    }
    let agent = stage.agent;
    let counted = agent.work("targets_missed")? + agent.work("targets_refused")?;
    println!(
        "{} processes ended, {} were not shown, {counted} counted as missed or refused; {} ends in all; {} containers",
        ended.len(),
        not_shown.len(),
        agent.work("targets_ended")?,
        stage.containers.load(Ordering::Relaxed)
    );
    ensure!(
        not_shown.len() as u64 <= counted,
        "{counted} are counted as not traced, but {} were not shown: {not_shown:?}",
        not_shown.len()
    );
    ensure!(not_shown.len() * 2 < ended.len(), "most processes were not traced");
    Ok(())
}

/// Bigger tables of live blocks that the agent keeps ready once it has traced many processes, beside those of the start: up
/// to eight of one size and three of the other instead of one and one.
const READY_TABLES: usize = 9;

/// Open files by kind, once they stay the same.
fn settled_files(agent: &Agent) -> Result<BTreeMap<String, usize>> {
    let mut last = BTreeMap::new();
    lines::poll("open files stay the same", PATIENCE, || {
        let now = proc::open_files(agent.pid())?;
        let is_same = now == last;
        last = now.clone();
        thread::sleep(Duration::from_secs(2));
        Ok(is_same.then_some(now))
    })
}

fn all_gone(agent: &Agent) -> Result<()> {
    agent.until("stats", "what came has gone", |stats| (stats["targets"] == 1).then_some(()))
}

#[test]
fn the_agent_bears_what_months_bring() -> Result<()> {
    let duration = duration()?;
    let folder = tempfile::tempdir()?;
    let small = Small::mount(folder.path().join("small"), DISK_BYTES)?;
    let program = compile::fixture("soak.c", Build::Gcc, &[])?;
    let mut fixture = rounds("soak-rounds")?;
    let pid = fixture.pid();
    let app = compile::fixture("calls.c", Build::Gcc, &[])?;
    let (root, group) = (Root::of(&app)?, Group::new("soak")?);
    let bundle = Bundle::new("soak", Root::of(&app)?, None, false)?;
    let config = |more: &str, top: u32| {
        format!(
            "targets = [\"comm:soak\", \"pid:{pid}\", \"cgroup:{}\", \"container:{}\"]\n{more}\n\
             [trace]\nmode = \"exact\"\ninterval = \"{}ms\"\ntop = {top}\n[limits]\ncpu = 64\n\
             [snapshots]\ndirectory = {:?}\nevery = \"2s\"\non_exit = true\nmin_gap = \"1s\"\n\
             [snapshots.keep]\ncount = 5\nbytes = \"1M\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n",
            group.path().display(),
            bundle.name(),
            INTERVAL.as_millis(),
            small.0
        )
    };
    let configs =
        [config("", 100), config("exclude = [\"comm:nobody\"]\n[alerts]\ngrowth_window = \"1m\"", 20)];
    let mut agent = Agent::start(&configs[0])?;
    let stage = Stage {
        agent: &agent,
        over: AtomicBool::new(false),
        failures: Mutex::default(),
        ended: Mutex::default(),
        shown: Mutex::default(),
        answers: Mutex::default(),
        containers: AtomicU64::new(0),
    };
    let chroot = || {
        let group = group.beneath("soak-one")?;
        Ok((group.chroot(&root, false)?, Some(group)))
    };
    let runc = || Ok((bundle.start()?, None));
    // One of each before anything is counted: libraries and tables are looked at for the first time.
    for (mut one, _group) in [chroot()?, runc()?] {
        one.wait_ready().with_context(|| one.errors())?;
        agent.until("targets", "the container is traced", |answer| {
            let mut targets = answer["targets"].as_array()?.iter();
            targets.any(|target| target["comm"] == "app" && target["exited"].is_null()).then_some(())
        })?;
        one.act()?;
        one.release()?;
    }
    ensure!(
        Command::new(&program).args(["2000", "fork"]).status()?.success(),
        "the process did not end well"
    );
    agent.until_work("targets_ended", 3)?;
    all_gone(&agent)?;
    let files_before = settled_files(&agent)?;
    let until = Instant::now() + duration;
    let mut measured = Vec::new();
    let mut acted = 0;
    thread::scope(|scope| {
        scope.spawn(|| stage.work("processes", || processes(&stage, &program)));
        scope.spawn(|| stage.work("chroots", || containers(&stage, chroot)));
        scope.spawn(|| stage.work("bundles", || containers(&stage, runc)));
        scope.spawn(|| stage.work("disk", || disk(&stage, &small)));
        for seed in [1, 2, 3] {
            let stage = &stage;
            scope.spawn(move || stage.work("requests", || hammer(stage, pid, seed)));
        }
        scope.spawn(|| stage.work("streams", || streams(&stage)));
        scope.spawn(|| stage.work("listening", || listen(&stage)));
        scope.spawn(|| stage.work("targets", || poll_targets(&stage)));
        scope.spawn(|| stage.work("reloads", || reloads(&stage, &configs, duration / 8)));
        scope.spawn(|| {
            stage.work("rounds", || {
                while !stage.is_over() {
                    fixture.act()?;
                    acted += 1;
                    stage.rest(Duration::from_secs(1));
                }
                Ok(())
            });
        });
        stage.work("measuring", || {
            measured = measure(&stage, until)?;
            Ok(())
        });
        stage.over.store(true, Ordering::Relaxed);
    });
    let failures = stage.failures.lock().map(|failures| failures.join("\n")).unwrap_or_default();
    ensure!(failures.is_empty(), "{failures}\n{}", agent.log());
    all_gone(&agent)?;
    stage.show(&agent.json("targets")?["targets"]);
    agent.until_held(pid, acted * 100_000)?;
    agent.until("health", "all is well again", |health| (health["healthy"] == true).then_some(()))?;
    nothing_is_lost(&stage)?;
    summaries_came(&measured)?;
    for (what, least) in
        [("snapshots_failed", 2), ("snapshots_removed", 1), ("reloads", 4), ("reloads_failed", 2)]
    {
        let count = agent.work(what)?;
        ensure!(count >= least, "{count} {what}");
    }
    let answers = stage.answers.lock().map(|answers| answers.clone()).unwrap_or_default();
    println!("answers: {answers:?}");
    let served: BTreeSet<&str> =
        answers.keys().filter(|(_, status)| *status < 300).map(|(path, _)| path.as_str()).collect();
    ensure!(served.len() >= 15, "only these were ever answered well: {served:?}");
    let mut files = BTreeMap::new();
    let compared = lines::poll("open files are as before", PATIENCE, || {
        files = proc::open_files(agent.pid())?;
        let allowed = |kind: &str| {
            files_before.get(kind).copied().unwrap_or(0) + if kind == "bpf-map" { READY_TABLES } else { 0 }
        };
        let has_more = files.iter().any(|(kind, count)| *count > allowed(kind));
        Ok((!has_more).then_some(()))
    });
    compared.with_context(|| format!("{files:?} instead of {files_before:?}"))?;
    has_not_grown(&measured)?;
    drop(stage);
    ensure!(agent.stop()?.success(), "{}", agent.log());
    let log = agent.log();
    ensure!(!log.contains("panicked"), "{log}");
    fixture.release()?;
    Ok(())
}

/// Summaries of the agent before it is traced, and of the one that traces it.
const WARM: u64 = 40;
const WATCHED: usize = 20;

#[test]
fn leaktrace_traces_itself_and_finds_no_leak() -> Result<()> {
    let mut fixture = rounds("soak-self")?;
    let pid = fixture.pid();
    let mut agent = Agent::start(&service::config(&format!("\"pid:{pid}\""), ""))?;
    let over = AtomicBool::new(false);
    let (acted, asked) = (AtomicU64::new(0), AtomicU64::new(0));
    let (last, counted) = thread::scope(|scope| {
        let work = scope.spawn(|| -> Result<()> {
            let paths = ["health", "targets", "leaks", "report", "stats", "openapi.json"];
            while !over.load(Ordering::Relaxed) {
                fixture.act()?;
                acted.fetch_add(1, Ordering::Relaxed);
                for path in paths.map(|path| format!("/api/v1/{path}")) {
                    ensure!(agent.get(&path)?.status == 200, "{path}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                for path in ["/metrics", "/debug/pprof/heap"] {
                    ensure!(agent.get(path)?.status == 200, "{path}");
                }
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        let watch = || -> Result<_> {
            agent.until_work("summaries", WARM)?;
            let mut leaktrace = Leaktrace::attach(&[agent.pid()], &["--interval", "1s"])?;
            let mut counted = 0;
            while counted < WATCHED {
                let report = leaktrace.next_report()?.context("leaktrace has ended")?;
                counted += usize::from(report.target(agent.pid()).is_some());
            }
            Ok((leaktrace.interrupt()?, counted))
        };
        let watched = watch();
        over.store(true, Ordering::Relaxed);
        work.join().map_err(|_| anyhow::anyhow!("the worker failed"))??;
        watched
    })?;
    agent.until_held(pid, acted.load(Ordering::Relaxed) * 100_000)?;
    let target = last.target(agent.pid()).context("the agent is no target")?;
    println!(
        "{counted} summaries, {} requests, {} allocations, {} bytes outstanding at {} sites, losses {:?}",
        asked.load(Ordering::Relaxed),
        target.allocated_count,
        target.outstanding_bytes,
        target.sites.len(),
        target.losses
    );
    ensure!(target.allocated_count > 10_000, "the agent allocated {} times only", target.allocated_count);
    let own = |site: &&leaktrace_tests::report::Site| {
        let mut functions = site.frames.iter().filter_map(|frame| frame.function.as_deref());
        functions.any(|function| function.contains("leaktrace::agent::"))
    };
    let named = target.sites.iter().filter(own).count();
    ensure!(
        named * 2 > target.sites.len(),
        "{named} of {} sites name the agent's functions",
        target.sites.len()
    );
    let sure: Vec<String> = target
        .sites
        .iter()
        .filter(|site| site.finding.as_ref().is_some_and(|finding| finding["confidence"] == "high"))
        .map(|site| format!("{} bytes, {:?}: {}", site.outstanding_bytes, site.finding, site.stack()))
        .collect();
    ensure!(sure.is_empty(), "the agent leaks: {}", sure.join("\n"));
    ensure!(agent.stop()?.success(), "{}", agent.log());
    ensure!(!agent.log().contains("panicked"), "{}", agent.log());
    ensure!(fixture.release()?.success());
    Ok(())
}
