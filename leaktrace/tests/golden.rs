//! Help texts, reports and JSON compared with files in `tests/golden`. `LEAKTRACE_BLESS=1 cargo test -p leaktrace
//! --test golden` rewrites the files; the difference then shows in version control.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod golden_file;

use std::{collections::BTreeMap, sync::Arc};

use golden_file::compare;
use leaktrace::{
    cli::args,
    export::{json, metrics},
    model::{
        service::{Alert, AlertKind, MemoryLimit, OwnUse, Severity, View, Work, key},
        snapshot::{
            AllocatorView, BlockView, CallView, Confidence, ContainerView, Exited, Finding, Frame,
            MappingTotals, SiteKind, SiteView, Snapshot, TargetView, Totals,
        },
    },
    render::{text, trace},
};

fn help(subcommand: Option<&str>) -> String {
    let mut command = args::command().term_width(100).max_term_width(100);
    command.build();
    let rendered = match subcommand {
        Some(name) => command.find_subcommand_mut(name).unwrap().clone().term_width(100).render_long_help(),
        None => command.render_long_help(),
    };
    rendered.to_string()
}

const COMMANDS: [&str; 10] =
    ["run", "attach", "ps", "snapshot", "report", "diff", "convert", "flamegraph", "agent", "doctor"];

#[test]
fn help_texts_are_as_reviewed() {
    compare("help.txt", &help(None));
    for name in COMMANDS {
        compare(&format!("help-{name}.txt"), &help(Some(name)));
    }
}

