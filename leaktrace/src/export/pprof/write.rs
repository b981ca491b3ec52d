//! From a snapshot to the bytes of its file.
use std::{collections::HashMap, io::Write as _};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use super::{
    SAMPLE_TYPES,
    details::{Details, LocationDetails, SiteDetails, confidence_name},
    message::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType},
};
use crate::{
    export::json::kind,
    model::{
        site_id::base_name,
        snapshot::{Frame, Mode, SiteView, Snapshot, TargetView, Totals},
        units,
    },
    render::escape::escape,
};

/// Bytes of a page: where mappings start and end.
const PAGE: u64 = 4096;

/// The file of a snapshot: deterministic, all of its sites.
pub fn write(snapshot: &Snapshot) -> Vec<u8> {
    let mut builder = Builder::new(snapshot);
    for (index, target) in snapshot.targets.iter().enumerate() {
        for site in &target.sites {
            builder.site(index, target, site);
        }
    }
    compress(&builder.finish(snapshot).encode_to_vec())
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::default());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// Frames of one file belong to one mapping where address and place in the file differ by the same number.
#[derive(PartialEq, Eq, Hash)]
struct MappingKey<'a> {
    target: usize,
    file: &'a str,
    build_id: Option<&'a str>,
    bias: Option<u64>,
}

/// Id and frames of a location.
type Known<'a> = (u64, &'a [Frame]);

struct Builder<'a> {
    profile: Profile,
    details: Details,
    strings: HashMap<String, i64>,
    mappings: HashMap<MappingKey<'a>, usize>,
    /// By process and address: a process may have had two files at one address.
    locations: HashMap<(usize, u64), Vec<Known<'a>>>,
    functions: HashMap<(i64, i64), u64>,
}

impl<'a> Builder<'a> {
    fn new(snapshot: &Snapshot) -> Builder<'a> {
        let mut builder = Builder {
            profile: Profile::default(),
            details: Details::of(snapshot),
            strings: HashMap::new(),
            mappings: HashMap::new(),
            locations: HashMap::new(),
            functions: HashMap::new(),
        };
        builder.text("");
        for (kind, unit) in SAMPLE_TYPES {
            let value_type = builder.value_type(kind, unit);
            builder.profile.sample_types.push(value_type);
        }
        builder
    }

    /// The index of a text in the string table.
    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = i64::try_from(self.profile.strings.len()).unwrap_or(0);
        self.profile.strings.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    fn site(&mut self, target_index: usize, target: &TargetView, site: &'a SiteView) {
        let location_ids = groups(&site.frames).map(|frames| self.location(target_index, frames)).collect();
        let kind = kind(site.kind);
        let finding = site.finding.as_ref().map(|finding| ("finding", confidence_name(finding.confidence)));
        // A number, because pprof takes -tagfocus=pid=123 for one.
        let pid = Label { key: self.text("pid"), number: i64::from(target.pid), ..Label::default() };
        let texts = [("comm", target.comm.as_str()), ("site", &site.id), ("kind", kind)];
        let container = target.container.as_ref().map(|container| ("container", container.label()));
        let texts = texts.into_iter().chain(container).chain(finding).map(|(key, text)| Label {
            key: self.text(key),
            text: self.text(text),
            number: 0,
        });
        let labels = [pid].into_iter().chain(texts).collect();
        self.profile.samples.push(Sample { location_ids, values: values(&site.totals), labels });
        self.details.sites.push(SiteDetails::of(target_index, site));
    }

    /// The id of a location: frames at one address, of which all but the last are inlined. Never called without one.
    fn location(&mut self, target: usize, frames: &'a [Frame]) -> u64 {
        let Some(outermost) = frames.last() else { return 0 };
        let key = (target, outermost.address);
        let known = self.locations.get(&key).into_iter().flatten().find(|(_, known)| *known == frames);
        if let Some((id, _)) = known {
            return *id;
        }
        let id = self.profile.locations.len() as u64 + 1;
        let mapping_id = self.mapping(target, outermost, frames);
        let is_named = frames.len() > 1
            || outermost.function.is_some()
            || outermost.file.is_some()
            || outermost.line.is_some();
        let lines = if is_named { frames.iter().map(|frame| self.line(frame)).collect() } else { Vec::new() };
        let address = outermost.address.wrapping_sub(1);
        self.profile.locations.push(Location { id, mapping_id, address, lines });
        let details = LocationDetails {
            offset: outermost.offset,
            reason: outermost.reason.map(str::to_owned),
            guessed: outermost.guessed,
            inlined: outermost.inlined,
            line_zero: outermost.line == Some(0),
        };
        if details != LocationDetails::default() {
            self.details.locations.insert(id, details);
        }
        self.locations.entry(key).or_default().push((id, frames));
        id
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let name = self.text(frame.function.as_deref().unwrap_or_default());
        let file = self.text(frame.file.as_deref().unwrap_or_default());
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, file)).or_insert(next);
        if id == next {
            self.profile.functions.push(Function { id, name, system_name: name, file });
        }
        Line { function_id: id, line: i64::from(frame.line.unwrap_or(0)) }
    }

    /// The id of the mapping that a location is in, widened to hold it; 0 where no file is known.
    fn mapping(&mut self, target: usize, outermost: &'a Frame, frames: &[Frame]) -> u64 {
        let Some(file) = outermost.module.as_deref() else { return 0 };
        let address = outermost.address.wrapping_sub(1);
        let bias = outermost.module_offset.map(|offset| outermost.address.wrapping_sub(offset));
        let key = MappingKey { target, file, build_id: outermost.build_id.as_deref(), bias };
        let index = match self.mappings.get(&key) {
            Some(index) => *index,
            None => {
                let index = self.profile.mappings.len();
                let id = index as u64 + 1;
                if bias.is_none() {
                    self.details.unplaced_mappings.push(id);
                }
                let mapping = Mapping {
                    id,
                    start: page_of(address, bias),
                    end: address.saturating_add(1),
                    file: self.text(file),
                    build_id: self.text(outermost.build_id.as_deref().unwrap_or_default()),
                    has_functions: true,
                    has_files: true,
                    has_lines: true,
                    has_inlined: true,
                    ..Mapping::default()
                };
                self.profile.mappings.push(mapping);
                self.mappings.insert(key, index);
                index
            }
        };
        let Some(mapping) = self.profile.mappings.get_mut(index) else { return 0 };
        mapping.start = mapping.start.min(page_of(address, bias));
        mapping.end = mapping.end.max(address.saturating_add(1));
        mapping.file_offset = bias.map_or(0, |bias| mapping.start.wrapping_sub(bias));
        // What pprof may look up itself, where it finds the file.
        mapping.has_functions &= frames.iter().all(|frame| frame.function.is_some());
        mapping.has_files &= frames.iter().all(|frame| frame.file.is_some());
        mapping.has_lines &= frames.iter().all(|frame| frame.line.is_some());
        mapping.has_inlined &= frames.iter().all(|frame| frame.line.is_some());
        mapping.id
    }

    fn finish(mut self, snapshot: &Snapshot) -> Profile {
        for mapping in &mut self.profile.mappings {
            mapping.end = mapping.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        }
        let strings = &self.profile.strings;
        let name =
            |mapping: &Mapping| usize::try_from(mapping.file).ok().and_then(|index| strings.get(index));
        // Stable: the program before libraries, otherwise as they came.
        self.profile.mappings.sort_by_key(|mapping| !name(mapping).is_some_and(|file| is_program(file)));
        // The details hold only maps with keys of text or numbers, which JSON takes.
        self.profile.details = serde_json::to_string(&self.details).unwrap_or_default();
        self.profile.comments = sentences(snapshot).iter().map(|comment| self.text(comment)).collect();
        self.profile.default_sample_type = self.text(SAMPLE_TYPES[0].0);
        self.profile.period_type = Some(self.value_type("space", "bytes"));
        self.profile.period = match snapshot.mode {
            Mode::Exact => 1,
            Mode::Sampled { interval_bytes } => count(interval_bytes),
            Mode::Growth => 0,
        };
        self.profile.time_ns = snapshot.since;
        self.profile.duration_ns = snapshot.time.saturating_sub(snapshot.since);
        self.profile
    }
}

