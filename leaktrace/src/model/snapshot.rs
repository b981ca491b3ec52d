//! The immutable view of all targets at one time. Everything that is printed, written or served is made from it.
use std::{collections::BTreeMap, sync::Arc};

use super::{
    estimate::Moments,
    events::EventView,
    memory::{MemoryView, WatchView},
    overhead::OverheadView,
    verdict::Verdict,
};

/// Nanoseconds since the Unix epoch, UTC.
pub type WallNs = i64;

/// How allocations were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every call.
    #[default]
    Exact,
    /// Poisson sampling by bytes with this mean interval.
    Sampled {
        /// Mean bytes between samples.
        interval_bytes: u64,
    },
    /// Mappings and RSS only.
    Growth,
}

/// All targets at one time.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Snapshot {
    /// When it was taken.
    pub time: WallNs,
    /// When tracing began.
    pub since: WallNs,
    /// Host name.
    pub host: String,
    /// How allocations were recorded.
    pub mode: Mode,
    /// Whether it is the last one of this run.
    pub last: bool,
    /// Traced processes, those that exited since the previous snapshot included.
    pub targets: Vec<TargetView>,
    /// What was not recorded or is only approximate since tracing began, by cause
    /// ([`leaktrace_common::counter::Counter::name`] and causes found in user space); zero entries are left out.
    pub losses: BTreeMap<String, u64>,
    /// Sentences about things that did not work and what to do: functions that could not be probed, tables full.
    pub notes: Vec<String>,
    /// Decisions since the previous snapshot that change what is recorded, oldest first.
    pub events: Vec<EventView>,
    /// Processes that are watched without being traced, where there are any.
    pub watched: Option<WatchView>,
    /// What it all comes to: in the last snapshot of `run`.
    pub verdict: Option<Verdict>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exited {
    /// Exit code, where it exited by itself.
    pub code: Option<i32>,
    /// Signal that killed it.
    pub signal: Option<i32>,
    /// The kernel killed it because memory had run out, the host's or its control group's.
    pub oom_killed: bool,
}

/// Tracing has probably killed a process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Harm {
    /// What was seen: a sentence without a full stop.
    pub reason: String,
    /// The function whose probe it died at, where that is known. Hostile.
    pub function: Option<String>,
    /// The file that it died in. Hostile.
    pub module: Option<String>,
    /// Where in that file.
    pub module_offset: Option<u64>,
}

/// The container that a process is in. All of it is hostile: escape before printing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContainerView {
    /// 64 hexadecimal digits, or what its bundle was called.
    pub id: String,
    /// Who made it: `docker`, `podman`, `containerd`, `cri-o`, `runc`, `unknown`.
    pub runtime: String,
    /// Its name: within its pod, where it is in one.
    pub name: Option<String>,
    /// Its pod's name.
    pub pod: Option<String>,
    /// Its pod's uid.
    pub pod_uid: Option<String>,
    /// Its pod's namespace.
    pub namespace: Option<String>,
    /// Its image, as it was asked for.
    pub image: Option<String>,
    /// The project that compose made it for.
    pub compose_project: Option<String>,
    /// The service in that project.
    pub compose_service: Option<String>,
}

impl ContainerView {
    /// The part of the id that people write: 12 digits, or a bundle's name.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).filter(|_| self.id.len() >= 32).unwrap_or(&self.id)
    }

    /// What people call it: its name, else the short id.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.short_id())
    }
}

/// One traced process image.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TargetView {
    /// Process id in leaktrace's pid namespace.
    pub pid: u32,
    /// When the process started, wall time.
    pub start_time: WallNs,
    /// When tracing of this image began, wall time.
    pub since: WallNs,
    /// `/proc/PID/comm`. Hostile: escape before printing.
    pub comm: String,
    /// Command line, words joined by spaces. Hostile: escape before printing.
    pub cmdline: String,
    /// Set once the process is gone.
    pub exited: Option<Exited>,
    /// Set if tracing has probably killed it.
    pub harm: Option<Harm>,
    /// Set when this image was replaced by exec.
    pub execed: bool,
    /// The traced parent it was forked from.
    pub parent: Option<u32>,
    /// The container that it is in.
    pub container: Option<ContainerView>,
    /// How long its program ran before its probes were set, where tracing began with the program: what it allocated
    /// then was not seen.
    pub unseen_ns: Option<u64>,
    /// Allocators found: name ("glibc", "jemalloc" …) and file.
    pub allocators: Vec<AllocatorView>,
    /// Totals over all heap sites.
    pub totals: Totals,
    /// Change of the outstanding bytes of all sites since the previous snapshot, per second.
    pub growth_bytes_per_second: Option<f64>,
    /// Heap that existed before tracing began, in bytes; 0 for `run`; `None` where it could not be read.
    pub heap_before_attach_bytes: Option<u64>,
    /// Frees of blocks that were not recorded; `None` where a size filter or sampling makes them meaningless.
    pub unmatched_frees: Option<u64>,
    /// Resident set size in bytes, where it could be read.
    pub rss_bytes: Option<u64>,
    /// Sites, in the order asked for, cut to the number asked for.
    pub sites: Vec<SiteView>,
    /// Sites that were cut.
    pub sites_cut: u64,
    /// What the cut sites hold.
    pub cut_totals: Totals,
    /// Of the stacks of shown and cut sites: how many end for which reason ([`leaktrace_common::unwind::Stop::name`]).
    pub stack_ends: BTreeMap<String, u64>,
    /// Losses of this target alone, by cause.
    pub losses: BTreeMap<String, u64>,
    /// Why a part of what it holds was not seen, as clauses: no allocator was found, functions could not be probed.
    pub unseen: Vec<String>,
    /// What its mappings hold, by class.
    pub mappings: MappingTotals,
    /// Its memory as the kernel accounts for it, where that could be read.
    pub memory: Option<MemoryView>,
    /// What tracing costs it, where its allocations are traced.
    pub overhead: Option<OverheadView>,
}

