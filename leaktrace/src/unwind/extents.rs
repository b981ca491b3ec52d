//! Free ranges of a fixed space of numbered places: first fit, merged when given back. What lies in the places is
//! left to `store`.
use std::collections::BTreeMap;

/// The free part of `0..capacity`.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    /// First free place → how many are free from there on; never empty, never adjacent.
    free: BTreeMap<u32, u32>,
}

impl Extents {
    /// All of `0..capacity`.
    pub(super) fn new(capacity: u32) -> Self {
        let free = if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(0, capacity)]) };
        Extents { free }
    }

    /// Takes the first range of `length` places; `None` where no free range is that long.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (&first, &free) = self.free.iter().find(|&(_, &free)| free >= length)?;
        self.free.remove(&first);
        if free > length {
            self.free.insert(first + length, free - length);
        }
        Some(first)
    }

    /// Gives a range back that was taken.
    pub(super) fn give(&mut self, first: u32, length: u32) {
        if length == 0 {
            return;
        }
        let (mut start, mut end) = (first, first.saturating_add(length));
        if let Some((&before, &free)) = self.free.range(..first).next_back()
            && before + free == first
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(after) = self.free.remove(&end) {
            end += after;
        }
        self.free.insert(start, end - start);
    }

    /// How many places are free.
    pub(super) fn free_places(&self) -> u64 {
        self.free.values().map(|&free| u64::from(free)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_that_fits_is_taken() {
        let mut extents = Extents::new(10);
        assert_eq!(extents.take(4), Some(0));
        assert_eq!(extents.take(4), Some(4));
        assert_eq!(extents.take(4), None);
        assert_eq!(extents.take(2), Some(8));
        extents.give(0, 4);
        assert_eq!(extents.take(3), Some(0));
        assert_eq!(extents.free_places(), 1);
    }

    #[test]
    fn what_is_given_back_merges_with_its_neighbours() {
        let mut extents = Extents::new(12);
        for _ in 0..4 {
            extents.take(3);
        }
        for first in [0, 6, 3, 9] {
            extents.give(first, 3);
        }
        assert_eq!(extents.take(12), Some(0));
    }

    #[test]
    fn nothing_can_be_taken_of_nothing() {
        assert_eq!(Extents::new(0).take(1), None);
    }
}
