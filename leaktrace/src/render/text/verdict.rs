//! A verdict in words: the last lines of a report.
use super::{escape, units};
use crate::model::verdict::{Amount, Outcome, Verdict};

/// What the exit code does not depend on, and why.
pub(super) fn hidden(verdict: &Verdict) -> Vec<String> {
    let line = |what: &str, amount: &Amount| {
        let blocks = units::counted(amount.count, "block");
        let stacks = units::counted(amount.sites, "call stack");
        format!("{what}: {} in {blocks} of {stacks}.", units::bytes(amount.bytes))
    };
    [("Suppressed", &verdict.suppressed), ("In the baseline", &verdict.in_baseline)]
        .into_iter()
        .filter(|(_, amount)| amount.count > 0)
        .map(|(what, amount)| line(what, amount))
        .collect()
}

/// The last line.
pub(super) fn line(verdict: &Verdict) -> String {
    let outcome = match verdict.outcome {
        Outcome::Clean => "clean",
        Outcome::Leaks => "leaks",
        Outcome::NotKnown => "not known",
        Outcome::ProgramFailed => "the program failed",
    };
    let reasons = match verdict.reasons.as_slice() {
        [] => String::new(),
        reasons => format!(": {}", escape(&reasons.join("; "))),
    };
    format!("Verdict: {outcome}{reasons}. Exit code {}.", verdict.exit_code)
}
