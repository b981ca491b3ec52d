//! The service's configuration: a TOML file, checked as a whole before anything of it is used. Every key has a
//! default; `packaging/leaktrace.toml` documents them all, and a test holds the two together.
use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use leaktrace_common::sample::MAX_INTERVAL_BYTES;
use serde::Deserialize;

use super::values::{Count, Share, Size, Span};
use crate::{
    agent::{
        governor::GovernorOptions,
        growth::pilot::AutoOptions,
        orders::{MOST_TARGETS, Orders},
    },
    analyse::memory_growth::GrowthRule,
    discover::selector::Selector,
};

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

/// Section `http`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Whether there is a server at all.
    pub enabled: bool,
    /// `ADDRESS:PORT` or `unix:/path`.
    pub listen: Listen,
    /// Bearer token that requests that change something must carry; without one there are none.
    pub token: Option<String>,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// Largest request body.
    pub max_request: Size,
    /// Time in which a request is answered.
    pub timeout: Span,
    /// Requests at once.
    pub max_concurrent: Count,
    /// Connections at once.
    pub max_connections: Count,
    /// Event streams at once.
    pub max_streams: Count,
    /// Sites of each target in `/metrics`; the others are summed.
    pub metrics_sites: Count,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            enabled: true,
            listen: Listen::default(),
            token: None,
            token_file: None,
            max_request: Size(64 << 10),
            timeout: Span::seconds(10),
            max_concurrent: Count(32),
            max_connections: Count(256),
            max_streams: Count(16),
            metrics_sites: Count(10),
        }
    }
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl Default for Listen {
    fn default() -> Listen {
        Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9464)))
    }
}

impl Listen {
    /// Whether others than this host can reach it.
    pub fn is_public(&self) -> bool {
        matches!(self, Listen::Tcp(address) if !is_loopback(address.ip()))
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Listen, String> {
        let wrong = || {
            format!(
                "{text:?} is no address to listen on: say \"127.0.0.1:9464\" or \"unix:/run/leaktrace.sock\""
            )
        };
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Listen::Unix(PathBuf::from(path))),
            Some(_) => Err(wrong()),
            None => text.parse().map(Listen::Tcp).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(out, "http://{address}"),
            Listen::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

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

/// Two thresholds of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, bound(deserialize = "T: Deserialize<'de>"))]
pub struct Thresholds<T> {
    /// From here on a warning.
    pub warning: Option<T>,
    /// From here on critical.
    pub critical: Option<T>,
}

impl<T> Default for Thresholds<T> {
    fn default() -> Thresholds<T> {
        Thresholds { warning: None, critical: None }
    }
}

/// Section `alerts`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// Bytes that a target holds.
    pub outstanding: Thresholds<Size>,
    /// Bytes by which a target grows in an hour.
    pub growth_per_hour: Thresholds<Size>,
    /// Share of the memory limit that is used, 0 to 1.
    pub memory_limit: Thresholds<f64>,
    /// Time until the memory limit at the present growth; smaller is worse.
    pub time_to_limit: Thresholds<Span>,
    /// Time over which growth is measured.
    pub growth_window: Span,
    /// An alert ends when its value is this share of the threshold away from it.
    pub hysteresis: f64,
    /// Where alerts are posted.
    pub webhook: Option<String>,
    /// Time for one attempt.
    pub webhook_timeout: Span,
    /// Alerts that wait for delivery; of more, the oldest are dropped.
    pub webhook_queue: Count,
}

impl Default for Alerts {
    fn default() -> Alerts {
        Alerts {
            outstanding: Thresholds::default(),
            growth_per_hour: Thresholds::default(),
            memory_limit: Thresholds { warning: Some(0.7), critical: Some(0.9) },
            time_to_limit: Thresholds::default(),
            growth_window: Span::seconds(300),
            hysteresis: 0.1,
            webhook: None,
            webhook_timeout: Span::seconds(5),
            webhook_queue: Count(256),
        }
    }
}

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
        if let Some(file) = &config.http.token_file {
            let token = read_text(file).map_err(|error| {
                ConfigError(format!("{shown}: http.token_file: cannot read {}: {error}", file.display()))
            })?;
            config.http.token = Some(token.trim().to_owned());
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
        let trace = &self.trace;
        demand(trace.interval.0 >= Duration::from_millis(100), "trace.interval: at least 100ms")?;
        demand(trace.interval.0 <= Duration::from_secs(3600), "trace.interval: at most 1h")?;
        demand(
            (1..=MAX_INTERVAL_BYTES).contains(&trace.sample_interval.0),
            "trace.sample_interval: from 1 byte to 4G",
        )?;
        demand(
            (1..=u64::from(u32::MAX)).contains(&trace.max_blocks.0),
            "trace.max_blocks: from 1 to 4294967295",
        )?;
        demand((1..=10_000_000).contains(&trace.max_sites.0), "trace.max_sites: from 1 to 10M")?;
        demand((1..=10_000).contains(&trace.top.0), "trace.top: from 1 to 10000")?;
        demand(self.auto.after.0 >= Duration::from_secs(1), "auto.after: at least 1s")?;
        demand(self.auto.duration.0 >= Duration::from_secs(1), "auto.duration: at least 1s")?;
        demand(self.auto.targets.0 <= 64, "auto.targets: at most 64")?;
        demand(
            self.auto.watch.is_empty() || trace.mode == ModeName::Sampled,
            "auto.watch: needs trace.mode = \"sampled\"",
        )?;
        self.check_http()?;
        self.check_snapshots()?;
        self.check_alerts()?;
        demand(
            (1..=MOST_TARGETS as u64).contains(&self.limits.targets.0),
            &format!("limits.targets: from 1 to {MOST_TARGETS}"),
        )?;
        demand(
            self.limits.cpu > 0.0 && self.limits.cpu <= 1024.0,
            "limits.cpu: a share of one CPU, such as 0.5",
        )?;
        tracing_subscriber::EnvFilter::try_new(&self.log.level)
            .map(drop)
            .map_err(|error| format!("log.level: {error}: say error, warn, info, debug or trace"))
    }

