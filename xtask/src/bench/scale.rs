//! What an exactly recorded pair costs against what there is much of: live blocks, sites, threads and targets. Costs
//! are processor time of the traced thread.
use super::{
    fixture::{pair_ns, pair_ns_among},
    rounds::{Measured, Way, alternate_one},
    table::Table,
    tracer::{EXACT, Tracer},
};
use anyhow::{Context, Result};
use leaktrace_tests::compile::Build;

/// From 10³ to 10⁶·⁵.
const BLOCKS: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 3_162_278];
const LARGE: Tracer = Tracer::Leaktrace(&["--mode", "exact", "--max-blocks", "4M"]);

const SITES: [u64; 3] = [10, 1_000, 10_000];
/// Frames below the loop, the same for all numbers of sites, so that only their number differs.
const SITE_DEPTH: &str = "depth=14";

const THREADS: [u32; 4] = [1, 2, 4, 8];
const TARGETS: [usize; 3] = [1, 5, 20];

/// A table for each.
pub(super) fn measure(rounds: u32) -> String {
    let tables = [
        blocks(rounds),
        sites(rounds),
        threads(rounds, "untraced", Tracer::None),
        threads(rounds, "exact", EXACT),
        targets(rounds),
    ];
    tables.iter().map(Table::to_string).collect()
}

fn blocks(rounds: u32) -> Table {
    let ways = BLOCKS.map(|blocks| {
        let word = format!("blocks={blocks}");
        Way::new(format!("{blocks} live blocks"), move || pair_ns(&[&word], Build::Gcc, LARGE))
    });
    alternate_one(
        rounds,
        "An exact pair against live blocks, with a summary over all each second",
        "ns",
        &ways,
    )
}

fn sites(rounds: u32) -> Table {
    let ways = SITES.map(|sites| {
        let word = format!("sites={sites}");
        Way::new(format!("{sites} sites in turn"), move || pair_ns(&[&word, SITE_DEPTH], Build::Gcc, EXACT))
    });
    alternate_one(rounds, "An exact pair against sites", "ns", &ways)
}

fn threads(rounds: u32, name: &str, tracer: Tracer) -> Table {
    let ways = THREADS.map(|threads| Way::new(format!("threads: {threads}"), move || all(threads, tracer)));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let title = format!("Pairs that all threads do together on {cpus} processors, {name}");
    alternate_one(rounds, &title, "millions/s", &ways)
}

/// Millions of pairs a second, by the time that goes by.
fn all(threads: u32, tracer: Tracer) -> Result<Measured> {
    let measured = pair_ns(&[&format!("threads={threads}")], Build::Gcc, tracer)?;
    let ns = measured.values.get(1).context("no time")?;
    Ok(Measured::one(f64::from(threads) * 1e3 / ns, measured.note))
}

fn targets(rounds: u32) -> Table {
    let ways = TARGETS.map(|targets| {
        Way::new(format!("{targets} targets"), move || pair_ns_among(targets - 1, &[], Build::Gcc, EXACT))
    });
    alternate_one(rounds, "An exact pair in one target while the others do nothing", "ns", &ways)
}
