//! Metrics of targets and of the service, as OpenMetrics 1.0 or as the older text format 0.0.4. The number of series
//! is bounded: of each target the largest sites by their stable ids, the others summed as `site="other"`.
//!
//! Written by hand because names of processes and functions are hostile: every label value is escaped here, in one
//! place.
use std::fmt::{Display, Write as _};

use leaktrace_common::counter::{Class, Counter};

use crate::model::{
    service::{MemoryLimit, Severity, View, Work, key},
    site_id::base_name,
    snapshot::{ContainerView, Mode, SiteKind, SiteView, TargetView, Totals},
};

/// The formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// By the Accept header: OpenMetrics only where it is asked for.
    pub fn accepted(accept: &str) -> Format {
        let wants = |part: &str| {
            let mut words = part.split(';').map(str::trim);
            let is_it =
                words.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
            is_it && !words.any(|word| matches!(word, "q=0" | "q=0.0"))
        };
        if accept.split(',').any(wants) { Format::OpenMetrics } else { Format::Text }
    }

    /// For the Content-Type header.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The page. `top` is how many sites of each target have series of their own.
pub fn page(view: &View, top: usize, format: Format) -> String {
    let mut page = Page { out: String::new(), format };
    targets(&mut page, view);
    sites(&mut page, view, top);
    service(&mut page, view);
    if format == Format::OpenMetrics {
        page.out.push_str("# EOF\n");
    }
    page.out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Info,
}

struct Page {
    out: String,
    format: Format,
}

/// One family under way.
struct Family<'a> {
    page: &'a mut Page,
    /// The name of its samples.
    name: String,
}

impl Page {
    /// Begins a family. `unit` must be the end of the name.
    fn family(&mut self, name: &str, kind: Kind, unit: &str, help: &str) -> Family<'_> {
        let sample = match kind {
            Kind::Gauge => name.to_owned(),
            Kind::Counter => format!("{name}_total"),
            Kind::Info => format!("{name}_info"),
        };
        let is_open = self.format == Format::OpenMetrics;
        let declared = if is_open { name } else { &sample };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Info if is_open => "info",
            Kind::Gauge | Kind::Info => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# TYPE {declared} {word}");
        if is_open && !unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {declared} {unit}");
        }
        // Only OpenMetrics escapes quotes here.
        let help = if is_open { escaped(help) } else { help.to_owned() };
        let _ = writeln!(self.out, "# HELP {declared} {help}");
        Family { page: self, name: sample }
    }
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let out = &mut self.page.out;
        out.push_str(&self.name);
        let mut separator = '{';
        for (name, value) in labels {
            let _ = write!(out, "{separator}{name}=\"{}\"", escaped(value));
            separator = ',';
        }
        if separator == ',' {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }
}

/// Backslashes, quotes and line ends escaped; other control characters, which a page has no use for, replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            character if character.is_control() => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}

/// The labels of a target.
struct Labels<'a> {
    pid: String,
    target: &'a TargetView,
}

impl<'a> Labels<'a> {
    fn of(target: &'a TargetView) -> Labels<'a> {
        Labels { pid: target.pid.to_string(), target }
    }

    /// An empty container is none.
    fn with<'b>(&'b self, more: &[(&'b str, &'b str)]) -> Vec<(&'b str, &'b str)> {
        let container = self.target.container.as_ref().map_or("", ContainerView::label);
        let mut labels =
            vec![("pid", self.pid.as_str()), ("comm", &self.target.comm), ("container", container)];
        labels.extend_from_slice(more);
        labels
    }
}