#[test]
fn no_line_of_help_is_wider_than_100() {
    for name in COMMANDS.into_iter().map(Some).chain([None]) {
        for line in help(name).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

fn frame(function: &str, offset: u64, source: Option<(&str, u32)>) -> Frame {
    Frame {
        address: 0x55d0_c0de_0000 + offset,
        module: Some("/usr/bin/shop".to_owned()),
        build_id: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        module_offset: Some(0x4000 + offset),
        function: Some(function.to_owned()),
        offset: Some(offset),
        file: source.map(|(file, _)| file.to_owned()),
        line: source.map(|(_, line)| line),
        ..Frame::default()
    }
}

fn leak() -> SiteView {
    SiteView {
        id: "4260b0e38af759f0".to_owned(),
        totals: Totals {
            outstanding_bytes: 12_897_485,
            outstanding_count: 4096,
            allocated_bytes: 12_935_000,
            allocated_count: 4108,
            freed_bytes: 37_515,
            freed_count: 12,
            ..Totals::default()
        },
        growth_bytes_per_second: Some(1_153_434.5),
        oldest_age_ns: Some(9_870_000_000),
        lifetimes: vec![0, 0, 0, 12, 0, 0],
        finding: Some(Finding {
            confidence: Confidence::High,
            evidence: "grew 1.1 MiB/s for 8.0s; 0 of 3,276 blocks freed meanwhile; the oldest is 9.8s old"
                .to_owned(),
            growth_bytes_per_second: Some(1_153_434.5),
        }),
        frames: vec![
            Frame {
                inlined: true,
                offset: None,
                ..frame("shop::Cart<int>::grow()", 0, Some(("/src/cart.h", 31)))
            },
            frame("shop::Cart<int>::add(int)", 0x1a, Some(("/src/cart.h", 57))),
            frame("main", 0x122, Some(("/src/main.cc", 9))),
            Frame {
                address: 0x7f12_3456_789a,
                module: Some("/usr/lib/x86_64-linux-gnu/libplug\u{1b}[2Jin.so".to_owned()),
                module_offset: Some(0x189a),
                reason: Some("the file is stripped"),
                ..Frame::default()
            },
        ]
        .into(),
        stack_end: "no_cfi",
        blocks: vec![
            BlockView { address: 0x55d0_c1f2_42a0, size_bytes: 3148, age_ns: 9_870_000_000 },
            BlockView { address: 0x55d0_c1f2_4f00, size_bytes: 64, age_ns: 120_000_000 },
        ],
        ..SiteView::default()
    }
}

fn mapping() -> SiteView {
    SiteView {
        id: "00000000deadbeef".to_owned(),
        kind: SiteKind::Mapping,
        totals: Totals {
            outstanding_bytes: 1 << 20,
            outstanding_count: 1,
            allocated_bytes: 1 << 20,
            allocated_count: 1,
            ..Totals::default()
        },
        growth_bytes_per_second: Some(0.0),
        frames: vec![frame("shop::open_log()", 0x9, None)].into(),
        stack_end: "complete",
        ..SiteView::default()
    }
}

fn shop() -> TargetView {
    TargetView {
        pid: 1234,
        start_time: 1_763_639_900_500_000_000,
        since: 1_763_639_990_000_000_000,
        comm: "shop".to_owned(),
        cmdline: "/usr/bin/shop --port 80".to_owned(),
        allocators: vec![AllocatorView {
            name: "glibc".to_owned(),
            file: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
            probed: 9,
            failed: vec![("pvalloc".to_owned(), "no such symbol".to_owned())],
        }],
        totals: Totals {
            outstanding_bytes: 12_898_000,
            outstanding_count: 4100,
            allocated_bytes: 90_000_000,
            allocated_count: 1_234_567,
            freed_bytes: 77_102_000,
            freed_count: 1_230_467,
            ..Totals::default()
        },
        growth_bytes_per_second: Some(1_153_434.5),
        heap_before_attach_bytes: Some(5_000_000),
        unmatched_frees: Some(17),
        rss_bytes: Some(40_000_000),
        sites: vec![leak(), mapping()],
        sites_cut: 3,
        cut_totals: Totals { outstanding_bytes: 515, outstanding_count: 4, ..Totals::default() },
        stack_ends: BTreeMap::from([("complete".to_owned(), 4), ("no_cfi".to_owned(), 1)]),
        losses: BTreeMap::new(),
        mappings: MappingTotals {
            program_bytes: 1 << 20,
            allocator_bytes: 64 << 20,
            reserved_bytes: 128 << 20,
            stack_bytes: 8 << 20,
            break_bytes: 132 << 10,
        },
        ..TargetView::default()
    }
}

fn example() -> Snapshot {
    let child = TargetView {
        pid: 1240,
        start_time: 1_763_639_995_000_000_000,
        since: 1_763_639_995_000_000_000,
        comm: "shop-worker".to_owned(),
        cmdline: "shop: worker".to_owned(),
        exited: Some(Exited { code: Some(0), ..Exited::default() }),
        parent: Some(1234),
        container: Some(ContainerView {
            id: "3858919f60641ae85a47c4c211529e6392052b4b13eff9cdf7a4d705fba9a4ed".to_owned(),
            runtime: "docker".to_owned(),
            name: Some("shop-web-1".to_owned()),
            image: Some("shop:7".to_owned()),
            compose_project: Some("shop".to_owned()),
            compose_service: Some("web".to_owned()),
            ..ContainerView::default()
        }),
        unseen_ns: Some(2_345_678),
        heap_before_attach_bytes: Some(0),
        unmatched_frees: Some(0),
        ..TargetView::default()
    };
    Snapshot {
        time: 1_763_640_000_123_456_789,
        since: 1_763_639_990_000_000_000,
        host: "web-1".to_owned(),
        last: true,
        targets: vec![shop(), child],
        losses: BTreeMap::from([("blocks_full".to_owned(), 1200), ("stop_no_cfi".to_owned(), 31)]),
        notes: vec!["glibc: pvalloc could not be probed: no such symbol".to_owned()],
        ..Snapshot::default()
    }
}

#[test]
fn text_reports_are_as_reviewed() {
    let style = text::Style::default();
    compare("report.txt", &text::snapshot(&example(), style));
    compare("report-combined.txt", &text::snapshot(&example(), text::Style { combined_only: true, ..style }));
    compare("report-color.txt", &text::snapshot(&example(), text::Style { color: true, width: 60, ..style }));
    compare("report-empty.txt", &text::snapshot(&Snapshot::default(), style));
}

fn call() -> CallView {
    CallView {
        time: 1_763_640_000_123_456_789,
        pid: 1234,
        tid: 1235,
        comm: "shop".to_owned(),
        function: "malloc".to_owned(),
        address: 0x55d0_c1f2_42a0,
        size_bytes: Some(64),
        frames: vec![frame("main", 0x122, Some(("/src/main.cc", 9)))],
        ..CallView::default()
    }
}

#[test]
fn calls_are_as_reviewed() {
    compare("call.txt", &trace::call(&call(), true, text::Style::default()));
    compare("call.json", &json::call(&call()));
}

#[test]
fn the_json_schema_is_as_reviewed() {
    compare("snapshot.json", &json::snapshot(&example()));
}

/// The service that traces the example; the name of its target is hostile.
fn service() -> View {
    let mut snapshot = example();
    for target in &mut snapshot.targets {
        target.comm = "shop\"\n\\".to_owned();
        target.losses = BTreeMap::from([("blocks_full".to_owned(), 1200)]);
    }
    let target = key(&shop());
    let alert = Alert {
        kind: AlertKind::MemoryLimit,
        severity: Severity::Warning,
        target: Some(target),
        comm: "shop".to_owned(),
        value: 0.75,
        threshold: 0.7,
        since: snapshot.time,
        message: String::new(),
    };
    View {
        started: snapshot.since,
        snapshot: Arc::new(snapshot),
        limits: BTreeMap::from([(target, MemoryLimit { limit_bytes: 64 << 20, used_bytes: 48 << 20 })]),
        growth: BTreeMap::from([(target, 4_152_364_200.5)]),
        alerts: vec![alert],
        own: OwnUse {
            rss_bytes: 41 << 20,
            map_bytes: 7 << 20,
            cpu_seconds: 12.25,
            cpu_share: 0.015,
            open_files: 40,
        },
        work: (1..).take(Work::ALL.len()).collect(),
        ..View::default()
    }
}

#[test]
fn the_metrics_are_as_reviewed_in_both_formats() {
    let page = |format| metrics::page(Arc::new(service()), 1, format).unwrap();
    compare("metrics.txt", &page(metrics::Format::Text));
    compare("metrics.openmetrics", &page(metrics::Format::OpenMetrics));
}

#[test]
fn json_has_every_promised_field_on_one_line() {
    let line = json::snapshot(&example());
    assert_eq!(line.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let has = |value: &serde_json::Value, fields: &str| {
        for field in fields.split_ascii_whitespace() {
            assert!(value.get(field).is_some(), "{field} is missing in {value}");
        }
    };
    let target = &value["targets"][0];
    let site = &target["sites"][0];
    has(&value, "schema time host mode since targets losses");
    has(
        target,
        "pid start_time comm cmdline exited outstanding_bytes outstanding_count allocated_bytes allocated_count
         freed_bytes freed_count heap_before_attach_bytes unmatched_frees sites",
    );
    has(
        site,
        "id kind outstanding_bytes outstanding_count allocated_bytes allocated_count freed_bytes freed_count
         oldest_age_ns frames",
    );
    has(&site["frames"][0], "address module build_id function offset file line inlined reason");
    assert_eq!(value["schema"], "leaktrace.snapshot/1");
    assert_eq!(value["time"], "2025-11-20T12:00:00.123456789Z");
    assert_eq!(site["frames"][0]["address"], "0x55d0c0de0000");
    assert_eq!(value["targets"][1]["exited"]["code"], 0);
}
