use super::*;
use crate::model::snapshot::{Confidence, Exited, Finding, Frame, Totals};

fn site(id: &str, function: &str, bytes: u64) -> SiteView {
    let frame = Frame { function: Some(function.to_owned()), ..Frame::default() };
    SiteView {
        id: id.to_owned(),
        totals: Totals { outstanding_bytes: bytes, outstanding_count: 2, ..Totals::default() },
        finding: Some(Finding {
            confidence: Confidence::High,
            evidence: String::new(),
            growth_bytes_per_second: None,
        }),
        frames: vec![frame].into(),
        stack_end: "complete",
        ..SiteView::default()
    }
}

fn ended(pid: u32, sites: Vec<SiteView>) -> TargetView {
    let exited = Some(Exited { code: Some(0), ..Exited::default() });
    TargetView { pid, comm: "app".to_owned(), exited, sites, ..TargetView::default() }
}

fn snapshot(targets: Vec<TargetView>, last: bool) -> Snapshot {
    Snapshot { targets, last, ..Snapshot::default() }
}

fn gated(limit_bytes: u64) -> Rules {
    Rules { limit_bytes: Some(limit_bytes), ..Rules::default() }
}

fn judge(rules: Rules, mut last: Snapshot, ending: Ending) -> (Verdict, Snapshot) {
    let mut gate = Gate::new(rules);
    gate.take(&mut last);
    (gate.verdict(&mut last, ending), last)
}

fn clean_end() -> Ending {
    Ending::Code(0)
}

#[test]
fn a_program_that_holds_nothing_is_clean() {
    let (verdict, _) = judge(gated(0), snapshot(vec![ended(1, Vec::new())], true), clean_end());
    assert_eq!((verdict.outcome, verdict.exit_code, verdict.reasons.len()), (Outcome::Clean, 0, 0));
}

#[test]
fn findings_beyond_the_limit_are_leaks() {
    let target = || ended(1, vec![site("a", "f", 60), site("b", "g", 40)]);
    for (limit, outcome, code) in [(0, Outcome::Leaks, 3), (99, Outcome::Leaks, 3), (100, Outcome::Clean, 0)]
    {
        let (verdict, _) = judge(gated(limit), snapshot(vec![target()], true), clean_end());
        assert_eq!((verdict.outcome, verdict.exit_code), (outcome, code), "{limit}");
        assert_eq!(verdict.leaked, Amount { bytes: 100, count: 4, sites: 2 });
        assert!(!verdict.reasons.is_empty());
    }
    let (verdict, _) = judge(Rules::default(), snapshot(vec![target()], true), clean_end());
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Leaks, 0), "the exit code was not asked for");
}

#[test]
fn blocks_of_no_size_are_leaks_too() {
    let (verdict, _) = judge(gated(0), snapshot(vec![ended(1, vec![site("a", "f", 0)])], true), clean_end());
    assert_eq!(verdict.exit_code, 3);
}

#[test]
fn processes_that_ended_before_the_last_summary_count() {
    let mut gate = Gate::new(gated(0));
    gate.take(&mut snapshot(vec![ended(1, vec![site("a", "f", 5)])], false));
    let mut last = snapshot(vec![ended(2, Vec::new())], true);
    gate.take(&mut last);
    let verdict = gate.verdict(&mut last, clean_end());
    assert_eq!((verdict.exit_code, verdict.leaked.bytes), (3, 5));
}

#[test]
fn a_process_that_still_runs_counts_in_the_last_summary_alone() {
    let running = || TargetView { exited: None, ..ended(1, vec![site("a", "f", 5)]) };
    let mut gate = Gate::new(gated(0));
    gate.take(&mut snapshot(vec![running()], false));
    let mut last = snapshot(vec![running()], true);
    gate.take(&mut last);
    let verdict = gate.verdict(&mut last, Ending::Runs);
    assert_eq!((verdict.outcome, verdict.leaked.bytes), (Outcome::Leaks, 5));
    assert!(verdict.reasons.iter().any(|reason| reason.contains("still ran")), "{:?}", verdict.reasons);
}

#[test]
fn the_programs_own_failure_comes_first() {
    let target = || vec![ended(1, vec![site("a", "f", 5)])];
    for (ending, code) in [(Ending::Code(7), 7), (Ending::Signal(11), 139), (Ending::Code(3), 3)] {
        let (verdict, _) = judge(gated(0), snapshot(target(), true), ending);
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::ProgramFailed, code));
        assert_eq!(verdict.leaked.bytes, 5, "and what it held is said all the same");
    }
}

#[test]
fn each_way_of_not_seeing_is_a_reason() {
    let unseen =
        TargetView { unseen: vec!["no allocator was found in it".to_owned()], ..ended(1, Vec::new()) };
    let cut = TargetView {
        sites_cut: 3,
        cut_totals: Totals { outstanding_bytes: 1, outstanding_count: 1, ..Totals::default() },
        ..ended(1, Vec::new())
    };
    let killed = TargetView {
        exited: Some(Exited { signal: Some(15), ..Exited::default() }),
        ..ended(1, vec![SiteView { finding: None, ..site("a", "f", 5) }])
    };
    let nameless = ended(1, vec![SiteView { frames: Vec::new().into(), ..site("a", "f", 5) }]);
    let lost = |cause: &str| Snapshot {
        losses: [(cause.to_owned(), 7)].into(),
        ..snapshot(vec![ended(1, Vec::new())], true)
    };
    let with_mode = |mode| Snapshot { mode, ..snapshot(vec![ended(1, Vec::new())], true) };
    let with = |target| snapshot(vec![target], true);
    for (last, words) in [
        (with(unseen), "no allocator was found"),
        (with(cut), "not looked at"),
        (with(killed), "was killed while it held 5 B"),
        (with(nameless), "not recorded"),
        (lost("blocks_full"), "7 allocations not recorded because"),
        (lost("lost_returns"), "7 calls whose return was never seen"),
        (lost("children_not_traced"), "7 children were not traced"),
        (lost("ended_processes_not_listed"), "7 processes ended"),
        (with_mode(Mode::Growth), "--mode growth"),
        (with_mode(Mode::Sampled { interval_bytes: 1 << 19 }), "one in 512.0 KiB"),
        (snapshot(Vec::new(), true), "no process was traced"),
    ] {
        let (verdict, _) = judge(gated(0), last, clean_end());
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::NotKnown, 4), "{words}");
        assert!(verdict.reasons.iter().any(|reason| reason.contains(words)), "{:?}", verdict.reasons);
    }
}