fn targets(page: &mut Page, view: &View) {
    let mut gauge = |name: &str, unit: &str, help: &str, of: &dyn Fn(&TargetView) -> Option<f64>| {
        let mut family = page.family(name, Kind::Gauge, unit, help);
        for target in view.live() {
            if let Some(value) = of(target) {
                family.sample(&Labels::of(target).with(&[]), value);
            }
        }
    };
    gauge(
        "leaktrace_target_outstanding_bytes",
        "bytes",
        "Heap bytes allocated since tracing began and not freed.",
        &|target| Some(target.totals.outstanding_bytes as f64),
    );
    gauge("leaktrace_target_outstanding_blocks", "", "Heap blocks not freed.", &|target| {
        Some(target.totals.outstanding_count as f64)
    });
    gauge(
        "leaktrace_target_outstanding_error_bytes",
        "bytes",
        "From the outstanding bytes to the farther end of their 95 % interval; 0 in exact mode.",
        &|target| Some(target.totals.error_bytes as f64),
    );
    gauge("leaktrace_target_mapped_bytes", "bytes", "Bytes mapped by the program itself.", &|target| {
        Some(target.mappings.program_bytes as f64)
    });
    gauge("leaktrace_target_rss_bytes", "bytes", "Resident set size.", &|target| {
        target.rss_bytes.map(|bytes| bytes as f64)
    });
    gauge(
        "leaktrace_target_heap_before_attach_bytes",
        "bytes",
        "Heap from before tracing began.",
        &|target| target.heap_before_attach_bytes.map(|bytes| bytes as f64),
    );
    gauge(
        "leaktrace_target_growth_bytes_per_hour",
        "",
        "Growth of the outstanding bytes over the window of alerts.growth_window.",
        &|target| view.growth.get(&key(target)).copied(),
    );
    gauge(
        "leaktrace_target_overhead_ratio",
        "ratio",
        "Share of one core that tracing costs the target, estimated.",
        &|target| target.overhead.as_ref().map(|overhead| overhead.estimated_share),
    );
    let limit = |target: &TargetView| view.limits.get(&key(target)).copied();
    gauge("leaktrace_target_memory_limit_bytes", "bytes", "Memory limit of its cgroup.", &|target| {
        limit(target).map(|limit| limit.limit_bytes as f64)
    });
    gauge(
        "leaktrace_target_memory_limit_used_bytes",
        "bytes",
        "Memory charged to the cgroup of the limit, droppable file pages left out.",
        &|target| limit(target).map(|limit| limit.used_bytes as f64),
    );
    gauge("leaktrace_target_memory_limit_used_ratio", "ratio", "Used share of the limit.", &|target| {
        limit(target).as_ref().map(MemoryLimit::share)
    });
    gauge("leaktrace_target_findings", "", "Call stacks that seem to leak.", &|target| {
        Some(target.sites.iter().filter(|site| site.finding.is_some()).count() as f64)
    });
    gauge(
        "leaktrace_target_traced_since_timestamp_seconds",
        "seconds",
        "When tracing of the process began.",
        &|target| Some(target.since as f64 / 1e9),
    );
    let mut counter = |name: &str, unit: &str, help: &str, of: &dyn Fn(&Totals) -> u64| {
        let mut family = page.family(name, Kind::Counter, unit, help);
        for target in view.live() {
            family.sample(&Labels::of(target).with(&[]), of(&target.totals));
        }
    };
    counter("leaktrace_target_allocated_bytes", "bytes", "Heap bytes allocated.", &|totals| {
        totals.allocated_bytes
    });
    counter("leaktrace_target_allocated_blocks", "", "Heap blocks allocated.", &|totals| {
        totals.allocated_count
    });
    counter("leaktrace_target_freed_bytes", "bytes", "Heap bytes freed of those.", &|totals| {
        totals.freed_bytes
    });
    counter("leaktrace_target_freed_blocks", "", "Heap blocks freed of those.", &|totals| totals.freed_count);
    let mut losses = page.family(
        "leaktrace_target_losses",
        Kind::Counter,
        "",
        "What was not recorded of a target or only approximately, by cause.",
    );
    for target in view.live() {
        let labels = Labels::of(target);
        for (cause, amount) in &target.losses {
            losses.sample(&labels.with(&[("cause", cause)]), amount);
        }
    }
}

