//! What the commands that choose processes accept, as types: pids and selectors.
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::Args;

use crate::{
    agent::{
        clock,
        orders::{DEFAULT_MAX_TARGETS, MOST_TARGETS, Orders},
    },
    discover::selector::Selector,
    model::units,
};

/// Which processes.
#[derive(Debug, Default, Args)]
#[group(id = "targets", required = true, multiple = true)]
pub struct TargetArgs {
    /// A process; several are separated by commas, or the option is repeated
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pids: Vec<u32>,
    /// The processes of a container: its name, its id or the beginning of that
    #[arg(
        long = "container",
        value_name = "NAME|ID",
        value_delimiter = ',',
        help_heading = "Which processes"
    )]
    pub containers: Vec<String>,
    /// The processes of a control group and of those beneath it
    #[arg(long = "cgroup", value_name = "PATH", help_heading = "Which processes")]
    pub cgroups: Vec<String>,
    /// Processes of this name; * and ? stand for any characters
    #[arg(long = "comm", value_name = "NAME", value_delimiter = ',', help_heading = "Which processes")]
    pub names: Vec<String>,
    /// Processes of this executable: the end of its path, or a pattern for the whole
    #[arg(long = "exe", value_name = "PATH", help_heading = "Which processes")]
    pub executables: Vec<String>,
    /// Every process
    #[arg(long, help_heading = "Which processes")]
    pub all: bool,
}

/// What bounds a choice.
#[derive(Debug, Args)]
pub struct BoundArgs {
    /// But not these: pid:N, container:NAME, cgroup:PATH, comm:NAME or exe:PATH
    #[arg(long, value_name = "KIND:WHICH", help_heading = "Which processes")]
    pub exclude: Vec<Selector>,
    /// Processes to trace at once; further ones are counted and wait
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TARGETS as u64,
          value_parser = clap::value_parser!(u64).range(1..=MOST_TARGETS as u64), help_heading = "Which processes")]
    pub max_targets: u64,
}

impl TargetArgs {
    /// Whether anything but pids is given.
    pub fn has_selectors(&self) -> bool {
        let lists = [&self.containers, &self.cgroups, &self.names, &self.executables];
        self.all || lists.iter().any(|list| !list.is_empty())
    }

    /// Pids and all.
    ///
    /// # Errors
    /// When one of them selects nothing.
    pub fn selectors(&self) -> Result<Vec<Selector>> {
        let mut selectors: Vec<Selector> = self.pids.iter().copied().map(Selector::Pid).collect();
        let mut add = |option: &str, words: &[String], make: fn(&str) -> Result<Selector, _>| {
            for word in words {
                selectors.push(make(word).map_err(|error: crate::discover::selector::SelectorError| {
                    anyhow!("{option}: {error}")
                })?);
            }
            Ok::<(), anyhow::Error>(())
        };
        add("--container", &self.containers, Selector::container)?;
        add("--cgroup", &self.cgroups, Selector::cgroup)?;
        add("--comm", &self.names, Selector::comm)?;
        add("--exe", &self.executables, Selector::exe)?;
        selectors.extend(self.all.then_some(Selector::All));
        Ok(selectors)
    }

    /// The orders that the arguments give.
    ///
    /// # Errors
    /// When a selector selects nothing, or more pids are given than may be traced.
    pub fn orders(&self, bounds: &BoundArgs) -> Result<Orders> {
        let max_targets = usize::try_from(bounds.max_targets).unwrap_or(MOST_TARGETS);
        let fits = self.pids.len() <= max_targets;
        if !fits {
            bail!("{} pids are more than --max-targets {max_targets}", self.pids.len());
        }
        Ok(Orders { selectors: self.selectors()?, exclude: bounds.exclude.clone(), max_targets })
    }

    /// A name for a snapshot's file: what, which and when.
    pub fn file_name(&self) -> PathBuf {
        let time = units::file_time(clock::wall_ns());
        let lists = [&self.containers, &self.names, &self.executables, &self.cgroups];
        let words = lists.into_iter().flatten().map(|word| {
            let last = word.trim_matches('/').rsplit('/').next().unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            last.chars().filter(|c| plain(*c)).take(32).collect::<String>()
        });
        let pids = self.pids.iter().map(u32::to_string);
        let all = self.all.then(|| "all".to_owned());
        let which: Vec<String> =
            pids.chain(words).chain(all).filter(|word| !word.is_empty()).take(5).collect();
        PathBuf::from(format!("leaktrace-{}-{time}.pb.gz", which.join("-")))
    }
}
