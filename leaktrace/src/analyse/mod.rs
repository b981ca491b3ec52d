//! Sites and their history → findings: how sure it is that a site leaks, and what was seen. One rule a file, pure;
//! who asks decides what to do with a finding.
//!
//! Rules prefer silence: a site that is stable, that grew only while the program warmed up, that is freed as fast
//! as it is filled, or that belongs to the C or C++ runtime itself, yields nothing.
use crate::model::{
    history::{History, Point},
    sites::{Input, Selection, Shown, Site, collect, show},
    snapshot::{Finding, Frame},
};

mod held_at_exit;
pub mod memory_growth;
mod runtime;
mod steady_growth;

/// How the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Life {
    /// It runs.
    #[default]
    Running,
    /// It ended by itself: what it still held was never freed.
    Ended,
    /// It was killed or replaced by exec: it had no chance to free anything.
    CutShort,
}

/// One summary of a process image: its sites are collected, added to the history, judged, ordered and cut.
pub fn summarise(input: &Input<'_>, history: &mut History, selection: &Selection, life: Life) -> Shown {
    let mut sites = collect(input, history, selection.older_ns);
    let mut loader_bytes = 0;
    sites.retain(|site| {
        let is_loaders = site.is_loaders(input);
        if is_loaders {
            loader_bytes += site.totals.outstanding_bytes;
        }
        !is_loaders
    });
    history.record(input.now_ns, sites.iter().map(|site| (site.id, site.point(input.now_ns))));
    for site in &mut sites {
        if site.is_break(input) {
            continue;
        }
        let verified = site.verified(input);
        let judged = verified.as_ref().unwrap_or(site);
        site.finding = judge(judged, history.points(site.id), life, || site.frames(input));
    }
    Shown { loader_bytes, ..show(sites, input, selection) }
}

/// Judges a site. `points` are its earlier summaries and, last, the present one; `frames` is called only for a
/// site that would yield a finding.
pub fn judge(
    site: &Site,
    points: &[Point],
    life: Life,
    frames: impl FnOnce() -> Vec<Frame>,
) -> Option<Finding> {
    if site.totals.outstanding_count == 0 {
        return None;
    }
    let finding = match life {
        Life::Ended => Some(held_at_exit::judge(site, points)),
        Life::Running | Life::CutShort => steady_growth::judge(site, points),
    }?;
    if runtime::is_own(site, &frames()) { None } else { Some(finding) }
}

#[cfg(test)]
mod tests;
