//! What the command line accepts, as types. Acting on it is left to the other files of this module; reading
//! units is `units`' work, reading `--function` is `discover`'s.
use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use leaktrace_common::sample::MAX_INTERVAL_BYTES;

use super::{
    file_args::*,
    target_args::{BoundArgs, TargetArgs},
    units,
};
use crate::{
    agent::{governor::GovernorOptions, growth::pilot::AutoOptions},
    analyse::memory_growth::GrowthRule,
    discover::selector::Selector,
    model::sites::{Order, Selection},
};

/// Finds memory leaks in running Linux processes: which process, from which call stack, how fast.
#[derive(Debug, Parser)]
#[command(name = "leaktrace", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  leaktrace attach -p 1234                 live summaries of a running process every 5 s
  leaktrace run -- ./server --port 80      trace a program from its first allocation
  leaktrace run --fail-on-leak -- ./tests  exit with 3 when memory is still held at exit
  leaktrace doctor                         what this host can do and what is missing")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program, traced from its first allocation; report what it still held when it ended
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Trace running processes without stopping or changing them
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Box<AttachArgs>),
    /// List processes that can be traced: allocators, memory, growth, containers
    #[command(after_help = PS_EXAMPLES)]
    Ps(PsArgs),
    /// Watch running processes for a while and keep what was seen in a file
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(Box<SnapshotArgs>),
    /// Show a snapshot file
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Say what grew between two snapshot files
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Write a snapshot file in another format
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Draw a snapshot file as a flame graph (SVG)
    #[command(after_help = FLAMEGRAPH_EXAMPLES)]
    Flamegraph(FlamegraphArgs),
    /// Run as a service: watch targets for months, keep snapshots, answer over HTTP, raise alerts
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(AgentArgs),
    /// Say what this host can do, what is missing and how to get it
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Print the completion script of a shell
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man {
        /// Of this subcommand; without it, of leaktrace itself.
        subcommand: Option<String>,
    },
}

const RUN_EXAMPLES: &str = "Examples:
  leaktrace run -- ./server                       one report on standard error when it ends
  leaktrace run --interval 5s -- ./server         and live summaries while it runs
  leaktrace run -o leaks.json --format json -- CMD  the report as JSON in a file
  leaktrace run --fail-on-leak=64K -- make test   exit with 3 when more than 64 KiB are held at exit
  leaktrace run --combined-only -- ./server       sums only: no stacks, cheapest

The program owns standard input and output; the report goes to standard error, or to -o FILE.
Exit code: the program's own (128 + signal if it was killed); with --fail-on-leak 3 for a leak;
127 when there is no such program, 126 when it cannot be executed.";

const ATTACH_EXAMPLES: &str = "Examples:
  leaktrace attach -p 1234                  summaries every 5 s until Ctrl-C
  leaktrace attach -p 1234 10 6             six summaries, one every 10 s
  leaktrace attach --container web --comm 'nginx*'  what is there, and what comes later
  leaktrace attach -p 1234,1235 --older 1m  only blocks older than a minute
  leaktrace attach -p 1234 --sort growth    what grows fastest comes first
  leaktrace attach -p 1234 --mode exact     every call instead of samples; costs more
  leaktrace attach -p 1234 --format json --top 0 | jq .targets[].sites[0]
  leaktrace attach -p 1234 --symbols-prefix my_   an allocator with prefixed names
  leaktrace attach -p 1234 --function alloc=malloc@0x12a0 --object ./server   a stripped one";

const SNAPSHOT_EXAMPLES: &str = "Examples:
  leaktrace snapshot -p 1234                          watch for 10 s, print the file's name
  leaktrace snapshot -p 1234 -d 5m -o leaks.pb.gz     watch for 5 minutes
  leaktrace snapshot --agent http://127.0.0.1:9464    what a running agent holds now
  leaktrace report leaks.pb.gz                        show it, here or elsewhere
  go tool pprof -top leaks.pb.gz                      it is a pprof profile

The file appears whole at the end; an interrupt (Ctrl-C) ends it early. A summary goes to standard error.";

const PS_EXAMPLES: &str = "Examples:
  leaktrace ps                           every process, the largest first
  leaktrace ps --sort growth --watch 10s what grows fastest comes first
  leaktrace ps --container web --format json | jq .processes[].pid

