//! What the kernel sends, in the order of its times: the one loop over all rings.
use std::collections::HashSet;

use aya::maps::{MapData, RingBuf};
use leaktrace_common::event::{Call, Change, MappingChange};

use super::{BATCH, Recording, Tracer, clock};
use crate::{
    drain::{
        decode::{self, Event},
        sideband::Mapped,
    },
    model::{snapshot::CallView, stacks::ImageKey},
};

/// Stacks that are named between two looks at the rings.
const NAMED_AT_A_TIME: usize = 16;
/// How long it is remembered what a process had mapped: until the stacks of that time have been read.
const CODE_NS: u64 = 10_000_000_000;

impl Tracer {
    /// A traced process has mapped code.
    pub(super) fn mapped(&mut self, mapped: &Mapped) {
        let Some(target) = self.targets.get_mut(&mapped.tgid) else { return };
        let Mapped { tgid, time_ns, entry } = mapped;
        if entry.inode == 0 && target.code.now().space.is_file(entry.start) {
            // Code in the place of a file's text: the same code, mostly, which all mappings together tell.
            target.is_stale = true;
            return;
        }
        let region = self.tables.region(*tgid, &target.tables, entry);
        if target.code.map(*time_ns, entry, region.as_ref(), &mut self.modules) {
            target.tables.mark_changed();
            target.is_stale |= target.code.now().regions.refused() > 0;
            target.has_new_files |= entry.is_file();
        }
    }

    /// Lets the kernel see what processes have mapped, and the tables that were built.
    pub(super) fn publish(&mut self) {
        let forgotten_ns = clock::boot_ns().saturating_sub(CODE_NS);
        let has_built = self.tables.take_built();
        for (pid, target) in &mut self.targets {
            target.code.forget_before(forgotten_ns);
            if target.since_boot_ns < forgotten_ns {
                target.carried.clear();
            }
            let regions = &target.code.now().regions;
            if has_built {
                self.tables.touch(&mut target.tables, regions);
            }
            // A target that came with this batch was published when it was looked at.
            if let Some(covered) = self.covered.get(pid) {
                self.tables.publish(*pid, &mut target.tables, regions, *covered);
            }
        }
    }

    /// Takes in everything that the kernel has sent. Call it whenever a ring is readable.
    pub fn drain(&mut self) {
        while self.drain_batch() == BATCH {}
        self.keep_bigger();
        self.look_again();
        self.finish_copies();
        self.naming.name_some(NAMED_AT_A_TIME, &mut self.stacks, &mut self.symbolizer);
        self.drain_calls();
        self.drop_refused();
        self.settle();
    }

    pub(super) fn drain_calls(&mut self) {
        while let Some(Event::Call(call)) = next(&mut self.call_records) {
            let image = ImageKey { tgid: call.header.tgid, generation: call.header.generation };
            if !self.stacks.contains(image, call.stack) {
                self.drain_stacks();
            }
            self.naming.name(image, call.stack, &self.stacks, &mut self.symbolizer);
            let view = self.call_view(image, &call);
            self.calls.push(view);
        }
    }

    /// Takes in a batch of records in the order of their times: a stack is understood by the code that was mapped when
    /// it was taken. The rings are read in the order in which one record can depend on another. Returns how many
    /// records there were in the fullest ring.
    pub(super) fn drain_batch(&mut self) -> usize {
        let changes = self.targets.iter().map(|(pid, target)| (*pid, self.tables.changes(&target.tables)));
        self.covered = changes.collect();
        let mut batch: Vec<(u64, News)> = Vec::new();
        let mut most = 0;
        for ring in [&mut self.events, &mut self.stack_records, &mut self.copy_records] {
            let before = batch.len();
            while batch.len() - before < BATCH
                && let Some(event) = next(ring)
            {
                batch.push((event.time_ns(), News::Event(event)));
            }
            most = most.max(batch.len() - before);
        }
        if let Some(sideband) = &mut self.sideband {
            let made: HashSet<u32> = batch.iter().filter_map(|(_, news)| news.child()).collect();
            let targets = &self.targets;
            let (mapped, lost) = sideband.drain(|pid| targets.contains_key(&pid) || made.contains(&pid));
            batch.extend(mapped.into_iter().map(|mapped| (mapped.time_ns, News::Mapped(mapped))));
            if lost {
                self.targets.values_mut().for_each(|target| target.is_stale = true);
            }
        }
        batch.sort_by_key(|(time_ns, _)| *time_ns);
        for (_, news) in batch {
            match news {
                News::Event(event) => self.take_event(&event),
                News::Mapped(mapped) => self.mapped(&mapped),
            }
        }
        self.publish();
        most
    }

