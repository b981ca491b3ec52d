//! Unwind tables and stacks as the kernel walker reads and writes them.
//!
//! A file's `.eh_frame` becomes [`Row`]s in ascending order of address, cut into pages of 64 KiB of text. A row
//! names a [`Rule`]; a [`Page`] says where its rows lie; a [`Mapping`] places a file's pages in a process.
use crate::{Plain, assert_layout};

/// Frames kept of a stack at the most.
pub const MAX_FRAMES: usize = 127;
/// Rows in one slab: 1 MiB of 4-byte rows.
pub const SLAB_ROWS: usize = 1 << 18;
/// Rules there can be: a row has 16 bits for one.
pub const MAX_RULES: usize = 16_384;
/// Mappings of one process.
pub const MAX_MAPPINGS: usize = 512;
/// Text covered by one page, as a shift.
pub const PAGE_SHIFT: u32 = 16;

/// Bit of a frame: the address is that of an interrupted or current instruction, not a return address, so it
/// is looked up as it is and not at the byte before.
pub const FRAME_EXACT: u64 = 1 << 63;
/// Bit of a frame: found by a guessed step.
pub const FRAME_GUESSED: u64 = 1 << 62;
/// The address in a frame.
pub const FRAME_ADDRESS: u64 = FRAME_GUESSED - 1;

/// A guessed step goes no further up the stack than this, in bytes.
pub const GUESS_REACH: u64 = 1 << 20;
/// Where a signal frame's registers lie, in bytes above its stack pointer: `uc_mcontext` of `rt_sigframe`
/// (arch/x86/include/asm/sigframe.h), after the return address was popped.
pub const SIGNAL_REGISTERS: u64 = 40;
/// Position of rip among them, in words of 8 bytes.
pub const SIGNAL_RIP: u64 = 16;
/// Position of rsp.
pub const SIGNAL_RSP: u64 = 15;
/// Position of rbp.
pub const SIGNAL_RBP: u64 = 10;
/// Position of rbx.
pub const SIGNAL_RBX: u64 = 11;

/// One row: low 16 bits of the first address it holds for, and its rule's number in the upper 16.
pub type Row = u32;

/// Packs a row from the offset in its page and a rule number.
pub const fn row(low: u16, rule: u16) -> Row {
    low as u32 | (rule as u32) << 16
}

/// How a frame's caller is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Rule {
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`saved`].
    pub saved: u8,
    /// DWARF number of the register that the CFA is computed from: 7 rsp, 6 rbp, 3 rbx.
    pub cfa_register: u8,
    /// Zero.
    pub reserved: u8,
    /// CFA = register + this, in bytes. For [`kind::PLT`], where in an entry the word has been pushed.
    pub cfa_offset: i32,
    /// rbp is saved at CFA + this, where [`saved::RBP`] is set.
    pub rbp_offset: i32,
    /// rbx is saved at CFA + this, where [`saved::RBX`] is set; for [`kind::DRAP`], at rbp + this.
    pub rbx_offset: i32,
}
assert_layout!(Rule, size = 16, align = 4);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Rule {}

/// Bits of [`Rule::saved`].
pub mod saved {
    /// The frame saved rbp.
    pub const RBP: u8 = 1;
    /// The frame saved rbx.
    pub const RBX: u8 = 2;
}

/// Values of [`Rule::kind`].
pub mod kind {
    /// CFA = register + offset; the return address is at CFA − 8.
    pub const REGISTER: u8 = 0;
    /// The return address is undefined: the outermost frame (`_start`, `clone3`).
    pub const OUTERMOST: u8 = 1;
    /// No unwind information: one frame-pointer step, marked as a guess, if guesses are wanted and it can be right.
    pub const NO_CFI: u8 = 2;
    /// A signal frame: registers are in the ucontext at rsp + 40 (x86-64 `rt_sigframe` after its return address).
    pub const SIGNAL: u8 = 3;
    /// CFA = *(rbp + offset), rbp saved at *(rbp) (GCC's dynamic realigned argument pointer).
    pub const DRAP: u8 = 4;
    /// The PLT's expression: CFA = rsp + 8 + (8 where the low 4 bits of the address are at least `cfa_offset`,
    /// which is 11, or 9 in entries that begin with `endbr64`).
    pub const PLT: u8 = 5;
    /// One frame-pointer step, marked as a guess: code without unwind information.
    pub const GUESS: u8 = 6;
    /// A rule that exists but is not supported.
    pub const UNSUPPORTED: u8 = 7;
    /// One frame-pointer step, to wherever it leads: Go's code keeps frame pointers (since Go 1.7), and crosses
    /// from the thread's stack to a goroutine's where C is called. A frame pointer of 0 ends the stack.
    pub const GO: u8 = 8;
}

