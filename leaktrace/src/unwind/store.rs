//! All files' tables as the kernel walker reads them: gives each table its place in the maps SLABS, PAGES and
//! RULES, shares a table between the processes that map its file, and keeps unused ones until their room is
//! needed. Pure: a change is a list of [`Write`]s for the caller to carry out, in their order.
//!
//! Rules are numbered over all files, since a row has 16 bits for one; most files say the same things, and a
//! hundred of them share a few thousand rules. A page's rows lie in one slab, because the walker looks up a
//! slab once per frame.
use std::{collections::HashMap, hash::Hash};

use leaktrace_common::unwind::{MAX_RULES, Page, Row, Rule, SLAB_ROWS, row};

use crate::unwind::{
    extents::Extents,
    numbers::RuleNumbers,
    table::{Table, TablePage, UNSUPPORTED_RULE},
};

/// Bytes of a slab.
const SLAB_BYTES: u64 = (SLAB_ROWS * size_of::<Row>()) as u64;
/// A slab's rows describe about 2 MiB of text, that is 32 pages; sparse files need many more.
const PAGES_PER_SLAB: u32 = 1024;

/// How large the kernel's maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Values of SLABS.
    pub slabs: u16,
    /// Values of PAGES.
    pub pages: u32,
    /// Values of RULES.
    pub rules: u16,
}

impl Capacity {
    /// The maps for tables of at most `bytes`; at least one slab.
    pub fn for_bytes(bytes: u64) -> Capacity {
        let slabs = u16::try_from((bytes / SLAB_BYTES).max(1)).unwrap_or(u16::MAX);
        Capacity { slabs, pages: u32::from(slabs) * PAGES_PER_SLAB, rules: MAX_RULES as u16 }
    }
}

/// A change to the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Values of RULES from `first` on.
    Rules {
        /// Index of the first.
        first: u32,
        /// The values.
        rules: Vec<Rule>,
    },
    /// Rows of one slab from `first_row` on.
    Slab {
        /// Index of the slab.
        slab: u16,
        /// Index of the first row in it.
        first_row: u32,
        /// The rows.
        rows: Vec<Row>,
    },
    /// Values of PAGES from `first` on.
    Pages {
        /// Index of the first.
        first: u32,
        /// The values.
        pages: Vec<Page>,
    },
}

/// Where a table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index of its first page in PAGES.
    pub first_page: u32,
    /// How many pages it has; 0 where the file has no unwind information.
    pub pages: u32,
    /// Address in the file at which the first page starts.
    pub base_address: u64,
}

/// What adding a table led to.
#[derive(Clone, Debug)]
pub struct Added<K> {
    /// Where the table lies; `None` when it does not fit even without all tables that are not in use. A pruned
    /// one may.
    pub placed: Option<Placed>,
    /// What to write, in this order: first what clears the tables that had to go, last the pages, which make
    /// the new table visible.
    pub writes: Vec<Write>,
    /// Tables without a reference that had to go.
    pub evicted: Vec<K>,
}

/// What is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tables that a process refers to.
    pub tables_in_use: usize,
    /// Tables kept in case that a process comes that needs them.
    pub tables_kept: usize,
    /// Rows of all of them.
    pub rows: u64,
    /// Pages of all of them.
    pub pages: u64,
    /// Distinct rules of all of them.
    pub rules: usize,
    /// Rules that there was no room for, over time: their rows are unsupported.
    pub lost_rules: u64,
}

/// The places of all tables. `K` identifies a file's contents: its build id, or a hash.
#[derive(Clone, Debug)]
pub struct Store<K> {
    tables: HashMap<K, Entry>,
    slabs: Vec<Extents>,
    pages: Extents,
    rules: RuleNumbers,
    pages_capacity: u32,
    /// Counts uses, to know which table was used last.
    clock: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    placed: Placed,
    runs: Vec<Run>,
    rules: Vec<u16>,
    references: u32,
    last_used: u64,
}

/// Rows of successive pages that lie one after the other in a slab.
#[derive(Clone, Copy, Debug)]
struct Run {
    slab: u16,
    first_row: u32,
    rows: u32,
}

