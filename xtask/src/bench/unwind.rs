//! What walking stacks costs, by frame pointers and by unwind tables: of pairs at the end of a recursion, what exceeds
//! the same pairs recorded without stacks. Building the tables is `tables`' part.
use super::{
    fixture::pair_ns,
    rounds::{Way, alternate_one},
    table::{Row, Spread, Table},
    tables,
    tracer::Tracer,
};
use leaktrace_tests::compile::Build;

/// Frames between the loop and the allocation.
const DEPTHS: [u32; 4] = [0, 8, 24, 64];

const WITHOUT: Tracer = Tracer::Leaktrace(&["--mode", "exact", "--combined-only"]);
const BY_FRAME_POINTERS: Tracer = Tracer::Leaktrace(&["--mode", "exact", "--unwind", "fp"]);
const BY_TABLES: Tracer = Tracer::Leaktrace(&["--mode", "exact", "--unwind", "cfi"]);

/// How stacks are walked, of which program, and whether each shares frames with the one before.
struct Walk {
    name: &'static str,
    tracer: Tracer,
    build: Build,
    fresh: bool,
    /// The one that does the same without stacks.
    base: Option<&'static str>,
}

const NO_STACKS: &str = "no stacks";
const NO_STACKS_FRESH: &str = "no stacks, another stack each time";

const WALKS: [Walk; 5] = [
    Walk { name: NO_STACKS, tracer: WITHOUT, build: Build::NoFramePointers, fresh: false, base: None },
    Walk { name: NO_STACKS_FRESH, tracer: WITHOUT, build: Build::NoFramePointers, fresh: true, base: None },
    Walk { name: "fp", tracer: BY_FRAME_POINTERS, build: Build::Gcc, fresh: false, base: Some(NO_STACKS) },
    Walk {
        name: "cfi, stack reused",
        tracer: BY_TABLES,
        build: Build::NoFramePointers,
        fresh: false,
        base: Some(NO_STACKS),
    },
    Walk {
        name: "cfi, another stack each time",
        tracer: BY_TABLES,
        build: Build::NoFramePointers,
        fresh: true,
        base: Some(NO_STACKS_FRESH),
    },
];

/// What pairs take, what of it is walking, and what building the tables takes.
pub(super) fn measure(rounds: u32) -> String {
    let ways: Vec<Way<'_>> = WALKS.iter().flat_map(|walk| DEPTHS.map(|depth| way(walk, depth))).collect();
    let pairs = alternate_one(rounds, "Processor time of an exact pair by depth of the stack", "ns", &ways);
    let fresh = "“Another stack each time” shares only the frames of main with the one before; “reused” is the \
        same stack again, of which the walk ends as soon as it meets what it knows. Programs differ in between.";
    format!("{pairs}{fresh}\n\n{}{}", walking(&pairs), tables::measure())
}

fn row_name(walk: &str, depth: u32) -> String {
    format!("{walk}, {depth} frames deep")
}

fn way(walk: &Walk, depth: u32) -> Way<'_> {
    let words = [format!("depth={depth}"), if walk.fresh { "fresh" } else { "same" }.to_owned()];
    Way::new(row_name(walk.name, depth), move || {
        pair_ns(&words.each_ref().map(String::as_str), walk.build, walk.tracer)
    })
}

/// Differences within a round: from the same pair without stacks, and from the shallowest stack.
fn walking(pairs: &Table) -> String {
    let mut text = "### Walking one stack\n\n\
        | | ns for each event, median | min – max | ns for each further frame, median | min – max |\n\
        |---|--:|--:|--:|--:|\n"
        .to_owned();
    for walk in &WALKS {
        let Some(base) = walk.base else { continue };
        for depth in DEPTHS {
            let cells = [event(pairs, walk.name, base, depth), frame(pairs, walk.name, base, depth)];
            let cells =
                cells.map(|spread| spread.map_or_else(|| " | ".to_owned(), |spread| spread.to_string()));
            text.push_str(&format!("| {} | {} |\n", row_name(walk.name, depth), cells.join(" | ")));
        }
    }
    text.push('\n');
    text
}

fn row<'a>(pairs: &'a Table, walk: &str, depth: u32) -> Option<&'a Row> {
    pairs.row(&row_name(walk, depth))
}

fn event(pairs: &Table, walk: &str, base: &str, depth: u32) -> Option<Spread> {
    row(pairs, walk, depth)?.with(row(pairs, base, depth)?, |with, without| with - without)
}

fn frame(pairs: &Table, walk: &str, base: &str, depth: u32) -> Option<Spread> {
    let shallowest = *DEPTHS.first()?;
    if depth == shallowest {
        return None;
    }
    let beyond = |depth| Some(row(pairs, walk, depth)?.minus(row(pairs, base, depth)?));
    let frames = f64::from(depth - shallowest);
    beyond(depth)?.with(&beyond(shallowest)?, |deep, flat| (deep - flat) / frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_a_deeper_stack_adds_beyond_what_the_program_itself_adds() {
        let row = |walk: &str, depth, value| Row {
            name: row_name(walk, depth),
            values: vec![Some(value)],
            ..Row::default()
        };
        let rows =
            vec![row("base", 0, 100.0), row("base", 8, 110.0), row("walk", 0, 300.0), row("walk", 8, 390.0)];
        let table = Table { rows, ..Table::default() };
        assert_eq!(event(&table, "walk", "base", 8).unwrap().middle, 280.0);
        assert_eq!(frame(&table, "walk", "base", 8).unwrap().middle, 10.0);
        assert_eq!(frame(&table, "walk", "base", 0), None);
    }
}
