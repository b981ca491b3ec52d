//! `leaktrace snapshot`: running processes watched for a while, and what was seen kept in a file.
use std::time::Duration;

use anyhow::{Result, bail};

use super::{
    args::SnapshotArgs,
    choices::ModeArg,
    files::{self, WithFile},
    output::{Output, Stream},
    remote, trace,
};
use crate::agent::{
    session::{Schedule, Session},
    tracer::Tracer,
};

/// How long to watch.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// Summaries meanwhile, which tell steady growth from a leap.
const SUMMARIES: u32 = 10;
/// Time between summaries at the least.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Traces, writes the file and prints its name; a summary goes to standard error.
///
/// # Errors
/// When a process cannot be traced, or the file not be written.
pub(super) async fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    if args.trace.interval.is_some() || args.trace.count.is_some() || args.trace.trace {
        bail!(
            "a snapshot is taken once, at the end of --duration: --interval, --count and --trace are attach's"
        );
    }
    if args.trace.snapshot.is_some() {
        bail!("--snapshot is attach's: say -o FILE");
    }
    if let Some(address) = &args.agent {
        return of_agent(args, address);
    }
    if !args.targets.has_selectors() && args.targets.pids.is_empty() {
        bail!("say which processes (-p PID, --container NAME, …), or which agent to ask (--agent URL)");
    }
    trace::check_pid_namespace()?;
    let orders = args.targets.orders(&args.bounds)?;
    let by_orders = args.targets.has_selectors().then_some(&orders);
    let mut options = trace::options_for(&args.trace, ModeArg::Sampled, by_orders)?;
    for pid in &args.targets.pids {
        crate::discover::process::inspect(*pid)?;
    }
    trace::suit_link(&mut options, &args.targets.pids);
    let path = match &args.trace.output {
        Some(path) => path.clone(),
        None => args.targets.file_name(),
    };
    files::check_folder(&path)?;
    let selection = args.trace.selection();
    let mut tracer = Tracer::new(options, files::selection(&args.trace, true))?;
    trace::start(&mut tracer, &args.targets, orders, args.trace.quiet)?;
    let shown = Output::summary(&args.trace, Stream::Stderr);
    let mut report = WithFile::new(shown, Some(path.clone()), &selection).only_last();
    let duration = args.trace.duration.unwrap_or(DEFAULT_DURATION);
    let interval = (duration / SUMMARIES).max(MIN_INTERVAL);
    let schedule = Schedule { interval: Some(interval), count: None, duration: Some(duration) };
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            if args.trace.debug {
                trace::forward_kernel_log(&mut tracer);
            }
            Session::new(&mut tracer, None, schedule, &mut report).run().await
        })
        .await?;
    super::print(format!("{}\n", path.display()).as_bytes())
}

/// What a running agent holds; it has been watching already.
fn of_agent(args: &SnapshotArgs, address: &str) -> Result<u8> {
    if args.targets.has_selectors() || args.trace.duration.is_some() {
        bail!("an agent is asked for what it holds now: --agent goes with -p and -o only");
    }
    let path = match &args.trace.output {
        Some(path) => path.clone(),
        None => args.targets.file_name(),
    };
    files::check_folder(&path)?;
    remote::snapshot(address, &args.targets.pids, &path)?;
    super::print(format!("{}\n", path.display()).as_bytes())
}
