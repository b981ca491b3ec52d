//! Round trips, and files that lie.
use std::{
    collections::{BTreeMap, HashSet},
    io::{Read as _, Write as _},
};

use proptest::{collection::vec, option, prelude::*};
use prost::Message as _;

use super::{
    message::Profile,
    read,
    read::{Limits, read_within},
    write,
};
use crate::{
    model::{
        events::{EventKind, EventView},
        memory::{Memory, MemoryView, WatchView, WatchedView},
        overhead::{GovernorState, OverheadView},
        snapshot::{
            AllocatorView, BlockView, Confidence, ContainerView, Exited, Finding, Frame, Harm, MappingTotals,
            Mode, SiteKind, SiteView, Snapshot, TargetView, Totals,
        },
        verdict::{Amount, Outcome, Verdict},
    },
    symbolize::reason,
};

fn profile(file: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

fn frame(function: &str, address: u64) -> Frame {
    Frame {
        address,
        module: Some("/usr/bin/shop".to_owned()),
        build_id: Some("0123abcd".to_owned()),
        module_offset: Some(address - 0x5500_0000_0000 + 0x1000),
        function: Some(function.to_owned()),
        offset: Some(address % 64),
        file: Some("/src/shop.c".to_owned()),
        line: Some(7),
        ..Frame::default()
    }
}

fn site(id: &str, frames: Vec<Frame>) -> SiteView {
    SiteView {
        id: id.to_owned(),
        totals: Totals {
            outstanding_bytes: 1000,
            outstanding_count: 3,
            allocated_bytes: 5000,
            allocated_count: 9,
            freed_bytes: 4000,
            freed_count: 6,
            ..Totals::default()
        },
        frames: frames.into(),
        stack_end: "complete",
        ..SiteView::default()
    }
}

fn of(sites: Vec<SiteView>) -> Snapshot {
    let target = TargetView { pid: 7, comm: "shop".to_owned(), sites, ..TargetView::default() };
    Snapshot { time: 2_000, since: 500, targets: vec![target], ..Snapshot::default() }
}

fn main_and_library() -> Vec<Frame> {
    let library = Frame {
        address: 0x7f00_0000_2040,
        module: Some("/lib/libc.so.6".to_owned()),
        module_offset: Some(0x2_8040),
        reason: Some(reason::ALL[0]),
        ..Frame::default()
    };
    let inlined = Frame { inlined: true, offset: None, ..frame("push", 0x5500_0000_0123) };
    vec![library, inlined, frame("grow", 0x5500_0000_0123), frame("main", 0x5500_0000_2345)]
}

#[test]
fn the_profile_follows_pprofs_conventions() {
    let profile = profile(&write(&of(vec![site("00000000000000aa", main_and_library())])));
    let text = |index: i64| profile.strings[index as usize].as_str();
    let types: Vec<_> = profile.sample_types.iter().map(|kind| (text(kind.kind), text(kind.unit))).collect();
    assert_eq!(
        types,
        [
            ("inuse_space", "bytes"),
            ("inuse_objects", "count"),
            ("alloc_space", "bytes"),
            ("alloc_objects", "count")
        ]
    );
    assert_eq!(text(0), "");
    assert_eq!(text(profile.default_sample_type), "inuse_space");
    assert_eq!((profile.time_ns, profile.duration_ns, profile.period), (500, 1500, 1));
    assert_eq!(profile.samples[0].values, [1000, 3, 5000, 9]);
    let labels: BTreeMap<_, _> =
        profile.samples[0].labels.iter().map(|label| (text(label.key), text(label.text))).collect();
    let expected = [("pid", ""), ("comm", "shop"), ("site", "00000000000000aa"), ("kind", "heap")];
    assert_eq!(labels, BTreeMap::from(expected));
    assert_eq!(profile.samples[0].labels[0].number, 7);
    // The program comes first although the library is the inner frame, and both cover what points into them.
    assert_eq!(text(profile.mappings[0].file), "/usr/bin/shop");
    let shop = &profile.mappings[0];
    assert_eq!((shop.start, shop.end, shop.file_offset), (0x5500_0000_0000, 0x5500_0000_3000, 0x1000));
    assert!(shop.has_functions && shop.has_lines && !profile.mappings[1].has_functions);
    assert_eq!(profile.locations.len(), 3);
    let grow = &profile.locations[1];
    let names: Vec<_> = grow
        .lines
        .iter()
        .map(|line| text(profile.functions.iter().find(|f| f.id == line.function_id).unwrap().name))
        .collect();
    assert_eq!((names, grow.address), (vec!["push", "grow"], 0x5500_0000_0122));
    assert!(profile.comments.iter().all(|comment| !text(*comment).contains('{')));
}

#[test]
fn ids_are_unique_and_everything_that_is_referred_to_is_there() {
    let mut snapshot =
        of(vec![site("a", main_and_library()), site("b", main_and_library()), site("c", vec![])]);
    let mut second = snapshot.targets[0].clone();
    second.pid = 8;
    snapshot.targets.push(second);
    let profile = profile(&write(&snapshot));
    let ids: HashSet<u64> = profile.locations.iter().map(|location| location.id).collect();
    assert_eq!(
        (ids.len(), profile.locations.len()),
        (6, 6),
        "shared by the sites of a process, not between two"
    );
    assert!(!ids.contains(&0));
    assert!(profile.samples.iter().flat_map(|sample| &sample.location_ids).all(|id| ids.contains(id)));
    let mappings: HashSet<u64> = profile.mappings.iter().map(|mapping| mapping.id).collect();
    assert!(profile.locations.iter().all(|location| mappings.contains(&location.mapping_id)));
    assert_eq!(read(&write(&snapshot)).unwrap(), snapshot);
}

/// The seeds of the fuzzer: `LEAKTRACE_WRITE_SEEDS` writes them.
#[test]
fn seeds_of_the_fuzzer() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/snapshot");
    let snapshot = of(vec![site("a", main_and_library())]);
    let packed = write(&snapshot);
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
    for (name, seed) in [("packed", packed), ("plain", plain)] {
        if std::env::var_os("LEAKTRACE_WRITE_SEEDS").is_some() {
            std::fs::write(folder.join(name), &seed).unwrap();
        }
        assert_eq!(read(&std::fs::read(folder.join(name)).unwrap()).unwrap(), snapshot, "{name}");
    }
}

