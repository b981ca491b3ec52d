//! Section `snapshots`: when files are written, where, and how long they are kept.
use std::{path::PathBuf, str::FromStr as _, time::Duration};

use serde::Deserialize;

use super::demand;
use crate::agent::service::values::{Count, Size, Span};

/// Section `snapshots`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Where files go; without one none are written.
    pub directory: Option<PathBuf>,
    /// One every so often.
    pub every: Option<Span>,
    /// At these times, UTC, as in crontab(5).
    pub cron: Vec<String>,
    /// When a target ends that held memory.
    pub on_exit: bool,
    /// When the kernel kills a target for lack of memory.
    pub on_oom: bool,
    /// When a target has grown by this since the last file.
    pub on_growth: Option<Size>,
    /// When a target uses this share of its memory limit.
    pub on_memory_limit: Option<f64>,
    /// Time between files that events ask for, at the least.
    pub min_gap: Span,
    /// What is kept.
    pub keep: Keep,
}

impl Default for Snapshots {
    fn default() -> Snapshots {
        Snapshots {
            directory: None,
            every: None,
            cron: Vec::new(),
            on_exit: false,
            on_oom: false,
            on_growth: None,
            on_memory_limit: None,
            min_gap: Span::seconds(30),
            keep: Keep::default(),
        }
    }
}

/// Section `snapshots.keep`: whichever is reached first; the newest file always stays.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Files.
    pub count: Count,
    /// Age.
    pub age: Span,
    /// Bytes of all files.
    pub bytes: Size,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { count: Count(100), age: Span::seconds(30 * 86_400), bytes: Size(1 << 30) }
    }
}

impl Snapshots {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        for text in &self.cron {
            croner::Cron::from_str(text).map_err(|error| {
                format!("snapshots.cron: {text:?}: {error}: say minute hour day month weekday, such as \"0 3 * * *\"")
            })?;
        }
        if let Some(every) = self.every {
            demand(every.0 >= Duration::from_secs(1), "snapshots.every: at least 1s")?;
        }
        if let Some(share) = self.on_memory_limit {
            demand(share > 0.0 && share <= 1.0, "snapshots.on_memory_limit: from 0 to 1, such as 0.8")?;
        }
        demand(self.keep.count.0 >= 1, "snapshots.keep.count: at least 1")?;
        let asks = self.every.is_some()
            || !self.cron.is_empty()
            || self.on_exit
            || self.on_oom
            || self.on_growth.is_some()
            || self.on_memory_limit.is_some();
        demand(
            self.directory.is_some() || !asks,
            "snapshots.directory: a schedule needs a folder for its files, such as \"/var/lib/leaktrace\"",
        )?;
        demand(
            self.directory.as_ref().is_none_or(|path| path.is_absolute()),
            "snapshots.directory: an absolute path",
        )
    }
}
