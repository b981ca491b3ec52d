//! Sites and their history → findings: how sure it is that a site leaks, and what was seen. One rule a file, pure;
//! who asks decides what to do with a finding.
//!
//! Rules prefer silence: a site that is stable, that grew only while the program warmed up, that is freed as fast
//! as it is filled, or that belongs to the C or C++ runtime itself, yields nothing.
use std::sync::Arc;

use crate::model::{
    history::{History, Point},
    ranked::{Judged, Ranked, Shown},
    sites::{Input, Selection, Site, collect},
    snapshot::{Frame, SiteView},
};

pub mod gate;
pub mod harm;
mod held_at_exit;
pub mod memory_growth;
mod runtime;
mod steady_growth;
pub mod suppressions;
mod tools;

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

/// Collects the sites of a process image, adds them to the history, orders and cuts them. `name` gives a stack its names,
/// and is asked to for those that are shown.
pub fn rank(
    input: &Input<'_>,
    history: &mut History,
    selection: &Selection,
    name: &mut dyn FnMut(u64),
) -> Ranked {
    let mut sites = collect(input, history, selection.older_ns);
    let mut loader_bytes = 0;
    sites.retain(|site| {
        let is_loaders = site.is_loaders(input, name);
        if is_loaders {
            loader_bytes += site.totals.outstanding_bytes;
        }
        !is_loaders
    });
    history.record(input.now_ns, sites.iter().map(|site| (site.place, site.point(input.now_ns))));
    Ranked::of(sites, loader_bytes, input, selection, name)
}

/// One more summary of a process image of which nothing has changed since `ranked`: the same as reading all of it again.
pub fn repeat(
    ranked: &mut Ranked,
    input: &Input<'_>,
    history: &mut History,
    selection: &Selection,
    life: Life,
) -> Shown {
    history.hold(input.now_ns);
    ranked.age(input.now_ns);
    show(ranked, input, history, selection, life)
}

/// Judges the sites that are shown and fills in what is shown of them.
pub fn show(
    ranked: &Ranked,
    input: &Input<'_>,
    history: &History,
    selection: &Selection,
    life: Life,
) -> Shown {
    ranked.show(input, selection, |site, frames| {
        if site.is_break(input) {
            return Judged::default();
        }
        let verified = site.verified(input);
        let judged = verified.as_ref().unwrap_or(site);
        judge(judged, &history.points(site.place), life, || Arc::clone(frames))
    })
}

/// Judges a site. `points` are its earlier summaries and, last, the present one; `frames` is called only where they
/// matter: for a site that would yield a finding, or of a process that has ended.
pub fn judge<F: AsRef<[Frame]>>(
    site: &Site,
    points: &[Point],
    life: Life,
    frames: impl FnOnce() -> F,
) -> Judged {
    if site.totals.outstanding_count == 0 {
        return Judged::default();
    }
    let finding = match life {
        Life::Ended => Some(held_at_exit::judge(site, points)),
        Life::Running | Life::CutShort => steady_growth::judge(site, points),
    };
    let matters = finding.is_some() || life != Life::Running;
    let is_runtimes = matters && runtime::is_own(site, frames().as_ref());
    Judged { finding: finding.filter(|_| !is_runtimes), is_runtimes }
}

/// Whether the site is what shells, `make`, interpreters, compilers and the small tools of scripts keep on purpose.
pub fn is_of_a_tool(site: &SiteView) -> bool {
    tools::suppression(site).is_some()
}

#[cfg(test)]
mod tests;