impl<K: Eq + Hash + Clone> Store<K> {
    /// An empty store for maps of this size.
    pub fn new(capacity: Capacity) -> Self {
        Store {
            tables: HashMap::new(),
            slabs: vec![Extents::new(SLAB_ROWS as u32); usize::from(capacity.slabs)],
            pages: Extents::new(capacity.pages),
            rules: RuleNumbers::new(capacity.rules),
            pages_capacity: capacity.pages,
            clock: 0,
        }
    }

    /// What to write before the first table is added.
    pub fn initial_writes(&self) -> Vec<Write> {
        rule_writes(self.rules.fixed())
    }

    /// Adds a reference to a table that is there.
    pub fn acquire(&mut self, key: &K) -> Option<Placed> {
        self.clock += 1;
        let entry = self.tables.get_mut(key)?;
        entry.references += 1;
        entry.last_used = self.clock;
        Some(entry.placed)
    }

    /// Where a table lies, if it is there. Adds no reference: without one it may go with the next table that is
    /// added.
    pub fn placed(&self, key: &K) -> Option<Placed> {
        self.tables.get(key).map(|entry| entry.placed)
    }

    /// Adds a table, with one reference. Where it is there already, this is [`Store::acquire`].
    pub fn add(&mut self, key: K, table: &Table) -> Added<K> {
        let mut added = Added { placed: self.acquire(&key), writes: Vec::new(), evicted: Vec::new() };
        if added.placed.is_some() || !self.could_fit(table) {
            return added;
        }
        let room = loop {
            // Rules alone never refuse a table: what has no number is unsupported.
            let may_number = self.rules.has_room_for(&table.rules) || !self.has_unused();
            if let Some(room) = may_number.then(|| self.take_room(table)).flatten() {
                break room;
            }
            if !self.evict(&mut added) {
                return added;
            }
        };
        added.placed = Some(self.fill(key, table, room, &mut added.writes));
        added
    }

    /// Drops a reference. The last one leaves the table in place until its room is needed; the caller has by
    /// then replaced every process's mappings that name it, and waited until no walk uses the old ones.
    pub fn release(&mut self, key: &K) {
        if let Some(entry) = self.tables.get_mut(key) {
            entry.references = entry.references.saturating_sub(1);
        }
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let kept = self.tables.values().filter(|entry| entry.references == 0).count();
        let free_rows: u64 = self.slabs.iter().map(Extents::free_places).sum();
        Usage {
            tables_in_use: self.tables.len() - kept,
            tables_kept: kept,
            rows: (self.slabs.len() * SLAB_ROWS) as u64 - free_rows,
            pages: u64::from(self.pages_capacity) - self.pages.free_places(),
            rules: self.rules.used(),
            lost_rules: self.rules.lost(),
        }
    }

    /// Whether it is worth to evict anything for this table: it would fit, but for fragmentation.
    fn could_fit(&self, table: &Table) -> bool {
        let unused = || self.tables.values().filter(|entry| entry.references == 0);
        let rows: u64 = unused().flat_map(|entry| &entry.runs).map(|run| u64::from(run.rows)).sum();
        let pages: u64 = unused().map(|entry| u64::from(entry.placed.pages)).sum();
        let free_rows: u64 = self.slabs.iter().map(Extents::free_places).sum();
        table.rows.len() as u64 <= rows + free_rows
            && table.pages.len() as u64 <= pages + self.pages.free_places()
    }

    fn has_unused(&self) -> bool {
        self.tables.values().any(|entry| entry.references == 0)
    }

    /// Removes the table that is unused for longest; false where all are in use.
    fn evict(&mut self, added: &mut Added<K>) -> bool {
        let unused = self.tables.iter().filter(|(_, entry)| entry.references == 0);
        let Some(key) = unused.min_by_key(|(_, entry)| entry.last_used).map(|(key, _)| key.clone()) else {
            return false;
        };
        if let Some(entry) = self.tables.remove(&key) {
            let Placed { first_page, pages, .. } = entry.placed;
            let empty = Page { first: 0, rows: 0, slab: 0 };
            added.writes.push(Write::Pages { first: first_page, pages: vec![empty; pages as usize] });
            self.give_back(&entry.runs, first_page, pages);
            entry.rules.iter().for_each(|&number| self.rules.release(number));
        }
        added.evicted.push(key);
        true
    }

