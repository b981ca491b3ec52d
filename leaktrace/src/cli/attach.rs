//! `leaktrace attach`: live summaries of running processes.
use anyhow::Result;

use super::{
    args::AttachArgs,
    choices::ModeArg,
    files::{self, WithFile},
    output::{Output, Stream},
    trace,
};
use crate::{
    agent::{
        bans,
        growth::{
            meant::Meant,
            watch::{Watch, Watched},
        },
        orders::Orders,
        session::{Schedule, Session},
        tracer::Tracer,
    },
    attach::{host::Host, preflight},
    discover::selector::Selector,
};

/// Traces until the targets are gone, the schedule is over or a signal comes. The exit code is 0.
///
/// # Errors
/// When a process cannot be traced, before anything is attached to it; when the report cannot be written.
pub(super) async fn attach(args: &AttachArgs) -> Result<u8> {
    trace::check_pid_namespace()?;
    let orders = args.targets.orders(&args.bounds)?;
    let by_orders = args.targets.has_selectors().then_some(&orders);
    let mut options = trace::options_for(&args.trace, ModeArg::Sampled, by_orders)?;
    let watches = args.auto.auto || args.targets.all && options.growth_only;
    // Children would exceed the number of processes that may be sampled at once; they are watched themselves.
    options.follow &= !watches;
    let file = args.trace.snapshot.clone();
    if let Some(path) = &file {
        files::check_folder(path)?;
    }
    let output = Output::open(&args.trace, Stream::Stdout)?;
    let mut output = WithFile::new(output, file, &args.trace.selection());
    preflight::demand(&Host::read())?;
    for pid in &args.targets.pids {
        crate::discover::process::inspect(*pid)?;
    }
    trace::suit_link(&mut options, &args.targets.pids);
    let mut tracer = Tracer::new(options, files::selection(&args.trace, args.trace.snapshot.is_some()))?;
    let watch = if watches {
        tracer.keep_bans(&bans::default_path());
        Some(Watch::new(watched(args, orders), args.auto.options(args.auto.auto && tracer.probes())))
    } else {
        trace::start(&mut tracer, &args.targets, orders, args.trace.quiet)?;
        None
    };
    let local = tokio::task::LocalSet::new();
    let schedule =
        Schedule { interval: Some(args.interval()), count: args.count(), duration: args.trace.duration };
    local
        .run_until(async {
            if args.trace.debug {
                trace::forward_kernel_log(&mut tracer);
            }
            Session::new(&mut tracer, None, schedule, &mut output).watching(watch).run().await
        })
        .await?;
    Ok(0)
}

/// Which processes are watched: those that were given, or all.
fn watched(args: &AttachArgs, mut orders: Orders) -> Watched {
    if !args.targets.has_selectors() && !args.targets.pids.is_empty() {
        return Watched::These(args.targets.pids.clone());
    }
    if orders.selectors.is_empty() {
        orders.selectors.push(Selector::All);
    }
    if orders.selectors.contains(&Selector::All) && orders.exclude.is_empty() {
        Watched::All
    } else {
        Watched::Meant(Box::new(Meant::new(orders)))
    }
}
