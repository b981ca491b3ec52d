//! Ring-buffer records: process life, mappings, calls and stacks. Each starts with a [`Header`].
use crate::{Plain, assert_layout, unwind::MAX_FRAMES};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A thread or process was made: [`Life`].
    Fork = 1,
    /// A process image was replaced: [`Life`].
    Exec = 2,
    /// The last thread of a process ended: [`Life`].
    Exit = 3,
    /// A system call changed mappings: [`MappingChange`].
    Mapping = 4,
    /// An allocation or free, with [`crate::target::flags::TRACE_CALLS`]: [`Call`].
    Call = 5,
    /// Frames of a stack seen for the first time: [`Stack`].
    Stack = 6,
    /// A process that is not traced may be one that a standing order means: [`Life`], with [`Appearance`] for a status.
    Appeared = 7,
    /// The kernel is about to kill a process because memory has run out: [`Life`].
    OutOfMemory = 8,
    /// Memory of a stack that could not be walked to its end: [`StackCopy`].
    Copy = 9,
    /// A signal that ends programs is delivered to a traced process, which has no handler for it: [`FatalSignal`].
    Signal = 10,
    /// A process has been given a bigger table of live blocks: [`Life`], with its index in LIVE as the child.
    Grown = 11,
}

/// Why a process that is not traced is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Appearance {
    /// It has another program.
    Exec = 1,
    /// It is in another control group.
    ControlGroup = 2,
    /// It has another name. An exec gives one too, before the new program is there.
    Name = 3,
}

/// Where the process id can be in the record of `cgroup:cgroup_attach_task`: before Linux 5.16 and its corrections to
/// older kernels, and since.
pub const MOVED_PID: [u64; 2] = [20, 24];

impl Kind {
    /// The kind with this number.
    pub fn from_code(code: u32) -> Option<Kind> {
        use Kind::{Appeared, Call, Copy, Exec, Exit, Fork, Grown, Mapping, OutOfMemory, Signal, Stack};
        [Fork, Exec, Exit, Mapping, Call, Stack, Appeared, OutOfMemory, Copy, Signal, Grown]
            .into_iter()
            .find(|kind| *kind as u32 == code)
    }
}

