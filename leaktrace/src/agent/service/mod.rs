//! `leaktrace agent`: the visible loop of the service. Summaries, histories, alerts and the schedule of snapshot
//! files are made here, one after the other, in the thread that owns the tracer; answering requests, writing files
//! and posting alerts have threads of their own and see immutable views only.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

pub mod alerts;
pub mod config;
pub mod notify;
pub mod own;
pub mod schedule;
pub mod state;
pub mod store;
pub mod values;
pub mod webhook;
pub mod writer;

use alerts::{Change, Evaluator, Observation};
use config::{Config, ModeName};
use notify::Notifier;
use own::Meter;
use schedule::{Schedule, Seen};
use state::{Command, MAX_COMMANDS, Shared};
use store::{Reason, Store};
use webhook::Webhook;
use writer::{Reply, Writer};

use super::{
    clock,
    growth::{
        meant::Meant,
        watch::{Watch, Watched},
    },
    http,
    options::TraceOptions,
    orders::Orders,
    session::Rings,
    tracer::{Tracer, held::Held},
};
use crate::{
    attach::object::Sizes,
    discover::memory_limit,
    export::api,
    model::{
        series::{SeriesPoint, TargetKey},
        service::{AlertKind, MemoryLimit, OwnFault, OwnUse, Severity, View, Work, is_live, key},
        sites::{Order, Selection},
        snapshot::{Snapshot, TargetView, WallNs},
    },
};

/// Ended processes that answers still show.
const MAX_ENDED_SHOWN: usize = 100;
/// Ended processes that wait for the next file.
const MAX_ENDED_UNWRITTEN: usize = 1000;
/// Alerts are evaluated at least this often, however rare summaries are.
const EVALUATE: Duration = Duration::from_secs(5);
/// Time between looks at what tracing costs.
const CHECK: Duration = Duration::from_secs(1);
/// Summaries become rarer by this factor at the most to spare the CPU.
const MAX_STRETCH: u32 = 16;

/// Changes the level of the log.
pub type SetLevel = Box<dyn Fn(&str)>;

/// What can happen.
enum Event {
    Ring,
    Tick,
    Check,
    Look,
    Evaluate,
    Alive,
    Command(Option<Command>),
    Signal(i32),
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
            _ = self.user.recv() => libc::SIGUSR1,
        }
    }
}

