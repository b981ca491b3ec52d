//! How a process becomes a target: what is looked up of it, which settings the kernel gets, where probes are set.
use std::{collections::HashMap, ffi::CString, os::unix::ffi::OsStrExt as _, rc::Rc};

use anyhow::{Result, bail};
use leaktrace_common::{
    event::Life,
    hook::slot_of_table,
    target::{NO_SLOT, Target, flags},
};

use super::{PATIENCE, Tracer, clock};
use crate::{
    agent::{
        attachment::{self, Attachment},
        code::{self, CodeOverTime},
        options::UnwindMode,
        stillness::Stillness,
        target::{Attached, Care, KeptBlocks, Recording, Tracked},
    },
    attach::{live_text::LiveText, object::SPARE_TABLES, plan::EmulatedClasses},
    discover::{
        hazard, maps as process_maps, moved,
        process::{self, Process, Seccomp},
    },
    drain::maps::Tally,
    model::{history::History, mappings::Mappings, sites::Corrections, stacks::ImageKey},
    symbolize::AddressSpace,
};

impl Tracer {
    /// Starts tracing a process. `fresh` says that it has not run yet, so that no heap is older than tracing.
    ///
    /// # Errors
    /// When the process cannot be traced: gone, kernel thread, other architecture, no permission, too many.
    pub fn add(&mut self, pid: u32, parent: Option<u32>, fresh: bool) -> Result<()> {
        if self.targets.contains_key(&pid) {
            return Ok(());
        }
        let process = process::inspect(pid)?;
        if let Some(reason) = self.refusal(&process) {
            bail!("{reason}");
        }
        let table = self.maps.prepare(&self.kernel, pid)?;
        let image = ImageKey { tgid: pid, generation: 0 };
        let mut tracked = self.track(process, image, table, parent);
        tracked.heap_before_bytes = if fresh { Some(0) } else { process::heap_bytes(pid) };
        self.look(&mut tracked);
        if parent.is_none() && !self.options.holds_children {
            // It runs and is not held: with the tables there before the probes, its first stacks are whole.
            self.wait_for_tables(&mut tracked);
        }
        let settings = self.settings(&tracked);
        let result = self.maps.set_target(pid, &settings);
        if let Err(error) = result {
            self.tables.close(tracked.tables);
            drop(self.maps.forget(pid));
            return Err(error);
        }
        self.probe(&mut tracked);
        if let Some(reason) = tracked.refused {
            self.tables.close(tracked.tables);
            drop(self.maps.forget(pid));
            bail!("{reason}");
        }
        // What was mapped between the first look and the probes is seen by a second one.
        self.look(&mut tracked);
        self.targets.insert(pid, tracked);
        self.keep_spares();
        Ok(())
    }

    /// Takes over a process that the kernel made a target when a traced process made it.
    pub(super) fn adopt(&mut self, pid: u32, parent: u32, settings: Target) {
        self.maps.adopt(pid, &settings);
        self.keep_spares();
        self.keep_bigger();
        let facts = process::inspect(pid).ok();
        let Some(origin) = self.targets.get(&parent) else { return };
        // It has its parent's memory, with what was allocated there before it was made.
        let heap_before_bytes =
            process::heap_bytes(pid).or(origin.heap_before_bytes.filter(|bytes| *bytes > 0));
        // A child that is gone already is known by what its parent was.
        let process = facts.unwrap_or_else(|| {
            let mut process = origin.process.clone();
            process.identity.pid = pid;
            process
        });
        let image = ImageKey { tgid: pid, generation: settings.generation };
        let mut tracked = self.track(process, image, settings.table, Some(parent));
        tracked.heap_before_bytes = heap_before_bytes;
        self.look(&mut tracked);
        self.probe(&mut tracked);
        self.own_slot(&tracked);
        self.targets.insert(pid, tracked);
    }