/// The front of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// [`Kind`].
    pub kind: u32,
    /// The process (thread group id).
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// The process image.
    pub generation: u32,
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
}
assert_layout!(Header, size = 24, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Header {}

/// Fork, exec and exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Life {
    /// The front.
    pub header: Header,
    /// Fork: the child's tgid. Exec: the id that the thread had before, if it was not the first thread's. Otherwise 0.
    pub child: u32,
    /// Exit: the wait status (exit code in bits 8 to 15, signal in bits 0 to 6), where the kernel gave it.
    pub status: u32,
    /// Fork: the clone flags (linux/sched.h).
    pub clone_flags: u64,
}
assert_layout!(Life, size = 40, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Life {}

/// Where the members of the `signal:signal_deliver` record are (Linux 2.6.38 and later): signal, code, handler.
pub const SIGNAL_FIELDS: [(&str, u64); 3] = [("sig", 8), ("code", 16), ("sa_handler", 24)];

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FatalSignal {
    /// The front; the thread is the one that takes the signal.
    pub header: Header,
    /// SIGILL, SIGTRAP or SIGSEGV.
    pub signal: i32,
    /// `si_code`: where the signal comes from.
    pub code: i32,
    /// The user instruction pointer.
    pub instruction: u64,
}
assert_layout!(FatalSignal, size = 40, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for FatalSignal {}

/// Which system call changed mappings, and at which end of it the record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Change {
    /// mmap returned: a mapping at `address`.
    Map = 1,
    /// munmap is about to run: `address`, `length_bytes` leave.
    Unmap = 2,
    /// munmap failed: what left comes back.
    UnmapFailed = 3,
    /// mremap is about to run: `old_address`, `old_length_bytes` leave.
    Remap = 4,
    /// mremap returned: the mapping is at `address` now, or back where it was if `result` is an error.
    Remapped = 5,
    /// brk returned: the program break is at `address`.
    Break = 6,
}

/// A mapping system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MappingChange {
    /// The front.
    pub header: Header,
    /// [`Change`].
    pub change: u32,
    /// 1 when the call was made inside an allocation function: the mapping is the allocator's own.
    pub in_allocator: u32,
    /// See [`Change`].
    pub address: u64,
    /// Bytes, as passed.
    pub length_bytes: u64,
    /// mremap only.
    pub old_address: u64,
    /// mremap only.
    pub old_length_bytes: u64,
    /// PROT_ bits of mmap.
    pub protection: u32,
    /// MAP_ or MREMAP_ bits.
    pub flags: u32,
    /// What the system call returned.
    pub result: i64,
    /// Hash of the stack; 0 where none was taken.
    pub stack: u64,
    /// mmap's file descriptor, −1 for anonymous memory.
    pub fd: i32,
    /// Zero.
    pub reserved: u32,
}
assert_layout!(MappingChange, size = 96, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for MappingChange {}

/// One recorded call, for `--trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Call {
    /// The front.
    pub header: Header,
    /// The block.
    pub address: u64,
    /// Its size; of a free, the size of the block that was freed (0 where it was unknown).
    pub size_bytes: u64,
    /// Reallocation: the block that was given back, else 0.
    pub old_address: u64,
    /// Hash of the stack; of a free, the hash of the stack that allocated the block.
    pub stack: u64,
    /// Index of the function in the agent's list.
    pub function: u32,
    /// 1 for a free.
    pub free: u32,
}
assert_layout!(Call, size = 64, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Call {}

/// Frames of a stack, innermost first. Only `count` frames are sent.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stack {
    /// The front.
    pub header: Header,
    /// What blocks and sites refer to it by.
    pub hash: u64,
    /// How many frames follow.
    pub count: u32,
    /// [`crate::unwind::Stop`], plus [`STACK_GUESSED`] where a frame is a guess.
    pub stop: u32,
    /// Return addresses; the first is the caller of the allocation function.
    pub frames: [u64; MAX_FRAMES + 1],
}
assert_layout!(Stack, size = 40 + 8 * (MAX_FRAMES + 1), align = 8);

/// Bit of [`Stack::stop`]: at least one frame was found by a guessed step.
pub const STACK_GUESSED: u32 = 1 << 31;
/// Bytes of a [`Stack`] before its frames.
pub const STACK_HEADER_BYTES: usize = 40;

/// Pages of stack memory in a [`StackCopy`]: the one that the stack pointer lies in, and 16 KiB above it.
pub const COPY_PAGES: usize = 5;
/// Bytes of a page.
pub const COPY_PAGE_BYTES: usize = 4096;

/// Registers and memory of a stack that stopped because a mapping's table is not there yet: user space finishes
/// it once the table is. Sent once, after the [`Stack`] of the same hash.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackCopy {
    /// The front.
    pub header: Header,
    /// The hash of the stack as far as it was walked.
    pub hash: u64,
    /// The first frame, with its mark.
    pub frame: u64,
    /// The stack pointer in it.
    pub sp: u64,
    /// rbp in it.
    pub rbp: u64,
    /// rbx in it.
    pub rbx: u64,
    /// The return slot whose word a return probe may have replaced; 0 without one.
    pub watch_slot: u64,
    /// The return address that belongs there.
    pub watch_return: u64,
    /// How many pages could be read, from the one that holds `sp` on.
    pub pages: u32,
    /// How many frames were found without the table.
    pub frames: u32,
    /// The pages. What lies behind those that were read is not defined.
    pub memory: [[u8; COPY_PAGE_BYTES]; COPY_PAGES],
}
assert_layout!(StackCopy, size = COPY_HEADER_BYTES + COPY_PAGES * COPY_PAGE_BYTES, align = 8);

/// Bytes of a [`StackCopy`] before its pages.
pub const COPY_HEADER_BYTES: usize = 24 + 8 * 8;
