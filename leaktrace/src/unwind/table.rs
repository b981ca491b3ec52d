//! The unwind table of one file: rows in pages of 64 KiB of text, naming rules of the table's own numbering.
//! Where the rows of many files lie in the kernel's maps is left to `store`.
use std::time::{Duration, Instant};

use leaktrace_common::unwind::{PAGE_SHIFT, Page, Row, Rule, kind};

use crate::unwind::{
    cfi::{Fde, Index, Origin, Sections},
    code::Code,
    elf::{Elf, ElfError},
    pages::Builder,
    rule::plain,
    source::Source,
    synthesis::{self, Region},
};

/// Bytes of text in a page.
const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Signal returns taken from one file by its code; a C library has one.
const MAX_SIGNAL_RETURNS: usize = 64;

/// Gaps between functions shorter than this are padding.
const MIN_REGION_BYTES: u64 = 16;
/// Bytes of code without CFI that are decoded; where a file has more, none are. musl's C library has 400 KB.
/// What is known of each instruction takes some 60 bytes for as long as the table is built.
const MAX_SYNTHESIS_BYTES: u64 = 2 << 20;

/// Bytes from the entry point on that are taken as its code: it sets up a stack and calls.
const MAX_ENTRY_BYTES: u64 = 64;

/// The number of the rule [`kind::NO_CFI`] in every table.
pub const NO_CFI_RULE: u16 = 0;
/// The number of the rule [`kind::UNSUPPORTED`] in every table.
pub const UNSUPPORTED_RULE: u16 = 1;

/// What a table may cost, whatever the file says.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one section that are read.
    pub section_bytes: u64,
    /// Bytes that a compressed section may unpack to: it can be tiny in the file.
    pub unpacked_bytes: u64,
    /// FDEs kept, at 24 bytes.
    pub fdes: usize,
    /// Rows, at 4 bytes. The largest real file measured, librustc_driver, has 1.2 million.
    pub rows: usize,
    /// Distinct rules. librustc_driver has about 700, and the kernel's map holds 16,384 for all files.
    pub rules: usize,
    /// Pages from the first described address on: the small code model ends at 2 GiB, which is 32,768.
    pub pages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            section_bytes: 128 << 20,
            unpacked_bytes: 32 << 20,
            fdes: 4 << 20,
            rows: 16 << 20,
            rules: 4096,
            pages: 32_768,
        }
    }
}

/// How a table is built.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Make rows for code without CFI by following what it does to the stack.
    pub synthesize: bool,
    /// Leave out the rows of code without a call, which only frames interrupted by a signal can need: tables
    /// shrink to about a fifth.
    pub prune: bool,
    /// The bounds.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options { synthesize: true, prune: false, limits: Limits::default() }
    }
}

/// A page of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePage {
    /// Index of its first row in [`Table::rows`].
    pub first: u32,
    /// How many rows; 0 means no unwind information.
    pub rows: u16,
}

/// The unwind table of one file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Address in the file, before any load bias, at which the first page starts. A multiple of 64 KiB.
    pub base_address: u64,
    /// The rules that rows name.
    pub rules: Vec<Rule>,
    /// Rows of all pages; the rule numbers are indices of `rules`.
    pub rows: Vec<Row>,
    /// The pages, without gaps.
    pub pages: Vec<TablePage>,
    /// What it was built from.
    pub facts: TableFacts,
}