Without root it shows your own processes and says of the others what is missing.";
const AGENT_EXAMPLES: &str = "Examples:
  leaktrace agent -c leaktrace.toml           run with this configuration
  leaktrace agent -c leaktrace.toml --check   only say whether it is right
  curl http://127.0.0.1:9464/api/v1/report    what it has found so far
  curl http://127.0.0.1:9464/metrics          for Prometheus

Signals: HUP reads the configuration again, USR1 writes a snapshot file, TERM and INT end it.";

const DOCTOR_EXAMPLES: &str = "Examples:
  leaktrace doctor          kernel, permissions, what probes cost here
  leaktrace doctor -p 1234  and what would be probed in a process, at what cost

Exit code: 0 when leaktrace can work here and trace the processes, else 1. Nothing is attached to them.";

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Exit with 3 when more than BYTES (0 if not given) are still held at exit
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "0",
          value_parser = units::size_bytes, help_heading = "Report")]
    pub fail_on_leak: Option<u64>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub program: Vec<OsString>,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(
    override_usage = "leaktrace attach [OPTIONS] <-p PID|--container NAME|--comm NAME|…> [INTERVAL] [COUNT]"
)]
pub struct AttachArgs {
    /// Which processes.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// How many of them.
    #[command(flatten)]
    pub bounds: BoundArgs,
    /// What to watch and sample by itself.
    #[command(flatten)]
    pub auto: AutoArgs,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Same as --interval
    #[arg(value_name = "INTERVAL", value_parser = units::positive_duration, conflicts_with = "interval")]
    pub interval_position: Option<Duration>,
    /// Same as --count
    #[arg(value_name = "COUNT", value_parser = units::positive_count, conflicts_with = "count")]
    pub count_position: Option<u64>,
}

/// What `attach --auto` does by itself.
#[derive(Debug, Args)]
pub struct AutoArgs {
    /// Watch all processes (or those given) for growth, and sample those that keep growing for a while; with --mode
    /// growth, watch only
    #[arg(long, conflicts_with = "trace", group = "targets", help_heading = "Watching")]
    pub auto: bool,
    /// How long a process is sampled
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::positive_duration,
          requires = "auto", help_heading = "Watching")]
    pub auto_duration: Duration,
    /// How many processes are sampled at once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64),
          requires = "auto", help_heading = "Watching")]
    pub auto_targets: u8,
    /// A process keeps growing if its anonymous memory rose by at least this much
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = units::size_bytes,
          requires = "auto", help_heading = "Watching")]
    pub auto_growth: u64,
    /// and did so for at least this long
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = units::positive_duration,
          requires = "auto", help_heading = "Watching")]
    pub auto_after: Duration,
}

impl AutoArgs {
    /// The same for the agent; `samples` is false where memory is all that is watched.
    pub fn options(&self, samples: bool) -> AutoOptions {
        let rule = GrowthRule {
            min_growth_bytes: self.auto_growth,
            min_duration_ns: u64::try_from(self.auto_after.as_nanos()).unwrap_or(u64::MAX),
            ..GrowthRule::AUTO
        };
        let targets = if samples { usize::from(self.auto_targets) } else { 0 };
        AutoOptions { rule, duration: self.auto_duration, targets }
    }
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
#[command(override_usage = "leaktrace snapshot [OPTIONS] <-p PID|--container NAME|--comm NAME|…>")]
#[command(mut_arg("output", |arg| arg.help("Write the snapshot to this file [leaktrace-PID-TIME.pb.gz]")))]
#[command(mut_arg("duration", |arg| arg.help("How long to watch [10s]")))]
#[command(mut_arg("interval", |arg| arg.hide(true)))]
#[command(mut_arg("count", |arg| arg.hide(true)))]
#[command(mut_arg("trace", |arg| arg.hide(true)))]
#[command(mut_arg("snapshot", |arg| arg.hide(true)))]
#[command(mut_group("targets", |group| group.required(false)))]
pub struct SnapshotArgs {
    /// Ask this running agent, http://HOST:PORT or unix:/PATH, for what it holds now, of all its targets or of -p
    #[arg(long, value_name = "URL", help_heading = "Which processes")]
    pub agent: Option<String>,
    /// Which processes.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// How many of them.
    #[command(flatten)]
    pub bounds: BoundArgs,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

impl AttachArgs {
    /// Time between summaries: given either way, else 5 s.
    pub fn interval(&self) -> Duration {
        self.trace.interval.or(self.interval_position).unwrap_or(DEFAULT_INTERVAL)
    }