/// An allocator in a process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AllocatorView {
    /// Its name.
    pub name: String,
    /// The file it was found in.
    pub file: String,
    /// Functions probed.
    pub probed: u32,
    /// Functions that could not be probed, with the reason.
    pub failed: Vec<(String, String)>,
}

/// Anonymous memory of a process by what it is for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MappingTotals {
    /// Mapped by the program itself since tracing began: also shown as sites of kind mapping.
    pub program_bytes: u64,
    /// Mapped inside an allocation function: the allocator's own, already counted as heap.
    pub allocator_bytes: u64,
    /// Reserved: without access rights (PROT_NONE), or in sizes that are never used as a whole (MAP_NORESERVE).
    pub reserved_bytes: u64,
    /// Thread stacks.
    pub stack_bytes: u64,
    /// Growth of the program break.
    pub break_bytes: u64,
}

/// Sums of allocations: of the bytes that the program asked for, or in sampled mode estimates of the bytes that the
/// allocator took.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Totals {
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Blocks not freed.
    pub outstanding_count: u64,
    /// Bytes allocated since tracing began.
    pub allocated_bytes: u64,
    /// Blocks allocated since tracing began.
    pub allocated_count: u64,
    /// Bytes freed of those.
    pub freed_bytes: u64,
    /// Blocks freed of those.
    pub freed_count: u64,
    /// From `outstanding_bytes` to the farther end of its 95 % interval; 0 in exact mode.
    pub error_bytes: u64,
    /// From `outstanding_count` to the farther end of its 95 % interval; 0 in exact mode.
    pub error_count: u64,
    /// Bytes of the outstanding ones that were allocated before a pause in which frees were not watched: they may be
    /// gone.
    pub unverified_bytes: u64,
    /// Blocks of that kind.
    pub unverified_count: u64,
    /// In sampled mode, the sums that the outstanding part is estimated from.
    pub sampled: Option<Moments>,
}

/// What a site allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SiteKind {
    /// Blocks of an allocator.
    #[default]
    Heap,
    /// Memory mapped by the program itself.
    Mapping,
}

/// One allocation call stack.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct SiteView {
    /// Hash of the frames' modules, functions and offsets within them, as 16 hexadecimal digits: the same in the
    /// next run of the same build.
    pub id: String,
    /// What it allocates.
    pub kind: SiteKind,
    /// Sums.
    pub totals: Totals,
    /// Change of the outstanding bytes since the previous snapshot, per second.
    pub growth_bytes_per_second: Option<f64>,
    /// Age of the oldest live block in ns; `None` without live blocks.
    pub oldest_age_ns: Option<u64>,
    /// Lifetimes of freed blocks: counts by [`leaktrace_common::heap::lifetime_bucket`].
    pub lifetimes: Vec<u32>,
    /// The verdict, where the analysis has one.
    pub finding: Option<Finding>,
    /// A runtime keeps it for itself, on purpose.
    pub is_runtimes: bool,
    /// What keeps it from being a finding: a suppression, or "baseline".
    pub suppressed: Option<String>,
    /// From the allocation function's caller outwards; inlined frames before the frame they are inlined into. The same
    /// in the next snapshot, and then not copied.
    pub frames: Arc<[Frame]>,
    /// Why the stack ends where it does: [`leaktrace_common::unwind::Stop::name`].
    pub stack_end: &'static str,
    /// Single live blocks, with `--show-allocs`.
    pub blocks: Vec<BlockView>,
}

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockView {
    /// Its address.
    pub address: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Its age.
    pub age_ns: u64,
}

/// One recorded call, for `--trace`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct CallView {
    /// When, wall time.
    pub time: WallNs,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// `/proc/PID/comm`. Hostile.
    pub comm: String,
    /// The function that was called.
    pub function: String,
    /// Whether memory was given back rather than taken.
    pub free: bool,
    /// The block.
    pub address: u64,
    /// Its size; `None` where a free's block is not known.
    pub size_bytes: Option<u64>,
    /// The block that a reallocation gave back.
    pub old_address: Option<u64>,
    /// Who called; of a free, who allocated the block.
    pub frames: Vec<Frame>,
}

/// One frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frame {
    /// Address in the process: the return address, or the interrupted instruction.
    pub address: u64,
    /// File name of the mapped object, `[vdso]`, `[anon]`. Hostile.
    pub module: Option<String>,
    /// Build id in hexadecimal.
    pub build_id: Option<String>,
    /// Offset of the address in the module's file.
    pub module_offset: Option<u64>,
    /// Demangled function name. Hostile.
    pub function: Option<String>,
    /// Offset from the function's start.
    pub offset: Option<u64>,
    /// Source file. Hostile.
    pub file: Option<String>,
    /// Source line.
    pub line: Option<u32>,
    /// Whether it is inlined into the next frame that is not.
    pub inlined: bool,
    /// Whether it was found by a guess.
    pub guessed: bool,
    /// Why there is no function name.
    pub reason: Option<&'static str>,
}

/// How sure the analysis is that a site leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Could be a cache that still fills.
    Low,
    /// Grows steadily or is old.
    Medium,
    /// Grows steadily, nothing of it is freed, much is old; or still held at exit.
    High,
}

/// A verdict about a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// How sure it is.
    pub confidence: Confidence,
    /// What was seen, as a sentence with numbers.
    pub evidence: String,
    /// Steady growth in bytes per second, where there is one.
    pub growth_bytes_per_second: Option<f64>,
}
