//! From the bytes of a file back to its snapshot. A file can come from anywhere: sizes are bounded before memory
//! is taken, and everything that refers to something else is checked.
use std::{collections::HashMap, io::Read as _};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use leaktrace_common::unwind::Stop;
use prost::{
    Message as _,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use super::{
    SAMPLE_TYPES,
    details::{Details, LocationDetails, SCHEMA, SiteDetails},
    message::{DETAILS_FIELD, Location, Mapping, Profile, Sample},
};
use crate::{
    model::snapshot::{Frame, SiteKind, SiteView, Snapshot, Totals},
    symbolize::reason,
};

/// What a file may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes when it is unpacked.
    pub(super) bytes: u64,
    /// Fields of the whole profile and of its messages: each takes memory of its own when it is decoded.
    pub(super) fields: usize,
    /// Objects in the details.
    pub(super) objects: usize,
    /// Bytes of the frames of all sites.
    pub(super) frame_bytes: usize,
}

const LIMITS: Limits = Limits { bytes: 128 << 20, fields: 16 << 20, objects: 4 << 20, frame_bytes: 2 << 30 };

/// The snapshot in a file's bytes, packed or not.
///
/// # Errors
/// When they are not a profile, a damaged one, one that leaktrace did not write, or larger than 128 MiB unpacked.
pub fn read(bytes: &[u8]) -> Result<Snapshot> {
    read_within(bytes, LIMITS)
}

/// [`read`] with other limits.
pub(super) fn read_within(bytes: &[u8], limits: Limits) -> Result<Snapshot> {
    ensure!(!bytes.is_empty(), "it is empty");
    let bytes = unpack(bytes, limits.bytes)?;
    let fields = count_fields(&bytes).context("this is not a pprof profile")?;
    ensure!(fields <= limits.fields, "the profile has more than {} fields", limits.fields);
    let profile = Profile::decode(bytes.as_slice()).context("this is not a pprof profile")?;
    drop(bytes);
    let mut details = details_of(&profile, limits.objects)?;
    let sites = std::mem::take(&mut details.sites);
    ensure!(
        sites.len() == profile.samples.len(),
        "another program has rewritten the file: {} samples, and details of {}",
        profile.samples.len(),
        sites.len()
    );
    let mut frames = Frames::new(&profile, &details, limits.frame_bytes)?;
    let mut views = Vec::with_capacity(sites.len());
    for (sample, site) in profile.samples.iter().zip(sites) {
        views.push((site.target, view(&profile, sample, site, &mut frames)?));
    }
    drop(frames);
    let mut snapshot = details.snapshot();
    for (target, view) in views {
        snapshot
            .targets
            .get_mut(target)
            .context("a sample of a process that is not listed")?
            .sites
            .push(view);
    }
    Ok(snapshot)
}

fn unpack(bytes: &[u8], max_bytes: u64) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        ensure!(bytes.len() as u64 <= max_bytes, "larger than {max_bytes} bytes");
        return Ok(bytes.to_vec());
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes)
        .take(max_bytes + 1)
        .read_to_end(&mut unpacked)
        .context("it cannot be unpacked: it is damaged or cut off")?;
    ensure!(unpacked.len() as u64 <= max_bytes, "unpacked, it is larger than {max_bytes} bytes");
    Ok(unpacked)
}

/// How many fields the profile and the messages in it have; nothing is copied.
fn count_fields(mut bytes: &[u8]) -> Result<usize> {
    let mut count = 0;
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes)?;
        count += 1;
        // Texts have nothing inside.
        if wire == WireType::LengthDelimited && number != 6 && number != DETAILS_FIELD {
            let length = usize::try_from(decode_varint(&mut bytes)?)?;
            let (inner, rest) = bytes.split_at_checked(length).context("cut off")?;
            count += count_inner(inner);
            bytes = rest;
        } else {
            skip_field(wire, number, &mut bytes, DecodeContext::default())?;
        }
    }
    Ok(count)
}

/// Fields in a message, as far as it is one: packed numbers are not, and take no more than their bytes do.
fn count_inner(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while bytes.has_remaining() {
        let Ok((number, wire)) = decode_key(&mut bytes) else { break };
        if skip_field(wire, number, &mut bytes, DecodeContext::default()).is_err() {
            break;
        }
        count += 1;
    }
    count
}

fn details_of(profile: &Profile, max_objects: usize) -> Result<Details> {
    ensure!(
        !profile.details.is_empty(),
        "this is a pprof profile, but not a snapshot of leaktrace, or another program has rewritten it"
    );
    let types =
        profile.sample_types.iter().map(|sample| (text(profile, sample.kind), text(profile, sample.unit)));
    let expected = SAMPLE_TYPES.iter().copied();
    ensure!(
        types.len() == expected.len()
            && types.zip(expected).all(|((kind, unit), (expected_kind, expected_unit))| {
                kind.is_ok_and(|kind| kind == expected_kind) && unit.is_ok_and(|unit| unit == expected_unit)
            }),
        "another program has changed the sample types of this file"
    );
    let objects = profile.details.bytes().filter(|byte| *byte == b'{').count();
    ensure!(objects <= max_objects, "its details have more than {max_objects} objects");
    let details: Details = serde_json::from_str(&profile.details).context("its details are damaged")?;
    ensure!(details.schema == SCHEMA, "it has the schema {:?}: this version reads {SCHEMA}", details.schema);
    Ok(details)
}

fn text(profile: &Profile, index: i64) -> Result<&str> {
    let found = usize::try_from(index).ok().and_then(|index| profile.strings.get(index));
    found.map(String::as_str).with_context(|| format!("no text {index}"))
}

