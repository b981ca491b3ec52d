//! The scenarios by their names: `run`, `attach:perf`, `storm:multi:exact:60`.
use crate::{attached, life, ran, storm};
use anyhow::{Context, Error, Result, bail, ensure};
use leaktrace_tests::leaktrace;
use std::{str::FromStr, time::Duration};

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The host is found to be good.
    Doctor,
    /// The kernel is refused in words that help.
    Refused,
    /// A script of many fixtures under `run`.
    Run,
    /// Estimates under `run`.
    RunSampled,
    /// Running fixtures, with links of a kind.
    Attach(String),
    /// Estimates of a running fixture, with links of a kind.
    AttachSampled(String),
    /// Stacks without frame pointers, against the truth.
    Stacks,
    /// The processes of a control group.
    Cgroup,
    /// The exit code.
    FailOnLeak,
    /// The service and its API.
    Agent,
    /// Attached and detached so many times, with each of the kinds of links.
    Cycles(u32, Vec<String>),
    /// Killed while it traces.
    Kill,
    /// Threads, signals, migrations and forks.
    Storm(storm::Setting),
}

impl FromStr for Scenario {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scenario> {
        let words: Vec<&str> = text.split(':').collect();
        Ok(match words.as_slice() {
            ["doctor"] => Scenario::Doctor,
            ["refused"] => Scenario::Refused,
            ["run"] => Scenario::Run,
            ["run-sampled"] => Scenario::RunSampled,
            ["attach", link] => Scenario::Attach((*link).to_owned()),
            ["attach-sampled", link] => Scenario::AttachSampled((*link).to_owned()),
            ["stacks"] => Scenario::Stacks,
            ["cgroup"] => Scenario::Cgroup,
            ["fail-on-leak"] => Scenario::FailOnLeak,
            ["agent"] => Scenario::Agent,
            ["cycles", times, links] => {
                let times = times.parse().with_context(|| format!("{times:?} is no number"))?;
                Scenario::Cycles(times, links.split(',').map(str::to_owned).collect())
            }
            ["kill"] => Scenario::Kill,
            ["storm", link, mode, seconds] => {
                let seconds = seconds.parse().with_context(|| format!("{seconds:?} is no number"))?;
                let (link, mode) = ((*link).to_owned(), (*mode).to_owned());
                Scenario::Storm(storm::Setting { link, mode, time: Duration::from_secs(seconds) })
            }
            _ => bail!("no scenario is called {text:?}"),
        })
    }
}

impl Scenario {
    /// Succeeds when everything is as it must be.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Scenario::Doctor => doctor(),
            Scenario::Refused => refused(),
            Scenario::Run => ran::equals_the_ledgers(),
            Scenario::RunSampled => ran::estimates_cover_the_ledger(),
            Scenario::Attach(link) => attached::equals_the_ledgers(link),
            Scenario::AttachSampled(link) => attached::estimates_cover_the_ledger(link),
            Scenario::Stacks => ran::stacks_equal_the_truth(),
            Scenario::Cgroup => attached::control_group_equals_the_ledger(),
            Scenario::FailOnLeak => ran::fails_on_a_leak_only(),
            Scenario::Agent => life::the_agent_answers(),
            Scenario::Cycles(times, links) => life::survives_attachments(*times, links),
            Scenario::Kill => life::leaves_no_probe_when_killed(),
            Scenario::Storm(setting) => storm::equals_the_ledger(setting),
        }
    }
}

fn doctor() -> Result<()> {
    let said = leaktrace::output(&["doctor"])?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    if let Some(links) = text.lines().find_map(|line| line.strip_prefix("Link types: ")) {
        println!("FACT links {links}");
    }
    let bad: Vec<&str> = text.lines().filter(|line| line.starts_with("MISSING")).collect();
    ensure!(said.status.success() && bad.is_empty(), "{}: {}", said.status, bad.join("\n"));
    Ok(())
}

/// Of a kernel before 5.15: with the version that is needed, by `doctor` and by `run`, which must not seem to succeed.
fn refused() -> Result<()> {
    for words in [&["doctor"][..], &["run", "--", "/bin/true"]] {
        let said = leaktrace::output(words)?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        ensure!(!said.status.success(), "{words:?} succeeds: {text}");
        ensure!(text.contains("5.15"), "{words:?} does not say which kernel is needed: {text}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!("run".parse::<Scenario>().unwrap(), Scenario::Run);
        assert_eq!("attach:perf".parse::<Scenario>().unwrap(), Scenario::Attach("perf".into()));
        let Scenario::Cycles(20, links) = "cycles:20:session,perf".parse::<Scenario>().unwrap() else {
            panic!("not cycles");
        };
        assert_eq!(links, ["session", "perf"]);
        let Scenario::Storm(setting) = "storm:multi:exact:60".parse::<Scenario>().unwrap() else {
            panic!("not a storm");
        };
        assert_eq!(setting.time, Duration::from_secs(60));
        assert!("attach".parse::<Scenario>().is_err());
        assert!("storm:multi:exact:x".parse::<Scenario>().is_err());
    }
}