/// The service.
struct Service {
    tracer: Tracer,
    config: Arc<Config>,
    /// Where the configuration is read again from.
    path: Option<PathBuf>,
    set_level: SetLevel,
    shared: Arc<Shared>,
    publish: watch::Sender<Arc<View>>,
    writer: Writer,
    webhook: Webhook,
    notifier: Notifier,
    /// Watches for growth, where that was asked for.
    watch: Option<Watch>,
    /// Processes that were not traced, when they were last counted.
    refused: u64,
    /// Processes that ended before they could be traced, when they were last counted.
    missed: u64,
    schedule: Schedule,
    evaluator: Evaluator,
    meter: Meter,
    own: OwnUse,
    faults: Vec<OwnFault>,
    snapshot: Arc<Snapshot>,
    /// What targets have come to hold since the last summary, if it is long ago.
    held: BTreeMap<u32, Held>,
    seen: BTreeMap<TargetKey, Seen>,
    limits: BTreeMap<TargetKey, MemoryLimit>,
    ended: VecDeque<Arc<TargetView>>,
    unwritten: Vec<Arc<TargetView>>,
    number: u64,
    started: i64,
    peak: (u64, i64),
    /// Factor by which summaries are rarer than asked for.
    stretch: u32,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When it cannot start: tracing does not work here, the address is taken, a folder cannot be made.
pub async fn run(config: Config, path: Option<&Path>, set_level: SetLevel) -> Result<()> {
    let config = Arc::new(config);
    let mut signals = Signals::new()?;
    let store = open_store(&config)?;
    let listener = http::listen(&config.http)?;
    let mut tracer = Tracer::new(trace_options(&config)?, selection(&config, false))?;
    tracer.follow_orders(orders(&config))?;
    let rings = Rings::of(&tracer)?;
    let started = clock::wall_ns();
    let (publish, view) = watch::channel(Arc::new(View { started, ..View::default() }));
    let (commands, mut asked) = mpsc::channel(MAX_COMMANDS);
    let shared = Arc::new(Shared::new(Arc::clone(&config), view, commands));
    shared.set_store(store);
    let webhook = Webhook::start(&config.alerts, Arc::clone(&shared.counts))
        .context("starting the webhook's thread")?;
    let writer = Writer::start(Arc::clone(&shared)).context("starting the writer's thread")?;
    let mut service = Service {
        tracer,
        path: path.map(Path::to_path_buf),
        set_level,
        publish,
        writer,
        webhook,
        notifier: Notifier::new(),
        watch: watch(&config),
        refused: 0,
        missed: 0,
        schedule: Schedule::default(),
        evaluator: Evaluator::default(),
        meter: Meter::new(),
        own: OwnUse::default(),
        faults: Vec::new(),
        snapshot: Arc::default(),
        held: BTreeMap::new(),
        seen: BTreeMap::new(),
        limits: BTreeMap::new(),
        ended: VecDeque::new(),
        unwritten: Vec::new(),
        number: 0,
        started,
        peak: (0, started),
        stretch: 1,
        shared: Arc::clone(&shared),
        config: Arc::clone(&config),
    };
    service.schedule.set(config.snapshots.clone(), started);
    service.tick();
    let server = listener.map(|listener| listener.start(Arc::clone(&shared))).transpose()?;
    service.notifier.ready();
    service.run(&rings, &mut signals, &mut asked).await;
    service.notifier.stopping();
    service.finish();
    drop(server);
    Ok(())
}

impl Service {
    async fn run(&mut self, rings: &Rings, signals: &mut Signals, asked: &mut mpsc::Receiver<Command>) {
        let mut next_tick = Instant::now() + self.period();
        let mut next_evaluation = Instant::now() + EVALUATE;
        let alive = self.notifier.period().unwrap_or(Duration::from_secs(3600));
        let mut next_alive = Instant::now();
        let mut next_check = Instant::now() + CHECK;
        let mut next_look = Instant::now();
        loop {
            let event = tokio::select! {
                biased;
                number = signals.next() => Event::Signal(number),
                () = sleep_until(next_alive) => Event::Alive,
                () = sleep_until(next_check) => Event::Check,
                () = sleep_until(next_look) => Event::Look,
                () = sleep_until(next_tick) => Event::Tick,
                () = sleep_until(next_evaluation) => Event::Evaluate,
                command = asked.recv() => Event::Command(command),
                () = rings.readable() => Event::Ring,
            };
            match event {
                Event::Ring => {
                    self.tracer.drain();
                    // What is known of a target that was killed for lack of memory may be all that is left.
                    if self.tracer.take_urgent() {
                        next_tick = Instant::now();
                    }
                }
                Event::Check => {
                    self.tracer.govern();
                    next_check = Instant::now() + CHECK;
                }
                Event::Look => next_look = Instant::now() + self.look(),
                Event::Alive => {
                    self.notifier.alive();
                    next_alive = Instant::now() + alive;
                }
                Event::Tick => {
                    self.tick();
                    next_tick = Instant::now() + self.period();
                    next_evaluation = Instant::now() + EVALUATE;
                }
                Event::Evaluate => {
                    self.between();
                    next_evaluation = Instant::now() + EVALUATE;
                }
                Event::Command(Some(command)) => self.command(command),
                Event::Command(None) => {}
                Event::Signal(libc::SIGHUP) => {
                    self.reload();
                    next_tick = Instant::now();
                }
                Event::Signal(libc::SIGUSR1) => self.save(Reason::Signal, None),
                Event::Signal(_) => return,
            }
        }
    }

