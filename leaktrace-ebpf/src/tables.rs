//! The tables of live blocks of a process: a small one from the start, bigger ones when it comes to need them.
//!
//! A hash map of the kernel takes memory for all the blocks that fit, and cannot grow. So a program that finds its
//! process's tables full takes a bigger one that user space keeps ready, and goes on in it. Blocks stay where they are. Any
//! table may have the block at an address but only one does: a block is inserted only when no table has another one.
//!
//! Most processes have one table, and what they do must not cost more for that: they come here only when it is full.
//! What is here is made of global functions, which the verifier checks once.
use core::ptr;
use leaktrace_common::{
    counter::Counter,
    event::{Header, Kind, Life},
    heap::{Block, SET_ASIDE},
    hook::slot_of_table,
    target::{Bigger, NOBODYS_SLOT, Target},
};

use crate::{
    count::{count, exchange_if},
    life,
    maps::{LARGE_TABLES, LIVE, MIDDLE_TABLES, TARGETS},
    parked, site,
    site::NO_EXIST,
    thread::Thread,
};

/// Tables that a process may have.
const TABLES: u32 = 3;
/// The error for a map that is full.
const E2BIG: i32 = -7;
/// The error for a key that is present.
const EEXIST: i32 = -17;

/// The bigger tables of a process; 0 where it has none, as most.
#[inline(always)]
pub fn bigger(target: &Target) -> u64 {
    // SAFETY: an aligned word that other programs may write in one piece. It never goes back to 0 while the process is
    // traced: who has been given a block's address sees at least what was there when the block was recorded.
    unsafe { ptr::read_volatile(&raw const target.bigger) }
}

/// The index in LIVE of a table of the process with this slot, the largest first; one where nothing is, if it has none.
#[inline(always)]
fn index(bigger: u64, slot: u32, number: u32) -> u32 {
    let Bigger { middle, large } = Bigger::from_word(bigger);
    match number {
        0 => large,
        1 => middle,
        _ => slot,
    }
}

/// The index in LIVE of the table that has the live block at `address`, if any has.
#[inline(always)]
pub fn with_block(target: &Target, address: u64) -> u32 {
    let slot = slot_of_table(target.table);
    if bigger(target) == 0 { slot } else { table_with(slot, address) }
}

/// As [`with_block`], for the process with this slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn table_with(slot: u32, address: u64) -> u32 {
    let Some(target) = TARGETS.get(slot) else { return NOBODYS_SLOT };
    let bigger = bigger(target);
    let mut number = 0;
    while number < TABLES {
        let index = index(bigger, slot, number);
        number += 1;
        let Some(live) = LIVE.get(index) else { continue };
        // SAFETY: only its mark is looked at.
        if unsafe { live.get(address) }.is_some_and(Block::is_live) {
            return index;
        }
    }
    NOBODYS_SLOT
}

/// Puts a block into a table of the process with this slot, whichever has room, and takes a bigger one if none has; 0 when
/// that cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_anywhere(thread: *mut Thread, slot: u32, address: u64, block: *const Block) -> u32 {
    if thread.is_null() || block.is_null() {
        return 0;
    }
    let Some(target) = TARGETS.get(slot) else { return 0 };
    // SAFETY: not null, and the verifier sees to it that callers pass an entry; see [`crate::walk::walk_frames`].
    let parked = unsafe { &mut (*thread).parked };
    if site::parks() {
        parked::strike_off(parked, address);
    }
    let before = bigger(target);
    let mut number = 0;
    while number < TABLES {
        let index = index(before, slot, number);
        number += 1;
        if index != NOBODYS_SLOT && take_place(index, slot, address, block) != 0 {
            return 1;
        }
    }
    let mut tries = 0;
    while tries < 2 {
        tries += 1;
        match insert_where_room_is(slot, address, block) {
            INSERTED => return 1,
            IS_FULL if grow(slot) != 0 => {}
            IS_FULL | HAS_FAILED if site::parks() => parked::remove_all(parked, slot),
            IS_FULL | HAS_FAILED => return 0,
            index if insert_over(index, address, block) != 0 => return 1,
            // The thread that removes the entry was preempted, and this one cannot wait for it.
            _ => return (insert_where_room_is(slot, address | SET_ASIDE, block) == INSERTED) as u32,
        }
    }
    0
}

/// The block was inserted. No table but nobody's has this index, nor the following ones.
const INSERTED: u32 = u32::MAX;
/// All tables are full.
const IS_FULL: u32 = u32::MAX - 1;
/// The kernel had no memory.
const HAS_FAILED: u32 = u32::MAX - 2;

