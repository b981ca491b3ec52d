//! The kernel's states of threads: an array for those that were first at their places, a hash map for all others.
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use anyhow::{Context as _, Result};
use leaktrace_common::{bytes_of, near::place_of_thread};

use crate::attach::{object::KernelObject, shared::SharedArray, sys};

/// The maps THREADS and NEAR_THREADS.
pub struct Threads {
    others: OwnedFd,
    near: SharedArray,
    state_bytes: usize,
}

impl Threads {
    /// Those of a loaded object.
    ///
    /// # Errors
    /// When the object lacks a map, or it cannot be mapped.
    pub fn of(kernel: &KernelObject) -> Result<Threads> {
        let info = kernel.map("NEAR_THREADS")?.info()?;
        // Entries of arrays begin at multiples of 8.
        let state_bytes = (info.value_size() as usize).next_multiple_of(8);
        let bytes = info.max_entries() as usize * state_bytes;
        let near = SharedArray::map(kernel.map_fd("NEAR_THREADS")?, bytes);
        Ok(Threads {
            others: kernel.map_fd("THREADS")?.try_clone_to_owned()?,
            near: near.context("mapping the kernel map NEAR_THREADS")?,
            state_bytes,
        })
    }

    /// Drops the state of a thread that hits no probe any more.
    pub fn forget(&self, tid: u32) {
        // What says whose a place is stands at its start.
        let owner = self.near.word64(place_of_thread(tid) as usize * self.state_bytes);
        let nobody = |owner: &std::sync::atomic::AtomicU64| {
            owner.compare_exchange(u64::from(tid), 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        if !owner.is_some_and(nobody) {
            let _ = sys::map_delete(self.others.as_fd(), bytes_of(&tid));
        }
    }
}
