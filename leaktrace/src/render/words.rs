//! Facts of a snapshot in words: frames, reasons, losses, amounts. Lines and layout are left to `text`.
use super::{escape::escape, units};
use crate::model::{
    site_id::base_name,
    snapshot::{Confidence, ContainerView, Frame, Mode, TargetView, Totals},
};

/// One frame in a line: name, offset, source, module, and what is special about it.
pub(super) fn frame_line(frame: &Frame) -> String {
    let module = frame.module.as_deref().map_or("?", base_name);
    let place = match frame.module_offset {
        Some(offset) => format!("{}+{offset:#x}", escape(module)),
        None => escape(module),
    };
    let guessed = if frame.guessed { " (guessed)" } else { "" };
    let Some(function) = &frame.function else {
        let reason = frame.reason.unwrap_or("no name");
        return format!("{:#x} in {place} ({reason}){guessed}", frame.address);
    };
    let mut line = escape(function);
    if let Some(offset) = frame.offset {
        line.push_str(&format!("+{offset:#x}"));
    }
    if let Some(file) = &frame.file {
        line.push_str(&format!(" at {}", escape(file)));
        if let Some(number) = frame.line {
            line.push_str(&format!(":{number}"));
        }
    }
    if frame.inlined {
        line.push_str(" (inlined)");
    } else {
        line.push_str(&format!(" in {}", escape(module)));
    }
    line + guessed
}

/// The last line of a stack that does not reach its outermost function; names are
/// [`leaktrace_common::unwind::Stop::name`] and those of [`crate::model::stacks`].
pub(super) fn why_it_ends(stack_end: &str) -> Option<String> {
    match stack_end {
        "complete" | "none" | "" => None,
        "not_recorded" => Some("… the frames of this stack were not recorded".to_owned()),
        "frame_pointers" => Some("… walked by frame pointers: frames may be missing".to_owned()),
        _ => Some(format!("… cut by {}", end_words(stack_end).unwrap_or("an unknown cause"))),
    }
}

/// What cut a stack.
fn end_words(name: &str) -> Option<&'static str> {
    Some(match name {
        "no_mapping" => "an address in no known mapping",
        "no_cfi" => "missing unwind information",
        "read_fault" => "unreadable stack memory",
        "unsupported" => "an unsupported unwind rule",
        "zero_return" => "a return address of zero",
        "depth" => "--stack-depth",
        "backwards" => "a frame not above the one before it",
        "trampoline" => "another tool's return probe",
        "guessed" => "a guess that led nowhere",
        "frame_pointers" => "the end of frame pointers",
        "not_recorded" => "a full stack table",
        _ => return None,
    })
}

/// What a cause counts, to stand after a number.
pub(super) fn words(name: &str) -> String {
    let known = match name {
        "unmatched_frees" => "frees of unknown blocks",
        "blocks_full" => "allocations beyond --max-blocks",
        "sites_full" => "allocations beyond --max-sites",
        "threads_full" => "allocations of threads beyond the thread table",
        "lost_returns" => "calls whose return was never seen",
        "dispatched_calls" => "calls of threads that catch their own system calls",
        "missed_frees" => "frees that were not seen",
        "read_failures" => "values that could not be read",
        "events_dropped" => "events dropped",
        "trace_dropped" => "trace lines dropped",
        "stacks_deferred" => "stacks sent late",
        "stacks_full" => "stacks beyond the stack table",
        "copies_dropped" => "stack copies dropped",
        "reuse_mismatches" => "stacks that differ when walked again",
        _ => match name.strip_prefix("stop_").and_then(end_words) {
            Some(end) => return format!("stacks cut by {end}"),
            None => return escape(&name.replace('_', " ")),
        },
    };
    known.to_owned()
}

/// Why stacks end, over all of a target's sites; nothing where all are complete.
pub(super) fn stack_ends(target: &TargetView) -> Vec<String> {
    let all: u64 = target.stack_ends.values().sum();
    let complete = ["complete", "none"].iter().filter_map(|name| target.stack_ends.get(*name)).sum::<u64>();
    if complete == all {
        return Vec::new();
    }
    let cut = target.stack_ends.iter().filter(|(name, _)| !matches!(name.as_str(), "complete" | "none"));
    [format!("{} of {} complete", units::count(complete), units::count(all))]
        .into_iter()
        .chain(cut.map(|(name, count)| {
            let reason = end_words(name).map_or_else(|| escape(name), str::to_owned);
            format!("{} cut by {reason}", units::count(*count))
        }))
        .collect()
}