    fn period(&self) -> Duration {
        self.config.trace.interval.0.saturating_mul(self.stretch)
    }

    /// A summary with all that follows from it.
    fn tick(&mut self) {
        let now = clock::wall_ns();
        if self.shared.write_error().is_some() {
            self.schedule.ask(Reason::Retry);
        }
        match self.schedule.due(now, &self.seen).filter(|_| self.shared.store().is_some()) {
            Some(reason) => self.save(reason, None),
            None => {
                let mut snapshot = self.tracer.snapshot(false);
                snapshot.watched = self.watch.as_ref().map(Watch::view);
                self.take(Arc::new(snapshot));
            }
        }
    }

    /// Between two rare summaries: alerts by what targets hold now.
    fn between(&mut self) {
        let live = self.snapshot.targets.iter().filter(|target| is_live(target));
        let shown: BTreeSet<u32> = live.map(|target| target.pid).collect();
        if !self.tracer.pids().iter().eq(&shown) {
            // Somebody came or went, of whom nothing or too much is known.
            self.tick();
            return;
        }
        self.held = self.tracer.held();
        let time = clock::wall_ns();
        self.shared.change_series(|series| {
            for target in self.snapshot.targets.iter().filter(|target| is_live(target)) {
                if let Some(held) = self.held.get(&target.pid) {
                    let Held { outstanding_bytes, outstanding_count, allocated_bytes } = *held;
                    let rss_bytes = None;
                    let point = SeriesPoint {
                        time,
                        outstanding_bytes,
                        outstanding_count,
                        allocated_bytes,
                        rss_bytes,
                    };
                    series.record(key(target), point);
                }
            }
        });
        let sum = self.held.values().map(|held| held.outstanding_bytes).fold(0, u64::saturating_add);
        self.rise(sum, time);
        self.look_at_limits();
        self.evaluate();
        self.publish();
    }

    /// Looks for growth; gives the time to the next look.
    fn look(&mut self) -> Duration {
        match &mut self.watch {
            Some(watch) => {
                watch.look(&mut self.tracer);
                watch.period()
            }
            None => Duration::from_secs(3600),
        }
    }

    /// Lets no target in while the agent is at its limits, and counts those that were not.
    fn bound_targets(&mut self) {
        let limits = &self.config.limits;
        let is_full = self.own.map_bytes > limits.map_memory.0 || self.own.rss_bytes > limits.rss.0;
        self.tracer.bound_targets(if is_full { 0 } else { most_targets(&self.config) });
        let (refused, missed) = (self.tracer.refused(), self.tracer.missed());
        self.shared.counts.add_many(Work::TargetsRefused, refused.saturating_sub(self.refused));
        self.shared.counts.add_many(Work::TargetsMissed, missed.saturating_sub(self.missed));
        (self.refused, self.missed) = (refused, missed);
    }

    /// A snapshot with all call stacks, with processes that ended since the last file.
    fn whole(&mut self) -> Arc<Snapshot> {
        self.tracer.select(selection(&self.config, true));
        let mut whole = self.tracer.snapshot(false);
        whole.watched = self.watch.as_ref().map(Watch::view);
        self.tracer.select(selection(&self.config, false));
        let mut shown = whole.clone();
        shown.cut(Order::Bytes, selection(&self.config, false).top);
        let earlier: Vec<TargetView> =
            self.unwritten.iter().map(|target| TargetView::clone(target)).collect();
        self.take(Arc::new(shown));
        whole.targets.splice(0..0, earlier);
        Arc::new(whole)
    }

    fn save(&mut self, reason: Reason, reply: Reply) {
        let whole = self.whole();
        self.unwritten.clear();
        self.writer.write(whole, reason, reply);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Whole(reply) => self.answer_whole(reply),
            Command::Save(reply) => self.save(Reason::Request, Some(reply)),
        }
    }

