//! From what is kept of a target and what the kernel holds to the view that is shown.
use leaktrace_common::{
    counter::{Class, Counter},
    heap::{Block, SiteTotals},
    sample::{WEIGHT_BITS, weight, weighted_bytes},
};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    rc::Rc,
};

use super::{
    clock,
    functions::Functions,
    naming::Naming,
    stillness::Circumstances,
    target::{Recording, Tracked},
};
use crate::{
    analyse::{
        self,
        memory_growth::{self, GrowthRule},
    },
    discover::{container::Container, memory, process},
    drain::maps::{Maps, Tally},
    model::{
        blocks::Blocks,
        memory::{MemoryPoint, MemoryView},
        overhead::OverheadView,
        ranked::Shown,
        sites::{Input, Selection},
        snapshot::{ContainerView, Exited, TargetView},
        stacks::{ImageKey, Stacks},
        units,
    },
    symbolize::Symbolizer,
};

/// A block younger than this may be freed while the table is being read: it is not taken for a missed free.
const SETTLED_NS: u64 = 1_000_000_000;

/// What all views are made from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// What the kernel recorded.
    pub maps: &'a Maps,
    /// Call stacks.
    pub stacks: &'a Stacks,
    /// Functions by what blocks call them.
    pub functions: &'a Functions,
    /// What of a target is shown.
    pub selection: &'a Selection,
    /// Whether allocations of some sizes alone are recorded.
    pub has_size_filter: bool,
}

/// What finds names, for what is shown.
pub(super) struct Names<'a> {
    /// The stacks without names.
    pub(super) naming: &'a mut Naming,
    /// What finds them.
    pub(super) symbolizer: &'a mut Symbolizer,
}

/// What user space knows that decides what is shown of a target.
pub fn circumstances(target: &Tracked, stacks: &Stacks, selection: &Selection) -> Circumstances {
    Circumstances {
        image: target.image,
        selection: *selection,
        stacks: stacks.version(target.image),
        mappings: target.mappings.version(),
        corrections: target.corrections.count(),
        widest_interval_bytes: target.care.widest_interval_bytes,
        unverified_before_ns: target.care.unverified_before_ns,
        first_ns: target.history.first_ns(),
    }
}

/// The totals of a process image's sites, by stack.
///
/// # Errors
/// The system call's error.
pub fn heap_of(image: ImageKey, maps: &Maps) -> io::Result<Vec<(u64, SiteTotals)>> {
    let mut heap = Vec::new();
    maps.for_each_site(|key, totals| {
        if ImageKey::from(key) == image {
            heap.push((key.stack, totals));
        }
    })?;
    Ok(heap)
}

/// Builds the view of one target and adds to its history. `heap` are the image's totals by stack, where they were read;
/// `tally` its counters, read before them.
pub(super) fn target_view(
    target: &mut Tracked,
    heap: Option<Vec<(u64, SiteTotals)>>,
    tally: &Tally,
    sources: &Sources<'_>,
    names: &mut Names<'_>,
) -> TargetView {
    let now_ns = clock::boot_ns();
    let is_running = target.exited.is_none();
    let facts = if is_running { process::inspect(target.pid()).ok() } else { None };
    let shown = match heap {
        Some(heap) => read_sites(target, &heap, tally, now_ns, sources, names),
        None => repeat_sites(target, now_ns, sources).unwrap_or_else(|| {
            let heap = heap_of(target.image, sources.maps).unwrap_or_else(|error| {
                tracing::warn!(%error, "reading the site table");
                target.stillness.forget();
                Vec::new()
            });
            read_sites(target, &heap, tally, now_ns, sources, names)
        }),
    };
    let has_size_filter = sources.has_size_filter;
    let since_before = |counter| tally.of(counter).saturating_sub(target.tally_before.of(counter));
    let mut view = TargetView {
        pid: target.pid(),
        start_time: target.process.identity.start_time_wall_ns,
        since: target.since,
        comm: facts.as_ref().map_or_else(|| target.process.comm.clone(), |facts| facts.comm.clone()),
        cmdline: target.process.cmdline.clone(),
        exited: target.exited,
        harm: target.harm.clone(),
        parent: target.parent,
        container: target.container.as_deref().map(container_view),
        unseen_ns: target.unseen_ns,
        allocators: target.attached.values().flat_map(|attached| attached.allocators.clone()).collect(),
        heap_before_attach_bytes: target.heap_before_bytes,
        unmatched_frees: (!has_size_filter
            && target.care.widest_interval_bytes == 0
            && target.care.recording != Recording::Off)
            .then(|| since_before(Counter::UnmatchedFrees)),
        rss_bytes: facts
            .map(|facts| facts.rss_bytes)
            .or_else(|| target.oom.and_then(|at_death| at_death.rss_bytes)),
        losses: losses(tally, &target.tally_before, target),
        unseen: unseen(target, now_ns),
        mappings: target.mappings.totals(),
        memory: if is_running { memory_view(target, now_ns) } else { None },
        overhead: overhead_view(target, now_ns),
        ..TargetView::default()
    };
    view.fill(shown);
    view
}

