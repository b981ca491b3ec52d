//! The settings of traced processes where the kernel programs look for them. Written word by word, because programs read
//! them meanwhile, and the exec tracepoint writes the generation.
use std::{mem::offset_of, os::fd::BorrowedFd, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use leaktrace_common::{
    bytes_of,
    hook::slot_of_table,
    read,
    target::{Bigger, Target, flags},
};

use crate::attach::shared::SharedArray;

const WORDS: usize = size_of::<Target>() / 4;

/// The map TARGETS.
pub struct Targets(SharedArray);

impl Targets {
    /// Those of a map with room for `slots`.
    ///
    /// # Errors
    /// The system call's error.
    pub fn map(map: BorrowedFd<'_>, slots: u32) -> Result<Targets> {
        let array = SharedArray::map(map, slots as usize * size_of::<Target>());
        array.map(Targets).context("mapping the kernel map TARGETS")
    }

    /// The entry of the process whose table of live blocks has the key `table`; `None` when it is not traced.
    pub fn of(&self, table: u32) -> Option<Target> {
        let mut words = [0; WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.0.word(place(table) + 4 * index)?.load(Ordering::Acquire);
        }
        let target: Target = read(words.map(u32::to_ne_bytes).as_flattened())?;
        (target.table == table && target.flags & flags::TRACED != 0).then_some(target)
    }

    /// The bigger tables of live blocks that the process with this one has been given, traced or not.
    pub fn bigger(&self, table: u32) -> Bigger {
        let word = self.0.word64(place(table) + offset_of!(Target, bigger));
        Bigger::from_word(word.map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// A table of live blocks was made: whoever gets it has no bigger one.
    pub fn open(&self, table: u32) {
        self.swap_bigger(table, Bigger::default());
    }

    /// The process is let go: no program gives it a bigger table any more. Those that it has.
    pub fn close(&self, table: u32) -> Bigger {
        self.swap_bigger(table, Bigger::CLOSED)
    }

    fn swap_bigger(&self, table: u32, bigger: Bigger) -> Bigger {
        let word = self.0.word64(place(table) + offset_of!(Target, bigger));
        Bigger::from_word(word.map_or(0, |word| word.swap(bigger.to_word(), Ordering::AcqRel)))
    }

    /// Fills the entry of a new target, which no program looks at yet.
    pub fn fill(&self, target: &Target) {
        let target = Target { flags: target.flags | flags::TRACED, ..*target };
        for (index, word) in bytes_of(&target).chunks_exact(4).enumerate() {
            if let (Some(to), Some(word)) = (self.0.word(place(target.table) + 4 * index), read(word)) {
                to.store(word, Ordering::Release);
            }
        }
    }

    /// Changes what may change of a target: how much is recorded, and where its mappings are.
    pub fn change(&self, target: &Target) {
        let place = place(target.table);
        if let Some(interval) = self.0.word64(place + offset_of!(Target, sample_interval_bytes)) {
            interval.store(target.sample_interval_bytes, Ordering::Release);
        }
        if let Some(slot) = self.0.word(place + offset_of!(Target, slot)) {
            slot.store(target.slot, Ordering::Release);
        }
        if let Some(bits) = self.0.word(place + offset_of!(Target, flags)) {
            bits.store(target.flags | flags::TRACED, Ordering::Release);
        }
    }

    /// Leaves the entry behind: the process is not traced any more. Whose it was stays to be read by programs that
    /// run.
    pub fn leave(&self, table: u32) {
        if let Some(bits) = self.0.word(place(table) + offset_of!(Target, flags)) {
            bits.fetch_and(!flags::TRACED, Ordering::AcqRel);
        }
    }
}

fn place(table: u32) -> usize {
    slot_of_table(table) as usize * size_of::<Target>()
}
