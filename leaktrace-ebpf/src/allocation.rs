//! The allocation program: from a hook descriptor and registers to a recorded block.
//!
//! Only the outermost call of a thread is recorded. A call under way whose return was lost (longjmp, exception)
//! must not hide later calls: it is recognised by its return slot, which is not above the current one any more
//! or which the current stack does not pass.
use leaktrace_common::{
    counter::Counter,
    event::{Header, Kind},
    heap::Block,
    hook::{Hook, NO_ARGUMENT, Shape, slot_of_table},
    sample::{CERTAIN, is_passed_over},
    target::{Target, flags},
};

use crate::{
    count::{count, hit},
    dispatch,
    maps::{CALLS, TARGETS},
    registers::{Context, Registers, read_user},
    sample, site,
    stack::{self, Start},
    target,
    thread::{self, NO_OLD_BLOCK, Thread},
};

/// Who hit a probe.
#[derive(Clone, Copy)]
pub struct Caller {
    /// Thread.
    pub tid: u32,
    /// Its settings.
    pub target: &'static Target,
}

impl Caller {
    /// The current thread at the probe of `hook`, if its process's allocations are traced. No map is touched but
    /// TARGETS, and PROCESSES if the probe is not set for this process.
    #[inline(always)]
    pub fn traced(regs: &Registers, hook: Hook) -> Option<Caller> {
        let (tid, tgid) = thread::current();
        let target = target::at_probe(hook, tgid)?;
        let is_wanted = target.flags & flags::ALLOCATIONS != 0 && regs.is_64_bit();
        is_wanted.then_some(Caller { tid, target })
    }
}

/// A probe hit: who, in which state, with which registers.
pub struct Hit<'a> {
    /// Thread.
    pub tid: u32,
    /// Its settings.
    pub target: &'static Target,
    /// Its state.
    pub thread: &'a mut Thread,
    /// User registers.
    pub regs: &'a Registers,
}

impl<'a> Hit<'a> {
    /// The hit of a thread, counted as `counter`; `None` when there is no room for the thread's state.
    #[inline(always)]
    pub fn new(caller: Caller, regs: &'a Registers, counter: Counter) -> Option<Hit<'a>> {
        let Caller { tid, target } = caller;
        count(target, counter);
        let Some(thread) = thread::entry(tid) else {
            count(target, Counter::ThreadsFull);
            return None;
        };
        // SAFETY: the entry belongs to the current thread and stays while its program runs.
        Some(Hit { tid, target, thread: unsafe { &mut *thread }, regs })
    }

    /// Who it is.
    #[inline(always)]
    pub fn caller(&self) -> Caller {
        Caller { tid: self.tid, target: self.target }
    }

    /// Whether the current call, whose return address is at `slot`, runs inside the call under way. Drops the
    /// call under way when it has ended without its return being seen.
    #[inline(always)]
    pub fn is_nested(&mut self, slot: u64, tail_call: bool) -> bool {
        let outer = self.thread.call.slot;
        if outer == 0 {
            return false;
        }
        if slot == outer && tail_call {
            return true;
        }
        let watch = (outer, self.thread.call.return_address);
        if slot < outer && self.passes_call(slot, watch).unwrap_or(true) {
            return true;
        }
        self.abandon(Counter::LostReturns);
        false
    }

    /// Whether the stack from the call at `slot` outwards passes the call whose return slot and address are
    /// `watch`; `None` where that cannot be told.
    #[inline(always)]
    pub fn passes_call(&mut self, slot: u64, watch: (u64, u64)) -> Option<bool> {
        let start = Start { ip: read_user(slot)?, sp: slot.wrapping_add(8), exact: false };
        stack::passes_call(self.target, self.thread, self.regs, start, watch)
    }

    /// Ends the call under way without a result.
    #[inline(always)]
    pub fn abandon(&mut self, cause: Counter) {
        count(self.target, cause);
        self.restore_old();
        self.thread.call.slot = 0;
    }

    #[inline(always)]
    fn restore_old(&mut self) {
        if self.thread.call.old.size_bytes != NO_OLD_BLOCK {
            restore_old(self.thread, slot_of_table(self.target.table));
        }
    }
}

/// Puts the block back that the call under way of `thread`, whose process has this slot, took out. Not inlined: it is
/// seldom needed, in many places.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn restore_old(thread: *mut Thread, slot: u32) -> u32 {
    if thread.is_null() {
        return 0;
    }
    let Some(target) = TARGETS.get(slot) else { return 0 };
    // SAFETY: see [`crate::walk::walk_frames`].
    let (pointer, old) = unsafe { ((*thread).call.pointer, &raw const (*thread).call.old) };
    site::restore(target, thread, pointer, old);
    1
}

