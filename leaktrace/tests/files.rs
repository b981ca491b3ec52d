//! The commands that work on files, as the binary runs them: a made-up snapshot in a file, and what comes out compared
//! with `tests/golden`. `LEAKTRACE_BLESS=1 cargo test -p leaktrace --test files` rewrites the golden files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod golden_file;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use golden_file::compare;
use leaktrace::{
    export::{json, pprof},
    model::snapshot::{Confidence, Finding, Frame, SiteKind, SiteView, Snapshot, TargetView, Totals},
    render::text,
};

fn frame(function: &str, offset: u64, line: u32) -> Frame {
    Frame {
        address: 0x55d0_c0de_0000 + offset,
        module: Some("/usr/bin/shop".to_owned()),
        build_id: Some("0123456789abcdef".to_owned()),
        module_offset: Some(0x4000 + offset),
        function: Some(function.to_owned()),
        offset: Some(offset % 0x100),
        file: Some("/src/shop.cc".to_owned()),
        line: Some(line),
        ..Frame::default()
    }
}

fn site(id: &str, function: &str, bytes: u64, count: u64) -> SiteView {
    let inlined = Frame {
        inlined: true,
        offset: None,
        address: 0x55d0_c0de_0122,
        module_offset: Some(0x4122),
        ..frame("<T as Into<U>>::into", 0, 31)
    };
    SiteView {
        id: id.to_owned(),
        totals: Totals {
            outstanding_bytes: bytes,
            outstanding_count: count,
            allocated_bytes: bytes + 640,
            allocated_count: count + 10,
            freed_bytes: 640,
            freed_count: 10,
            ..Totals::default()
        },
        oldest_age_ns: Some(9_870_000_000),
        lifetimes: vec![3, 7],
        frames: vec![frame(function, 0x1040, 57), inlined, frame("main", 0x122, 9)].into(),
        stack_end: "complete",
        ..SiteView::default()
    }
}

fn target(pid: u32, comm: &str, sites: Vec<SiteView>) -> TargetView {
    let mut totals = Totals::default();
    sites.iter().filter(|site| site.kind == SiteKind::Heap).for_each(|site| totals.add(&site.totals));
    TargetView {
        pid,
        start_time: 1_763_639_900_000_000_000 + i64::from(pid),
        since: 1_763_639_990_000_000_000,
        comm: comm.to_owned(),
        cmdline: format!("/usr/bin/{comm}"),
        totals,
        sites,
        ..TargetView::default()
    }
}

fn old() -> Snapshot {
    let sites = vec![
        site("00000000000000aa", "shop::Cart::add(int)", 2048, 4),
        site("00000000000000bb", "shop::log(char const*)", 300, 3),
        site("00000000000000cc", "shop::cache(int)", 64, 1),
    ];
    Snapshot {
        time: 1_763_640_000_000_000_000,
        since: 1_763_639_990_000_000_000,
        host: "web-1".to_owned(),
        last: true,
        targets: vec![target(1234, "shop", sites)],
        ..Snapshot::default()
    }
}

