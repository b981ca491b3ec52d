//! Targets that come by standing orders. The kernel tells of every process that executes a program, is moved to another
//! control group or takes another name; whether an order means it is asked here. All of /proc is read once at the start,
//! and again only where such notices were lost.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use leaktrace_common::{
    counter::Counter,
    event::{Appearance, Life},
    target::NOBODY,
};

use super::Tracer;
use crate::{
    agent::{clock, orders::Orders},
    attach::{tracefs::Tracefs, tracepoints::Tracepoints},
    discover::{
        candidate::{self, Candidate},
        container::Containers,
        process::{self, ProcessError},
    },
    model::units,
};

/// Processes that are remembered for a later look; of more only the number is known.
const MAX_REMEMBERED: usize = 10_000;
/// Names in a note.
const MAX_NAMES: usize = 5;

/// What is kept for standing orders.
#[derive(Default)]
pub(super) struct Standing {
    orders: Orders,
    /// The containers that targets are in.
    pub(super) containers: Containers,
    tracepoints: Option<Tracepoints>,
    /// Meant, but there were as many targets as were asked for: pid and name.
    turned_away: BTreeMap<u32, String>,
    turned_away_unlisted: u64,
    /// Took another name since the last look.
    renamed: BTreeSet<u32>,
    /// In containers whose names are not known yet.
    unnamed: BTreeSet<u32>,
    /// Meant, but they cannot be traced, by reason: how many, and the first of them.
    untraceable: BTreeMap<String, (u64, Vec<String>)>,
    /// How often a process that was meant was not traced.
    refused: u64,
    /// Meant, but gone before their probes were set.
    missed: u64,
    /// Executed a program and gone before it could be asked whether they are meant.
    unseen: u64,
    /// Added, and seen to have ended since: no word of it may come.
    maybe_gone: Vec<u32>,
    /// Notices that were lost.
    lost: u64,
}

impl Standing {
    /// A process that was meant ended before it could be traced.
    pub(super) fn missed(&mut self) {
        self.missed += 1;
    }

    /// A process that was meant cannot be traced.
    pub(super) fn turned_down(&mut self, pid: u32, comm: &str, reason: String) {
        let name = format!("{pid} {comm}");
        let (count, names) = self.untraceable.entry(reason).or_default();
        if names.contains(&name) {
            return;
        }
        self.refused += 1;
        *count += 1;
        if names.len() < MAX_NAMES {
            names.push(name);
        }
    }
}

impl Tracer {
    /// Traces what the orders mean, from now on. Processes that are there already are targets when this returns.
    ///
    /// # Errors
    /// When the kernel lacks what tells of new processes.
    pub fn follow_orders(&mut self, orders: Orders) -> Result<()> {
        if orders.are_standing() && self.standing.tracepoints.is_none() {
            // Before the first look: who comes in between is seen twice rather than never.
            self.standing.tracepoints = Some(Tracepoints::orders(&self.kernel, &Tracefs::find()?)?);
        }
        if orders.name_containers() {
            self.standing.containers.prepare();
        }
        self.standing.orders = orders;
        self.standing.turned_away.clear();
        self.sweep();
        Ok(())
    }

    /// Bounds the number of targets that orders bring; those that there are stay.
    pub fn bound_targets(&mut self, most: usize) {
        self.standing.orders.max_targets = most;
        self.settle();
    }

    /// How often a process that was meant was not traced: too many targets, or it could not be.
    pub fn refused(&self) -> u64 {
        self.standing.refused
    }

    /// How many processes ended before they could be traced; of some it is not known whether they were meant.
    pub fn missed(&self) -> u64 {
        self.standing.missed + self.standing.unseen
    }

    /// Whether processes may come that are to be traced.
    pub fn waits(&self) -> bool {
        self.standing.tracepoints.is_some() && self.standing.orders.are_standing()
    }

    /// Looks at every process there is.
    fn sweep(&mut self) {
        for pid in candidate::process_ids() {
            self.consider(pid, None);
        }
        self.settle();
    }

