//! What the agent keeps for one traced process image.
use std::{collections::HashMap, sync::Arc};

use super::{attachment::AllocatorCode, tables::ProcessTables};
use crate::{
    attach::links::Links,
    discover::{container::Container, object::FileIdentity, process::Process},
    drain::maps::Tally,
    model::{
        history::History,
        mappings::Mappings,
        sites::Corrections,
        snapshot::{AllocatorView, Exited, Frame, WallNs},
        stacks::ImageKey,
    },
    symbolize::AddressSpace,
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
    /// How long its program ran before its probes were set, where that is known.
    pub unseen_ns: Option<u64>,
    /// The kernel killed it because memory ran out.
    pub oom: Option<OutOfMemory>,
    /// Links by the file they are in.
    pub attached: HashMap<FileIdentity, Attached>,
    /// Its unwind tables.
    pub tables: ProcessTables,
    /// Which files its addresses belong to.
    pub space: AddressSpace,
    /// Its anonymous memory.
    pub mappings: Mappings,
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
    /// Set when the process ended.
    pub exited: Option<Exited>,
    /// Executable mappings changed: look again.
    pub is_stale: bool,
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
    /// Code of which a stack tells that it belongs to a call of an allocator.
    pub code: Vec<AllocatorCode>,
}

impl Tracked {
    /// Whether a stack runs through an allocation function that is probed.
    pub fn is_in_allocator(&self, frames: &[Frame]) -> bool {
        let mut codes = self.attached.values().flat_map(|attached| &attached.code);
        codes.any(|code| frames.iter().any(|frame| code.contains(frame)))
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.identity.pid
    }
}
