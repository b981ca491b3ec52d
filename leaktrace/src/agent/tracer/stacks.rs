//! Stacks as they come, and those that were copied because a table was missing.
use std::rc::Rc;

use leaktrace_common::unwind::{FRAME_ADDRESS, Stop};

use super::{PATIENCE, Tracer, clock};
use crate::{
    agent::{deferred::Waiting, naming::Arrived},
    drain::decode::{CopyRecord, StackRecord},
    model::stacks::ImageKey,
};

/// Stacks kept of images that are not known yet.
const MAX_EARLY_STACKS: usize = 10_000;
/// Copies of stacks kept of them, of 20 KiB each.
const MAX_EARLY_COPIES: usize = 256;
/// A frame that lies in no known code is a reason to look again, but not more often than this.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;

impl Tracer {
    /// Walks the copied stacks whose tables have come.
    pub(super) fn finish_copies(&mut self) {
        let tables = &self.tables;
        for waiting in self.deferred.take(|waiting| tables.are_built(&waiting.mapped.regions)) {
            self.finish_copy(&waiting);
        }
    }

    /// Walks the copied stacks of an image, or all, waiting for their tables.
    pub(super) fn finish_all_copies(&mut self, image: Option<ImageKey>) {
        for regions in self.deferred.code(image) {
            self.tables.wait_built(&regions, PATIENCE);
        }
        for waiting in self.deferred.take(|waiting| image.is_none_or(|image| waiting.image == image)) {
            self.finish_copy(&waiting);
        }
    }

    pub(super) fn finish_copy(&mut self, waiting: &Waiting) {
        let Waiting { image, copy, mapped } = waiting;
        let mut stack = self.tables.finish(&mapped.regions, copy);
        let current = self.targets.get(&image.tgid).filter(|target| target.image == *image);
        let mut space = Rc::clone(&mapped.space);
        if stack.stop == Stop::NoMapping
            && let Some(target) = current
        {
            // Code that was found by looking again.
            stack = self.tables.finish(&target.code.now().regions, copy);
            space = Rc::clone(&target.code.now().space);
        }
        let limit = self.options.stack_depth as usize;
        if stack.frames.len() > limit {
            stack.frames.truncate(limit);
            stack.stop = Stop::Depth;
        }
        // A stack that is longer than its copy was cut elsewhere before.
        if stack.frames.len() < copy.frames
            || stack.stop == Stop::NoMapping && stack.frames.len() == copy.frames
        {
            return;
        }
        let arrived = Arrived {
            image: *image,
            hash: copy.hash,
            frames: &stack.frames,
            end: stack.stop.name(),
            space: &space,
            is_completion: true,
        };
        self.naming.add(&arrived, &mut self.stacks, &mut self.symbolizer);
    }

    pub(super) fn copy_seen(&mut self, record: &CopyRecord) {
        let pid = record.header.tgid;
        let image = ImageKey { tgid: pid, generation: record.header.generation };
        match self.targets.get(&pid) {
            Some(target) if target.image == image => {
                let mapped = target.code.at(record.header.time_ns).clone();
                self.deferred.push(Waiting { image, copy: record.clone(), mapped });
            }
            Some(target) if target.image.generation > image.generation => {}
            _ if self.early_copies.len() < MAX_EARLY_COPIES => self.early_copies.push(record.clone()),
            _ => {}
        }
    }

    pub(super) fn stack_seen(&mut self, record: &StackRecord) {
        let pid = record.header.tgid;
        let image = ImageKey { tgid: pid, generation: record.header.generation };
        let is_early = self.targets.get(&pid).is_none_or(|target| target.image.generation < image.generation);
        if is_early {
            if self.early_stacks.len() < MAX_EARLY_STACKS {
                self.early_stacks.push(record.clone());
            }
            return;
        }
        let unknown = self.targets.get(&pid).is_some_and(|target| {
            let mapped = target.code.at(record.header.time_ns);
            target.image == image
                && record.frames.iter().any(|frame| !mapped.space.contains(frame & FRAME_ADDRESS))
                && (self.sideband.is_none()
                    || clock::boot_ns().saturating_sub(target.code.looked_ns()) > LOOK_AGAIN_NS)
        });
        if unknown && let Some(mut target) = self.targets.remove(&pid) {
            self.look(&mut target);
            self.targets.insert(pid, target);
        }
        let Some(target) = self.targets.get(&pid) else { return };
        let arrived = Arrived {
            image,
            hash: record.hash,
            frames: &record.frames,
            end: record.stop.name(),
            space: &target.code.at(record.header.time_ns).space,
            is_completion: false,
        };
        self.naming.add(&arrived, &mut self.stacks, &mut self.symbolizer);
    }

    /// Whether names are worth finding now: then there is work without news from the kernel.
    pub fn has_work(&self) -> bool {
        self.naming.has_work(&self.symbolizer)
    }
}