/// After a restart, with two processes.
fn new() -> Snapshot {
    let mut leak = site("00000000000000aa", "shop::Cart::add(int)", 1_048_576, 4096);
    leak.finding = Some(Finding {
        confidence: Confidence::High,
        evidence: "grew 1.1 MiB/s for 8.0s; 0 of 3,276 blocks freed meanwhile".to_owned(),
        growth_bytes_per_second: Some(1_153_434.5),
    });
    let hostile = SiteView {
        kind: SiteKind::Mapping,
        frames: vec![Frame {
            address: 0x7f12_3456_789a,
            module: Some("/tmp/\u{1b}[2J;<b onload=x>.so 12".to_owned()),
            module_offset: Some(0x189a),
            reason: Some("the file is stripped"),
            ..Frame::default()
        }]
        .into(),
        stack_end: "no_cfi",
        ..site("00000000000000dd", "", 65_536, 1)
    };
    let worker = vec![
        site("00000000000000aa", "shop::Cart::add(int)", 4096, 8),
        site("00000000000000bb", "shop::log(char const*)", 100, 1),
    ];
    Snapshot {
        time: 1_763_643_600_000_000_000,
        since: 1_763_643_540_000_000_000,
        targets: vec![
            target(2222, "shop", vec![leak, hostile, site("00000000000000cc", "shop::cache(int)", 64, 1)]),
            target(2223, "shop-worker", worker),
        ],
        notes: vec!["glibc: pvalloc could not be probed".to_owned()],
        losses: [("blocks_full".to_owned(), 12)].into(),
        ..old()
    }
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old.pb.gz"), pprof::write(&old())).unwrap();
        fs::write(folder.path().join("new.pb.gz"), pprof::write(&new())).unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_leaktrace"))
            .args(words)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Standard output of a command that must succeed and say nothing else.
    fn says(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && errors.is_empty(), "{words:?}: {} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must fail with 1.
    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn a_report_of_a_file_is_the_live_one() {
    let files = Files::new();
    assert_eq!(files.says(&["report", "new.pb.gz"]), text::snapshot(&new(), text::Style::default()));
    assert_eq!(files.says(&["report", "--format", "json", "new.pb.gz"]), json::snapshot(&new()));
    compare("report-file.txt", &files.says(&["report", "--top", "1", "--sort", "count", "new.pb.gz"]));
    let combined = files.says(&["report", "--combined-only", "new.pb.gz"]);
    assert_eq!(combined.lines().filter(|line| line.starts_with("PID")).count(), 2);
    assert!(!combined.contains("main"));
}

#[test]
fn a_difference_is_as_reviewed() {
    let files = Files::new();
    compare("diff.txt", &files.says(&["diff", "old.pb.gz", "new.pb.gz"]));
    compare("diff.json", &files.says(&["diff", "--format", "json", "old.pb.gz", "new.pb.gz"]));
    compare("diff-back.txt", &files.says(&["diff", "new.pb.gz", "old.pb.gz"]));
    compare("diff-same.txt", &files.says(&["diff", "old.pb.gz", "old.pb.gz"]));
    let one: serde_json::Value =
        serde_json::from_str(&files.says(&["diff", "-f", "json", "-T", "1", "old.pb.gz", "new.pb.gz"]))
            .unwrap();
    assert_eq!((one["sites"].as_array().unwrap().len(), &one["sites_left_out"]), (1, &2.into()));
}

#[test]
fn other_formats_are_as_reviewed() {
    let files = Files::new();
    compare("convert.folded", &files.says(&["convert", "--to", "folded", "new.pb.gz"]));
    compare("convert.speedscope.json", &files.says(&["convert", "--to", "speedscope", "new.pb.gz"]));
    assert_eq!(files.says(&["convert", "--to", "json", "new.pb.gz"]), json::snapshot(&new()));
    let counts = files.says(&["convert", "--to", "folded", "--value", "alloc_objects", "old.pb.gz"]);
    assert!(
        counts.lines().all(|line| line.ends_with(" 14") || line.ends_with(" 13") || line.ends_with(" 11"))
    );
    files.says(&["convert", "--to", "pprof", "new.pb.gz", "-o", "again.pb.gz"]);
    assert_eq!(fs::read(files.path("again.pb.gz")).unwrap(), fs::read(files.path("new.pb.gz")).unwrap());
}

#[test]
fn a_flame_graph_is_svg_and_escapes_names() {
    let files = Files::new();
    files.says(&["flamegraph", "new.pb.gz", "-o", "a.svg"]);
    let svg = fs::read_to_string(files.path("a.svg")).unwrap();
    assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("shop::Cart::add(int) (1,048,576 bytes, "), "{svg}");
    assert!(svg.contains("&lt;T as Into&lt;U&gt;&gt;::into"), "a name of marks");
    assert!(svg.contains("&lt;b onload=x&gt;") && !svg.contains("<b onload"));
    assert!(!svg.contains('\u{1b}'));
    files.says(&["flamegraph", "new.pb.gz", "-o", "b.svg"]);
    assert_eq!(svg, fs::read_to_string(files.path("b.svg")).unwrap(), "the same picture each time");
}

#[test]
fn what_cannot_be_done_is_said_with_the_name_of_the_file() {
    let files = Files::new();
    fs::write(files.path("text"), "hello").unwrap();
    let whole = fs::read(files.path("new.pb.gz")).unwrap();
    fs::write(files.path("half.pb.gz"), &whole[..whole.len() / 2]).unwrap();
    let empty = Snapshot::default();
    fs::write(files.path("empty.pb.gz"), pprof::write(&empty)).unwrap();
    for (words, parts) in [
        (vec!["report", "absent.pb.gz"], ["absent.pb.gz", "No such file"]),
        (vec!["report", "text"], ["text", "not a pprof profile"]),
        (vec!["diff", "old.pb.gz", "half.pb.gz"], ["half.pb.gz", "cut off"]),
        (vec!["flamegraph", "empty.pb.gz"], ["nothing to draw", "bytes"]),
        (vec!["convert", "--to", "json", "old.pb.gz", "-o", "no/such"], ["no/such", "No such file"]),
        (vec!["report", "."], ["cannot read .", "directory"]),
    ] {
        let errors = files.fails(&words);
        assert!(parts.iter().all(|part| errors.contains(part)), "{words:?}: {errors}");
    }
    assert!(files.says(&["report", "empty.pb.gz"]).contains("No process is traced."));
    assert_eq!(files.says(&["convert", "--to", "folded", "empty.pb.gz"]), "");
}

#[test]
fn a_device_is_written_to_and_not_replaced() {
    let files = Files::new();
    let said = files.says(&["convert", "--to", "folded", "old.pb.gz", "-o", "/dev/stdout"]);
    assert_eq!(said, files.says(&["convert", "--to", "folded", "old.pb.gz", "-o", "-"]));
    assert!(!Path::new("-").exists());
}
