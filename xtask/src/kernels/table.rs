//! What came out of each guest, and the table of it. Pure.
use super::boot::Outcome;
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

/// One guest's results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// What was booted, for messages.
    pub(crate) label: String,
    /// The kernel's release; its series where it was not booted.
    pub(super) kernel: String,
    /// What the kernel says about itself.
    facts: BTreeMap<String, String>,
    pub(crate) passed: Vec<String>,
    /// Name and reason.
    pub(crate) failed: Vec<(String, String)>,
    pub(super) took: Duration,
}

impl Row {
    /// Nothing is known yet.
    pub(super) fn new(label: &str, kernel: &str) -> Row {
        Row { label: label.to_owned(), kernel: kernel.to_owned(), ..Row::default() }
    }

    /// What could not be booted.
    pub(super) fn failed(label: &str, kernel: &str, why: String) -> Row {
        Row { failed: vec![("boot".to_owned(), why)], ..Row::new(label, kernel) }
    }

    /// Takes in a line of the guest.
    pub(super) fn read(&mut self, line: &str) {
        let mut words = line.splitn(5, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("SCENARIO"), Some(name), Some("ok")) => self.passed.push(name.to_owned()),
            (Some("SCENARIO"), Some(name), Some("failed")) => {
                let why = words.nth(1).unwrap_or("no reason given").replace(" | ", "\n");
                self.failed.push((name.to_owned(), why));
            }
            (Some("FACT"), Some(name), Some(_)) => {
                let value = line.splitn(3, ' ').nth(2).unwrap_or_default();
                self.facts.insert(name.to_owned(), value.to_owned());
            }
            _ => {}
        }
    }

    /// The guest is off: what harm came to it, and what has not run.
    pub(super) fn finish(&mut self, scenarios: &[String], outcome: &Outcome) {
        self.took = outcome.took;
        let is_told = |row: &Row, name: &str| {
            row.passed.iter().any(|passed| passed == name)
                || row.failed.iter().any(|(failed, _)| failed == name)
        };
        let missing: Vec<&String> = scenarios.iter().filter(|name| !is_told(self, name)).collect();
        let mut why = outcome.harm.as_ref().map(|harm| format!("{harm}\n{}", outcome.tail));
        if why.is_none() && !missing.is_empty() {
            why = Some(format!("the guest ended early (code {:?})\n{}", outcome.code, outcome.tail));
        }
        let Some(why) = why else { return };
        // The first that has not ended is the one that ran.
        match missing.split_first() {
            None => self.failed.push(("guest".to_owned(), why)),
            Some((first, rest)) => {
                self.failed.push(((*first).clone(), why));
                let not_run = |name: &&String| ((*name).clone(), "not run: the guest was gone".to_owned());
                self.failed.extend(rest.iter().map(not_run));
            }
        }
    }

    fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("?", String::as_str)
    }

    fn preemption(&self) -> String {
        let jit = if self.fact("jit") == "0" { ", no JIT" } else { "" };
        format!("{}{jit}", self.fact("preemption"))
    }

    /// The kinds of links that scenarios have used.
    fn links(&self) -> String {
        let names = self.passed.iter().chain(self.failed.iter().map(|(name, _)| name));
        let mut links = Vec::new();
        for name in names {
            let mut words = name.split(':');
            let is_linked = matches!(words.next(), Some("attach" | "attach-sampled" | "storm"));
            if let Some(link) = words.next().filter(|link| is_linked && !links.contains(link)) {
                links.push(link);
            }
        }
        if links.is_empty() { "-".to_owned() } else { links.join(", ") }
    }
}

/// Markdown, with failures below.
pub(super) fn render(rows: &[Row]) -> String {
    let mut text =
        "| kernel | preemption | links | passed | failed | seconds |\n|---|---|---|--:|--:|--:|\n".to_owned();
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.0} |",
            row.kernel,
            row.preemption(),
            row.links(),
            row.passed.len(),
            row.failed.len(),
            row.took.as_secs_f64()
        );
    }
    for row in rows {
        for (name, why) in &row.failed {
            let _ = write!(text, "\n{} {name}:\n    {}\n", row.label, why.replace('\n', "\n    "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(harm: Option<&str>) -> Outcome {
        Outcome {
            code: Some(0),
            harm: harm.map(str::to_owned),
            tail: "the tail".into(),
            took: Duration::from_secs(9),
        }
    }

    fn row(lines: &[&str]) -> Row {
        let mut row = Row::new("6.1-full", "6.1.0-1-cloud-amd64");
        lines.iter().for_each(|line| row.read(line));
        row
    }

    #[test]
    fn scenarios_and_facts_are_read() {
        let mut row = row(&[
            "FACT preemption full",
            "FACT jit 0",
            "BEGIN run",
            "SCENARIO run ok 3.2",
            "SCENARIO attach:perf failed 1.0 site a: 3 instead of 4 | site b: 1",
        ]);
        row.finish(&["run".into(), "attach:perf".into()], &outcome(None));
        assert_eq!(row.passed, ["run"]);
        assert_eq!(row.failed, [("attach:perf".into(), "site a: 3 instead of 4\nsite b: 1".into())]);
        let text = render(&[row]);
        assert!(text.contains("| 6.1.0-1-cloud-amd64 | full, no JIT | perf | 1 | 1 | 9 |"), "{text}");
        assert!(text.contains("6.1-full attach:perf:\n    site a: 3 instead of 4\n    site b: 1"), "{text}");
    }

    #[test]
    fn what_did_not_run_has_failed() {
        let mut row = row(&["SCENARIO run ok 3.2", "BEGIN storm:perf:exact:60"]);
        let scenarios = ["run", "storm:perf:exact:60", "kill"].map(str::to_owned);
        row.finish(&scenarios, &outcome(Some("the kernel came to harm: BUG: x")));
        assert_eq!(row.failed.len(), 2);
        assert!(row.failed[0].0.starts_with("storm") && row.failed[0].1.contains("BUG: x\nthe tail"));
        assert!(row.failed[1].1.contains("not run"));
    }

    #[test]
    fn harm_after_the_last_scenario_is_a_failure() {
        let mut row = row(&["SCENARIO run ok 3.2"]);
        row.finish(&["run".into()], &outcome(Some("harm")));
        assert_eq!((row.passed.len(), row.failed.len()), (1, 1));
    }
}
