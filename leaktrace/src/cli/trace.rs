//! From the arguments of `run` and `attach` to trace options, selection and schedule.
use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    choices::{Link, ModeArg, Unwind},
    target_args::TargetArgs,
    trace_args::TraceArgs,
};
use crate::{
    agent::{
        bans,
        options::{TraceOptions, UnwindMode},
        orders::{DEFAULT_MAX_BLOCKS, Orders},
        tracer::Tracer,
    },
    attach::{links::LinkKind, object::Sizes, plan::EmulatedClasses},
    discover::{self, process},
};

/// Lines about targets at the start.
const MAX_LINES: usize = 20;

/// How to trace; `mode` is the subcommand's default.
///
/// # Errors
/// When options exclude each other or do not parse.
pub(super) fn options(args: &TraceArgs, mode: ModeArg) -> Result<TraceOptions> {
    options_for(args, mode, None)
}

/// The same for targets that come by orders.
///
/// # Errors
/// When options exclude each other or do not parse.
pub(super) fn options_for(args: &TraceArgs, mode: ModeArg, orders: Option<&Orders>) -> Result<TraceOptions> {
    args.check().map_err(|error| anyhow!(error))?;
    let functions = args
        .functions
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<discover::options::FunctionAt>, _>>()?;
    let prefixes = args
        .symbols_prefixes
        .iter()
        .map(|text| discover::options::parse_prefix(text))
        .collect::<Result<Vec<_>, _>>()?;
    for object in &args.objects {
        if let Err(error) = std::fs::metadata(object) {
            bail!("--object {}: {error}", object.display());
        }
    }
    let defaults = Sizes::default();
    let blocks = orders.map_or(TraceOptions::default().max_blocks, |_| DEFAULT_MAX_BLOCKS);
    // Room for the children of targets, and for tables that are kept for them.
    let targets =
        orders.map_or(0, |orders| u32::try_from(orders.max_targets).unwrap_or(u32::MAX).saturating_mul(2));
    Ok(TraceOptions {
        discover: discover::options::Options { objects: args.objects.clone(), prefixes, functions },
        follow: !args.no_follow,
        holds_children: false,
        sample_interval_bytes: args.sample_interval_bytes(mode),
        growth_only: args.effective_mode(mode) == ModeArg::Growth,
        governor: args.governor(mode),
        min_size_bytes: args.min_size.unwrap_or(0),
        max_size_bytes: args.max_size.unwrap_or(u64::MAX),
        stack_depth: if args.combined_only { 0 } else { args.stack_depth },
        unwind: match args.unwind {
            Unwind::Auto => UnwindMode::Auto,
            Unwind::Cfi => UnwindMode::Tables,
            Unwind::Fp => UnwindMode::FramePointers,
        },
        trace_calls: args.trace,
        max_blocks: args.max_blocks.map(u32::try_from).transpose()?.unwrap_or(blocks),
        link: args.link.map(|link| match link {
            Link::Session => LinkKind::Session,
            Link::Multi => LinkKind::Multi,
            Link::Perf => LinkKind::Perf,
        }),
        probe_offset_zero: args.probe_offset_zero,
        verify_unwind: args.verify_unwind,
        emulated: EmulatedClasses::COMMON,
        sizes: Sizes {
            sites: u32::try_from(args.max_sites)?,
            targets: defaults.targets.max(targets),
            slabs: u32::try_from(args.unwind_memory >> 20)?,
            ..defaults
        },
        debug: args.debug,
        debug_dirs: args.debug_dirs.clone(),
        debuginfod_urls: args.debuginfod.iter().filter(|url| !url.is_empty()).cloned().collect(),
    })
}

/// Chooses the link by what the processes need: the other kinds find a process by its first thread, and where that has
/// ended while others go on, only a perf event can be set in one of those.
pub(super) fn suit_link(options: &mut TraceOptions, pids: &[u32]) {
    if pids.iter().any(|pid| process::shown_as(*pid) != *pid) {
        options.link.get_or_insert(LinkKind::Perf);
    }
}

/// Forwards what the kernel programs log to `tracing`, with --debug.
pub(super) fn forward_kernel_log(tracer: &mut Tracer) {
    let _ = tracing_log::LogTracer::init();
    match aya_log::EbpfLogger::init(tracer.kernel_mut().ebpf_mut()) {
        Ok(mut logger) => {
            tokio::task::spawn_local(async move {
                loop {
                    logger.flush();
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the kernel programs' log cannot be read"),
    }
}

/// Whether this process runs in the initial pid namespace, which the kernel programs' pids belong to.
pub(super) fn check_pid_namespace() -> Result<()> {
    let Ok(file) = std::fs::File::open("/proc/self/status") else {
        bail!("/proc is not mounted: leaktrace needs it");
    };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        if let Some(pids) = line.strip_prefix("NSpid:")
            && pids.split_whitespace().count() > 1
        {
            bail!(
                "leaktrace runs in a pid namespace of its own and cannot tell processes apart: run it on the host, \
                 or in a container with the host's pid namespace (docker run --pid=host, hostPID: true)"
            );
        }
    }
    Ok(())
}

/// Traces what the orders mean, pids first: one that cannot be traced is an error, because it was asked for by itself.
///
/// # Errors
/// When a process cannot be traced, or the kernel cannot tell of new ones.
pub(super) fn start(tracer: &mut Tracer, targets: &TargetArgs, orders: Orders, quiet: bool) -> Result<()> {
    for pid in &targets.pids {
        tracer.add(*pid, None, false).with_context(|| format!("process {pid} cannot be traced"))?;
    }
    if targets.has_selectors() {
        let waited_for = orders.describe();
        tracer.keep_bans(&bans::default_path());
        tracer.follow_orders(orders)?;
        if tracer.target_count() == 0 && !quiet {
            say(&format!("waiting for {waited_for}"));
        }
    }
    if quiet {
        return Ok(());
    }
    let how = |line| match tracer.probes() {
        true => format!("tracing {line} by {} probes", tracer.link().name()),
        false => format!("watching {line}"),
    };
    let pids = tracer.pids();
    for line in pids.iter().take(MAX_LINES).filter_map(|pid| tracer.describe(*pid)) {
        say(&how(line));
    }
    if pids.len() > MAX_LINES {
        say(&how(format!("{} more processes", pids.len() - MAX_LINES)));
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "tells that tracing has begun; the report has its own stream")]
fn say(line: &str) {
    eprintln!("leaktrace: {}", crate::render::escape::escape(line));
}
