//! Runs the leaktrace binary and reads its summaries. What they must say is the scenarios' business.
use crate::{
    lines::{Lines, Transcript},
    report::Report,
    root,
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// How long to wait for a summary that says what it must.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary: `LEAKTRACE_BIN`, else the release build.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("LEAKTRACE_BIN")
        .map_or_else(|| root().join("target/release/leaktrace"), PathBuf::from);
    if !path.is_file() {
        bail!("{} is not there: `cargo build --release` first", path.display());
    }
    Ok(path)
}

/// Fails where this process is not root.
pub fn need_root() -> Result<()> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("this test attaches to the kernel and needs root");
    }
    Ok(())
}

/// A command line of leaktrace; `attach` and `snapshot` record every call unless a mode is given, so that sums can be compared, and cost what they cost.
pub fn command(arguments: &[&str]) -> Result<Command> {
    need_root()?;
    let mut command = Command::new(binary()?);
    command.args(arguments).env("NO_COLOR", "1");
    let has_mode = |flag: &&str| matches!(*flag, "--mode" | "--sample-interval" | "--auto");
    let samples = matches!(arguments.first(), Some(&("attach" | "snapshot")));
    if samples && !arguments.iter().any(has_mode) {
        command.args(["--mode", "exact"]);
    }
    // A slow machine must not make the governor change what is recorded, unless a test is about that.
    let bounds = |flag: &&str| matches!(*flag, "--max-overhead" | "--first-pause" | "growth");
    if samples && !arguments.iter().any(bounds) {
        command.args(["--max-overhead", "off"]);
    }
    Ok(command)
}

/// Runs leaktrace to its end.
pub fn output(arguments: &[&str]) -> Result<Output> {
    let mut command = command(arguments)?;
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// A running `leaktrace attach --format json`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Leaktrace {
    child: Child,
    lines: Lines,
    errors: Transcript,
}

impl Leaktrace {
    /// Attaches to the processes, with all sites in every summary unless the flags say otherwise, and waits for the first one that has all of them.
    pub fn attach(pids: &[u32], flags: &[&str]) -> Result<Leaktrace> {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let mut words = vec!["attach", "--format", "json"];
        for usual in [["--top", "0"], ["--interval", "100ms"]] {
            if !flags.contains(&usual[0]) {
                words.extend(usual);
            }
        }
        for pid in &pids {
            words.extend(["-p", pid]);
        }
        words.extend(flags);
        let mut leaktrace = Leaktrace::spawn(&words)?;
        leaktrace.until("all targets are traced", |report| {
            let missing: Vec<&String> =
                pids.iter().filter(|pid| pid.parse().is_ok_and(|pid| report.target(pid).is_none())).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("no target {missing:?}")) }
        })?;
        Ok(leaktrace)
    }

    /// Starts any command line whose standard output is summaries; does not wait.
    pub fn spawn(words: &[&str]) -> Result<Leaktrace> {
        Leaktrace::start(command(words)?)
    }

    /// The same in a control group: `group` is its folder.
    pub fn spawn_in(group: &Path, words: &[&str]) -> Result<Leaktrace> {
        let inner = command(words)?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
        command.arg(inner.get_program()).args(inner.get_args());
        Leaktrace::start(command)
    }

    fn start(mut command: Command) -> Result<Leaktrace> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let stdout: ChildStdout = child.stdout.take().context("no standard output")?;
        let errors = Transcript::new(child.stderr.take().context("no standard error")?);
        Ok(Leaktrace { child, lines: Lines::new("leaktrace", stdout), errors })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// The next summary, or `None` when it has ended.
    pub fn next_report(&mut self) -> Result<Option<Report>> {
        let line = self
            .lines
            .next_before(Instant::now() + crate::patience(PATIENCE))
            .with_context(|| self.errors.text())?;
        line.map(|line| Report::parse(&line)).transpose()
    }

    /// The summaries that have come already.
    pub fn waiting(&mut self) -> Result<Vec<Report>> {
        self.lines.waiting().iter().map(|line| Report::parse(line)).collect()
    }

    /// The first summary that satisfies; `wanted` completes "waiting until …" in messages, the closure says what is
    /// still wrong.
    pub fn until(
        &mut self,
        wanted: &str,
        mut check: impl FnMut(&Report) -> Result<(), String>,
    ) -> Result<Report> {
        let deadline = Instant::now() + crate::patience(PATIENCE);
        let mut wrong = "there was no summary".to_owned();
        loop {
            let failed = |wrong: &str, why: &str, errors: &Transcript| {
                anyhow!("waiting until {wanted}: {why}\n{wrong}\nstandard error: {}", errors.text().trim())
            };
            let line = match self.lines.next_before(deadline) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    let status = self.child.wait().context("leaktrace got lost")?;
                    return Err(failed(&wrong, &format!("leaktrace ended ({status})"), &self.errors));
                }
                Err(error) => return Err(failed(&wrong, &format!("{error}"), &self.errors)),
            };
            let report = Report::parse(&line)?;
            match check(&report) {
                Ok(()) => return Ok(report),
                Err(why) => wrong = why,
            }
            if Instant::now() > deadline {
                return Err(failed(&wrong, "the time is up", &self.errors));
            }
        }
    }

    /// Like [`Leaktrace::until`], and the summary after that must satisfy as well: the numbers have come to rest.
    pub fn until_settled(
        &mut self,
        wanted: &str,
        mut check: impl FnMut(&Report) -> Result<(), String>,
    ) -> Result<Report> {
        self.until(wanted, &mut check)?;
        let report = self.next_report()?.context("leaktrace ended between two summaries")?;
        check(&report).map_err(|wrong| anyhow!("{wanted} held once, and then not any more: {wrong}"))?;
        Ok(report)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid that is none")?;
        // SAFETY: the child has not been waited for, so that the pid is still its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            return Err(std::io::Error::last_os_error()).context("leaktrace could not be signalled");
        }
        Ok(())
    }

    /// Interrupts it and returns its last summary; it must end with success.
    pub fn interrupt(mut self) -> Result<Report> {
        self.signal(libc::SIGINT)?;
        let (mut reports, status) = self.finish()?;
        if !status.success() {
            bail!("leaktrace ended with {status} on SIGINT: {}", self.errors.text());
        }
        reports.pop().context("no last summary after SIGINT")
    }

    /// Waits for its end and returns the summaries until then.
    pub fn finish(&mut self) -> Result<(Vec<Report>, ExitStatus)> {
        let lines = self
            .lines
            .rest(Instant::now() + crate::patience(PATIENCE))
            .with_context(|| self.errors.text())?;
        let reports = lines.iter().map(|line| Report::parse(line)).collect::<Result<Vec<_>>>()?;
        let status = self.child.wait().context("leaktrace got lost")?;
        Ok((reports, status))
    }

    /// Kills it without warning and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("leaktrace could not be killed")?;
        self.child.wait().context("leaktrace got lost")?;
        Ok(())
    }
}

impl Drop for Leaktrace {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
