//! How to trace: what the command line or the configuration asks for, checked and in plain types.
use super::governor::GovernorOptions;
use crate::{
    attach::{links::LinkKind, object::Sizes, plan::EmulatedClasses},
    discover,
};

/// How stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UnwindMode {
    /// By unwind tables; where code has none, by a guess.
    #[default]
    Auto,
    /// By unwind tables only.
    Tables,
    /// By frame pointers.
    FramePointers,
}

/// How to trace.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// What to look for in processes.
    pub discover: discover::options::Options,
    /// Trace the children of targets.
    pub follow: bool,
    /// Processes are held when they are made, until their probes are set.
    pub holds_children: bool,
    /// Mean bytes between samples; 0 records every call.
    pub sample_interval_bytes: u64,
    /// Record no allocations: watch memory and mappings alone.
    pub growth_only: bool,
    /// What bounds the cost of each target, if anything does.
    pub governor: Option<GovernorOptions>,
    /// Smallest allocation that is recorded.
    pub min_size_bytes: u64,
    /// Largest allocation that is recorded.
    pub max_size_bytes: u64,
    /// Frames kept of each stack; 0 takes none.
    pub stack_depth: u32,
    /// How stacks are walked.
    pub unwind: UnwindMode,
    /// Report each call.
    pub trace_calls: bool,
    /// Live blocks of each target at the most.
    pub max_blocks: u32,
    /// Link type to use; the best one that the kernel has if none is given.
    pub link: Option<LinkKind>,
    /// Probe first instructions only, whatever they cost: for comparisons.
    pub probe_offset_zero: bool,
    /// Walk every stack twice and count differences.
    pub verify_unwind: bool,
    /// Instructions that the kernel emulates: what most kernels do, or what was measured on this host.
    pub emulated: EmulatedClasses,
    /// Sizes of the kernel maps.
    pub sizes: Sizes,
    /// Let the kernel programs log.
    pub debug: bool,
    /// Directories with separate debug files.
    pub debug_dirs: Vec<std::path::PathBuf>,
    /// Servers with debug information.
    pub debuginfod_urls: Vec<String>,
}

impl TraceOptions {
    /// Whether calls are sampled.
    pub fn samples(&self) -> bool {
        self.sample_interval_bytes > 0
    }

    /// Sizes of the kernel maps: those of what is not asked for are the smallest.
    pub fn kernel_sizes(&self) -> Sizes {
        const CALLS_BYTES: u32 = 4 << 20;
        let calls_bytes = if self.trace_calls { CALLS_BYTES } else { self.sizes.calls_bytes };
        Sizes { calls_bytes, ..self.sizes }
    }
}

impl Default for TraceOptions {
    fn default() -> TraceOptions {
        TraceOptions {
            discover: discover::options::Options::default(),
            follow: true,
            holds_children: false,
            sample_interval_bytes: 0,
            growth_only: false,
            governor: None,
            min_size_bytes: 0,
            max_size_bytes: u64::MAX,
            stack_depth: 127,
            unwind: UnwindMode::Auto,
            trace_calls: false,
            max_blocks: 1_000_000,
            link: None,
            probe_offset_zero: false,
            verify_unwind: false,
            emulated: EmulatedClasses::COMMON,
            sizes: Sizes::default(),
            debug: false,
            debug_dirs: Vec::new(),
            debuginfod_urls: Vec::new(),
        }
    }
}
