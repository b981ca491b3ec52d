//! Metrics of targets and of the service, as OpenMetrics 1.0 or as the older text format 0.0.4. The number of series
//! is bounded: of each target the largest sites by their stable ids, the others summed as `site="other"`.
//!
//! Which families there are is here; `family` writes them by prometheus-client, which knows OpenMetrics only, and
//! `classic` turns that into the older format.
use std::{fmt, sync::Arc};

use leaktrace_common::counter::{Class, Counter};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    registry::Registry,
};

use crate::model::{
    service::{MemoryLimit, Severity, View, Work, key},
    site_id::base_name,
    snapshot::{ContainerView, Mode, SiteKind, SiteView, TargetView, Totals, WallNs},
};

mod classic;
mod family;

use family::{Families, Labels, Text, Value};

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
///
/// # Errors
/// When the encoder refuses a value; none is known that it refuses.
pub fn page(view: Arc<View>, top: usize, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { view, top }));
    let mut open = String::new();
    text::encode(&mut open, &registry)?;
    Ok(match format {
        Format::OpenMetrics => open,
        Format::Text => classic::page(&open),
    })
}

/// What one scrape sees.
#[derive(Debug)]
struct Scrape {
    view: Arc<View>,
    top: usize,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        targets(&mut families, &self.view)?;
        sites(&mut families, &self.view, self.top)?;
        service(&mut families, &self.view)
    }
}

/// The labels of a target, and more of them. An empty container is none.
fn labels<'a>(
    target: &'a TargetView,
    more: impl IntoIterator<Item = (&'static str, Text<'a>)>,
) -> Labels<'a> {
    let container = target.container.as_ref().map_or("", ContainerView::label);
    let own = [
        ("pid", target.pid.to_string().into()),
        ("comm", target.comm.as_str().into()),
        ("container", container.into()),
    ];
    own.into_iter().chain(more).collect()
}

fn targets(families: &mut Families<'_>, view: &View) -> fmt::Result {
    target_gauges(families, view)?;
    let mut counter = |name: &str, help: &str, of: &dyn Fn(&Totals) -> u64| {
        let samples = view.live().map(|target| (labels(target, []), of(&target.totals).into()));
        families.counter(name, help, samples)
    };
    counter("leaktrace_target_allocated_bytes", "Heap bytes allocated.", &|totals| totals.allocated_bytes)?;
    counter("leaktrace_target_allocated_blocks", "Heap blocks allocated.", &|totals| totals.allocated_count)?;
    counter("leaktrace_target_freed_bytes", "Heap bytes freed of those.", &|totals| totals.freed_bytes)?;
    counter("leaktrace_target_freed_blocks", "Heap blocks freed of those.", &|totals| totals.freed_count)?;
    let losses = view.live().flat_map(|target| {
        let cause = |(cause, amount)| (labels(target, [("cause", Text::from(cause))]), Value::Whole(amount));
        target.losses.iter().map(|(name, amount)| (name.as_str(), *amount)).map(cause)
    });
    families.counter(
        "leaktrace_target_losses",
        "What was not recorded of a target or only approximately, by cause.",
        losses,
    )
}

fn target_gauges(families: &mut Families<'_>, view: &View) -> fmt::Result {
    let mut gauge = |name: &str, help: &str, of: &dyn Fn(&TargetView) -> Option<Value>| {
        families.gauge(name, help, view.live().filter_map(|target| Some((labels(target, []), of(target)?))))
    };
    gauge(
        "leaktrace_target_outstanding_bytes",
        "Heap bytes allocated since tracing began and not freed.",
        &|target| Some(target.totals.outstanding_bytes.into()),
    )?;
    gauge("leaktrace_target_outstanding_blocks", "Heap blocks not freed.", &|target| {
        Some(target.totals.outstanding_count.into())
    })?;
    gauge(
        "leaktrace_target_outstanding_error_bytes",
        "From the outstanding bytes to the farther end of their 95 % interval; 0 in exact mode.",
        &|target| Some(target.totals.error_bytes.into()),
    )?;
    gauge("leaktrace_target_mapped_bytes", "Bytes mapped by the program itself.", &|target| {
        Some(target.mappings.program_bytes.into())
    })?;
    gauge("leaktrace_target_rss_bytes", "Resident set size.", &|target| target.rss_bytes.map(Value::from))?;
    gauge("leaktrace_target_heap_before_attach_bytes", "Heap from before tracing began.", &|target| {
        target.heap_before_attach_bytes.map(Value::from)
    })?;
    gauge(
        "leaktrace_target_growth_bytes_per_hour",
        "Growth of the outstanding bytes over the window of alerts.growth_window.",
        &|target| view.growth.get(&key(target)).copied().map(Value::from),
    )?;
    gauge(
        "leaktrace_target_overhead_ratio",
        "Share of one core that tracing costs the target, estimated.",
        &|target| target.overhead.as_ref().map(|overhead| overhead.estimated_share.into()),
    )?;
    let limit = |target: &TargetView| view.limits.get(&key(target)).copied();
    gauge("leaktrace_target_memory_limit_bytes", "Memory limit of its cgroup.", &|target| {
        limit(target).map(|limit| limit.limit_bytes.into())
    })?;
    gauge(
        "leaktrace_target_memory_limit_used_bytes",
        "Memory charged to the cgroup of the limit, droppable file pages left out.",
        &|target| limit(target).map(|limit| limit.used_bytes.into()),
    )?;
    gauge("leaktrace_target_memory_limit_used_ratio", "Used share of the limit.", &|target| {
        limit(target).as_ref().map(MemoryLimit::share).map(Value::from)
    })?;
    gauge("leaktrace_target_findings", "Call stacks that seem to leak.", &|target| {
        Some(target.sites.iter().filter(|site| site.finding.is_some()).count().into())
    })?;
    gauge(
        "leaktrace_target_traced_since_timestamp_seconds",
        "When tracing of the process began.",
        &|target| Some(seconds(target.since).into()),
    )
}

