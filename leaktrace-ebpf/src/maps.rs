//! Every map, with who writes it, who reads it, why it has its size, and what happens when it is full.
//! User space overrides the sizes that depend on options before loading.
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, Queue, RingBuf},
    macros::btf_map,
};
use leaktrace_common::{
    counter::TALLY_WORDS,
    event,
    heap::{Block, SiteKey, SiteTotals},
    hook::{Hits, SLOTS},
    near::{self, NearSite},
    sample::FILTER_LENGTH,
    target::{Process, Target},
    unwind::{MAX_RULES, Page, ProcessMappings, Row, Rule, SLAB_ROWS},
};

use crate::thread::Thread;

/// One entry per counter: the value of [`TALLIES`].
pub type Tally = [u64; TALLY_WORDS];

/// Traced processes, by slot: a probe's cookie names the slot of the process that it is set for, and what is found
/// there says whose it is, so that a hit needs no hash. User space writes an entry when it makes a target and changes
/// single words of it later; the fork tracepoint writes those of children, the exec tracepoint bumps the generation.
/// An entry is given to another process only when no program can be looking at it any more. There are as many as
/// there can be targets, and one that is nobody's.
#[btf_map]
pub static TARGETS: Array<Target, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Where a process's settings are: for hits on probes that are set for another process, and for tracepoints. User space
/// adds and removes; the fork tracepoint adds children, the exec tracepoint moves a vfork child from its parent's slot
/// to one of its own. Full: user space reports the process as not traced.
#[btf_map]
pub static PROCESSES: HashMap<u32, Process, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Counters by slot; those of [`NOBODY`](leaktrace_common::target::NOBODY) are in the slot of nobody. User space sets
/// them to zero before it gives the slot away; programs only add. Per CPU and added to atomically, because a program can
/// be preempted between load and store.
#[btf_map]
pub static TALLIES: PerCpuArray<Tally, { SLOTS as usize }> = PerCpuArray::new();

/// Probe hits of each process and what they cost it, for the governor. Programs add, user space reads differences and
/// never resets. No atomic addition, because every hit pays for it: what is lost when a program is preempted in the
/// middle does not matter to an estimate.
#[btf_map]
pub static HITS: PerCpuArray<Hits, { SLOTS as usize }> = PerCpuArray::new();

/// How many live blocks of sampled processes fall to each place, by a hash of their addresses: where there is none,
/// a free is of a block that was not sampled, which most are. Programs count up before a block is inserted; whoever takes
/// one out counts down.
#[btf_map]
pub static FILTER: Array<[u32; FILTER_LENGTH], 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Keys of tables of live blocks that no process uses yet, for processes that traced ones make: user space keeps
/// a few in it, the fork and exec tracepoints take them out. Empty: the child is traced once user space has seen
/// it, and what it allocated before is counted as a late start.
#[btf_map]
pub static SPARE_TABLES: Queue<u32, 64> = Queue::new();

/// Indices in LIVE of bigger tables that no process uses yet: see [`crate::tables`]. User space keeps a few in each, a
/// program whose process's tables are full takes one out. Empty: the allocation is counted as `blocks_full`.
#[btf_map]
pub static MIDDLE_TABLES: Queue<u32, 64> = Queue::new();

/// As [`MIDDLE_TABLES`]: those with room for the rest of `--max-blocks`.
#[btf_map]
pub static LARGE_TABLES: Queue<u32, 64> = Queue::new();

/// Live blocks: inner maps for each process, so that a noisy process cannot push out another's blocks: a small one by
/// slot, and bigger ones behind the slots ([`crate::tables`]). User space makes them (`--max-blocks` entries in all),
/// programs fill them. Full: the allocation is counted as `blocks_full` and not recorded; nothing is ever evicted, because
/// the oldest blocks are the leak. Each thread may leave a few entries of blocks that it has freed ([`crate::parked`]). An
/// inner map is replaced only when its process is gone.
#[btf_map]
pub static LIVE: ArrayOfMaps<
    HashMap<u64, Block, 1048576, { BPF_F_NO_PREALLOC as usize }>,
    { SLOTS as usize },
> = ArrayOfMaps::new();