/// What a table was built from, and what is missing.
#[derive(Clone, Debug, Default)]
pub struct TableFacts {
    /// FDEs of `.eh_frame`.
    pub eh_frame_fdes: u64,
    /// Whether they were found by PT_GNU_EH_FRAME, for want of section headers.
    pub is_stripped: bool,
    /// FDEs of `.debug_frame`.
    pub debug_frame_fdes: u64,
    /// Places that return from a signal, known by their code.
    pub signal_returns: u64,
    /// Bytes of code without CFI for which rows were synthesized from the code itself.
    pub synthesized_bytes: u64,
    /// Rows whose rule exists but is not supported.
    pub unsupported_rows: u64,
    /// Entries that are damaged, are about no executable segment, or exceed the limit.
    pub lost_fdes: u64,
    /// Rows that a limit cut off: their code has no or an unsupported rule.
    pub lost_rows: u64,
    /// Rows whose rule exceeded the limit and became unsupported.
    pub lost_rules: u64,
    /// Whether rows were left out by [`Options::prune`].
    pub is_pruned: bool,
    /// Bytes of code that the Go compiler made, which is unwound by frame pointers.
    pub go_bytes: u64,
    /// What is wrong with the file, in words.
    pub problem: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Table {
    /// Builds the table of a file. A file without unwind information gives a table without pages.
    pub fn build(source: Source<'_>, elf: &Elf, options: &Options) -> Table {
        let began = Instant::now();
        let sections = Sections::read(&source, elf, &options.limits);
        let (mut index, problem) = sections.index(elf, &options.limits);
        let mut code = Code::new(source, elf);
        if !index.has_signal_frame {
            add_signal_returns(&mut index, &code);
        }
        if elf.is_go {
            add_entry_point(&mut index, elf);
            add_go(&mut index, elf);
        }
        let synthesized = match options.synthesize && !elf.is_go {
            true => synthesize(&mut index, &code, &source, elf),
            false => Vec::new(),
        };
        add_entry_point(&mut index, elf);
        let mut facts = count(&index);
        facts.is_stripped = elf.eh_frame.is_none() && elf.eh_frame_header.is_some();
        facts.is_pruned = options.prune;
        facts.problem = sections.problem.clone().or(problem);

        let base_address = index.fdes.first().map_or(0, |fde| fde.start & !(PAGE_BYTES - 1));
        let prune = options.prune.then_some(&mut code);
        let mut builder = Builder::new(base_address, &options.limits, prune, facts);
        let mut evaluator = sections.evaluator(synthesized);
        let nexts = index.fdes.iter().skip(1).map(|fde| fde.start).chain([u64::MAX]);
        for (fde, next) in index.fdes.iter().zip(nexts) {
            // Where two overlap, the one that begins later holds, to its end.
            let fde = Fde { end: fde.end.min(next), ..*fde };
            evaluator.rows(&fde, &mut |address, rule| builder.push(address, &rule));
            if fde.end < next {
                builder.push(fde.end, &plain(kind::NO_CFI));
            }
        }
        let mut table = builder.finish();
        table.facts.took = began.elapsed();
        table
    }

    /// Opens the ELF headers and builds the table.
    pub fn read(source: Source<'_>, options: &Options) -> Result<Table, ElfError> {
        let elf = Elf::read(&source)?;
        Ok(Table::build(source, &elf, options))
    }

    /// Bytes that it takes in the kernel's maps.
    pub fn size_bytes(&self) -> usize {
        size_of::<Row>() * self.rows.len() + size_of::<Page>() * self.pages.len()
    }

    /// The rule in force at an address of the file.
    pub fn rule_at(&self, address: u64) -> Option<&Rule> {
        let offset = address.checked_sub(self.base_address)?;
        let page = self.pages.get(usize::try_from(offset >> PAGE_SHIFT).ok()?)?;
        let rows = self.rows.get(page.first as usize..)?.get(..usize::from(page.rows))?;
        let low = (offset & (PAGE_BYTES - 1)) as u32;
        let last = rows.partition_point(|row| row & 0xffff <= low).checked_sub(1)?;
        self.rules.get((rows.get(last)? >> 16) as usize)
    }
}

/// Makes entries of the places that return from a signal and have no CFI that says so: musl's has none at all,
/// and Go's describes it as an ordinary function.
fn add_signal_returns(index: &mut Index, code: &Code<'_, '_>) {
    let mut added = Vec::new();
    for (start, end) in code.signal_returns(MAX_SIGNAL_RETURNS) {
        // The trampoline is a return address, which is looked up at the byte before.
        let start = start.saturating_sub(1);
        match index.covering(start + 1).and_then(|at| index.fdes.get_mut(at)) {
            None => added.push(Fde { start, end, offset: 0, origin: Origin::SignalCode }),
            Some(fde) if fde.start >= start => {
                *fde = Fde { start, end: fde.end, offset: 0, origin: Origin::SignalCode };
            }
            // The same bytes within a larger function: not where a signal handler returns to.
            Some(_) => {}
        }
    }
    index.add_sorted(added);
}

/// Makes an entry of the program's entry point, where nothing describes it: nothing called that, so the stack is
/// complete there. ld.so's `_start` is such a one.
fn add_entry_point(index: &mut Index, elf: &Elf) {
    let is_code = elf.segments.iter().any(|s| s.executable && s.address <= elf.entry && elf.entry < s.end());
    if elf.entry == 0 || !is_code || index.covering(elf.entry).is_some() {
        return;
    }
    let end = elf.entry.saturating_add(MAX_ENTRY_BYTES);
    index.add_sorted(vec![Fde { start: elf.entry, end, offset: 0, origin: Origin::EntryPoint }]);
}

/// Makes entries of what is not described in a file of Go's: the code that the Go compiler made.
fn add_go(index: &mut Index, elf: &Elf) {
    let go = undescribed(index, elf).into_iter();
    index.add_sorted(go.map(|(start, end)| Fde { start, end, offset: 0, origin: Origin::Go }).collect());
}

/// The code that no entry is about, in ranges.
fn undescribed(index: &Index, elf: &Elf) -> Vec<(u64, u64)> {
    let executable = elf.segments.iter().filter(|segment| segment.executable);
    let mut gaps: Vec<(u64, u64)> = executable
        .flat_map(|segment| index.gaps(segment.address, segment.end()))
        .filter(|(start, end)| end - start >= MIN_REGION_BYTES)
        .collect();
    gaps.sort_unstable();
    gaps.dedup_by(|next, before| next.0 < before.1);
    gaps
}

/// Makes entries of the code that nothing describes, with rows from following the code itself.
fn synthesize(
    index: &mut Index,
    code: &Code<'_, '_>,
    source: &Source<'_>,
    elf: &Elf,
) -> Vec<Vec<(u64, Rule)>> {
    let gaps = undescribed(index, elf);
    let bytes: u64 = gaps.iter().map(|(start, end)| end - start).sum();
    if gaps.is_empty() || bytes > MAX_SYNTHESIS_BYTES {
        return Vec::new();
    }
    let region = |(start, end)| Some(Region { start, code: code.copy(start, end)? });
    let regions: Vec<Region> = gaps.into_iter().filter_map(region).collect();
    let entries = elf.function_starts(source).into_iter().collect();
    let rows = synthesis::rows(&regions, &entries, elf.entry);
    let entry = |(number, region): (u32, &Region)| {
        let end = region.start.saturating_add(region.code.len() as u64);
        Fde { start: region.start, end, offset: number, origin: Origin::Synthesized }
    };
    index.add_sorted((0..).zip(&regions).map(entry).collect());
    rows
}

fn count(index: &Index) -> TableFacts {
    let bytes = |origin| {
        let fdes = index.fdes.iter().filter(move |fde| fde.origin == origin);
        fdes.map(|fde| fde.end - fde.start).sum::<u64>()
    };
    let of = |origin| index.fdes.iter().filter(|fde| fde.origin == origin).count() as u64;
    TableFacts {
        eh_frame_fdes: of(Origin::EhFrame),
        debug_frame_fdes: of(Origin::DebugFrame),
        signal_returns: of(Origin::SignalCode),
        synthesized_bytes: bytes(Origin::Synthesized),
        go_bytes: bytes(Origin::Go),
        lost_fdes: index.lost,
        ..TableFacts::default()
    }
}

#[cfg(test)]
mod tests;
