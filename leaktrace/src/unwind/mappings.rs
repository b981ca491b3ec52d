//! The executable mappings of a process: kept up to date from /proc/PID/maps and the kernel's mmap records, and
//! laid out as the walker reads them. Reading those, and finding each file's table, is left to the caller.
//!
//! The kernel tells of mappings that come and not of those that go, so the newest wins wherever two overlap;
//! what is left of a mapping that is gone does no harm, since no return address lies in it.
use std::collections::BTreeMap;

use leaktrace_common::unwind::{GUESS_TABLE, MAX_MAPPINGS, Mapping, NO_TABLE};

use crate::unwind::{elf::Elf, store::Placed};

/// Regions kept of one process: as many mappings as the kernel allows by default (`vm.max_map_count`).
const MAX_REGIONS: usize = 1 << 16;

/// A mapped executable range. `F` names the file, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region<F> {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Where in the file the range begins, in bytes.
    pub file_offset: u64,
    /// The file.
    pub file: F,
}

/// The executable regions of a process; none overlap.
#[derive(Clone, Debug)]
pub struct Regions<F> {
    by_start: BTreeMap<u64, Region<F>>,
    refused: u64,
}

impl<F> Default for Regions<F> {
    fn default() -> Self {
        Regions { by_start: BTreeMap::new(), refused: 0 }
    }
}

/// What the walker may do in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Follow a table. A table without pages means [`Placement::Guess`].
    Table {
        /// Address in the process − address in the file.
        load_bias: u64,
        /// Where the table lies.
        placed: Placed,
    },
    /// Guess one frame-pointer step a frame: code without unwind information, as a JIT writes it.
    Guess,
    /// Stop: the table is not there (yet).
    Missing,
}

/// A process's mappings as the kernel walker reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Ascending, not overlapping, at most [`MAX_MAPPINGS`].
    pub mappings: Vec<Mapping>,
    /// How many more there are.
    pub left_out: usize,
}

impl<F: Clone> Regions<F> {
    /// Adds a region that was mapped just now: what it overlaps is gone.
    pub fn insert(&mut self, region: Region<F>) {
        self.remove(region.start, region.end);
        if region.start >= region.end {
            return;
        }
        if self.by_start.len() >= MAX_REGIONS {
            self.refused += 1;
            return;
        }
        self.by_start.insert(region.start, region);
    }

    /// Removes a range, cutting off or splitting what reaches into it.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((_, before)) = self.by_start.range_mut(..start).next_back()
            && before.end > start
        {
            let whole = before.clone();
            before.end = start;
            self.keep_tail(whole, end);
        }
        while let Some((&first, _)) = self.by_start.range(start..end).next() {
            if let Some(inside) = self.by_start.remove(&first) {
                self.keep_tail(inside, end);
            }
        }
    }

    /// Keeps what lies behind `from`, if anything does.
    fn keep_tail(&mut self, region: Region<F>, from: u64) {
        if region.end > from {
            let file_offset = region.file_offset.wrapping_add(from - region.start);
            self.by_start.insert(from, Region { start: from, file_offset, ..region });
        }
    }

    /// Forgets everything: the process has executed another program.
    pub fn clear(&mut self) {
        self.by_start.clear();
        self.refused = 0;
    }

    /// The region that holds an address.
    pub fn at(&self, address: u64) -> Option<&Region<F>> {
        let (_, region) = self.by_start.range(..=address).next_back()?;
        (address < region.end).then_some(region)
    }

    /// The regions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Region<F>> {
        self.by_start.values()
    }

    /// Regions that there was no room for. If any, the mappings of a process that maps and unmaps code all the
    /// time have piled up: clear, and read /proc/PID/maps again.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Lays the regions out for the walker; `place` says for each what the walker may do and its salt
    /// ([`Mapping::salt`]). Where they are more than it takes, those with a table come first, then those in which
    /// it may guess.
    pub fn layout(&self, mut place: impl FnMut(&Region<F>) -> (Placement, u16)) -> Layout {
        let mut mappings: Vec<Mapping> = Vec::new();
        for region in self.iter() {
            let (placement, salt) = place(region);
            let mapping = placement.mapping(region.start, region.end, salt);
            match mappings.last_mut() {
                Some(last) if continues(last, &mapping) => last.end = mapping.end,
                _ => mappings.push(mapping),
            }
        }
        let left_out = mappings.len().saturating_sub(MAX_MAPPINGS);
        if left_out > 0 {
            mappings.sort_by_key(|mapping| match mapping.first_page {
                NO_TABLE => 2,
                GUESS_TABLE => 1,
                _ => 0,
            });
            mappings.truncate(MAX_MAPPINGS);
            mappings.sort_unstable_by_key(|mapping| mapping.start);
        }
        Layout { mappings, left_out }
    }
}

/// Whether a mapping goes on where another ends, for all that the walker sees.
fn continues(last: &Mapping, next: &Mapping) -> bool {
    last.end == next.start
        && (last.bias, last.first_page, last.pages, last.salt)
            == (next.bias, next.first_page, next.pages, next.salt)
}

impl Placement {
    /// The placement of a region of a file whose table lies at `placed`.
    pub fn of_file<F>(region: &Region<F>, elf: &Elf, placed: Placed) -> Placement {
        match elf.bias(region.start, region.file_offset) {
            Some(load_bias) => Placement::Table { load_bias, placed },
            None => Placement::Guess,
        }
    }

    fn mapping(self, start: u64, end: u64, salt: u16) -> Mapping {
        let (bias, first_page, pages) = match self {
            Placement::Table { load_bias, placed } if placed.pages > 0 => {
                let pages = u16::try_from(placed.pages).unwrap_or(u16::MAX);
                (load_bias.wrapping_add(placed.base_address), placed.first_page, pages)
            }
            Placement::Table { .. } | Placement::Guess => (0, GUESS_TABLE, 0),
            Placement::Missing => (0, NO_TABLE, 0),
        };
        Mapping { start, end, bias, first_page, pages, salt }
    }
}

#[cfg(test)]
mod tests;
