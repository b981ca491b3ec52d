//! The file format of speedscope (speedscope.app/file-format-schema.json): a profile for each process, of the
//! sampled kind, a sample for each site.
use std::collections::HashMap;

use serde::Serialize;

use super::folded::{Value, cut_name, name, names};
use crate::{
    model::snapshot::{Snapshot, TargetView},
    render::escape::escape,
};

/// The file's text.
pub fn speedscope(snapshot: &Snapshot, value: Value) -> String {
    let mut frames = Frames::default();
    let profiles = snapshot.targets.iter().map(|target| profile(target, value, &mut frames)).collect();
    let file = FileJson {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("leaktrace ", env!("CARGO_PKG_VERSION")),
        name: format!("{} on {}", value.title(), escape(&snapshot.host)),
        shared: SharedJson { frames: frames.list },
        profiles,
    };
    // Serialising fails only for maps whose keys are not strings, and there are none.
    let mut text = super::json::plain(serde_json::to_string(&file).unwrap_or_default());
    text.push('\n');
    text
}

fn profile(target: &TargetView, value: Value, frames: &mut Frames) -> ProfileJson {
    let mut samples = Vec::new();
    let mut weights = Vec::new();
    for site in target.sites.iter().filter(|site| value.of(&site.totals) > 0) {
        let mut sample: Vec<usize> = site
            .frames
            .iter()
            .rev()
            .map(|frame| frames.index(name(frame), frame.file.as_deref(), frame.line))
            .collect();
        let special = names(site).into_iter().skip(sample.len());
        sample.extend(special.map(|name| frames.index(name, None, None)));
        samples.push(sample);
        weights.push(value.of(&site.totals));
    }
    let cut = value.of(&target.cut_totals);
    if cut > 0 {
        samples.push(vec![frames.index(format!("[{}]", cut_name(target)), None, None)]);
        weights.push(cut);
    }
    let end_value = weights.iter().fold(0_u64, |sum, weight| sum.saturating_add(*weight));
    ProfileJson {
        kind: "sampled",
        name: format!("{} ({})", escape(&target.comm), target.pid),
        unit: if value.unit() == "bytes" { "bytes" } else { "none" },
        start_value: 0,
        end_value,
        samples,
        weights,
    }
}

/// Frames are listed once and referred to by their index.
#[derive(Default)]
struct Frames {
    list: Vec<FrameJson>,
    known: HashMap<(String, Option<String>, Option<u32>), usize>,
}

impl Frames {
    fn index(&mut self, name: String, file: Option<&str>, line: Option<u32>) -> usize {
        let file = file.map(escape);
        let next = self.list.len();
        let index = *self.known.entry((name.clone(), file.clone(), line)).or_insert(next);
        if index == next {
            self.list.push(FrameJson { name, file, line });
        }
        index
    }
}

#[derive(Serialize)]
struct FileJson {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: String,
    shared: SharedJson,
    profiles: Vec<ProfileJson>,
}

#[derive(Serialize)]
struct SharedJson {
    frames: Vec<FrameJson>,
}

#[derive(Serialize)]
struct FrameJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileJson {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}
