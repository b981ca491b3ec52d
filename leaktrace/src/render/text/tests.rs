//! Details of lines; whole reports are golden files in `tests/golden`.
use super::*;
use crate::model::{
    estimate::Moments,
    snapshot::{ContainerView, Exited, Finding, Harm, Totals},
};

fn named(function: &str) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        offset: Some(0x1a),
        module: Some("/x/srv".to_owned()),
        ..Frame::default()
    }
}

fn snapshot_of(target: TargetView) -> Snapshot {
    Snapshot { time: 10_000_000_000, targets: vec![target], ..Snapshot::default() }
}

#[test]
fn a_frame_says_what_is_known_of_it() {
    assert_eq!(frame_line(&named("f(int)")), "f(int)+0x1a in srv");
    let with_line = Frame { file: Some("/src/a.c".to_owned()), line: Some(7), ..named("f") };
    assert_eq!(frame_line(&with_line), "f+0x1a at /src/a.c:7 in srv");
    let inlined = Frame { inlined: true, offset: None, ..with_line };
    assert_eq!(frame_line(&inlined), "f at /src/a.c:7 (inlined)");
    let unknown = Frame {
        address: 0x7f00,
        module: Some("/lib/libx.so".to_owned()),
        module_offset: Some(0x1234),
        reason: Some("the file is stripped"),
        guessed: true,
        ..Frame::default()
    };
    assert_eq!(frame_line(&unknown), "0x7f00 in libx.so+0x1234 (the file is stripped) (guessed)");
}

#[test]
fn hostile_names_are_escaped_everywhere() {
    let evil = "\x1b]0;owned\x07";
    let target = TargetView {
        comm: evil.to_owned(),
        sites: vec![SiteView {
            frames: vec![Frame { file: Some(evil.to_owned()), module: Some(evil.to_owned()), ..named(evil) }]
                .into(),
            ..SiteView::default()
        }],
        ..TargetView::default()
    };
    let mut view = snapshot_of(target);
    view.notes.push(evil.to_owned());
    view.losses.insert(evil.to_owned(), 1);
    let text = snapshot(&view, Style::default());
    assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text}");
}

#[test]
fn colour_appears_only_when_asked() {
    let finding =
        Finding { confidence: Confidence::High, evidence: "grew".to_owned(), growth_bytes_per_second: None };
    let target = TargetView {
        sites: vec![SiteView { finding: Some(finding), ..SiteView::default() }],
        ..TargetView::default()
    };
    let view = snapshot_of(target);
    assert!(!snapshot(&view, Style::default()).contains('\x1b'));
    let coloured = snapshot(&view, Style { color: true, ..Style::default() });
    assert!(coloured.contains("\x1b[1;31mPID 0 : leak, 0 B"), "{coloured}");
    let plain: String = regex_free_strip(&coloured);
    assert_eq!(plain, snapshot(&view, Style::default()));
}

fn regex_free_strip(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain + rest
}

#[test]
fn combined_only_is_one_line_for_each_process() {
    let exited = TargetView {
        pid: 7,
        comm: "a".to_owned(),
        exited: Some(Exited { signal: Some(9), ..Exited::default() }),
        ..TargetView::default()
    };
    let mut view = snapshot_of(exited.clone());
    view.targets.push(TargetView {
        pid: 8,
        exited: Some(Exited { code: Some(3), ..Exited::default() }),
        ..exited
    });
    let text = snapshot(&view, Style { combined_only: true, ..Style::default() });
    let lines: Vec<&str> = text.lines().skip(1).take(2).collect();
    assert_eq!(
        lines,
        [
            "PID 7 a (killed by signal 9): 0 B in 0 blocks outstanding",
            "PID 8 a (exited with 3): 0 B in 0 blocks outstanding"
        ]
    );
}

