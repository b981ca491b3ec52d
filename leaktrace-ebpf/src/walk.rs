//! The stack walker: from a thread's registers outwards, a few frames per call of a global function, which the
//! verifier checks once instead of once per call.
//!
//! What a walk found is kept by `reuse`, so that the next one need not walk the outer frames again.
//!
//! Tables come from user space (see `leaktrace_common::unwind`). Saved rbp and rbx are kept as *locations* and
//! read only when a rule needs them; stack memory is read through a window of 1 KiB.
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::{
    ffi::c_void,
    hint::black_box,
    ptr,
    sync::atomic::{Ordering, compiler_fence},
};
use leaktrace_common::unwind::{
    FRAME_EXACT, FRAME_GUESSED, GUESS_REACH, GUESS_TABLE, MAX_FRAMES, MAX_MAPPINGS, MAX_RULES, Mapping,
    NO_TABLE, PAGE_SHIFT, ProcessMappings, Row, Rule, SIGNAL_RBP, SIGNAL_RBX, SIGNAL_REGISTERS, SIGNAL_RIP,
    SIGNAL_RSP, SLAB_ROWS, Stop, kind, saved,
};

use crate::{
    maps::{PAGES, PROCESS_MAPS, RULES, SLABS},
    registers::read_user,
    reuse::{self, step},
    thread::Thread,
};

/// Frames walked by one call of [`walk_frames`]; 32 calls cover [`MAX_FRAMES`].
const FRAMES_PER_CALL: u32 = 4;
/// Calls that cover a stack of [`MAX_FRAMES`].
const CALLS: u32 = (MAX_FRAMES as u32).div_ceil(FRAMES_PER_CALL) + 1;
/// Words in the window.
const WINDOW_WORDS: usize = 128;
/// Bytes that are read into it at once,
const WINDOW_BYTES: u32 = 8 * WINDOW_WORDS as u32;
/// and where it is known that so many will do.
const SHORT_WINDOW_BYTES: u32 = 256;
/// Steps of a binary search over [`MAX_MAPPINGS`].
const MAPPING_STEPS: u32 = MAX_MAPPINGS.ilog2() + 1;
/// Steps of a binary search over the rows of a page: at most 65,535.
const ROW_STEPS: u32 = 16;
/// A window address that no stack address falls behind.
const NO_WINDOW: u64 = u64::MAX - (1 << 20);
/// The kernel puts its return trampoline at the start of a page.
pub const PAGE_MASK: u64 = 0xfff;

const RBX: u8 = 3;
const RBP: u8 = 6;
const RSP: u8 = 7;

/// Bits of [`Walk::flags`].
pub mod flags {
    /// `ip` is an instruction, not a return address.
    pub const EXACT: u32 = 1;
    /// A frame was guessed.
    pub const GUESSED: u32 = 2;
    /// Follow frame pointers.
    pub const FRAME_POINTERS: u32 = 4;
    /// Stop at `watch_slot` instead of collecting frames beyond it.
    pub const PROBE_WATCH: u32 = 8;
    /// A frame's return address was found at `watch_slot`.
    pub const MET_WATCH: u32 = 16;
    /// The outer part was taken from the thread's previous stack.
    pub const REUSED: u32 = 64;
    /// Stop where there is no unwind information.
    pub const NO_GUESSES: u32 = 128;
}