    /// A process that a traced one has made, and that nothing held, has run for a moment without probes.
    pub(super) fn note_late_start(&mut self, pid: u32, life: &Life) {
        let holds_children = self.options.holds_children;
        if let Some(target) = self.targets.get_mut(&pid).filter(|_| !holds_children) {
            note_unseen(target, life.header.time_ns, "it was made while its parent was traced");
        }
    }

    /// A traced process has executed a program at `executed_ns`, which had no probes for a moment.
    fn note_late_probes(&self, target: &mut Tracked, executed_ns: u64) {
        if !self.options.holds_children {
            note_unseen(target, executed_ns, "it executed this program while it was traced");
        }
    }

    /// Lets the kernel walk the process's stacks by its own mappings from now on.
    pub(super) fn own_slot(&self, tracked: &Tracked) {
        let Some(mut settings) = self.maps.target(tracked.pid()) else { return };
        settings.slot = tracked.tables.slot().unwrap_or(NO_SLOT);
        settings.flags &= !flags::SHARED_SLOT;
        // A child may have been made while its parent was paused, or was sampled more widely.
        if tracked.care.recording == Recording::On {
            settings.flags |= flags::ALLOCATIONS;
        }
        settings.sample_interval_bytes = tracked.sample_interval_bytes;
        if let Err(error) = self.maps.set_target(tracked.pid(), &settings) {
            tracing::warn!(pid = tracked.pid(), error = format!("{error:#}"), "changing a target");
        }
    }

    pub(super) fn keep_spares(&mut self) {
        if self.options.follow
            && let Err(error) = self.maps.keep_spares(&self.kernel, SPARE_TABLES as usize)
        {
            tracing::debug!(error = format!("{error:#}"), "no table can be kept for children");
        }
    }

    /// Keeps bigger tables ready for processes whose first ones will not do. Where that fails, what finds no room is
    /// counted.
    pub(super) fn keep_bigger(&mut self) {
        if let Err(error) = self.maps.keep_bigger(&self.kernel) {
            tracing::debug!(error = format!("{error:#}"), "no bigger table can be kept ready");
        }
    }

    /// Why the process must not be probed.
    fn refusal(&self, process: &Process) -> Option<String> {
        let filtered = || self.refusal_of_filtered(process).map(str::to_owned);
        let hazard = || hazard::of(process.identity.pid).map(|hazard| hazard.to_string());
        if self.options.growth_only { None } else { filtered().or_else(hazard) }
    }

    fn refusal_of_filtered(&self, process: &Process) -> Option<&str> {
        self.refuse_filtered.as_deref().filter(|_| process.seccomp != Seccomp::Disabled)
    }

    /// Ends being targets of processes that must not have probes.
    pub(super) fn drop_refused(&mut self) {
        let refused = self.targets.iter().filter(|(_, target)| target.refused.is_some());
        for pid in refused.map(|(pid, _)| *pid).collect::<Vec<_>>() {
            self.drain_stacks();
            let Some(mut target) = self.targets.remove(&pid) else { continue };
            self.finish_all_copies(Some(target.image));
            let view = self.view_of(&mut target);
            // Of a program that was just executed there is nothing to show.
            if view.totals.allocated_count > 0 {
                self.finish(view);
            }
            let reason = target.refused.clone().unwrap_or_default();
            tracing::debug!(pid, comm = target.process.comm, reason, "not traced any more");
            self.standing.turned_down(pid, &target.process.comm, reason);
            self.forget_image(&target);
            self.drop_target(target);
        }
    }

