//! TARGETS and PROCESSES: which processes are traced, and how.
use crate::{Plain, assert_layout};

/// Value of the TARGETS map, by slot ([`crate::hook::slot_of_table`]). With [`flags::TRACED`] the process is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// The process whose LIVE map and sites take the records: itself, or the parent whose memory a vfork child
    /// shares.
    pub owner: u32,
    /// The image: bumped by the exec tracepoint.
    pub generation: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Index of the process's mapping table in PROCESS_MAPS, or [`NO_SLOT`].
    pub slot: u32,
    /// Allocations smaller than this are not recorded.
    pub min_size_bytes: u64,
    /// Allocations larger than this are not recorded.
    pub max_size_bytes: u64,
    /// Mean bytes between samples; 0 records every call.
    pub sample_interval_bytes: u64,
    /// Frames kept of each stack, 1 to [`crate::unwind::MAX_FRAMES`]; 0 takes no stacks.
    pub stack_depth: u32,
    /// Key of the process's table of live blocks in the LIVE map.
    pub table: u32,
    /// The bigger tables that it has come to need: [`Bigger`] as one word.
    pub bigger: u64,
}
assert_layout!(Target, size = 56, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Target {}

/// The bigger tables of live blocks of a process: indices in the LIVE map, behind the slots; 0 where it has none. A kernel
/// program that finds the process's tables full puts one here that user space keeps ready. None is taken back before the
/// process is let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bigger {
    /// The one that is needed first.
    pub middle: u32,
    /// The one that has room for all the rest.
    pub large: u32,
}

impl Bigger {
    /// Of a process that is let go: nothing can be put here any more, and nothing is found by it.
    pub const CLOSED: Bigger = Bigger { middle: u32::MAX, large: u32::MAX };

    /// Unpacks [`Target::bigger`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Bigger {
        Bigger { middle: word as u32, large: (word >> 32) as u32 }
    }

    /// Packs it.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.middle as u64 | (self.large as u64) << 32
    }
}

/// No mapping table yet: stacks stop at their first frame with `NoMapping`.
pub const NO_SLOT: u32 = u32::MAX;

/// Value of the PROCESSES map, keyed by tgid: where a traced process's settings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// Key of the table of live blocks, and by it the slot: its own, or that of the parent whose memory it shares.
    pub table: u32,
    /// The parent's image when it began to share that.
    pub generation: u32,
}
assert_layout!(Process, size = 8, align = 4);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Process {}

/// The tally of what belongs to no target: no process has this id.
pub const NOBODY: u32 = 0;

/// The slot that no process gets.
pub const NOBODYS_SLOT: u32 = 0;

/// Bits of [`Target::flags`].
pub mod flags {
    /// Send each recorded call as an event.
    pub const TRACE_CALLS: u32 = 1 << 0;
    /// Walk stacks by frame pointers instead of unwind tables.
    pub const FRAME_POINTERS: u32 = 1 << 1;
    /// Record allocations; without it only mappings and process life are reported (growth mode, a pause).
    pub const ALLOCATIONS: u32 = 1 << 2;
    /// Report mappings.
    pub const MAPPINGS: u32 = 1 << 3;
    /// Walk every stack twice, with and without reuse, and count differences.
    pub const VERIFY_REUSE: u32 = 1 << 4;
    /// The slot is the parent's: it describes the same mappings until an exec.
    pub const SHARED_SLOT: u32 = 1 << 6;
    /// Trace children made by fork, and report them.
    pub const FOLLOW: u32 = 1 << 5;
    /// Guess no step of a stack: it ends where nothing says how to go on.
    pub const NO_GUESSES: u32 = 1 << 7;
    /// The process is traced: the entry is not one that was left behind.
    pub const TRACED: u32 = 1 << 8;
}
