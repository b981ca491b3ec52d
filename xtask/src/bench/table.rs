//! Measured values as a table in Markdown: middle, smallest and largest, and ratios to the first row. Pure.
use std::fmt;

/// A row: what was measured and its values, one for each round.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    /// `None` for a round in which there was nothing to measure any more.
    pub(super) values: Vec<Option<f64>>,
    /// Why values are missing.
    pub(super) problem: Option<String>,
    /// What a reader must know of single values.
    pub(super) notes: Vec<String>,
}

/// Rows whose values of one round belong together; ratios are to the first row in the same round.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) rows: Vec<Row>,
}

/// Smallest, middle and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) middle: f64,
    pub(super) most: f64,
}

impl Spread {
    /// Of any values; nothing of none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let even = sorted.len().is_multiple_of(2);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = if even { *sorted.get(sorted.len() / 2 - 1)? } else { upper };
        Some(Spread { least: *sorted.first()?, middle: lower.midpoint(upper), most: *sorted.last()? })
    }
}

/// Two cells: the middle, and from where to where.
impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, middle, most] = [self.least, self.middle, self.most].map(number);
        write!(out, "{middle} | {least} – {most}")
    }
}

/// About three significant digits, and all before the point.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. | 0.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

impl Row {
    /// What `combine` makes of this row's and another's values of the same round.
    pub(super) fn with(&self, other: &Row, combine: impl Fn(f64, f64) -> f64) -> Option<Spread> {
        let both = self.values.iter().zip(&other.values);
        Spread::of(both.filter_map(|(one, two)| Some(combine((*one)?, (*two)?))))
    }

    /// Differences from another row's values of the same round.
    pub(super) fn minus(&self, other: &Row) -> Row {
        let both = self.values.iter().zip(&other.values);
        let values = both.map(|(one, two)| Some((*one)? - (*two)?)).collect();
        Row { name: self.name.clone(), values, ..Row::default() }
    }

    fn cells(&self, first: Option<&Row>) -> Option<String> {
        let values = Spread::of(self.values.iter().copied().flatten())?;
        let ratios = first.and_then(|first| self.with(first, |value, base| value / base));
        let ratios = ratios.map_or_else(|| " | ".to_owned(), |ratios| ratios.to_string());
        Some(format!("{values} | {ratios}"))
    }
}

impl Table {
    /// A row by its name.
    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// A line on the ratio of two rows, where both were measured, and on what is wanted of it.
    pub(super) fn ratio(&self, one: &str, other: &str, wanted: Option<&str>) -> Option<String> {
        let spread = self.row(one)?.with(self.row(other)?, |one, other| one / other)?;
        let [least, middle, most] = [spread.least, spread.middle, spread.most].map(number);
        let wanted = wanted.map_or_else(String::new, |wanted| format!("; wanted: {wanted}"));
        Some(format!("- {one} / {other}: {middle} ({least} – {most}){wanted}\n"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "### {}\n", self.title)?;
        writeln!(
            out,
            "| | {}, median | min – max | ratio to the first row, median | min – max |",
            self.unit
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|")?;
        for row in &self.rows {
            match (row.cells(self.rows.first()), &row.problem) {
                (Some(cells), _) => writeln!(out, "| {} | {cells} |", row.name)?,
                (None, Some(problem)) => writeln!(out, "| {} | not measured: {problem} | | | |", row.name)?,
                (None, None) => writeln!(out, "| {} | not measured | | | |", row.name)?,
            }
        }
        let cut_short = self.rows.iter().filter(|row| row.values.iter().any(Option::is_some));
        for (row, problem) in cut_short.filter_map(|row| Some((row, row.problem.as_ref()?))) {
            writeln!(out, "\n{}: not in every round: {problem}", row.name)?;
        }
        for (row, last) in self.rows.iter().filter_map(|row| Some((row, row.notes.last()?))) {
            let rounds = row.values.len();
            writeln!(out, "\n{}, in {} of {rounds} rounds: {last}", row.name, row.notes.len())?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, values: &[f64]) -> Row {
        Row { name: name.to_owned(), values: values.iter().copied().map(Some).collect(), ..Row::default() }
    }

    fn table(rows: Vec<Row>) -> Table {
        Table { title: "Pairs".to_owned(), unit: "ns", rows }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let table = table(vec![row("untraced", &[10.0, 20.0, 20.0]), row("traced", &[100.0, 100.0, 200.0])]);
        let ratios = table.rows[1].with(&table.rows[0], |value, base| value / base);
        assert_eq!(ratios, Some(Spread { least: 5.0, middle: 10.0, most: 10.0 }));
        let text = table.to_string();
        assert!(text.contains("| traced | 100 | 100 – 200 | 10.0 | 5.00 – 10.0 |"), "{text}");
        assert_eq!(
            table.ratio("untraced", "traced", Some("1")).unwrap(),
            "- untraced / traced: 0.10 (0.10 – 0.20); wanted: 1\n"
        );
    }

    #[test]
    fn rounds_that_lack_one_of_the_values_do_not_count() {
        let half = Row { values: vec![None, Some(30.0)], ..row("half", &[]) };
        let ratio = half.with(&row("whole", &[1.0, 10.0]), |one, two| one / two);
        assert_eq!(ratio.map(|spread| spread.middle), Some(3.0));
    }

    #[test]
    fn what_was_not_measured_says_why() {
        let peer = Row { problem: Some("no such program".to_owned()), ..row("peer", &[]) };
        let text = table(vec![row("untraced", &[1.0]), peer]).to_string();
        assert!(text.contains("| peer | not measured: no such program | | | |"), "{text}");
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).unwrap().middle, 3.0);
        assert_eq!(Spread::of([]), None);
    }
}
