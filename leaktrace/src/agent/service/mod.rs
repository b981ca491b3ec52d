//! `leaktrace agent`: the visible loop of the service. `summaries`, `evaluate` and `reload` do what it says, one after the
//! other, in the thread that owns the tracer; answering requests, writing files and posting alerts have threads of their
//! own and see immutable views only.
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch as changes},
    time::{Instant, sleep_until},
};

pub mod alerts;
pub mod config;
mod evaluate;
pub mod notify;
pub mod own;
mod reload;
pub mod schedule;
mod settings;
pub mod state;
pub mod store;
mod summaries;
pub mod values;
pub mod webhook;
pub mod writer;

use alerts::Evaluator;
use config::Config;
use notify::Notifier;
use own::Meter;
use schedule::{Schedule, Seen};
use settings::{open_store, orders, selection, trace_options, watch};
use state::{Command, MAX_COMMANDS, Shared};
use store::Reason;
use webhook::Webhook;
use writer::Writer;

use super::{
    bans, clock,
    growth::watch::Watch,
    http,
    session::Rings,
    tracer::{Tracer, held::Held},
};
use crate::model::{
    series::TargetKey,
    service::{MemoryLimit, OwnFault, OwnUse, View},
    snapshot::{Snapshot, TargetView},
};

/// Alerts are evaluated at least this often, however rare summaries are: at half of the time within which that is promised,
/// so that what an evaluation takes does not break the promise.
const EVALUATE: Duration = Duration::from_millis(2500);
/// Time between looks at what tracing costs.
const CHECK: Duration = Duration::from_secs(1);

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
    publish: changes::Sender<Arc<View>>,
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
    // Files hold all call stacks.
    tracer.name_ahead(store.is_some());
    tracer.keep_bans(&bans::default_path());
    tracer.follow_orders(orders(&config))?;
    let rings = Rings::of(&tracer)?;
    let started = clock::wall_ns();
    let (publish, view) = changes::channel(Arc::new(View { started, ..View::default() }));
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
                // Names for the files, while nothing else is to be done.
                () = std::future::ready(()), if self.tracer.has_work() => Event::Ring,
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

    fn command(&mut self, command: Command) {
        match command {
            Command::Whole(reply) => self.answer_whole(reply),
            Command::Save(reply) => self.save(Reason::Request, Some(reply)),
        }
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
