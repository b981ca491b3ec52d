//! From the arguments of `run` and `attach` to trace options, selection and schedule.
use std::io::{BufRead as _, BufReader};

use anyhow::{Result, anyhow, bail};

use super::args::{Link, ModeArg, TraceArgs, Unwind};
use crate::{
    agent::options::{TraceOptions, UnwindMode},
    attach::{links::LinkKind, object::Sizes, plan::EmulatedClasses},
    discover,
};

/// How to trace; `mode` is the subcommand's default.
///
/// # Errors
/// When options exclude each other or do not parse.
pub(super) fn options(args: &TraceArgs, mode: ModeArg) -> Result<TraceOptions> {
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
    Ok(TraceOptions {
        discover: discover::options::Options { objects: args.objects.clone(), prefixes, functions },
        follow: !args.no_follow,
        holds_children: false,
        sample_interval_bytes: args.sample_interval_bytes(mode),
        min_size_bytes: args.min_size.unwrap_or(0),
        max_size_bytes: args.max_size.unwrap_or(u64::MAX),
        stack_depth: if args.combined_only { 0 } else { args.stack_depth },
        unwind: match args.unwind {
            Unwind::Auto => UnwindMode::Auto,
            Unwind::Cfi => UnwindMode::Tables,
            Unwind::Fp => UnwindMode::FramePointers,
        },
        trace_calls: args.trace,
        max_blocks: u32::try_from(args.max_blocks)?,
        link: args.link.map(|link| match link {
            Link::Session => LinkKind::Session,
            Link::Multi => LinkKind::Multi,
            Link::Perf => LinkKind::Perf,
        }),
        probe_offset_zero: args.probe_offset_zero,
        verify_unwind: args.verify_unwind,
        emulated: EmulatedClasses::COMMON,
        sizes: Sizes { sites: u32::try_from(args.max_sites)?, ..defaults },
        debug: args.debug,
        debug_dirs: args.debug_dirs.clone(),
        debuginfod_urls: args.debuginfod.iter().filter(|url| !url.is_empty()).cloned().collect(),
    })
}

/// Forwards what the kernel programs log to `tracing`, with --debug.
pub(super) fn forward_kernel_log(tracer: &mut crate::agent::tracer::Tracer) {
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
