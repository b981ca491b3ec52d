//! Rule: memory that a process still held when it ended by itself was never freed.
use super::steady_growth;
use crate::model::{
    history::Point,
    sites::Site,
    snapshot::{Confidence, Finding},
    units,
};

/// Always a finding: the caller has checked that something is outstanding. Whether a pointer to it was left cannot
/// be told, and the words say so.
pub(super) fn judge(site: &Site, points: &[Point]) -> Finding {
    let totals = &site.totals;
    let growth = steady_growth::judge(site, points);
    let mut evidence = format!(
        "{} ({}) of {} never freed before the process ended; whether something still pointed to them is not known",
        units::counted(totals.outstanding_count, "block"),
        units::bytes(totals.outstanding_bytes),
        units::count(totals.allocated_count),
    );
    if let Some(growth) = &growth {
        evidence.push_str("; ");
        evidence.push_str(&growth.evidence);
    }
    Finding {
        confidence: Confidence::High,
        evidence,
        growth_bytes_per_second: growth.and_then(|growth| growth.growth_bytes_per_second),
    }
}