fn seconds(time: WallNs) -> f64 {
    time as f64 / 1e9
}

/// The largest sites have series of their own.
fn sites(families: &mut Families<'_>, view: &View, top: usize) -> fmt::Result {
    families.gauge(
        "leaktrace_site_outstanding_bytes",
        "Bytes not freed by call stack; the call stacks that hold less are summed as site=\"other\".",
        view.live().flat_map(|target| sites_of(target, top)),
    )
}

fn sites_of<'a>(target: &'a TargetView, top: usize) -> Vec<(Labels<'a>, Value)> {
    let mut largest: Vec<&SiteView> = target.sites.iter().collect();
    largest.sort_by(|a, b| {
        b.totals.outstanding_bytes.cmp(&a.totals.outstanding_bytes).then_with(|| a.id.cmp(&b.id))
    });
    let (shown, rest) = largest.split_at(top.min(largest.len()));
    let other = rest
        .iter()
        .map(|site| site.totals.outstanding_bytes)
        .fold(target.cut_totals.outstanding_bytes, u64::saturating_add);
    let sample = |site: Text<'a>, kind: Text<'a>, function: Text<'a>, bytes: u64| {
        let own: [(_, Text<'a>); 3] = [("site", site), ("kind", kind), ("function", function)];
        (labels(target, own), bytes.into())
    };
    let shown = shown.iter().map(|site| {
        sample(
            site.id.as_str().into(),
            kind(site).into(),
            function(site).into(),
            site.totals.outstanding_bytes,
        )
    });
    shown.chain([sample("other".into(), "".into(), "".into(), other)]).collect()
}

fn kind(site: &SiteView) -> &'static str {
    match site.kind {
        SiteKind::Heap => "heap",
        SiteKind::Mapping => "mapping",
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

fn service(families: &mut Families<'_>, view: &View) -> fmt::Result {
    let snapshot = &view.snapshot;
    families.info("leaktrace_build", "The version that runs.", ("version", env!("CARGO_PKG_VERSION")))?;
    let mode = match snapshot.mode {
        Mode::Exact => "exact",
        Mode::Sampled { .. } => "sampled",
        Mode::Growth => "growth",
    };
    families.info("leaktrace_mode", "How allocations are recorded.", ("mode", mode))?;
    let mut one = |name: &str, help: &str, value: Value| families.gauge(name, help, [(Vec::new(), value)]);
    one("leaktrace_targets", "Processes that are traced.", view.live().count().into())?;
    one("leaktrace_agent_rss_bytes", "Resident memory of the agent.", view.own.rss_bytes.into())?;
    one("leaktrace_agent_map_bytes", "Kernel memory of the agent's maps.", view.own.map_bytes.into())?;
    one("leaktrace_agent_open_files", "Open files of the agent.", view.own.open_files.into())?;
    one("leaktrace_agent_cpu_ratio", "Share of one CPU that the agent took.", view.own.cpu_share.into())?;
    one(
        "leaktrace_agent_healthy",
        "1 while the agent works within its limits and can write its files.",
        u64::from(view.faults.is_empty()).into(),
    )?;
    one("leaktrace_agent_started_timestamp_seconds", "When the agent began.", seconds(view.started).into())?;
    one(
        "leaktrace_agent_refreshed_timestamp_seconds",
        "When the last summary was made.",
        seconds(snapshot.time).into(),
    )?;
    families.counter(
        "leaktrace_agent_cpu_seconds",
        "Processor time of the agent.",
        [(Vec::new(), view.own.cpu_seconds.into())],
    )?;
    families.counter(
        "leaktrace_agent_work",
        "What the agent has done, by what it is.",
        Work::ALL.iter().map(|what| (one_label("what", what.name()), view.count(*what).into())),
    )?;
    losses(families, view)?;
    let count = |severity| view.alerts.iter().filter(|alert| alert.severity == severity).count();
    families.gauge(
        "leaktrace_alerts",
        "Active alerts by severity.",
        [Severity::Warning, Severity::Critical]
            .map(|severity| (one_label("severity", severity.name()), count(severity).into())),
    )
}

fn one_label<'a>(name: &'static str, value: &'a str) -> Labels<'a> {
    vec![(name, value.into())]
}

/// Every cause that there can be, and those that this version does not know.
fn losses(families: &mut Families<'_>, view: &View) -> fmt::Result {
    let losses = &view.snapshot.losses;
    let causes = Counter::ALL.iter().filter(|counter| counter.class() != Class::Activity);
    let known = causes.map(|counter| counter.name());
    let known = known.map(|cause| (cause, losses.get(cause).copied().unwrap_or(0)));
    let is_known = |cause: &str| Counter::ALL.iter().any(|counter| counter.name() == cause);
    let others = losses.iter().filter(|(cause, _)| !is_known(cause));
    let others = others.map(|(cause, amount)| (cause.as_str(), *amount));
    families.counter(
        "leaktrace_losses",
        "What was not recorded or only approximately since tracing began, by cause; 0 is good.",
        known.chain(others).map(|(cause, amount)| (one_label("cause", cause), amount.into())),
    )
}

#[cfg(test)]
mod tests;
