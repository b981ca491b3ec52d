//! Sections `trace` and `auto`: how allocations are recorded, and which processes only while they grow.
use std::{path::PathBuf, time::Duration};

use leaktrace_common::sample::MAX_INTERVAL_BYTES;
use serde::Deserialize;

use super::demand;
use crate::{
    agent::{
        governor::GovernorOptions,
        growth::pilot::AutoOptions,
        orders::Orders,
        service::values::{Count, Share, Size, Span},
    },
    analyse::memory_growth::GrowthRule,
    discover::selector::Selector,
};

/// How allocations are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeName {
    /// Every call.
    Exact,
    /// By Poisson sampling.
    #[default]
    Sampled,
    /// Not at all: memory is watched, and mappings.
    Growth,
}

/// Section `trace`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// How allocations are recorded.
    pub mode: ModeName,
    /// Mean bytes between samples.
    pub sample_interval: Size,
    /// Time between summaries.
    pub interval: Span,
    /// Trace the children of targets.
    pub follow: bool,
    /// Live blocks of each target at the most.
    pub max_blocks: Count,
    /// Call stacks of all targets at the most.
    pub max_sites: Count,
    /// Call stacks of each target in answers and between snapshot files; files have all.
    pub top: Count,
    /// What tracing may cost each target.
    pub max_overhead: Option<Share>,
    /// Further directories with separate debug files.
    pub debug_dirs: Vec<PathBuf>,
    /// Servers with separate debug files.
    pub debuginfod: Vec<String>,
}

impl Trace {
    /// What bounds the cost of each target: a budget that was chosen, or else the usual one for samples.
    pub fn governor(&self) -> Option<GovernorOptions> {
        match (self.mode, self.max_overhead) {
            (ModeName::Growth, _) => None,
            (_, Some(Share(share))) => (share > 0.0).then(|| GovernorOptions::new(share, true)),
            (mode, None) => {
                Some(GovernorOptions::new(GovernorOptions::DEFAULT_BUDGET_SHARE, mode == ModeName::Sampled))
            }
        }
    }
}

impl Trace {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        demand(self.interval.0 >= Duration::from_millis(100), "trace.interval: at least 100ms")?;
        demand(self.interval.0 <= Duration::from_secs(3600), "trace.interval: at most 1h")?;
        demand(
            (1..=MAX_INTERVAL_BYTES).contains(&self.sample_interval.0),
            "trace.sample_interval: from 1 byte to 4G",
        )?;
        demand(
            (1..=u64::from(u32::MAX)).contains(&self.max_blocks.0),
            "trace.max_blocks: from 1 to 4294967295",
        )?;
        demand((1..=10_000_000).contains(&self.max_sites.0), "trace.max_sites: from 1 to 10M")?;
        demand((1..=10_000).contains(&self.top.0), "trace.top: from 1 to 10000")
    }
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            mode: ModeName::Sampled,
            sample_interval: Size(512 << 10),
            interval: Span::seconds(5),
            follow: true,
            max_blocks: Count(100_000),
            max_sites: Count(64_000),
            top: Count(100),
            max_overhead: None,
            debug_dirs: Vec::new(),
            debuginfod: Vec::new(),
        }
    }
}

/// Section `auto`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auto {
    /// Which processes to watch.
    pub watch: Vec<Selector>,
    /// Which of these not.
    pub exclude: Vec<Selector>,
    /// A process keeps growing if its anonymous memory rose by at least this much
    pub growth: Size,
    /// for at least this long.
    pub after: Span,
    /// How long it is sampled.
    pub duration: Span,
    /// How many are sampled at once.
    pub targets: Count,
}

impl Auto {
    /// What types cannot say; `mode` is that of the traced.
    pub(super) fn check(&self, mode: ModeName) -> Result<(), String> {
        demand(self.after.0 >= Duration::from_secs(1), "auto.after: at least 1s")?;
        demand(self.duration.0 >= Duration::from_secs(1), "auto.duration: at least 1s")?;
        demand(self.targets.0 <= 64, "auto.targets: at most 64")?;
        demand(
            self.watch.is_empty() || mode == ModeName::Sampled,
            "auto.watch: needs trace.mode = \"sampled\"",
        )
    }
}

impl Default for Auto {
    fn default() -> Auto {
        let rule = GrowthRule::AUTO;
        Auto {
            watch: Vec::new(),
            exclude: Vec::new(),
            growth: Size(rule.min_growth_bytes),
            after: Span(Duration::from_nanos(rule.min_duration_ns)),
            duration: Span::seconds(300),
            targets: Count(3),
        }
    }
}

impl Auto {
    /// The same for the watch.
    pub fn options(&self) -> AutoOptions {
        let rule = GrowthRule {
            min_growth_bytes: self.growth.0,
            min_duration_ns: self.after.ns(),
            ..GrowthRule::AUTO
        };
        AutoOptions {
            rule,
            duration: self.duration.0,
            targets: usize::try_from(self.targets.0).unwrap_or(usize::MAX),
        }
    }

    /// Which processes are watched.
    pub fn orders(&self) -> Orders {
        Orders { selectors: self.watch.clone(), exclude: self.exclude.clone(), max_targets: usize::MAX }
    }
}