    pub(super) fn appeared(&mut self, life: &Life) {
        let pid = life.header.tgid;
        if life.status == Appearance::Name as u32 {
            // An exec gives a new name before the new program is there, and word of it follows.
            self.standing.renamed.insert(pid);
            return;
        }
        let executed_ns = (life.status == Appearance::Exec as u32).then_some(life.header.time_ns);
        if executed_ns.is_some() {
            self.standing.renamed.remove(&pid);
        }
        self.consider(pid, executed_ns);
    }

    /// Makes the process a target if an order means it. `executed_ns` is when its program began, if that is news.
    pub(super) fn consider(&mut self, pid: u32, executed_ns: Option<u64>) {
        if self.targets.contains_key(&pid) {
            self.executed_before_it_was_a_target(pid, executed_ns);
            return;
        }
        let standing = &mut self.standing;
        let Some(candidate) = Candidate::read(pid, &mut standing.containers) else {
            standing.unseen += u64::from(executed_ns.is_some());
            return;
        };
        if !standing.orders.want(&candidate) {
            let is_unnamed = candidate.container.is_some_and(|container| !container.names.has_labels);
            if is_unnamed && standing.orders.name_containers() && standing.unnamed.len() < MAX_REMEMBERED {
                standing.unnamed.insert(pid);
            }
            return;
        }
        if self.targets.len() >= standing.orders.max_targets {
            standing.refused += u64::from(!standing.turned_away.contains_key(&pid));
            if standing.turned_away.len() < MAX_REMEMBERED {
                standing.turned_away.insert(pid, candidate.comm);
            } else {
                standing.turned_away_unlisted += 1;
            }
            return;
        }
        match self.add_by_order(pid) {
            Ok(()) => {
                tracing::info!(pid, comm = candidate.comm, "traced by a standing order");
                self.note_late(pid, executed_ns);
                if process::stat(pid).is_none_or(|stat| stat.has_ended) {
                    self.standing.maybe_gone.push(pid);
                }
            }
            Err(error) => self.not_traced(&candidate, &error),
        }
    }

    /// A process may execute its program while it is being made a target: the kernel programs did not know it yet and have
    /// counted no new image. What was looked at may have been the program before.
    fn executed_before_it_was_a_target(&mut self, pid: u32, executed_ns: Option<u64>) {
        let is_first =
            self.maps.target(pid).is_some_and(|target| target.owner == pid && target.generation == 0);
        let Some(target) = self.targets.get_mut(&pid) else { return };
        if executed_ns.is_none() || !is_first || target.image.generation != 0 || target.unseen_ns.is_some() {
            return;
        }
        if let Ok(process) = process::inspect(pid) {
            target.process = process;
        }
        target.is_stale = true;
        target.has_new_files = true;
        self.note_late(pid, executed_ns);
    }

    fn note_late(&mut self, pid: u32, executed_ns: Option<u64>) {
        let Some(executed_ns) = executed_ns else { return };
        let unseen_ns = clock::boot_ns().saturating_sub(executed_ns);
        tracing::debug!(pid, unseen_ns, "probes are set");
        if let Some(target) = self.targets.get_mut(&pid) {
            target.unseen_ns = Some(unseen_ns);
        }
    }

    fn not_traced(&mut self, candidate: &Candidate, error: &anyhow::Error) {
        let reason = match error.downcast_ref::<ProcessError>() {
            Some(ProcessError::Gone(_) | ProcessError::Zombie(_)) => {
                tracing::debug!(?candidate, "gone before it could be traced");
                self.standing.missed();
                return;
            }
            Some(ProcessError::KernelThread(_) | ProcessError::Thread { .. }) => return,
            Some(ProcessError::Foreign { .. }) => "they are not 64-bit x86-64 programs".to_owned(),
            Some(ProcessError::Permission { .. }) => "they may not be looked into".to_owned(),
            // Said once for all of them: without the id of the first.
            _ => format!("{error:#}").replace(&format!("process {}", candidate.pid), "it"),
        };
        tracing::debug!(pid = candidate.pid, error = format!("{error:#}"), "not traced");
        self.standing.turned_down(candidate.pid, &candidate.comm, reason);
    }

