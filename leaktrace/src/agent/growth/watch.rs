//! Watching processes, and having the tracer sample those that keep growing.
use std::time::Duration;

use super::{
    meant::Meant,
    pilot::{AutoOptions, Pilot, Step},
    watcher::Watcher,
};
use crate::{
    agent::{clock, tracer::Tracer},
    discover::process,
    model::{events::EventKind, memory::WatchView},
};

/// Looks in the time that growth must last.
const LOOKS: u32 = 12;
/// Time between looks, at least and at most.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Processes that a snapshot shows of those that are not sampled.
const SHOWN: usize = 5;

/// Which processes are watched.
pub enum Watched {
    /// All there are, new ones included.
    All,
    /// These.
    These(Vec<u32>),
    /// Those that orders mean, new ones included.
    Meant(Box<Meant>),
}

impl Watched {
    fn pids(&mut self) -> Vec<u32> {
        let me = std::process::id();
        match self {
            Watched::All => process::all().into_iter().filter(|pid| *pid != me).collect(),
            Watched::These(pids) => pids.clone(),
            Watched::Meant(meant) => meant.pids(),
        }
    }

    /// Whether processes may come to be watched.
    fn is_standing(&self) -> bool {
        match self {
            Watched::All => true,
            Watched::These(_) => false,
            Watched::Meant(meant) => meant.is_standing(),
        }
    }
}

/// The watch.
pub struct Watch {
    watched: Watched,
    period: Duration,
    watcher: Watcher,
    pilot: Pilot,
}

impl Watch {
    /// Watches; looks at nothing yet.
    pub fn new(watched: Watched, options: AutoOptions) -> Watch {
        let lasting = Duration::from_nanos(options.rule.min_duration_ns);
        process::raise_file_limit();
        Watch {
            watched,
            period: (lasting / LOOKS).clamp(BOUNDS.0, BOUNDS.1),
            watcher: Watcher::new(options.rule),
            pilot: Pilot::new(options),
        }
    }

    /// Time between looks.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Looks at all processes; starts and stops sampling. `false` when there is nothing left to watch.
    pub fn look(&mut self, tracer: &mut Tracer) -> bool {
        let now_ns = clock::boot_ns();
        let pids = self.watched.pids();
        self.watcher.look(&pids, now_ns);
        let growing = self.watcher.growing();
        let watcher = &self.watcher;
        for step in self.pilot.step(now_ns, &growing, |pid| watcher.contains(pid)) {
            self.take(step, tracer, now_ns);
        }
        self.watched.is_standing() || !self.watcher.is_empty() || tracer.target_count() > 0
    }

    /// Stops sampling what it started to sample.
    pub fn end(&mut self, tracer: &mut Tracer) {
        for pid in self.pilot.pids() {
            tracer.remove(pid);
        }
    }

    fn take(&mut self, step: Step, tracer: &mut Tracer, now_ns: u64) {
        match step {
            // Somebody else asked for it, and goes on to.
            Step::Start { pid, .. } if tracer.is_traced(pid) => self.pilot.failed(pid, now_ns),
            Step::Start { pid, reason } => match tracer.add_by_order(pid) {
                Ok(()) => tracer.note_event(pid, &process::name(pid), EventKind::AutoStarted, reason),
                Err(error) => {
                    self.pilot.failed(pid, now_ns);
                    let reason = format!("{reason}, but it cannot be: {error:#}");
                    tracer.note_event(pid, &process::name(pid), EventKind::AutoFailed, reason);
                }
            },
            Step::Stop { pid, reason } => {
                tracer.note_event(pid, &process::name(pid), EventKind::AutoStopped, reason);
                tracer.remove(pid);
            }
        }
    }

    /// What a snapshot shows.
    pub fn view(&self) -> WatchView {
        self.watcher.view(SHOWN, process::name)
    }
}
