//! From kernel totals, live blocks and mappings to a target's sites.
//!
//! Two stacks with the same [`PlaceId`] (a library loaded twice, say) are one site. Putting them in order is left to
//! `ranked`, judging them to `analyse`, which also runs the steps in their order; everything here is a pure function of its arguments.
use std::collections::HashMap;

use leaktrace_common::heap::{LIFETIME_BUCKETS, SiteTotals};

use super::{
    blocks::{BlockSums, Blocks},
    estimate::Moments,
    history::{History, Point},
    mappings::Mappings,
    site_id::{PlaceId, base_name},
    snapshot::{Frame, SiteKind, Totals},
    stacks::{ImageKey, Stacks},
};

/// Order of sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Most outstanding bytes first.
    #[default]
    Bytes,
    /// Most outstanding blocks first.
    Count,
    /// Fastest growth first.
    Growth,
    /// Oldest live block first.
    Age,
}

/// What of a target is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// What comes first.
    pub order: Order,
    /// How many sites; 0 for all.
    pub top: usize,
    /// Only blocks at least this old; needs [`Input::blocks`].
    pub older_ns: Option<u64>,
    /// How many single blocks of each shown site, oldest first; 0 for none. Needs [`Input::blocks`].
    pub blocks: usize,
}

/// What is known about one process image.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Which image.
    pub image: ImageKey,
    /// Now, in ns of CLOCK_BOOTTIME.
    pub now_ns: u64,
    /// Totals by stack hash, from the kernel.
    pub heap: &'a [(u64, SiteTotals)],
    /// Frees that the kernel missed and user space found.
    pub corrections: &'a Corrections,
    /// Live blocks, where they were drained.
    pub blocks: Option<&'a Blocks>,
    /// Blocks born before this may have been freed while nobody watched; 0 where frees were always watched.
    pub unverified_before_ns: u64,
    /// Mappings, where they are traced.
    pub mappings: Option<&'a Mappings>,
    /// Frames by stack hash.
    pub stacks: &'a Stacks,
}

/// Blocks that the kernel still counts as outstanding although they are gone, by stack.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    freed: HashMap<u64, (u64, u64)>,
    count: u64,
}

impl Corrections {
    /// A block of this stack was found to be gone, and was deleted from the kernel's table. The kernel had counted
    /// it as `blocks` blocks with `size_bytes` in all.
    pub fn add(&mut self, stack: u64, size_bytes: u64, blocks: u64) {
        let entry = self.freed.entry(stack).or_default();
        entry.0 += size_bytes;
        entry.1 += blocks;
        self.count += 1;
    }

    /// Bytes and blocks that were counted of blocks found to be gone.
    pub fn freed(&self) -> (u64, u64) {
        self.freed.values().fold((0, 0), |sum, (bytes, blocks)| (sum.0 + bytes, sum.1 + blocks))
    }

    /// How many: part of the loss `missed_frees`.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// One site before it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// See [`super::site_id`].
    pub place: PlaceId,
    /// What it allocates.
    pub kind: SiteKind,
    /// Sums.
    pub totals: Totals,
    /// Change since the previous summary.
    pub growth_bytes_per_second: Option<f64>,
    /// Age of the oldest live block.
    pub oldest_age_ns: Option<u64>,
    /// Lifetimes of freed blocks by [`leaktrace_common::heap::lifetime_bucket`].
    pub lifetimes: [u32; LIFETIME_BUCKETS],
    /// Why the stack ends where it does.
    pub stack_end: &'static str,
    pub(crate) stacks: Vec<u64>,
}

/// Whether a frame only makes the system call.
fn is_system_call(frame: &Frame) -> bool {
    const WRAPPERS: [&str; 14] = [
        "mmap",
        "mmap64",
        "__mmap",
        "__mmap64",
        "mremap",
        "__mremap",
        "__GI___mmap",
        "syscall",
        "brk",
        "__brk",
        "sbrk",
        "__sbrk",
        "__GI___sbrk",
        "__glibc_morecore",
    ];
    frame.function.as_deref().is_some_and(|function| WRAPPERS.contains(&function))
}

impl Site {
    /// The frames of its stack, innermost first, from the caller of the allocation function or system call on.
    pub fn frames(&self, input: &Input<'_>) -> Vec<Frame> {
        let mut frames =
            self.stacks.first().map_or_else(Vec::new, |stack| input.stacks.frames(input.image, *stack));
        if self.kind == SiteKind::Mapping {
            let wrappers = frames.iter().take_while(|frame| is_system_call(frame)).count();
            frames.drain(..wrappers.min(frames.len().saturating_sub(1)));
        }
        frames
    }

    /// Whether it moved the program break. Whoever happens to need more room does that for everybody, and nobody gives
    /// it back: it tells where memory is used, not who keeps it.
    pub fn is_break(&self, input: &Input<'_>) -> bool {
        let moved = |stack: &u64| input.mappings.is_some_and(|mappings| mappings.moved_break(*stack));
        self.kind == SiteKind::Mapping && self.stacks.iter().any(moved)
    }

