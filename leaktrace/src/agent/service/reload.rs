//! A configuration that is read again while the service runs: what of it takes effect at once, and what only a start can
//! change.
use std::sync::Arc;

use anyhow::Result;

use super::{
    Service,
    config::Config,
    settings::{open_store, orders, selection, watch},
};
use crate::{agent::clock, model::service::Work};

impl Service {
    /// Reads the configuration again; a wrong one changes nothing.
    pub(super) fn reload(&mut self) {
        self.notifier.reloading();
        match self.read_again() {
            Ok(config) => {
                self.shared.counts.add(Work::Reloads);
                self.apply(config);
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                self.shared.counts.add(Work::ReloadsFailed);
                tracing::error!("the configuration stays as it was: {error:#}");
            }
        }
        self.notifier.ready();
    }

    fn read_again(&self) -> Result<Config> {
        let config = match &self.path {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if config.snapshots.directory != self.config.snapshots.directory {
            self.shared.set_store(open_store(&config)?);
        }
        Ok(config)
    }

    fn apply(&mut self, config: Config) {
        let old = Arc::clone(&self.config);
        for (name, changed) in fixed(&old, &config) {
            if changed {
                tracing::warn!("{name} was changed: that takes effect when the agent is started again");
            }
        }
        let config = Arc::new(config);
        if (&config.targets, &config.exclude) != (&old.targets, &old.exclude)
            && let Err(error) = self.tracer.follow_orders(orders(&config))
        {
            tracing::error!(error = format!("{error:#}"), "the new targets cannot be followed");
        }
        if config.auto != old.auto {
            if let Some(mut watch) = self.watch.take() {
                watch.end(&mut self.tracer);
            }
            self.watch = watch(&config);
        }
        if config.snapshots != old.snapshots {
            self.schedule.set(config.snapshots.clone(), clock::wall_ns());
        }
        self.webhook.set(&config.alerts);
        (self.set_level)(&config.log.level);
        self.tracer.select(selection(&config, false));
        self.shared.set_config(Arc::clone(&config));
        self.config = config;
    }
}

/// What only a start can change.
fn fixed(old: &Config, new: &Config) -> [(&'static str, bool); 11] {
    [
        ("trace.mode", old.trace.mode != new.trace.mode),
        ("trace.sample_interval", old.trace.sample_interval != new.trace.sample_interval),
        ("trace.follow", old.trace.follow != new.trace.follow),
        ("trace.max_blocks", old.trace.max_blocks != new.trace.max_blocks),
        ("trace.max_sites", old.trace.max_sites != new.trace.max_sites),
        ("trace.debug_dirs", old.trace.debug_dirs != new.trace.debug_dirs),
        ("trace.debuginfod", old.trace.debuginfod != new.trace.debuginfod),
        ("trace.max_overhead", old.trace.max_overhead != new.trace.max_overhead),
        (
            "http.enabled or http.listen",
            (old.http.enabled, &old.http.listen) != (new.http.enabled, &new.http.listen),
        ),
        ("log.format", old.log.format != new.log.format),
        ("limits.targets above the number at the start", new.limits.targets > old.limits.targets),
    ]
}
