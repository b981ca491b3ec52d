//! What is kept for each thread: the allocation call under way and the walker's scratch memory.
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use core::ptr;
use leaktrace_common::{event, heap::Block, near, unwind::MAX_FRAMES};

use crate::{
    count::exchange_if,
    maps::{NEAR_THREADS, NEW_THREAD, THREADS},
    parked::Parked,
    reuse::{Noted, Previous},
    walk::Walk,
};

/// Places for stacks that are known to be interned: a power of two.
pub const INTERNED: usize = 16;

/// Value of the maps THREADS and NEAR_THREADS.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    /// In the array, the thread's id; 0 where it is nobody's. First, because user space gives it up.
    pub owner: u64,
    /// The outermost allocation call that has not returned.
    pub call: Call,
    /// The last call that sampling passed over although it may call other probed functions.
    pub passed: Passed,
    /// The last address that was freed, and where its call's return address was: a free function that reaches
    /// another one fires twice.
    pub freed_address: u64,
    /// See `freed_address`.
    pub freed_slot: u64,
    /// What it has freed last and left in the table.
    pub parked: Parked,
    /// A block that was set aside and has just been taken out.
    pub aside: Block,
    /// Stacks that are known to be interned, by their lowest bits; see `stack`.
    pub interned: [u64; INTERNED],
    /// The walker's registers.
    pub walk: Walk,
    /// The stack being taken, ready to be sent.
    pub stack: event::Stack,
    /// What the walk under way notes of its frames.
    pub noted: [Noted; MAX_FRAMES + 1],
    /// The stack that was taken last.
    pub previous: Previous,
}

/// What a thread costs in the kernel.
const _: () = assert!(size_of::<Thread>() <= 12 << 10);

/// An allocation call under way.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Call {
    /// Address of the word that holds its return address; 0 when no call is under way.
    pub slot: u64,
    /// The return address: 0 until the call has returned, or its stack is taken.
    pub return_address: u64,
    /// The hook's cookie.
    pub cookie: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// What the new block's record says: bytes asked for, or taken if it was sampled.
    pub recorded_bytes: u64,
    /// What the new block's record says: its sampling threshold.
    pub threshold: u32,
    /// 0 when sampling passed the call over: only what it ends is of interest, and what it calls is its own.
    pub is_recorded: u32,
    /// Reallocation: the old block's address. Out-parameter: where the new address is stored.
    pub pointer: u64,
    /// The stack, where it was taken at entry; else 0.
    pub stack: u64,
    /// Reallocation: the old block, taken out of the LIVE map; its size is [`NO_OLD_BLOCK`] if it was unknown.
    pub old: Block,
}

/// A call that was not sampled: what it calls is not to be drawn for again. Nothing ends it; `sample` tells
/// whether it is still under way.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Passed {
    /// Address of the word that holds its return address; 0 when there was none.
    pub slot: u64,
    /// That word.
    pub return_address: u64,
    /// The hook's cookie.
    pub cookie: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// When it began, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
}

/// The size that marks `Call::old` as absent.
pub const NO_OLD_BLOCK: u64 = u64::MAX;

/// The current thread's id and process id in the initial pid namespace.
#[inline(always)]
pub fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    (both as u32, (both >> 32) as u32)
}

/// The entry of thread `tid`, if it has one.
#[inline(always)]
pub fn existing(tid: u32) -> Option<*mut Thread> {
    near_entry(tid).or_else(|| THREADS.get_ptr_mut(tid))
}

/// The entry of thread `tid`, made if need be; `None` when there is no room.
#[inline(always)]
pub fn entry(tid: u32) -> Option<*mut Thread> {
    if let Some(thread) = existing(tid) {
        return Some(thread);
    }
    if make_entry(tid) == 0 {
        return None;
    }
    existing(tid)
}

/// The entry of thread `tid` in the array, if it has its place.
#[inline(always)]
fn near_entry(tid: u32) -> Option<*mut Thread> {
    let place = NEAR_THREADS.get_ptr_mut(near::place_of_thread(tid))?;
    // SAFETY: the entry stays; its first word is written in one piece.
    (unsafe { ptr::read_volatile(&raw const (*place).owner) } == tid as u64).then_some(place)
}

/// Makes the entry of thread `tid`, which has none: nobody else does, because a thread runs one program at a time. 0 when
/// there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_entry(tid: u32) -> u32 {
    if let Some(place) = NEAR_THREADS.get_ptr_mut(near::place_of_thread(tid)) {
        // SAFETY: the entry stays, and belongs to this thread once its first word says so.
        let is_taken = unsafe { exchange_if(&raw mut (*place).owner, 0, tid as u64) };
        if is_taken {
            // SAFETY: as above.
            unsafe { (*place).renew() };
            return 1;
        }
    }
    let Some(zeros) = NEW_THREAD.get(0) else { return 0 };
    THREADS.insert(tid, zeros, 0).is_ok() as u32
}

/// Drops the entry of thread `tid`, if it has one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn drop_entry(tid: u32) -> u32 {
    if let Some(place) = near_entry(tid) {
        // SAFETY: the entry stays; from here on it is nobody's.
        unsafe { ptr::write_volatile(&raw mut (*place).owner, 0) };
        return 1;
    }
    THREADS.remove(tid).is_ok() as u32
}

impl Thread {
    /// Makes what another thread has left as good as new.
    #[inline(always)]
    fn renew(&mut self) {
        self.call.slot = 0;
        self.passed.slot = 0;
        self.freed_address = 0;
        self.parked.forget();
        self.previous.forget();
    }
}
