//! Keeps targets within their budget: brings the numbers to their governors and does what those decide.
use leaktrace_common::target::flags;

use super::{Recording, Tracer, Tracked};
use crate::{
    agent::{
        clock,
        governor::{Action, Decision, Reading},
        meter::Counts,
    },
    attach::links::Links,
    discover::{memory, process},
    drain::maps::RetiredTable,
    model::{
        events::{EventKind, EventView},
        history::History,
        units,
    },
};

/// A kernel program may still run for this long after it was told not to record.
const IN_FLIGHT_NS: u64 = 1_000_000;
/// Processes that are detached from at once, each by a thread; of more, the loop waits.
const MAX_DETACHING: usize = 64;
/// Decisions kept until the next snapshot.
const MAX_DECISIONS: usize = 1000;

impl Tracer {
    /// Looks at what tracing costs each target and does what its governor decides. Worth calling once a second.
    pub fn govern(&mut self) {
        if self.options.governor.is_none() || self.options.growth_only {
            return;
        }
        let pids: Vec<u32> = self.targets.keys().copied().collect();
        for pid in pids {
            let Some(mut target) = self.targets.remove(&pid) else { continue };
            if let Some(decision) = self.decide(&mut target) {
                self.act(&mut target, decision.action);
                self.tell(&target, decision);
            }
            self.targets.insert(pid, target);
        }
    }

    /// Stops tracing a process that goes on; what was seen of it is in the next snapshot.
    pub fn remove(&mut self, pid: u32) {
        self.drain();
        let Some(mut target) = self.targets.remove(&pid) else { return };
        self.maps.stop(pid);
        detach(&mut target);
        // Its threads' exits will not be seen any more.
        self.maps.forget_threads(&process::threads(pid));
        self.drain_stacks();
        let view = self.view_of(&mut target);
        self.finish(view);
        self.forget_image(&target);
        self.drop_target(target);
    }

    fn decide(&self, target: &mut Tracked) -> Option<Decision> {
        let (pid, time_ns) = (target.pid(), clock::boot_ns());
        let governor = target.care.governor.as_mut()?;
        if target.care.recording == Recording::Paused {
            return governor.step(Reading { time_ns, ..Reading::default() });
        }
        let counts = Counts {
            time_ns,
            hits: self.maps.hits(pid),
            tally: self.maps.tally(pid),
            cpu_ns: memory::cpu_ns(pid),
        };
        let reading = target.care.meter.read(counts, self.costs.return_ns())?;
        governor.step(reading)
    }

    fn act(&mut self, target: &mut Tracked, action: Action) {
        match action {
            Action::Warn => {}
            Action::Interval(bytes) => {
                target.sample_interval_bytes = bytes;
                target.care.widest_interval_bytes = target.care.widest_interval_bytes.max(bytes);
                self.tell_kernel(target);
            }
            Action::Pause => {
                target.care.recording = Recording::Paused;
                target.care.paused_since_ns = Some(clock::boot_ns());
                self.tell_kernel(target);
                // A program that had begun may have recorded one more block.
                target.care.unverified_before_ns = clock::boot_ns().saturating_add(IN_FLIGHT_NS);
                self.detach_aside(target, None);
                // What was seen to grow is not known to be there any more.
                target.history = History::default();
            }
            Action::Resume => {
                let now_ns = clock::boot_ns();
                target.care.paused_ns = target.care.paused_ns(now_ns);
                target.care.paused_since_ns = None;
                target.care.recording = Recording::On;
                target.care.meter.forget();
                target.history = History::default();
                target.attached.clear();
                target.carried.clear();
                // Two probes in one place would see every call twice.
                self.wait_for_detaching(target.pid());
                self.tell_kernel(target);
                self.look(target);
                self.probe(target);
            }
        }
    }

    /// Detaches without waiting for it, and gives a table of blocks up after that: under load the kernel may take
    /// seconds, while the rings fill.
    pub(super) fn detach_aside(&mut self, target: &mut Tracked, table: Option<RetiredTable>) {
        let attached = target.attached.values_mut().chain(target.carried.values_mut());
        let mut links: Vec<Links> = attached.map(|attached| std::mem::take(&mut attached.links)).collect();
        links.retain(|links| !links.is_empty());
        self.detaching.retain(|_, thread| !thread.is_finished());
        let has_nothing = links.is_empty() && table.is_none();
        if has_nothing || self.detaching.len() >= MAX_DETACHING {
            return;
        }
        self.wait_for_detaching(target.pid());
        self.detaching.insert(target.pid(), std::thread::spawn(move || drop((links, table))));
    }

    fn wait_for_detaching(&mut self, pid: u32) {
        if let Some(thread) = self.detaching.remove(&pid)
            && thread.join().is_err()
        {
            tracing::error!(pid, "detaching failed");
        }
    }

    /// Waits until no probe is left that was to go.
    pub(super) fn finish_detaching(&mut self) {
        let pids: Vec<u32> = self.detaching.keys().copied().collect();
        for pid in pids {
            self.wait_for_detaching(pid);
        }
    }

    /// Tells the kernel what is recorded of a target.
    fn tell_kernel(&self, target: &Tracked) {
        let Some(mut settings) = self.maps.target(target.pid()) else { return };
        settings.sample_interval_bytes = target.sample_interval_bytes;
        if target.care.recording == Recording::On {
            settings.flags |= flags::ALLOCATIONS;
        } else {
            settings.flags &= !flags::ALLOCATIONS;
        }
        if let Err(error) = self.maps.set_target(target.pid(), &settings) {
            tracing::warn!(pid = target.pid(), error = format!("{error:#}"), "changing a target");
        }
    }

    fn tell(&mut self, target: &Tracked, decision: Decision) {
        self.note_event(target.pid(), &target.process.comm, decision.kind, decision.reason);
    }

    /// Puts an event into the next snapshot.
    pub fn note_event(&mut self, pid: u32, comm: &str, kind: EventKind, reason: String) {
        tracing::debug!(pid, kind = kind.name(), reason, "decided");
        if self.decisions.len() < MAX_DECISIONS {
            let time = clock::wall_ns();
            self.decisions.push(EventView { time, pid, comm: comm.to_owned(), kind, reason });
        }
    }
}

/// Takes the probes out; what they were is still reported.
fn detach(target: &mut Tracked) {
    target.carried.clear();
    for attached in target.attached.values_mut() {
        attached.links = Default::default();
    }
}

/// What a pause means for the numbers.
pub(super) fn note(target: &Tracked) -> Option<String> {
    let paused_ns = target.care.paused_ns(clock::boot_ns());
    (target.care.unverified_before_ns > 0).then(|| {
        format!(
            "process {}: its allocations were not watched for {}, to stay within --max-overhead; blocks from before \
             that may have been freed meanwhile, are counted as unverified and make no finding",
            target.pid(),
            units::duration(paused_ns)
        )
    })
}
