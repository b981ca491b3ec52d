//! Snapshot files: what is read back equals what was shown live, other programs read them, and neither a kill nor a
//! full disk leaves anything but whole files.
use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace::{self, PATIENCE},
    lines::{Lines, poll},
    report::Report,
    scenario::Case,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The end of the names of files that are being written.
const UNFINISHED: &str = ".leaktrace-tmp";

fn said(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {errors}", output.status);
    Ok(output)
}

fn text(command: &mut Command) -> Result<String> {
    String::from_utf8(said(command)?.stdout).context("not UTF-8")
}

/// A file command, which must succeed.
fn leaktrace_says(words: &[&str], files: &[&Path]) -> Result<String> {
    text(leaktrace::command(words)?.args(files))
}

fn as_json(file: &Path, top: &str) -> Result<String> {
    leaktrace_says(&["report", "--format", "json", "--top", top], &[file])
}

/// A program that leaks 2,176 bytes from three call stacks, run under tracing with a snapshot at its end.
fn snapshot_of_a_run(folder: &Path, name: &str, word: &str) -> Result<PathBuf> {
    let library = compile::fixture("early_library.c", Build::Library, &[])?;
    let program = compile::fixture("early.c", Build::Gcc, &[&library])?;
    let file = folder.join(name);
    let mut command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(folder.join("live.json")).arg("--snapshot").arg(&file).arg("--").arg(program).arg(word);
    said(&mut command)?;
    Ok(file)
}

#[test]
fn a_file_of_a_run_equals_the_live_report() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = snapshot_of_a_run(folder.path(), "run.pb.gz", "leaky")?;
    let live = fs::read_to_string(folder.path().join("live.json"))?;
    let last = live.lines().last().context("no live report")?;
    ensure!(as_json(&file, "0")?.trim_end() == last, "the file differs from the live report");
    let report = Report::parse(last)?;
    let target = report.targets.first().context("no target")?;
    ensure!(target.outstanding_bytes == 745 + 945 + 486, "not what the program leaks");
    Ok(())
}

#[test]
fn a_file_holds_all_call_stacks_although_few_are_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("attach.pb.gz");
    let path = file.to_string_lossy().into_owned();
    let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?).flags(&[
        "--top",
        "3",
        "--snapshot",
        &path,
        "--sort",
        "count",
    ]);
    let mut fixture = case.start(false)?;
    let mut leaktrace = case.attach(&fixture)?;
    let ledger = fixture.act()?;
    leaktrace.signal(libc::SIGINT)?;
    let (reports, status) = leaktrace.finish()?;
    ensure!(status.success(), "ended with {status}: {}", leaktrace.errors());
    let shown = reports.last().and_then(|report| report.target(fixture.pid())).context("no last report")?;
    ensure!(shown.sites.len() == 3, "{} call stacks were shown", shown.sites.len());
    let whole = Report::parse(&as_json(&file, "0")?)?;
    case.judge(&ledger, &whole, fixture.pid()).map_err(anyhow::Error::msg)?;
    let cut: serde_json::Value = serde_json::from_str(&leaktrace_says(
        &["report", "--format", "json", "--top", "3", "--sort", "count"],
        &[&file],
    )?)?;
    let ids: Vec<_> = shown.sites.iter().map(|site| site.id.as_str()).collect();
    let again: Vec<_> = cut["targets"][0]["sites"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|site| site["id"].as_str())
        .collect();
    ensure!(ids == again, "{ids:?} were shown live, {again:?} from the file");
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

/// Starts `leaktrace snapshot` and waits until it traces.
fn start_snapshot(pid: u32, file: &Path, duration: &str) -> Result<Child> {
    let pid = pid.to_string();
    let words = ["snapshot", "--mode", "exact", "-p", &pid, "--duration", duration];
    let mut command = leaktrace::command(&words)?;
    command.arg("-o").arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let errors = Lines::new("leaktrace", child.stderr.take().context("no pipe")?);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match errors.next_before(deadline)? {
            Some(line) if line.contains("tracing") => break,
            Some(_) => {}
            None => bail!("leaktrace ended before it traced"),
        }
    }
    // The rest is read, so that the pipe does not break or fill.
    std::thread::spawn(move || errors.rest(Instant::now() + PATIENCE));
    Ok(child)
}