    fn answer_whole(&mut self, reply: oneshot::Sender<Arc<Snapshot>>) {
        let _ = reply.send(self.whole());
    }

    /// Takes a new snapshot over: histories, ended processes, limits, alerts; then everybody may see it.
    fn take(&mut self, snapshot: Arc<Snapshot>) {
        self.number += 1;
        self.shared.counts.add(Work::Summaries);
        self.record(&snapshot);
        let gone: Vec<TargetView> =
            snapshot.targets.iter().filter(|target| !is_live(target)).cloned().collect();
        for target in gone {
            self.schedule.ended(&target);
            self.shared.counts.add_many(Work::TargetsEnded, u64::from(target.exited.is_some()));
            let target = Arc::new(target);
            self.ended.push_back(Arc::clone(&target));
            if self.ended.len() > MAX_ENDED_SHOWN {
                self.ended.pop_front();
            }
            if self.shared.store().is_none() {
                continue;
            }
            if self.unwritten.len() < MAX_ENDED_UNWRITTEN {
                self.unwritten.push(target);
            } else {
                self.shared.counts.add(Work::EndedDropped);
            }
        }
        for event in &snapshot.events {
            tracing::info!(pid = event.pid, comm = event.comm, "{}", event.reason);
        }
        self.snapshot = snapshot;
        self.held.clear();
        self.spare();
        self.bound_targets();
        self.look_at_limits();
        self.evaluate();
        self.publish();
    }

    fn record(&mut self, snapshot: &Snapshot) {
        let mut sum = 0_u64;
        self.shared.change_series(|series| {
            for target in snapshot.targets.iter().filter(|target| !target.execed) {
                let totals = &target.totals;
                if is_live(target) {
                    sum = sum.saturating_add(totals.outstanding_bytes);
                }
                let point = SeriesPoint {
                    time: snapshot.time,
                    outstanding_bytes: totals.outstanding_bytes,
                    outstanding_count: totals.outstanding_count,
                    allocated_bytes: totals.allocated_bytes,
                    rss_bytes: target.rss_bytes,
                };
                series.record(key(target), point);
            }
        });
        self.rise(sum, snapshot.time);
    }

    /// Remembers the most that all targets held together.
    fn rise(&mut self, sum: u64, time: WallNs) {
        if sum >= self.peak.0 {
            self.peak = (sum, time);
        }
    }

    /// Keeps the agent within its own limits.
    fn spare(&mut self) {
        self.own = self.meter.read();
        let limits = &self.config.limits;
        self.faults = own::faults(&self.own, limits);
        if self.own.cpu_share > limits.cpu {
            self.stretch = (self.stretch * 2).min(MAX_STRETCH);
        } else if self.own.cpu_share < limits.cpu / 2.0 {
            self.stretch = (self.stretch / 2).max(1);
        }
        if self.own.rss_bytes > limits.rss.0 {
            let live: Vec<TargetKey> =
                self.snapshot.targets.iter().filter(|target| is_live(target)).map(key).collect();
            self.shared.change_series(|series| series.trim(|key| live.contains(&key)));
            self.ended.clear();
        }
        if let Some(error) = self.shared.write_error() {
            self.faults.push(OwnFault { kind: AlertKind::SnapshotFailed, message: error });
        }
    }

    fn look_at_limits(&mut self) {
        let live = self.snapshot.targets.iter().filter(|target| is_live(target));
        self.limits = live.filter_map(|target| Some((key(target), memory_limit::of(target.pid)?))).collect();
    }