    pub(super) fn track(
        &mut self,
        process: Process,
        image: ImageKey,
        table: u32,
        parent: Option<u32>,
    ) -> Tracked {
        let (_, container) = self.standing.containers.of_process(image.tgid);
        // A child that is gone already was where its parent is.
        let of_parent = || parent.and_then(|parent| self.targets.get(&parent)?.container.clone());
        let container = container.or_else(of_parent);
        let range = self.options.min_size_bytes..=self.options.max_size_bytes;
        let mappings = if self.options.growth_only {
            Mappings::new(process_maps::program_break(process.identity.pid)).listing_break()
        } else {
            Mappings::new(None)
        };
        Tracked {
            table,
            image,
            since_boot_ns: clock::boot_ns(),
            since: clock::wall_ns(),
            parent,
            container,
            executed_ns: None,
            unseen_ns: None,
            oom: None,
            attached: HashMap::new(),
            carried: HashMap::new(),
            tables: self.tables.open(),
            code: CodeOverTime::default(),
            mappings: mappings.listing(range),
            stillness: Stillness::default(),
            blocks: KeptBlocks::default(),
            corrections: Corrections::default(),
            history: History::default(),
            sample_interval_bytes: self.options.sample_interval_bytes,
            heap_before_bytes: None,
            tally_before: Tally::ZERO,
            notes: Vec::new(),
            refused: None,
            was_probed: false,
            last_word: None,
            harm: None,
            doubts: Vec::new(),
            exited: None,
            seems_gone: false,
            is_stale: false,
            has_new_files: false,
            care: Care::new(&self.options),
            process,
        }
    }

    pub(super) fn settings(&self, tracked: &Tracked) -> Target {
        let options = &self.options;
        let mut bits = flags::MAPPINGS;
        if tracked.care.recording == Recording::On {
            bits |= flags::ALLOCATIONS;
        }
        if options.follow {
            bits |= flags::FOLLOW;
        }
        if options.trace_calls {
            bits |= flags::TRACE_CALLS;
        }
        if options.unwind == UnwindMode::FramePointers {
            bits |= flags::FRAME_POINTERS;
        }
        if options.unwind == UnwindMode::Tables {
            bits |= flags::NO_GUESSES;
        }
        if options.verify_unwind {
            bits |= flags::VERIFY_REUSE;
        }
        Target {
            owner: tracked.image.tgid,
            generation: tracked.image.generation,
            flags: bits,
            slot: tracked.tables.slot().unwrap_or(NO_SLOT),
            min_size_bytes: options.min_size_bytes,
            max_size_bytes: options.max_size_bytes,
            sample_interval_bytes: tracked.sample_interval_bytes,
            stack_depth: options.stack_depth,
            table: tracked.table,
            bigger: 0,
        }
    }

    /// Reads the process's mappings: unwind tables and what its addresses mean.
    pub(super) fn look(&mut self, tracked: &mut Tracked) {
        let pid = tracked.pid();
        let covered = self.tables.changes(&tracked.tables);
        let began_ns = clock::boot_ns();
        // One that is ending has none any more; what it had is what its last stacks are understood by.
        let Some(entries) = process_maps::read(pid).ok().filter(|entries| !entries.is_empty()) else {
            return;
        };
        let entries = moved::restored(pid, entries);
        let ended_ns = clock::boot_ns();
        let regions = self.tables.regions(pid, &tracked.tables, &entries);
        let space = AddressSpace::capture(pid, &entries, Some(&tracked.code.now().space), &mut self.modules);
        let mapped = code::Mapped { regions: Rc::new(regions), space: Rc::new(space) };
        tracked.tables.mark_changed();
        self.tables.publish(pid, &mut tracked.tables, &mapped.regions, covered);
        tracked.code.look(began_ns, ended_ns, mapped);
        tracked.is_stale = false;
    }

    /// Waits until the tables of a process are there, or for too long.
    pub(super) fn wait_for_tables(&mut self, tracked: &mut Tracked) {
        let regions = Rc::clone(&tracked.code.now().regions);
        if !self.tables.wait_built(&regions, PATIENCE) {
            tracked
                .notes
                .push("its unwind tables take long to build: its first stacks may be cut".to_owned());
        }
        self.look(tracked);
    }

