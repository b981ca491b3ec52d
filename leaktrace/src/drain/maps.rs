//! The kernel maps that describe targets and hold what was recorded, by process.
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use leaktrace_common::{
    bytes_of,
    counter::{COUNTERS, Counter, TALLY_WORDS},
    heap::{Block, SET_ASIDE, SiteKey, SiteTotals},
    hook::{Hits, slot_of_table},
    read,
    sample::{FILTER_LENGTH, filter_index},
    target::{Bigger, NOBODY, NOBODYS_SLOT, Process, Target},
};

use super::{
    batch,
    bigger::{BiggerTable, BiggerTables, TableSizes},
    sites::Sites,
    slots::{SlotLease, Slots},
    targets::Targets,
    threads::Threads,
};
use crate::attach::{object::KernelObject, shared::SharedArray, sys};

/// Counters of one process, summed over the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally([u64; COUNTERS as usize]);

impl Tally {
    /// All zero.
    pub const ZERO: Tally = Tally([0; COUNTERS as usize]);

    /// One counter.
    pub fn of(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Adds `amount` to one counter.
    pub fn add(&mut self, counter: Counter, amount: u64) {
        if let Some(slot) = self.0.get_mut(counter as usize) {
            *slot = slot.saturating_add(amount);
        }
    }

    /// A number that changes with every counter.
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, amount| sum.wrapping_add(*amount))
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: &Tally) {
        for (slot, amount) in self.0.iter_mut().zip(other.0) {
            *slot = slot.saturating_add(amount);
        }
    }
}

/// The tables of live blocks of a process that is gone. Dropping them waits until no program can be looking at them.
pub struct RetiredTable {
    live: Arc<OwnedFd>,
    filter: Option<Arc<Filter>>,
    sizes: TableSizes,
    table: Table,
    bigger: Vec<BiggerTable>,
}

/// A process's table of live blocks, and the slot that goes with it.
struct Table {
    map: OwnedFd,
    lease: SlotLease,
}

impl Drop for RetiredTable {
    fn drop(&mut self) {
        let slots = self.bigger.iter().map(|bigger| bigger.index).chain([self.table.lease.slot()]);
        for slot in slots {
            let _ = sys::map_delete(self.live.as_fd(), bytes_of(&slot));
        }
        let Some(filter) = &self.filter else { return };
        for map in self.bigger.iter().map(|bigger| &bigger.map).chain([&self.table.map]) {
            let mut addresses: Vec<u64> = Vec::new();
            let read =
                batch::for_each(map.as_fd(), self.sizes.small, |address, _: Block| addresses.push(address));
            if let Err(error) = read {
                tracing::debug!(%error, "blocks of a process that is gone stay in the filter");
            }
            for address in addresses {
                filter.delete(map, address);
            }
        }
    }
}

/// How many live blocks of sampled processes there are by a hash of their addresses; the kernel programs look here
/// before they look anywhere else. Who takes a block out of a table counts it down.
struct Filter(SharedArray);

impl Filter {
    /// Deletes a block from a table; whether it was there.
    fn delete(&self, table: &OwnedFd, address: u64) -> bool {
        let was_there = matches!(sys::map_delete(table.as_fd(), bytes_of(&address)), Ok(true));
        if was_there {
            self.0.count_down(filter_index(address));
        }
        was_there
    }
}

/// Descriptors of the maps and the inner maps of live blocks.
pub struct Maps {
    targets: Targets,
    processes: OwnedFd,
    tallies: OwnedFd,
    hits: OwnedFd,
    /// None where nothing is sampled.
    filter: Option<Arc<Filter>>,
    threads: Threads,
    live: Arc<OwnedFd>,
    sites: Sites,
    stack_ids: OwnedFd,
    spare_tables: OwnedFd,
    slots: Slots,
    tables: HashMap<u32, Table>,
    table_of: HashMap<u32, u32>,
    bigger: BiggerTables,
    sizes: TableSizes,
    cpus: usize,
}

impl Maps {
    /// The maps of a loaded object. `max_blocks` is how many live blocks of each process there is room for.
    ///
    /// # Errors
    /// When the object lacks a map.
    pub fn of(kernel: &KernelObject, max_blocks: u32, samples: bool) -> Result<Maps> {
        let own = |name: &str| -> Result<OwnedFd> { Ok(kernel.map_fd(name)?.try_clone_to_owned()?) };
        let size = |name: &str| -> Result<u32> { Ok(kernel.map(name)?.info()?.max_entries()) };
        let filter = |fd| SharedArray::map(fd, FILTER_LENGTH * 4).context("mapping the kernel map FILTER");
        let filter = samples.then(|| kernel.map_fd("FILTER").and_then(filter)).transpose()?;
        let live = Arc::new(own("LIVE")?);
        let sizes = TableSizes::of(max_blocks);
        let places = (size("TARGETS")?, size("LIVE")?);
        Ok(Maps {
            bigger: BiggerTables::of(kernel, &live, places, sizes)?,
            targets: Targets::map(kernel.map_fd("TARGETS")?, size("TARGETS")?)?,
            processes: own("PROCESSES")?,
            tallies: own("TALLIES")?,
            hits: own("HITS")?,
            filter: filter.map(|filter| Arc::new(Filter(filter))),
            threads: Threads::of(kernel)?,
            live,
            sites: Sites::of(kernel)?,
            stack_ids: own("STACK_IDS")?,
            spare_tables: own("SPARE_TABLES")?,
            slots: Slots::new(size("TARGETS")?),
            tables: HashMap::new(),
            table_of: HashMap::new(),
            sizes,
            cpus: aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?,
        })
    }

