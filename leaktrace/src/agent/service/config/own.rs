//! Sections `log` and `limits`: what the agent says of itself, and what it may use.
use serde::Deserialize;

use super::demand;
use crate::agent::{
    orders::MOST_TARGETS,
    service::values::{Count, Size},
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Section `log`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Filters as of tracing-subscriber: `info`, `leaktrace=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Section `limits`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Processes traced at once.
    pub targets: Count,
    /// Kernel memory of the maps; no target is added above it.
    pub map_memory: Size,
    /// Resident memory of the agent; above it caches are given up and no target is added.
    pub rss: Size,
    /// Share of one CPU; above it summaries become rarer.
    pub cpu: f64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { targets: Count(256), map_memory: Size(2 << 30), rss: Size(1 << 30), cpu: 0.5 }
    }
}

impl Limits {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        demand(
            (1..=MOST_TARGETS as u64).contains(&self.targets.0),
            &format!("limits.targets: from 1 to {MOST_TARGETS}"),
        )?;
        demand(self.cpu > 0.0 && self.cpu <= 1024.0, "limits.cpu: a share of one CPU, such as 0.5")
    }
}

impl Log {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        tracing_subscriber::EnvFilter::try_new(&self.level)
            .map(drop)
            .map_err(|error| format!("log.level: {error}: say error, warn, info, debug or trace"))
    }
}
