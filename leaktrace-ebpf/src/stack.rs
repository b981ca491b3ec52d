//! Taking a stack: start state, walk, and interning under a 64-bit hash so that frames are sent once.
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_user, bpf_ringbuf_output};
use core::{ffi::c_void, hint::black_box};
use leaktrace_common::{
    counter::Counter,
    event::{COPY_PAGE_BYTES, COPY_PAGES, Kind, STACK_GUESSED, STACK_HEADER_BYTES, StackCopy},
    heap::{NO_STACK, stack_id},
    hook::slot_of_table,
    target::{self, Target},
    unwind::{FRAME_EXACT, MAX_FRAMES, Stop, hash_step},
};

use crate::{
    count::{Counters, count},
    maps::{COPIES, STACK_IDS, STACKS, TARGETS},
    registers::Registers,
    reuse,
    thread::{self, INTERNED, Thread},
    walk,
};

/// Where a walk starts.
#[derive(Clone, Copy)]
pub struct Start {
    /// A return address, or with `exact` the current instruction.
    pub ip: u64,
    /// The stack pointer in that frame.
    pub sp: u64,
    /// Whether `ip` is an instruction.
    pub exact: bool,
}

/// The id of the stack in `start`'s frame and outwards.
#[inline(always)]
pub fn take(target: &Target, thread: &mut Thread, regs: &Registers, start: Start) -> u64 {
    if target.stack_depth == 0 {
        return NO_STACK;
    }
    begin(thread, regs, start);
    thread.walk.watch_slot = thread.call.slot;
    thread.walk.watch_return = thread.call.return_address;
    take_stack(thread, slot_of_table(target.table))
}

/// The id of the stack that [`begin`] has set the start of, of a thread whose process has this slot. The one function that
/// takes stacks. Not inlined: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_stack(thread: *mut Thread, slot: u32) -> u64 {
    let Some(target) = TARGETS.get(slot) else { return NO_STACK };
    if thread.is_null() {
        return NO_STACK;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let mut hash = walk_once(target, thread, true);
    let counters = Counters::of(target);
    if thread.walk.flags & walk::flags::REUSED != 0 {
        counters.add_roughly(Counter::StacksReused, 1);
        if target.flags & target::flags::VERIFY_REUSE != 0 {
            let frames = thread.walk.count;
            let full = walk_once(target, thread, false);
            if full != hash || thread.walk.count != frames {
                counters.add(Counter::ReuseMismatches, 1);
            }
            hash = full;
        }
    }
    counters.add_roughly(Counter::Stacks, 1);
    counters.add_roughly(Counter::Frames, thread.walk.count as u64);
    counters.add_stop(thread.walk.stop);
    let hash = hash_step(hash, (target.owner as u64) << 32 | target.generation as u64);
    let hash = stack_id(hash);
    intern(target, thread, hash);
    hash
}

/// Walks, and keeps what was found; returns the hash of the frames.
#[inline(always)]
fn walk_once(target: &Target, thread: &mut Thread, may_reuse: bool) -> u64 {
    prepare(target, thread);
    thread.walk.limit = target.stack_depth;
    let may_reuse = may_reuse && thread.walk.flags & walk::flags::FRAME_POINTERS == 0;
    let mark = if thread.walk.start_flags & walk::flags::EXACT != 0 { FRAME_EXACT } else { 0 };
    let start_ip = thread.walk.start_ip;
    if walk::push(thread, start_ip, mark).is_ok() {
        walk::run(thread, may_reuse);
    }
    reuse::kept_whole(thread).unwrap_or_else(|| reuse::keep_stack(thread))
}

/// Whether a call whose return address is `watch.1`, at address `watch.0`, is under way: whether the walk from
/// `start` passes that word. `None` where the walk cannot tell.
#[inline(always)]
pub fn passes_call(
    target: &Target,
    thread: &mut Thread,
    regs: &Registers,
    start: Start,
    watch: (u64, u64),
) -> Option<bool> {
    begin(thread, regs, start);
    (thread.walk.watch_slot, thread.walk.watch_return) = watch;
    match walk_to_watch(thread, slot_of_table(target.table)) {
        PASSES => Some(true),
        PASSES_NOT => Some(false),
        _ => None,
    }
}

/// Answers of [`walk_to_watch`]; all others mean that the walk cannot tell.
const PASSES: u32 = 1;
const PASSES_NOT: u32 = 2;

/// Whether the walk that [`begin`] has set the start of, of a thread whose process has this slot, passes the word at
/// `watch_slot`. Not inlined: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_to_watch(thread: *mut Thread, slot: u32) -> u32 {
    let Some(target) = TARGETS.get(slot) else { return 0 };
    if thread.is_null() {
        return 0;
    }
    if target.slot == target::NO_SLOT || target.flags & target::flags::FRAME_POINTERS != 0 {
        return 0;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    prepare(target, thread);
    thread.walk.limit = MAX_FRAMES as u32;
    thread.walk.flags |= walk::flags::PROBE_WATCH;
    walk::run(thread, false);
    if thread.walk.flags & walk::flags::MET_WATCH != 0 {
        return PASSES;
    }
    if thread.walk.stop == Stop::Complete as u32 { PASSES_NOT } else { 0 }
}