/// What was recorded.
pub(super) fn mode(mode: Mode) -> String {
    match mode {
        Mode::Exact => "every call".to_owned(),
        Mode::Sampled { interval_bytes } => format!("one sample in {}", units::bytes(interval_bytes)),
        Mode::Growth => "mappings and RSS only".to_owned(),
    }
}

/// Where a process runs: ` in web (3858919f6064)`, ` in pod shop/web-0, app (…)`, ` in web of shop (…)`.
pub(super) fn place(container: &ContainerView) -> String {
    let mut text = " in ".to_owned();
    if let Some(pod) = &container.pod {
        let namespace = container.namespace.as_ref().map(|name| format!("{}/", escape(name)));
        text += &format!("pod {}{}, ", namespace.unwrap_or_default(), escape(pod));
    }
    let service = container.compose_service.as_ref().filter(|_| container.compose_project.is_some());
    match (service, &container.compose_project, &container.name) {
        (Some(service), Some(project), _) => text += &format!("{} of {}", escape(service), escape(project)),
        (_, _, Some(name)) => text += &escape(name).to_string(),
        _ => return text + "container " + &escape(container.short_id()),
    }
    if container.name.as_deref() != Some(container.short_id()) {
        text += &format!(" ({})", escape(container.short_id()));
    }
    text
}

/// How a process ended, after its name.
pub(super) fn state(target: &TargetView) -> String {
    match target.exited {
        Some(exited) => match (exited.code, exited.signal) {
            _ if exited.oom_killed => " (killed because memory ran out)".to_owned(),
            (_, Some(signal)) if target.harm.is_some() => {
                format!(" (killed by signal {signal}, probably by tracing)")
            }
            (_, Some(signal)) => format!(" (killed by signal {signal})"),
            (Some(code), None) => format!(" (exited with {code})"),
            (None, None) => " (exited)".to_owned(),
        },
        None if target.execed => " (replaced by exec)".to_owned(),
        None => String::new(),
    }
}

/// A confidence as a word.
pub(super) fn verdict(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::High => "leak",
        Confidence::Medium => "likely leak",
        Confidence::Low => "possible leak",
    }
}

/// Below this number of samples an interval is so lopsided that both its ends are said.
const FEW_SAMPLES: u64 = 20;

/// What is outstanding, with how sure that is; `noun` is what is counted.
pub(super) fn held(totals: &Totals, noun: &str) -> String {
    let size = units::bytes(totals.outstanding_bytes);
    let count = units::counted(totals.outstanding_count, noun);
    let Some(sampled) = totals.sampled else { return format!("{size} in {count}") };
    let bytes = sampled.bytes();
    match sampled.samples {
        // What is not sampled (mappings among the call stacks that were cut) is known all the same.
        0 if totals.outstanding_bytes > 0 => format!("{size} in {count} and nothing sampled"),
        0 => format!("under {}", units::bytes(bytes.high.unwrap_or(0))),
        FEW_SAMPLES.. => {
            let spread = match totals.error_count {
                0 => String::new(),
                error => format!(" ± {}", units::count(error)),
            };
            format!("{size} ± {} in {count}{spread}", units::bytes(totals.error_bytes))
        }
        samples => {
            let other = totals.outstanding_bytes.saturating_sub(bytes.value);
            let end = |end: u64| units::bytes(end.saturating_add(other));
            let high = end(bytes.high.unwrap_or(bytes.value));
            format!(
                "{size} ({} to {high}) in {count}, by {}",
                end(bytes.low),
                units::counted(samples, "sample")
            )
        }
    }
}

/// How a sum that may be an estimate begins.
pub(super) fn about(totals: &Totals) -> &'static str {
    if totals.sampled.is_some() { "about " } else { "" }
}

/// Bytes and blocks.
pub(super) fn sum(bytes: u64, count: u64) -> String {
    format!("{} in {}", units::bytes(bytes), units::counted(count, "block"))
}
