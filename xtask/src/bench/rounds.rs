//! Measures in rounds that alternate between the ways, so that a machine that becomes slower or faster changes all of
//! them alike. A way that fails is not tried again: its row says why.
use super::table::{Row, Table};
use anyhow::Result;
use std::io::Write;

/// What one measurement gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// A value for each table.
    pub(super) values: Vec<f64>,
    /// What a reader must know of it.
    pub(super) note: Option<String>,
}

impl Measured {
    /// One value.
    pub(super) fn one(value: f64, note: Option<String>) -> Measured {
        Measured { values: vec![value], note }
    }
}

/// A way to do it: its name, and what measures it once.
pub(super) struct Way<'a> {
    pub(super) name: String,
    pub(super) measure: Box<dyn Fn() -> Result<Measured> + 'a>,
}

impl<'a> Way<'a> {
    /// Puts the two together.
    pub(super) fn new(name: impl Into<String>, measure: impl Fn() -> Result<Measured> + 'a) -> Way<'a> {
        Way { name: name.into(), measure: Box::new(measure) }
    }
}

/// Measures every way once a round; the first is what the others are compared with.
pub(super) fn alternate(rounds: u32, titles: &[(String, &'static str)], ways: &[Way<'_>]) -> Vec<Table> {
    let row = |way: &Way<'_>| Row { name: way.name.clone(), ..Row::default() };
    let mut tables: Vec<Table> = titles
        .iter()
        .map(|(title, unit)| Table { title: title.clone(), unit, rows: ways.iter().map(row).collect() })
        .collect();
    for round in 1..=rounds {
        for (index, way) in ways.iter().enumerate() {
            let has_failed =
                tables.iter().any(|table| table.rows.get(index).is_some_and(|row| row.problem.is_some()));
            let title = titles.first().map_or("", |(title, _)| title);
            let measured = if has_failed {
                None
            } else {
                progress(&format!("{title}, round {round} of {rounds}: {}", way.name));
                Some((way.measure)())
            };
            enter(&mut tables, index, measured);
        }
    }
    tables
}

/// The same for one table.
pub(super) fn alternate_one(rounds: u32, title: &str, unit: &'static str, ways: &[Way<'_>]) -> Table {
    alternate(rounds, &[(title.to_owned(), unit)], ways).pop().unwrap_or_default()
}

fn enter(tables: &mut [Table], index: usize, measured: Option<Result<Measured>>) {
    let (measured, problem) = match measured {
        Some(Ok(measured)) => (measured, None),
        Some(Err(error)) => (Measured::default(), Some(one_line(&error))),
        None => (Measured::default(), None),
    };
    for (number, table) in tables.iter_mut().enumerate() {
        if let Some(row) = table.rows.get_mut(index) {
            row.values.push(measured.values.get(number).copied());
            row.notes.extend(measured.note.clone());
            row.problem = row.problem.take().or_else(|| problem.clone());
        }
    }
}

/// An error for a cell of a table.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let text: String = words.join(" ").replace('|', "/").chars().take(300).collect();
    text
}

/// Says on standard error what is going on; standard output is for the page.
pub(super) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "· {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::cell::Cell;

    #[test]
    fn a_way_that_fails_is_not_tried_again_and_the_others_go_on() {
        let tries = Cell::new(0);
        let ways = [
            Way::new("good", || Ok(Measured::one(1.0, Some("but".to_owned())))),
            Way::new("bad", || {
                tries.set(tries.get() + 1);
                if tries.get() > 1 { bail!("no\nmore | of it") } else { Ok(Measured::one(2.0, None)) }
            }),
        ];
        let table = alternate_one(4, "Title", "ns", &ways);
        assert_eq!(table.rows[0].values, [Some(1.0); 4]);
        assert_eq!(table.rows[1].values, [Some(2.0), None, None, None]);
        assert_eq!(table.rows[1].problem.as_deref(), Some("no more / of it"));
        assert_eq!(tries.get(), 2);
        assert_eq!(table.rows[0].notes.len(), 4);
    }

    #[test]
    fn each_value_goes_into_a_table_of_its_own() {
        let way = Way::new("both", || Ok(Measured { values: vec![1.0, 2.0], note: None }));
        let tables = alternate(1, &[("one".to_owned(), "a"), ("two".to_owned(), "b")], &[way]);
        assert_eq!(tables[0].rows[0].values, [Some(1.0)]);
        assert_eq!(tables[1].rows[0].values, [Some(2.0)]);
    }
}