/// Sets where a walk begins.
#[inline(always)]
fn begin(thread: &mut Thread, regs: &Registers, start: Start) {
    let walk = &mut thread.walk;
    walk.start_ip = start.ip;
    walk.start_sp = start.sp;
    walk.start_rbp = regs.rbp;
    walk.start_rbx = regs.rbx;
    walk.start_flags = if start.exact { walk::flags::EXACT } else { 0 };
}

/// Sets the walker's registers to where the walk begins.
#[inline(always)]
fn prepare(target: &Target, thread: &mut Thread) {
    reuse::prepare(thread);
    let walk = &mut thread.walk;
    walk.ip = walk.start_ip;
    walk.sp = walk.start_sp;
    walk.rbp = walk.start_rbp;
    walk.rbp_at = 0;
    walk.rbx = walk.start_rbx;
    walk.rbx_at = 0;
    walk.process = target.slot;
    // Three words in a row would become a call of a function that clears byte by byte.
    walk.pending_start = black_box(0);
    walk.pending_end = 0;
    walk.changes = 0;
    walk.hint = 0;
    walk.count = 0;
    walk.stop = Stop::Walking as u32;
    walk.flags = walk.start_flags;
    if target.flags & target::flags::FRAME_POINTERS != 0 {
        walk.flags |= walk::flags::FRAME_POINTERS;
    }
    if target.flags & target::flags::NO_GUESSES != 0 {
        walk.flags |= walk::flags::NO_GUESSES;
    }
}

/// Sends the frames the first time a hash is seen.
#[inline(always)]
fn intern(target: &Target, thread: &mut Thread, hash: u64) {
    // A process that is traced anew has another table, and its stacks are to be sent again.
    let known = hash ^ (target.table as u64) << 32;
    let place = &mut thread.interned[(black_box(hash) as usize) & (INTERNED - 1)];
    if *place == known {
        return;
    }
    if STACK_IDS.get_ptr(hash).is_some() {
        *place = known;
        return;
    }
    const NO_EXIST: u64 = 1;
    if let Err(error) = STACK_IDS.insert(hash, 1, NO_EXIST) {
        const EEXIST: i32 = -17;
        if error != EEXIST {
            count(target, Counter::StacksFull);
        }
        return;
    }
    if thread.walk.flags & walk::flags::REUSED != 0 {
        reuse::lay_out_stack(thread);
    }
    let stack = &mut thread.stack;
    stack.header.kind = Kind::Stack as u32;
    stack.header.tgid = target.owner;
    stack.header.tid = thread::current().0;
    stack.header.generation = target.generation;
    // SAFETY: a helper without preconditions.
    stack.header.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    stack.hash = hash;
    stack.count = thread.walk.count;
    stack.stop = thread.walk.stop;
    if thread.walk.flags & walk::flags::GUESSED != 0 {
        stack.stop |= STACK_GUESSED;
    }
    let frames = (black_box(thread.walk.count) as usize) & MAX_FRAMES;
    let bytes = (STACK_HEADER_BYTES + 8 * frames) as u64;
    let ring = (&raw const STACKS).cast_mut().cast::<c_void>();
    let record = (&raw mut *stack).cast::<c_void>();
    // SAFETY: `bytes` is at most the size of the record.
    if unsafe { bpf_ringbuf_output(ring, record, bytes, 0) } != 0 {
        let _ = STACK_IDS.remove(hash);
        count(target, Counter::StacksDeferred);
        return;
    }
    if thread.walk.stop == Stop::NoMapping as u32 && thread.walk.flags & walk::flags::FRAME_POINTERS == 0 {
        let outcome = if send_copy(thread) == 0 { Counter::StackCopies } else { Counter::CopiesDropped };
        count(target, outcome);
    }
}

/// Sends the memory of the stack that was sent just now, for user space to walk once it has the table that is
/// missing: page by page, because what lies above the stack's end cannot be read. 1 when there was no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_copy(thread: *mut Thread) -> u32 {
    if thread.is_null() {
        return 1;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let Some(mut entry) = COPIES.reserve_untyped::<StackCopy>(0) else { return 1 };
    let copy = entry.as_mut_ptr();
    let walk = &thread.walk;
    let page = walk.start_sp & !(COPY_PAGE_BYTES as u64 - 1);
    let mut header = thread.stack.header;
    header.kind = Kind::Copy as u32;
    let mut pages = 0;
    while pages < COPY_PAGES {
        // SAFETY: a field of the reserved record.
        let to = unsafe { (&raw mut (*copy).memory[pages]).cast::<c_void>() };
        let from = page.wrapping_add((pages * COPY_PAGE_BYTES) as u64);
        // SAFETY: a page of the record; the helper checks the user address.
        if unsafe { bpf_probe_read_user(to, COPY_PAGE_BYTES as u32, from as *const c_void) } != 0 {
            break;
        }
        pages += 1;
    }
    // SAFETY: fields of the reserved record, which this program alone can see.
    unsafe {
        (*copy).header = header;
        (*copy).hash = thread.stack.hash;
        (*copy).frame = thread.stack.frames[0];
        (*copy).sp = walk.start_sp;
        (*copy).rbp = walk.start_rbp;
        (*copy).rbx = walk.start_rbx;
        (*copy).watch_slot = walk.watch_slot;
        (*copy).watch_return = walk.watch_return;
        (*copy).pages = pages as u32;
        (*copy).frames = walk.count;
    }
    entry.submit(0);
    0
}