/// Totals by site, of those that are not in [`NEAR_SITES`]. Programs insert and add; user space reads, and deletes those
/// of processes that are gone. Full (`--max-sites`): the allocation is counted as `sites_full` and not recorded.
#[btf_map]
pub static SITES: HashMap<SiteKey, SiteTotals, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// A [`SiteTotals`] of zeros: the value that new sites start from (on the program stack, it would make chains of calls too
/// deep for Linux up to 6.12). Nobody writes it.
#[btf_map]
pub static NEW_SITE: Array<SiteTotals, 1> = Array::new();

/// Totals of the sites that were first at their places ([`near`]). Programs take places and add; user space reads, and
/// gives up the places of processes that are gone.
#[btf_map]
pub static NEAR_SITES: Array<NearSite, { 1 + near::SITES as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// Stack hashes whose frames were sent to user space. Programs insert, user space deletes those of processes
/// that are gone. Full: the stack is still counted under its hash, its frames are unknown (`stacks_full`).
#[btf_map]
pub static STACK_IDS: HashMap<u64, u32, 262144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// State of each thread that was seen and is not in [`NEAR_THREADS`]: the call under way and the walker's scratch memory.
/// Programs insert at the thread's first hit and delete at its exit. Full: the allocation is counted as `threads_full`.
#[btf_map]
pub static THREADS: HashMap<u32, Thread, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// State of the threads that were first at their places ([`near`]). Programs take and give up places, user space gives up
/// those of threads whose exits will not be seen.
#[btf_map]
pub static NEAR_THREADS: Array<Thread, { 1 + near::THREADS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// A [`Thread`] of zeros: the value that new entries start from (it does not fit on the program stack).
#[btf_map]
pub static NEW_THREAD: Array<Thread, 1> = Array::new();

/// Process life and mappings. Full: `events_dropped`.
#[btf_map]
pub static EVENTS: RingBuf<event::Life, 1048576> = RingBuf::new();

/// Frames of new stacks. Full: `stacks_deferred`, and sent again at the stack's next hit.
#[btf_map]
pub static STACKS: RingBuf<event::Stack, 4194304> = RingBuf::new();

/// Memory of stacks that stopped for want of a table, 20 KiB each; user space says how much fits. Full:
/// `copies_dropped`, and the stack stays cut.
#[btf_map]
pub static COPIES: RingBuf<event::StackCopy, 16777216> = RingBuf::new();

/// Single calls, for `--trace`. Full: `trace_dropped`.
#[btf_map]
pub static CALLS: RingBuf<event::Call, 4194304> = RingBuf::new();

/// Unwind rows: user space makes a slab when it has something to write into it, and writes through a shared mapping; the
/// walker reads. The number of slabs is the memory budget for unwind tables.
#[btf_map]
static UNWIND_ROWS: ArrayOfMaps<Array<[Row; SLAB_ROWS], 1, { BPF_F_MMAPABLE as usize }>, 64> =
    ArrayOfMaps::new();

/// Access to [`UNWIND_ROWS`].
pub struct Slabs;

/// The slabs of unwind rows.
pub static SLABS: Slabs = Slabs;

impl Slabs {
    /// The rows of a slab, if user space has made it.
    #[inline(always)]
    pub fn get_ptr(&self, slab: u32) -> Option<*const [Row; SLAB_ROWS]> {
        UNWIND_ROWS.get(slab)?.get_ptr(0)
    }
}

/// Unwind rules, shared by all files. Written by user space.
#[btf_map]
pub static RULES: Array<Rule, MAX_RULES, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Where the rows of 64 KiB of text lie. Written by user space; 65,536 pages cover 4 GiB of text.
#[btf_map]
pub static PAGES: Array<Page, 65536, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Executable mappings by process slot. Written by user space, two copies each; the exec tracepoint sets
/// `loading`, the mmap tracepoint says what has changed since. As many as there can be targets. Not made on demand: every
/// step of a walk looks here, and one more look-up would cost each of them 1 %.
#[btf_map]
pub static PROCESS_MAPS: Array<ProcessMappings, 256, { BPF_F_MMAPABLE as usize }> = Array::new();
