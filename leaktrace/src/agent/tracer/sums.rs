//! What a summary reads of the kernel first: the counters of all targets, then the sums of those that have done something.
use std::collections::{BTreeMap, HashMap, HashSet};

use leaktrace_common::heap::{SiteKey, SiteTotals};

use super::{Tally, Tracer, clock};
use crate::{
    agent::{stillness::Counts, view},
    model::stacks::ImageKey,
};

/// What was read.
#[derive(Default)]
pub(super) struct Sums {
    /// Counters by process.
    pub(super) tallies: BTreeMap<u32, Tally>,
    /// Process images that have done nothing: their sums were passed over.
    still: HashSet<ImageKey>,
    /// Sums by process image and stack; `None` where nobody had done anything.
    sites: Option<HashMap<ImageKey, Vec<(u64, SiteTotals)>>>,
}

impl Sums {
    /// The sums of a process image, if they were read.
    pub(super) fn heap_of(&mut self, image: ImageKey) -> Option<Vec<(u64, SiteTotals)>> {
        let sites = self.sites.as_mut().filter(|_| !self.still.contains(&image))?;
        Some(sites.remove(&image).unwrap_or_default())
    }
}

impl Tracer {
    /// Reads counters, then sums. For the `last` summary all are read.
    pub(super) fn read_sums(&mut self, last: bool) -> Sums {
        let mut sums = Sums::default();
        let now_ns = clock::boot_ns();
        for (pid, target) in &mut self.targets {
            let tally = self.maps.tally(*pid);
            let hits = self.maps.hits(*pid).count;
            sums.tallies.insert(*pid, tally);
            target.stillness.see(Counts { tally, hits }, now_ns);
            // Without stacks the end of a call is not counted.
            if last || self.options.stack_depth == 0 {
                target.stillness.forget();
            }
            if target.stillness.holds(&view::circumstances(target, &self.stacks, &self.selection)) {
                sums.still.insert(target.image);
            }
        }
        if sums.still.len() < self.targets.len() {
            self.read_sites(&mut sums);
        }
        sums
    }

    fn read_sites(&mut self, sums: &mut Sums) {
        let mut sites: HashMap<ImageKey, Vec<(u64, SiteTotals)>> = HashMap::new();
        let drained = self.maps.for_each_site(|key: SiteKey, totals| {
            let image = ImageKey::from(key);
            if !sums.still.contains(&image) {
                sites.entry(image).or_default().push((key.stack, totals));
            }
        });
        if let Err(error) = drained {
            tracing::warn!(%error, "reading the site table");
            self.targets.values_mut().for_each(|target| target.stillness.forget());
        }
        sums.sites = Some(sites);
    }
}