/// Takes the block out that the call under way of `thread`, whose process has this slot, is about to replace. Not inlined:
/// most calls replace none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_old(thread: *mut Thread, slot: u32) -> u32 {
    let Some(target) = TARGETS.get(slot) else { return 0 };
    if thread.is_null() {
        return 0;
    }
    // SAFETY: see [`crate::walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let pointer = thread.call.pointer;
    let Some(old) = site::take(target, thread, pointer) else { return 0 };
    thread.call.old = old;
    1
}

/// Whether a size is in the range that is recorded.
#[inline(always)]
fn is_wanted(target: &Target, size_bytes: u64) -> bool {
    size_bytes >= target.min_size_bytes && size_bytes <= target.max_size_bytes
}

/// An allocation function was entered. `true` when its end must be seen. With `can_skip` the end of a call that
/// is passed over costs nothing, without it the end is seen in any case.
#[inline(always)]
pub fn enter(probe: Context, cookie: u64, can_skip: bool) -> bool {
    let hook = Hook::from_cookie(cookie);
    let Some(hits) = hit(hook) else { return false };
    let interval_bytes = sample::interval_bytes(hook);
    let random = if interval_bytes == 0 { 0 } else { sample::random(hits) };
    // Nothing has been looked up yet, and most calls end here.
    if interval_bytes != 0
        && hook.is_plain()
        && is_passed_over(probe.first_argument(), interval_bytes, random)
    {
        return false;
    }
    let regs = &probe.registers();
    let slot = regs.stack_pointer.wrapping_add(8 * hook.return_slot_words as u64);
    let size_bytes = requested(regs, hook);
    let pointer = if hook.pointer == NO_ARGUMENT { 0 } else { regs.argument(hook.pointer) };
    let mut recorded_bytes = size_bytes;
    let mut threshold = CERTAIN;
    let mut is_recorded = 1;
    let mut ends_old = false;
    if interval_bytes != 0 {
        ends_old = replaces(hook, pointer) && sample::may_be_live(pointer);
        match sample::draw(hook, size_bytes, interval_bytes, random) {
            Some(drawn) => (recorded_bytes, threshold) = (drawn.taken_bytes, drawn.threshold),
            None if !ends_old && !hook.nests => return false,
            None => is_recorded = 0,
        }
    }
    let Some(caller) = Caller::traced(regs, hook) else { return false };
    if interval_bytes != 0 {
        if hook.shape == Shape::Allocate && !is_wanted(caller.target, size_bytes) {
            return false;
        }
        ends_old = ends_old && site::is_live(caller.target, pointer);
        if is_recorded == 0 && !ends_old && (can_skip || !hook.nests) {
            if hook.nests {
                sample::pass(&caller, slot, cookie, size_bytes);
            }
            return false;
        }
    }
    let Some(mut hit) = Hit::new(caller, regs, Counter::AllocationHits) else { return false };
    if can_skip && !hook.may_throw && dispatch::catches_system_calls() {
        count(hit.target, Counter::DispatchedCalls);
        return false;
    }
    let outer = &hit.thread.call;
    let tail_call = outer.cookie != cookie && outer.size_bytes == size_bytes;
    if outer.slot != 0 && Hook::from_cookie(outer.cookie).may_throw && slot < outer.slot {
        // Only a new handler or the making of an exception calls out of a throwing operator new: such calls
        // are allocations of their own, and the outer one most likely ends by the exception.
        hit.abandon(Counter::ThrownCalls);
    } else if hit.is_nested(slot, tail_call) {
        count(hit.target, Counter::NestedCalls);
        return false;
    }
    // A call around this one would have taken the old block out.
    let may_be_inside = interval_bytes != 0 && !ends_old;
    if may_be_inside && sample::is_in_passed(&mut hit, slot, cookie, size_bytes) {
        count(hit.target, Counter::NestedCalls);
        return false;
    }
    if hook.shape == Shape::Allocate && !is_wanted(hit.target, size_bytes) {
        count(hit.target, Counter::FilteredBySize);
        return false;
    }
    let call = &mut hit.thread.call;
    call.slot = slot;
    call.return_address = 0;
    call.cookie = cookie;
    call.size_bytes = size_bytes;
    call.recorded_bytes = recorded_bytes;
    call.threshold = threshold;
    call.is_recorded = is_recorded;
    call.pointer = pointer;
    call.stack = 0;
    call.old.size_bytes = NO_OLD_BLOCK;
    if replaces(hook, pointer) {
        take_old(hit.thread, slot_of_table(hit.target.table));
    }
    if hook.may_throw && is_recorded != 0 {
        // At its exits the callee-saved registers may not be the caller's: take the stack now.
        let Some(return_address) = read_user(slot) else {
            hit.abandon(Counter::ReadFailures);
            return false;
        };
        hit.thread.call.return_address = return_address;
        hit.thread.call.stack = take_stack(&mut hit);
    }
    true
}