fn optional(profile: &Profile, index: i64) -> Result<Option<String>> {
    Ok(Some(text(profile, index)?).filter(|text| !text.is_empty()).map(str::to_owned))
}

fn view(profile: &Profile, sample: &Sample, site: SiteDetails, frames: &mut Frames) -> Result<SiteView> {
    let mut kind = SiteKind::Heap;
    for label in &sample.labels {
        match (text(profile, label.key)?, text(profile, label.text)?) {
            ("kind", "mapping") => kind = SiteKind::Mapping,
            ("site", id) => {
                ensure!(id == site.id, "another program has reordered the samples of this file");
            }
            _ => {}
        }
    }
    Ok(SiteView {
        kind,
        totals: Totals::from(&site.totals),
        growth_bytes_per_second: site.growth_bytes_per_second,
        oldest_age_ns: site.oldest_age_ns,
        finding: site.finding(),
        is_runtimes: site.is_runtimes,
        suppressed: site.suppressed.clone(),
        frames: frames.of(sample)?.into(),
        stack_end: stack_end(&site.stack_end),
        blocks: site.blocks(),
        lifetimes: site.lifetimes,
        id: site.id,
    })
}

/// The frames of every location.
struct Frames {
    locations: HashMap<u64, Vec<Frame>>,
    left_bytes: usize,
}

impl Frames {
    fn new(profile: &Profile, details: &Details, mut left_bytes: usize) -> Result<Frames> {
        let mappings: HashMap<u64, &Mapping> =
            profile.mappings.iter().map(|mapping| (mapping.id, mapping)).collect();
        let functions = profile
            .functions
            .iter()
            .map(|function| {
                Ok((function.id, (optional(profile, function.name)?, optional(profile, function.file)?)))
            })
            .collect::<Result<HashMap<u64, Named>>>()?;
        let none = LocationDetails::default();
        let mut locations = HashMap::with_capacity(profile.locations.len());
        for location in &profile.locations {
            let details_of_it = details.locations.get(&location.id).unwrap_or(&none);
            let mut bare = bare(profile, location, &mappings, details)?;
            bare.guessed = details_of_it.guessed;
            let frames = named(location, &functions, bare, details_of_it, &mut left_bytes)?;
            locations.insert(location.id, frames);
        }
        Ok(Frames { locations, left_bytes })
    }

    fn of(&mut self, sample: &Sample) -> Result<Vec<Frame>> {
        let mut all = Vec::new();
        for id in &sample.location_ids {
            let frames = self.locations.get(id).with_context(|| format!("no location {id}"))?;
            for frame in frames {
                charge(frame, &mut self.left_bytes)?;
                all.push(frame.clone());
            }
        }
        Ok(all)
    }
}

/// Name and file of a function.
type Named = (Option<String>, Option<String>);

/// Takes a frame's size off what is left.
fn charge(frame: &Frame, left_bytes: &mut usize) -> Result<()> {
    let texts = [&frame.module, &frame.build_id, &frame.function, &frame.file];
    let bytes = size_of::<Frame>() + texts.into_iter().flatten().map(String::len).sum::<usize>();
    let left = left_bytes.checked_sub(bytes);
    *left_bytes = left.context("its call stacks take more memory than they may")?;
    Ok(())
}

/// What a location says without its functions.
fn bare(
    profile: &Profile,
    location: &Location,
    mappings: &HashMap<u64, &Mapping>,
    details: &Details,
) -> Result<Frame> {
    let mut frame = Frame { address: location.address.wrapping_add(1), ..Frame::default() };
    if location.mapping_id == 0 {
        return Ok(frame);
    }
    let mapping =
        mappings.get(&location.mapping_id).with_context(|| format!("no mapping {}", location.mapping_id))?;
    frame.module = optional(profile, mapping.file)?;
    frame.build_id = optional(profile, mapping.build_id)?;
    if !details.unplaced_mappings.contains(&mapping.id) {
        let offset = frame.address.wrapping_sub(mapping.start).wrapping_add(mapping.file_offset);
        frame.module_offset = Some(offset);
    }
    Ok(frame)
}

/// The frames of a location, inlined ones first.
fn named(
    location: &Location,
    functions: &HashMap<u64, Named>,
    bare: Frame,
    details: &LocationDetails,
    left_bytes: &mut usize,
) -> Result<Vec<Frame>> {
    let mut frames = Vec::with_capacity(location.lines.len().max(1));
    for line in &location.lines {
        let function = functions.get(&line.function_id);
        let (function, file) = function.with_context(|| format!("no function {}", line.function_id))?;
        let frame = Frame {
            function: function.clone(),
            file: file.clone(),
            line: u32::try_from(line.line).ok().filter(|line| *line != 0),
            inlined: true,
            guessed: false,
            ..bare.clone()
        };
        charge(&frame, left_bytes)?;
        frames.push(frame);
    }
    if frames.is_empty() {
        frames.push(bare.clone());
    }
    if let Some(outermost) = frames.last_mut() {
        outermost.inlined = details.inlined;
        outermost.guessed = details.guessed;
        outermost.offset = details.offset;
        outermost.reason = details.reason.as_deref().map(known_reason);
        if details.line_zero {
            outermost.line = Some(0);
        }
    }
    Ok(frames)
}

/// The same text as a constant; newer versions may know others.
fn known_reason(text: &str) -> &'static str {
    let known = reason::ALL.iter().find(|known| **known == text);
    known.copied().unwrap_or("for a reason that this version does not know")
}

/// The same name as a constant; newer versions may know others.
fn stack_end(name: &str) -> &'static str {
    let others = ["", "none", "not_recorded"];
    let known = Stop::ALL.iter().map(|stop| stop.name()).chain(others).find(|known| *known == name);
    known.unwrap_or("unknown")
}