    /// Whether the dynamic linker mapped it: segments of libraries, its own memory. `name` gives a stack its names: musl's
    /// linker is its C library, too, so that it takes the name of the function that mapped to tell.
    pub fn is_loaders(&self, input: &Input<'_>, name: &mut dyn FnMut(u64)) -> bool {
        const GNU: &str = "ld-linux";
        const MUSL: &str = "ld-musl";
        let is_in = |frame: Option<Frame>, loader: &str| {
            frame.and_then(|frame| frame.module).is_some_and(|module| base_name(&module).starts_with(loader))
        };
        let Some(stack) = self.stacks.first().filter(|_| self.kind == SiteKind::Mapping) else {
            return false;
        };
        let innermost = input.stacks.innermost(input.image, *stack);
        if !is_in(innermost.clone(), MUSL) {
            return is_in(innermost, GNU);
        }
        name(*stack);
        is_in(self.frames(input).into_iter().next(), MUSL)
    }

    /// What goes into the history.
    pub fn point(&self, time_ns: u64) -> Point {
        Point {
            time_ns,
            outstanding_bytes: self.verified_bytes(),
            outstanding_count: self.verified_count(),
            allocated_count: self.totals.allocated_count,
            freed_count: self.totals.freed_count,
        }
    }

    /// Outstanding bytes without those whose free may have been missed.
    pub fn verified_bytes(&self) -> u64 {
        self.totals.outstanding_bytes.saturating_sub(self.totals.unverified_bytes)
    }

    fn verified_count(&self) -> u64 {
        self.totals.outstanding_count.saturating_sub(self.totals.unverified_count)
    }

    /// The site with what is known for sure alone; `None` where that is all. Findings rest on this.
    pub fn verified(&self, input: &Input<'_>) -> Option<Site> {
        if self.totals.unverified_count == 0 {
            return None;
        }
        let mut site = self.clone();
        site.totals.outstanding_bytes = self.verified_bytes();
        site.totals.outstanding_count = self.verified_count();
        let longest_ns = input.now_ns.saturating_sub(input.unverified_before_ns);
        site.oldest_age_ns = self.oldest_age_ns.map(|age| age.min(longest_ns));
        Some(site)
    }
}

/// All sites of a process image, in no order; `history` holds the earlier summaries. A site is listed while it has ever recorded anything; with
/// `older_ns`, while it holds a block that old. With `older_ns` the outstanding sums are those of the old blocks.
pub fn collect(input: &Input<'_>, history: &History, older_ns: Option<u64>) -> Vec<Site> {
    let mut sites: HashMap<PlaceId, Site> = HashMap::with_capacity(input.heap.len());
    let sums = input.blocks.map(|blocks| blocks.sums(input.now_ns, older_ns.unwrap_or(0)));
    let samples = input.blocks.and_then(|blocks| blocks.moments(input.now_ns, older_ns.unwrap_or(0)));
    let unverified = unverified_sums(input, older_ns);
    for (stack, totals) in input.heap {
        let corrected = input.corrections.freed.get(stack).copied().unwrap_or_default();
        let held = Held {
            blocks: sums.as_ref().map(|sums| sums.get(stack).copied().unwrap_or_default()),
            samples: samples.as_ref().map(|samples| samples.get(stack).copied().unwrap_or(no_samples(input))),
            unverified: unverified.get(stack).copied().unwrap_or_default(),
            only_old: older_ns.is_some(),
        };
        add(&mut sites, input, SiteKind::Heap, *stack, totals, corrected, held);
    }
    if let Some(mappings) = input.mappings {
        let sums = mapping_sums(mappings, input.now_ns, older_ns.unwrap_or(0));
        for (stack, totals) in mappings.sites() {
            let blocks = Some(sums.get(&stack).copied().unwrap_or_default());
            let held = Held { blocks, samples: None, unverified: (0, 0), only_old: older_ns.is_some() };
            add(&mut sites, input, SiteKind::Mapping, stack, totals, (0, 0), held);
        }
    }
    let mut sites: Vec<Site> = sites.into_values().collect();
    if older_ns.is_some() {
        sites.retain(|site| site.totals.outstanding_count > 0);
    }
    for site in &mut sites {
        site.growth_bytes_per_second =
            history.growth_bytes_per_second(site.place, input.now_ns, site.verified_bytes());
    }
    sites
}

/// Bytes and number of the blocks whose frees may have been missed, by stack.
fn unverified_sums(input: &Input<'_>, older_ns: Option<u64>) -> HashMap<u64, (u64, u64)> {
    let Some(blocks) = input.blocks.filter(|_| input.unverified_before_ns > 0) else { return HashMap::new() };
    let since_ns = input.now_ns.saturating_sub(input.unverified_before_ns).saturating_add(1);
    let older_ns = older_ns.unwrap_or(0).max(since_ns);
    match blocks.moments(input.now_ns, older_ns) {
        Some(moments) => {
            let sums = moments.into_iter();
            sums.map(|(stack, sum)| (stack, (sum.bytes_value(), sum.count_value()))).collect()
        }
        None => {
            let sums = blocks.sums(input.now_ns, older_ns).into_iter();
            sums.map(|(stack, sum)| (stack, (sum.bytes, sum.count))).collect()
        }
    }
}

