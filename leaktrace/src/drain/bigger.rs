//! Bigger tables of live blocks: kept ready for processes whose first table will not do, and given to them by the kernel
//! programs that find it full. They lie in the map LIVE behind the slots.
use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use leaktrace_common::{bytes_of, target::Bigger};

use crate::attach::{object::KernelObject, sys};

/// Blocks that fit into a process's first table, which takes 16 bytes for each from the start,
const SMALL: u32 = 4096;
/// and into its second one.
const MIDDLE: u32 = 65_536;

/// How many blocks fit into each table of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// The one that each process has.
    pub small: u32,
    /// The one that it is given next; 0 for none.
    pub middle: u32,
    /// The last one; 0 for none.
    pub large: u32,
}

impl TableSizes {
    /// Those that have room for `max_blocks` together.
    pub fn of(max_blocks: u32) -> TableSizes {
        let small = max_blocks.clamp(1, SMALL);
        let middle = max_blocks.saturating_sub(small).min(MIDDLE);
        let large = max_blocks.saturating_sub(small).saturating_sub(middle);
        TableSizes { small, middle, large }
    }
}

/// Places in LIVE that are free.
type Free = Arc<Mutex<Vec<u32>>>;

/// A bigger table. Its place in LIVE is free again when this is dropped.
pub struct BiggerTable {
    /// The map.
    pub map: OwnedFd,
    /// Its index in LIVE.
    pub index: u32,
    free: Free,
}

impl Drop for BiggerTable {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// Tables of one size.
struct Kind {
    /// Where the kernel programs take them from.
    queue: OwnedFd,
    max_blocks: u32,
    /// All that were made and not taken back.
    made: HashSet<u32>,
}

/// All bigger tables.
pub struct BiggerTables {
    live: Arc<OwnedFd>,
    middle: Kind,
    large: Kind,
    tables: HashMap<u32, BiggerTable>,
    free: Free,
}

impl BiggerTables {
    /// None yet; `live` has room for `slots` tables and behind them for these, up to `places`.
    ///
    /// # Errors
    /// When the object lacks a map.
    pub fn of(
        kernel: &KernelObject,
        live: &Arc<OwnedFd>,
        (slots, places): (u32, u32),
        sizes: TableSizes,
    ) -> Result<BiggerTables> {
        let kind = |name: &str, max_blocks: u32| -> Result<Kind> {
            let queue = kernel.map_fd(name)?.try_clone_to_owned()?;
            Ok(Kind { queue, max_blocks, made: HashSet::new() })
        };
        Ok(BiggerTables {
            live: Arc::clone(live),
            middle: kind("MIDDLE_TABLES", sizes.middle)?,
            large: kind("LARGE_TABLES", sizes.large)?,
            tables: HashMap::new(),
            free: Arc::new(Mutex::new((slots.max(1)..places).rev().collect())),
        })
    }

    /// Keeps tables ready, where `used` says what the processes have.
    ///
    /// # Errors
    /// When a table cannot be made.
    pub fn keep(&mut self, kernel: &KernelObject, used: &[Bigger]) -> Result<()> {
        let wanted = Wanted::of(used);
        let middles = used.iter().filter(|used| self.middle.made.contains(&used.middle)).count();
        let larges = used.iter().filter(|used| self.large.made.contains(&used.large)).count();
        let Self { live, middle, large, tables, free } = self;
        for (kind, used, wanted) in [(middle, middles, wanted.middle), (large, larges, wanted.large)] {
            if kind.max_blocks == 0 {
                continue;
            }
            let ready = kind.made.len().saturating_sub(used);
            for _ in ready..wanted {
                let Some(table) = make(kernel, live, free, kind)? else { break };
                kind.made.insert(table.index);
                tables.insert(table.index, table);
            }
        }
        Ok(())
    }

    /// A process's bigger tables.
    pub fn maps(&self, bigger: Bigger) -> impl Iterator<Item = &OwnedFd> {
        let found = [bigger.large, bigger.middle].map(|index| self.tables.get(&index));
        found.into_iter().flatten().map(|table| &table.map)
    }

    /// Takes the tables of a process that is gone.
    pub fn take(&mut self, bigger: Bigger) -> Vec<BiggerTable> {
        self.middle.made.remove(&bigger.middle);
        self.large.made.remove(&bigger.large);
        [bigger.large, bigger.middle].into_iter().filter_map(|index| self.tables.remove(&index)).collect()
    }
}

/// Makes a table and lets the kernel programs have it; `None` when there is no place for it.
fn make(kernel: &KernelObject, live: &OwnedFd, free: &Free, kind: &Kind) -> Result<Option<BiggerTable>> {
    let map = kernel.make_inner("LIVE", Some(kind.max_blocks))?;
    let Some(index) = free.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return Ok(None) };
    let table = BiggerTable { map, index, free: Arc::clone(free) };
    sys::map_update(live.as_fd(), bytes_of(&index), &table.map.as_raw_fd().to_ne_bytes())
        .context("handing out a bigger table of live blocks")?;
    sys::map_update(kind.queue.as_fd(), &[], bytes_of(&index)).context("keeping a bigger table ready")?;
    Ok(Some(table))
}

/// How many tables are to be ready.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    middle: usize,
    large: usize,
}

impl Wanted {
    /// Middle tables at the most: as many processes may outgrow their first table before user space has time.
    const MOST_MIDDLE: usize = 8;
    /// Large ones; they are large.
    const MOST_LARGE: usize = 3;

    fn of(used: &[Bigger]) -> Wanted {
        if used.is_empty() {
            return Wanted { middle: 0, large: 0 };
        }
        let growing = used.iter().filter(|used| used.middle != 0 && used.large == 0).count();
        let small = used.iter().filter(|used| used.middle == 0).count();
        // A program can be faster than user space: one large table is ready before anybody needs it.
        Wanted { middle: small.clamp(1, Wanted::MOST_MIDDLE), large: (1 + growing).min(Wanted::MOST_LARGE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_a_process_have_room_for_what_was_asked_for() {
        for max_blocks in [1, 100, 4096, 4097, 69_631, 69_632, 69_633, 1_000_000, u32::MAX] {
            let TableSizes { small, middle, large } = TableSizes::of(max_blocks);
            assert_eq!(small + middle + large, max_blocks);
            assert!(small > 0 && (large == 0 || middle == MIDDLE) && (middle == 0 || small == SMALL));
        }
    }

    #[test]
    fn tables_are_kept_ready_for_those_that_may_need_them() {
        let small = Bigger::default();
        let middle = Bigger { middle: 5, large: 0 };
        let full = Bigger { middle: 6, large: 7 };
        assert_eq!(Wanted::of(&[]), Wanted { middle: 0, large: 0 });
        assert_eq!(Wanted::of(&[small]), Wanted { middle: 1, large: 1 });
        assert_eq!(Wanted::of(&[small, small, middle]), Wanted { middle: 2, large: 2 });
        assert_eq!(Wanted::of(&[full]), Wanted { middle: 1, large: 1 });
        assert_eq!(Wanted::of(&[small; 99]).middle, Wanted::MOST_MIDDLE);
    }
}
