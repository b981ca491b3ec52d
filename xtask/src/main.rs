//! `cargo xtask …`: the development tasks of leaktrace. Parses the command line; each task has its own file.
#![expect(clippy::print_stdout, reason = "a development tool talks to the terminal")]

mod bench;
mod command;
mod deb;
mod demo;
mod dist;
mod fuzz;
mod kernels;
mod nightly;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Development tasks of leaktrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building the kernel side needs, and say what was done.
    Setup {
        /// Also install the programs that the tests run.
        #[arg(long)]
        tests: bool,
    },
    /// Watch leaktrace find the leak in a running program (as root).
    Demo,
    /// Everything that CI checks (as root); the last line gives the totals.
    Test {
        /// Run only one part.
        part: Option<test::Part>,
        /// Run only the end-to-end tests whose name contains this.
        filter: Option<String>,
    },
    /// Everything that is too long for `test`: all kernels, hours of load (as root); the last line gives the totals.
    Nightly {
        /// Run only one part.
        part: Option<nightly::Part>,
        /// Load each kernel for so many minutes.
        #[arg(long, value_name = "MINUTES", default_value = "60")]
        soak: u64,
    },
    /// Feeds damaged inputs to every parser of foreign bytes, or to one; says how many, and what was found.
    Fuzz {
        /// Only this target: a folder of leaktrace/fuzz/corpus.
        target: Option<String>,
        /// Time for each target.
        #[arg(long, default_value_t = fuzz::SECONDS)]
        seconds: u64,
    },
    /// What tracing costs, as ratios measured in one run (as root); a page in Markdown.
    Bench(bench::Options),
    /// Run leaktrace on other kernels, in an emulator; a table in Markdown.
    Kernels(kernels::Options),
    /// Build the binary that is given to others: static where the toolchain allows, stripped.
    Dist {
        /// Also make a Debian package of it.
        #[arg(long)]
        deb: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup { tests } => setup::run(tests),
        Task::Demo => demo::run(),
        Task::Test { part, filter } => return test::run(part, filter.as_deref()),
        Task::Nightly { part, soak } => return nightly::run(part, soak),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Bench(options) => bench::run(&options),
        Task::Kernels(options) => kernels::run(&options),
        Task::Dist { deb } => dist::run(deb),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
