//! What a run comes to, as JSON.
use serde::Serialize;

use crate::model::verdict::{Amount, Verdict};

#[derive(Serialize)]
pub(super) struct VerdictJson<'a> {
    outcome: &'static str,
    exit_code: u8,
    reasons: &'a [String],
    limit_bytes: Option<u64>,
    leaked: AmountJson,
    suppressed: AmountJson,
    in_baseline: AmountJson,
}

#[derive(Serialize)]
struct AmountJson {
    bytes: u64,
    count: u64,
    sites: u64,
}

impl<'a> From<&'a Verdict> for VerdictJson<'a> {
    fn from(verdict: &'a Verdict) -> Self {
        VerdictJson {
            outcome: verdict.outcome.name(),
            exit_code: verdict.exit_code,
            reasons: &verdict.reasons,
            limit_bytes: verdict.limit_bytes,
            leaked: AmountJson::from(verdict.leaked),
            suppressed: AmountJson::from(verdict.suppressed),
            in_baseline: AmountJson::from(verdict.in_baseline),
        }
    }
}

impl From<Amount> for AmountJson {
    fn from(amount: Amount) -> Self {
        AmountJson { bytes: amount.bytes, count: amount.count, sites: amount.sites }
    }
}