    pub(super) fn take_event(&mut self, event: &Event) {
        match event {
            Event::Fork(life) => self.forked(life),
            Event::Exec(life) => self.execed(life),
            Event::Exit(life) => self.ended(life),
            Event::Mapping(change) => self.mapping_changed(change),
            Event::Stack(record) => self.stack_seen(record),
            Event::Copy(record) => self.copy_seen(record),
            Event::Appeared(life) => self.appeared(life),
            Event::OutOfMemory(life) => self.out_of_memory(life),
            Event::Signal(signal) => self.signalled(signal),
            Event::Grown(_) => self.keep_bigger(),
            Event::Call(_) => {}
        }
    }

    /// Takes in the stacks that came since the batch under way was read.
    pub(super) fn drain_stacks(&mut self) {
        while let Some(event) = next(&mut self.stack_records) {
            self.take_event(&event);
        }
        while let Some(event) = next(&mut self.copy_records) {
            self.take_event(&event);
        }
    }

    /// Looks again at processes of which something was missed, and probes what is new in others.
    pub(super) fn look_again(&mut self) {
        let changed = self.targets.iter().filter(|(_, target)| target.is_stale || target.has_new_files);
        let changed: Vec<(u32, bool)> = changed.map(|(pid, target)| (*pid, target.is_stale)).collect();
        for (pid, is_stale) in changed {
            if is_stale {
                self.refresh(pid);
            } else if let Some(mut tracked) = self.targets.remove(&pid) {
                self.probe(&mut tracked);
                self.targets.insert(pid, tracked);
            }
        }
    }

    pub(super) fn mapping_changed(&mut self, change: &MappingChange) {
        if change.stack != 0 && (self.options.sample_interval_bytes > 0 || self.options.governor.is_some()) {
            // Its stack was sent before it.
            self.drain_stacks();
        }
        let Some(target) = self.targets.get_mut(&change.header.tgid) else { return };
        if target.image.generation != change.header.generation {
            return;
        }
        let maps_code =
            change.change == Change::Map as u32 && change.protection & libc::PROT_EXEC.cast_unsigned() != 0;
        // With the side band, only what it did not tell of: a CPU that came online later has no ring.
        let is_known = self.sideband.is_some() && target.code.now().regions.at(change.address).is_some();
        target.is_stale |= maps_code && !is_known;
        let mut change = *change;
        let is_seen = target.care.recording == Recording::On && target.sample_interval_bytes == 0;
        if change.stack != 0 && !is_seen {
            // The kernel knows only of allocation calls that are recorded; the stack tells of the others.
            let frames = self.stacks.frames(target.image, change.stack);
            change.in_allocator |= u32::from(target.is_in_allocator(&frames));
        }
        target.mappings.apply(&change);
    }

    pub(super) fn call_view(&self, image: ImageKey, call: &Call) -> CallView {
        let target = self.targets.get(&call.header.tgid);
        let is_free = call.free != 0;
        CallView {
            time: clock::wall_of_boot(call.header.time_ns),
            pid: call.header.tgid,
            tid: call.header.tid,
            comm: target.map_or_else(String::new, |target| target.process.comm.clone()),
            function: self.functions.name(u16::try_from(call.function).unwrap_or(u16::MAX)).to_owned(),
            free: is_free,
            address: call.address,
            size_bytes: Some(call.size_bytes),
            old_address: (call.old_address != 0).then_some(call.old_address),
            frames: self.stacks.frames(image, call.stack),
        }
    }

    /// Calls recorded since the last time, in order.
    pub fn take_calls(&mut self) -> Vec<CallView> {
        std::mem::take(&mut self.calls)
    }
}

/// What a batch of records is made of.
enum News {
    Event(Event),
    Mapped(Mapped),
}

impl News {
    /// The process that this made.
    fn child(&self) -> Option<u32> {
        match self {
            News::Event(Event::Fork(life)) => Some(life.child),
            News::Event(Event::Exec(life)) => Some(life.header.tgid),
            _ => None,
        }
    }
}

/// The next record of a ring that can be understood.
fn next(ring: &mut RingBuf<MapData>) -> Option<Event> {
    loop {
        let item = ring.next()?;
        match decode::event(&item) {
            Some(event) => return Some(event),
            None => tracing::error!(bytes = item.len(), "a malformed record from the kernel side"),
        }
    }
}
