//! The arguments that `run`, `attach` and `snapshot` have in common: what is traced, when, what is reported, and how. From
//! them to options is `trace`'s work.
use std::{path::PathBuf, time::Duration};

use clap::Args;
use leaktrace_common::sample::MAX_INTERVAL_BYTES;

use super::{
    choices::{Color, Format, Link, ModeArg, Sort, Unwind},
    units,
};
use crate::{agent::governor::GovernorOptions, model::sites::Selection};

/// What `run`, `attach` and `snapshot` have in common.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Treat this file as an allocator even if its symbols do not look so
    #[arg(short = 'O', long = "object", value_name = "PATH", help_heading = "What to trace")]
    pub objects: Vec<PathBuf>,
    /// Also probe allocation functions whose names have this prefix
    #[arg(long = "symbols-prefix", value_name = "PREFIX", help_heading = "What to trace")]
    pub symbols_prefixes: Vec<String>,
    /// Probe a function of a stripped --object: KIND is malloc, calloc, realloc, free …; OFFSET is in the file
    #[arg(
        long = "function",
        value_name = "NAME=KIND@OFFSET",
        requires = "objects",
        help_heading = "What to trace"
    )]
    pub functions: Vec<String>,
    /// Do not trace the children of traced processes
    #[arg(long, help_heading = "What to trace")]
    pub no_follow: bool,
    /// Record only allocations of at least this size
    #[arg(short = 'z', long, value_name = "BYTES", value_parser = units::size_bytes, help_heading = "What to trace")]
    pub min_size: Option<u64>,
    /// Record only allocations of at most this size
    #[arg(short = 'Z', long, value_name = "BYTES", value_parser = units::size_bytes, help_heading = "What to trace")]
    pub max_size: Option<u64>,

    /// Time between summaries [attach: 5s; run: only one at the end]
    #[arg(short, long, value_name = "DURATION", value_parser = units::positive_duration, help_heading = "When")]
    pub interval: Option<Duration>,
    /// Stop after this many summaries
    #[arg(long, value_name = "N", value_parser = units::positive_count, help_heading = "When")]
    pub count: Option<u64>,
    /// Stop after this time
    #[arg(short, long, value_name = "DURATION", value_parser = units::positive_duration, help_heading = "When")]
    pub duration: Option<Duration>,

    /// Call stacks to show of each process; 0 shows all
    #[arg(short = 'T', long, value_name = "N", default_value = "10", value_parser = units::count,
          help_heading = "Report")]
    pub top: u64,
    /// What comes first
    #[arg(long, value_enum, default_value_t, help_heading = "Report")]
    pub sort: Sort,
    /// Show only blocks older than this
    #[arg(long, value_name = "DURATION", value_parser = units::duration, help_heading = "Report")]
    pub older: Option<Duration>,
    /// List the live blocks of each call stack, the oldest 1000 of each
    #[arg(short = 'a', long, help_heading = "Report")]
    pub show_allocs: bool,
    /// Print each allocation and free as it happens
    #[arg(short, long, help_heading = "Report")]
    pub trace: bool,
    /// Sums of each process only: no stacks are taken
    #[arg(long, conflicts_with_all = ["show_allocs", "trace"], help_heading = "Report")]
    pub combined_only: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Report")]
    pub format: Format,
    /// Write the report to this file
    #[arg(short, long, value_name = "FILE", help_heading = "Report")]
    pub output: Option<PathBuf>,
    /// Also keep the last summary, with all call stacks, in this file (pprof, .pb.gz)
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub snapshot: Option<PathBuf>,
    /// When to use colour
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", help_heading = "Report")]
    pub color: Color,
    /// Also look here for separate debug information; may be repeated
    #[arg(long = "debug-dir", value_name = "DIR", help_heading = "Report")]
    pub debug_dirs: Vec<PathBuf>,
    /// Fetch debug information that this host lacks from these debuginfod servers, separated by spaces
    #[arg(
        long,
        value_name = "URLS",
        env = "DEBUGINFOD_URLS",
        hide_env_values = true,
        value_delimiter = ' ',
        help_heading = "Report"
    )]
    pub debuginfod: Vec<String>,

    /// How allocations are recorded [default of attach: sampled, with --trace exact; of run: exact]
    #[arg(long, value_enum, help_heading = "How")]
    pub mode: Option<ModeArg>,
    /// Mean bytes from one sample to the next [default: 512K]; implies --mode sampled
    #[arg(long, value_name = "BYTES", value_parser = units::size_bytes, help_heading = "How")]
    pub sample_interval: Option<u64>,
    /// What tracing may cost each process, in percent of one core, or off; beyond it samples are taken further apart
    /// (not with --mode exact), then recording is paused [default of attach and snapshot: 5%, with --mode exact only a warning; of run: off]
    #[arg(long, value_name = "SHARE", value_parser = units::share, help_heading = "How")]
    pub max_overhead: Option<f64>,
    /// How long the first pause is that --max-overhead leads to
    #[arg(long, hide = true, value_name = "DURATION", value_parser = units::positive_duration)]
    pub first_pause: Option<Duration>,
    /// Frames to keep of each call stack, 1 to 127
    #[arg(long, value_name = "N", default_value_t = 127, value_parser = clap::value_parser!(u32).range(1..=127),
          help_heading = "How")]
    pub stack_depth: u32,
    /// How call stacks are walked
    #[arg(long, value_enum, default_value_t, help_heading = "How")]
    pub unwind: Unwind,
    /// Memory for unwind tables, in steps of 1 MiB; what does not fit is first thinned out, then counted
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = units::unwind_bytes, help_heading = "How")]
    pub unwind_memory: u64,
    /// Live blocks to remember of each process; what does not fit is counted [default: 1M; with selectors 100k]
    #[arg(long, value_name = "N", value_parser = units::positive_count, help_heading = "How")]
    pub max_blocks: Option<u64>,
    /// Call stacks to remember in all; what does not fit is counted
    #[arg(long, value_name = "N", default_value = "64k", value_parser = units::positive_count, help_heading = "How")]
    pub max_sites: u64,
    /// Kind of probe link to use instead of the best one that works
    #[arg(long, value_enum, hide = true, value_name = "KIND")]
    pub link: Option<Link>,

    /// Put every probe on the first instruction of its function, for comparisons
    #[arg(long, hide = true)]
    pub probe_offset_zero: bool,

    /// Walk every stack twice, with and without reuse of the one before, and count differences
    #[arg(long, hide = true)]
    pub verify_unwind: bool,

    /// Log what the kernel programs say
    #[arg(long, help_heading = "Messages")]
    pub debug: bool,
    /// Say more about what is done; twice for still more
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet", help_heading = "Messages")]
    pub verbose: u8,
    /// Say nothing but the report and errors
    #[arg(short, long, help_heading = "Messages")]
    pub quiet: bool,
}

