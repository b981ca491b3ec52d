//! The command line: one file for each subcommand. What they share is in `output` (where reports go), `trace`
//! (from arguments to options) and `files` (snapshots).
use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

mod agent;
pub mod args;
mod attach;
pub mod choices;
mod convert;
mod diff;
mod doctor;
pub mod file_args;
mod files;
mod output;
mod ps;
mod remote;
mod report;
mod run;
mod snapshot;
pub mod target_args;
mod trace;
pub mod trace_args;
pub use crate::model::quantity as units;

use args::{Cli, Command};

/// Exit code for an error of leaktrace itself.
const FAILED: u8 = 1;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Some(code) = crate::symbolize::serve_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(failed(&error, None)),
    }
}

/// Says what went wrong; the exit code.
fn failed(error: &anyhow::Error, code: Option<u8>) -> u8 {
    // The report of an error is the one thing that is printed without a sink.
    let _ = writeln!(std::io::stderr(), "leaktrace: {error:#}");
    code.unwrap_or(FAILED)
}

fn dispatch(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(args) => {
            start_log(&args.trace);
            runtime()?.block_on(run::run(&args))
        }
        Command::Attach(args) => {
            start_log(&args.trace);
            runtime()?.block_on(attach::attach(&args))
        }
        Command::Snapshot(args) => {
            start_log(&args.trace);
            runtime()?.block_on(snapshot::snapshot(&args))
        }
        Command::Ps(args) => ps::ps(&args),
        Command::Report(args) => report::report(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Flamegraph(args) => convert::flamegraph(&args),
        Command::Agent(args) => agent::agent(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "leaktrace", &mut text);
            print(&text)
        }
        Command::Man { subcommand } => man(subcommand.as_deref()),
    }
}

/// One thread is enough: the loop waits, and what it does is short.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the event loop")
}

fn man(subcommand: Option<&str>) -> Result<u8> {
    let mut command = args::command();
    command.build();
    let command = match subcommand {
        None => command,
        Some(name) => command
            .find_subcommand(name)
            .cloned()
            .with_context(|| format!("there is no subcommand {name}"))?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    print(&text)
}

/// Writes to standard output; a closed pipe is no error.
fn print(text: &[u8]) -> Result<u8> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(0),
    }
}

/// Logs go to standard error: warnings, more with --verbose, nothing but errors with --quiet; `LEAKTRACE_LOG`
/// takes filters as of tracing-subscriber.
fn start_log(args: &trace_args::TraceArgs) {
    let level = match (args.quiet, args.debug, args.verbose) {
        (true, ..) => "error",
        (_, false, 0) => "warn",
        (_, _, 0 | 1) => "info,leaktrace=debug",
        _ => "info,leaktrace=trace",
    };
    let filter = EnvFilter::try_from_env("LEAKTRACE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .try_init();
    drop(started);
}
