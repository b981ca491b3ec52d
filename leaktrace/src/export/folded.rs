//! Folded stacks, the format of flame graph tools: a line for each site, frames from the outermost one inwards
//! separated by `;`, then a space and a number. The first part is the process.
use std::fmt::Write as _;

use crate::{
    model::{
        site_id::base_name,
        snapshot::{Frame, SiteKind, SiteView, Snapshot, TargetView, Totals},
    },
    render::escape::escape,
};

/// Which number goes with a stack; named as in pprof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Value {
    /// Bytes not freed.
    #[default]
    InuseSpace,
    /// Blocks not freed.
    InuseObjects,
    /// Bytes allocated since tracing began.
    AllocSpace,
    /// Blocks allocated since tracing began.
    AllocObjects,
}

impl Value {
    /// Of sums.
    pub fn of(self, totals: &Totals) -> u64 {
        match self {
            Value::InuseSpace => totals.outstanding_bytes,
            Value::InuseObjects => totals.outstanding_count,
            Value::AllocSpace => totals.allocated_bytes,
            Value::AllocObjects => totals.allocated_count,
        }
    }

    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Value::InuseSpace | Value::AllocSpace => "bytes",
            Value::InuseObjects | Value::AllocObjects => "blocks",
        }
    }

    /// For a title.
    pub fn title(self) -> &'static str {
        match self {
            Value::InuseSpace => "Memory not freed",
            Value::InuseObjects => "Blocks not freed",
            Value::AllocSpace => "Memory allocated",
            Value::AllocObjects => "Blocks allocated",
        }
    }
}

/// One line for each site whose value is not 0.
pub fn folded(snapshot: &Snapshot, value: Value) -> String {
    let mut text = String::new();
    for target in &snapshot.targets {
        let process = part(&format!("{} ({})", target.comm, target.pid));
        for site in target.sites.iter().filter(|site| value.of(&site.totals) > 0) {
            text.push_str(&process);
            for name in names(site) {
                text.push(';');
                text.push_str(&part(&name));
            }
            let _ = writeln!(text, " {}", value.of(&site.totals));
        }
        let cut = value.of(&target.cut_totals);
        if cut > 0 {
            let _ = writeln!(text, "{process};[{}] {cut}", cut_name(target));
        }
    }
    text
}

/// The frames of a site from the outermost one inwards; mappings are marked, and so is a stack without frames.
pub(super) fn names(site: &SiteView) -> Vec<String> {
    let mut names: Vec<String> = site.frames.iter().rev().map(name).collect();
    if names.is_empty() {
        names.push("[no call stack]".to_owned());
    }
    if site.kind == SiteKind::Mapping {
        names.push("[mapping]".to_owned());
    }
    names
}

/// A frame in a word or two.
pub(super) fn name(frame: &Frame) -> String {
    if let Some(function) = &frame.function {
        return escape(function);
    }
    match (frame.module.as_deref().map(base_name), frame.module_offset) {
        (Some(module), Some(offset)) => format!("[{}+{offset:#x}]", escape(module)),
        (Some(module), None) => format!("[{}]", escape(module)),
        (None, _) => format!("[{:#x}]", frame.address),
    }
}

/// What stands for the sites that the file does not hold.
pub(super) fn cut_name(target: &TargetView) -> String {
    format!("{} call stacks left out", target.sites_cut)
}

/// Without what separates parts and lines, and without what readers take for something else: a comment, or a second
/// number.
fn part(name: &str) -> String {
    let mut part = escape(name).replace(';', ":");
    if part.starts_with('#') {
        part.insert(0, '_');
    }
    if let Some((before, number)) = part.rsplit_once(' ')
        && number.parse::<f64>().is_ok()
    {
        part = format!("{before}_{number}");
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(functions: &[&str], bytes: u64) -> SiteView {
        let frame = |name: &&str| Frame { function: Some((*name).to_owned()), ..Frame::default() };
        SiteView {
            totals: Totals { outstanding_bytes: bytes, ..Totals::default() },
            frames: functions.iter().map(frame).collect(),
            ..SiteView::default()
        }
    }

    fn of(comm: &str, sites: Vec<SiteView>) -> Snapshot {
        let target = TargetView { pid: 7, comm: comm.to_owned(), sites, ..TargetView::default() };
        Snapshot { targets: vec![target], ..Snapshot::default() }
    }

    #[test]
    fn the_outermost_frame_comes_first_and_what_holds_nothing_is_left_out() {
        let snapshot = of("shop", vec![site(&["grow", "main"], 5), site(&["main"], 0), site(&[], 2)]);
        let text = folded(&snapshot, Value::InuseSpace);
        assert_eq!(text, "shop (7);main;grow 5\nshop (7);[no call stack] 2\n");
        assert_eq!(folded(&snapshot, Value::AllocSpace), "");
    }

    #[test]
    fn a_hostile_name_makes_no_frame_no_line_no_comment_and_no_number() {
        let text = folded(&of("# a;b\n", vec![site(&["f;g 12", "x\ny 1"], 5)]), Value::InuseSpace);
        assert_eq!(text, "_# a:b\\u{a} (7);x\\u{a}y_1;f:g_12 5\n");
    }
}