    /// Makes the table of live blocks and the tally of a process; the process is not traced yet. The table's key.
    ///
    /// # Errors
    /// When a map cannot be made, or there are as many targets as there can be.
    pub fn prepare(&mut self, kernel: &KernelObject, pid: u32) -> Result<u32> {
        let table = self.make_table(kernel).with_context(|| format!("process {pid}"))?;
        self.table_of.insert(pid, table);
        let kept = self.keep_bigger(kernel);
        if kept.is_err() {
            drop(self.forget(pid));
        }
        kept.with_context(|| format!("process {pid}"))?;
        Ok(table)
    }

    /// Takes over a process which a traced one has made, with the table that the kernel gave to it.
    pub fn adopt(&mut self, pid: u32, settings: &Target) {
        self.table_of.insert(pid, settings.table);
    }

    /// Keeps `wanted` tables ready for processes that traced ones will make.
    ///
    /// # Errors
    /// When a table cannot be made.
    pub fn keep_spares(&mut self, kernel: &KernelObject, wanted: usize) -> Result<()> {
        let used: std::collections::HashSet<u32> = self.table_of.values().copied().collect();
        let spare = self.tables.keys().filter(|table| !used.contains(table)).count();
        for _ in spare..wanted {
            let table = self.make_table(kernel)?;
            sys::map_update(self.spare_tables.as_fd(), &[], bytes_of(&table))
                .context("keeping a table for a child")?;
        }
        Ok(())
    }

    /// Keeps bigger tables ready for processes that may come to need them.
    ///
    /// # Errors
    /// When a table cannot be made.
    pub fn keep_bigger(&mut self, kernel: &KernelObject) -> Result<()> {
        let used: Vec<Bigger> = self.table_of.values().map(|table| self.targets.bigger(*table)).collect();
        self.bigger.keep(kernel, &used)
    }

    fn make_table(&mut self, kernel: &KernelObject) -> Result<u32> {
        let map = kernel.make_inner("LIVE", Some(self.sizes.small))?;
        let (table, lease) = self.slots.take().context("there are as many targets as there can be")?;
        let slot = lease.slot();
        // When this is done, no program is left that has found the slot for the process which had it before: the kernel
        // waits for them when a map of maps has changed.
        sys::map_update(self.live.as_fd(), bytes_of(&slot), &map.as_raw_fd().to_ne_bytes())
            .context("handing out a table of live blocks")?;
        let zeros = vec![0u8; TALLY_WORDS * 8 * self.cpus];
        sys::map_update(self.tallies.as_fd(), bytes_of(&slot), &zeros).context("making counters")?;
        self.targets.open(table);
        self.tables.insert(table, Table { map, lease });
        Ok(table)
    }

    /// The tables that may have live blocks of a process.
    fn tables(&self, pid: u32) -> impl Iterator<Item = &OwnedFd> {
        let table = self.table_of.get(&pid);
        let bigger = table.map(|table| self.targets.bigger(*table)).unwrap_or_default();
        let first = table.and_then(|table| self.tables.get(table)).map(|table| &table.map);
        self.bigger.maps(bigger).chain(first)
    }

    /// Starts tracing a process, or changes how it is traced.
    ///
    /// # Errors
    /// When there are as many targets as there can be.
    pub fn set_target(&self, pid: u32, target: &Target) -> Result<()> {
        if self.targets.of(target.table).is_some_and(|now| now.owner == target.owner) {
            self.targets.change(target);
            return Ok(());
        }
        self.targets.fill(target);
        let process = Process { table: target.table, generation: target.generation };
        sys::map_update(self.processes.as_fd(), bytes_of(&pid), bytes_of(&process))
            .with_context(|| format!("process {pid}: there are as many targets as there can be"))
    }

    /// How a process is traced now; the generation is bumped by the kernel.
    pub fn target(&self, pid: u32) -> Option<Target> {
        let mut bytes = [0; size_of::<Process>()];
        sys::map_lookup(self.processes.as_fd(), bytes_of(&pid), &mut bytes).ok()?.then_some(())?;
        self.targets.of(read::<Process>(&bytes)?.table)
    }

