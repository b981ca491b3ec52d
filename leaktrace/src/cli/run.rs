//! `leaktrace run`: a program from its first allocation to its end.
use anyhow::Result;

use super::{
    LEAKED,
    args::RunArgs,
    choices::ModeArg,
    files::{self, WithFile},
    output::{Output, Stream},
    trace,
};
use crate::agent::{
    launch,
    session::{Outcome, Schedule, Session},
    tracer::Tracer,
};

/// Traces the program; the exit code is the program's own, or [`LEAKED`].
///
/// # Errors
/// When the program cannot be traced; when the report cannot be written.
pub(super) async fn run(args: &RunArgs) -> Result<u8> {
    trace::check_pid_namespace()?;
    let mut options = trace::options(&args.trace, ModeArg::Exact)?;
    options.holds_children = true;
    // All its libraries are new, and what they allocate at their start comes before their tables.
    options.sizes.copies = 32;
    let file = args.trace.snapshot.clone();
    if let Some(path) = &file {
        files::check_folder(path)?;
    }
    let output = Output::open(&args.trace, Stream::Stderr)?;
    let mut output = WithFile::new(output, file, &args.trace.selection());
    let follow = options.follow;
    let mut tracer = Tracer::new(options, files::selection(&args.trace, args.trace.snapshot.is_some()))?;
    let launched = match launch::launch(&args.program, follow) {
        Ok(launched) => launched,
        Err(error) => return Ok(super::failed(&error, launch::exit_code(&error))),
    };
    let schedule =
        Schedule { interval: args.trace.interval, count: args.trace.count, duration: args.trace.duration };
    let local = tokio::task::LocalSet::new();
    let outcome = local
        .run_until(async {
            if args.trace.debug {
                trace::forward_kernel_log(&mut tracer);
            }
            Session::new(&mut tracer, Some(launched), schedule, &mut output).run().await
        })
        .await?;
    Ok(exit_code(&outcome, args.fail_on_leak))
}

/// 128 + signal for a program that was killed, as shells have it; 0 for one that still runs.
fn exit_code(outcome: &Outcome, fail_on_leak: Option<u64>) -> u8 {
    if fail_on_leak.is_some_and(|limit| outcome.held_at_exit_bytes > limit) {
        return LEAKED;
    }
    let Some(status) = outcome.status else { return 0 };
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: i32, held_at_exit_bytes: u64) -> Outcome {
        Outcome { status: Some(status), held_at_exit_bytes }
    }

    #[test]
    fn the_exit_code_is_the_programs_own() {
        assert_eq!(exit_code(&outcome(0, 100), None), 0);
        assert_eq!(exit_code(&outcome(7 << 8, 100), None), 7);
        assert_eq!(exit_code(&outcome(libc::SIGSEGV, 0), None), 139);
    }

    #[test]
    fn a_leak_above_the_limit_is_3() {
        assert_eq!(exit_code(&outcome(0, 100), Some(99)), 3);
        assert_eq!(exit_code(&outcome(0, 100), Some(100)), 0);
        assert_eq!(exit_code(&outcome(7 << 8, 0), Some(0)), 7);
    }
}