/// Whether the call takes the block at `pointer` away if it succeeds.
#[inline(always)]
fn replaces(hook: Hook, pointer: u64) -> bool {
    matches!(hook.shape, Shape::Reallocate | Shape::ResizeInPlace) && pointer != 0
}

/// An allocation function has returned. Its caller goes on at the current instruction, so that nobody need read the
/// return address at entry: the kernel knows it, whoever else has put a return probe there.
#[inline(always)]
pub fn leave_by_return(regs: &Registers) {
    leave(regs, regs.stack_pointer.wrapping_sub(8), Some(regs.instruction));
}

/// An allocation function returned to `caller`, or stands at one of its exits; its return address is or was at `slot`.
#[inline(always)]
fn leave(regs: &Registers, slot: u64, caller: Option<u64>) {
    let (tid, tgid) = thread::current();
    let Some(thread) = thread::existing(tid) else { return };
    // SAFETY: the entry belongs to the current thread and stays while its program runs.
    let thread = unsafe { &mut *thread };
    if thread.call.slot != slot {
        return;
    }
    if let Some(caller) = caller {
        thread.call.return_address = caller;
    }
    let hook = Hook::from_cookie(thread.call.cookie);
    let Some(target) = target::at_probe(hook, tgid) else { return };
    let mut hit = Hit { tid, target, thread, regs };
    match outcome(&hit, hook) {
        Outcome::Allocated(address) => finish(&mut hit, hook, address),
        Outcome::Freed => end_old(&mut hit),
        Outcome::Failed => {
            count(target, Counter::FailedCalls);
            hit.restore_old();
        }
        Outcome::Unreadable => {
            count(target, Counter::ReadFailures);
            hit.restore_old();
        }
    }
    hit.thread.call.slot = 0;
}

/// An exit of a function that may throw was reached. Other functions may end there too: their return is seen by
/// their own return probe.
#[inline(always)]
pub fn leave_at_exit(regs: &Registers, hook: Hook, slot: u64) {
    hit(hook);
    let (tid, _) = thread::current();
    let Some(thread) = thread::existing(tid) else { return };
    // SAFETY: the entry belongs to the current thread and stays while its program runs.
    if Hook::from_cookie(unsafe { (*thread).call.cookie }).may_throw {
        leave(regs, slot, None);
    }
}

/// An exception leaves the call under way.
#[inline(always)]
pub fn thrown(regs: &Registers) {
    let (tid, tgid) = thread::current();
    let Some(thread) = thread::existing(tid) else { return };
    // SAFETY: the entry belongs to the current thread and stays while its program runs.
    let thread = unsafe { &mut *thread };
    if thread.call.slot == 0 || regs.stack_pointer >= thread.call.slot {
        return;
    }
    let Some(target) = target::at_probe(Hook::from_cookie(thread.call.cookie), tgid) else { return };
    let mut hit = Hit { tid, target, thread, regs };
    hit.abandon(Counter::ThrownCalls);
}

enum Outcome {
    Allocated(u64),
    Freed,
    Failed,
    Unreadable,
}