    /// How many summaries to print before stopping, where there is a bound.
    pub fn count(&self) -> Option<u64> {
        self.trace.count.or(self.count_position)
    }
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
#[command(mut_group("targets", |group| group.required(false)))]
pub struct PsArgs {
    /// Which processes.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// But not these: pid:N, container:NAME, cgroup:PATH, comm:NAME or exe:PATH
    #[arg(long, value_name = "KIND:WHICH", help_heading = "Which processes")]
    pub exclude: Vec<Selector>,
    /// How long to watch the memory grow
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = units::duration)]
    pub watch: Duration,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    pub sort: PsSort,
    /// Processes to show; 0 shows all
    #[arg(short = 'T', long, value_name = "N", default_value = "0", value_parser = units::count)]
    pub top: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// When to use colour
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

/// Order of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PsSort {
    /// Largest resident set first
    #[default]
    Rss,
    /// Fastest growth of anonymous memory first
    Growth,
    /// Lowest process id first
    Pid,
}

/// Time between the summaries of `attach`.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Configuration [/etc/leaktrace/leaktrace.toml where it is there, else the defaults]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    pub check: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Processes to look into as well
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pids: Vec<u32>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// When to use colour
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

/// What `run` and `attach` have in common.
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
    /// What tracing may cost each process, in percent of one core, or off; beyond it samples are taken further apart,
    /// then recording is paused [default of attach and snapshot: 5%, with --mode exact only a warning; of run: off]
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

/// Order of sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Most outstanding bytes first
    #[default]
    Bytes,
    /// Most outstanding blocks first
    Count,
    /// Fastest growth first
    Growth,
    /// Oldest live block first
    Age,
}

impl Sort {
    /// The same for the model.
    pub fn order(self) -> Order {
        match self {
            Sort::Bytes => Order::Bytes,
            Sort::Count => Order::Count,
            Sort::Growth => Order::Growth,
            Sort::Age => Order::Age,
        }
    }
}

/// Output formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal
    #[default]
    Text,
    /// One JSON object per line, schema leaktrace.snapshot/1 (of doctor: leaktrace.doctor/1, of ps: leaktrace.ps/1)
    Json,
}

/// How allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Every call: sums equal the truth
    Exact,
    /// Some calls, large ones more likely: estimates with error bars, at a fraction of the cost
    Sampled,
    /// None: how much memory each process has and what maps it, at next to no cost
    Growth,
}

/// How call stacks are walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Unwind {
    /// By unwind tables, by frame pointers where the kernel cannot
    #[default]
    Auto,
    /// By unwind tables (.eh_frame)
    Cfi,
    /// By frame pointers
    Fp,
}