/// The walker's registers and window.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Walk {
    /// Address to look up next.
    pub ip: u64,
    /// The frame's stack pointer.
    pub sp: u64,
    /// rbp, valid while `rbp_at` is 0.
    pub rbp: u64,
    /// Where rbp was saved.
    pub rbp_at: u64,
    /// rbx, valid while `rbx_at` is 0.
    pub rbx: u64,
    /// Where rbx was saved.
    pub rbx_at: u64,
    /// The return slot of the call under way, whose word a return probe may have replaced; 0 without one.
    pub watch_slot: u64,
    /// The return address that belongs there.
    pub watch_return: u64,
    /// Where rbp was saved when the step under way began; 0 if nowhere.
    pub rbp_was_at: u64,
    /// rbp, as the step under way used it.
    pub used_rbp: u64,
    /// Address of the first word of `window`.
    pub window_at: u64,
    /// Index in PROCESS_MAPS.
    pub process: u32,
    /// The mapping that the last look-up found.
    pub hint: u32,
    /// Frames so far.
    pub count: u32,
    /// Frames wanted.
    pub limit: u32,
    /// [`Stop`].
    pub stop: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// The number of the mappings at the first frame.
    pub published: u32,
    /// How often the process had mapped code at the first frame.
    pub changes: u32,
    /// The code that was mapped since the mappings were published: no table of it is to be believed.
    pub pending_start: u64,
    /// First address after it; 0 when nothing is pending.
    pub pending_end: u64,
    /// Where the walk began: a return address, or an instruction;
    pub start_ip: u64,
    /// the stack pointer there,
    pub start_sp: u64,
    /// and rbp,
    pub start_rbp: u64,
    /// and rbx.
    pub start_rbx: u64,
    /// Bits of [`step`]: what the step under way depends on.
    pub step: u32,
    /// The salt of the mapping that the frame under way is in: what tells files at one address apart.
    pub salt: u32,
    /// Bytes of `window` that are read at once: [`SHORT_WINDOW_BYTES`] or [`WINDOW_BYTES`].
    pub window_bytes: u64,
    /// [`flags::EXACT`] where `start_ip` is an instruction, else 0.
    pub start_flags: u32,
    /// Zero.
    pub reserved: u32,
    /// A copy of stack memory.
    pub window: [u64; WINDOW_WORDS],
}

/// Walks from the registers in `thread` until it stops, or until the rest is known from the thread's previous
/// stack. The caller has set everything but the window. Inlined into functions of their own alone: each path that leads to
/// it would be verified with all of its rounds.
#[inline(always)]
pub fn run(thread: &mut Thread, may_reuse: bool) {
    forget_window(&mut thread.walk);
    let mut calls = 0;
    while calls < CALLS {
        calls += 1;
        if may_reuse && reuse::join_previous(thread) != 0 {
            return;
        }
        if walk_frames(thread) != 0 {
            return;
        }
    }
    thread.walk.stop = Stop::Depth as u32;
}

/// Walks a few frames; 1 when the walk has stopped. Not inlined: the verifier takes it as a global function and
/// checks it once. It may be given memory since Linux 5.13, which is older than the attach cookies that the
/// programs need; with a thread's id instead, the look-ups in each function cost a fifth of a walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_frames(thread: *mut Thread) -> u32 {
    if thread.is_null() {
        return 1;
    }
    // SAFETY: not null, and the verifier sees to it that callers pass an entry of THREADS; it belongs to the
    // current thread.
    let thread = unsafe { &mut *thread };
    let mut frames = 0;
    while frames < FRAMES_PER_CALL {
        frames += 1;
        let stop = match leave_frame(thread) {
            Ok(()) => continue,
            Err(stop) => stop,
        };
        thread.walk.stop = stop as u32;
        return 1;
    }
    0
}

/// Adds a frame to the stack.
#[inline(always)]
pub fn push(thread: &mut Thread, ip: u64, mark: u64) -> Result<(), Stop> {
    let count = thread.walk.count;
    if count >= thread.walk.limit {
        return Err(Stop::Depth);
    }
    reuse::note(thread, count);
    thread.stack.frames[(black_box(count) as usize) & MAX_FRAMES] = ip | mark;
    thread.walk.count = count + 1;
    Ok(())
}