    /// A process that was asked for cannot be traced; nothing else comes of that.
    pub fn note_untraced(&mut self, pid: u32, error: &anyhow::Error) {
        // Said once for all of them: without the id of the first.
        let reason = format!("{error:#}")
            .replace(&format!("process {pid}: "), "")
            .replace(&format!("process {pid}"), "it");
        self.standing.turned_down(pid, &process::name(pid), reason);
    }

    /// Once all events are taken in: drops targets that had ended before they were traced, gives free places to
    /// processes that were turned away, and looks again at processes of containers whose names have come.
    pub(super) fn settle(&mut self) {
        for pid in std::mem::take(&mut self.standing.maybe_gone) {
            if let Some(target) = self.targets.remove(&pid) {
                tracing::debug!(pid, comm = target.process.comm, "gone before its probes were set");
                self.standing.missed();
                self.forget_image(&target);
                self.drop_target(target);
            }
        }
        for pid in std::mem::take(&mut self.standing.renamed) {
            if process::stat(pid).is_some_and(|stat| !stat.in_exec) {
                self.consider(pid, None);
            }
        }
        if self.standing.containers.take_answers() {
            for pid in std::mem::take(&mut self.standing.unnamed) {
                self.consider(pid, None);
            }
        }
        while self.targets.len() < self.standing.orders.max_targets
            && let Some((pid, _)) = self.standing.turned_away.pop_first()
        {
            self.consider(pid, None);
        }
    }

    /// Looks at everything again where the kernel had no room for its notices.
    pub(super) fn make_up_for_losses(&mut self) {
        if self.standing.tracepoints.is_none() {
            return;
        }
        let lost = self.maps.tally(NOBODY).of(Counter::EventsDropped);
        if lost > self.standing.lost {
            self.standing.lost = lost;
            self.sweep();
        }
    }

    /// Sentences about processes that were to be traced and are not, with the reasons.
    pub fn untraced(&self) -> Vec<String> {
        let sentence = |(reason, (count, names)): (&String, &(u64, Vec<String>))| {
            format!("{} not traced ({}): {reason}", are(*count), some_of(names, *count))
        };
        self.standing.untraceable.iter().map(sentence).collect()
    }

    /// Sentences about what the orders mean and what is not traced all the same.
    pub(super) fn standing_notes(&self) -> Vec<String> {
        let standing = &self.standing;
        let mut notes = Vec::new();
        // Some may have ended since they were turned away.
        let waiting =
            standing.turned_away.iter().filter(|(pid, _)| process::stat(**pid).is_some_and(|s| !s.has_ended));
        let names: Vec<String> = waiting.map(|(pid, comm)| format!("{pid} {comm}")).collect();
        let count = names.len() as u64 + standing.turned_away_unlisted;
        if count > 0 {
            notes.push(format!(
                "{} not traced, because there are {} targets already ({}): see --max-targets",
                are(count),
                standing.orders.max_targets,
                some_of(&names, count)
            ));
        }
        notes.extend(self.untraced());
        if standing.missed > 0 {
            notes.push(format!("{} ended before they could be traced", processes(standing.missed)));
        }
        if standing.lost > 0 {
            notes.push(format!(
                "{} of new processes were lost; all processes were looked at again",
                units::counted(standing.lost, "notice")
            ));
        }
        notes
    }
}

fn are(count: u64) -> String {
    format!("{} {}", processes(count), if count == 1 { "is" } else { "are" })
}

fn processes(count: u64) -> String {
    format!("{} process{}", units::count(count), if count == 1 { "" } else { "es" })
}

fn some_of(names: &[String], count: u64) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMES).map(String::as_str).collect();
    let more = count.saturating_sub(shown.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
