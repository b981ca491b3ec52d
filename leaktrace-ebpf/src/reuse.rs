//! Reuse of a thread's previous stack: two allocations in a row mostly differ in their innermost frames only, so
//! the outer ones need not be walked again, but only proven to be the same.
//!
//! A frame and everything outside of it follows from its address, its stack pointer, and the words on the stack
//! that its steps read: return addresses, and rbp where a rule uses it. So when a walk comes to a frame that the
//! previous stack had at the same place, those words are read again, without looking up any mapping, row or
//! rule. If all are as they were, the rest is as it was. Steps that depend on more than that (signal frames,
//! realigned stacks, rbx, guesses) are barriers: what is inside of one is walked again.
//!
//! The hash of a stack is made from its outermost frame inwards, so that the hash of an outer part can be kept
//! with its innermost frame, and a stack has the same hash whether it was walked or reused.
use core::{hint::black_box, ptr};
use leaktrace_common::unwind::{FRAME_ADDRESS, MAX_FRAMES, Stop, hash_step};

use crate::{
    maps::PROCESS_MAPS,
    thread::Thread,
    walk::{self, Walk, flags},
};

/// Places in the arrays: a power of two, so that an index can be masked.
const PLACES: usize = MAX_FRAMES + 1;
/// Steps that one call of [`prove_steps`] reads again, and calls that cover a stack of [`MAX_FRAMES`].
const STEPS_PER_CALL: u32 = 8;
const CALLS: u32 = (MAX_FRAMES as u32).div_ceil(STEPS_PER_CALL);
/// Times that a walk tries to prove an outer part: of deep recursions, many frames look alike.
const TRIES: u32 = 3;
/// Where in the hash input the table's number goes: above any user address.
const SALT_SHIFT: u32 = 48;

/// Bits that say what the step out of a frame depends on.
pub mod step {
    /// The value of rbp.
    pub const USED_RBP: u32 = 1;
    /// The frame saved rbp: what is outside of it does not depend on rbp in it.
    pub const SAVED_RBP: u32 = 2;
    /// More than is kept.
    pub const BARRIER: u32 = 4;
    /// In [`super::Known`]: something further out, up to where rbp is saved, uses it.
    pub const NEEDS_RBP: u32 = 8;
}

/// What the walk under way notes of a frame, next to its address in the stack record.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Noted {
    /// Its stack pointer.
    sp: u64,
    /// rbp, where the step out of it used that.
    rbp: u64,
    /// Where that was saved, relative to `sp`; 0 if nowhere.
    rbp_at: i32,
    /// Bits of [`step`].
    step: u16,
    /// The table of its file.
    salt: u16,
}

/// What is known of a frame of the previous stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Known {
    /// Its address, with its marks.
    frame: u64,
    /// Its stack pointer.
    sp: u64,
    /// rbp as it must be in it, with [`step::USED_RBP`] or [`step::NEEDS_RBP`].
    rbp: u64,
    /// Hash of the frame and everything outside of it.
    hash: u64,
    /// See [`Noted`].
    rbp_at: i32,
    /// Bits of [`step`]; a barrier further out counts.
    step: u32,
}

/// The previous stack of a thread.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Previous {
    /// How many frames; 0 when there is nothing to reuse.
    count: u32,
    /// The frame looked at last by the walk under way.
    cursor: u32,
    /// Proofs tried by the walk under way.
    tries: u32,
    /// The process's slot when it was taken,
    slot: u32,
    /// and the number of the mappings that were published.
    published: u32,
    /// Frames that the walk under way has taken over.
    kept: u32,
    /// Where [`keep_stack`] begins: frames that were walked and are to be kept,
    walked: u32,
    /// the place of the outermost of them,
    place: u32,
    /// and what lies outside of it.
    outside: Outside,
    /// The frames, the *outermost* first.
    known: [Known; PLACES],
}

impl Previous {
    /// There is nothing to reuse.
    pub fn forget(&mut self) {
        self.count = 0;
    }
}

