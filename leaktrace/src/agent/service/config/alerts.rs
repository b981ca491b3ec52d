//! Section `alerts`: thresholds, and where alerts are delivered.
use std::time::Duration;

use serde::Deserialize;

use super::demand;
use crate::agent::service::values::{Count, Size, Span};

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

impl Alerts {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        demand(ordered(&self.outstanding), "alerts.outstanding: warning must not be above critical")?;
        demand(ordered(&self.growth_per_hour), "alerts.growth_per_hour: warning must not be above critical")?;
        demand(ordered(&self.memory_limit), "alerts.memory_limit: warning must not be above critical")?;
        let time = &self.time_to_limit;
        demand(
            ordered(&Thresholds { warning: time.critical, critical: time.warning }),
            "alerts.time_to_limit: warning must not be shorter than critical",
        )?;
        for share in [self.memory_limit.warning, self.memory_limit.critical].into_iter().flatten() {
            demand(share > 0.0 && share <= 1.0, "alerts.memory_limit: from 0 to 1, such as 0.7")?;
        }
        demand((0.0..1.0).contains(&self.hysteresis), "alerts.hysteresis: from 0 to below 1, such as 0.1")?;
        demand(self.growth_window.0 >= Duration::from_secs(1), "alerts.growth_window: at least 1s")?;
        demand((1..=100_000).contains(&self.webhook_queue.0), "alerts.webhook_queue: from 1 to 100000")?;
        demand(
            self.webhook_timeout.0 >= Duration::from_millis(100)
                && self.webhook_timeout.0 <= Duration::from_secs(25),
            "alerts.webhook_timeout: from 100ms to 25s",
        )?;
        let Some(url) = &self.webhook else { return Ok(()) };
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
