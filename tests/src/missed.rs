//! Mapping calls that the kernel did not tell of, from Linux 7.0 on: leaktrace counts and names them. What is compared then is
//! all the rest to the unit, and of mappings that no more lack than were counted.
use crate::{
    compare::{self, Rules},
    ledger::{Entry, Ledger},
    report::{Report, Target},
};

/// The loss by which leaktrace names them.
pub const MISSED: &str = "mapping_calls_missed";

/// As [`compare::differences`] where none were missed, or where the rules do not allow for it.
pub fn differences(ledger: &Ledger, target: &Target, report: &Report, rules: &Rules) -> Vec<String> {
    let is_allowed = rules.allowed_losses.contains(&MISSED);
    let missed = if is_allowed { report.losses.get(MISSED).copied().unwrap_or(0) } else { 0 };
    let (mappings, others): (Vec<Entry>, Vec<Entry>) =
        ledger.entries.iter().cloned().partition(|entry| missed > 0 && entry.kind == "mapping");
    let mut found = compare::differences(&Ledger { entries: others }, target, rules);
    found.extend(mappings.iter().filter_map(|entry| short_by_more(entry, target, missed)));
    found
}

/// Where calls were missed and counted, no more of a site's mappings may lack than that.
fn short_by_more(entry: &Entry, target: &Target, missed: u64) -> Option<String> {
    let truth = entry.allocated_count?;
    let of_entry = target.sites.iter().filter(|site| {
        site.kind == entry.kind
            && site.frames.iter().any(|frame| frame.function.as_ref() == Some(&entry.site))
    });
    let is: u64 = of_entry.map(|site| site.allocated_count).sum();
    let is_covered = is <= truth && truth - is <= missed;
    (!is_covered)
        .then(|| format!("{}: {is} mappings instead of {truth}, and {missed} calls missed", entry.site))
}