    fn check_http(&self) -> Result<(), String> {
        let http = &self.http;
        for (name, count) in [
            ("max_concurrent", http.max_concurrent),
            ("max_connections", http.max_connections),
            ("max_streams", http.max_streams),
        ] {
            demand((1..=100_000).contains(&count.0), &format!("http.{name}: from 1 to 100000"))?;
        }
        demand(http.metrics_sites.0 <= 1000, "http.metrics_sites: at most 1000")?;
        demand(
            http.timeout.0 >= Duration::from_millis(100) && http.timeout.0 <= Duration::from_secs(600),
            "http.timeout: from 100ms to 10m",
        )?;
        demand((1..=(16 << 20)).contains(&http.max_request.0), "http.max_request: from 1 byte to 16M")?;
        if let Some(token) = &http.token {
            let clean = token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic());
            demand(
                clean,
                "http.token: at least 16 printable characters without spaces: make one by `openssl rand -hex 32`",
            )?;
        }
        Ok(())
    }

    fn check_snapshots(&self) -> Result<(), String> {
        let snapshots = &self.snapshots;
        for text in &snapshots.cron {
            croner::Cron::from_str(text).map_err(|error| {
                format!("snapshots.cron: {text:?}: {error}: say minute hour day month weekday, such as \"0 3 * * *\"")
            })?;
        }
        if let Some(every) = snapshots.every {
            demand(every.0 >= Duration::from_secs(1), "snapshots.every: at least 1s")?;
        }
        if let Some(share) = snapshots.on_memory_limit {
            demand(share > 0.0 && share <= 1.0, "snapshots.on_memory_limit: from 0 to 1, such as 0.8")?;
        }
        demand(snapshots.keep.count.0 >= 1, "snapshots.keep.count: at least 1")?;
        let asks = snapshots.every.is_some()
            || !snapshots.cron.is_empty()
            || snapshots.on_exit
            || snapshots.on_oom
            || snapshots.on_growth.is_some()
            || snapshots.on_memory_limit.is_some();
        demand(
            snapshots.directory.is_some() || !asks,
            "snapshots.directory: a schedule needs a folder for its files, such as \"/var/lib/leaktrace\"",
        )?;
        demand(
            snapshots.directory.as_ref().is_none_or(|path| path.is_absolute()),
            "snapshots.directory: an absolute path",
        )
    }

    fn check_alerts(&self) -> Result<(), String> {
        let alerts = &self.alerts;
        demand(ordered(&alerts.outstanding), "alerts.outstanding: warning must not be above critical")?;
        demand(
            ordered(&alerts.growth_per_hour),
            "alerts.growth_per_hour: warning must not be above critical",
        )?;
        demand(ordered(&alerts.memory_limit), "alerts.memory_limit: warning must not be above critical")?;
        let time = &alerts.time_to_limit;
        demand(
            ordered(&Thresholds { warning: time.critical, critical: time.warning }),
            "alerts.time_to_limit: warning must not be shorter than critical",
        )?;
        for share in [alerts.memory_limit.warning, alerts.memory_limit.critical].into_iter().flatten() {
            demand(share > 0.0 && share <= 1.0, "alerts.memory_limit: from 0 to 1, such as 0.7")?;
        }
        demand((0.0..1.0).contains(&alerts.hysteresis), "alerts.hysteresis: from 0 to below 1, such as 0.1")?;
        demand(alerts.growth_window.0 >= Duration::from_secs(1), "alerts.growth_window: at least 1s")?;
        demand((1..=100_000).contains(&alerts.webhook_queue.0), "alerts.webhook_queue: from 1 to 100000")?;
        demand(
            alerts.webhook_timeout.0 >= Duration::from_millis(100)
                && alerts.webhook_timeout.0 <= Duration::from_secs(25),
            "alerts.webhook_timeout: from 100ms to 25s",
        )?;
        let Some(url) = &alerts.webhook else { return Ok(()) };
        let valid = url
            .parse::<ureq::http::Uri>()
            .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        demand(valid, "alerts.webhook: an http:// or https:// address")
    }
}

fn ordered<T: PartialOrd>(thresholds: &Thresholds<T>) -> bool {
    match (&thresholds.warning, &thresholds.critical) {
        (Some(warning), Some(critical)) => warning <= critical,
        _ => true,
    }
}

fn demand(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
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
