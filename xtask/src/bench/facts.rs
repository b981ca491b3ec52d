//! Single facts as a table in Markdown: what was measured, and what it should stay under. Pure.
use super::table::{Spread, number};
use std::{fmt, time::Duration};

/// Facts in the order in which they were entered.
#[derive(Debug, Default)]
pub(super) struct Facts {
    rows: Vec<(String, String, String)>,
}

impl Facts {
    /// Enters a fact that has no bound.
    pub(super) fn add(&mut self, name: &str, value: String) {
        self.add_bounded(name, value, "");
    }

    /// Enters a fact that should stay under `bound`.
    pub(super) fn add_bounded(&mut self, name: &str, value: String, bound: &str) {
        self.rows.push((name.to_owned(), value, bound.to_owned()));
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| | measured | should be under |\n|---|--:|--:|")?;
        for (name, value, bound) in &self.rows {
            writeln!(out, "| {name} | {value} | {bound} |")?;
        }
        writeln!(out)
    }
}

/// The middle of several values, and from where to where they go.
pub(super) fn spread(values: impl IntoIterator<Item = f64>, unit: &str) -> String {
    Spread::of(values).map_or_else(
        || "nothing".to_owned(),
        |spread| {
            let [least, middle, most] = [spread.least, spread.middle, spread.most].map(number);
            format!("{middle} {unit} ({least} – {most})")
        },
    )
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_become_rows() {
        let mut facts = Facts::default();
        facts.add_bounded("memory", mib(3 << 19), "64 MiB");
        facts.add("share", spread([1.0, 3.0, 2.0], "%"));
        let text = facts.to_string();
        assert!(
            text.contains("| memory | 1.5 MiB | 64 MiB |\n| share | 2.00 % (1.00 – 3.00) |  |\n"),
            "{text}"
        );
    }
}