/// From one frame to its caller.
#[inline(always)]
fn leave_frame(thread: &mut Thread) -> Result<(), Stop> {
    reuse::begin_step(&mut thread.walk);
    if thread.walk.flags & flags::FRAME_POINTERS != 0 {
        return follow_frame_pointer(thread, 0).map_err(|stop| match stop {
            Stop::Depth => Stop::Depth,
            _ => Stop::FramePointers,
        });
    }
    let walk = &mut thread.walk;
    let pc = walk.ip.wrapping_sub((walk.flags & flags::EXACT == 0) as u64);
    let mapping = match find_mapping(walk, pc) {
        Ok(mapping) => mapping,
        Err(stop) => {
            // Without a mapping, the number of changes tells stacks of different times apart.
            walk.salt = walk.changes;
            return Err(without_wild_guess(thread, stop));
        }
    };
    walk.salt = mapping.salt as u32;
    if mapping.first_page == GUESS_TABLE {
        return guess(thread);
    }
    if mapping.first_page == NO_TABLE {
        return Err(Stop::NoMapping);
    }
    let Ok(rule) = find_rule(&mapping, pc) else { return guess_if_wanted(thread) };
    match rule.kind {
        kind::REGISTER => {
            let base = match rule.cfa_register {
                RSP => walk.sp,
                RBP => rbp(walk)?,
                RBX => {
                    walk.step |= step::BARRIER;
                    rbx(walk)?
                }
                _ => return Err(Stop::Unsupported),
            };
            leave(thread, rule, base.wrapping_add(rule.cfa_offset as i64 as u64))
        }
        kind::SIGNAL => leave_signal_frame(thread),
        kind::OUTERMOST => Err(Stop::Complete),
        kind::DRAP => {
            walk.step |= step::BARRIER;
            let frame = rbp(walk)?;
            let at = frame.wrapping_add(rule.cfa_offset as i64 as u64);
            let cfa = read_user(at).ok_or(Stop::ReadFault)?;
            walk.rbp_at = frame;
            if rule.saved & saved::RBX != 0 {
                walk.rbx_at = frame.wrapping_add(rule.rbx_offset as i64 as u64);
            }
            // The offsets of saved registers count from rbp here, not from the CFA: they are done with.
            leave_at(thread, cfa)
        }
        kind::PLT => {
            let pushed = (pc & 15 >= rule.cfa_offset as u64) as u64;
            let cfa = walk.sp.wrapping_add(8 + 8 * pushed);
            leave(thread, rule, cfa)
        }
        kind::GUESS => guess(thread),
        kind::GO => leave_go_frame(thread),
        kind::NO_CFI => guess_if_wanted(thread),
        _ => Err(Stop::Unsupported),
    }
}

/// Takes the caller's registers from a frame whose CFA is known, and adds the caller to the stack.
#[inline(always)]
fn leave(thread: &mut Thread, rule: &Rule, cfa: u64) -> Result<(), Stop> {
    let walk = &mut thread.walk;
    if rule.saved & saved::RBP != 0 {
        walk.step |= step::SAVED_RBP;
        walk.rbp_at = cfa.wrapping_add(rule.rbp_offset as i64 as u64);
    }
    if rule.saved & saved::RBX != 0 {
        walk.rbx_at = cfa.wrapping_add(rule.rbx_offset as i64 as u64);
    }
    leave_at(thread, cfa)
}

/// Takes the return address below a CFA and adds the caller to the stack.
#[inline(always)]
fn leave_at(thread: &mut Thread, cfa: u64) -> Result<(), Stop> {
    let walk = &mut thread.walk;
    if cfa <= walk.sp {
        return Err(Stop::Backwards);
    }
    let slot = cfa.wrapping_sub(8);
    if slot == walk.watch_slot {
        walk.flags |= flags::MET_WATCH;
    }
    let return_address = read_return(walk, slot)?;
    if walk.flags & flags::PROBE_WATCH != 0 && slot >= walk.watch_slot {
        return Err(Stop::Complete);
    }
    if return_address <= PAGE_MASK && walk.flags & flags::GUESSED != 0 {
        // A guess further in was wrong about the stack pointer.
        return Err(Stop::Guessed);
    }
    if return_address == 0 {
        return Err(Stop::ZeroReturn);
    }
    walk.sp = cfa;
    walk.ip = return_address;
    walk.flags &= !flags::EXACT;
    push(thread, return_address, 0)
}

