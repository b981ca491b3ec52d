//! Section `http`: where the API is served, and how much of it at once.
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::demand;
use crate::agent::service::values::{Count, Size, Span};

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
    /// Connections of one address, or of one user by a socket file.
    pub max_connections_per_peer: Count,
    /// Names that requests may ask for, besides addresses, `localhost` and this host's own name; `*`: any.
    pub allowed_hosts: Vec<String>,
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
            max_connections_per_peer: Count(128),
            allowed_hosts: Vec::new(),
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

impl Http {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, count) in [
            ("max_concurrent", self.max_concurrent),
            ("max_connections", self.max_connections),
            ("max_connections_per_peer", self.max_connections_per_peer),
            ("max_streams", self.max_streams),
        ] {
            demand((1..=100_000).contains(&count.0), &format!("http.{name}: from 1 to 100000"))?;
        }
        demand(self.metrics_sites.0 <= 1000, "http.metrics_sites: at most 1000")?;
        demand(
            self.timeout.0 >= Duration::from_millis(100) && self.timeout.0 <= Duration::from_secs(600),
            "http.timeout: from 100ms to 10m",
        )?;
        demand((1..=(16 << 20)).contains(&self.max_request.0), "http.max_request: from 1 byte to 16M")?;
        if let Some(token) = &self.token {
            let clean = token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic());
            demand(
                clean,
                "http.token: at least 16 printable characters without spaces: make one by `openssl rand -hex 32`",
            )?;
        }
        Ok(())
    }
}
