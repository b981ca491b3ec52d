//! Counting: adds to the current target's tally.
use core::{arch::asm, hint::black_box};
use leaktrace_common::{
    counter::{Counter, TALLY_WORDS},
    hook::{Hits, Hook, slot_of_table},
    target::{NOBODYS_SLOT, Target},
    unwind::Stop,
};

use crate::maps::{HITS, TALLIES, Tally};

/// Adds `amount` to a word that other CPUs and preempted programs may add to as well. In assembly because
/// `core` has no atomic addition for this target.
#[inline(always)]
pub fn add(word: *mut u64, amount: u64) {
    // SAFETY: the callers pass words inside map values, aligned to 8, alive as long as the program runs.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount) }
}

/// Adds to a 32-bit word, modulo 2^32; see [`add`].
#[inline(always)]
pub fn add32(word: *mut u32, amount: u32) {
    // SAFETY: as in `add`, aligned to 4.
    unsafe {
        asm!("lock *(u32 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount as u64)
    }
}

/// Writes `to` into a word if it holds `from`; whether it did. In assembly because `core` has no atomic exchange for this
/// target (Linux ≥ 5.12 has the instruction).
///
/// # Safety
/// The word is aligned to 8 and lies in a map value that stays as long as the program runs.
#[inline(always)]
pub unsafe fn exchange_if(word: *mut u64, from: u64, to: u64) -> bool {
    let mut found = from;
    // SAFETY: the caller promises a word of a map value.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {to})",
            word = in(reg) word,
            to = in(reg) to,
            inout("r0") found,
        );
    }
    found == from
}

/// Counts one `counter` for a target.
#[inline(always)]
pub fn count(target: &Target, counter: Counter) {
    Counters::of(target).add(counter, 1);
}

/// Counts one `counter` that belongs to no target.
#[inline(always)]
pub fn count_for_nobody(counter: Counter) {
    Counters(TALLIES.get_ptr_mut(NOBODYS_SLOT)).add(counter, 1);
}

/// The tally of a target, looked up once for several counts.
#[derive(Clone, Copy)]
pub struct Counters(Option<*mut Tally>);

impl Counters {
    /// Those of a target; a vfork child counts for the parent whose memory it shares.
    #[inline(always)]
    pub fn of(target: &Target) -> Counters {
        Counters(TALLIES.get_ptr_mut(slot_of_table(target.table)))
    }

    /// Adds `amount` to `counter`.
    #[inline(always)]
    pub fn add(self, counter: Counter, amount: u64) {
        if let Some(word) = self.word(counter as u32) {
            add(word, amount);
        }
    }

    /// Adds `amount` to a counter of work done, from which nothing is concluded, without the atomicity that every stack
    /// would pay for: a program that is preempted between load and store loses what others have added meanwhile.
    #[inline(always)]
    pub fn add_roughly(self, counter: Counter, amount: u64) {
        if let Some(word) = self.word(counter as u32) {
            // SAFETY: a word of this CPU's tally.
            unsafe { *word = (*word).wrapping_add(amount) };
        }
    }

    /// Counts the end of a stack ([`Stop`]).
    #[inline(always)]
    pub fn add_stop(self, stop: u32) {
        if stop == Stop::Complete as u32 {
            self.add_roughly(Counter::StopComplete, 1);
        } else if let Some(word) = Counter::index_of_stop(stop).and_then(|index| self.word(index)) {
            add(word, 1);
        }
    }

    /// The word with this index, which is masked to the tally's length.
    #[inline(always)]
    fn word(self, index: u32) -> Option<*mut u64> {
        let index = (black_box(index) as usize) & (TALLY_WORDS - 1);
        // SAFETY: the masked index lies in the tally.
        self.0.map(|tally| unsafe { tally.cast::<u64>().add(index) })
    }
}

/// Counts a hit on a probe of a traced process; what is kept of it on this CPU.
#[inline(always)]
pub fn hit(hook: Hook) -> Option<&'static mut Hits> {
    // SAFETY: an entry of this CPU; it stays.
    let hits = unsafe { &mut *HITS.get_ptr_mut(hook.process)? };
    hits.count += 1;
    hits.cost += hook.cost as u64;
    Some(hits)
}