/// Prepares for a walk of `thread`.
#[inline(always)]
pub fn prepare(thread: &mut Thread) {
    let previous = &mut thread.previous;
    previous.cursor = previous.count;
    previous.tries = 0;
    previous.kept = 0;
    thread.walk.step = 0;
    thread.walk.salt = 0;
}

/// A step out of a frame begins.
#[inline(always)]
pub fn begin_step(walk: &mut Walk) {
    walk.step = 0;
    walk.rbp_was_at = walk.rbp_at;
}

/// Notes the frame that becomes number `count`, and what the step to it depended on.
#[inline(always)]
pub fn note(thread: &mut Thread, count: u32) {
    let walk = &thread.walk;
    if count > 0 {
        let left = &mut thread.noted[(black_box(count - 1) as usize) & MAX_FRAMES];
        note_step(left, walk);
    }
    let reached = &mut thread.noted[(black_box(count) as usize) & MAX_FRAMES];
    reached.sp = walk.sp;
    reached.step = 0;
    reached.salt = 0;
}

#[inline(always)]
fn note_step(left: &mut Noted, walk: &Walk) {
    let mut step = walk.step;
    let mut relative = 0;
    if step & step::USED_RBP != 0 {
        left.rbp = walk.used_rbp;
        if walk.rbp_was_at != 0 {
            relative = walk.rbp_was_at.wrapping_sub(left.sp) as i64;
            if relative != relative as i32 as i64 || relative == 0 {
                step |= step::BARRIER;
            }
        }
    }
    left.rbp_at = relative as i32;
    left.step = step as u16;
    left.salt = walk.salt as u16;
}

/// Where the thread's previous stack and the walk under way meet, takes the rest of the previous stack, if it can be
/// proven to be the same. 1 when it did.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn join_previous(thread: *mut Thread) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    if !is_current(thread) {
        return 0;
    }
    let Some(meeting) = find_meeting(thread) else { return 0 };
    if !is_proven(thread, meeting) {
        return 0;
    }
    thread.previous.kept = meeting;
    thread.walk.stop = Stop::Complete as u32;
    thread.walk.flags |= flags::REUSED;
    1
}

/// Whether the previous stack was taken in the same mappings.
#[inline(always)]
fn is_current(thread: &mut Thread) -> bool {
    let previous = &mut thread.previous;
    if previous.cursor == 0 || previous.tries >= TRIES || previous.slot != thread.walk.process {
        return false;
    }
    matches!(published(&thread.walk), Some(number) if number == previous.published)
}

/// The number of the mappings that are published; none while there are none, or while they are out of date.
#[inline(always)]
fn published(walk: &Walk) -> Option<u32> {
    let process = PROCESS_MAPS.get_ptr(walk.process)?;
    // SAFETY: the value stays as long as the map; the field is plain.
    let loading = unsafe { ptr::read_volatile(&raw const (*process).loading) };
    // SAFETY: the value stays as long as the map; the field is plain.
    let active = unsafe { ptr::read_volatile(&raw const (*process).active) };
    // SAFETY: the value stays as long as the map; the field is plain.
    let changes = unsafe { ptr::read_volatile(&raw const (*process).changes) };
    // SAFETY: the value stays as long as the map; the field is plain.
    let covered = unsafe { ptr::read_volatile(&raw const (*process).covered) };
    (loading == 0 && changes == covered).then_some(active)
}

