//! A listing of processes as a table for a terminal.
use std::fmt::Write as _;

use super::{
    escape::{cut, escape},
    text::Style,
    units,
};
use crate::model::listing::{Listed, Listing};

/// Characters of a column of names at the most.
const MAX_NAME: usize = 24;
/// Columns whose cells are numbers stand to the right.
const HEADINGS: [(&str, bool); 8] = [
    ("PID", true),
    ("COMM", false),
    ("CONTAINER", false),
    ("ALLOCATOR", false),
    ("RSS", true),
    ("ANON", true),
    ("GROWTH", true),
    ("TRACEABLE", false),
];

/// The whole table.
pub fn listing(listing: &Listing, style: Style) -> String {
    let rows: Vec<[String; 8]> =
        listing.processes.iter().map(|process| cells(process, listing.host_problem.is_some())).collect();
    let mut widths: Vec<usize> = HEADINGS.iter().map(|(heading, _)| heading.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let headings = HEADINGS.map(|(heading, _)| heading.to_owned());
    let first = line(&headings, &widths, style.width);
    // Writing to a String cannot fail.
    let _ = match style.color {
        true => writeln!(out, "\x1b[1m{first}\x1b[0m"),
        false => writeln!(out, "{first}"),
    };
    for row in &rows {
        let _ = writeln!(out, "{}", line(row, &widths, style.width));
    }
    if listing.processes.is_empty() {
        let _ = writeln!(out, "No process fits.");
    }
    if listing.cut > 0 {
        let _ = writeln!(out, "… {} more (--top 0 shows all)", units::count(listing.cut));
    }
    if let Some(problem) = &listing.host_problem {
        let _ = writeln!(out, "Note: {}", escape(problem));
    }
    out
}

fn cells(process: &Listed, is_host_unfit: bool) -> [String; 8] {
    let none = || "-".to_owned();
    let bytes = |value: Option<u64>| value.map_or_else(none, units::bytes);
    let traceable = match (&process.problem, is_host_unfit) {
        (Some(problem), _) => format!("no: {}", escape(problem)),
        (None, true) => "no: see below".to_owned(),
        (None, false) if process.allocators.is_empty() => "mappings only: no allocator was found".to_owned(),
        (None, false) => "yes".to_owned(),
    };
    let container = process.container.as_ref().map_or_else(none, |container| match &container.pod {
        Some(pod) => escape(&format!("{pod}/{}", container.label())),
        None => escape(container.label()),
    });
    [
        process.pid.to_string(),
        cut(&escape(&process.comm), MAX_NAME),
        cut(&container, MAX_NAME),
        if process.allocators.is_empty() { none() } else { process.allocators.join(",") },
        bytes(process.rss_bytes),
        bytes(process.anonymous_bytes),
        process.growth_bytes_per_second.map_or_else(none, units::rate),
        traceable,
    ]
}

fn line(cells: &[String; 8], widths: &[usize], width: usize) -> String {
    let mut line = String::new();
    for ((cell, (_, is_number)), width) in cells.iter().zip(HEADINGS).zip(widths) {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        line += &if is_number { format!("{padding}{cell}") } else { format!("{cell}{padding}") };
        line += "  ";
    }
    cut(line.trim_end(), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::ContainerView;

    fn rows(processes: Vec<Listed>) -> String {
        listing(&Listing { processes, ..Listing::default() }, Style::default())
    }

    #[test]
    fn a_table_fits_the_width_and_says_why_not() {
        let traced = Listed {
            pid: 12,
            comm: "shop\x1b[1m".to_owned(),
            container: Some(ContainerView { name: Some("web".to_owned()), ..ContainerView::default() }),
            allocators: vec!["glibc".to_owned(), "jemalloc".to_owned()],
            rss_bytes: Some(3 << 20),
            anonymous_bytes: Some(1 << 20),
            growth_bytes_per_second: Some(1024.0),
            ..Listed::default()
        };
        let not = Listed {
            pid: 1234,
            comm: "x".to_owned(),
            problem: Some("because ".repeat(30)),
            ..Listed::default()
        };
        let text = rows(vec![traced, not]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "  12  shop\\u{1b}[1m  web        glibc,jemalloc  3.0 MiB  1.0 MiB  +1.0 KiB/s  yes"
        );
        assert!(
            lines[2].starts_with("1234  x              -          -") && lines[2].ends_with('…'),
            "{text}"
        );
    }

    #[test]
    fn an_empty_table_says_so_and_a_host_without_rights_is_named_once() {
        assert!(rows(Vec::new()).ends_with("No process fits.\n"));
        let text = listing(
            &Listing {
                processes: vec![Listed::default()],
                host_problem: Some("run as root".to_owned()),
                cut: 3,
                ..Listing::default()
            },
            Style::default(),
        );
        assert!(
            text.contains("no: see below")
                && text.ends_with("… 3 more (--top 0 shows all)\nNote: run as root\n")
        );
    }
}