    /// Stops tracing a process; what was recorded stays.
    pub fn stop(&self, pid: u32) {
        let _ = sys::map_delete(self.processes.as_fd(), bytes_of(&pid));
        if let Some(table) = self.table_of.get(&pid) {
            self.targets.leave(*table);
        }
    }

    /// Drops everything about a process but its sites. Its table goes when what is returned is dropped, which takes
    /// time and can be done aside: its slot is not given away before.
    pub fn forget(&mut self, pid: u32) -> Option<RetiredTable> {
        self.stop(pid);
        let table = self.table_of.remove(&pid)?;
        let (live, filter) = (Arc::clone(&self.live), self.filter.clone());
        let bigger = self.bigger.take(self.targets.close(table));
        let table = self.tables.remove(&table)?;
        Some(RetiredTable { live, filter, sizes: self.sizes, table, bigger })
    }

    /// Drops the state of threads whose exits will not be seen.
    pub fn forget_threads(&self, threads: &[u32]) {
        for thread in threads {
            self.threads.forget(*thread);
        }
    }

    /// The counters of a process, or of [`NOBODY`].
    pub fn tally(&self, pid: u32) -> Tally {
        let mut bytes = vec![0; TALLY_WORDS * 8 * self.cpus];
        let mut tally = Tally::ZERO;
        let slot = match self.table_of.get(&pid) {
            Some(table) => slot_of_table(*table),
            None if pid == NOBODY => NOBODYS_SLOT,
            None => return tally,
        };
        if !matches!(sys::map_lookup(self.tallies.as_fd(), bytes_of(&slot), &mut bytes), Ok(true)) {
            return tally;
        }
        for cpu in bytes.chunks_exact(TALLY_WORDS * 8) {
            for (slot, word) in tally.0.iter_mut().zip(cpu.chunks_exact(8)) {
                *slot = slot.saturating_add(read(word).unwrap_or(0));
            }
        }
        tally
    }

    /// Probe hits of a process, over all CPUs; they never go back to 0.
    pub fn hits(&self, pid: u32) -> Hits {
        let mut sum = Hits::default();
        let Some(table) = self.table_of.get(&pid) else { return sum };
        let mut bytes = vec![0; size_of::<Hits>() * self.cpus];
        let slot = slot_of_table(*table);
        if matches!(sys::map_lookup(self.hits.as_fd(), bytes_of(&slot), &mut bytes), Ok(true)) {
            for hits in bytes.chunks_exact(size_of::<Hits>()).filter_map(read::<Hits>) {
                sum.count = sum.count.wrapping_add(hits.count);
                sum.cost = sum.cost.wrapping_add(hits.cost);
            }
        }
        sum
    }

    /// Calls `each` for every live block of a process: address and block.
    ///
    /// # Errors
    /// The system call's error.
    pub fn for_each_block(&self, pid: u32, mut each: impl FnMut(u64, Block)) -> io::Result<()> {
        for map in self.tables(pid) {
            batch::for_each(map.as_fd(), self.sizes.small, |address: u64, block: Block| {
                if block.is_live() {
                    each(address & !SET_ASIDE, block);
                }
            })?;
        }
        Ok(())
    }

    /// Deletes live blocks of a process by address.
    pub fn delete_blocks(&self, pid: u32, addresses: &[u64]) {
        for map in self.tables(pid) {
            for address in addresses {
                self.delete(map, *address);
            }
        }
    }

    /// Deletes the block at `address` if it is still the one born at `born_ns`; whether it was.
    pub fn delete_block_born(&self, pid: u32, address: u64, born_ns: u64) -> bool {
        self.tables(pid).any(|map| {
            let mut bytes = [0; size_of::<Block>()];
            let found = sys::map_lookup(map.as_fd(), bytes_of(&address), &mut bytes);
            let is_same = matches!(found, Ok(true))
                && read::<Block>(&bytes).is_some_and(|block| block.born_ns == born_ns && block.is_live());
            is_same && self.delete(map, address)
        })
    }

    /// Deletes the block at an address from a table; whether it was there.
    fn delete(&self, map: &OwnedFd, address: u64) -> bool {
        match &self.filter {
            Some(filter) => filter.delete(map, address),
            None => matches!(sys::map_delete(map.as_fd(), bytes_of(&address)), Ok(true)),
        }
    }

    /// Calls `each` for every site, with counts in whole blocks.
    ///
    /// # Errors
    /// The system call's error.
    pub fn for_each_site(&self, mut each: impl FnMut(SiteKey, SiteTotals)) -> io::Result<()> {
        self.sites.for_each(|key, totals| each(key, totals.in_whole_blocks()))
    }

    /// Drops sites and the stacks they refer to, once their process image is gone.
    pub fn delete_sites(&self, keys: &[SiteKey]) {
        for key in keys {
            self.sites.delete(*key);
            let _ = sys::map_delete(self.stack_ids.as_fd(), bytes_of(&key.stack));
        }
    }
}
