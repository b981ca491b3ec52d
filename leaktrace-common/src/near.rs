//! Entries that are found without a hash. Threads and sites that were the first at their places in an array are kept there,
//! all others in a hash map: a look at the array costs a tenth of one at the map, and a call that is recorded takes several.
//!
//! A place is taken and given up by its first word alone: what is not 0 says whose it is, and is changed atomically.
use crate::{
    Plain, assert_layout,
    heap::{SiteKey, SiteTotals},
};

/// Places for threads: a power of two.
pub const THREADS: u32 = 256;
/// Places for sites: a power of two.
pub const SITES: u32 = 4096;
/// An array is used where there may be so many times as many entries in all: when the map is full, all but one or two of
/// the array's places have been taken.
const SHARE: u32 = 8;

/// Where the state of a thread with this id may be.
#[inline(always)]
pub const fn place_of_thread(tid: u32) -> u32 {
    1 + (tid & (THREADS - 1))
}

/// Where a site with this stack may be.
#[inline(always)]
pub const fn place_of_site(stack: u64) -> u32 {
    1 + (stack as u32 & (SITES - 1))
}

/// The lengths of array and map for `entries` in all. The kernel has no empty arrays: the first of the array's places is
/// nobody's, and the only one where the array is not used.
pub const fn split(entries: u32, places: u32) -> (u32, u32) {
    if entries / SHARE >= places { (1 + places, entries - places) } else { (1, entries) }
}

/// A site in the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NearSite {
    /// Its stack, which stands for its process image too; 0 where there is none. Written first, and taken back last.
    pub stack: u64,
    /// The process; 0 until it is written, after the generation.
    pub tgid: u32,
    /// The image of that process.
    pub generation: u32,
    /// What the site has allocated and freed; zeros where there is none.
    pub totals: SiteTotals,
}
assert_layout!(NearSite, size = 176, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for NearSite {}

impl NearSite {
    /// The key that it would have in the map; `None` where there is no site, or not yet.
    pub const fn key(&self) -> Option<SiteKey> {
        let NearSite { stack, tgid, generation, .. } = *self;
        if stack == 0 || tgid == 0 { None } else { Some(SiteKey { tgid, generation, stack }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_on_entries_holds_for_array_and_map_together() {
        assert_eq!(split(64_000, SITES), (4097, 59_904));
        assert_eq!(split(32_767, SITES), (1, 32_767));
        assert_eq!(split(1, SITES), (1, 1));
    }

    #[test]
    fn no_place_is_nobodys_or_behind_the_array() {
        for bits in [0, 1, 4095, 4096, u64::MAX] {
            assert!((1..=SITES).contains(&place_of_site(bits)));
            assert!((1..=THREADS).contains(&place_of_thread(bits as u32)));
        }
    }
}
