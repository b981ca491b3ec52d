//! What a run came to, in a file.
use serde::{Deserialize, Serialize};

use crate::model::verdict::{Amount, Outcome, Verdict};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct VerdictDetails {
    outcome: String,
    exit_code: u8,
    reasons: Vec<String>,
    limit_bytes: Option<u64>,
    leaked: AmountDetails,
    suppressed: AmountDetails,
    in_baseline: AmountDetails,
}

/// Bytes, blocks, sites.
type AmountDetails = (u64, u64, u64);

fn parts(amount: &Amount) -> AmountDetails {
    (amount.bytes, amount.count, amount.sites)
}

fn amount((bytes, count, sites): AmountDetails) -> Amount {
    Amount { bytes, count, sites }
}

impl From<&Verdict> for VerdictDetails {
    fn from(verdict: &Verdict) -> Self {
        VerdictDetails {
            outcome: verdict.outcome.name().to_owned(),
            exit_code: verdict.exit_code,
            reasons: verdict.reasons.clone(),
            limit_bytes: verdict.limit_bytes,
            leaked: parts(&verdict.leaked),
            suppressed: parts(&verdict.suppressed),
            in_baseline: parts(&verdict.in_baseline),
        }
    }
}

impl VerdictDetails {
    /// The verdict, where its outcome is known.
    pub(super) fn view(self) -> Option<Verdict> {
        Some(Verdict {
            outcome: Outcome::ALL.into_iter().find(|outcome| outcome.name() == self.outcome)?,
            exit_code: self.exit_code,
            reasons: self.reasons,
            limit_bytes: self.limit_bytes,
            leaked: amount(self.leaked),
            suppressed: amount(self.suppressed),
            in_baseline: amount(self.in_baseline),
        })
    }
}
