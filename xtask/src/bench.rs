//! `cargo xtask bench`: what tracing costs. Everything is measured in one run, in rounds that alternate between the
//! ways of tracing, so that what is printed are ratios of neighbours; absolute times hold for this machine only.
mod agent;
mod pairs;
mod table;

use crate::{command, setup};
use anyhow::{Result, bail};
use clap::Args;

/// How much to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 7)]
    pub(crate) rounds: u32,
    /// Live blocks for drain time and memory.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) blocks: u64,
    /// Sites for drain time and memory.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) sites: u64,
}

/// Measures and prints tables in Markdown.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !command::is_root() {
        bail!("the benchmark attaches to the kernel and needs root: run `sudo -E cargo xtask bench`");
    }
    setup::run(true)?;
    command::run(&mut command::cargo(&["build", "--release", "--package", "leaktrace"]))?;
    println!("\n## One malloc+free pair, {} rounds\n", options.rounds);
    print!("{}", pairs::measure(options.rounds)?);
    println!("\n## {} live blocks at {} sites\n", options.blocks, options.sites);
    print!("{}", agent::measure(options)?);
    Ok(())
}
