//! The queries of requests, checked: a name or a value that is wrong is a 400 that says so.
use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::problem::Problem;
use crate::model::snapshot::{Confidence, WallNs};

/// A query of this type.
#[derive(Clone, Copy, Debug)]
pub struct Checked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Checked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Checked<T>, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Checked(query)),
            Err(rejection) => Err(Problem::new(400, rejection.body_text())),
        }
    }
}

/// No query at all.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Of `/api/v1/history`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Process id.
    pub target: u32,
    /// RFC 3339, or seconds since 1970.
    pub from: Option<String>,
    /// RFC 3339, or seconds since 1970.
    pub to: Option<String>,
}

/// Of `/api/v1/leaks`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaksQuery {
    /// Process id.
    pub target: Option<u32>,
    /// The least sure ones to show.
    pub confidence: Option<ConfidenceName>,
    /// How many, 1 to 1000.
    pub limit: Option<usize>,
}

/// How sure a finding is.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfidenceName {
    /// Could be a cache.
    Low,
    /// Grows or is old.
    Medium,
    /// Surely a leak.
    High,
}

impl From<ConfidenceName> for Confidence {
    fn from(name: ConfidenceName) -> Confidence {
        match name {
            ConfidenceName::Low => Confidence::Low,
            ConfidenceName::Medium => Confidence::Medium,
            ConfidenceName::High => Confidence::High,
        }
    }
}

/// Of `/api/v1/snapshots/compare`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareQuery {
    /// Id of the older file, or `now`.
    pub base: String,
    /// Id of the newer file, or `now`.
    pub other: String,
    /// How many sites, 1 to 1000.
    pub top: Option<usize>,
}

/// Of `/api/v1/stream`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// Sites of each target, 0 to 100.
    pub top: Option<usize>,
}

/// Of `/debug/pprof/heap`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeapQuery {
    /// Process id.
    pub pid: Option<u32>,
}

/// A number within bounds, or the default.
///
/// # Errors
/// 400 with the bounds.
pub fn bounded(
    name: &str,
    value: Option<usize>,
    default: usize,
    least: usize,
    most: usize,
) -> Result<usize, Problem> {
    let value = value.unwrap_or(default);
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Problem::new(400, format!("{name}: from {least} to {most}")))
    }
}

/// A time: RFC 3339, or seconds since 1970.
///
/// # Errors
/// 400 with an example.
pub fn time(name: &str, text: Option<&str>, default: WallNs) -> Result<WallNs, Problem> {
    let Some(text) = text else { return Ok(default) };
    let wrong =
        || Problem::new(400, format!("{name}: a time such as 2026-11-21T14:00:00Z, or seconds since 1970"));
    if let Ok(seconds) = text.parse::<f64>() {
        return if seconds.abs() < 9e9 { Ok((seconds * 1e9) as WallNs) } else { Err(wrong()) };
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
    // Times that do not fit lie before or after everything that was recorded.
    let is_past = time < jiff::Timestamp::UNIX_EPOCH;
    Ok(WallNs::try_from(time.as_nanosecond()).unwrap_or(if is_past { WallNs::MIN } else { WallNs::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_or_seconds() {
        assert_eq!(time("from", Some("1970-01-01T00:00:01Z"), 0).unwrap(), 1_000_000_000);
        assert_eq!(time("from", Some("1.5"), 0).unwrap(), 1_500_000_000);
        assert_eq!(time("from", None, 7).unwrap(), 7);
        assert_eq!(time("from", Some("0001-01-01T00:00:00Z"), 0).unwrap(), WallNs::MIN);
        assert_eq!(time("to", Some("9999-01-01T00:00:00Z"), 0).unwrap(), WallNs::MAX);
        for wrong in ["", "yesterday", "nan", "1e30", "9999-99-99T00:00:00Z"] {
            assert_eq!(time("from", Some(wrong), 0).unwrap_err().status(), 400, "{wrong}");
        }
    }
}
