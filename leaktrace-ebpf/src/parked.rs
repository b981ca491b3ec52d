//! Blocks that were freed and stay in their table for a while.
//!
//! Allocators hand out again what a thread has just freed. To insert an entry and delete it costs five times what it
//! takes to change one in place, so a thread leaves the blocks that it freed last in the table, marked as freed, and the
//! next allocation at such an address takes the entry over. Only the mark decides whether a block is live, and it is
//! changed atomically, because any thread may be given the address: a thread's list merely says what it is to remove.
//!
//! Marks stand where a live block has its stack ([`Block::is_live`]) and name the address: an entry that was removed
//! and reused for another address has another mark. Who finds an entry *claimed* sees the few instructions in which
//! another thread writes or removes it.
use core::{hint::black_box, ptr};
use leaktrace_common::{heap::Block, hook::slot_of_table, target::Target};

use crate::{count::exchange_if, tables, thread::Thread};

/// Blocks that a thread may leave: a power of two.
const PLACES: usize = 8;
/// How often an allocation looks for an entry that another thread is removing to be gone.
const PATIENCE: u32 = 64;

/// The blocks that a thread has left in the table.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parked {
    /// Their addresses; 0 where there is none.
    addresses: [u64; PLACES],
    /// The place for the next one: the one left longest ago.
    next: u64,
}

impl Parked {
    /// There is none.
    pub fn forget(&mut self) {
        let mut place = 0;
        while place < PLACES {
            self.addresses[black_box(place) & (PLACES - 1)] = 0;
            place += 1;
        }
    }
}

/// A table of live blocks.
pub type Live =
    aya_ebpf::btf_maps::HashMap<u64, Block, 1_048_576, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }>;

/// Takes the live block at `address` out of a table of `target` and leaves its entry there; a block of an earlier image of
/// the process is removed.
#[inline(always)]
pub fn take(target: &Target, thread: &mut Thread, live: &Live, address: u64) -> Option<Block> {
    let entry = live.get_ptr_mut(address)?;
    // SAFETY: the entry stays as long as the program runs; what it holds is plain, and nobody writes a live one.
    let block = unsafe { *entry };
    if !block.is_live() {
        return None;
    }
    if block.generation != target.generation as u16 {
        let _ = live.remove(address);
        return None;
    }
    if !change_mark(entry, block.stack, Block::freed_mark(address)) {
        return None;
    }
    let parked = &mut thread.parked;
    let place = &mut parked.addresses[(black_box(parked.next) as usize) & (PLACES - 1)];
    parked.next = parked.next.wrapping_add(1);
    let longest_ago = core::mem::replace(place, address);
    if longest_ago != 0 {
        if tables::bigger(target) == 0 {
            remove(live, longest_ago);
        } else {
            tables::remove_left(slot_of_table(target.table), longest_ago);
        }
    }
    Some(block)
}

/// Puts `block` into the entry that the thread has left at `address`, if it has.
#[inline(always)]
pub fn put_back(thread: &mut Thread, live: &Live, address: u64, block: &Block) -> bool {
    let parked = &mut thread.parked;
    let mut steps = 1;
    // What was left last is taken first.
    while steps <= PLACES as u64 {
        let index = parked.next.wrapping_sub(steps);
        let place = &mut parked.addresses[(black_box(index) as usize) & (PLACES - 1)];
        if *place == address {
            *place = 0;
            if steps == 1 {
                parked.next = index;
            }
            return take_over(live, address, block);
        }
        steps += 1;
    }
    false
}

/// Strikes an entry off the thread's list, because its block is about to be taken over.
#[inline(always)]
pub fn strike_off(parked: &mut Parked, address: u64) {
    let mut place = 0;
    while place < PLACES {
        let left = &mut parked.addresses[black_box(place) & (PLACES - 1)];
        if *left == address {
            *left = 0;
        }
        place += 1;
    }
}

/// Puts `block` into the table, where somebody has left an entry at its address or is removing one.
#[inline(always)]
pub fn insert_over(live: &Live, address: u64, block: &Block) -> bool {
    let mut tries = 0;
    while tries < PATIENCE {
        tries += 1;
        if take_over(live, address, block) || live.insert(address, block, crate::site::NO_EXIST).is_ok() {
            return true;
        }
    }
    false
}

/// Removes all entries that the thread has left in the tables of the process with this slot.
#[inline(always)]
pub fn remove_all(parked: &mut Parked, slot: u32) {
    let mut place = 0;
    while place < PLACES {
        let address = &mut parked.addresses[black_box(place) & (PLACES - 1)];
        let address = core::mem::replace(address, 0);
        if address != 0 {
            tables::remove_left(slot, address);
        }
        place += 1;
    }
}

/// Writes `block` into the entry at `address`, if that is marked as freed.
#[inline(always)]
pub fn take_over(live: &Live, address: u64, block: &Block) -> bool {
    let Some(entry) = live.get_ptr_mut(address) else { return false };
    if !change_mark(entry, Block::freed_mark(address), Block::claimed_mark(address)) {
        return false;
    }
    // SAFETY: the entry stays as long as the program runs, and nobody touches one that is claimed. The mark is given up
    // last; stores stay in their order on x86-64.
    unsafe {
        ptr::write_volatile(&raw mut (*entry).size_bytes, block.size_bytes);
        ptr::write_volatile(&raw mut (*entry).born_ns, block.born_ns);
        ptr::write_volatile(&raw mut (*entry).threshold, block.threshold);
        ptr::write_volatile(&raw mut (*entry).generation, block.generation);
        ptr::write_volatile(&raw mut (*entry).function, block.function);
        ptr::write_volatile(&raw mut (*entry).stack, block.stack);
    }
    true
}

/// Removes the entry at `address`, if it is marked as freed.
#[inline(always)]
pub fn remove(live: &Live, address: u64) {
    let Some(entry) = live.get_ptr_mut(address) else { return };
    if change_mark(entry, Block::freed_mark(address), Block::claimed_mark(address)) {
        let _ = live.remove(address);
    }
}

/// Changes what stands in the place of the entry's stack, if it is `from`; whether it was.
#[inline(always)]
fn change_mark(entry: *mut Block, from: u64, to: u64) -> bool {
    // SAFETY: the callers pass an entry, which stays as long as the program runs; an aligned word of it.
    unsafe { exchange_if(&raw mut (*entry).stack, from, to) }
}