    /// Attaches to allocators that are not probed yet, and detaches from files that are not mapped any more.
    pub(super) fn probe(&mut self, tracked: &mut Tracked) {
        let pid = tracked.pid();
        tracked.has_new_files = false;
        if tracked.care.recording != Recording::On {
            return;
        }
        if self.refuse_filtered.is_some() && self.refuse_newly_filtered(tracked) {
            return;
        }
        let found = match self.discovery.find(pid) {
            Ok(found) => found,
            Err(process::ProcessError::Gone(_)) => return,
            Err(error) => {
                tracked.doubt(error.to_string());
                return;
            }
        };
        if let Some(hazard) = found.hazard {
            // At once: what the probes are on may be mapped by a new program, to be read as data.
            tracked.attached.clear();
            tracked.carried.clear();
            tracked.refused = Some(hazard.to_string());
            return;
        }
        if found.allocators.is_empty() && process::stat(pid).is_none_or(|stat| stat.has_ended) {
            // What it was probed in stays known.
            return;
        }
        let options = &self.options;
        let emulated = if options.probe_offset_zero { EmulatedClasses::NONE } else { options.emulated };
        let text = LiveText::open(pid).ok();
        let plan = attachment::plan(&found, &mut self.functions, emulated, &self.costs, text.as_ref());
        tracked.attached.retain(|identity, _| plan.iter().any(|part| part.file.identity() == *identity));
        let mut is_new = false;
        for mut part in plan {
            let identity = part.file.identity();
            if tracked.attached.contains_key(&identity) {
                continue;
            }
            if let Some(attached) = tracked.carried.remove(&identity) {
                tracked.was_probed = true;
                tracked.attached.insert(identity, attached);
                continue;
            }
            part.probes.iter_mut().for_each(|probe| probe.hook.process = slot_of_table(tracked.table));
            let attached = self.attach(pid, part);
            tracked.was_probed = true;
            is_new = true;
            // Of a process that has ended meanwhile there is nothing to say.
            let has_failed = attached.allocators.iter().any(|view| !view.failed.is_empty());
            if has_failed && process::stat(pid).is_some_and(|stat| !stat.has_ended) {
                for (function, reason) in attached.allocators.iter().flat_map(|view| &view.failed) {
                    tracing::warn!(pid, function, reason, "a function is not probed");
                }
            }
            tracked.attached.insert(identity, attached);
        }
        // Calls into files that have probes already were seen from the program's beginning.
        if !tracked.attached.is_empty()
            && let Some(executed_ns) = tracked.executed_ns.take()
            && is_new
        {
            self.note_late_probes(tracked, executed_ns);
        }
        for (path, reason) in &found.unreadable {
            tracked.doubt(format!("{path} cannot be looked into: {reason}"));
        }
    }

    /// Takes the probes out of a process that has come under a seccomp filter since it was added.
    pub(super) fn refuse_newly_filtered(&self, tracked: &mut Tracked) -> bool {
        let Ok(process) = process::inspect(tracked.pid()) else { return false };
        let Some(reason) = self.refusal_of_filtered(&process) else { return false };
        tracked.attached.clear();
        tracked.carried.clear();
        tracked.doubt(reason.to_owned());
        true
    }

    pub(super) fn attach(&self, pid: u32, part: Attachment) -> Attached {
        let path = part.file.attach_path();
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return Attached::default();
        };
        let (links, failures) =
            self.programs.attach(&self.kernel, &path, process::shown_as(pid), &part.probes);
        let (code, places) = (part.code.clone(), part.places());
        Attached { links, allocators: part.views(&failures), places, code }
    }

    /// Looks again at what a process maps, and probes what is new.
    pub fn refresh(&mut self, pid: u32) {
        let Some(mut tracked) = self.targets.remove(&pid) else { return };
        self.look(&mut tracked);
        self.probe(&mut tracked);
        self.targets.insert(pid, tracked);
    }
}

/// Says for how long since `began_ns` a process has run without probes.
fn note_unseen(target: &mut Tracked, began_ns: u64, why: &str) {
    let unseen_ns = clock::boot_ns().saturating_sub(began_ns);
    target.unseen_ns = Some(unseen_ns);
    target.notes.push(format!(
        "what it allocated in its first {:.1} ms was not seen: {why} (`leaktrace run` holds new processes until they are \
         traced)",
        unseen_ns as f64 / 1e6
    ));
}
