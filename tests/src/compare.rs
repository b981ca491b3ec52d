//! Compares a report with a ledger: to the byte and the count, site by site. Pure.
//!
//! A site of the report belongs to the first function on its stack, from the allocation outwards, that the ledger
//! names; a function that calls the allocator in two places has two sites, and their sum counts.
use crate::{
    ledger::{Entry, Ledger},
    report::{Report, Site, Target},
};
use leaktrace_common::counter::{Class, Counter};
use std::collections::BTreeMap;

/// How to compare.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Other names that stand for a site: (name in the report, site in the ledger). For stacks that end in a library
    /// without unwind information.
    pub aliases: Vec<(&'static str, &'static str)>,
    /// Causes of loss that belong to the scenario.
    pub allowed_losses: Vec<&'static str>,
    /// Outstanding sites that no entry names are the program's own business.
    pub others_allowed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    bytes: u64,
    count: u64,
    allocated_bytes: u64,
    allocated_count: u64,
}

impl Sums {
    fn add(&mut self, site: &Site) {
        self.bytes += site.outstanding_bytes;
        self.count += site.outstanding_count;
        self.allocated_bytes += site.allocated_bytes;
        self.allocated_count += site.allocated_count;
    }
}

/// Every difference between what the ledger says and what the report says about one process; empty when they agree.
pub fn differences(ledger: &Ledger, target: &Target, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    let kinds = ["heap", "mapping"];
    for kind in kinds.into_iter().filter(|kind| ledger.entries.iter().any(|entry| entry.kind == *kind)) {
        let entries: Vec<&Entry> = ledger.entries.iter().filter(|entry| entry.kind == kind).collect();
        let sums = by_entry(&entries, target, kind, rules, &mut found);
        for entry in &entries {
            found.extend(difference(entry, &sums.get(entry.site.as_str()).copied().unwrap_or_default()));
        }
    }
    found.extend(inconsistencies(target));
    found
}

/// Sums of the sites that belong to each entry; what belongs to none and is outstanding is a difference.
fn by_entry<'a>(
    entries: &[&'a Entry],
    target: &Target,
    kind: &str,
    rules: &Rules,
    found: &mut Vec<String>,
) -> BTreeMap<&'a str, Sums> {
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for site in target.sites.iter().filter(|site| site.kind == kind) {
        match owner(entries, site, rules) {
            Some(name) => sums.entry(name).or_default().add(site),
            None if site.outstanding_count > 0 && !rules.others_allowed => found.push(format!(
                "a {kind} site that is not in the ledger: {} bytes in {} blocks at {}",
                site.outstanding_bytes,
                site.outstanding_count,
                site.stack()
            )),
            None => {}
        }
    }
    sums
}

fn owner<'a>(entries: &[&'a Entry], site: &Site, rules: &Rules) -> Option<&'a str> {
    let named = |name: &str| entries.iter().map(|entry| entry.site.as_str()).find(|site| *site == name);
    let alias =
        |name: &str| rules.aliases.iter().find(|(other, _)| *other == name).and_then(|(_, site)| named(site));
    let functions = || site.frames.iter().filter_map(|frame| frame.function.as_deref());
    functions().find_map(named).or_else(|| functions().find_map(alias))
}

fn difference(entry: &Entry, sums: &Sums) -> Option<String> {
    if entry.open {
        return None;
    }
    let mut parts = Vec::new();
    let mut part = |what: &str, expected: Option<u64>, is: u64| {
        if expected.is_some_and(|expected| expected != is) {
            parts.push(format!("{what} {is} instead of {}", expected.unwrap_or_default()));
        }
    };
    part("outstanding bytes", Some(entry.bytes), sums.bytes);
    part("outstanding blocks", entry.count, sums.count);
    part("allocated bytes", entry.allocated_bytes, sums.allocated_bytes);
    part("allocated blocks", entry.allocated_count, sums.allocated_count);
    (!parts.is_empty()).then(|| format!("{}: {}", entry.site, parts.join(", ")))
}

/// What the report says about itself must add up.
fn inconsistencies(target: &Target) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, left: Option<u64>, right: u64| {
        if left != Some(right) {
            found.push(format!("process {}: {what}: {left:?} is not {right}", target.pid));
        }
    };
    let heap = || target.sites.iter().filter(|site| site.kind == "heap");
    check(
        "sum of outstanding bytes of sites",
        Some(heap().map(|site| site.outstanding_bytes).sum()),
        target.outstanding_bytes,
    );
    check(
        "sum of outstanding blocks of sites",
        Some(heap().map(|site| site.outstanding_count).sum()),
        target.outstanding_count,
    );
    check(
        "allocated − freed bytes",
        target.allocated_bytes.checked_sub(target.freed_bytes),
        target.outstanding_bytes,
    );
    check(
        "allocated − freed blocks",
        target.allocated_count.checked_sub(target.freed_count),
        target.outstanding_count,
    );
    for site in heap() {
        let what = format!("site {}: allocated − freed bytes", site.stack());
        check(&what, site.allocated_bytes.checked_sub(site.freed_bytes), site.outstanding_bytes);
    }
    found
}

/// Losses that make the numbers wrong and do not belong to the scenario. Details (a stack cut short, a free of a block
/// from before) are none; a cause that the counter list does not know is one.
pub fn losses(report: &Report, rules: &Rules) -> Vec<String> {
    let harmless = |cause: &str| {
        Counter::ALL.iter().any(|counter| counter.name() == cause && counter.class() != Class::Loss)
            || rules.allowed_losses.contains(&cause)
    };
    report
        .losses
        .iter()
        .filter(|(cause, count)| **count > 0 && !harmless(cause))
        .map(|(cause, count)| format!("loss: {cause} {count}"))
        .collect()
}

#[cfg(test)]
mod tests;
