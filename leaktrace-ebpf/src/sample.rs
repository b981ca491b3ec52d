//! Sampling: the draw, calls that the draw has passed over, and the filter that tells their blocks from others.
//!
//! A call inside another one must not be drawn for again, or its block would be recorded twice as often as its
//! weight says. A call that is passed over costs no map write where the planner knows that it calls nothing that
//! is probed (glibc's and jemalloc's malloc). Where it may ([`Hook::nests`](leaktrace_common::hook::Hook)), it
//! leaves a mark, and no return probe takes the mark away: the one in many calls that is drawn looks whether the
//! mark still means a call under way. A later mark replaces an earlier one, so that of a call that was passed
//! over only the first of several calls inside it is recognised for sure; no known allocator makes two.
use aya_ebpf::{Global, helpers::generated::bpf_get_prandom_u32};
use core::hint::black_box;
use leaktrace_common::{
    counter::Counter,
    hook::{Hits, Hook},
    sample::{
        CERTAIN, FILTER_LENGTH, TABLE_LENGTH, THRESHOLDS, filter_index, is_passed_over, next_random,
        table_index,
    },
};

use crate::{
    allocation::{Caller, Hit},
    count::{add32, count},
    maps::{FILTER, TARGETS},
    registers::read_user,
    site,
    thread::{self, Passed, Thread},
    walk::PAGE_MASK,
};

/// A mark older than this means nothing where the stack cannot be walked. A call that maps memory takes some µs.
const RECENT_NS: u64 = 200_000;

/// Whether any process is sampled, and FILTER is kept. Set by user space.
#[unsafe(no_mangle)]
static SAMPLES: Global<u8> = Global::new(0);

/// Mean bytes between samples of the process that a probe is set for; 0 where every call is recorded.
#[inline(always)]
pub fn interval_bytes(hook: Hook) -> u64 {
    if !is_possible() {
        return 0;
    }
    TARGETS.get(hook.process).map_or(0, |target| target.sample_interval_bytes)
}

/// What is to be recorded of an allocation that was drawn.
pub struct Drawn {
    /// Bytes that it takes.
    pub taken_bytes: u64,
    /// The threshold, to be stored with its block.
    pub threshold: u32,
}

/// The random number to draw for a call with.
#[inline(always)]
pub fn random(hits: &mut Hits) -> u32 {
    if hits.random == 0 {
        // SAFETY: helpers without preconditions.
        hits.random = unsafe { (bpf_get_prandom_u32() as u64) << 32 | bpf_get_prandom_u32() as u64 };
    }
    // A program that is preempted here may draw the same number as the one that ran meanwhile.
    let (state, random) = next_random(hits.random);
    hits.random = state;
    random
}

/// Draws for an allocation; `None` when it is passed over.
#[inline(always)]
pub fn draw(hook: Hook, asked_bytes: u64, interval_bytes: u64, random: u32) -> Option<Drawn> {
    if is_passed_over(asked_bytes, interval_bytes, random) {
        return None;
    }
    let taken_bytes = hook.size_model.taken_bytes(asked_bytes);
    let Some(index) = table_index(taken_bytes, interval_bytes) else {
        return Some(Drawn { taken_bytes, threshold: CERTAIN });
    };
    let threshold = *THRESHOLDS.get(black_box(index) & (TABLE_LENGTH - 1))?;
    (random < threshold).then_some(Drawn { taken_bytes, threshold })
}

/// Whether any process may be sampled.
#[inline(always)]
pub fn is_possible() -> bool {
    SAMPLES.load() != 0
}

/// Whether a process may have a recorded block at `address`; `true` where nobody keeps account.
#[inline(always)]
pub fn may_be_live(address: u64) -> bool {
    SAMPLES.load() == 0
        || place(address).is_some_and(|place| {
            // SAFETY: a word of the filter; a program that runs at the same time on the same block would be a race in the
            // traced program.
            unsafe { core::ptr::read_volatile(place) != 0 }
        })
}

/// A block is about to be inserted.
#[inline(always)]
pub fn count_up(address: u64) {
    adjust(address, 1);
}

/// A block was taken out, or not inserted.
#[inline(always)]
pub fn count_down(address: u64) {
    adjust(address, u32::MAX);
}

#[inline(always)]
fn adjust(address: u64, amount: u32) {
    if SAMPLES.load() != 0
        && let Some(place) = place(address)
    {
        add32(place, amount);
    }
}

#[inline(always)]
fn place(address: u64) -> Option<*mut u32> {
    let filter = FILTER.get_ptr_mut(0)?;
    let index = black_box(filter_index(address)) & (FILTER_LENGTH - 1);
    // SAFETY: the masked index lies in the filter.
    Some(unsafe { filter.cast::<u32>().add(index) })
}

/// Marks a call that was passed over and may call other probed functions.
#[inline(always)]
pub fn pass(caller: &Caller, slot: u64, cookie: u64, size_bytes: u64) {
    let Some(thread) = thread::entry(caller.tid) else {
        count(caller.target, Counter::ThreadsFull);
        return;
    };
    let return_address = read_user(slot).unwrap_or(0);
    let passed = Passed { slot, return_address, cookie, size_bytes, time_ns: site::now_ns() };
    // SAFETY: the entry belongs to the current thread and stays while its program runs.
    unsafe { (*thread).passed = passed };
}

/// Whether the call that was just drawn, whose return address is at `slot`, runs inside a call that was passed
/// over.
#[inline(always)]
pub fn is_in_passed(hit: &mut Hit<'_>, slot: u64, cookie: u64, size_bytes: u64) -> bool {
    let passed = hit.thread.passed;
    if slot > passed.slot || !holds(&passed) {
        return false;
    }
    if slot == passed.slot {
        // Reached by a jump: it returns to the same place.
        return cookie != passed.cookie && size_bytes == passed.size_bytes;
    }
    match hit.passes_call(slot, (passed.slot, passed.return_address)) {
        Some(passes) => passes,
        None => is_recent(&passed),
    }
}

/// Whether the code at `stack_pointer` runs, as far as can be told without a walk, inside a call that was passed
/// over.
#[inline(always)]
pub fn passed_lately(thread: &Thread, stack_pointer: u64) -> bool {
    let passed = thread.passed;
    passed.slot > stack_pointer && is_recent(&passed) && holds(&passed)
}

/// Whether the return address is still where it was, or gave way to a return probe of somebody else (even of a
/// tracer of another process: probes at one place share their return): otherwise the call is over.
#[inline(always)]
fn holds(passed: &Passed) -> bool {
    if passed.slot == 0 {
        return false;
    }
    let Some(word) = read_user(passed.slot) else { return false };
    word == passed.return_address || word > PAGE_MASK && word & PAGE_MASK == 0
}

#[inline(always)]
fn is_recent(passed: &Passed) -> bool {
    site::now_ns().wrapping_sub(passed.time_ns) < RECENT_NS
}
