//! `leaktrace attach`: live summaries of running processes.
use anyhow::{Context as _, Result};

use super::{
    args::{AttachArgs, ModeArg},
    files::{self, WithFile},
    output::{Output, Stream},
    trace,
};
use crate::{
    agent::{
        session::{Schedule, Session},
        tracer::Tracer,
    },
    attach::{host::Host, preflight},
};

/// Traces until the targets are gone, the schedule is over or a signal comes. The exit code is 0.
///
/// # Errors
/// When a process cannot be traced, before anything is attached to it; when the report cannot be written.
pub(super) async fn attach(args: &AttachArgs) -> Result<u8> {
    trace::check_pid_namespace()?;
    let options = trace::options(&args.trace, ModeArg::Sampled)?;
    let file = args.trace.snapshot.clone();
    if let Some(path) = &file {
        files::check_folder(path)?;
    }
    let output = Output::open(&args.trace, Stream::Stdout)?;
    let mut output = WithFile::new(output, file, &args.trace.selection());
    preflight::demand(&Host::read())?;
    for pid in &args.pids {
        crate::discover::process::inspect(*pid)?;
    }
    let mut tracer = Tracer::new(options, files::selection(&args.trace, args.trace.snapshot.is_some()))?;
    for pid in &args.pids {
        tracer.add(*pid, None, false).with_context(|| format!("process {pid} cannot be traced"))?;
        if let Some(line) = tracer.describe(*pid)
            && !args.trace.quiet
        {
            say(&line, tracer.link().name());
        }
    }
    let local = tokio::task::LocalSet::new();
    let schedule =
        Schedule { interval: Some(args.interval()), count: args.count(), duration: args.trace.duration };
    local
        .run_until(async {
            if args.trace.debug {
                trace::forward_kernel_log(&mut tracer);
            }
            Session::new(&mut tracer, None, schedule, &mut output).run().await
        })
        .await?;
    Ok(0)
}

#[expect(clippy::print_stderr, reason = "tells that tracing has begun; the report has its own stream")]
pub(super) fn say(line: &str, link: &str) {
    eprintln!("leaktrace: tracing {} by {link} probes", crate::render::escape::escape(line));
}
