//! Snapshots: what all targets hold, read at one time, and what is said of tracing itself.
use std::time::Duration;

use leaktrace_common::{counter::Counter, heap::SiteTotals};

use super::{BATCH, Tracer, clock, govern, host_name};
use crate::{
    agent::{
        interrupts,
        target::{Recording, Tracked},
        view,
    },
    attach::tracepoints::Tracepoints,
    drain::{maps::Tally, sideband::Sideband},
    model::snapshot::{Mode, Snapshot, TargetView, WallNs},
    symbolize::{DebuginfodOptions, Patience},
};

/// How long a summary waits for names that are not there yet.
const NAME_PATIENCE: Duration = Duration::from_secs(3);
/// How long the last one does.
const LAST_NAME_PATIENCE: Duration = Duration::from_secs(20);

/// The last summary of a host on which nothing can be traced.
pub fn nothing() -> Snapshot {
    let now = clock::wall_ns();
    Snapshot { time: now, since: now, host: host_name(), last: true, ..Snapshot::default() }
}

impl Tracer {
    /// Stops recording, so that a last snapshot stands still.
    pub fn stop(&mut self) {
        for (pid, target) in &mut self.targets {
            self.maps.stop(*pid);
            target.carried.clear();
            target.attached.values_mut().for_each(|attached| attached.links = Default::default());
        }
        self.finish_detaching();
        self.drain();
    }

    /// Everything that is known now; processes that ended since the last snapshot are in it and then gone.
    pub fn snapshot(&mut self, last: bool) -> Snapshot {
        self.naming.be_patient(self.patience(last));
        self.drain();
        self.make_up_for_losses();
        self.bury();
        let mut sums = self.read_sums(last);
        while self.drain_batch() == BATCH {}
        self.finish_copies();
        if last {
            self.finish_all_copies(None);
        }
        let mut views = std::mem::take(&mut self.finished);
        let mut tally = self.tally_of_gone;
        let mut targets = std::mem::take(&mut self.targets);
        for (pid, target) in &mut targets {
            // One that was made a target only now was not counted.
            let of_target = sums.tallies.remove(pid).unwrap_or_else(|| self.maps.tally(*pid));
            let heap = sums.heap_of(target.image);
            views.push(self.view_with(target, heap, &of_target));
            tally.merge(&of_target);
        }
        if last {
            tracing::debug!(
                stacks = tally.of(Counter::Stacks),
                frames = tally.of(Counter::Frames),
                reused = tally.of(Counter::StacksReused),
                mismatches = tally.of(Counter::ReuseMismatches),
                complete = tally.of(Counter::StopComplete),
                cut_at_limit = tally.of(Counter::StopDepth),
                named = self.naming.named(),
                "stacks were taken"
            );
        }
        self.symbolizer.release();
        let notes = self.current_notes(targets.values());
        self.targets = targets;
        let mut losses = view::tally_losses(&tally, &Tally::ZERO);
        for (cause, amount) in views.iter().flat_map(|view| &view.losses) {
            if matches!(cause.as_str(), "mappings_dropped") {
                *losses.entry(cause.clone()).or_default() += amount;
            }
        }
        let corrected: u64 = self.targets.values().map(|target| target.corrections.count()).sum();
        if corrected > 0 {
            *losses.entry("missed_frees".to_owned()).or_default() += corrected;
        }
        let lost = self.sideband.as_ref().map_or(0, Sideband::lost);
        let of_tracing = [
            ("mapping_records_lost", lost),
            ("mapping_calls_missed", self.tracepoints.iter().map(Tracepoints::missed).sum()),
            ("copies_dropped", self.deferred.dropped()),
            ("processes_not_traced", if self.options.holds_children { self.refused() } else { 0 }),
            ("children_not_traced", self.untraced_children),
            ("ended_processes_not_listed", self.finished_unjudged),
        ];
        for (cause, amount) in of_tracing {
            if amount > 0 {
                *losses.entry(cause.to_owned()).or_default() += amount;
            }
        }
        if self.tables.refused() > 0 {
            losses.insert("unwind_tables_full".to_owned(), self.tables.refused());
        }
        Snapshot {
            time: self.next_time(),
            since: self.since,
            host: self.host.clone(),
            mode: match self.options.sample_interval_bytes {
                _ if self.options.growth_only => Mode::Growth,
                0 => Mode::Exact,
                interval_bytes => Mode::Sampled { interval_bytes },
            },
            last,
            targets: views,
            losses,
            notes,
            events: std::mem::take(&mut self.decisions),
            watched: None,
            verdict: None,
        }
    }

    /// The time of a summary: another one than that of the summary before.
    fn next_time(&mut self) -> WallNs {
        let now = clock::wall_ns();
        self.last_time = if now == self.last_time { now.saturating_add(1) } else { now };
        self.last_time
    }

    /// How long a summary waits for names: tracing stands still meanwhile, unless it has come to its end.
    fn patience(&self, last: bool) -> Patience {
        let servers = &self.options.debuginfod_urls;
        let time = match last {
            false => NAME_PATIENCE,
            true if servers.is_empty() => LAST_NAME_PATIENCE,
            true => LAST_NAME_PATIENCE.max(DebuginfodOptions::default().total_patience),
        };
        interrupts::mark();
        Patience { is_over: interrupts::since_mark, is_told: last, ..Patience::of(time) }
    }

    pub(super) fn current_notes<'a>(&self, targets: impl Iterator<Item = &'a Tracked>) -> Vec<String> {
        let mut notes = self.notes.clone();
        for target in targets {
            let pid = target.pid();
            notes.extend(target.notes.iter().map(|note| format!("process {pid}: {note}")));
            notes.extend(govern::note(target));
            let records = target.care.recording != Recording::Off;
            if records && target.attached.values().all(|attached| attached.allocators.is_empty()) {
                notes.push(format!(
                    "process {pid} ({}): no allocator was found; see `leaktrace doctor -p {pid}`, --object and --function",
                    target.process.comm
                ));
            }
        }
        notes.extend(self.why_untraced.iter().map(|why| {
            let count = self.untraced_children;
            format!("children that are not traced: {count}, the first because of this: {why}")
        }));
        notes.extend(self.symbolizer.messages());
        notes.extend(self.standing_notes());
        if self.finished_unlisted > 0 {
            notes.push(format!("{} more processes ended and are not listed", self.finished_unlisted));
        }
        notes
    }

    /// The view of one that has ended: what it has no names for by then is without names for ever.
    pub(super) fn view_of(&mut self, target: &mut Tracked) -> TargetView {
        self.naming.be_patient(self.patience(self.targets.is_empty()));
        let tally = self.maps.tally(target.pid());
        let heap = view::heap_of(target.image, &self.maps).unwrap_or_default();
        self.view_with(target, Some(heap), &tally)
    }

    pub(super) fn view_with(
        &mut self,
        target: &mut Tracked,
        heap: Option<Vec<(u64, SiteTotals)>>,
        tally: &Tally,
    ) -> TargetView {
        target.container = target.container.as_ref().map(|known| self.standing.containers.latest(known));
        let sources = view::Sources {
            maps: &self.maps,
            stacks: &self.stacks,
            functions: &self.functions,
            selection: &self.selection,
            has_size_filter: self.options.min_size_bytes > 0 || self.options.max_size_bytes < u64::MAX,
        };
        let mut names = view::Names { naming: &mut self.naming, symbolizer: &mut self.symbolizer };
        view::target_view(target, heap, tally, &sources, &mut names)
    }
}