/// Inserts a block into the largest table that has room; no table has one at its address. When somebody is removing an
/// entry there, the index of the table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_where_room_is(slot: u32, address: u64, block: *const Block) -> u32 {
    let Some(target) = TARGETS.get(slot) else { return HAS_FAILED };
    if block.is_null() {
        return HAS_FAILED;
    }
    // SAFETY: not null, and the verifier sees to it that callers pass a block. A copy: older kernels take values of maps
    // from a program's own stack, not from wherever a global function was pointed to.
    let block = unsafe { *block };
    let bigger = bigger(target);
    let mut outcome = IS_FULL;
    let mut number = 0;
    while number < TABLES {
        let index = index(bigger, slot, number);
        number += 1;
        let Some(live) = LIVE.get(index) else { continue };
        match live.insert(address, &block, NO_EXIST) {
            Ok(()) => return INSERTED,
            Err(EEXIST) => return index,
            Err(E2BIG) => {}
            Err(_) => outcome = HAS_FAILED,
        }
    }
    outcome
}

/// Puts a block into a table where somebody is removing an entry at its address; 0 when that takes too long.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_over(index: u32, address: u64, block: *const Block) -> u32 {
    let Some(live) = LIVE.get(index) else { return 0 };
    if block.is_null() {
        return 0;
    }
    // SAFETY: as above.
    let block = unsafe { *block };
    parked::insert_over(live, address, &block) as u32
}

/// Takes the block at `address` out that was set aside, of the process with this slot; 1 if there was one. It is in the
/// thread's `aside` then.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_aside(thread: *mut Thread, slot: u32, address: u64) -> u32 {
    if thread.is_null() {
        return 0;
    }
    let Some(target) = TARGETS.get(slot) else { return 0 };
    let key = address | SET_ASIDE;
    let Some(live) = LIVE.get(table_with(slot, key)) else { return 0 };
    let Some(block) = site::remove(target, live, key) else { return 0 };
    // SAFETY: not null, and the verifier sees to it that callers pass an entry; see [`crate::walk::walk_frames`].
    unsafe { (*thread).aside = block };
    1
}

/// Puts a block into the entry that was left at its address in a table: 1 if there was one. A live block there is one
/// whose free was missed, for the allocator has handed out its address: it ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_place(index: u32, slot: u32, address: u64, block: *const Block) -> u32 {
    let Some(live) = LIVE.get(index) else { return 0 };
    let Some(target) = TARGETS.get(slot) else { return 0 };
    if block.is_null() {
        return 0;
    }
    // SAFETY: as above.
    let block = unsafe { &*block };
    if site::parks() && parked::take_over(live, address, block) {
        return 1;
    }
    if let Some(missed) = site::remove(target, live, address) {
        site::end(target, &missed, block.born_ns);
        count(target, Counter::MissedFrees);
    }
    0
}

/// Removes the entry that was left at `address`, from whichever table has it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_left(slot: u32, address: u64) -> u32 {
    let Some(target) = TARGETS.get(slot) else { return 0 };
    let bigger = bigger(target);
    let mut number = 0;
    while number < TABLES {
        let index = index(bigger, slot, number);
        number += 1;
        if let Some(live) = LIVE.get(index) {
            parked::remove(live, address);
        }
    }
    1
}

/// Gives the process with this slot one of the bigger tables that user space keeps ready, or another thread has just done
/// so; 0 when there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn grow(slot: u32) -> u32 {
    let Some(target) = TARGETS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the entry stays.
    let before = Bigger::from_word(bigger(unsafe { &*target }));
    if before.middle == 0
        && let Ok(Some(middle)) = MIDDLE_TABLES.pop()
    {
        if !has_put(target, before, Bigger { middle, ..before }, middle) {
            let _ = MIDDLE_TABLES.push(middle, 0);
        }
        return 1;
    }
    if before.large == 0
        && let Ok(Some(large)) = LARGE_TABLES.pop()
    {
        if !has_put(target, before, Bigger { large, ..before }, large) {
            let _ = LARGE_TABLES.push(large, 0);
        }
        return 1;
    }
    0
}

/// Sets a process's bigger tables, if they are still `before`, and wakes user space, which keeps another one ready.
#[inline(always)]
fn has_put(target: *mut Target, before: Bigger, after: Bigger, index: u32) -> bool {
    // SAFETY: an aligned word of a map value that stays.
    if !unsafe { exchange_if(&raw mut (*target).bigger, before.to_word(), after.to_word()) } {
        return false;
    }
    // SAFETY: plain fields of the value.
    let (tgid, generation) = unsafe { ((*target).owner, (*target).generation) };
    let header = Header { kind: Kind::Grown as u32, tgid, tid: 0, generation, time_ns: site::now_ns() };
    // User space looks whether any has grown whenever it is woken.
    let _ = life::try_send(Life { header, child: index, status: 0, clone_flags: 0 });
    true
}