impl TraceArgs {
    /// What clap cannot check: values that exclude each other. The error is a sentence for the user.
    pub fn check(&self) -> Result<(), String> {
        match (self.min_size, self.max_size) {
            (Some(min), Some(max)) if min > max => {
                Err(format!("--min-size ({min} bytes) is larger than --max-size ({max} bytes)"))
            }
            _ if self.mode == Some(ModeArg::Exact) && self.sample_interval.is_some() => {
                Err("--sample-interval does nothing with --mode exact".to_owned())
            }
            _ if self.mode == Some(ModeArg::Growth) => self.check_growth(),
            _ if self.sample_interval.is_some_and(|bytes| bytes == 0 || bytes > MAX_INTERVAL_BYTES) => {
                Err("--sample-interval: from 1 byte to 4G".to_owned())
            }
            _ if self.max_blocks.is_some_and(|blocks| blocks > u64::from(u32::MAX)) => {
                Err("--max-blocks: at most 4294967295".to_owned())
            }
            _ if self.max_sites > u64::from(u32::MAX) => Err("--max-sites: at most 4294967295".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_growth(&self) -> Result<(), String> {
        let useless = [
            (self.trace, "--trace"),
            (self.sample_interval.is_some(), "--sample-interval"),
            (self.max_overhead.is_some(), "--max-overhead"),
        ];
        match useless.iter().find(|(given, _)| *given) {
            Some((_, flag)) => {
                Err(format!("{flag} does nothing with --mode growth, which records no allocations"))
            }
            None => Ok(()),
        }
    }
}

/// Mean bytes between samples: at an allocation rate of 1 GiB/s some 2,000 samples a second.
pub const DEFAULT_SAMPLE_INTERVAL_BYTES: u64 = 512 << 10;

/// Blocks of each site that `--show-allocs` lists.
const SHOWN_BLOCKS: usize = 1000;

impl TraceArgs {
    /// How allocations are recorded. `default` is the subcommand's mode.
    pub fn effective_mode(&self, default: ModeArg) -> ModeArg {
        let default = if self.trace { ModeArg::Exact } else { default };
        let implied = self.sample_interval.map(|_| ModeArg::Sampled);
        self.mode.or(implied).unwrap_or(default)
    }

    /// What bounds the cost of each target. Who asks for every call is warned only, unless a bound is asked for, too;
    /// `run`, whose default is every call, is not even warned.
    pub fn governor(&self, default: ModeArg) -> Option<GovernorOptions> {
        let mode = self.effective_mode(default);
        let options = match self.max_overhead {
            _ if mode == ModeArg::Growth => return None,
            Some(share) if share > 0.0 => GovernorOptions::new(share, true),
            Some(_) => return None,
            None if default == ModeArg::Exact => return None,
            None => GovernorOptions::new(GovernorOptions::DEFAULT_BUDGET_SHARE, mode == ModeArg::Sampled),
        };
        Some(match self.first_pause {
            Some(first_pause) => GovernorOptions { first_pause, ..options },
            None => options,
        })
    }

    /// Mean bytes between samples; 0 for every call. `default` is the subcommand's mode.
    pub fn sample_interval_bytes(&self, default: ModeArg) -> u64 {
        match self.effective_mode(default) {
            ModeArg::Exact | ModeArg::Growth => 0,
            ModeArg::Sampled => self.sample_interval.unwrap_or(DEFAULT_SAMPLE_INTERVAL_BYTES),
        }
    }

    /// Which sites and blocks a summary shows.
    pub fn selection(&self) -> Selection {
        Selection {
            order: self.sort.order(),
            top: usize::try_from(self.top).unwrap_or(usize::MAX),
            older_ns: self.older.map(|older| u64::try_from(older.as_nanos()).unwrap_or(u64::MAX)),
            blocks: if self.show_allocs { SHOWN_BLOCKS } else { 0 },
        }
    }

    /// Whether summaries need the single live blocks: for their ages, or to show them.
    pub fn needs_blocks(&self) -> bool {
        !self.combined_only || self.older.is_some()
    }
}
