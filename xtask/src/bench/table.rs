//! Measured values as a table in Markdown: smallest, middle and largest, and ratios to the first row. Pure.
use std::fmt;

/// A row: what was measured and its values, one for each round.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) values: Vec<f64>,
}

/// Rows whose values of one round belong together; ratios are to the first row in the same round.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) unit: &'static str,
    pub(super) rows: Vec<Row>,
}

/// Smallest, middle and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f64,
    middle: f64,
    most: f64,
}

fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    Some(Spread { least: *sorted.first()?, middle: *sorted.get(sorted.len() / 2)?, most: *sorted.last()? })
}

impl Table {
    fn ratios(&self, row: &Row) -> Option<Spread> {
        let first = self.rows.first()?;
        spread(row.values.iter().zip(&first.values).map(|(value, base)| value / base))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| | {} min | median | max | ratio min | median | max |", self.unit)?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|")?;
        for row in &self.rows {
            let (Some(values), Some(ratios)) = (spread(row.values.iter().copied()), self.ratios(row)) else {
                writeln!(out, "| {} | not measured | | | | | |", row.name)?;
                continue;
            };
            write!(out, "| {} | {:.0} | {:.0} | {:.0} ", row.name, values.least, values.middle, values.most)?;
            writeln!(out, "| {:.1} | {:.1} | {:.1} |", ratios.least, ratios.middle, ratios.most)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let row = |name: &str, values: &[f64]| Row { name: name.to_owned(), values: values.to_vec() };
        let table =
            Table { unit: "ns", rows: vec![row("untraced", &[10.0, 20.0]), row("traced", &[100.0, 100.0])] };
        assert_eq!(table.ratios(&table.rows[1]), Some(Spread { least: 5.0, middle: 10.0, most: 10.0 }));
        assert!(table.to_string().contains("| traced | 100 | 100 | 100 | 5.0 | 10.0 | 10.0 |"));
    }

    #[test]
    fn a_row_without_values_says_so() {
        let table = Table { unit: "ns", rows: vec![Row { name: "peer".to_owned(), values: Vec::new() }] };
        assert!(table.to_string().contains("| peer | not measured |"));
    }
}
