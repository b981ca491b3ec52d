//! `cargo xtask bench`: what tracing costs. Everything is measured in one run, in rounds that alternate between the
//! ways of tracing, so that what is printed are ratios of neighbours; absolute times hold for this machine only.
//! A part or a row that cannot be measured here says why, and the rest goes on.
mod agent;
mod bpftrace;
mod doctor;
mod facts;
mod fixture;
mod floor;
mod idle;
mod kernel_memory;
mod page;
mod pairs;
mod programs;
mod rounds;
mod scale;
mod servers;
mod table;
mod tables;
mod tracer;
mod unwind;

use crate::{command, setup};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use page::Page;
use std::path::PathBuf;

/// What and how much to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Parts to measure; all of them if none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Live blocks for drain time and memory.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) blocks: u64,
    /// Sites for drain time and memory.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) sites: u64,
    /// Also write the page to this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A part of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A malloc+free pair under every way of tracing.
    Pairs,
    /// What the agent itself needs.
    Agent,
    /// What walking stacks costs, and building the tables for it.
    Unwind,
    /// Real programs under load.
    Programs,
    /// A pair against live blocks, sites, threads and targets.
    Scale,
}

/// Measures and prints tables in Markdown. With `LEAKTRACE_BIN` that binary is measured, and nothing is built.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !command::is_root() {
        bail!("the benchmark attaches to the kernel and needs root: run `sudo -E cargo xtask bench`");
    }
    if std::env::var_os("LEAKTRACE_BIN").is_none() {
        setup::run(true)?;
        command::run(&mut command::cargo(&["build", "--release", "--package", "leaktrace"]))?;
    }
    let mut page = Page::new(options.output.clone());
    page.add(&page::introduction(options.rounds))?;
    let is_wanted = |part: &&Part| options.parts.is_empty() || options.parts.contains(part);
    for part in Part::value_variants().iter().filter(is_wanted) {
        page.add(&section(*part, options))?;
    }
    page.add(&format!("Load when it ended: {}.", page::load()))
}

fn section(part: Part, options: &Options) -> String {
    let rounds = options.rounds;
    let (title, text) = match part {
        Part::Pairs => ("A malloc+free pair", pairs::measure(rounds)),
        Part::Agent => ("The agent itself", agent::measure(options)),
        Part::Unwind => ("Walking stacks", unwind::measure(rounds)),
        Part::Programs => ("Real programs", programs::measure(rounds)),
        Part::Scale => ("Scale", scale::measure(rounds)),
    };
    format!("## {title}\n\n{text}")
}