/// The largest sites have series of their own.
fn sites(page: &mut Page, view: &View, top: usize) {
    let kind = |site: &SiteView| match site.kind {
        SiteKind::Heap => "heap",
        SiteKind::Mapping => "mapping",
    };
    let mut family = page.family(
        "leaktrace_site_outstanding_bytes",
        Kind::Gauge,
        "bytes",
        "Bytes not freed by call stack; the call stacks that hold less are summed as site=\"other\".",
    );
    for target in view.live() {
        let labels = Labels::of(target);
        let mut largest: Vec<&SiteView> = target.sites.iter().collect();
        largest.sort_by(|a, b| {
            b.totals.outstanding_bytes.cmp(&a.totals.outstanding_bytes).then_with(|| a.id.cmp(&b.id))
        });
        let (shown, rest) = largest.split_at(top.min(largest.len()));
        for site in shown {
            let function = function(site);
            let own = [("site", site.id.as_str()), ("kind", kind(site)), ("function", &function)];
            family.sample(&labels.with(&own), site.totals.outstanding_bytes);
        }
        let other = rest
            .iter()
            .map(|site| site.totals.outstanding_bytes)
            .fold(target.cut_totals.outstanding_bytes, u64::saturating_add);
        family.sample(&labels.with(&[("site", "other"), ("kind", ""), ("function", "")]), other);
    }
}

/// The innermost function, or where it is.
fn function(site: &SiteView) -> String {
    let Some(frame) = site.frames.first() else { return String::new() };
    match (&frame.function, &frame.module, frame.module_offset) {
        (Some(function), ..) => function.chars().take(200).collect(),
        (None, Some(module), Some(offset)) => format!("{}+{offset:#x}", base_name(module)),
        _ => String::new(),
    }
}