#[test]
fn an_unpacked_file_is_read_too() {
    let snapshot = of(vec![site("a", main_and_library())]);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(write(&snapshot).as_slice()).read_to_end(&mut bytes).unwrap();
    assert_eq!(read(&bytes).unwrap(), snapshot);
}

#[test]
fn what_is_no_snapshot_is_refused_with_a_reason() {
    let says = |bytes: &[u8], part: &str| {
        let error = format!("{:#}", read(bytes).unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    let file = write(&of(vec![site("a", main_and_library())]));
    says(b"hello", "not a pprof profile");
    says(b"", "is empty");
    says(&file[..file.len() / 2], "cut off");
    let foreign = Profile { period: 1, ..Profile::default() };
    says(&foreign.encode_to_vec(), "not a snapshot of leaktrace");
    let good = profile(&file);
    let changed = |change: fn(&mut Profile)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad.encode_to_vec()
    };
    says(&changed(|p| p.samples.clear()), "rewritten");
    says(&changed(|p| p.sample_types.truncate(1)), "sample types");
    says(&changed(|p| p.samples[0].location_ids[0] = 99), "no location 99");
    says(&changed(|p| p.locations[0].mapping_id = 99), "no mapping 99");
    says(&changed(|p| p.locations[1].lines[0].function_id = 99), "no function 99");
    says(&changed(|p| p.functions[0].name = -1), "no text -1");
    says(&changed(|p| p.details = p.details.replace("\"target\":0", "\"target\":5")), "not listed");
    says(&changed(|p| p.details = p.details.replace("leaktrace.file/1", "leaktrace.file/9")), "file/9");
    says(&changed(|p| p.details.push('}')), "damaged");
}

#[test]
fn a_file_that_would_take_too_much_memory_is_refused() {
    let limits = Limits { bytes: 1 << 20, fields: 1 << 10, objects: 20, frame_bytes: 1 << 16 };
    let says = |bytes: &[u8], part: &str| {
        let error = format!("{:#}", read_within(bytes, limits).unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![0; (1 << 20) + 1]).unwrap();
    says(&encoder.finish().unwrap(), "larger than");
    // Empty samples: two bytes each in the file, a hundred in memory.
    says(&[0x12, 0x00].repeat(1025), "fields");
    // Labels in a sample, likewise.
    let labels = [0x1a, 0x00].repeat(1025);
    let mut sample = vec![0x12];
    prost::encoding::encode_varint(labels.len() as u64, &mut sample);
    says(&[sample, labels].concat(), "fields");
    let good = profile(&write(&of(vec![site("a", main_and_library())])));
    assert!(read_within(&good.encode_to_vec(), limits).is_ok());
    let mut objects = good.clone();
    objects.details.push_str(&"{".repeat(21));
    says(&objects.encode_to_vec(), "objects");
    let mut repeated = good;
    repeated.samples[0].location_ids = vec![1; 1000];
    says(&repeated.encode_to_vec(), "call stacks take more");
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/;:.]{1,8}", "\\PC{1,6}", Just("\u{1b}[2J\u{202e}\n".to_owned())]
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let place = (any::<u64>(), option::of((name(), option::of(name()), option::of(any::<u64>()))));
    let named = (option::of(name()), option::of(any::<u64>()), option::of(name()), option::of(any::<u32>()));
    let flags = (any::<bool>(), any::<bool>(), option::of(0..reason::ALL.len()));
    let frame = (place, named, flags).prop_map(|(place, named, flags)| {
        let (address, module) = place;
        let (function, offset, file, line) = named;
        let (inlined, guessed, why) = flags;
        let (module, build_id, module_offset) =
            module.map_or((None, None, None), |(module, build_id, offset)| (Some(module), build_id, offset));
        let reason = why.and_then(|index| reason::ALL.get(index).copied());
        Frame {
            address,
            module,
            build_id,
            module_offset,
            function,
            offset,
            file,
            line,
            inlined,
            guessed,
            reason,
        }
    });
    // Some frames share their place with the next one, as inlined ones do.
    vec((frame, any::<bool>()), 0..8).prop_map(|list| {
        let mut frames: Vec<Frame> = Vec::new();
        for (mut frame, shares) in list {
            if let Some(before) = frames.last().filter(|before| before.inlined && shares) {
                frame.address = before.address;
                frame.module.clone_from(&before.module);
                frame.build_id.clone_from(&before.build_id);
                frame.module_offset = before.module_offset;
            }
            frames.push(frame);
        }
        frames
    })
}

fn totals() -> impl Strategy<Value = Totals> {
    any::<[u64; 10]>().prop_map(|n| Totals {
        outstanding_bytes: n[0],
        outstanding_count: n[1],
        allocated_bytes: n[2],
        allocated_count: n[3],
        freed_bytes: n[4],
        freed_count: n[5],
        error_bytes: n[6],
        error_count: n[7],
        unverified_bytes: n[8],
        unverified_count: n[9],
        sampled: None,
    })
}

fn rate() -> impl Strategy<Value = Option<f64>> {
    option::of(proptest::num::f64::NORMAL)
}

fn sites() -> impl Strategy<Value = Vec<SiteView>> {
    let confidence = prop_oneof![Just(Confidence::Low), Just(Confidence::Medium), Just(Confidence::High)];
    let finding = (confidence, name(), rate()).prop_map(|(confidence, evidence, growth_bytes_per_second)| {
        Finding { confidence, evidence, growth_bytes_per_second }
    });
    let end = prop_oneof![Just("complete"), Just("not_recorded"), Just("no_cfi"), Just("")];
    let site = (
        ("[0-9a-f]{16}", any::<bool>(), totals(), rate(), option::of(any::<u64>())),
        (vec(1..u32::MAX, 0..5), option::of(finding), frames(), end, vec(any::<[u64; 3]>(), 0..3)),
        (any::<bool>(), option::of(name())),
    );
    let site = site.prop_map(
        |(
            (id, is_heap, totals, growth, age),
            (lifetimes, finding, frames, end, blocks),
            (is_runtimes, suppressed),
        )| {
            let block = |n: [u64; 3]| BlockView { address: n[0], size_bytes: n[1], age_ns: n[2] };
            SiteView {
                id,
                kind: if is_heap { SiteKind::Heap } else { SiteKind::Mapping },
                totals,
                growth_bytes_per_second: growth,
                oldest_age_ns: age,
                lifetimes,
                finding,
                is_runtimes,
                suppressed,
                frames: frames.into(),
                stack_end: end,
                blocks: blocks.into_iter().map(block).collect(),
            }
        },
    );
    vec(site, 0..5)
}

fn memory() -> impl Strategy<Value = MemoryView> {
    (any::<[u64; 5]>(), rate(), option::of((name(), rate()))).prop_map(|(n, growth, finding)| MemoryView {
        now: Memory {
            rss_bytes: n[0],
            anonymous_bytes: n[1],
            file_bytes: n[2],
            shared_bytes: n[3],
            swapped_bytes: n[4],
        },
        growth_bytes_per_hour: growth,
        finding: finding.map(|(evidence, growth_bytes_per_second)| Finding {
            confidence: Confidence::Medium,
            evidence,
            growth_bytes_per_second,
        }),
    })
}

fn overhead() -> impl Strategy<Value = OverheadView> {
    let state = prop::sample::select(GovernorState::ALL.to_vec());
    (rate(), rate(), rate(), state, any::<[u64; 2]>(), option::of(any::<u64>())).prop_map(
        |(estimated, budget_share, target_cpu_share, state, n, retry_in_ns)| OverheadView {
            estimated_share: estimated.unwrap_or(0.0),
            budget_share,
            target_cpu_share,
            state,
            sample_interval_bytes: n[0],
            paused_ns: n[1],
            retry_in_ns,
        },
    )
}

fn event() -> impl Strategy<Value = EventView> {
    let kind = prop::sample::select(EventKind::ALL.to_vec());
    (any::<i64>(), any::<u32>(), name(), kind, name()).prop_map(|(time, pid, comm, kind, reason)| EventView {
        time,
        pid,
        comm,
        kind,
        reason,
    })
}

fn watched() -> impl Strategy<Value = WatchView> {
    let process = (any::<[u64; 2]>(), any::<u32>(), name(), rate(), option::of(name())).prop_map(
        |(n, pid, comm, growth_bytes_per_hour, reason)| WatchedView {
            pid,
            comm,
            rss_bytes: n[0],
            anonymous_bytes: n[1],
            growth_bytes_per_hour,
            reason,
        },
    );
    (any::<[u64; 2]>(), vec(process, 0..3)).prop_map(|(n, fastest)| WatchView {
        processes: n[0],
        unwatched: n[1],
        fastest,
    })
}

fn target() -> impl Strategy<Value = TargetView> {
    let allocator = (name(), name(), any::<u32>(), vec((name(), name()), 0..2))
        .prop_map(|(name, file, probed, failed)| AllocatorView { name, file, probed, failed });
    let exited = (option::of(any::<i32>()), option::of(any::<i32>()), any::<bool>())
        .prop_map(|(code, signal, oom_killed)| Exited { code, signal, oom_killed });
    let words = || option::of(name());
    let container = (name(), name(), [words(), words(), words(), words()], [words(), words(), words()])
        .prop_map(
            |(id, runtime, [name, pod, pod_uid, namespace], [image, compose_project, compose_service])| {
                ContainerView {
                    id,
                    runtime,
                    name,
                    pod,
                    pod_uid,
                    namespace,
                    image,
                    compose_project,
                    compose_service,
                }
            },
        );
    let harm = (name(), words(), words(), option::of(any::<u64>())).prop_map(
        |(reason, function, module, module_offset)| Harm { reason, function, module, module_offset },
    );
    let place = (option::of(container), option::of(any::<u64>()), option::of(harm));
    let counts = || proptest::collection::btree_map(name(), any::<u64>(), 0..3);
    (
        (any::<u32>(), any::<i64>(), any::<i64>(), name(), name(), option::of(exited), any::<bool>()),
        (option::of(any::<u32>()), vec(allocator, 0..2), totals(), rate(), any::<[Option<u64>; 3]>()),
        (sites(), any::<u64>(), totals(), counts(), counts(), any::<[u64; 5]>()),
        (place, option::of(memory()), option::of(overhead()), vec(name(), 0..2)),
    )
        .prop_map(|(who, sums, rest, ((container, unseen_ns, harm), memory, overhead, unseen))| {
            let (pid, start_time, since, comm, cmdline, exited, execed) = who;
            let (parent, allocators, totals, growth_bytes_per_second, optional) = sums;
            let (sites, sites_cut, cut_totals, stack_ends, losses, mappings) = rest;
            TargetView {
                pid,
                start_time,
                since,
                comm,
                cmdline,
                exited,
                harm,
                execed,
                parent,
                container,
                unseen_ns,
                allocators,
                totals,
                growth_bytes_per_second,
                heap_before_attach_bytes: optional[0],
                unmatched_frees: optional[1],
                rss_bytes: optional[2],
                sites,
                sites_cut,
                cut_totals,
                stack_ends,
                losses,
                unseen,
                mappings: MappingTotals {
                    program_bytes: mappings[0],
                    allocator_bytes: mappings[1],
                    reserved_bytes: mappings[2],
                    stack_bytes: mappings[3],
                    break_bytes: mappings[4],
                },
                memory,
                overhead,
            }
        })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let outcome = prop::sample::select(Outcome::ALL.to_vec());
    let amount = || any::<[u64; 3]>().prop_map(|n| Amount { bytes: n[0], count: n[1], sites: n[2] });
    let amounts = (amount(), amount(), amount());
    (outcome, any::<u8>(), vec(name(), 0..3), option::of(any::<u64>()), amounts).prop_map(
        |(outcome, exit_code, reasons, limit_bytes, (leaked, suppressed, in_baseline))| Verdict {
            outcome,
            exit_code,
            reasons,
            limit_bytes,
            leaked,
            suppressed,
            in_baseline,
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let mode = prop_oneof![
        Just(Mode::Exact),
        Just(Mode::Growth),
        any::<u64>().prop_map(|interval_bytes| Mode::Sampled { interval_bytes })
    ];
    let losses = proptest::collection::btree_map(name(), any::<u64>(), 0..3);
    let watching = (vec(event(), 0..3), option::of(watched()), option::of(verdict()));
    let targets = vec(target(), 0..3);
    (any::<i64>(), any::<i64>(), name(), mode, any::<bool>(), targets, losses, vec(name(), 0..2), watching)
        .prop_map(|(time, since, host, mode, last, targets, losses, notes, (events, watched, verdict))| {
            Snapshot { time, since, host, mode, last, targets, losses, notes, events, watched, verdict }
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(snapshot in snapshot()) {
        prop_assert_eq!(read(&write(&snapshot)).unwrap(), snapshot);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_damage_to_a_file_makes_the_reader_panic(
        snapshot in snapshot(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = profile(&write(&snapshot)).encode_to_vec();
        for (index, byte) in damage {
            let place = index.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = read(&bytes);
    }
}
