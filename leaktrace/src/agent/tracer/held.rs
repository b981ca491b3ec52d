//! What targets hold between two summaries: sums alone, from the kernel's table of call stacks. Which stacks and blocks
//! they are is for summaries.
use std::collections::BTreeMap;

use leaktrace_common::heap::{SiteKey, SiteTotals};

use super::Tracer;
use crate::model::stacks::ImageKey;

/// What one target holds on its heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes not freed.
    pub outstanding_bytes: u64,
    /// Blocks not freed.
    pub outstanding_count: u64,
    /// Bytes allocated since tracing began.
    pub allocated_bytes: u64,
}

impl Held {
    fn add(&mut self, totals: &SiteTotals) {
        self.outstanding_bytes += totals.allocated_bytes.saturating_sub(totals.freed_bytes);
        self.outstanding_count += totals.allocated_count.saturating_sub(totals.freed_count);
        self.allocated_bytes += totals.allocated_bytes;
    }

    fn correct(&mut self, (bytes, count): (u64, u64)) {
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        self.outstanding_count = self.outstanding_count.saturating_sub(count);
    }
}

impl Tracer {
    /// What each target holds now. It costs a fraction of a summary.
    pub fn held(&self) -> BTreeMap<u32, Held> {
        let mut held: BTreeMap<u32, Held> = self.targets.keys().map(|pid| (*pid, Held::default())).collect();
        let read = self.maps.for_each_site(|key: SiteKey, totals| {
            let is_current =
                self.targets.get(&key.tgid).is_some_and(|target| target.image == ImageKey::from(key));
            if let Some(held) = held.get_mut(&key.tgid).filter(|_| is_current) {
                held.add(&totals);
            }
        });
        if let Err(error) = read {
            tracing::warn!(%error, "reading the site table");
        }
        for (pid, target) in &self.targets {
            if let Some(held) = held.get_mut(pid) {
                held.correct(target.corrections.freed());
            }
        }
        held
    }
}
