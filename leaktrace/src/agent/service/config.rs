//! The service's configuration: a TOML file, checked as a whole before anything of it is used. Every key has a
//! default; `packaging/leaktrace.toml` documents them all, and a test holds the two together. What a section holds, what
//! its defaults are and what of it cannot be is in a file of its own.
use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde::Deserialize;

use crate::discover::selector::Selector;

mod alerts;
mod http;
mod own;
mod snapshots;
mod trace;

pub use alerts::{Alerts, Thresholds};
pub use http::{Http, Listen};
pub use own::{Limits, Log, LogFormat};
pub use snapshots::{Keep, Snapshots};
pub use trace::{Auto, ModeName, Trace};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT_PATH: &str = "/etc/leaktrace/leaktrace.toml";
/// Bytes of a configuration file.
const MAX_BYTES: u64 = 1 << 20;

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which processes to trace: standing orders.
    pub targets: Vec<Selector>,
    /// Which of these not.
    pub exclude: Vec<Selector>,
    /// Which processes to watch for growth, and to sample while they grow.
    pub auto: Auto,
    /// How allocations are recorded and how often summaries are made.
    pub trace: Trace,
    /// The HTTP API.
    pub http: Http,
    /// Snapshot files.
    pub snapshots: Snapshots,
    /// Alerts.
    pub alerts: Alerts,
    /// The log.
    pub log: Log,
    /// What the agent itself may use.
    pub limits: Limits,
}

/// Why a configuration is not used: sentences, each naming the file, the line where there is one, and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, has a key that does not exist, or says what cannot be.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let shown = path.display();
        let text = read_text(path).map_err(|error| ConfigError(format!("cannot read {shown}: {error}")))?;
        let mut config = Config::parse(&text).map_err(|error| ConfigError(format!("{shown}{}", error.0)))?;
        if config.http.token.is_some() {
            warn_of_readers(path);
        }
        if let Some(file) = &config.http.token_file {
            let token = read_text(file).map_err(|error| {
                ConfigError(format!("{shown}: http.token_file: cannot read {}: {error}", file.display()))
            })?;
            config.http.token = Some(token.trim().to_owned());
            warn_of_readers(file);
        }
        config.check().map_err(|error| ConfigError(format!("{shown}: {error}")))?;
        Ok(config)
    }

    /// Reads a text; the error begins with `:LINE:` or with `:`.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let place = error.span().map_or_else(
                || ":".to_owned(),
                |span| {
                    let before = text.get(..span.start).unwrap_or_default();
                    format!(":{}:", before.matches('\n').count() + 1)
                },
            );
            ConfigError(format!("{place} {}", explain(error.message())))
        })
    }

    /// What types cannot say.
    ///
    /// # Errors
    /// A sentence with the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        self.trace.check()?;
        self.auto.check(self.trace.mode)?;
        self.http.check()?;
        self.snapshots.check()?;
        self.alerts.check()?;
        self.limits.check()?;
        self.log.check()
    }
}

fn demand(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// A token that others can read opens to them what it guards.
fn warn_of_readers(file: &Path) {
    if fs::metadata(file).is_ok_and(|metadata| is_open_to_others(metadata.mode(), metadata.gid())) {
        tracing::warn!("others can read the token for HTTP: chmod 600 {}", file.display());
    }
}

fn is_open_to_others(mode: u32, group: u32) -> bool {
    mode & 0o007 != 0 || (mode & 0o070 != 0 && group != 0)
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// A message of the TOML reader, with a hint for a name that is nearly right.
fn explain(message: &str) -> String {
    let quoted =
        |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let Some((unknown, rest)) = rest.split_once('`') else { return message.to_owned() };
    let known = quoted(rest);
    let closest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    match closest {
        Some((_, name)) => format!("there is no key {unknown:?} here: did you mean {name:?}?"),
        None => format!("there is no key {unknown:?} here: there are {}", known.join(", ")),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
