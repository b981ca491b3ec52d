//! What the agent keeps for one traced process image.
use std::{collections::HashMap, rc::Rc, sync::Arc};

use super::{
    attachment::AllocatorCode, code::CodeOverTime, governor::Governor, meter::Meter, options::TraceOptions,
    stillness::Stillness, tables::ProcessTables, tracer::harm::LastWord,
};
use crate::{
    attach::links::Links,
    discover::{container::Container, object::FileIdentity, process::Process},
    drain::maps::Tally,
    model::{
        blocks::Blocks,
        history::History,
        mappings::Mappings,
        memory::MemorySeries,
        sites::Corrections,
        snapshot::{AllocatorView, Exited, Frame, Harm, WallNs},
        stacks::ImageKey,
    },
};

/// A traced process image.
pub struct Tracked {
    /// Facts from /proc at the time it was added.
    pub process: Process,
    /// Its table of live blocks.
    pub table: u32,
    /// Which image of the process.
    pub image: ImageKey,
    /// When tracing of the image began, in ns of CLOCK_BOOTTIME.
    pub since_boot_ns: u64,
    /// The same as wall time.
    pub since: WallNs,
    /// The traced process that it was forked from.
    pub parent: Option<u32>,
    /// The container that it is in.
    pub container: Option<Arc<Container>>,
    /// When it executed its program, in ns of CLOCK_BOOTTIME, if it was traced then and no allocator of the program has been
    /// found yet.
    pub executed_ns: Option<u64>,
    /// How long its program ran before its probes were set, where that is known.
    pub unseen_ns: Option<u64>,
    /// The kernel killed it because memory ran out.
    pub oom: Option<OutOfMemory>,
    /// Links by the file they are in.
    pub attached: HashMap<FileIdentity, Attached>,
    /// Those that a former image had, for some time: the kernel keeps them over an exec, and the files may not be mapped
    /// again yet.
    pub carried: HashMap<FileIdentity, Attached>,
    /// Its unwind tables.
    pub tables: ProcessTables,
    /// Which files its addresses belong to, now and lately.
    pub code: CodeOverTime,
    /// Its anonymous memory.
    pub mappings: Mappings,
    /// Whether it does anything.
    pub stillness: Stillness,
    /// Its blocks as they were read last.
    pub blocks: KeptBlocks,
    /// Blocks found to be gone.
    pub corrections: Corrections,
    /// Earlier summaries.
    pub history: History,
    /// Mean bytes between samples; 0 where every call is recorded.
    pub sample_interval_bytes: u64,
    /// Heap from before tracing.
    pub heap_before_bytes: Option<u64>,
    /// The kernel's counters when the image began: they run on over an exec.
    pub tally_before: Tally,
    /// Things that did not work, as sentences.
    pub notes: Vec<String>,
    /// Why it must not have probes: it has come to be a target all the same, and is to be one no longer.
    pub refused: Option<String>,
    /// Probes were set.
    pub was_probed: bool,
    /// The last that the kernel said of it: a signal that ends it.
    pub last_word: Option<LastWord>,
    /// Set when tracing has probably killed it.
    pub harm: Option<Harm>,
    /// Those of them for which a part of what it allocates may not be seen.
    pub doubts: Vec<String>,
    /// Set when the process ended.
    pub exited: Option<Exited>,
    /// It was gone at the last summary, and no word of its end had come.
    pub seems_gone: bool,
    /// Executable mappings changed in a way that is not known: look again.
    pub is_stale: bool,
    /// A file was mapped that may hold an allocator.
    pub has_new_files: bool,
    /// What watching it costs, and what of it is watched.
    pub care: Care,
}

/// Blocks of a process that does nothing are read once: finding a few in a table for a million takes milliseconds.
#[derive(Debug, Default)]
pub struct KeptBlocks {
    blocks: Option<Rc<Blocks>>,
    /// What the sums were before they were read.
    signature: u64,
    /// They were read again after the sums had stood still: nothing that was under way then is missing.
    is_settled: bool,
}

