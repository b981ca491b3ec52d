//! `leaktrace snapshot`: running processes watched for a while, and what was seen kept in a file.
use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    args::{ModeArg, SnapshotArgs},
    attach::say,
    files::{self, WithFile},
    output::{Output, Stream},
    trace,
};
use crate::agent::{
    clock,
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
    trace::check_pid_namespace()?;
    let options = trace::options(&args.trace, ModeArg::Sampled)?;
    for pid in &args.pids {
        crate::discover::process::inspect(*pid)?;
    }
    let path = match &args.trace.output {
        Some(path) => path.clone(),
        None => default_name(&args.pids),
    };
    files::check_folder(&path)?;
    let selection = args.trace.selection();
    let mut tracer = Tracer::new(options, files::selection(&args.trace, true))?;
    for pid in &args.pids {
        tracer.add(*pid, None, false).with_context(|| format!("process {pid} cannot be traced"))?;
        if let Some(line) = tracer.describe(*pid)
            && !args.trace.quiet
        {
            say(&line, tracer.link().name());
        }
    }
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

/// Says what, which process and when.
fn default_name(pids: &[u32]) -> PathBuf {
    let time = crate::model::units::file_time(clock::wall_ns());
    let pids: Vec<String> = pids.iter().take(5).map(u32::to_string).collect();
    PathBuf::from(format!("leaktrace-{}-{time}.pb.gz", pids.join("-")))
}
