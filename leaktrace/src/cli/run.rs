//! `leaktrace run`: a program from its first allocation to its end, and the verdict on it.
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{
    args::RunArgs,
    choices::ModeArg,
    files::{self, WithFile},
    output::{Output, Stream},
    trace,
};
use crate::{
    agent::{
        launch,
        session::{Outcome, Report as _, Schedule, Session},
        tracer::{Tracer, summary},
    },
    analyse::{
        gate::{Ending, Gate, Rules},
        suppressions::Suppressions,
    },
    export::file,
    model::{sites::Selection, snapshot::Snapshot, verdict::NOT_KNOWN},
};

/// Traces the program; the exit code is that of the verdict.
///
/// # Errors
/// When a file that was asked for cannot be read; when the report cannot be written.
pub(super) async fn run(args: &RunArgs) -> Result<u8> {
    let rules = rules(args)?;
    trace::check_pid_namespace()?;
    let mut options = trace::options(&args.trace, ModeArg::Exact)?;
    options.holds_children = true;
    // All its libraries are new, and what they allocate at their start comes before their tables.
    options.sizes.copies = 32;
    let file = args.trace.snapshot.clone();
    if let Some(path) = &file {
        files::check_folder(path)?;
    }
    let is_gated = args.fail_on_leak.is_some();
    let output = Output::open(&args.trace, Stream::Stderr)?;
    let mut output = WithFile::new(output, file.clone(), &args.trace.selection());
    if is_gated {
        output = output.cutting();
    }
    let follow = options.follow;
    let mut tracer = match Tracer::new(options, selection(args)) {
        Ok(tracer) => tracer,
        Err(error) => return not_started(rules, &error, &mut output),
    };
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
            let session = Session::new(&mut tracer, Some(launched), schedule, &mut output);
            session.gated(Gate::new(rules)).run().await
        })
        .await?;
    Ok(exit_code(&outcome, is_gated))
}

/// Where the exit code depends on all call stacks, all of them are looked at.
fn selection(args: &RunArgs) -> Selection {
    files::selection(&args.trace, args.trace.snapshot.is_some() || args.fail_on_leak.is_some())
}

/// What decides, from the files that were given.
fn rules(args: &RunArgs) -> Result<Rules> {
    let mut text = String::new();
    for path in &args.suppressions {
        let list = read_suppressions(path)?;
        Suppressions::parse(&list)
            .with_context(|| format!("{} is no list of suppressions", path.display()))?;
        text.push_str(&list);
        text.push('\n');
    }
    let baseline = args.baseline.as_deref().map(files::read).transpose()?;
    Ok(Rules { limit_bytes: args.fail_on_leak, suppressions: Suppressions::parse(&text)?, baseline })
}

fn read_suppressions(path: &Path) -> Result<String> {
    let bytes = file::read_bounded(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// This host does not let anything be traced: nothing is known of the program, and it is not started.
fn not_started(rules: Rules, error: &anyhow::Error, output: &mut WithFile<Output>) -> Result<u8> {
    super::failed(error, None);
    let mut gate = Gate::new(rules);
    let reason = format!("{error:#}");
    gate.doubt(reason.clone());
    let mut snapshot = Snapshot { last: true, notes: vec![reason], ..summary::nothing() };
    let verdict = gate.verdict(&mut snapshot, Ending::NotStarted);
    let code = verdict.exit_code;
    snapshot.verdict = Some(verdict);
    output.snapshot(&snapshot).context("writing the report")?;
    Ok(code)
}

/// Where the session did not come to a verdict, because nobody reads the report any more, there is none.
fn exit_code(outcome: &Outcome, is_gated: bool) -> u8 {
    match (&outcome.verdict, outcome.ending()) {
        (Some(verdict), _) => verdict.exit_code,
        (None, Ending::Code(code)) if code != 0 || !is_gated => code,
        (None, _) if is_gated => NOT_KNOWN,
        (None, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_verdict_a_gate_does_not_pass() {
        let outcome = |status| Outcome { status, verdict: None };
        assert_eq!(exit_code(&outcome(None), true), NOT_KNOWN);
        assert_eq!(exit_code(&outcome(Some(0)), true), NOT_KNOWN);
        assert_eq!(exit_code(&outcome(Some(7 << 8)), true), 7);
        assert_eq!(exit_code(&outcome(None), false), 0);
        assert_eq!(exit_code(&outcome(Some(7 << 8)), false), 7);
    }
}