    fn evaluate(&mut self) {
        let window_ns = self.config.alerts.growth_window.ns();
        let mut observed = BTreeMap::new();
        self.seen.clear();
        for target in self.snapshot.targets.iter().filter(|target| is_live(target)) {
            let key = key(target);
            let limit = self.limits.get(&key);
            let growth = self.shared.with_series(|series| series.growth_bytes_per_hour(key, window_ns));
            let left = limit.map(|limit| limit.limit_bytes.saturating_sub(limit.used_bytes) as f64);
            let seconds_to_limit = match (left, growth) {
                (Some(left), Some(growth)) if growth > 0.0 => Some(left / growth * 3600.0),
                _ => None,
            };
            let held = self.held.get(&target.pid).map(|held| held.outstanding_bytes);
            let outstanding_bytes = held.unwrap_or(target.totals.outstanding_bytes);
            let limit_share = limit.map(MemoryLimit::share);
            self.seen.insert(key, Seen { outstanding_bytes, limit_share });
            observed.insert(
                key,
                Observation {
                    comm: target.comm.clone(),
                    outstanding_bytes,
                    growth_bytes_per_hour: growth,
                    limit_share,
                    seconds_to_limit,
                },
            );
        }
        let changes = self.evaluator.evaluate(clock::wall_ns(), &observed, &self.faults, &self.config.alerts);
        for change in changes {
            self.tell(&change);
        }
    }

    fn tell(&self, change: &Change) {
        let (alert, is_active) = match change {
            Change::Fired(alert) => (alert, true),
            Change::Resolved(alert) => (alert, false),
        };
        match (is_active, alert.severity) {
            (true, Severity::Critical) => {
                tracing::error!(kind = alert.kind.name(), "critical: {}", alert.message);
            }
            (true, Severity::Warning) => {
                tracing::warn!(kind = alert.kind.name(), "warning: {}", alert.message);
            }
            (false, _) => tracing::info!(kind = alert.kind.name(), "over: {}", alert.message),
        }
        if is_active {
            self.shared.counts.add(Work::AlertsFired);
        }
        self.webhook.send(api::alert_message(alert, is_active, &self.snapshot.host, clock::wall_ns()));
    }

    fn publish(&self) {
        let window_ns = self.config.alerts.growth_window.ns();
        let growth = self.shared.with_series(|series| {
            self.seen
                .keys()
                .filter_map(|key| Some((*key, series.growth_bytes_per_hour(*key, window_ns)?)))
                .collect()
        });
        let view = View {
            number: self.number,
            started: self.started,
            snapshot: Arc::clone(&self.snapshot),
            ended: self.ended.iter().cloned().collect(),
            limits: self.limits.clone(),
            growth,
            alerts: self.evaluator.active(),
            faults: self.faults.clone(),
            own: self.own,
            work: self.shared.counts.all(),
            peak: self.peak,
        };
        let holds = crate::model::units::bytes(view.outstanding_bytes());
        self.notifier.status(&format!("{} targets hold {holds}", view.live().count()));
        // Receivers live as long as what is shared.
        self.publish.send_replace(Arc::new(view));
    }

    /// Reads the configuration again; a wrong one changes nothing.
    fn reload(&mut self) {
        self.notifier.reloading();
        match self.read_again() {
            Ok(config) => {
                self.shared.counts.add(Work::Reloads);
                self.apply(config);
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                self.shared.counts.add(Work::ReloadsFailed);
                tracing::error!("the configuration stays as it was: {error:#}");
            }
        }
        self.notifier.ready();
    }

