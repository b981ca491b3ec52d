//! Blocks and sites: recording an allocation, taking a block out, accounting for its end.
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use core::{hint::black_box, ptr};
use leaktrace_common::{
    counter::Counter,
    heap::{Block, LIFETIME_BUCKETS, NO_STACK, SiteKey, SiteTotals, lifetime_bucket},
    hook::slot_of_table,
    near,
    sample::{weight, weighted_bytes},
    target::Target,
};

use crate::{
    count::{add, add32, count, exchange_if},
    maps::{LIVE, NEAR_SITES, NEW_SITE, SITES},
    parked,
    parked::Live,
    sample, tables,
    thread::Thread,
};

/// bpf_map_update_elem: only if the key is absent.
pub const NO_EXIST: u64 = 1;
/// The error for a key that is present.
const EEXIST: i32 = -17;

/// Whether a block that is freed leaves its entry in the table for the next one. Where processes are sampled, a block
/// seldom comes to lie where one was.
#[inline(always)]
pub fn parks() -> bool {
    !sample::is_possible()
}

/// Records a new block. What cannot be recorded is counted.
#[inline(always)]
pub fn record(target: &Target, thread: &mut Thread, address: u64, block: &Block) -> bool {
    let Some(totals) = totals(target, block.stack) else { return false };
    sample::count_up(address);
    if !insert(target, thread, address, block) {
        sample::count_down(address);
        count(target, Counter::BlocksFull);
        return false;
    }
    // SAFETY: `totals` points into a map value that stays until user space deletes a dead process's sites.
    unsafe {
        add(&raw mut (*totals).allocated_bytes, weighted_bytes(block.size_bytes, block.threshold));
        add(&raw mut (*totals).allocated_count, weight(block.threshold));
    }
    true
}

/// Puts a block into a table of the process; whether there was room.
#[inline(always)]
fn insert(target: &Target, thread: &mut Thread, address: u64, block: &Block) -> bool {
    let slot = slot_of_table(target.table);
    if tables::bigger(target) == 0 {
        let Some(live) = LIVE.get(slot) else { return false };
        if parks() && parked::put_back(thread, live, address, block) {
            return true;
        }
        if live.insert(address, block, NO_EXIST).is_ok() {
            return true;
        }
    }
    tables::insert_anywhere(thread, slot, address, block) != 0
}

/// Takes the block at `address` out of the process's tables. A block of an earlier image of the process is
/// dropped: its memory went with that image.
#[inline(always)]
pub fn take(target: &Target, thread: &mut Thread, address: u64) -> Option<Block> {
    let live = LIVE.get(tables::with_block(target, address))?;
    if !parks() {
        return remove(target, live, address);
    }
    let taken = parked::take(target, thread, live, address);
    if taken.is_none() && tables::take_aside(thread, slot_of_table(target.table), address) != 0 {
        return Some(thread.aside);
    }
    taken
}

/// As [`take`], and leaves no entry.
#[inline(always)]
pub fn take_out(target: &Target, address: u64) -> Option<Block> {
    remove(target, LIVE.get(tables::with_block(target, address))?, address)
}

/// Takes the block at `address` out of a table.
#[inline(always)]
pub fn remove(target: &Target, live: &Live, address: u64) -> Option<Block> {
    // SAFETY: the value is copied at once; a concurrent free of the same address would be the program's bug.
    let block = *unsafe { live.get(address) }?;
    if !block.is_live() {
        return None;
    }
    live.remove(address).ok()?;
    sample::count_down(address);
    (block.generation == target.generation as u16).then_some(block)
}

/// A thread of the process ends: the entries that it has left go.
#[inline(always)]
pub fn forget_thread(target: &Target, thread: &mut Thread) {
    if parks() {
        parked::remove_all(&mut thread.parked, slot_of_table(target.table));
    }
}

/// Whether the process has a block at `address`.
#[inline(always)]
pub fn is_live(target: &Target, address: u64) -> bool {
    let Some(live) = LIVE.get(tables::with_block(target, address)) else { return false };
    // SAFETY: only its mark is looked at.
    unsafe { live.get(address) }.is_some_and(Block::is_live)
}

/// Puts a block back that [`take`] took.
#[inline(always)]
pub fn restore(target: &Target, thread: *mut Thread, address: u64, block: *const Block) {
    sample::count_up(address);
    if tables::insert_anywhere(thread, slot_of_table(target.table), address, block) == 0 {
        sample::count_down(address);
        // SAFETY: the caller passes a block that stays as long as the program runs, and that nobody else writes.
        end(target, unsafe { &*block }, now_ns());
        count(target, Counter::BlocksFull);
    }
}

/// Accounts for the end of a block at its site.
#[inline(always)]
pub fn end(target: &Target, block: &Block, time_ns: u64) {
    let Some(totals) = totals(target, block.stack) else { return };
    let bucket = black_box(lifetime_bucket(time_ns.saturating_sub(block.born_ns))) & (LIFETIME_BUCKETS - 1);
    // SAFETY: as in `record`; a bucket is below the length of the histogram.
    unsafe {
        add(&raw mut (*totals).freed_bytes, weighted_bytes(block.size_bytes, block.threshold));
        add(&raw mut (*totals).freed_count, weight(block.threshold));
        let lifetimes = (&raw mut (*totals).lifetimes).cast::<u32>();
        add32(lifetimes.add(bucket), 1);
    }
}

/// ns of CLOCK_BOOTTIME.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The totals of a site, made if need be; `None` when there is no room.
#[inline(always)]
fn totals(target: &Target, stack: u64) -> Option<*mut SiteTotals> {
    if let Some(totals) = near_totals(stack) {
        return Some(totals);
    }
    let key = SiteKey { tgid: target.owner, generation: target.generation, stack };
    if let Some(totals) = SITES.get_ptr_mut(key) {
        return Some(totals);
    }
    if make_site(key.tgid, key.generation, stack) == 0 {
        count(target, Counter::SitesFull);
        return None;
    }
    near_totals(stack).or_else(|| SITES.get_ptr_mut(key))
}

/// The totals of the site with this stack, if it has its place in the array.
#[inline(always)]
fn near_totals(stack: u64) -> Option<*mut SiteTotals> {
    let place = NEAR_SITES.get_ptr_mut(near::place_of_site(stack))?;
    // SAFETY: the entry stays; its first word is written in one piece.
    let is_its_own = unsafe { ptr::read_volatile(&raw const (*place).stack) } == stack;
    // SAFETY: a field of the entry.
    is_its_own.then(|| unsafe { &raw mut (*place).totals })
}

/// Makes the site of a stack. In the array the stack stands for the process too, which [`NO_STACK`] does not. 0 when there
/// is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_site(tgid: u32, generation: u32, stack: u64) -> u32 {
    if stack != NO_STACK
        && let Some(place) = NEAR_SITES.get_ptr_mut(near::place_of_site(stack))
    {
        // SAFETY: the entry stays. Its totals are zeros while it is nobody's; whoever takes it writes the rest.
        unsafe {
            if exchange_if(&raw mut (*place).stack, 0, stack) {
                ptr::write_volatile(&raw mut (*place).generation, generation);
                ptr::write_volatile(&raw mut (*place).tgid, tgid);
                return 1;
            }
        }
        // Another thread may have been faster.
        if near_totals(stack).is_some() {
            return 1;
        }
    }
    let Some(zeros) = NEW_SITE.get(0) else { return 0 };
    let made = SITES.insert(SiteKey { tgid, generation, stack }, zeros, NO_EXIST);
    matches!(made, Ok(()) | Err(EEXIST)) as u32
}
