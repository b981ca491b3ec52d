//! The scenario that most tests are made of: a fixture acts under tracing, and the report equals its ledger.
use crate::{
    compare::{self, Rules},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::Ledger,
    missed,
    report::{Report, Target},
};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// A fixture and how to trace it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The compiled fixture.
    pub program: PathBuf,
    /// Its arguments, without `clean`.
    pub arguments: Vec<String>,
    /// Additions to its environment.
    pub environment: Vec<(String, String)>,
    /// Additional flags of `leaktrace attach`.
    pub flags: Vec<String>,
    /// How to compare.
    pub rules: Rules,
    /// Sites that the ledger must name, so that none is left out in silence.
    pub must_have: Vec<&'static str>,
}

impl Case {
    /// A fixture as it is.
    pub fn new(program: PathBuf) -> Case {
        Case {
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            flags: Vec::new(),
            rules: Rules::default(),
            must_have: Vec::new(),
        }
    }

    /// With these arguments.
    pub fn arguments(mut self, words: &[&str]) -> Case {
        self.arguments.extend(words.iter().map(ToString::to_string));
        self
    }

    /// With a variable in its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Case {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With these flags for leaktrace.
    pub fn flags(mut self, words: &[&str]) -> Case {
        self.flags.extend(words.iter().map(ToString::to_string));
        self
    }

    /// With losses that belong to the scenario.
    pub fn allow_losses(mut self, causes: &[&'static str]) -> Case {
        self.rules.allowed_losses.extend(causes);
        self
    }

    /// With allocations that are not the fixture's own: what its libraries keep from their start.
    pub fn allow_others(mut self) -> Case {
        self.rules.others_allowed = true;
        self
    }

    /// With another name for a site.
    pub fn alias(mut self, name: &'static str, site: &'static str) -> Case {
        self.rules.aliases.push((name, site));
        self
    }

    /// With sites that must be in the ledger.
    pub fn must_have(mut self, sites: &[&'static str]) -> Case {
        self.must_have.extend(sites);
        self
    }

    /// Starts the fixture, as the leaking twin or the clean one.
    pub fn start(&self, clean: bool) -> Result<Fixture> {
        let mut words: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        words.extend(clean.then_some("clean"));
        let variables: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Fixture::start(&self.program, &words, &variables)
    }

    /// Attaches to it.
    pub fn attach(&self, fixture: &Fixture) -> Result<Leaktrace> {
        Leaktrace::attach(&[fixture.pid()], &self.flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What is wrong with the ledger itself.
    pub fn check_ledger(&self, ledger: &Ledger, clean: bool) -> Result<()> {
        let sites = ledger.sites();
        let missing: Vec<_> = self.must_have.iter().filter(|name| !sites.contains(name)).collect();
        if !missing.is_empty() {
            bail!("the fixture left out {missing:?}: is the allocator the one that was meant?");
        }
        if ledger.entries.is_empty() || ledger.is_clean() != clean {
            bail!(
                "the ledger is {}, {}: {ledger:?}",
                if clean { "to be clean" } else { "to show leaks" },
                sites.len()
            );
        }
        Ok(())
    }

    /// Everything in which the report differs from the ledger, or an empty success.
    pub fn judge(&self, ledger: &Ledger, report: &Report, main: u32) -> Result<(), String> {
        let pids = if ledger.pids().is_empty() { vec![main] } else { ledger.pids() };
        let mut found = compare::losses(report, &self.rules);
        for pid in pids {
            match report.target(pid) {
                Some(target) => {
                    found.extend(missed::differences(&ledger.of(pid), target, report, &self.rules));
                }
                None => found.push(format!("process {pid} is not in the report")),
            }
        }
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{}\nnotes: {:?}", found.join("\n"), report.notes))
        }
    }

    /// Runs both twins: attach, act, compare, detach, and the fixture ends as if nothing had happened.
    pub fn run(&self) -> Result<()> {
        self.run_twin(false).context("the leaking twin")?;
        self.run_twin(true).context("the clean twin")?;
        Ok(())
    }

    /// Runs one twin; returns the last report for further checks.
    pub fn run_twin(&self, clean: bool) -> Result<Report> {
        let mut fixture = self.start(clean)?;
        let mut leaktrace = self.attach(&fixture)?;
        let ledger = fixture.act()?;
        self.check_ledger(&ledger, clean)?;
        leaktrace.until_settled("the report equals the ledger", |report| {
            self.judge(&ledger, report, fixture.pid())
        })?;
        let last = leaktrace.interrupt()?;
        if let Err(wrong) = self.judge(&ledger, &last, fixture.pid()) {
            bail!("the last summary differs from the ledger: {wrong}");
        }
        let status = fixture.release()?;
        if !status.success() {
            bail!("the fixture ended with {status} after tracing");
        }
        Ok(last)
    }
}

/// The latest word on a process in a series of summaries.
pub fn latest(reports: &[Report], pid: u32) -> Result<&Target> {
    reports
        .iter()
        .rev()
        .find_map(|report| report.target(pid))
        .with_context(|| format!("process {pid} is in none of {} summaries", reports.len()))
}