    fn read_again(&self) -> Result<Config> {
        let config = match &self.path {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if config.snapshots.directory != self.config.snapshots.directory {
            self.shared.set_store(open_store(&config)?);
        }
        Ok(config)
    }

    fn apply(&mut self, config: Config) {
        let old = Arc::clone(&self.config);
        for (name, changed) in fixed(&old, &config) {
            if changed {
                tracing::warn!("{name} was changed: that takes effect when the agent is started again");
            }
        }
        let config = Arc::new(config);
        if (&config.targets, &config.exclude) != (&old.targets, &old.exclude)
            && let Err(error) = self.tracer.follow_orders(orders(&config))
        {
            tracing::error!(error = format!("{error:#}"), "the new targets cannot be followed");
        }
        if config.auto != old.auto {
            if let Some(mut watch) = self.watch.take() {
                watch.end(&mut self.tracer);
            }
            self.watch = watch(&config);
        }
        if config.snapshots != old.snapshots {
            self.schedule.set(config.snapshots.clone(), clock::wall_ns());
        }
        self.webhook.set(&config.alerts);
        (self.set_level)(&config.log.level);
        self.tracer.select(selection(&config, false));
        self.shared.set_config(Arc::clone(&config));
        self.config = config;
    }

    /// The last summary, as a file where files are kept.
    fn finish(mut self) {
        self.tracer.stop();
        if self.shared.store().is_some() && !(self.snapshot.targets.is_empty() && self.unwritten.is_empty()) {
            self.save(Reason::Stop, None);
        }
        self.writer.finish();
    }
}

/// What only a start can change.
fn fixed(old: &Config, new: &Config) -> [(&'static str, bool); 11] {
    [
        ("trace.mode", old.trace.mode != new.trace.mode),
        ("trace.sample_interval", old.trace.sample_interval != new.trace.sample_interval),
        ("trace.follow", old.trace.follow != new.trace.follow),
        ("trace.max_blocks", old.trace.max_blocks != new.trace.max_blocks),
        ("trace.max_sites", old.trace.max_sites != new.trace.max_sites),
        ("trace.debug_dirs", old.trace.debug_dirs != new.trace.debug_dirs),
        ("trace.debuginfod", old.trace.debuginfod != new.trace.debuginfod),
        ("trace.max_overhead", old.trace.max_overhead != new.trace.max_overhead),
        (
            "http.enabled or http.listen",
            (old.http.enabled, &old.http.listen) != (new.http.enabled, &new.http.listen),
        ),
        ("log.format", old.log.format != new.log.format),
        ("limits.targets above the number at the start", new.limits.targets > old.limits.targets),
    ]
}

fn trace_options(config: &Config) -> Result<TraceOptions> {
    let trace = &config.trace;
    Ok(TraceOptions {
        follow: trace.follow,
        sample_interval_bytes: match trace.mode {
            ModeName::Exact | ModeName::Growth => 0,
            ModeName::Sampled => trace.sample_interval.0,
        },
        growth_only: trace.mode == ModeName::Growth,
        governor: trace.governor(),
        max_blocks: u32::try_from(trace.max_blocks.0)?,
        sizes: Sizes {
            // Room for the children of targets, and for tables that are kept for them.
            targets: u32::try_from(config.limits.targets.0)?.saturating_mul(2),
            sites: u32::try_from(trace.max_sites.0)?,
            ..Sizes::default()
        },
        debug_dirs: trace.debug_dirs.clone(),
        debuginfod_urls: trace.debuginfod.clone(),
        ..TraceOptions::default()
    })
}

fn most_targets(config: &Config) -> usize {
    usize::try_from(config.limits.targets.0).unwrap_or(usize::MAX)
}

fn orders(config: &Config) -> Orders {
    Orders {
        selectors: config.targets.clone(),
        exclude: config.exclude.clone(),
        max_targets: most_targets(config),
    }
}

fn watch(config: &Config) -> Option<Watch> {
    let is_wanted = !config.auto.watch.is_empty();
    is_wanted.then(|| {
        let meant = Meant::new(config.auto.orders());
        Watch::new(Watched::Meant(Box::new(meant)), config.auto.options())
    })
}

fn selection(config: &Config, whole: bool) -> Selection {
    let top = if whole { 0 } else { usize::try_from(config.trace.top.0).unwrap_or(usize::MAX) };
    Selection { order: Order::Bytes, top, ..Selection::default() }
}

fn open_store(config: &Config) -> Result<Option<Store>> {
    let Some(folder) = &config.snapshots.directory else { return Ok(None) };
    Store::open(folder)
        .map(Some)
        .with_context(|| format!("snapshots.directory: {} cannot be used", folder.display()))
}
