//! The kernel's totals by site: an array for those that were first at their places, a hash map for all others.
use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use anyhow::{Context as _, Result};
use leaktrace_common::{
    bytes_of,
    heap::{SiteKey, SiteTotals},
    near::{NearSite, place_of_site},
    read,
};

use super::batch;
use crate::attach::{object::KernelObject, shared::SharedArray, sys};

const TOTALS_WORDS: usize = size_of::<SiteTotals>() / 8;

/// The maps SITES and NEAR_SITES.
pub struct Sites {
    others: OwnedFd,
    max_others: u32,
    near: SharedArray,
    places: u32,
}

impl Sites {
    /// Those of a loaded object.
    ///
    /// # Errors
    /// When the object lacks a map, or it cannot be mapped.
    pub fn of(kernel: &KernelObject) -> Result<Sites> {
        let places = kernel.map("NEAR_SITES")?.info()?.max_entries();
        let near = SharedArray::map(kernel.map_fd("NEAR_SITES")?, places as usize * size_of::<NearSite>());
        Ok(Sites {
            others: kernel.map_fd("SITES")?.try_clone_to_owned()?,
            max_others: kernel.map("SITES")?.info()?.max_entries(),
            near: near.context("mapping the kernel map NEAR_SITES")?,
            places,
        })
    }

    /// Calls `each` for every site, with what the kernel holds of it.
    ///
    /// # Errors
    /// The system call's error.
    pub fn for_each(&self, mut each: impl FnMut(SiteKey, SiteTotals)) -> io::Result<()> {
        for place in 0..self.places {
            if let Some((key, totals)) = self.near(place) {
                each(key, totals);
            }
        }
        batch::for_each(self.others.as_fd(), self.max_others, each)
    }

    /// Drops a site whose process image is gone: no program adds to it any more.
    pub fn delete(&self, key: SiteKey) {
        let place = place_of_site(key.stack);
        if place < self.places && self.near(place).is_some_and(|(near, _)| near == key) {
            self.give_up(place);
        } else {
            let _ = sys::map_delete(self.others.as_fd(), bytes_of(&key));
        }
    }

    /// The site at a place, if there is one.
    fn near(&self, place: u32) -> Option<(SiteKey, SiteTotals)> {
        let base = offset(place);
        if self.near.word64(base + offset_of!(NearSite, stack))?.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut words = [0; size_of::<NearSite>() / 8];
        // What was freed before what was allocated, so that it is never more.
        for (index, word) in words.iter_mut().enumerate().rev() {
            *word = self.near.word64(base + 8 * index)?.load(Ordering::Acquire);
        }
        let site: NearSite = read(words.map(u64::to_ne_bytes).as_flattened())?;
        Some((site.key()?, site.totals))
    }

    /// Makes a place nobody's, as programs expect it: its first word last.
    fn give_up(&self, place: u32) {
        let base = offset(place);
        let totals = base + offset_of!(NearSite, totals);
        for word in (0..TOTALS_WORDS).filter_map(|index| self.near.word64(totals + 8 * index)) {
            word.store(0, Ordering::Release);
        }
        for half in [offset_of!(NearSite, tgid), offset_of!(NearSite, generation)] {
            if let Some(word) = self.near.word(base + half) {
                word.store(0, Ordering::Release);
            }
        }
        if let Some(word) = self.near.word64(base + offset_of!(NearSite, stack)) {
            word.store(0, Ordering::Release);
        }
    }
}

fn offset(place: u32) -> usize {
    place as usize * size_of::<NearSite>()
}
