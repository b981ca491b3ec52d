//! What the command line accepts, as types: the subcommands and what each has for itself. Acting on it is left to the other
//! files of this module; reading units is `units`' work, reading `--function` is `discover`'s.
use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::{
    choices::{Color, Format, PsSort},
    file_args::*,
    target_args::{BoundArgs, TargetArgs},
    trace_args::TraceArgs,
    units,
};
use crate::{
    agent::growth::pilot::AutoOptions, analyse::memory_growth::GrowthRule, discover::selector::Selector,
};

/// Finds memory leaks in running Linux processes: which process, from which call stack, how fast.
#[derive(Debug, Parser)]
#[command(name = "leaktrace", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  leaktrace attach -p 1234                 live summaries of a running process every 5 s
  leaktrace run -- ./server --port 80      trace a program from its first allocation
  leaktrace run --fail-on-leak -- ./tests  exit with 3 for a leak, with 4 if that is not known
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
  leaktrace run --fail-on-leak=64K -- make test   exit with 3 when more than 64 KiB are leaked
  leaktrace run --fail-on-leak --suppressions known.txt -- ./tests  but not for what is known
  leaktrace run --combined-only -- ./server       sums only: no stacks, cheapest

The program owns standard input and output; the report goes to standard error, or to -o FILE.
Exit code: the program's own if it failed (128 + signal if it was killed); else with --fail-on-leak
3 for a leak, 4 if that is not known (no allocator found, blocks lost, a process not traced …); else
0. Without --fail-on-leak 4 if nothing at all could be traced. 127 when there is no such program,
126 when it cannot be executed. The last line of the report and \"verdict\" in JSON say which.

What runtimes keep on purpose is no leak, nor is what shells, make, interpreters, compilers and the
small tools of scripts keep. FILE of --suppressions has lines leak:PATTERN as LeakSanitizer's.";

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
    /// Exit with 3 when more than BYTES (0 if not given) are leaked, and with 4 if that is not known
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "0",
          value_parser = units::size_bytes, help_heading = "Leaks")]
    pub fail_on_leak: Option<u64>,
    /// No findings for call stacks with a function, source file or module in this list (LeakSanitizer's format); may be
    /// repeated
    #[arg(long, value_name = "FILE", help_heading = "Leaks")]
    pub suppressions: Vec<PathBuf>,
    /// Findings only for what this snapshot file does not hold, or holds less of
    #[arg(long, value_name = "FILE", help_heading = "Leaks")]
    pub baseline: Option<PathBuf>,
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
    /// Let standing orders trace a program again that tracing has probably killed: what `ps` says of it, or all
    #[arg(long, value_name = "PROGRAM", conflicts_with = "check")]
    pub forget: Option<String>,
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

/// The whole command line, for completions, the manual page and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