/// From a signal handler's trampoline to the code that the signal interrupted.
#[inline(always)]
fn leave_signal_frame(thread: &mut Thread) -> Result<(), Stop> {
    let walk = &mut thread.walk;
    walk.step |= step::BARRIER;
    let registers = walk.sp.wrapping_add(SIGNAL_REGISTERS);
    let ip = read_user(registers.wrapping_add(8 * SIGNAL_RIP)).ok_or(Stop::ReadFault)?;
    let sp = read_user(registers.wrapping_add(8 * SIGNAL_RSP)).ok_or(Stop::ReadFault)?;
    walk.rbp_at = registers.wrapping_add(8 * SIGNAL_RBP);
    walk.rbx_at = registers.wrapping_add(8 * SIGNAL_RBX);
    walk.ip = ip;
    walk.sp = sp;
    walk.flags |= flags::EXACT;
    push(thread, ip, FRAME_EXACT)
}

/// One frame-pointer step through code without unwind information.
#[inline(always)]
fn guess(thread: &mut Thread) -> Result<(), Stop> {
    thread.walk.flags |= flags::GUESSED;
    thread.walk.step |= step::BARRIER;
    follow_frame_pointer(thread, FRAME_GUESSED)
}

/// A guessed step through code of a file that says nothing of it: assembly, code that a program brought along.
#[inline(always)]
fn guess_if_wanted(thread: &mut Thread) -> Result<(), Stop> {
    if thread.walk.flags & (flags::NO_GUESSES | flags::PROBE_WATCH) != 0 {
        return Err(Stop::NoCfi);
    }
    guess(thread).map_err(|stop| match stop {
        Stop::Depth => Stop::Depth,
        _ => Stop::NoCfi,
    })
}

/// Takes a guessed frame back that lies in no mapping: no return address, after all.
#[inline(always)]
fn without_wild_guess(thread: &mut Thread, stop: Stop) -> Stop {
    let last = thread.walk.count.wrapping_sub(1);
    if thread.stack.frames[(black_box(last) as usize) & MAX_FRAMES] & FRAME_GUESSED == 0 {
        return stop;
    }
    thread.walk.count = last;
    Stop::Guessed
}

#[inline(always)]
fn follow_frame_pointer(thread: &mut Thread, mark: u64) -> Result<(), Stop> {
    let walk = &mut thread.walk;
    let frame = rbp(walk)?;
    if frame < walk.sp || frame - walk.sp > GUESS_REACH {
        return Err(Stop::Guessed);
    }
    leave_by_frame_pointer(thread, frame, mark)
}

/// One frame-pointer step in Go's code, which may lead from the thread's stack to a goroutine's.
#[inline(always)]
fn leave_go_frame(thread: &mut Thread) -> Result<(), Stop> {
    thread.walk.step |= step::BARRIER;
    match rbp(&mut thread.walk)? {
        0 => Err(Stop::Complete),
        frame => leave_by_frame_pointer(thread, frame, 0),
    }
}

/// Takes what a frame pointer points to: the caller's frame pointer and the return address.
#[inline(always)]
fn leave_by_frame_pointer(thread: &mut Thread, frame: u64, mark: u64) -> Result<(), Stop> {
    let walk = &mut thread.walk;
    let slot = frame.wrapping_add(8);
    let return_address = read_return(walk, slot)?;
    if return_address <= PAGE_MASK {
        return Err(Stop::Guessed);
    }
    walk.rbp_at = frame;
    walk.sp = frame.wrapping_add(16);
    walk.ip = return_address;
    walk.flags &= !flags::EXACT;
    push(thread, return_address, mark)
}

/// The return address at `slot`, from before a return probe replaced it.
#[inline(always)]
pub fn read_return(walk: &mut Walk, slot: u64) -> Result<u64, Stop> {
    if slot == walk.watch_slot { Ok(walk.watch_return) } else { read_stack(walk, slot) }
}

/// The value of rbp in the frame under way.
#[inline(always)]
pub fn rbp(walk: &mut Walk) -> Result<u64, Stop> {
    walk.step |= step::USED_RBP;
    if walk.rbp_at != 0 {
        walk.rbp = read_user(walk.rbp_at).ok_or(Stop::ReadFault)?;
        walk.rbp_at = 0;
    }
    walk.used_rbp = walk.rbp;
    Ok(walk.rbp)
}