/// Where the rows of 64 KiB of text lie. The first row of a page always starts at offset 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Page {
    /// Index of the first row in the slab.
    pub first: u32,
    /// How many rows; 0 means no unwind information.
    pub rows: u16,
    /// The slab.
    pub slab: u16,
}
assert_layout!(Page, size = 8, align = 4);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Page {}

/// One executable mapping of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Subtracted from an address to get its offset in the file's table, whose first page starts at 0.
    pub bias: u64,
    /// Index of the table's first page in PAGES, or [`NO_TABLE`] or [`GUESS_TABLE`].
    pub first_page: u32,
    /// How many pages the table has.
    pub pages: u16,
    /// A number that tells the file from others that are mapped at the same address at other times: it goes
    /// into the hash of a stack.
    pub salt: u16,
}
assert_layout!(Mapping, size = 32, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Mapping {}

/// [`Mapping::first_page`] of a file whose table is not there (yet): stop with `NoMapping`.
pub const NO_TABLE: u32 = u32::MAX;
/// [`Mapping::first_page`] of code without unwind information (JIT): guess one frame-pointer step.
pub const GUESS_TABLE: u32 = u32::MAX - 1;

/// A process's executable mappings in ascending order: one half of the value of PROCESS_MAPS.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Mappings {
    /// How many of `entries` are used.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Ascending by start, not overlapping.
    pub entries: [Mapping; MAX_MAPPINGS],
}
assert_layout!(Mappings, size = 8 + 32 * MAX_MAPPINGS, align = 8);

/// Value of PROCESS_MAPS: two copies, of which the walker reads the one named by the lowest bit of `active`; user
/// space writes the other, then switches by adding 1, with one 4-byte store.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessMappings {
    /// How often the mappings were published: a stack taken under another number is not reused, and a look-up
    /// that began under another number is void.
    pub active: u32,
    /// 1 while an exec's new image has no table yet: stacks stop at their first frame.
    pub loading: u32,
    /// How often the process has mapped code. Counted by the kernel programs.
    pub changes: u32,
    /// How many of those changes the active copy knows. While they are more, what lies between `pending_start`
    /// and `pending_end` is not to be believed. Written by user space.
    pub covered: u32,
    /// First address of the code mapped since.
    pub pending_start: u64,
    /// First address after it.
    pub pending_end: u64,
    /// The two copies.
    pub copies: [Mappings; 2],
}
assert_layout!(ProcessMappings, size = MAPPINGS_HEADER_BYTES + 2 * (8 + 32 * MAX_MAPPINGS), align = 8);

/// Bytes of [`ProcessMappings`] before its copies.
pub const MAPPINGS_HEADER_BYTES: usize = 32;

/// Why a stack ends where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stop {
    /// The walk is still under way.
    Walking = 0,
    /// The outermost frame was reached.
    Complete = 1,
    /// A return address in no known mapping.
    NoMapping = 2,
    /// No unwind information for an address.
    NoCfi = 3,
    /// Stack memory could not be read.
    ReadFault = 4,
    /// An unwind rule that is not supported.
    Unsupported = 5,
    /// A zero return address.
    ZeroReturn = 6,
    /// As many frames as are kept.
    Depth = 7,
    /// A frame not above the one before it.
    Backwards = 8,
    /// A return probe's trampoline.
    Trampoline = 9,
    /// A guessed step led nowhere.
    Guessed = 10,
    /// Walked by frame pointers to their end: how much is missing is not known.
    FramePointers = 11,
}

impl Stop {
    /// Every code, in the order of its number.
    pub const ALL: [Stop; 12] = [
        Stop::Walking,
        Stop::Complete,
        Stop::NoMapping,
        Stop::NoCfi,
        Stop::ReadFault,
        Stop::Unsupported,
        Stop::ZeroReturn,
        Stop::Depth,
        Stop::Backwards,
        Stop::Trampoline,
        Stop::Guessed,
        Stop::FramePointers,
    ];

    /// The code with this number; an unknown number is `Unsupported`.
    pub fn from_code(code: u32) -> Stop {
        Stop::ALL.get(code as usize).copied().unwrap_or(Stop::Unsupported)
    }

    /// The stable name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Stop::Walking => "walking",
            Stop::Complete => "complete",
            Stop::NoMapping => "no_mapping",
            Stop::NoCfi => "no_cfi",
            Stop::ReadFault => "read_fault",
            Stop::Unsupported => "unsupported",
            Stop::ZeroReturn => "zero_return",
            Stop::Depth => "depth",
            Stop::Backwards => "backwards",
            Stop::Trampoline => "trampoline",
            Stop::Guessed => "guessed",
            Stop::FramePointers => "frame_pointers",
        }
    }
}

/// The finaliser of splitmix64: one multiply-shift round of the stack hash.
#[inline(always)]
pub const fn hash_step(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}
