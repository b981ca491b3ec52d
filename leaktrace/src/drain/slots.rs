//! Who has which slot: a process's place in the kernel's arrays. A slot is given away again only when nothing can be
//! looking at it for the process that had it before.
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use leaktrace_common::{
    hook::{SLOTS, slot_of_table},
    target::NOBODYS_SLOT,
};

/// The slots that are taken.
type Taken = Arc<Mutex<HashSet<u32>>>;

/// The slots there are.
pub struct Slots {
    taken: Taken,
    capacity: u32,
    next_table: u32,
}

/// A slot that is taken, until this is dropped.
pub struct SlotLease {
    taken: Taken,
    slot: u32,
}

impl Slots {
    /// `capacity` slots with that of nobody, all others free.
    pub fn new(capacity: u32) -> Slots {
        Slots { taken: Taken::default(), capacity: capacity.min(SLOTS), next_table: 1 }
    }

    /// A key for a new table of live blocks, which no other table ever had, and its slot; `None` when there is none
    /// left.
    pub fn take(&mut self) -> Option<(u32, SlotLease)> {
        let mut taken = lock(&self.taken);
        let mut candidates = (0..SLOTS).map(|step| self.next_table.wrapping_add(step));
        let table = candidates.find(|table| {
            let slot = slot_of_table(*table);
            slot != NOBODYS_SLOT && slot < self.capacity && !taken.contains(&slot)
        })?;
        let slot = slot_of_table(table);
        taken.insert(slot);
        self.next_table = table.wrapping_add(1);
        Some((table, SlotLease { taken: Arc::clone(&self.taken), slot }))
    }
}

impl SlotLease {
    /// The slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.slot);
    }
}

fn lock(taken: &Taken) -> MutexGuard<'_, HashSet<u32>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tables_have_one_slot_at_a_time_or_ever_one_key() {
        let mut slots = Slots::new(4);
        let mut keys = HashSet::new();
        let mut leases: Vec<SlotLease> = Vec::new();
        for _ in 0..100 {
            while let Some((table, lease)) = slots.take() {
                assert_eq!(slot_of_table(table), lease.slot());
                assert_ne!(lease.slot(), NOBODYS_SLOT);
                assert!(leases.iter().all(|other| other.slot() != lease.slot()));
                assert!(keys.insert(table));
                leases.push(lease);
            }
            assert_eq!(leases.len(), 3);
            leases.remove(1);
        }
    }

    #[test]
    fn every_slot_but_one_can_be_taken() {
        let mut slots = Slots::new(u32::MAX);
        let leases: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(leases.len(), SLOTS as usize - 1);
    }
}