#[inline(always)]
fn rbx(walk: &mut Walk) -> Result<u64, Stop> {
    if walk.rbx_at != 0 {
        walk.rbx = read_user(walk.rbx_at).ok_or(Stop::ReadFault)?;
        walk.rbx_at = 0;
    }
    Ok(walk.rbx)
}

/// Finds the mapping that holds `pc`: the one found last, else by binary search. A copy of it: user space may
/// rewrite the place once it has published twice, which is noticed by the number of publications.
#[inline(always)]
fn find_mapping(walk: &mut Walk, pc: u64) -> Result<Mapping, Stop> {
    let process = PROCESS_MAPS.get_ptr(walk.process).ok_or(Stop::NoMapping)?;
    // SAFETY: the value stays as long as the map; user space changes `active` with one store.
    let process = unsafe { &*process };
    // SAFETY: a plain field of the value.
    let loading = unsafe { ptr::read_volatile(&raw const process.loading) };
    if loading != 0 {
        return Err(Stop::NoMapping);
    }
    // SAFETY: a plain field of the value.
    let active = unsafe { ptr::read_volatile(&raw const process.active) };
    if walk.count == 1 {
        walk.published = active;
        note_pending(walk, process);
    }
    if pc >= walk.pending_start && pc < walk.pending_end {
        return Err(Stop::NoMapping);
    }
    let mappings = &process.copies[(black_box(active) & 1) as usize];
    let hinted = &mappings.entries[(black_box(walk.hint) as usize) & (MAX_MAPPINGS - 1)];
    if pc >= hinted.start && pc < hinted.end {
        return unchanged(process, active, *hinted);
    }
    let found = search_mapping(walk, pc, active);
    if found == 0 {
        let is_trampoline = walk.ip & PAGE_MASK == 0;
        return Err(if is_trampoline { Stop::Trampoline } else { Stop::NoMapping });
    }
    let index = found - 1;
    let found = &mappings.entries[(black_box(index) as usize) & (MAX_MAPPINGS - 1)];
    walk.hint = index;
    unchanged(process, active, *found)
}

/// The number of the mapping that holds `pc` in the copy that is `active`, and 1; 0 where there is none. Not inlined: a
/// binary search has many paths, and the verifier looks at them once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_mapping(walk: *mut Walk, pc: u64, active: u32) -> u32 {
    if walk.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier sees to it that callers pass a walk of an entry of THREADS.
    let walk = unsafe { &*walk };
    let Some(process) = PROCESS_MAPS.get_ptr(walk.process) else { return 0 };
    // SAFETY: the value stays as long as the map.
    let mappings = unsafe { &(&(*process).copies)[(black_box(active) & 1) as usize] };
    let mut low = 0;
    let mut high = mappings.count;
    let mut steps = 0;
    while steps < MAPPING_STEPS && low < high {
        steps += 1;
        let middle = (low + high) >> 1;
        if mappings.entries[(black_box(middle) as usize) & (MAX_MAPPINGS - 1)].start <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let found = &mappings.entries[(black_box(low.wrapping_sub(1)) as usize) & (MAX_MAPPINGS - 1)];
    if low == 0 || pc < found.start || pc >= found.end { 0 } else { low }
}

/// Notes what the process has mapped since its mappings were published.
#[inline(always)]
fn note_pending(walk: &mut Walk, process: &ProcessMappings) {
    // SAFETY: a plain field of the value.
    let changes = unsafe { ptr::read_volatile(&raw const process.changes) };
    // SAFETY: a plain field of the value.
    let covered = unsafe { ptr::read_volatile(&raw const process.covered) };
    walk.changes = changes;
    if changes != covered {
        walk.pending_start = process.pending_start;
        walk.pending_end = process.pending_end;
    }
}

/// What was copied, if nothing was published meanwhile: only then was the place not being rewritten.
#[inline(always)]
fn unchanged(process: &ProcessMappings, active: u32, copied: Mapping) -> Result<Mapping, Stop> {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: a plain field of the value.
    let now = unsafe { ptr::read_volatile(&raw const process.active) };
    if now == active && copied.end > copied.start { Ok(copied) } else { Err(Stop::NoMapping) }
}