#[test]
fn a_snapshot_of_a_running_program_equals_its_ledger() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("calls.pb.gz");
    let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?);
    let mut fixture = case.start(false)?;
    let child = start_snapshot(fixture.pid(), &file, "60s")?;
    let ledger = fixture.act()?;
    let pid = i32::try_from(child.id())?;
    // SAFETY: the child has not been waited for, so that the pid is still its own.
    ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0, "leaktrace could not be interrupted");
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ended with {}", output.status);
    let named = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    ensure!(Path::new(&named) == file, "it printed {named:?} and not the name of the file");
    let report = Report::parse(&as_json(&file, "0")?)?;
    case.judge(&ledger, &report, fixture.pid()).map_err(anyhow::Error::msg)?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

/// `go tool pprof`, without a look at the programs themselves.
fn pprof(flags: &[&str], files: &[&Path]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-symbolize=none"]).args(flags).args(files);
    command.env("PPROF_TMPDIR", folder.path()).env("HOME", folder.path());
    text(&mut command).context("this needs Go and graphviz: run `cargo xtask setup --tests`")
}

#[test]
fn gos_pprof_reads_the_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let leaky = snapshot_of_a_run(folder.path(), "leaky.pb.gz", "leaky")?;
    let clean = snapshot_of_a_run(folder.path(), "clean.pb.gz", "clean")?;
    let report = Report::parse(&as_json(&leaky, "0")?)?;
    let target = report.targets.first().context("no target")?;
    // Without the mappings of the dynamic linker.
    const HEAP: &str = "-tagfocus=kind=heap";
    let top = pprof(&["-top", "-unit=b", HEAP], &[&leaky])?;
    ensure!(top.contains("Type: inuse_space"), "bytes not freed are not what pprof shows first: {top}");
    ensure!(top.contains("accounting for 2176B,"), "{top}");
    ensure!(top.lines().filter(|line| line.contains('{')).count() == 0, "noise above the report: {top}");
    let raw = pprof(&["-raw"], &[&leaky])?;
    for site in &target.sites {
        let values =
            [site.outstanding_bytes, site.outstanding_count, site.allocated_bytes, site.allocated_count];
        let has = |line: &str| {
            let mut words = line.split(':').next().unwrap_or_default().split_ascii_whitespace();
            values.iter().all(|value| words.next().and_then(|word| word.parse().ok()) == Some(*value))
        };
        ensure!(raw.lines().any(has), "no sample {values:?} in {raw}");
        ensure!(raw.contains(&format!("site:[{}]", site.id)), "{} is not in {raw}", site.id);
        let function = site.frames.iter().find_map(|frame| frame.function.as_deref()).context("no name")?;
        ensure!(raw.contains(function), "{function} is not in {raw}");
    }
    let build_ids: Vec<_> =
        target.sites.iter().flat_map(|site| &site.frames).filter_map(|f| f.build_id.as_ref()).collect();
    ensure!(!build_ids.is_empty() && build_ids.iter().all(|id| raw.contains(id.as_str())), "{raw}");
    let grown = pprof(&["-top", "-unit=b", HEAP, "-diff_base"], &[&clean, &leaky])?;
    ensure!(grown.contains("accounting for 2176B,"), "{grown}");
    let shrunk = pprof(&["-top", "-unit=b", HEAP, "-diff_base"], &[&leaky, &clean])?;
    ensure!(shrunk.contains("accounting for -2176B,"), "{shrunk}");
    let focused = pprof(&["-top", "-unit=b", &format!("-tagfocus=pid={}", target.pid)], &[&leaky])?;
    ensure!(focused.contains("leak_in_library"), "{focused}");
    let dot = pprof(&["-dot"], &[&leaky])?;
    ensure!(dot.starts_with("digraph"), "{dot}");
    let svg = folder.path().join("graph.svg");
    pprof(&["-svg", "-output", &svg.to_string_lossy()], &[&leaky])?;
    ensure!(fs::read_to_string(&svg)?.contains("</svg>"), "no picture");
    Ok(())
}