/// What is shown of a target's sites by what the kernel holds of them now.
fn read_sites(
    target: &mut Tracked,
    heap: &[(u64, SiteTotals)],
    tally: &Tally,
    now_ns: u64,
    sources: &Sources<'_>,
    names: &mut Names<'_>,
) -> Shown {
    let Sources { maps, stacks, functions, selection, .. } = *sources;
    let signature = signature(heap, tally, target);
    let mut is_settled = true;
    let blocks = target.blocks.get(signature).unwrap_or_else(|| {
        let (blocks, is_doubtful) = drain_blocks(target, maps, functions);
        let blocks = Rc::new(blocks);
        if !is_doubtful {
            target.blocks.keep(signature, &blocks);
        }
        is_settled = !is_doubtful;
        blocks
    });
    let input = Input {
        image: target.image,
        now_ns,
        heap,
        corrections: &target.corrections,
        blocks: Some(&blocks),
        unverified_before_ns: target.care.unverified_before_ns,
        mappings: Some(&target.mappings),
        stacks,
    };
    let mut name = |stack| names.naming.name(input.image, stack, stacks, names.symbolizer);
    let ranked = analyse::rank(&input, &mut target.history, selection, &mut name);
    let shown = analyse::show(&ranked, &input, &target.history, selection, life(target));
    if is_settled && target.exited.is_none() {
        let circumstances = circumstances(target, stacks, selection);
        target.stillness.keep(ranked, circumstances);
    }
    shown
}

/// The same without reading them, if nothing has changed.
fn repeat_sites(target: &mut Tracked, now_ns: u64, sources: &Sources<'_>) -> Option<Shown> {
    let Sources { stacks, selection, .. } = *sources;
    let circumstances = circumstances(target, stacks, selection);
    let life = life(target);
    let ranked = target.stillness.kept(&circumstances)?;
    let input = Input {
        image: target.image,
        now_ns,
        heap: &[],
        corrections: &target.corrections,
        blocks: None,
        unverified_before_ns: target.care.unverified_before_ns,
        mappings: Some(&target.mappings),
        stacks,
    };
    Some(analyse::repeat(ranked, &input, &mut target.history, selection, life))
}

/// Why a part of what it allocated was not seen.
fn unseen(target: &Tracked, now_ns: u64) -> Vec<String> {
    let mut reasons = target.doubts.clone();
    if let Some(unseen_ns) = target.unseen_ns {
        reasons.push(format!("its first {:.1} ms were not seen", unseen_ns as f64 / 1e6));
    }
    let paused_ns = target.care.paused_ns(now_ns);
    if paused_ns > 0 {
        reasons.push(format!("recording was paused for {}", units::duration(paused_ns)));
    }
    if target.care.recording == Recording::Off {
        return reasons;
    }
    let mut allocators = target.attached.values().flat_map(|attached| &attached.allocators).peekable();
    if allocators.peek().is_none() {
        reasons.push("no allocator was found in it".to_owned());
    }
    for allocator in allocators {
        if let Some((function, reason)) = allocator.failed.first() {
            let count = units::counted(allocator.failed.len() as u64, "function");
            let name = &allocator.name;
            reasons.push(format!("{count} of {name} could not be probed, the first {function}: {reason}"));
        }
    }
    reasons
}

fn life(target: &Tracked) -> analyse::Life {
    match target.exited {
        None => analyse::Life::Running,
        Some(Exited { signal: None, .. }) => analyse::Life::Ended,
        Some(_) => analyse::Life::CutShort,
    }
}

/// A number that changes when a block comes or goes.
fn signature(heap: &[(u64, SiteTotals)], tally: &Tally, target: &Tracked) -> u64 {
    let of_site = |(stack, totals): &(u64, SiteTotals)| {
        let mut hasher = DefaultHasher::new();
        (stack, totals.allocated_count, totals.freed_count).hash(&mut hasher);
        hasher.finish()
    };
    // Sites come in any order.
    let sites = heap.iter().map(of_site).fold(0_u64, u64::wrapping_add);
    let mut hasher = DefaultHasher::new();
    (sites, tally.sum(), target.image.generation, target.care.widest_interval_bytes).hash(&mut hasher);
    hasher.finish()
}