impl KeptBlocks {
    /// Blocks that are kept; of more, reading takes longer than finding.
    const MOST: usize = 1 << 14;

    /// The blocks, if nothing has changed since they were read.
    pub fn get(&self, signature: u64) -> Option<Rc<Blocks>> {
        self.blocks.clone().filter(|_| self.is_settled && self.signature == signature)
    }

    /// Keeps what was read after the sums were this.
    pub fn keep(&mut self, signature: u64, blocks: &Rc<Blocks>) {
        let is_small = blocks.len() <= KeptBlocks::MOST;
        self.is_settled = self.signature == signature;
        self.signature = signature;
        self.blocks = (is_small && self.is_settled).then(|| Rc::clone(blocks));
    }
}

/// Whether a target's allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// They are.
    On,
    /// Not now: it would cost too much.
    Paused,
    /// Never: its memory is watched alone.
    Off,
}

/// What watching a target costs, and what of it is watched. It outlives an exec.
#[derive(Clone, Debug)]
pub struct Care {
    /// Whether allocations are recorded.
    pub recording: Recording,
    /// What bounds the cost.
    pub governor: Option<Governor>,
    /// What measures it.
    pub meter: Meter,
    /// Its anonymous memory over time.
    pub memory: MemorySeries,
    /// The largest mean distance of samples so far.
    pub widest_interval_bytes: u64,
    /// Blocks born before this may have been freed while nobody watched; 0 without a pause.
    pub unverified_before_ns: u64,
    /// When the present pause began, in ns of CLOCK_BOOTTIME.
    pub paused_since_ns: Option<u64>,
    /// How long it was paused before that.
    pub paused_ns: u64,
}

impl Care {
    /// For a target that is traced as asked for.
    pub fn new(options: &TraceOptions) -> Care {
        let records = !options.growth_only;
        Care {
            recording: if records { Recording::On } else { Recording::Off },
            governor: options
                .governor
                .filter(|_| records)
                .map(|governor| Governor::new(governor, options.sample_interval_bytes)),
            meter: Meter::default(),
            memory: MemorySeries::default(),
            widest_interval_bytes: options.sample_interval_bytes,
            unverified_before_ns: 0,
            paused_since_ns: None,
            paused_ns: 0,
        }
    }

    /// The same process after an exec: its memory is new.
    pub fn after_exec(self) -> Care {
        Care { memory: MemorySeries::default(), unverified_before_ns: 0, ..self }
    }

    /// How long allocations were not watched, in all.
    pub fn paused_ns(&self, now_ns: u64) -> u64 {
        let now = self.paused_since_ns.map_or(0, |since| now_ns.saturating_sub(since));
        self.paused_ns.saturating_add(now)
    }
}

/// A death by lack of memory, as it was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Resident set size then, where it could still be read.
    pub rss_bytes: Option<u64>,
}

/// The probes in one file.
#[derive(Default)]
pub struct Attached {
    /// What detaches them.
    pub links: Links,
    /// What is reported of them, one for each allocator in the file.
    pub allocators: Vec<AllocatorView>,
    /// Offsets of the probes in the file, and the functions that they belong to.
    pub places: Vec<(u64, String)>,
    /// Code of which a stack tells that it belongs to a call of an allocator.
    pub code: Vec<AllocatorCode>,
}

impl Tracked {
    /// Whether a stack runs through an allocation function that is probed.
    pub fn is_in_allocator(&self, frames: &[Frame]) -> bool {
        let mut codes = self.attached.values().flat_map(|attached| &attached.code);
        codes.any(|code| frames.iter().any(|frame| code.contains(frame)))
    }

    /// Something for which a part of what it allocates may not be seen: noted once.
    pub fn doubt(&mut self, note: String) {
        if !self.doubts.contains(&note) {
            self.notes.push(note.clone());
            self.doubts.push(note);
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.identity.pid
    }
}
