//! Values of arguments that are one of a few words.
use clap::ValueEnum;

use crate::model::sites::Order;

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
