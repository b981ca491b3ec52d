//! How leaktrace ends and where its report goes: interrupted, into a closed pipe, into a file, after a number of
//! summaries or a time; the other shapes of the report.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace,
    lines::{Lines, poll},
    report::Report,
    scenario::Case,
};
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    time::Instant,
};

fn case() -> Result<Case> {
    Ok(Case::new(compile::fixture("calls.c", Build::Gcc, &[])?))
}

#[test]
fn an_interrupt_brings_a_complete_last_summary() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let case = case()?.flags(&["--interval", "2s"]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        // The fixture acts right after a summary and the signal follows at once: the next summary is not due yet.
        let ledger = fixture.act()?;
        leaktrace.signal(signal)?;
        let (reports, status) = leaktrace.finish()?;
        ensure!(status.success(), "ended with {status}: {}", leaktrace.errors());
        let last = reports.last().context("no summary after the signal")?;
        case.judge(&ledger, last, fixture.pid()).map_err(anyhow::Error::msg)?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

#[test]
fn a_closed_pipe_ends_it_quietly() -> Result<()> {
    let case = case()?;
    let fixture = case.start(false)?;
    let pid = fixture.pid().to_string();
    for format in ["json", "text"] {
        let mut command =
            leaktrace::command(&["attach", "--format", format, "--interval", "50ms", "-p", &pid])?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut first = String::new();
        let mut pipe = BufReader::new(child.stdout.take().context("no pipe")?);
        pipe.read_line(&mut first)?;
        ensure!(!first.is_empty(), "{format}: no output");
        drop(pipe);
        let status = poll("the end after a closed pipe", leaktrace::PATIENCE, || Ok(child.try_wait()?))?;
        let mut errors = String::new();
        child.stderr.take().context("no pipe")?.read_to_string(&mut errors)?;
        ensure!(
            !errors.contains("panicked") && !errors.to_lowercase().contains("broken pipe"),
            "{format}: {errors}"
        );
        ensure!(status.code().is_some(), "{format}: ended with {status}");
    }
    Ok(())
}

#[test]
fn the_report_goes_to_a_file_when_asked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let case = case()?;
    let fixture = case.start(false)?;
    let pid = fixture.pid().to_string();
    let path = file.to_string_lossy();
    let said = leaktrace::output(&[
        "attach",
        "-p",
        &pid,
        "--format",
        "json",
        "-o",
        &path,
        "--interval",
        "50ms",
        "--count",
        "3",
    ])?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    ensure!(said.stdout.is_empty(), "the report went to standard output as well");
    let text = std::fs::read_to_string(&file).context("no report")?;
    ensure!(text.ends_with('\n'), "the last line is cut off");
    let reports = text.lines().map(Report::parse).collect::<Result<Vec<_>>>()?;
    ensure!(reports.len() == 3, "{} summaries instead of 3", reports.len());
    Ok(())
}

#[test]
fn a_count_and_a_duration_end_it() -> Result<()> {
    let case = case()?;
    let fixture = case.start(false)?;
    let pid = fixture.pid().to_string();
    let base = ["attach", "-p", &pid, "--format", "json", "--interval", "100ms"];
    let said = leaktrace::output(&[&base[..], &["--count", "4"]].concat())?;
    ensure!(said.status.success() && said.stdout.iter().filter(|byte| **byte == b'\n').count() == 4);
    let started = Instant::now();
    let said = leaktrace::output(&[&base[..], &["--duration", "1s"]].concat())?;
    ensure!(said.status.success() && started.elapsed().as_secs_f64() >= 1.0, "it did not last a second");
    Ok(())
}

#[test]
fn bccs_positional_interval_and_count_are_understood() -> Result<()> {
    let case = case()?;
    let fixture = case.start(false)?;
    let said =
        leaktrace::output(&["attach", "--format", "json", "-p", &fixture.pid().to_string(), "1", "2"])?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    ensure!(said.stdout.iter().filter(|byte| **byte == b'\n').count() == 2, "not two summaries");
    Ok(())
}

