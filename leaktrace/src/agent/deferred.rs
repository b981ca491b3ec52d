//! Stacks that the kernel could not walk to their end, because a table was not there yet: their memory waits here,
//! with the process's code as it was when the stack was taken, until it can be walked.
use std::{collections::VecDeque, rc::Rc};

use super::{code::Mapped, tables::Code};
use crate::{drain::decode::CopyRecord, model::stacks::ImageKey, unwind::mappings::Regions};

/// Copies that wait at the most for each MiB of the ring that they come through; they have 20 KiB each.
const WAITING_PER_MIB: usize = 64;

/// A copy that waits.
pub(super) struct Waiting {
    /// The process image.
    pub(super) image: ImageKey,
    /// Registers and memory.
    pub(super) copy: CopyRecord,
    /// The process's code at the time.
    pub(super) mapped: Mapped,
}

/// The copies that wait.
pub(super) struct Deferred {
    waiting: VecDeque<Waiting>,
    max_waiting: usize,
    dropped: u64,
}

impl Deferred {
    /// None yet. `ring_mib` is the size of the ring that they come through.
    pub(super) fn new(ring_mib: u32) -> Deferred {
        Deferred { waiting: VecDeque::new(), max_waiting: WAITING_PER_MIB * ring_mib as usize, dropped: 0 }
    }

    /// Adds a copy. When there are too many, the oldest one's stack stays cut, which is counted.
    pub(super) fn push(&mut self, waiting: Waiting) {
        if self.waiting.len() >= self.max_waiting {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(waiting);
    }

    /// Takes out the copies that are `ready`, in the order in which they came.
    pub(super) fn take(&mut self, ready: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let (taken, rest) = std::mem::take(&mut self.waiting).into_iter().partition::<Vec<_>, _>(ready);
        self.waiting = rest.into();
        taken
    }

    /// The code that copies of an image, or of any, wait for the tables of.
    pub(super) fn code(&self, image: Option<ImageKey>) -> Vec<Rc<Regions<Code>>> {
        let of_image = |waiting: &&Waiting| image.is_none_or(|image| waiting.image == image);
        let mut code: Vec<Rc<Regions<Code>>> = Vec::new();
        for waiting in self.waiting.iter().filter(of_image) {
            if !code.iter().any(|known| Rc::ptr_eq(known, &waiting.mapped.regions)) {
                code.push(Rc::clone(&waiting.mapped.regions));
            }
        }
        code
    }

    /// Drops the copies of an image.
    pub(super) fn forget(&mut self, image: ImageKey) {
        self.waiting.retain(|waiting| waiting.image != image);
    }

    /// Copies that were dropped because too many waited.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaktrace_common::event::Header;

    fn waiting(hash: u64) -> Waiting {
        let header = Header { kind: 7, tgid: 1, tid: 1, generation: 0, time_ns: 0 };
        let copy = CopyRecord {
            header,
            hash,
            frame: 0,
            sp: 0,
            rbp: 0,
            rbx: 0,
            watch: (0, 0),
            frames: 0,
            memory: Vec::new(),
        };
        let image = ImageKey { tgid: 1, generation: (hash % 2) as u32 };
        Waiting { image, copy, mapped: Mapped::default() }
    }

    #[test]
    fn too_many_copies_push_out_the_oldest_and_that_is_counted() {
        let mut deferred = Deferred::new(1);
        (0..WAITING_PER_MIB as u64 + 3).for_each(|hash| deferred.push(waiting(hash)));
        assert_eq!(deferred.dropped(), 3);
        let all = deferred.take(|_| true);
        assert_eq!((all.len(), all[0].copy.hash), (WAITING_PER_MIB, 3));
    }

    #[test]
    fn what_is_not_ready_goes_on_waiting_and_goes_with_its_image() {
        let mut deferred = Deferred::new(1);
        (0..6).for_each(|hash| deferred.push(waiting(hash)));
        assert_eq!(deferred.take(|one| one.copy.hash < 2).len(), 2);
        deferred.forget(ImageKey { tgid: 1, generation: 0 });
        let rest: Vec<u64> = deferred.take(|_| true).iter().map(|one| one.copy.hash).collect();
        assert_eq!(rest, [3, 5]);
    }
}