/// What of a file's writing is left in its folder.
fn unfinished(folder: &Path) -> Result<usize> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|name| name.ends_with(UNFINISHED)).count())
}

/// Kills it a while after it began to write, or lets it end.
fn kill_while_it_writes(mut child: Child, folder: &Path, delay: Duration) -> Result<()> {
    poll("it writes or ends", PATIENCE, || {
        Ok((unfinished(folder)? > 0 || child.try_wait()?.is_some()).then_some(()))
    })?;
    let until = Instant::now() + delay;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Like [`poll`], without a pause: what is waited for lasts for less than one.
fn kill_at_once(mut child: Child, folder: &Path, delay: Duration) -> Result<()> {
    while unfinished(folder)? == 0 && child.try_wait()?.is_none() {
        std::hint::spin_loop();
    }
    let until = Instant::now() + delay;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn a_kill_at_any_moment_leaves_only_whole_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sources = [
        snapshot_of_a_run(folder.path(), "leaky.pb.gz", "leaky")?,
        snapshot_of_a_run(folder.path(), "clean.pb.gz", "clean")?,
    ];
    let contents = [fs::read(&sources[0])?, fs::read(&sources[1])?];
    ensure!(contents[0] != contents[1], "two files with the same content prove nothing");
    let work = folder.path().join("work");
    fs::create_dir(&work)?;
    let file = work.join("a.pb.gz");
    let mut hits = 0;
    for round in 0..200_u32 {
        let source = &sources[round as usize % 2];
        let mut command = leaktrace::command(&["convert", "--to", "pprof", "-o"])?;
        command.arg(&file).arg(source).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        kill_at_once(command.spawn()?, &work, Duration::from_micros(u64::from(round) * 3))?;
        hits += unfinished(&work)?;
        if file.exists() {
            let found = fs::read(&file)?;
            ensure!(contents.contains(&found), "round {round}: {} bytes that are neither file", found.len());
        }
    }
    ensure!(hits > 0, "no kill came while a file was being written");
    // The next writer takes away what the killed ones left.
    leaktrace_says(&["convert", "--to", "pprof", "-o"], &[&file, &sources[0]])?;
    ensure!(unfinished(&work)? == 0 && fs::read(&file)? == contents[0], "something was left");
    Ok(())
}

#[test]
fn a_killed_snapshot_leaves_the_earlier_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("a.pb.gz");
    let fixture = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?).start(false)?;
    let mut first = start_snapshot(fixture.pid(), &file, "100ms")?;
    ensure!(first.wait()?.success(), "no first snapshot");
    for round in 0..8 {
        let child = start_snapshot(fixture.pid(), &file, "50ms")?;
        kill_while_it_writes(child, folder.path(), Duration::from_micros(round * 50))?;
        let report = Report::parse(&as_json(&file, "0")?)?;
        ensure!(report.target(fixture.pid()).is_some(), "round {round}: not a snapshot of the process");
    }
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

/// A file system of one page. It is unmounted when this is dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(folder: &Path) -> Result<Tiny> {
        said(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"]).arg(folder))?;
        Ok(Tiny(folder.to_path_buf()))
    }

    fn set_read_only(&self) -> Result<()> {
        said(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0)).map(drop)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_or_read_only_disk_is_an_error_that_leaves_the_earlier_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = snapshot_of_a_run(folder.path(), "leaky.pb.gz", "leaky")?;
    let mounted = folder.path().join("tiny");
    fs::create_dir(&mounted)?;
    let tiny = Tiny::mount(&mounted)?;
    let file = mounted.join("a.pb.gz");
    fs::copy(&source, &file)?;
    let before = fs::read(&file)?;
    for reason in ["No space left", "Read-only"] {
        let mut command = leaktrace::command(&["run", "--snapshot"])?;
        command.arg(&file).args(["--", "/bin/true"]).stdin(Stdio::null());
        let output = command.output()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "ended with {}: {errors}", output.status);
        ensure!(errors.contains(reason) && errors.contains("a.pb.gz"), "{errors}");
        ensure!(fs::read(&file)? == before, "the earlier file has changed");
        ensure!(unfinished(&mounted)? == 0, "something was left");
        tiny.set_read_only()?;
    }
    Ok(())
}
