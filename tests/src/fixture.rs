//! Runs a fixture: the handshake, the ledger, the end. How fixtures behave is written down in `fixtures/ledger.h`.
use crate::{
    ledger::{Ledger, Said},
    lines::{Lines, Transcript},
};
use anyhow::{Context, Result, bail};
use std::{
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a fixture may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running fixture. It is killed when this is dropped.
#[derive(Debug)]
pub struct Fixture {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
    errors: Transcript,
    pid: u32,
}

impl Fixture {
    /// Starts it and waits until it is ready.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Fixture> {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().copied());
        let mut fixture = Fixture::spawn(command)?;
        fixture.wait_ready()?;
        Ok(fixture)
    }

    /// Starts a command that is a fixture, or that runs one with its own standard streams; does not wait.
    pub fn spawn(mut command: Command) -> Result<Fixture> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let name = command.get_program().to_string_lossy().into_owned();
        let lines = Lines::new(&name, child.stdout.take().context("no standard output")?);
        let errors = Transcript::new(child.stderr.take().context("no standard error")?);
        let stdin = child.stdin.take();
        Ok(Fixture { pid: child.id(), child, stdin, lines, errors })
    }

    /// The process that allocates.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it, or what runs it, has written to standard error.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// Waits for `ready`.
    pub fn wait_ready(&mut self) -> Result<()> {
        match self.hear()? {
            Said::Ready { pid } => {
                self.pid = pid;
                Ok(())
            }
            other => bail!("the fixture said {other:?} instead of being ready"),
        }
    }

    /// The same where what runs it talks on its standard output as well: lines that are none of a ledger are skipped.
    pub fn wait_ready_after_others(&mut self) -> Result<()> {
        let deadline = Instant::now() + crate::patience(PATIENCE);
        loop {
            let line = self.lines.next_before(deadline).with_context(|| self.state())?;
            let Some(line) = line else { bail!("the fixture ended unexpectedly: {}", self.state()) };
            if let Ok(Said::Ready { pid }) = Said::parse(&line) {
                self.pid = pid;
                return Ok(());
            }
        }
    }

    /// Sends a line.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        writeln!(stdin, "{text}").context("the fixture takes no more orders")
    }

    /// The next line that it says.
    pub fn hear(&mut self) -> Result<Said> {
        let deadline = Instant::now() + crate::patience(PATIENCE);
        let line = self.lines.next_before(deadline).with_context(|| self.state())?;
        let Some(line) = line else { bail!("the fixture ended unexpectedly: {}", self.state()) };
        match Said::parse(&line)? {
            Said::Broken(why) => bail!("the fixture failed by itself: {why}"),
            said => Ok(said),
        }
    }

    fn state(&mut self) -> String {
        let ended = self.child.try_wait().ok().flatten();
        format!("status {ended:?}, standard error: {}", self.errors.text().trim())
    }

    /// Collects the ledger up to `done`.
    pub fn ledger(&mut self) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        loop {
            match self.hear()? {
                Said::Entry(entry) => ledger.entries.push(entry),
                Said::Done => return Ok(ledger),
                other => bail!("the fixture said {other:?} within its ledger"),
            }
        }
    }

    /// Lets it act, and collects its ledger.
    pub fn act(&mut self) -> Result<Ledger> {
        self.send("")?;
        self.ledger()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("the fixture got lost")?.is_none())
    }

    /// Lets it end and waits for that.
    pub fn release(mut self) -> Result<ExitStatus> {
        self.stdin = None;
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        let errors = &self.errors;
        crate::lines::poll("the end of the fixture", crate::patience(PATIENCE), || {
            child.try_wait().context("the fixture got lost")
        })
        .with_context(|| errors.text())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