    /// Takes room for a table's pages and rows, or nothing.
    fn take_room(&mut self, table: &Table) -> Option<Room> {
        let pages = u32::try_from(table.pages.len()).ok()?;
        let mut room = Room { first_page: self.pages.take(pages)?, runs: Vec::new(), places: Vec::new() };
        for page in &table.pages {
            let Some((slab, first_row)) = self.take_rows(&room, u32::from(page.rows)) else {
                self.give_back(&room.runs, room.first_page, pages);
                return None;
            };
            room.add(slab, first_row, page.rows);
        }
        Some(room)
    }

    /// Takes rows in one slab: in that of the page before, where it has room.
    fn take_rows(&mut self, room: &Room, rows: u32) -> Option<(u16, u32)> {
        let latest = room.runs.last().map_or(0, |run| run.slab);
        if let Some(first) = self.slabs.get_mut(usize::from(latest))?.take(rows) {
            return Some((latest, first));
        }
        let mut slabs = (0..u16::MAX).zip(&mut self.slabs);
        slabs.find_map(|(slab, free)| free.take(rows).map(|first| (slab, first)))
    }

    fn give_back(&mut self, runs: &[Run], first_page: u32, pages: u32) {
        for run in runs {
            if let Some(slab) = self.slabs.get_mut(usize::from(run.slab)) {
                slab.give(run.first_row, run.rows);
            }
        }
        self.pages.give(first_page, pages);
    }

    /// Numbers the rules and writes rules, rows and pages, in the order in which they may become visible.
    fn fill(&mut self, key: K, table: &Table, room: Room, writes: &mut Vec<Write>) -> Placed {
        let (numbers, new_rules) = self.rules.acquire_all(&table.rules);
        writes.extend(rule_writes(new_rules));
        let global = |local: Row| {
            let number = numbers.get((local >> 16) as usize).copied().unwrap_or(UNSUPPORTED_RULE);
            row(local as u16, number)
        };
        let mut rows = table.rows.iter().map(|&local| global(local));
        for run in &room.runs {
            let rows = rows.by_ref().take(run.rows as usize).collect();
            writes.push(Write::Slab { slab: run.slab, first_row: run.first_row, rows });
        }
        let pages: Vec<Page> = room.pages(&table.pages).collect();
        let placed = Placed {
            first_page: room.first_page,
            pages: pages.len() as u32,
            base_address: table.base_address,
        };
        if !pages.is_empty() {
            writes.push(Write::Pages { first: room.first_page, pages });
        }
        let entry = Entry { placed, runs: room.runs, rules: numbers, references: 1, last_used: self.clock };
        self.tables.insert(key, entry);
        placed
    }
}

/// Room taken for a table.
struct Room {
    first_page: u32,
    runs: Vec<Run>,
    /// Slab and first row of each page.
    places: Vec<(u16, u32)>,
}

impl Room {
    fn add(&mut self, slab: u16, first_row: u32, rows: u16) {
        self.places.push((slab, first_row));
        let rows = u32::from(rows);
        match self.runs.last_mut() {
            _ if rows == 0 => {}
            Some(run) if run.slab == slab && run.first_row + run.rows == first_row => run.rows += rows,
            _ => self.runs.push(Run { slab, first_row, rows }),
        }
    }

    fn pages(&self, pages: &[TablePage]) -> impl Iterator<Item = Page> {
        pages.iter().zip(&self.places).map(|(page, &(slab, first))| Page { first, rows: page.rows, slab })
    }
}

/// Writes rules, those with successive numbers together.
fn rule_writes(rules: Vec<(u16, Rule)>) -> Vec<Write> {
    let mut writes: Vec<Write> = Vec::new();
    for (number, rule) in rules {
        match writes.last_mut() {
            Some(Write::Rules { first, rules }) if *first + rules.len() as u32 == u32::from(number) => {
                rules.push(rule);
            }
            _ => writes.push(Write::Rules { first: u32::from(number), rules: vec![rule] }),
        }
    }
    writes
}

#[cfg(test)]
mod tests;