fn mapping_sums(mappings: &Mappings, now_ns: u64, older_ns: u64) -> HashMap<u64, BlockSums> {
    let mut sums: HashMap<u64, BlockSums> = HashMap::new();
    for mapping in mappings.live().filter(|mapping| now_ns.saturating_sub(mapping.born_ns) >= older_ns) {
        let sum = sums
            .entry(mapping.stack)
            .or_insert(BlockSums { oldest_born_ns: u64::MAX, ..BlockSums::default() });
        sum.bytes += mapping.size_bytes;
        sum.count += 1;
        sum.oldest_born_ns = sum.oldest_born_ns.min(mapping.born_ns);
    }
    sums
}

fn no_samples(input: &Input<'_>) -> Moments {
    Moments::new(input.blocks.and_then(Blocks::sample_interval_bytes).unwrap_or(0))
}

/// What is known of a stack's live blocks.
struct Held {
    blocks: Option<BlockSums>,
    /// What they stand for, in sampled mode.
    samples: Option<Moments>,
    /// Bytes and number of those whose frees may have been missed.
    unverified: (u64, u64),
    /// Only blocks of some age are in the sums.
    only_old: bool,
}

fn add(
    sites: &mut HashMap<PlaceId, Site>,
    input: &Input<'_>,
    kind: SiteKind,
    stack: u64,
    totals: &SiteTotals,
    corrected: (u64, u64),
    held: Held,
) {
    let view = input.stacks.view(input.image, stack, kind);
    let site = sites.entry(view.place).or_insert_with(|| Site {
        place: view.place,
        kind,
        totals: Totals::default(),
        growth_bytes_per_second: None,
        oldest_age_ns: None,
        lifetimes: [0; LIFETIME_BUCKETS],
        stack_end: view.end,
        stacks: Vec::new(),
    });
    let (freed_bytes, freed_count) = (totals.freed_bytes + corrected.0, totals.freed_count + corrected.1);
    let blocks = held.blocks;
    let (outstanding_bytes, outstanding_count) = match (held.samples, blocks) {
        (Some(samples), _) => (samples.bytes_value(), samples.count_value()),
        (None, Some(blocks)) if held.only_old => (blocks.bytes, blocks.count),
        _ => (
            totals.allocated_bytes.saturating_sub(freed_bytes),
            totals.allocated_count.saturating_sub(freed_count),
        ),
    };
    site.totals.add(&Totals {
        outstanding_bytes,
        outstanding_count,
        allocated_bytes: totals.allocated_bytes,
        allocated_count: totals.allocated_count,
        freed_bytes,
        freed_count,
        error_bytes: 0,
        error_count: 0,
        unverified_bytes: held.unverified.0.min(outstanding_bytes),
        unverified_count: held.unverified.1.min(outstanding_count),
        sampled: held.samples,
    });
    for (sum, bucket) in site.lifetimes.iter_mut().zip(totals.lifetimes) {
        *sum = sum.saturating_add(bucket);
    }
    let age_ns = blocks
        .filter(|blocks| blocks.count > 0)
        .map(|blocks| input.now_ns.saturating_sub(blocks.oldest_born_ns));
    site.oldest_age_ns = site.oldest_age_ns.max(age_ns);
    site.stacks.push(stack);
}

impl Totals {
    /// Adds other sums; the errors of the new sums are left to [`Totals::settle`].
    pub fn add(&mut self, other: &Totals) {
        self.outstanding_bytes = self.outstanding_bytes.saturating_add(other.outstanding_bytes);
        self.outstanding_count = self.outstanding_count.saturating_add(other.outstanding_count);
        self.allocated_bytes = self.allocated_bytes.saturating_add(other.allocated_bytes);
        self.allocated_count = self.allocated_count.saturating_add(other.allocated_count);
        self.freed_bytes = self.freed_bytes.saturating_add(other.freed_bytes);
        self.freed_count = self.freed_count.saturating_add(other.freed_count);
        self.unverified_bytes = self.unverified_bytes.saturating_add(other.unverified_bytes);
        self.unverified_count = self.unverified_count.saturating_add(other.unverified_count);
        if let Some(samples) = &other.sampled {
            self.sampled.get_or_insert_default().merge(samples);
        }
    }

    /// Works the errors out: not for every sum that is added up, because it takes some µs.
    pub fn settle(&mut self) {
        if let Some(samples) = &self.sampled {
            self.error_bytes = samples.bytes().error();
            self.error_count = samples.count().error();
        }
    }
}

#[cfg(test)]
mod tests;
