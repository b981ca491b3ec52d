//! The visible loop of `run` and `attach`: kernel records, held processes, ticks and signals come in; snapshots
//! go out. It owns nothing but the order of things.
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    growth::watch::Watch,
    launch::{Held, Launched, Notice},
    tracer::Tracer,
};
use crate::{
    analyse::{
        gate::{Ending, Gate},
        suppressions::Suppressions,
    },
    discover::lsan,
    model::{
        snapshot::{CallView, Snapshot},
        verdict::Verdict,
    },
};

/// Time between looks at what tracing costs.
const CHECK: Duration = Duration::from_secs(1);
/// How long a held process waits for its unwind tables: then it runs, and its stacks are finished later.
const TABLE_PATIENCE: Duration = Duration::from_secs(30);

/// When summaries are made and when it ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    /// Time between summaries; without it only the last one is made.
    pub interval: Option<Duration>,
    /// Summaries at the most.
    pub count: Option<u64>,
    /// Time at the most.
    pub duration: Option<Duration>,
}

/// Where summaries go. An error ends the session; a broken pipe ends it quietly.
pub trait Report {
    /// A summary.
    ///
    /// # Errors
    /// When it cannot be written.
    fn snapshot(&mut self, snapshot: &Snapshot) -> io::Result<()>;

    /// Single calls.
    ///
    /// # Errors
    /// When they cannot be written.
    fn calls(&mut self, calls: &[CallView]) -> io::Result<()>;
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Wait status of the program that `run` started, if it ended.
    pub status: Option<i32>,
    /// What it comes to, where there is a gate and the session came to its end.
    pub verdict: Option<Verdict>,
}

impl Outcome {
    /// How the program ended.
    pub fn ending(&self) -> Ending {
        match self.status {
            None => Ending::Runs,
            Some(status) if libc::WIFSIGNALED(status) => Ending::Signal(libc::WTERMSIG(status)),
            Some(status) => Ending::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)),
        }
    }
}

/// What can happen.
enum Event {
    Ring,
    Tick,
    Check,
    Look,
    Deadline,
    Notice(Option<Notice>),
    Interrupted(i32),
}

/// A session.
pub struct Session<'a, R> {
    tracer: &'a mut Tracer,
    launched: Option<Launched>,
    watch: Option<Watch>,
    gate: Option<Gate>,
    schedule: Schedule,
    report: &'a mut R,
    outcome: Outcome,
    summaries: u64,
    was_interrupted: bool,
    /// Held processes whose tables are not ready, and until when they wait.
    held: Vec<(u32, Instant, mpsc::Sender<()>)>,
}

/// The descriptors that the loop waits for; each is a duplicate that it owns.
pub(super) struct Rings(Vec<AsyncFd<OwnedFd>>);

impl Rings {
    pub(super) fn of(tracer: &Tracer) -> Result<Rings> {
        let mut rings = Vec::new();
        for fd in tracer.ring_fds() {
            let ring = duplicate(fd)?;
            // SAFETY: the descriptor is owned by what is registered, which never changes or closes it before.
            rings.push(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?);
        }
        Ok(Rings(rings))
    }

    pub(super) async fn readable(&self) {
        let waits = self.0.iter().map(|ring| Box::pin(ring.readable()));
        let (first, ..) = futures_select(waits.collect()).await;
        if let Ok(mut guard) = first {
            guard.clear_ready();
        }
    }
}