/// Finds the rule in force at `pc`: the last row of its page that is not behind it.
#[inline(always)]
fn find_rule(mapping: &Mapping, pc: u64) -> Result<&'static Rule, Stop> {
    let offset = pc.wrapping_sub(mapping.bias);
    let page_number = offset >> PAGE_SHIFT;
    if page_number >= mapping.pages as u64 {
        return Err(Stop::NoCfi);
    }
    let page = PAGES.get(mapping.first_page.wrapping_add(page_number as u32)).ok_or(Stop::NoCfi)?;
    let rows = SLABS.get_ptr(page.slab as u32).ok_or(Stop::NoCfi)?.cast::<Row>();
    let low_bits = (offset & ((1 << PAGE_SHIFT) - 1)) as u32;
    let first = page.first;
    let mut low = first;
    let mut high = first.wrapping_add(page.rows as u32);
    if low == high {
        return Err(Stop::NoCfi);
    }
    let mut steps = 0;
    // By masks and not by branches: the verifier would follow each way through each step, and the processor guess it.
    while steps < ROW_STEPS && low < high {
        steps += 1;
        let middle = (low + high) >> 1;
        let row_bits = row_at(rows, middle) & 0xffff;
        // All ones where the row is behind `low_bits`, else 0.
        let is_behind = black_box((low_bits as u64).wrapping_sub(row_bits as u64) >> 32) as u32;
        low = low & is_behind | (middle + 1) & !is_behind;
        high = middle & is_behind | high & !is_behind;
    }
    let rule = row_at(rows, low.wrapping_sub(1)) >> 16;
    RULES.get(rule & (MAX_RULES as u32 - 1)).ok_or(Stop::NoCfi)
}

#[inline(always)]
fn row_at(rows: *const Row, index: u32) -> Row {
    let index = (black_box(index) as usize) & (SLAB_ROWS - 1);
    // SAFETY: the masked index lies in the slab.
    unsafe { ptr::read_volatile(rows.add(index)) }
}

/// Makes the window empty.
#[inline(always)]
pub fn forget_window(walk: &mut Walk) {
    walk.window_at = NO_WINDOW;
    walk.window_bytes = WINDOW_BYTES as u64;
}

/// Says that `bytes` of the stack are all that will be read from here on, or nothing is known of it.
#[inline(always)]
pub fn expect_reads(walk: &mut Walk, bytes: u64) {
    if walk.window_at == NO_WINDOW && bytes <= SHORT_WINDOW_BYTES as u64 {
        walk.window_bytes = SHORT_WINDOW_BYTES as u64;
    }
}

/// Reads a stack word through the window; on a fault behind the window, the word alone.
#[inline(always)]
pub fn read_stack(walk: &mut Walk, address: u64) -> Result<u64, Stop> {
    let offset = address.wrapping_sub(walk.window_at);
    if offset <= walk.window_bytes - 8 && offset & 7 == 0 {
        return Ok(walk.window[(black_box(offset >> 3) as usize) & (WINDOW_WORDS - 1)]);
    }
    if fill_window(walk, address) != 0 { Err(Stop::ReadFault) } else { Ok(walk.window[0]) }
}

/// Reads the stack from `address` on into the window; on a fault behind that, the word alone, which is not kept. Its first
/// word is the one at `address`. 1 when that cannot be read. Not inlined: it is seldom needed, in many places.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fill_window(walk: *mut Walk, address: u64) -> u32 {
    if walk.is_null() {
        return 1;
    }
    // SAFETY: see `search_mapping`; a walk belongs to the current thread.
    let walk = unsafe { &mut *walk };
    let window = (&raw mut walk.window).cast::<c_void>();
    let is_short = walk.window_bytes == SHORT_WINDOW_BYTES as u64;
    let length = if is_short { SHORT_WINDOW_BYTES } else { WINDOW_BYTES };
    // SAFETY: the window is as large as what is read; the helper checks the user address.
    if unsafe { bpf_probe_read_user(window, length, address as *const c_void) } == 0 {
        walk.window_at = address;
        return 0;
    }
    walk.window_at = NO_WINDOW;
    // SAFETY: as above.
    (unsafe { bpf_probe_read_user(window, 8, address as *const c_void) } != 0) as u32
}