/// Kinds of probe links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// One program at entry and return (Linux 6.13)
    Session,
    /// Many functions in one link (Linux 6.6)
    Multi,
    /// One perf event for each function (Linux 5.15)
    Perf,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The whole command line, for completions, the manual page and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(words: &[&str]) -> Result<AttachArgs, clap::Error> {
        let all = ["leaktrace", "attach"].iter().chain(words);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Attach(args) => *args,
            other => panic!("{other:?}"),
        })
    }

    fn run(words: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["leaktrace", "run"].iter().chain(words);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn pids_may_be_separated_by_commas_or_repeated() {
        assert_eq!(attach(&["-p", "1,2", "--pid", "3"]).unwrap().targets.pids, [1, 2, 3]);
        assert!(attach(&[]).is_err());
        assert!(attach(&["-p", "0"]).is_err());
        assert!(attach(&["-p", "-4"]).is_err());
    }

    #[test]
    fn interval_and_count_may_be_positions_as_in_bcc() {
        let args = attach(&["-p", "1", "5", "10"]).unwrap();
        assert_eq!((args.interval(), args.count()), (Duration::from_secs(5), Some(10)));
        let args = attach(&["-p", "1", "--interval", "500ms", "--count", "2"]).unwrap();
        assert_eq!((args.interval(), args.count()), (Duration::from_millis(500), Some(2)));
        assert_eq!(attach(&["-p", "1"]).unwrap().interval(), DEFAULT_INTERVAL);
        assert!(attach(&["-p", "1", "--interval", "1", "5"]).is_err());
    }

    #[test]
    fn the_program_of_run_keeps_its_own_options_with_and_without_dashes() {
        let args = run(&["--top", "3", "--", "ls", "-l", "--color"]).unwrap();
        assert_eq!((args.trace.top, args.program), (3, vec!["ls".into(), "-l".into(), "--color".into()]));
        assert_eq!(run(&["ls", "-l", "--top", "5"]).unwrap().program.len(), 4);
        assert!(run(&[]).is_err());
    }

    #[test]
    fn fail_on_leak_takes_bytes_only_after_an_equals_sign() {
        assert_eq!(run(&["--fail-on-leak", "true"]).unwrap().fail_on_leak, Some(0));
        assert_eq!(run(&["--fail-on-leak=64K", "true"]).unwrap().fail_on_leak, Some(65536));
        assert_eq!(run(&["true"]).unwrap().fail_on_leak, None);
    }

    #[test]
    fn attach_samples_and_run_does_not_unless_told_to() {
        let of = |args: TraceArgs, default| args.sample_interval_bytes(default);
        let attached = |words: &[&str]| of(attach(words).unwrap().trace, ModeArg::Sampled);
        let ran = |words: &[&str]| of(run(words).unwrap().trace, ModeArg::Exact);
        assert_eq!(attached(&["-p", "1"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
        assert_eq!(attached(&["-p", "1", "--sample-interval", "64k"]), 65536);
        assert_eq!(attached(&["-p", "1", "--mode", "exact"]), 0);
        assert_eq!(attached(&["-p", "1", "--trace"]), 0);
        assert_eq!(attached(&["-p", "1", "--trace", "--mode", "sampled"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
        assert_eq!(ran(&["true"]), 0);
        assert_eq!(ran(&["--mode", "sampled", "true"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
        assert_eq!(ran(&["--sample-interval", "4k", "true"]), 4096);
        for wrong in [&["--mode", "exact", "--sample-interval", "1k"][..], &["--sample-interval", "0"]] {
            let words = ["-p", "1"].iter().chain(wrong).copied().collect::<Vec<_>>();
            assert!(attach(&words).unwrap().trace.check().unwrap_err().contains("--sample-interval"));
        }
    }

    #[test]
    fn what_samples_is_bounded_and_what_records_every_call_is_warned() {
        let attached = |words: &[&str]| attach(words).unwrap().trace.governor(ModeArg::Sampled);
        let ran = |words: &[&str]| run(words).unwrap().trace.governor(ModeArg::Exact);
        let budget =
            |options: Option<GovernorOptions>| options.map(|options| (options.budget_share, options.acts));
        assert_eq!(budget(attached(&["-p", "1"])), Some((0.05, true)));
        assert_eq!(budget(attached(&["-p", "1", "--mode", "exact"])), Some((0.05, false)));
        assert_eq!(
            budget(attached(&["-p", "1", "--mode", "exact", "--max-overhead", "2%"])),
            Some((0.02, true))
        );
        for words in [&["--max-overhead", "off"][..], &["--max-overhead", "0"], &["--mode", "growth"]] {
            assert_eq!(attached(&[&["-p", "1"], words].concat()), None);
        }
        assert_eq!(ran(&["true"]), None);
        assert_eq!(budget(ran(&["--max-overhead", "10%", "true"])), Some((0.1, true)));
    }

    #[test]
    fn growth_mode_refuses_what_needs_allocations() {
        for words in [&["--trace"][..], &["--sample-interval", "1k"], &["--max-overhead", "1%"]] {
            let words = [&["-p", "1", "--mode", "growth"], words].concat();
            assert!(attach(&words).unwrap().trace.check().unwrap_err().contains("--mode growth"));
        }
        assert_eq!(attach(&["-p", "1", "--mode", "growth"]).unwrap().trace.check(), Ok(()));
    }

    #[test]
    fn bounds_take_units_and_are_checked() {
        let args = attach(&["-p", "1", "--max-blocks", "2M", "--min-size", "4k"]).unwrap();
        assert_eq!((args.trace.max_blocks, args.trace.min_size), (Some(2_000_000), Some(4096)));
        assert!(attach(&["-p", "1", "--stack-depth", "128"]).is_err());
        assert!(attach(&["-p", "1", "--stack-depth", "0"]).is_err());
        let args = attach(&["-p", "1", "--min-size", "2", "--max-size", "1"]).unwrap();
        assert!(args.trace.check().unwrap_err().contains("--min-size"));
    }
}
