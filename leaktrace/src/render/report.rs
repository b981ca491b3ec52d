//! The state of the service as text for people, with recommendations.
use std::fmt::Write as _;

use leaktrace_common::counter::{Class, Counter};

use super::{
    escape::escape,
    text::{self, Style},
    units,
};
use crate::model::{
    service::{Severity, View, key},
    site_id::base_name,
    sites::Order,
    snapshot::{Confidence, Frame, SiteView, TargetView},
};

/// Call stacks of each target that are shown.
const TOP: usize = 5;
/// Recommendations that are given.
const MAX_ADVICE: usize = 20;

/// The report.
pub fn report(view: &View) -> String {
    let mut out = String::new();
    let worst = view.alerts.iter().map(|alert| alert.severity).max();
    let state = match worst {
        None => "healthy",
        Some(Severity::Warning) => "warnings",
        Some(Severity::Critical) => "critical",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "leaktrace on {}: {state}; {}: {} held",
        escape(&view.snapshot.host),
        units::counted(view.live().count() as u64, "target"),
        units::bytes(view.outstanding_bytes())
    );
    for alert in &view.alerts {
        let _ = writeln!(out, "  {}: {}", alert.severity.name(), escape(&alert.message));
    }
    let advice = advice(view);
    if !advice.is_empty() {
        out.push_str("\nRecommendations\n");
    }
    for (index, sentence) in advice.iter().enumerate() {
        let _ = writeln!(out, "  {}. {sentence}", index + 1);
    }
    out.push('\n');
    let mut shown = view.snapshot.as_ref().clone();
    shown.cut(Order::Bytes, TOP);
    shown.relocate();
    out.push_str(&text::snapshot(&shown, Style::default()));
    out
}

/// What to do, the most urgent first.
fn advice(view: &View) -> Vec<String> {
    let mut advice = Vec::new();
    for target in view.live() {
        let Some(limit) = view.limits.get(&key(target)) else { continue };
        let growth = view.growth.get(&key(target)).copied().unwrap_or(0.0);
        let left = limit.limit_bytes.saturating_sub(limit.used_bytes);
        if growth > 0.0 && left as f64 / growth < 24.0 {
            advice.push(format!(
                "{} will reach its memory limit of {} in {} at the present growth: restart it before that, or raise the limit.",
                named(target),
                units::bytes(limit.limit_bytes),
                units::duration((left as f64 / growth * 3.6e12) as u64)
            ));
        }
    }
    for (target, site) in view.findings(Confidence::Medium, None) {
        advice.push(format!(
            "Look at {}: {} allocates there and does not free: {}.",
            place(site),
            named(target),
            site.finding.as_ref().map_or("", |finding| finding.evidence.as_str())
        ));
    }
    for (cause, amount) in &view.snapshot.losses {
        let is_loss =
            Counter::ALL.iter().any(|counter| counter.name() == cause && counter.class() == Class::Loss);
        let remedy = match cause.as_str() {
            "blocks_full" => "raise trace.max_blocks",
            "sites_full" => "raise trace.max_sites",
            _ => "see the losses in /api/v1/stats",
        };
        if is_loss && *amount > 0 {
            advice.push(format!("Numbers are incomplete: {} of {cause}: {remedy}.", units::count(*amount)));
        }
    }
    for fault in &view.faults {
        advice.push(format!("The agent itself: {}.", escape(&fault.message)));
    }
    if view.live().next().is_none() {
        advice.push("No process is traced: check `targets` in the configuration.".to_owned());
    }
    if advice.len() > MAX_ADVICE {
        let more = advice.len() - MAX_ADVICE;
        advice.truncate(MAX_ADVICE);
        advice.push(format!("{more} more: see /api/v1/leaks."));
    }
    advice
}

fn named(target: &TargetView) -> String {
    format!("{} (pid {})", escape(&target.comm), target.pid)
}

/// The innermost function with its source, or where it is.
fn place(site: &SiteView) -> String {
    let Some(Frame { function, file, line, module, module_offset, .. }) = site.frames.first() else {
        return format!("call stack {}", site.id);
    };
    let mut text = match (function, module) {
        (Some(function), _) => escape(function).to_string(),
        (None, Some(module)) => {
            let place = module_offset.map_or_else(String::new, |offset| format!("+{offset:#x}"));
            format!("{}{place}", escape(base_name(module)))
        }
        (None, None) => "unknown code".to_owned(),
    };
    if let (Some(file), Some(line)) = (file, line) {
        let _ = write!(text, " ({}:{line})", escape(base_name(file)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::snapshot::{Finding, Snapshot};

    #[test]
    fn a_finding_becomes_advice_that_names_the_place() {
        let frame = Frame {
            function: Some("cache_add\u{1b}".to_owned()),
            file: Some("/src/cache.c".to_owned()),
            line: Some(12),
            ..Frame::default()
        };
        let site = SiteView {
            frames: vec![frame].into(),
            finding: Some(Finding {
                confidence: Confidence::High,
                evidence: "grew 1.0 MiB/s".to_owned(),
                growth_bytes_per_second: Some(1048576.0),
            }),
            ..SiteView::default()
        };
        let target =
            TargetView { pid: 7, comm: "srv".to_owned(), sites: vec![site], ..TargetView::default() };
        let snapshot = Snapshot { targets: vec![target], ..Snapshot::default() };
        let text = report(&View { snapshot: Arc::new(snapshot), ..View::default() });
        assert!(text.contains("(cache.c:12): srv (pid 7) allocates there"), "{text}");
        assert!(text.contains("healthy; 1 target: ") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn without_targets_it_says_so() {
        assert!(report(&View::default()).contains("check `targets`"));
    }
}
