//! The live blocks of one process image as they were drained from the kernel, 24 bytes each: ages, sums of old
//! blocks, single blocks, and pairs that overlap because a free was missed.
//!
//! Draining is left to `drain`; a table is made for one summary and dropped after it.
use std::collections::HashMap;

use leaktrace_common::{heap::Block, sample::CERTAIN};

use super::{estimate::Moments, snapshot::BlockView};

/// Blocks whose size does not fit into 32 bits are kept apart.
const LARGE: u32 = u32::MAX;
/// Of what [`leaktrace_common::sample::SizeModel`] adds to a small block.
const MAX_OVERHEAD_BYTES: u64 = 32;
const ADDRESS_BITS: u32 = 56;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Allocator in the upper 8 bits, address in the lower 56: sorted, the blocks of one allocator lie together.
    place: u64,
    born_ns: u64,
    size_bytes: u32,
    site: u32,
}

/// Sums over the blocks of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSums {
    /// Sum of their sizes.
    pub bytes: u64,
    /// How many.
    pub count: u64,
    /// When the oldest was allocated, in ns of CLOCK_BOOTTIME.
    pub oldest_born_ns: u64,
}

/// A block that overlaps a younger one of the same allocator: its free was missed, unless it was freed while the
/// table was being read. Whoever drained the table looks it up again and deletes it if it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlapped {
    /// Its address: the key in the kernel's table.
    pub address: u64,
    /// Its size.
    pub size_bytes: u64,
    /// When it was allocated; another value found at the address means that it was freed meanwhile.
    pub born_ns: u64,
    /// Its site.
    pub stack: u64,
    /// Its sampling threshold.
    pub threshold: u32,
}

/// The live blocks of one process image.
#[derive(Debug, Default)]
pub struct Blocks {
    rows: Vec<Row>,
    stacks: Vec<u64>,
    indices: HashMap<u64, u32>,
    large: HashMap<u64, u64>,
    /// Of blocks that were not recorded for certain.
    thresholds: HashMap<u64, u32>,
    sample_interval_bytes: u64,
}

impl Blocks {
    /// An empty table with room for `capacity` blocks.
    pub fn with_capacity(capacity: usize) -> Blocks {
        Blocks { rows: Vec::with_capacity(capacity), ..Blocks::default() }
    }

    /// Says that the blocks are samples, with this mean interval; 0 says that they are all there are.
    pub fn sampled_every(mut self, interval_bytes: u64) -> Blocks {
        self.sample_interval_bytes = interval_bytes;
        self
    }

    /// Mean bytes between samples, where the blocks are samples.
    pub fn sample_interval_bytes(&self) -> Option<u64> {
        (self.sample_interval_bytes > 0).then_some(self.sample_interval_bytes)
    }