/// The number of frames of the previous stack from the outermost to the one that the walk has reached.
#[inline(always)]
fn find_meeting(thread: &mut Thread) -> Option<u32> {
    let reached = thread.walk.count.wrapping_sub(1);
    let frame = thread.stack.frames[(black_box(reached) as usize) & MAX_FRAMES];
    let sp = thread.walk.sp;
    let mut cursor = thread.previous.cursor;
    let mut looked = 0;
    while looked < MAX_FRAMES && cursor > 0 {
        looked += 1;
        if thread.previous.known[(black_box(cursor - 1) as usize) & MAX_FRAMES].sp >= sp {
            break;
        }
        cursor -= 1;
    }
    thread.previous.cursor = cursor;
    if cursor == 0 {
        return None;
    }
    let known = thread.previous.known[(black_box(cursor - 1) as usize) & MAX_FRAMES];
    if known.sp != sp || known.frame != frame || known.step & step::BARRIER != 0 {
        return None;
    }
    // A stack that is cut at the limit ends elsewhere: walk it.
    if thread.walk.count + cursor - 1 > thread.walk.limit {
        return None;
    }
    if known.step & step::NEEDS_RBP != 0 && rbp(&mut thread.walk) != Ok(known.rbp) {
        return None;
    }
    Some(cursor)
}

/// rbp in the frame that the walk has reached. Does not note it as read: where it was saved stays known.
#[inline(always)]
fn rbp(walk: &mut Walk) -> Result<u64, Stop> {
    if walk.rbp_at == 0 { Ok(walk.rbp) } else { walk::read_stack(walk, walk.rbp_at) }
}

/// Reads again what the steps of the `count` outermost frames of the previous stack have read.
#[inline(always)]
fn is_proven(thread: &mut Thread, count: u32) -> bool {
    thread.previous.tries += 1;
    let innermost_sp = thread.walk.sp;
    let outermost_sp = thread.previous.known[0].sp;
    walk::expect_reads(&mut thread.walk, outermost_sp.wrapping_sub(innermost_sp));
    let mut inner = count - 1;
    let mut calls = 0;
    while calls < CALLS && inner > 0 {
        calls += 1;
        if prove_steps(thread, inner) == 0 {
            walk::forget_window(&mut thread.walk);
            return false;
        }
        inner = inner.saturating_sub(STEPS_PER_CALL);
    }
    true
}

/// Reads again what the steps out of some frames of the previous stack have read, from the one numbered `inner` (the
/// outermost is 0) outwards. 0 where something has changed. Not inlined: the verifier looks at its paths once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prove_steps(thread: *mut Thread, inner: u32) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let walk = &mut thread.walk;
    let known = &thread.previous.known;
    let mut inner = inner;
    let mut looked = 0;
    while looked < STEPS_PER_CALL && inner > 0 {
        looked += 1;
        let from = &known[(black_box(inner) as usize) & MAX_FRAMES];
        inner -= 1;
        let to = &known[(black_box(inner) as usize) & MAX_FRAMES];
        if walk::read_return(walk, to.sp.wrapping_sub(8)) != Ok(to.frame & FRAME_ADDRESS) {
            return 0;
        }
        if from.step & step::USED_RBP == 0 || from.rbp_at == 0 {
            continue;
        }
        let rbp_at = from.sp.wrapping_add(from.rbp_at as i64 as u64);
        // What lies further in was compared by value where the stacks meet.
        if rbp_at >= walk.sp && walk::read_stack(walk, rbp_at) != Ok(from.rbp) {
            return 0;
        }
    }
    1
}

/// The hash of the stack, where the walk has met the previous stack in its first frame: nothing but the number of frames
/// changes then.
#[inline(always)]
pub fn kept_whole(thread: &mut Thread) -> Option<u64> {
    if thread.walk.flags & flags::REUSED == 0 || thread.walk.count != 1 {
        return None;
    }
    let previous = &mut thread.previous;
    previous.count = previous.kept;
    thread.walk.count = previous.kept;
    Some(previous.known[(black_box(previous.kept.wrapping_sub(1)) as usize) & MAX_FRAMES].hash)
}