#[inline(always)]
fn outcome(hit: &Hit<'_>, hook: Hook) -> Outcome {
    let call = &hit.thread.call;
    let result = hit.regs.result;
    match hook.shape {
        Shape::StoreThrough if result as i32 != 0 => Outcome::Failed,
        Shape::StoreThrough => match read_user(call.pointer) {
            Some(address) if address != 0 => Outcome::Allocated(address),
            Some(_) => Outcome::Failed,
            None => Outcome::Unreadable,
        },
        Shape::ResizeInPlace if result >= call.size_bytes => Outcome::Allocated(call.pointer),
        Shape::ResizeInPlace => Outcome::Failed,
        _ if result != 0 => Outcome::Allocated(result),
        Shape::Reallocate if hook.failure_frees || hook.zero_frees && call.size_bytes == 0 => Outcome::Freed,
        _ => Outcome::Failed,
    }
}

/// Records the new block in place of the old one.
#[inline(always)]
fn finish(hit: &mut Hit<'_>, hook: Hook, address: u64) {
    let had_old = replaces(hook, hit.thread.call.pointer);
    if had_old {
        end_old(hit);
    }
    if hit.thread.call.is_recorded == 0 {
        return;
    }
    let size_bytes = hit.thread.call.recorded_bytes;
    if !is_wanted(hit.target, hit.thread.call.size_bytes) {
        count(hit.target, Counter::FilteredBySize);
        return;
    }
    let stack = if hit.thread.call.stack != 0 { hit.thread.call.stack } else { take_stack(hit) };
    let block = Block {
        size_bytes,
        born_ns: site::now_ns(),
        stack,
        threshold: hit.thread.call.threshold,
        generation: hit.target.generation as u16,
        function: hook.function,
    };
    if hit.thread.freed_address == address {
        hit.thread.freed_address = 0;
    }
    if site::record(hit.target, hit.thread, address, &block) && hit.target.flags & flags::TRACE_CALLS != 0 {
        let old_address = if had_old { hit.thread.call.pointer } else { 0 };
        report(&hit.caller(), address, size_bytes, old_address, stack, hook.function, false);
    }
}

/// Accounts for the old block of a reallocation that succeeded.
#[inline(always)]
fn end_old(hit: &mut Hit<'_>) {
    let call = &hit.thread.call;
    if call.old.size_bytes != NO_OLD_BLOCK {
        site::end(hit.target, &call.old, site::now_ns());
    } else if call.pointer != 0 && hit.target.sample_interval_bytes == 0 {
        count(hit.target, Counter::UnmatchedFrees);
    }
}

/// The stack at the end of the call: the caller's registers are in place again.
#[inline(always)]
fn take_stack(hit: &mut Hit<'_>) -> u64 {
    let call = &hit.thread.call;
    let start = Start { ip: call.return_address, sp: call.slot.wrapping_add(8), exact: false };
    stack::take(hit.target, hit.thread, hit.regs, start)
}

/// Bytes asked for; a product that overflows is more than any allocator gives.
#[inline(always)]
fn requested(regs: &Registers, hook: Hook) -> u64 {
    if hook.size == NO_ARGUMENT {
        return 0;
    }
    let size = regs.argument(hook.size);
    if hook.count == NO_ARGUMENT {
        return size;
    }
    let count = regs.argument(hook.count);
    // In halves: the target has no 128-bit product to check the overflow with.
    let (large, small) = if size > count { (size, count) } else { (count, size) };
    if small >> 32 != 0 || (large >> 32).wrapping_mul(small) >> 32 != 0 {
        return u64::MAX - 1;
    }
    size.wrapping_mul(count)
}

/// Sends a call as an event.
#[inline(always)]
pub fn report(
    caller: &Caller,
    address: u64,
    size_bytes: u64,
    old_address: u64,
    stack: u64,
    function: u16,
    free: bool,
) {
    let Some(mut entry) = CALLS.reserve(0) else {
        count(caller.target, Counter::TraceDropped);
        return;
    };
    entry.write(leaktrace_common::event::Call {
        header: Header {
            kind: Kind::Call as u32,
            tgid: caller.target.owner,
            tid: caller.tid,
            generation: caller.target.generation,
            time_ns: site::now_ns(),
        },
        address,
        size_bytes,
        old_address,
        stack,
        function: function as u32,
        free: free as u32,
    });
    entry.submit(0);
}