    /// Adds a drained block. `allocator` tells blocks of independent allocators apart: a pool's blocks may lie
    /// inside a block of the allocator below it.
    pub fn push(&mut self, address: u64, block: &Block, allocator: u8) {
        let place = u64::from(allocator) << ADDRESS_BITS | address & ADDRESS_MASK;
        let site = match self.indices.get(&block.stack) {
            Some(index) => *index,
            None => {
                let index = u32::try_from(self.stacks.len()).unwrap_or(u32::MAX);
                self.stacks.push(block.stack);
                self.indices.insert(block.stack, index);
                index
            }
        };
        let size_bytes = u32::try_from(block.size_bytes).unwrap_or(LARGE);
        if size_bytes == LARGE {
            self.large.insert(place, block.size_bytes);
        }
        if block.threshold != CERTAIN {
            self.thresholds.insert(place, block.threshold);
        }
        self.rows.push(Row { place, born_ns: block.born_ns, size_bytes, site });
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Removes blocks that overlap a younger block of the same allocator and says which; one sort, one pass.
    pub fn remove_overlapped(&mut self) -> Vec<Overlapped> {
        self.rows.sort_unstable_by_key(|row| row.place);
        let mut removed: Vec<Row> = Vec::new();
        let mut out = 0usize;
        // `out` rows at the front are kept; the last of them is the one with the greatest end so far, because
        // kept rows do not overlap.
        for index in 0..self.rows.len() {
            let Some(row) = self.rows.get(index).copied() else { break };
            let previous = out.checked_sub(1).and_then(|last| self.rows.get(last)).copied();
            match previous {
                Some(previous) if self.covers(&previous, &row) => {
                    let previous_leaves = previous.born_ns <= row.born_ns;
                    removed.push(if previous_leaves { previous } else { row });
                    if previous_leaves && let Some(slot) = self.rows.get_mut(out - 1) {
                        *slot = row;
                    }
                }
                _ => {
                    if let Some(slot) = self.rows.get_mut(out) {
                        *slot = row;
                    }
                    out += 1;
                }
            }
        }
        self.rows.truncate(out);
        removed
            .iter()
            .map(|row| Overlapped {
                address: row.place & ADDRESS_MASK,
                size_bytes: self.size(row),
                born_ns: row.born_ns,
                stack: self.stack(row),
                threshold: self.threshold(row),
            })
            .collect()
    }

    /// Sums by site over the blocks that are at least `older_ns` old at `now_ns`, in one pass.
    pub fn sums(&self, now_ns: u64, older_ns: u64) -> HashMap<u64, BlockSums> {
        let mut sums =
            vec![BlockSums { oldest_born_ns: u64::MAX, ..BlockSums::default() }; self.stacks.len()];
        for row in &self.rows {
            if now_ns.saturating_sub(row.born_ns) < older_ns {
                continue;
            }
            if let Some(sum) = sums.get_mut(row.site as usize) {
                sum.bytes += self.size(row);
                sum.count += 1;
                sum.oldest_born_ns = sum.oldest_born_ns.min(row.born_ns);
            }
        }
        self.stacks.iter().copied().zip(sums).filter(|(_, sum)| sum.count > 0).collect()
    }

    /// What the blocks that are at least `older_ns` old at `now_ns` stand for, by site; `None` where they are no
    /// samples.
    pub fn moments(&self, now_ns: u64, older_ns: u64) -> Option<HashMap<u64, Moments>> {
        let none = Moments::new(self.sample_interval_bytes()?);
        let mut moments = vec![none; self.stacks.len()];
        for row in self.rows.iter().filter(|row| now_ns.saturating_sub(row.born_ns) >= older_ns) {
            if let Some(moments) = moments.get_mut(row.site as usize) {
                moments.add(self.size(row), self.threshold(row));
            }
        }
        Some(self.stacks.iter().copied().zip(moments).collect())
    }

    /// The single blocks of the wanted sites that are at least `older_ns` old, oldest first, `limit` of each.
    pub fn of_sites(
        &self,
        wanted: impl IntoIterator<Item = u64>,
        now_ns: u64,
        older_ns: u64,
        limit: usize,
    ) -> HashMap<u64, Vec<BlockView>> {
        let mut lists: HashMap<u32, Vec<BlockView>> = wanted
            .into_iter()
            .filter_map(|stack| self.indices.get(&stack))
            .map(|index| (*index, Vec::new()))
            .collect();
        for row in &self.rows {
            let age_ns = now_ns.saturating_sub(row.born_ns);
            if age_ns < older_ns {
                continue;
            }
            if let Some(list) = lists.get_mut(&row.site) {
                list.push(BlockView {
                    address: row.place & ADDRESS_MASK,
                    size_bytes: self.size(row),
                    age_ns,
                });
                if list.len() >= limit.saturating_mul(2).saturating_add(1024) {
                    cut_to_oldest(list, limit);
                }
            }
        }
        lists
            .into_iter()
            .filter_map(|(index, mut list)| {
                cut_to_oldest(&mut list, limit);
                self.stacks.get(index as usize).map(|stack| (*stack, list))
            })
            .collect()
    }

    fn size(&self, row: &Row) -> u64 {
        if row.size_bytes == LARGE {
            self.large.get(&row.place).copied().unwrap_or(u64::from(LARGE))
        } else {
            u64::from(row.size_bytes)
        }
    }

    fn threshold(&self, row: &Row) -> u32 {
        self.thresholds.get(&row.place).copied().unwrap_or(CERTAIN)
    }

    /// Whether `row`, which starts at or after `previous`, starts inside it.
    fn covers(&self, previous: &Row, row: &Row) -> bool {
        let mut bytes = self.size(previous);
        if self.sample_interval_bytes > 0 {
            // What was taken includes the allocator's own words, which may lie before the block.
            bytes = bytes.saturating_sub(MAX_OVERHEAD_BYTES).max(1);
        }
        previous.place >> ADDRESS_BITS == row.place >> ADDRESS_BITS
            && previous.place.saturating_add(bytes) > row.place
    }

    fn stack(&self, row: &Row) -> u64 {
        self.stacks.get(row.site as usize).copied().unwrap_or(0)
    }
}

fn cut_to_oldest(list: &mut Vec<BlockView>, limit: usize) {
    list.sort_unstable_by_key(|block| (std::cmp::Reverse(block.age_ns), block.address));
    list.truncate(limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(size_bytes: u64, born_ns: u64, stack: u64) -> Block {
        Block { size_bytes, born_ns, stack, threshold: 0, generation: 0, function: 0 }
    }

    fn table(rows: &[(u64, u64, u64, u64)]) -> Blocks {
        let mut blocks = Blocks::default();
        for (address, size, born, stack) in rows {
            blocks.push(*address, &block(*size, *born, *stack), 0);
        }
        blocks
    }

    #[test]
    fn of_two_overlapping_blocks_the_older_leaves() {
        let mut blocks =
            table(&[(100, 50, 2, 7), (140, 10, 1, 8), (200, 10, 1, 9), (205, 1, 5, 9), (210, 4, 3, 9)]);
        let removed = blocks.remove_overlapped();
        assert_eq!(removed.iter().map(|r| r.address).collect::<Vec<_>>(), [140, 200]);
        assert_eq!(blocks.len(), 3);
    }

    #[test]
    fn a_young_block_over_several_old_ones_removes_them_all() {
        let mut blocks =
            table(&[(100, 100, 9, 1), (110, 5, 1, 2), (120, 5, 2, 2), (190, 20, 3, 2), (205, 5, 1, 2)]);
        let mut removed: Vec<u64> = blocks.remove_overlapped().iter().map(|r| r.address).collect();
        removed.sort_unstable();
        assert_eq!(removed, [110, 120, 190]);
    }

    #[test]
    fn neighbours_and_empty_blocks_do_not_overlap() {
        let mut blocks = table(&[(100, 16, 1, 1), (116, 0, 2, 1), (132, 16, 3, 1)]);
        assert!(blocks.remove_overlapped().is_empty());
        let mut inside = table(&[(100, 16, 1, 1), (108, 0, 2, 1)]);
        assert_eq!(inside.remove_overlapped().len(), 1);
    }

    #[test]
    fn a_pool_inside_a_block_of_another_allocator_is_no_overlap() {
        let mut blocks = table(&[(100, 1000, 1, 1)]);
        blocks.push(200, &block(10, 2, 2), 1);
        assert!(blocks.remove_overlapped().is_empty());
    }

    #[test]
    fn sums_and_the_oldest_block_are_by_site_and_age() {
        let blocks = table(&[(100, 10, 5, 1), (200, 20, 50, 1), (300, 7, 90, 2), (400, 5 << 32, 10, 3)]);
        let all = blocks.sums(100, 0);
        assert_eq!(all[&1], BlockSums { bytes: 30, count: 2, oldest_born_ns: 5 });
        assert_eq!(all[&3].bytes, 5 << 32);
        let old = blocks.sums(100, 50);
        assert_eq!(old[&1], BlockSums { bytes: 30, count: 2, oldest_born_ns: 5 });
        assert!(!old.contains_key(&2));
        assert_eq!(blocks.sums(100, 51)[&1].count, 1);
    }

    #[test]
    fn samples_stand_for_more_than_themselves() {
        let mut blocks = table(&[(100, 10, 5, 1), (200, 5 << 32, 50, 2)]).sampled_every(4096);
        blocks.push(300, &Block { threshold: 1 << 30, ..block(48, 20, 1) }, 0);
        let moments = blocks.moments(100, 0).unwrap();
        assert_eq!((moments[&1].bytes_value(), moments[&1].count_value(), moments[&1].samples), (202, 5, 2));
        assert_eq!((moments[&2].bytes_value(), moments[&2].count_value()), (5 << 32, 1));
        assert_eq!(blocks.moments(100, 90).unwrap()[&1].samples, 1);
        assert!(table(&[(100, 10, 5, 1)]).moments(100, 0).is_none());
    }

    #[test]
    fn single_blocks_come_oldest_first_and_are_cut() {
        let blocks = table(&[(100, 10, 5, 1), (200, 20, 50, 1), (300, 7, 1, 1), (400, 1, 1, 2)]);
        let lists = blocks.of_sites([1, 77], 100, 0, 2);
        assert_eq!(
            lists[&1].iter().map(|b| (b.address, b.age_ns)).collect::<Vec<_>>(),
            [(300, 99), (100, 95)]
        );
        assert_eq!(lists.len(), 1);
    }
}