/// What is shown of a container.
pub fn container_view(container: &Container) -> ContainerView {
    let names = &container.names;
    ContainerView {
        id: container.id.clone(),
        runtime: container.runtime.name().to_owned(),
        name: names.name.clone(),
        pod: names.pod.clone(),
        pod_uid: container.pod_uid.clone(),
        namespace: names.namespace.clone(),
        image: names.image.clone(),
        compose_project: names.compose_project.clone(),
        compose_service: names.compose_service.clone(),
    }
}

/// Its memory now and the trend, which a summary adds a point to.
fn memory_view(target: &mut Tracked, now_ns: u64) -> Option<MemoryView> {
    let now = memory::memory(target.pid())?;
    let series = &mut target.care.memory;
    series.record(MemoryPoint { time_ns: now_ns, bytes: now.private_bytes() });
    Some(MemoryView {
        now,
        growth_bytes_per_hour: series.bytes_per_second().map(|rate| rate * 3600.0),
        finding: memory_growth::judge(series.points(), &GrowthRule::FINDING),
    })
}

/// What tracing costs it; nothing where its allocations are not traced.
fn overhead_view(target: &Tracked, now_ns: u64) -> Option<OverheadView> {
    let governor = target.care.governor.as_ref()?;
    Some(OverheadView {
        estimated_share: governor.estimated_share(),
        budget_share: Some(governor.budget_share()),
        target_cpu_share: target.care.meter.cpu_share(),
        state: governor.state(),
        sample_interval_bytes: target.sample_interval_bytes,
        paused_ns: target.care.paused_ns(now_ns),
        retry_in_ns: governor.paused_until_ns().map(|until| until.saturating_sub(now_ns)),
    })
}

/// Live blocks of the image; blocks whose free was missed are taken out of the kernel's table and of the sums. `true`
/// where that must wait for some of them.
fn drain_blocks(target: &mut Tracked, maps: &Maps, functions: &Functions) -> (Blocks, bool) {
    let mut is_doubtful = false;
    let mut blocks = Blocks::default().sampled_every(target.care.widest_interval_bytes);
    let generation = target.image.generation as u16;
    let mut of_other_images = Vec::new();
    let drained = maps.for_each_block(target.pid(), |address, block: Block| {
        if block.generation == generation {
            blocks.push(address, &block, functions.allocator(block.function));
        } else {
            of_other_images.push(address);
        }
    });
    if let Err(error) = drained {
        is_doubtful = true;
        tracing::warn!(pid = target.pid(), %error, "reading the table of live blocks");
    }
    maps.delete_blocks(target.pid(), &of_other_images);
    let now_ns = clock::boot_ns();
    for gone in blocks.remove_overlapped() {
        let settled = target.exited.is_some() || now_ns.saturating_sub(gone.born_ns) > SETTLED_NS;
        is_doubtful |= !settled;
        if settled && maps.delete_block_born(target.pid(), gone.address, gone.born_ns) {
            let bytes = weighted_bytes(gone.size_bytes, gone.threshold);
            let count = (weight(gone.threshold) + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS;
            target.corrections.add(gone.stack, bytes, count);
        }
    }
    (blocks, is_doubtful)
}

/// Losses of one target by cause; causes without any are left out.
fn losses(tally: &Tally, before: &Tally, target: &Tracked) -> BTreeMap<String, u64> {
    let mut losses = tally_losses(tally, before);
    let missed = target.corrections.count();
    if missed > 0 {
        *losses.entry(Counter::MissedFrees.name().to_owned()).or_default() += missed;
    }
    if target.mappings.dropped() > 0 {
        losses.insert("mappings_dropped".to_owned(), target.mappings.dropped());
    }
    losses
}

/// The counters that name a loss. How stacks end and frees of older blocks are reported in fields of their own.
pub fn tally_losses(tally: &Tally, before: &Tally) -> BTreeMap<String, u64> {
    let reported_elsewhere =
        |counter: Counter| counter == Counter::UnmatchedFrees || counter.name().starts_with("stop_");
    Counter::ALL
        .iter()
        .filter(|counter| counter.class() != Class::Activity && !reported_elsewhere(**counter))
        .map(|counter| (counter.name().to_owned(), tally.of(*counter).saturating_sub(before.of(*counter))))
        .filter(|(_, amount)| *amount > 0)
        .collect()
}