fn service(page: &mut Page, view: &View) {
    let snapshot = &view.snapshot;
    page.family("leaktrace_build", Kind::Info, "", "The version that runs.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let mode = match snapshot.mode {
        Mode::Exact => "exact",
        Mode::Sampled { .. } => "sampled",
        Mode::Growth => "growth",
    };
    page.family("leaktrace_mode", Kind::Info, "", "How allocations are recorded.")
        .sample(&[("mode", mode)], 1);
    let mut one = |name: &str, unit: &str, help: &str, value: f64| {
        page.family(name, Kind::Gauge, unit, help).sample(&[], value);
    };
    one("leaktrace_targets", "", "Processes that are traced.", view.live().count() as f64);
    one("leaktrace_agent_rss_bytes", "bytes", "Resident memory of the agent.", view.own.rss_bytes as f64);
    one(
        "leaktrace_agent_map_bytes",
        "bytes",
        "Kernel memory of the agent's maps.",
        view.own.map_bytes as f64,
    );
    one("leaktrace_agent_open_files", "", "Open files of the agent.", view.own.open_files as f64);
    one("leaktrace_agent_cpu_ratio", "ratio", "Share of one CPU that the agent took.", view.own.cpu_share);
    one(
        "leaktrace_agent_healthy",
        "",
        "1 while the agent works within its limits and can write its files.",
        f64::from(u8::from(view.faults.is_empty())),
    );
    one(
        "leaktrace_agent_started_timestamp_seconds",
        "seconds",
        "When the agent began.",
        view.started as f64 / 1e9,
    );
    one(
        "leaktrace_agent_refreshed_timestamp_seconds",
        "seconds",
        "When the last summary was made.",
        snapshot.time as f64 / 1e9,
    );
    page.family("leaktrace_agent_cpu_seconds", Kind::Counter, "seconds", "Processor time of the agent.")
        .sample(&[], view.own.cpu_seconds);
    let mut work =
        page.family("leaktrace_agent_work", Kind::Counter, "", "What the agent has done, by what it is.");
    for what in Work::ALL {
        work.sample(&[("what", what.name())], view.count(*what));
    }
    let mut losses = page.family(
        "leaktrace_losses",
        Kind::Counter,
        "",
        "What was not recorded or only approximately since tracing began, by cause; 0 is good.",
    );
    let known = Counter::ALL
        .iter()
        .filter(|counter| counter.class() != Class::Activity)
        .map(|counter| counter.name());
    for cause in known {
        losses.sample(&[("cause", cause)], snapshot.losses.get(cause).copied().unwrap_or(0));
    }
    for (cause, amount) in &snapshot.losses {
        if !Counter::ALL.iter().any(|counter| counter.name() == cause) {
            losses.sample(&[("cause", cause)], amount);
        }
    }
    let mut alerts = page.family("leaktrace_alerts", Kind::Gauge, "", "Active alerts by severity.");
    for severity in [Severity::Warning, Severity::Critical] {
        let count = view.alerts.iter().filter(|alert| alert.severity == severity).count();
        alerts.sample(&[("severity", severity.name())], count);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::snapshot::{Frame, Snapshot};

    fn site(id: &str, outstanding_bytes: u64) -> SiteView {
        SiteView {
            id: id.to_owned(),
            totals: Totals { outstanding_bytes, ..Totals::default() },
            frames: vec![Frame { function: Some("f<\"x\">\n".to_owned()), ..Frame::default() }].into(),
            ..SiteView::default()
        }
    }

    fn view() -> View {
        let mut target = TargetView {
            pid: 7,
            comm: "evil\"\n} 1\n\u{1b}\\".to_owned(),
            sites: vec![site("a", 1), site("b", 30), site("c", 20)],
            ..TargetView::default()
        };
        target.totals.outstanding_bytes = 61;
        target.cut_totals.outstanding_bytes = 10;
        let snapshot = Snapshot { targets: vec![target], ..Snapshot::default() };
        View { snapshot: Arc::new(snapshot), ..View::default() }
    }

    #[test]
    fn the_largest_sites_are_shown_and_the_rest_is_summed() {
        let page = page(&view(), 2, Format::Text);
        let sites: Vec<&str> = page.lines().filter(|line| line.starts_with("leaktrace_site_")).collect();
        assert_eq!(sites.len(), 3, "{sites:?}");
        assert!(sites[0].contains("site=\"b\"") && sites[0].ends_with(" 30"), "{sites:?}");
        assert!(sites[2].contains("site=\"other\"") && sites[2].ends_with(" 11"), "{sites:?}");
    }

    #[test]
    fn hostile_names_stay_within_their_label() {
        for format in [Format::Text, Format::OpenMetrics] {
            let page = page(&view(), 1, format);
            assert!(page.contains(r#"comm="evil\"\n} 1\n�\\","#), "{page}");
            assert!(
                page.lines().all(|line| line.starts_with("leaktrace_") || line.starts_with("# ")),
                "{page}"
            );
        }
    }

    #[test]
    fn counters_end_in_total_and_units_are_declared() {
        let text = page(&view(), 1, Format::Text);
        assert!(text.contains("# TYPE leaktrace_target_freed_bytes_total counter\n"));
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
        let open = page(&view(), 1, Format::OpenMetrics);
        assert!(open.contains(
            "# TYPE leaktrace_target_freed_bytes counter\n# UNIT leaktrace_target_freed_bytes bytes\n"
        ));
        assert!(open.contains("\nleaktrace_target_freed_bytes_total{pid=\"7\""));
        assert!(open.ends_with("# EOF\n"));
        for loss in ["blocks_full", "sites_full", "events_dropped", "lost_returns"] {
            assert!(text.contains(&format!("leaktrace_losses_total{{cause=\"{loss}\"}} 0")), "{loss}");
        }
    }

    #[test]
    fn openmetrics_is_sent_only_when_asked_for() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for other in ["", "*/*", "text/plain", "application/openmetrics-text;q=0", "application/json"] {
            assert_eq!(Format::accepted(other), Format::Text, "{other}");
        }
    }
}
