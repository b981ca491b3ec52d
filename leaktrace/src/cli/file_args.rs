//! What the commands that work on files accept, as types.
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    choices::{Color, Format, Sort},
    units,
};
use crate::export::folded;

pub(super) const REPORT_EXAMPLES: &str = "Examples:
  leaktrace report leaks.pb.gz                the ten call stacks that hold most
  leaktrace report leaks.pb.gz --sort growth  what grew fastest comes first
  leaktrace report leaks.pb.gz --format json --top 0 | jq .targets[].sites[0]
  go tool pprof -top leaks.pb.gz              the files are pprof profiles

No privileges are needed, and the host that it was taken on need not be at hand.";

pub(super) const DIFF_EXAMPLES: &str = "Examples:
  leaktrace diff monday.pb.gz friday.pb.gz    what grew, most first
  leaktrace diff old.pb.gz new.pb.gz --format json | jq '.sites[0].frames'

Call stacks are matched by their ids, which stay the same when a program is restarted or moved.";

pub(super) const CONVERT_EXAMPLES: &str = "Examples:
  leaktrace convert --to folded leaks.pb.gz -o leaks.folded
  leaktrace convert --to speedscope leaks.pb.gz -o leaks.speedscope.json
  leaktrace convert --to json leaks.pb.gz | jq .losses";

pub(super) const FLAMEGRAPH_EXAMPLES: &str = "Examples:
  leaktrace flamegraph leaks.pb.gz -o leaks.svg
  leaktrace flamegraph leaks.pb.gz --value alloc_space -o allocated.svg";

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Sums of each process only
    #[arg(long)]
    pub combined_only: bool,
    /// How to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older snapshot
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// The newer snapshot
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// How to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// What `report` and `diff` have in common.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Call stacks to show of each process; 0 shows all
    #[arg(short = 'T', long, value_name = "N", default_value = "10", value_parser = units::count)]
    pub top: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Write the report to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// When to use colour
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The other format
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: FileFormat,
    /// What to count, for folded and speedscope
    #[arg(long, value_enum, default_value_t)]
    pub value: ValueArg,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `flamegraph`.
#[derive(Debug, Args)]
pub struct FlamegraphArgs {
    /// A snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What to draw
    #[arg(long, value_enum, default_value_t)]
    pub value: ValueArg,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Formats that a snapshot can be converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// A line for each call stack, for flame graph tools
    Folded,
    /// Schema leaktrace.snapshot/1
    Json,
    /// For speedscope.app
    Speedscope,
    /// A snapshot file again
    Pprof,
}

/// Numbers of a call stack, named as in pprof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ValueArg {
    /// Bytes not freed
    #[default]
    #[value(name = "inuse_space")]
    InuseSpace,
    /// Blocks not freed
    #[value(name = "inuse_objects")]
    InuseObjects,
    /// Bytes allocated since tracing began
    #[value(name = "alloc_space")]
    AllocSpace,
    /// Blocks allocated since tracing began
    #[value(name = "alloc_objects")]
    AllocObjects,
}

impl From<ValueArg> for folded::Value {
    fn from(value: ValueArg) -> Self {
        match value {
            ValueArg::InuseSpace => folded::Value::InuseSpace,
            ValueArg::InuseObjects => folded::Value::InuseObjects,
            ValueArg::AllocSpace => folded::Value::AllocSpace,
            ValueArg::AllocObjects => folded::Value::AllocObjects,
        }
    }
}
