//! A flame graph as SVG, drawn by inferno from folded stacks. The page is self-contained: zoom and search are in it.
use anyhow::{Context as _, Result, ensure};
use inferno::flamegraph::{Options, from_lines};

use super::folded::{Value, folded};
use crate::{
    model::{snapshot::Snapshot, units},
    render::escape::escape,
};

/// The picture.
///
/// # Errors
/// When no site holds anything of what is to be drawn.
pub fn flamegraph(snapshot: &Snapshot, value: Value) -> Result<String> {
    let lines = folded(snapshot, value);
    ensure!(!lines.is_empty(), "there is nothing to draw: no call stack has {}", value.unit());
    let mut options = Options::default();
    options.title = format!("{} on {}", value.title(), xml(&snapshot.host));
    options.subtitle = Some(units::wall_time(snapshot.time));
    options.count_name = value.unit().to_owned();
    options.deterministic = true;
    let mut svg = Vec::new();
    let safe = xml(&lines);
    from_lines(&mut options, safe.lines(), &mut svg).context("drawing the flame graph")?;
    String::from_utf8(svg).context("drawing the flame graph")
}

/// Without what XML cannot hold even when it is escaped: control characters, line ends excepted, and noncharacters.
/// Marks and quotes are inferno's part.
fn xml(text: &str) -> String {
    let line = |line: &str| escape(line).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