#[test]
fn the_text_report_names_the_leaking_functions() -> Result<()> {
    let mut fixture = case()?.start(false)?;
    let pid = fixture.pid().to_string();
    let words = ["attach", "--format", "text", "--interval", "200ms", "--top", "100", "-p", &pid];
    let mut child = leaktrace::command(&words)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let lines = Lines::new("leaktrace", child.stdout.take().context("no pipe")?);
    let deadline = Instant::now() + leaktrace::PATIENCE;
    ensure!(lines.next_before(deadline)?.is_some(), "no text");
    fixture.act()?;
    let mut wanted = vec!["leak_malloc_large", "leak_calloc", "leak_posix_memalign"];
    while !wanted.is_empty() {
        let line = lines.next_before(deadline)?.with_context(|| format!("the text lacks {wanted:?}"))?;
        ensure!(!line.contains('\u{1b}'), "colours without a terminal: {line}");
        wanted.retain(|name| !line.contains(name));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn single_blocks_are_listed_when_asked() -> Result<()> {
    let case = case()?.flags(&["--show-allocs"]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    leaktrace
        .until_settled("the report equals the ledger", |report| case.judge(&ledger, report, fixture.pid()))?;
    leaktrace.interrupt()?;
    Ok(())
}

#[test]
fn a_size_filter_hides_what_is_outside() -> Result<()> {
    let case = case()?.flags(&["--min-size", "2MiB", "--max-size", "2097155"]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    fixture.act()?;
    // Blocks of 2 MiB + 0 … 3 bytes of `leak_malloc_large`, and none of the other sites.
    leaktrace.until_settled("exactly the blocks within the limits are reported", |report| {
        let target = report.target(fixture.pid()).ok_or("no target")?;
        let (bytes, count) = (target.outstanding_bytes, target.outstanding_count);
        let expected = (4 * 2_097_152 + 6, 4);
        if (bytes, count) == expected { Ok(()) } else { Err(format!("{bytes} bytes in {count} blocks")) }
    })?;
    Ok(())
}

#[test]
fn only_blocks_that_are_older_than_asked_are_shown() -> Result<()> {
    for (older, is_shown) in [("1ms", true), ("1h", false)] {
        let case = case()?.flags(&["--older", older]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        fixture.act()?;
        let held = "leak_malloc_large";
        leaktrace.until_settled("what is shown is as old as asked", |report| {
            let target = report.target(fixture.pid()).ok_or("no target")?;
            let shown = target.sites.iter().filter(|site| site.outstanding_count > 0);
            match (is_shown, shown.clone().any(|site| site.has(held)), shown.count()) {
                (true, true, _) | (false, _, 0) => Ok(()),
                (.., count) => Err(format!("{count} sites")),
            }
        })?;
        leaktrace.interrupt()?;
    }
    Ok(())
}

#[test]
fn sites_come_in_the_order_that_is_asked_for() -> Result<()> {
    for order in ["bytes", "count", "age"] {
        let case = case()?.flags(&["--sort", order]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        let ledger = fixture.act()?;
        leaktrace.until_settled("the sites are in order", |report| {
            case.judge(&ledger, report, fixture.pid())?;
            let sites = &report.target(fixture.pid()).ok_or("no target")?.sites;
            let values: Vec<u64> = sites
                .iter()
                .map(|site| match order {
                    "bytes" => site.outstanding_bytes,
                    "count" => site.outstanding_count,
                    _ => site.oldest_age_ns.unwrap_or(0),
                })
                .collect();
            values
                .is_sorted_by(|first, next| first >= next)
                .then_some(())
                .ok_or_else(|| format!("{values:?}"))
        })?;
        leaktrace.interrupt()?;
    }
    Ok(())
}

#[test]
fn every_call_is_a_line_with_trace() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("calls");
    let program = compile::fixture(
        "early.c",
        Build::Gcc,
        &[&compile::fixture("early_library.c", Build::Library, &[])?],
    )?;
    let mut command = leaktrace::command(&["run", "--trace", "--format", "json", "-o"])?;
    let said = command.arg(&file).arg("--").arg(&program).arg("clean").stdin(Stdio::null()).output()?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let text = std::fs::read_to_string(&file).context("no report")?;
    let calls: Vec<&str> = text.lines().filter(|line| line.contains("leaktrace.call/1")).collect();
    // 30 blocks are allocated and freed.
    ensure!(calls.len() == 60, "{} calls instead of 60", calls.len());
    Ok(())
}