#[test]
fn what_hides_no_leak_is_no_reason() {
    for cause in ["missed_frees", "stacks_deferred", "unmatched_frees", "mapping_records_lost"] {
        let last =
            Snapshot { losses: [(cause.to_owned(), 7)].into(), ..snapshot(vec![ended(1, Vec::new())], true) };
        assert_eq!(judge(gated(0), last, clean_end()).0.outcome, Outcome::Clean, "{cause}");
    }
    // Its memory was never to be freed.
    let replaced = TargetView {
        exited: None,
        execed: true,
        unseen: vec!["no allocator was found in it".to_owned()],
        ..ended(1, Vec::new())
    };
    assert_eq!(judge(gated(0), snapshot(vec![replaced], true), clean_end()).0.outcome, Outcome::Clean);
}

#[test]
fn without_a_limit_only_a_run_that_traced_nothing_is_an_exit_code() {
    let unseen = TargetView { unseen: vec!["why".to_owned()], ..ended(1, Vec::new()) };
    let (verdict, _) = judge(Rules::default(), snapshot(vec![unseen], true), clean_end());
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::NotKnown, 0));
    for ending in [clean_end(), Ending::NotStarted] {
        let (verdict, _) = judge(Rules::default(), snapshot(Vec::new(), true), ending);
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::NotKnown, 4));
    }
}

#[test]
fn suppressions_hide_findings_and_are_counted() {
    let suppressions = Suppressions::parse("leak:^known$").unwrap();
    let rules = || Rules { suppressions: suppressions.clone(), ..gated(0) };
    let sites = vec![site("a", "known", 10), site("b", "unknown", 20)];
    let (verdict, last) = judge(rules(), snapshot(vec![ended(1, sites)], true), clean_end());
    assert_eq!(verdict.suppressed, Amount { bytes: 10, count: 2, sites: 1 });
    assert_eq!((verdict.exit_code, verdict.leaked.bytes), (3, 20));
    let shown = &last.targets[0].sites;
    assert_eq!(shown[0].suppressed.as_deref(), Some("^known$"));
    assert!(shown[0].finding.is_none() && shown[1].finding.is_some());
    let (verdict, _) =
        judge(rules(), snapshot(vec![ended(1, vec![site("a", "known", 10)])], true), clean_end());
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Clean, 0));
}

#[test]
fn suppressions_that_a_program_brings_are_for_its_own_process() {
    let mut gate = Gate::new(gated(0));
    gate.suppress(1, Suppressions::parse("leak:known").unwrap());
    let mut last =
        snapshot(vec![ended(1, vec![site("a", "known", 10)]), ended(2, vec![site("b", "known", 20)])], true);
    gate.take(&mut last);
    let verdict = gate.verdict(&mut last, clean_end());
    assert_eq!((verdict.suppressed.bytes, verdict.leaked.bytes), (10, 20));
}

#[test]
fn against_a_baseline_only_what_is_new_or_grew_counts() {
    let baseline = || Some(snapshot(vec![ended(9, vec![site("a", "f", 50), site("b", "g", 50)])], true));
    let rules = || Rules { baseline: baseline(), ..gated(0) };
    let same = vec![site("a", "f", 50), site("b", "g", 30)];
    let (verdict, last) = judge(rules(), snapshot(vec![ended(1, same)], true), clean_end());
    assert_eq!((verdict.outcome, verdict.leaked), (Outcome::Clean, Amount::default()));
    assert_eq!(verdict.in_baseline, Amount { bytes: 80, count: 4, sites: 2 });
    assert!(last.targets[0].sites.iter().all(|site| site.suppressed.as_deref() == Some("baseline")));
    let grown = vec![site("a", "f", 70), site("c", "h", 5)];
    let (verdict, last) = judge(rules(), snapshot(vec![ended(1, grown)], true), clean_end());
    assert_eq!((verdict.exit_code, verdict.leaked.bytes, verdict.leaked.sites), (3, 25, 2));
    assert!(last.targets[0].sites.iter().all(|site| site.finding.is_some()));
    // Two processes that hold it are more than one.
    let twice = vec![ended(1, vec![site("a", "f", 50)]), ended(2, vec![site("a", "f", 50)])];
    assert_eq!(judge(rules(), snapshot(twice, true), clean_end()).0.leaked.bytes, 50);
}

#[test]
fn reasons_are_bounded() {
    let mut gate = Gate::new(gated(0));
    for number in 0..50 {
        gate.doubt(format!("reason {number}"));
    }
    gate.doubt("reason 0".to_owned());
    let mut last = snapshot(Vec::new(), true);
    let verdict = gate.verdict(&mut last, clean_end());
    assert_eq!(verdict.reasons.len(), MAX_REASONS + 1);
    assert_eq!(verdict.reasons.last().map(String::as_str), Some("and 30 more reasons"));
}