/// Waits for the first of some futures.
async fn futures_select<F: Future + Unpin>(mut futures: Vec<F>) -> (F::Output, ()) {
    std::future::poll_fn(move |context| {
        for future in &mut futures {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready((output, ()));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: the tracer owns the descriptor for longer than this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().context("duplicating a ring buffer's descriptor")
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
        }
    }
}

impl<'a, R: Report> Session<'a, R> {
    /// A session over the targets that `tracer` has, or over a program that was launched.
    pub fn new(
        tracer: &'a mut Tracer,
        launched: Option<Launched>,
        schedule: Schedule,
        report: &'a mut R,
    ) -> Session<'a, R> {
        if let Some(launched) = &launched {
            tracer.wait_for(launched.pid);
        }
        Session {
            tracer,
            launched,
            watch: None,
            gate: None,
            schedule,
            report,
            outcome: Outcome::default(),
            summaries: 0,
            was_interrupted: false,
            held: Vec::new(),
        }
    }

    /// Watches other processes as well, and goes on without targets.
    pub fn watching(mut self, watch: Option<Watch>) -> Session<'a, R> {
        self.watch = watch;
        self
    }

    /// Comes to a verdict in the end.
    pub fn gated(mut self, gate: Gate) -> Session<'a, R> {
        self.gate = Some(gate);
        self
    }

    /// Runs until the targets are gone, the schedule is over or a signal comes; the last summary is complete.
    ///
    /// # Errors
    /// When a summary cannot be written, or the loop cannot be set up.
    pub async fn run(mut self) -> Result<Outcome> {
        let rings = Rings::of(self.tracer)?;
        let mut signals = Signals::new()?;
        let start = Instant::now();
        let period = self.schedule.interval.unwrap_or(Duration::from_secs(86_400));
        let mut ticks = interval_at(start + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut checks = interval_at(start + CHECK, CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let look = self.watch.as_ref().map_or(Duration::from_secs(86_400), Watch::period);
        let mut looks = interval_at(start, look);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = start + self.schedule.duration.unwrap_or(Duration::from_secs(86_400 * 365));
        loop {
            let event = tokio::select! {
                biased;
                number = signals.next() => Event::Interrupted(number),
                notice = next_notice(&mut self.launched) => Event::Notice(notice),
                () = sleep_until(deadline) => Event::Deadline,
                _ = ticks.tick() => Event::Tick,
                _ = checks.tick() => Event::Check,
                _ = looks.tick() => Event::Look,
                () = rings.readable() => Event::Ring,
                () = std::future::ready(()), if self.tracer.has_work() => Event::Ring,
            };
            let handled = self.handle(event);
            self.release_ready();
            match handled {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(self.outcome),
                Err(error) => return Err(error).context("writing the report"),
            }
        }
        self.tracer.stop();
        match self.summarize(true) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("writing the report")
            }
            _ => Ok(self.outcome),
        }
    }

    /// Whether to go on.
    fn handle(&mut self, event: Event) -> io::Result<bool> {
        match event {
            Event::Ring => {
                self.tracer.drain();
                self.report_calls()?;
                let goes_on = self.launched.is_some()
                    || self.watch.is_some()
                    || self.tracer.target_count() > 0
                    || self.tracer.waits();
                // What is known of a target that was killed for lack of memory may be all that is left of this host.
                if self.tracer.take_urgent() && goes_on && self.schedule.interval.is_some() {
                    self.summarize(false)?;
                }
                Ok(goes_on)
            }
            Event::Tick if self.schedule.interval.is_some() => {
                let is_last = self.schedule.count.is_some_and(|count| self.summaries + 1 >= count);
                if is_last {
                    return Ok(false);
                }
                self.summarize(false)?;
                Ok(true)
            }
            Event::Tick => Ok(true),
            Event::Check => {
                self.tracer.govern();
                Ok(true)
            }
            Event::Look => Ok(self.watch.as_mut().is_none_or(|watch| watch.look(self.tracer))),
            Event::Deadline => Ok(false),
            Event::Notice(notice) => Ok(self.noticed(notice)),
            Event::Interrupted(number) => Ok(self.interrupted(number)),
        }
    }

    fn noticed(&mut self, notice: Option<Notice>) -> bool {
        match notice {
            Some(Notice::Held { pid, why, release }) => {
                self.tracer.drain();
                self.held(pid, why);
                self.held.push((pid, Instant::now() + TABLE_PATIENCE, release));
                true
            }
            Some(Notice::Ended { status }) => {
                self.outcome.status = Some(status);
                if let Some(launched) = &self.launched {
                    self.tracer.note_exit(launched.pid, status.cast_unsigned());
                }
                true
            }
            Some(Notice::Failed(error)) => {
                tracing::error!(%error, "processes cannot be held any more: new ones may run untraced for a moment");
                true
            }
            Some(Notice::AllEnded) | None => {
                self.tracer.drain();
                self.launched = None;
                false
            }
        }
    }

    /// A launched process, or a child of one, waits to be probed.
    fn held(&mut self, pid: u32, why: Held) {
        let is_traced = self.tracer.is_traced(pid);
        match why {
            Held::Exec if !is_traced => {
                self.add(pid, None, true);
                self.read_suppressions(pid);
            }
            Held::Fork(parent) if !is_traced && self.tracer.is_traced(parent) => {
                if !shares_memory(pid, parent) {
                    self.add(pid, Some(parent), false);
                }
            }
            Held::Exec => {
                self.tracer.refresh(pid);
                self.read_suppressions(pid);
            }
            Held::Mapped | Held::Started => self.tracer.refresh(pid),
            Held::Fork(_) => {}
        }
    }

    /// Lets held processes go on whose tables are there, so that their first stacks are whole.
    fn release_ready(&mut self) {
        let now = Instant::now();
        let tracer = &self.tracer;
        self.held.retain(|(pid, until, release)| {
            let waits = now < *until && !tracer.is_ready(*pid);
            if !waits {
                let _ = release.send(());
            }
            waits
        });
    }

    fn add(&mut self, pid: u32, parent: Option<u32>, fresh: bool) {
        match self.tracer.add(pid, parent, fresh) {
            Ok(()) => tracing::debug!(target = self.tracer.describe(pid), "traced"),
            Err(error) => {
                tracing::warn!("process {pid} is not traced: {error:#}");
                self.tracer.note_untraced(pid, &error);
            }
        }
    }

    /// Takes in the suppressions that the program of a process brings.
    fn read_suppressions(&mut self, pid: u32) {
        let Some(gate) = &mut self.gate else { return };
        let text = lsan::default_suppressions(pid).unwrap_or_default();
        match Suppressions::parse(&text) {
            Ok(list) => gate.suppress(pid, list),
            Err(mistake) => {
                tracing::warn!("the suppressions that process {pid} brings cannot be read: {mistake}");
            }
        }
    }

    /// The first signal asks a launched program to end and waits for it; the second one, or the first without a
    /// program, ends the session.
    fn interrupted(&mut self, number: i32) -> bool {
        let Some(launched) = &self.launched else { return false };
        if self.was_interrupted || self.outcome.status.is_some() {
            return false;
        }
        self.was_interrupted = true;
        if let Ok(pid) = i32::try_from(launched.pid) {
            // SAFETY: no memory; the program is leaktrace's own child.
            unsafe { libc::kill(pid, number) };
        }
        true
    }

    fn summarize(&mut self, last: bool) -> io::Result<()> {
        self.report_calls()?;
        let mut snapshot = self.tracer.snapshot(last);
        snapshot.watched = self.watch.as_ref().map(Watch::view);
        self.summaries += 1;
        if let Some(gate) = &mut self.gate {
            gate.take(&mut snapshot);
            if last {
                self.tracer.untraced().into_iter().for_each(|reason| gate.doubt(reason));
                let verdict = gate.verdict(&mut snapshot, self.outcome.ending());
                snapshot.verdict = Some(verdict.clone());
                self.outcome.verdict = Some(verdict);
            }
        }
        self.report.snapshot(&snapshot)
    }

    fn report_calls(&mut self) -> io::Result<()> {
        let calls = self.tracer.take_calls();
        if calls.is_empty() { Ok(()) } else { self.report.calls(&calls) }
    }
}

async fn next_notice(launched: &mut Option<Launched>) -> Option<Notice> {
    match launched {
        Some(launched) => launched.notices.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether a child runs in its parent's memory (vfork): kcmp(2) says whether their address spaces are one.
fn shares_memory(child: u32, parent: u32) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: no memory.
    unsafe { libc::syscall(libc::SYS_kcmp, child, parent, KCMP_VM, 0, 0) == 0 }
}
