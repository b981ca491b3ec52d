//! Runs `leaktrace agent` and asks it. What it must answer is the scenarios' business.
use crate::{
    http::{self, Answer},
    leaktrace::{binary, need_root},
    lines::{self, Transcript},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// How long to wait for anything that the agent must do.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running agent with a folder of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Transcript,
    address: String,
    config: PathBuf,
    folder: TempDir,
}

impl Agent {
    /// Starts it with a configuration, in which `@DIR@` is its folder, and waits until it answers.
    pub fn start(config: &str) -> Result<Agent> {
        Agent::start_in(tempfile::tempdir()?, config)
    }

    /// The same in a folder that is there already.
    pub fn start_in(folder: TempDir, config: &str) -> Result<Agent> {
        Agent::start_with(folder, config, &[])
    }

    /// The same with more in its environment.
    pub fn start_with(folder: TempDir, config: &str, environment: &[(&str, &str)]) -> Result<Agent> {
        need_root()?;
        let path = folder.path().join("leaktrace.toml");
        fs::write(&path, filled(config, folder.path()))?;
        let mut command = Command::new(binary()?);
        command.arg("agent").arg("-c").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).env("LEAKTRACE_LOG", "info").env("NO_COLOR", "1");
        command.envs(environment.iter().copied());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let log = Transcript::new(child.stderr.take().context("no standard error")?);
        let mut agent = Agent { child, log, address: String::new(), config: path, folder };
        agent.address = lines::poll("the agent answers", crate::patience(PATIENCE), || {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended with {status}: {}", agent.log.text());
            }
            let said = agent.log.text();
            let address = said.split("answering on ").nth(1).and_then(|rest| rest.split_once(['\n', '"']));
            Ok(address.map(|(address, _)| address.trim().to_owned()))
        })?;
        Ok(agent)
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Asks for a path; the answer may be an error.
    pub fn get(&self, path: &str) -> Result<Answer> {
        http::request(&self.address, "GET", path, &[]).with_context(|| self.log.text())
    }

    /// Asks for a path below `/api/v1/`, which must be answered with JSON.
    pub fn json(&self, path: &str) -> Result<serde_json::Value> {
        let answer = self.get(&format!("/api/v1/{path}"))?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Asks again until the answer has what is looked for.
    pub fn until<T>(
        &self,
        path: &str,
        what: &str,
        look: impl Fn(&serde_json::Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = String::new();
        lines::poll(what, crate::patience(PATIENCE), || {
            let answer = self.json(path)?;
            last = answer.to_string();
            Ok(look(&answer))
        })
        .with_context(|| format!("last answer: {last:.2000}\n{}", self.log.text()))
    }

    /// Waits until the target holds so many bytes.
    pub fn until_held(&self, pid: u32, bytes: u64) -> Result<()> {
        self.until("targets", &format!("process {pid} holds {bytes} bytes"), |answer| {
            let targets = answer["targets"].as_array()?;
            let target = targets.iter().find(|target| target["pid"] == pid)?;
            (target["outstanding_bytes"] == bytes).then_some(())
        })
    }

    /// How often it has done something.
    pub fn work(&self, what: &str) -> Result<u64> {
        let stats = self.json("stats")?;
        let work = stats.get("work").and_then(|work| work.get(what)?.as_u64());
        work.with_context(|| format!("no count of {what} in {stats}"))
    }

    /// Waits until it has done something so often.
    pub fn until_work(&self, what: &str, times: u64) -> Result<()> {
        self.until("stats", &format!("{times} of {what}"), |stats| {
            (stats.get("work")?.get(what)?.as_u64()? >= times).then_some(())
        })
    }

    /// Replaces the configuration and tells the agent.
    pub fn reload(&self, config: &str) -> Result<()> {
        fs::write(&self.config, filled(config, self.folder.path()))?;
        self.signal(libc::SIGHUP)
    }

    /// Sends a signal.
    pub fn signal(&self, number: i32) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: no memory; the process is our own child and not waited for yet.
        ensure!(unsafe { libc::kill(pid, number) } == 0, "the agent is gone: {}", self.log.text());
        Ok(())
    }

    /// Asks it to end and waits for that.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let log = self.log.clone();
        let child = &mut self.child;
        lines::poll("the agent ends", crate::patience(PATIENCE), || Ok(child.try_wait()?))
            .with_context(|| log.text())
    }

    /// Kills it without warning; its folder stays.
    pub fn kill(mut self) -> Result<TempDir> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(std::mem::replace(&mut self.folder, tempfile::tempdir()?))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn filled(config: &str, folder: &Path) -> String {
    config.replace("@DIR@", &folder.to_string_lossy())
}
