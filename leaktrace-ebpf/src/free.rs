//! The free program: takes the block out and accounts for its end. Frees are seen at entry, because once the
//! function has run another thread may own the address.
use leaktrace_common::{
    counter::Counter,
    hook::{FIRST_ARGUMENT, Hook, NO_ARGUMENT},
    target::flags,
};

use crate::{
    allocation::{Caller, Hit, report},
    count::{count, hit},
    registers::Context,
    sample, site,
};

/// A free function was entered.
#[inline(always)]
pub fn enter(probe: Context, cookie: u64) {
    let hook = Hook::from_cookie(cookie);
    hit(hook);
    // Most blocks of a sampled process were passed over, and most functions take the block first.
    let is_unknown = |pointer| pointer == 0 || !sample::may_be_live(pointer);
    let is_first = hook.pointer == FIRST_ARGUMENT;
    if is_first && is_unknown(probe.first_argument()) {
        return;
    }
    let regs = &probe.registers();
    let pointer = if hook.pointer == NO_ARGUMENT { 0 } else { regs.argument(hook.pointer) };
    if !is_first && is_unknown(pointer) {
        return;
    }
    let Some(caller) = Caller::traced(regs, hook) else { return };
    if caller.target.sample_interval_bytes != 0 {
        sampled(&caller, hook, pointer);
        return;
    }
    let Some(mut hit) = Hit::new(caller, regs, Counter::FreeHits) else { return };
    let slot = regs.stack_pointer.wrapping_add(8 * hook.return_slot_words as u64);
    let in_throwing_new = hit.thread.call.slot != 0 && Hook::from_cookie(hit.thread.call.cookie).may_throw;
    if !in_throwing_new && hit.is_nested(slot, true) {
        count(hit.target, Counter::NestedCalls);
        return;
    }
    let Some(block) = site::take(hit.target, hit.thread, pointer) else {
        // A free function that reaches another one fires twice: the second hit lies inside the first.
        let same_call = hit.thread.freed_address == pointer && slot <= hit.thread.freed_slot;
        if !same_call {
            count(hit.target, Counter::UnmatchedFrees);
        }
        return;
    };
    hit.thread.freed_address = pointer;
    hit.thread.freed_slot = slot;
    site::end(hit.target, &block, site::now_ns());
    if hit.target.flags & flags::TRACE_CALLS != 0 {
        report(&hit.caller(), pointer, block.size_bytes, 0, block.stack, hook.function, true);
    }
}

/// With sampling most blocks are unknown, and that is no news. A block that is known has been freed, whoever
/// called: the old blocks of reallocations under way are out of the table already.
#[inline(always)]
fn sampled(caller: &Caller, hook: Hook, pointer: u64) {
    let Some(block) = site::take_out(caller.target, pointer) else { return };
    count(caller.target, Counter::FreeHits);
    site::end(caller.target, &block, site::now_ns());
    if caller.target.flags & flags::TRACE_CALLS != 0 {
        report(caller, pointer, block.size_bytes, 0, block.stack, hook.function, true);
    }
}