/// The walk has ended: computes the hash of its stack and makes it the thread's previous one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep_stack(thread: *mut Thread) -> u64 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let is_reused = thread.walk.flags & flags::REUSED != 0;
    let count = thread.walk.count;
    let previous = &mut thread.previous;
    if is_reused {
        // The frame where they meet is known already.
        let known = &previous.known[(black_box(previous.kept.wrapping_sub(1)) as usize) & MAX_FRAMES];
        previous.outside = Outside { hash: known.hash, rbp: known.rbp, step: known.step, reserved: 0 };
        previous.place = previous.kept;
        previous.walked = count.wrapping_sub(1);
    } else {
        // Zeros in a row would become a call of a function that clears byte by byte.
        previous.outside = Outside { hash: thread.walk.stop as u64, rbp: black_box(0), step: 0, reserved: 0 };
        previous.place = 0;
        previous.walked = count;
        let outermost = &mut thread.noted[(black_box(count.wrapping_sub(1)) as usize) & MAX_FRAMES];
        outermost.salt = thread.walk.salt as u16;
    }
    // Read back: the verifier, which does not know what is in a map, follows the loop once for both cases.
    // SAFETY: fields of the entry, which belongs to the current thread.
    let mut walked = unsafe { ptr::read_volatile(&raw const previous.walked) };
    // SAFETY: as above.
    let mut place = unsafe { ptr::read_volatile(&raw const previous.place) };
    // SAFETY: as above.
    let mut outside = unsafe { ptr::read_volatile(&raw const previous.outside) };
    let mut added = 0;
    while added < MAX_FRAMES && walked > 0 {
        added += 1;
        walked -= 1;
        let noted = thread.noted[(black_box(walked) as usize) & MAX_FRAMES];
        let frame = thread.stack.frames[(black_box(walked) as usize) & MAX_FRAMES];
        outside.add(&mut thread.previous.known[(black_box(place) as usize) & MAX_FRAMES], &noted, frame);
        place += 1;
    }
    thread.walk.count = place;
    let is_whole = thread.walk.stop == Stop::Complete as u32;
    thread.previous.count = if is_whole { place } else { 0 };
    if !is_reused && is_whole {
        thread.previous.slot = thread.walk.process;
        thread.previous.published = thread.walk.published;
    }
    outside.hash
}

/// What the frames added so far mean for the next one further in.
#[derive(Clone, Copy)]
#[repr(C)]
struct Outside {
    hash: u64,
    rbp: u64,
    step: u32,
    /// Zero.
    reserved: u32,
}

impl Outside {
    #[inline(always)]
    fn add(&mut self, known: &mut Known, noted: &Noted, frame: u64) {
        self.hash = hash_step(self.hash, frame ^ (noted.salt as u64) << SALT_SHIFT);
        let own = noted.step as u32;
        // By masks and not by branches: the verifier would follow each of them in each of many rounds.
        let used = is_set(own, step::USED_RBP);
        let saved = is_set(own, step::SAVED_RBP);
        self.rbp = noted.rbp & used | self.rbp & !used;
        let needed = step::NEEDS_RBP as u64 & (used | self.step as u64 & !saved);
        let step = own | self.step & step::BARRIER | needed as u32;
        self.step = step;
        known.frame = frame;
        known.sp = noted.sp;
        known.rbp = self.rbp;
        known.hash = self.hash;
        known.rbp_at = noted.rbp_at;
        known.step = step;
    }
}

/// All ones where `bit` is set in `word`, else 0. The compiler must not see which of the two it is.
#[inline(always)]
fn is_set(word: u32, bit: u32) -> u64 {
    black_box(0u64.wrapping_sub((word as u64) >> bit.trailing_zeros() & 1))
}

/// Lays the frames of the stack that was kept last into the stack record, innermost first.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lay_out_stack(thread: *mut Thread) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: see [`walk::walk_frames`].
    let thread = unsafe { &mut *thread };
    let mut place = thread.walk.count;
    let mut laid = 0;
    while laid < MAX_FRAMES && place > 0 {
        place -= 1;
        let frame = thread.previous.known[(black_box(place) as usize) & MAX_FRAMES].frame;
        thread.stack.frames[(black_box(laid) as usize) & MAX_FRAMES] = frame;
        laid += 1;
    }
    laid as u32
}
