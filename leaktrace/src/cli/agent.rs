//! `leaktrace agent`: the service, from its configuration file.
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tracing_subscriber::EnvFilter;

use super::{args::AgentArgs, trace};
use crate::{
    agent::{
        bans::{self, Bans},
        service::{
            self, SetLevel,
            config::{Config, DEFAULT_PATH, Log, LogFormat},
        },
    },
    render::escape::escape,
};

/// Runs until a signal ends it; with --check it only reads the configuration.
///
/// # Errors
/// When the configuration is wrong or tracing cannot start.
pub(super) fn agent(args: &AgentArgs) -> Result<u8> {
    if let Some(which) = &args.forget {
        return forget(which);
    }
    let path = path(args)?;
    let config = match &path {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    if args.check {
        let shown = path.as_deref().unwrap_or(Path::new("the default configuration"));
        return super::print(format!("{}: ok\n", shown.display()).as_bytes());
    }
    let set_level = start_log(&config.log);
    if path.is_none() {
        tracing::info!("{DEFAULT_PATH} is not there: defaults are used, and no process is traced yet");
    }
    trace::check_pid_namespace()?;
    let local = tokio::task::LocalSet::new();
    let runtime = super::runtime()?;
    runtime.block_on(local.run_until(service::run(config, path.as_deref(), set_level)))?;
    Ok(0)
}

/// Forgets that tracing has killed a program; an agent that runs notices it by itself.
fn forget(which: &str) -> Result<u8> {
    let path = bans::default_path();
    let context = || format!("{}", path.display());
    let forgotten = Bans::open(&path).with_context(context)?.forget(which).with_context(context)?;
    if forgotten.is_empty() {
        bail!("{}: it does not name {which:?} as a program that tracing has killed", path.display());
    }
    let lines: String = forgotten.iter().map(|key| format!("{}: forgotten\n", escape(key))).collect();
    super::print(lines.as_bytes())
}

/// The file that was named, or the usual one where it is there.
fn path(args: &AgentArgs) -> Result<Option<PathBuf>> {
    match &args.config {
        Some(path) if path.is_dir() => bail!("{} is a folder: name the file", path.display()),
        Some(path) => Ok(Some(path.clone())),
        None => Ok(Path::new(DEFAULT_PATH).exists().then(|| PathBuf::from(DEFAULT_PATH))),
    }
}

/// Starts the log on standard error, where a service manager reads it; what is returned changes its level.
fn start_log(log: &Log) -> SetLevel {
    let filter = EnvFilter::try_from_env("LEAKTRACE_LOG")
        .unwrap_or_else(|_| EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info")));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    match log.format {
        LogFormat::Text => {
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Box::new(move |level| drop(EnvFilter::try_new(level).map(|filter| handle.reload(filter))))
        }
        LogFormat::Json => {
            let builder = builder.json().with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Box::new(move |level| drop(EnvFilter::try_new(level).map(|filter| handle.reload(filter))))
        }
    }
}
