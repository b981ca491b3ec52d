//! From the configuration to what the parts of the service take.
use anyhow::{Context as _, Result};

use super::{
    config::{Config, ModeName},
    store::Store,
};
use crate::{
    agent::{
        growth::{
            meant::Meant,
            watch::{Watch, Watched},
        },
        options::TraceOptions,
        orders::Orders,
    },
    attach::object::Sizes,
    model::sites::{Order, Selection},
};

pub(super) fn trace_options(config: &Config) -> Result<TraceOptions> {
    let trace = &config.trace;
    Ok(TraceOptions {
        follow: trace.follow,
        sample_interval_bytes: match trace.mode {
            ModeName::Exact | ModeName::Growth => 0,
            ModeName::Sampled => trace.sample_interval.0,
        },
        growth_only: trace.mode == ModeName::Growth,
        governor: trace.governor(),
        max_blocks: u32::try_from(trace.max_blocks.0)?,
        sizes: Sizes {
            // Room for the children of targets, and for tables that are kept for them.
            targets: u32::try_from(config.limits.targets.0)?.saturating_mul(2),
            sites: u32::try_from(trace.max_sites.0)?,
            ..Sizes::default()
        },
        debug_dirs: trace.debug_dirs.clone(),
        debuginfod_urls: trace.debuginfod.clone(),
        ..TraceOptions::default()
    })
}

pub(super) fn most_targets(config: &Config) -> usize {
    usize::try_from(config.limits.targets.0).unwrap_or(usize::MAX)
}

pub(super) fn orders(config: &Config) -> Orders {
    Orders {
        selectors: config.targets.clone(),
        exclude: config.exclude.clone(),
        max_targets: most_targets(config),
    }
}

pub(super) fn watch(config: &Config) -> Option<Watch> {
    let is_wanted = !config.auto.watch.is_empty();
    is_wanted.then(|| {
        let meant = Meant::new(config.auto.orders());
        Watch::new(Watched::Meant(Box::new(meant)), config.auto.options())
    })
}

pub(super) fn selection(config: &Config, whole: bool) -> Selection {
    let top = if whole { 0 } else { usize::try_from(config.trace.top.0).unwrap_or(usize::MAX) };
    Selection { order: Order::Bytes, top, ..Selection::default() }
}

pub(super) fn open_store(config: &Config) -> Result<Option<Store>> {
    let Some(folder) = &config.snapshots.directory else { return Ok(None) };
    Store::open(folder)
        .map(Some)
        .with_context(|| format!("snapshots.directory: {} cannot be used", folder.display()))
}