#[test]
fn lines_of_a_stack_fit_the_width() {
    let frames = vec![named(&"long".repeat(100))];
    let text = stack(&frames, "no_cfi", 4, Style { width: 60, ..Style::default() });
    assert!(text.lines().all(|line| line.chars().count() <= 60));
    assert!(text.ends_with("    … cut by missing unwind information\n"));
}

/// Totals of a sampled site: blocks of 32 bytes, each of which stands for 16,384.
fn sampled(samples: u64) -> Totals {
    let mut moments = Moments::new(512 << 10);
    (0..samples).for_each(|_| moments.add(32, 1 << 18));
    let mut totals = Totals {
        outstanding_bytes: moments.bytes_value(),
        outstanding_count: moments.count_value(),
        sampled: Some(moments),
        ..Totals::default()
    };
    totals.settle();
    totals
}

#[test]
fn estimates_say_how_sure_they_are() {
    assert_eq!(held(&sampled(0), "block"), "under 1.5 MiB");
    assert_eq!(held(&sampled(1), "block"), "512.0 KiB (13.0 KiB to 2.8 MiB) in 16,384 blocks, by 1 sample");
    assert_eq!(held(&sampled(10), "block"), "5.0 MiB (2.4 MiB to 9.2 MiB) in 163,840 blocks, by 10 samples");
    assert_eq!(held(&sampled(1000), "block"), "500.0 MiB ± 32.0 MiB in 16,384,000 blocks ± 1,047,760");
}

#[test]
fn what_is_known_for_certain_is_not_called_unsure_for_samples_that_are_not_there() {
    let mappings = Totals { outstanding_bytes: 4096, outstanding_count: 1, ..sampled(0) };
    assert_eq!(held(&mappings, "block"), "4.0 KiB in 1 block and nothing sampled");
    assert_eq!(held(&Totals { sampled: None, ..mappings }, "mapping"), "4.0 KiB in 1 mapping");
}

#[test]
fn a_process_is_shown_with_its_container_pod_and_service() {
    let some = |text: &str| Some(text.to_owned());
    let bare =
        ContainerView { id: "3858919f6064".repeat(6), runtime: "docker".to_owned(), ..Default::default() };
    assert_eq!(place(&bare), " in container 3858919f6064");
    let named = ContainerView { name: some("we\x1bb"), ..bare.clone() };
    assert_eq!(place(&named), " in we\\u{1b}b (3858919f6064)");
    let project = (some("shop"), some("front"));
    let composed = ContainerView { compose_project: project.0, compose_service: project.1, ..named.clone() };
    assert_eq!(place(&composed), " in front of shop (3858919f6064)");
    let pod = ContainerView { pod: some("web-0"), namespace: some("prod"), name: some("app"), ..bare };
    assert_eq!(place(&pod), " in pod prod/web-0, app (3858919f6064)");
    let bundle = ContainerView { id: "b".to_owned(), name: some("b"), ..Default::default() };
    assert_eq!(place(&bundle), " in b");
}

#[test]
fn a_death_by_lack_of_memory_is_told_apart() {
    let target = TargetView {
        exited: Some(Exited { signal: Some(9), oom_killed: true, code: None }),
        ..Default::default()
    };
    assert_eq!(state(&target), " (killed because memory ran out)");
}

#[test]
fn a_death_by_tracing_is_said_where_the_process_is_shown() {
    let view = snapshot_of(TargetView {
        pid: 7,
        comm: "shop".to_owned(),
        exited: Some(Exited { signal: Some(5), ..Exited::default() }),
        harm: Some(Harm { reason: "SIGTRAP at the breakpoint of a\x1b[m".to_owned(), ..Harm::default() }),
        ..TargetView::default()
    });
    let text = snapshot(&view, Style::default());
    assert!(text.contains("PID 7 shop (killed by signal 5, probably by tracing): "), "{text}");
    assert!(
        text.contains("\n  probably killed by tracing: SIGTRAP at the breakpoint of a\\u{1b}[m\n"),
        "{text}"
    );
}
