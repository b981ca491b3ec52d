//! Tests of the comparison on literal reports.
use super::*;
use serde_json::json;

fn site(kind: &str, frames: &[&str], bytes: u64, count: u64) -> serde_json::Value {
    let frames: Vec<_> = frames
        .iter()
        .map(|name| {
            json!({"address": "0x1", "module": null, "build_id": null, "function": name, "offset": 0, "file": null,
                   "line": null, "inlined": false, "guessed": false, "reason": null})
        })
        .collect();
    json!({"id": "0", "kind": kind, "outstanding_bytes": bytes, "outstanding_count": count, "allocated_bytes": bytes,
           "allocated_count": count, "freed_bytes": 0, "freed_count": 0, "oldest_age_ns": 1,
           "error_bytes": 0, "error_count": 0, "unverified_bytes": 0, "stack_end": "complete", "frames": frames,
           "runtime": false, "suppressed": null})
}

fn report(sites: &[serde_json::Value], losses: serde_json::Value) -> Report {
    let heap = || sites.iter().filter(|site| site["kind"] == "heap");
    let sum = |name: &str| heap().filter_map(|site| site[name].as_u64()).sum::<u64>();
    let line = json!({"schema": "leaktrace.snapshot/1", "time": "", "host": "", "mode": "exact", "since": "",
        "targets": [{"pid": 7, "start_time": "", "comm": "", "cmdline": "", "exited": null,
            "outstanding_bytes": sum("outstanding_bytes"), "outstanding_count": sum("outstanding_count"),
            "error_bytes": 0, "error_count": 0,
            "allocated_bytes": sum("allocated_bytes"), "allocated_count": sum("allocated_count"),
            "freed_bytes": 0, "freed_count": 0, "heap_before_attach_bytes": 0, "unmatched_frees": 0,
            "unverified_bytes": 0, "unseen": [], "sites": sites}],
        "losses": losses, "events": []});
    Report::parse(&line.to_string()).unwrap()
}

fn ledger(lines: &[serde_json::Value]) -> Ledger {
    Ledger { entries: lines.iter().map(|line| serde_json::from_value(line.clone()).unwrap()).collect() }
}

fn compare(ledger: &Ledger, report: &Report, rules: &Rules) -> Vec<String> {
    differences(ledger, report.target(7).unwrap(), rules)
}

#[test]
fn equal_numbers_are_no_difference() {
    let report =
        report(&[site("heap", &["leak_a", "main"], 60, 2), site("heap", &["leak_a"], 40, 1)], json!({}));
    let ledger = ledger(&[
        json!({"site": "leak_a", "bytes": 100, "count": 3, "allocated_count": 3, "allocated_bytes": 100}),
    ]);
    assert_eq!(compare(&ledger, &report, &Rules::default()), Vec::<String>::new());
}

#[test]
fn a_byte_too_many_is_a_difference() {
    let report = report(&[site("heap", &["leak_a"], 101, 3)], json!({}));
    let ledger = ledger(&[json!({"site": "leak_a", "bytes": 100, "count": 3})]);
    assert_eq!(
        compare(&ledger, &report, &Rules::default()),
        ["leak_a: outstanding bytes 101 instead of 100"]
    );
}

#[test]
fn a_site_that_is_missing_is_a_difference() {
    let ledger = ledger(&[json!({"site": "leak_a", "bytes": 0, "count": 3})]);
    assert_eq!(compare(&ledger, &report(&[], json!({})), &Rules::default()).len(), 1);
}

#[test]
fn an_unknown_site_is_a_difference_unless_allowed() {
    let report = report(&[site("heap", &["other"], 5, 1)], json!({}));
    let ledger = ledger(&[json!({"site": "leak_a", "bytes": 0, "count": 0})]);
    assert_eq!(compare(&ledger, &report, &Rules::default()).len(), 1);
    assert!(compare(&ledger, &report, &Rules { others_allowed: true, ..Rules::default() }).is_empty());
}

#[test]
fn the_innermost_site_of_the_ledger_owns_a_stack() {
    let report =
        report(&[site("heap", &["operator new(unsigned long)", "leak_b", "leak_a"], 5, 1)], json!({}));
    let entries = [
        json!({"site": "leak_a", "bytes": 0, "count": 0}),
        json!({"site": "leak_b", "bytes": 5, "count": 1}),
    ];
    assert!(compare(&ledger(&entries), &report, &Rules::default()).is_empty());
}

#[test]
fn an_alias_serves_only_where_no_site_is_on_the_stack() {
    let rules = Rules { aliases: vec![("strdup", "leak_strdup")], ..Rules::default() };
    let report =
        report(&[site("heap", &["strdup"], 5, 1), site("heap", &["strdup", "leak_a"], 3, 1)], json!({}));
    let entries = [
        json!({"site": "leak_strdup", "bytes": 5, "count": 1}),
        json!({"site": "leak_a", "bytes": 3, "count": 1}),
    ];
    assert!(compare(&ledger(&entries), &report, &rules).is_empty());
}

#[test]
fn kinds_are_compared_apart_and_only_where_the_ledger_has_them() {
    let report =
        report(&[site("heap", &["leak_a"], 5, 1), site("mapping", &["library"], 4096, 1)], json!({}));
    let heap = json!({"site": "leak_a", "bytes": 5, "count": 1});
    assert!(compare(&ledger(std::slice::from_ref(&heap)), &report, &Rules::default()).is_empty());
    let both = [heap, json!({"site": "map_a", "kind": "mapping", "bytes": 0, "count": 0})];
    assert_eq!(compare(&ledger(&both), &report, &Rules::default()).len(), 1);
}

#[test]
fn totals_that_do_not_add_up_are_a_difference() {
    let mut report = report(&[site("heap", &["leak_a"], 5, 1)], json!({}));
    report.targets[0].outstanding_bytes = 6;
    let ledger = ledger(&[json!({"site": "leak_a", "bytes": 5, "count": 1})]);
    assert!(!compare(&ledger, &report, &Rules::default()).is_empty());
}

#[test]
fn only_losses_that_make_numbers_wrong_count() {
    let report =
        report(&[], json!({"unmatched_frees": 3, "stop_no_cfi": 2, "blocks_full": 1, "never_heard_of": 1}));
    assert_eq!(losses(&report, &Rules::default()), ["loss: blocks_full 1", "loss: never_heard_of 1"]);
    let rules = Rules { allowed_losses: vec!["blocks_full"], ..Rules::default() };
    assert_eq!(losses(&report, &rules), ["loss: never_heard_of 1"]);
}