/// The start of the page of an address, or as far down as the file reaches.
fn page_of(address: u64, bias: Option<u64>) -> u64 {
    let page = address - address % PAGE;
    match bias {
        Some(bias) if bias <= address => page.max(bias),
        _ => page,
    }
}

/// Whether this is likely a program and no library or anything else that is mapped.
fn is_program(file: &str) -> bool {
    let name = base_name(file);
    !(name.ends_with(".so") || name.contains(".so.") || name.starts_with('[') || name.is_empty())
}

/// The values of a sample; pprof's are signed.
fn values(totals: &Totals) -> Vec<i64> {
    [totals.outstanding_bytes, totals.outstanding_count, totals.allocated_bytes, totals.allocated_count]
        .map(count)
        .to_vec()
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Runs of frames that pprof can say as one location: inlined ones about which there is nothing special, up to one
/// that is not.
fn groups(frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    frames.chunk_by(|frame, next| {
        frame.inlined
            && frame.offset.is_none()
            && frame.reason.is_none()
            && !frame.guessed
            && frame.line != Some(0)
            && frame.address == next.address
            && frame.module == next.module
            && frame.build_id == next.build_id
            && frame.module_offset == next.module_offset
    })
}

/// For people, and for `go tool pprof -comments`.
fn sentences(snapshot: &Snapshot) -> Vec<String> {
    let mode = match snapshot.mode {
        Mode::Exact => "every call was recorded".to_owned(),
        Mode::Sampled { interval_bytes } => format!("one sample in {}", units::bytes(interval_bytes)),
        Mode::Growth => "mappings and RSS only".to_owned(),
    };
    let mut sentences = vec![
        format!("leaktrace {} on {}", env!("CARGO_PKG_VERSION"), escape(&snapshot.host)),
        format!(
            "taken {}, traced since {}",
            units::wall_time(snapshot.time),
            units::wall_time(snapshot.since)
        ),
        format!("mode: {mode}"),
    ];
    if snapshot.losses.is_empty() {
        sentences.push("lost: nothing".to_owned());
    }
    let lost = |(cause, amount): (&String, &u64)| format!("lost or less exact: {} {amount}", escape(cause));
    sentences.extend(snapshot.losses.iter().map(lost));
    sentences.extend(snapshot.notes.iter().map(|note| format!("note: {}", escape(note))));
    for target in snapshot.targets.iter().filter(|target| target.sites_cut > 0) {
        sentences.push(format!("process {}: {} more call stacks are left out", target.pid, target.sites_cut));
    }
    sentences
}
