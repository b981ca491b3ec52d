//! A target's sites in the order asked for, cut, with the sums over all of them; and what is shown of that.
//!
//! While nothing of a process changes, its ranking stays as it is: only the ages in it move on. Knowing that nothing has
//! changed is left to whoever keeps it.
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use super::{
    blocks::Blocks,
    estimate::Moments,
    site_id::SiteId,
    sites::{Input, Order, Selection, Site},
    snapshot::{BlockView, Finding, Frame, SiteKind, SiteView, TargetView, Totals},
};

/// What a target shows of its sites.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// In order, cut, with frames.
    pub sites: Vec<SiteView>,
    /// What is said of all sites.
    pub sums: Sums,
}

/// What the analysis says of a site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// The verdict, where there is one.
    pub finding: Option<Finding>,
    /// A runtime keeps what the site holds for itself.
    pub is_runtimes: bool,
}

/// What is said of all sites of a target together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Sums over all heap sites.
    pub totals: Totals,
    /// Change of the outstanding bytes of all sites since the previous summary, per second.
    pub growth_bytes_per_second: Option<f64>,
    /// How many sites were cut.
    pub sites_cut: u64,
    /// What the cut sites hold, of both kinds.
    pub cut_totals: Totals,
    /// Why stacks end, over all sites.
    pub stack_ends: BTreeMap<String, u64>,
    /// Bytes that the dynamic linker mapped: not listed as sites.
    pub loader_bytes: u64,
}

impl TargetView {
    /// Puts sites and sums into the view.
    pub fn fill(&mut self, shown: Shown) {
        let Shown { sites, sums } = shown;
        self.sites = sites;
        self.totals = sums.totals;
        self.growth_bytes_per_second = sums.growth_bytes_per_second;
        self.sites_cut = sums.sites_cut;
        self.cut_totals = sums.cut_totals;
        self.stack_ends = sums.stack_ends;
        self.mappings.program_bytes = self.mappings.program_bytes.saturating_sub(sums.loader_bytes);
    }
}

/// The sites of a process image that are shown, at one time.
#[derive(Clone, Debug, Default)]
pub struct Ranked {
    time_ns: u64,
    sites: Vec<Site>,
    /// Their ids and frames, in the same order.
    names: Vec<(SiteId, Arc<[Frame]>)>,
    sums: Sums,
    is_still: bool,
}

impl Ranked {
    /// Orders the sites and cuts them to the number asked for. `loader_bytes` are those of sites that were left out;
    /// `name` gives a stack its names, and is asked to for those that are shown.
    pub fn of(
        mut sites: Vec<Site>,
        loader_bytes: u64,
        input: &Input<'_>,
        selection: &Selection,
        name: &mut dyn FnMut(u64),
    ) -> Ranked {
        let mut sums = Sums { loader_bytes, ..Sums::default() };
        // A process without a sampled block still may hold some: its sums are estimates, too.
        sums.totals.sampled = input.blocks.and_then(Blocks::sample_interval_bytes).map(Moments::new);
        let mut ends: BTreeMap<&'static str, u64> = BTreeMap::new();
        for site in &sites {
            *ends.entry(site.stack_end).or_default() += 1;
            if site.kind == SiteKind::Heap {
                sums.totals.add(&site.totals);
            }
            if let Some(growth) = site.growth_bytes_per_second {
                *sums.growth_bytes_per_second.get_or_insert(0.0) += growth;
            }
        }
        sums.stack_ends = ends.into_iter().map(|(end, count)| (end.to_owned(), count)).collect();
        let is_still = sites.iter().all(|site| site.growth_bytes_per_second == Some(0.0));
        if selection.top > 0 && selection.top < sites.len() {
            sites.select_nth_unstable_by(selection.top, |a, b| compare(a, b, selection.order));
            for site in sites.drain(selection.top..) {
                sums.sites_cut += 1;
                sums.cut_totals.add(&site.totals);
            }
            sites.shrink_to_fit();
        }
        sites.sort_unstable_by(|a, b| compare(a, b, selection.order));
        sums.totals.settle();
        sums.cut_totals.settle();
        let mut named = |site: &Site| {
            site.stacks.first().copied().map_or((SiteId(0), Arc::default()), |stack| {
                name(stack);
                (input.stacks.id(input.image, stack, site.kind), site.frames(input).into())
            })
        };
        let names = sites.iter().map(&mut named).collect();
        Ranked { time_ns: input.now_ns, sites, names, sums, is_still }
    }

    /// Whether no site, the cut ones included, has grown or shrunk since the summary before.
    pub fn is_still(&self) -> bool {
        self.is_still
    }

    /// How many sites are shown.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether no site is shown.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// What it is at a later time if nothing has changed: the blocks are older.
    pub fn age(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.time_ns);
        for site in &mut self.sites {
            site.oldest_age_ns = site.oldest_age_ns.map(|age| age.saturating_add(passed_ns));
        }
        self.time_ns = self.time_ns.max(now_ns);
    }

    /// Fills in the single blocks of the sites, and what `judge` finds of each by its frames.
    pub fn show(
        &self,
        input: &Input<'_>,
        selection: &Selection,
        mut judge: impl FnMut(&Site, &Arc<[Frame]>) -> Judged,
    ) -> Shown {
        let blocks = match input.blocks {
            Some(blocks) if selection.blocks > 0 => blocks.of_sites(
                self.sites.iter().flat_map(|site| site.stacks.iter().copied()),
                input.now_ns,
                selection.older_ns.unwrap_or(0),
                selection.blocks,
            ),
            _ => HashMap::new(),
        };
        let mut sites: Vec<SiteView> = Vec::with_capacity(self.sites.len());
        let mut known: HashMap<SiteId, usize> = HashMap::with_capacity(self.sites.len());
        for (site, (id, frames)) in self.sites.iter().zip(&self.names) {
            let Judged { finding, is_runtimes } = judge(site, frames);
            let view = SiteView {
                id: id.to_string(),
                finding,
                is_runtimes,
                frames: Arc::clone(frames),
                ..view(site, input, selection, &blocks)
            };
            match known.entry(*id) {
                Entry::Vacant(place) => {
                    place.insert(sites.len());
                    sites.push(view);
                }
                Entry::Occupied(place) => {
                    if let Some(same) = sites.get_mut(*place.get()) {
                        merge(same, view, selection);
                    }
                }
            }
        }
        Shown { sites, sums: self.sums.clone() }
    }
}

/// Adds a site whose names turned out to be those of another one: two builds of a library in one process.
fn merge(same: &mut SiteView, other: SiteView, selection: &Selection) {
    same.totals.add(&other.totals);
    same.totals.settle();
    if let Some(growth) = other.growth_bytes_per_second {
        *same.growth_bytes_per_second.get_or_insert(0.0) += growth;
    }
    same.oldest_age_ns = same.oldest_age_ns.max(other.oldest_age_ns);
    for (sum, bucket) in same.lifetimes.iter_mut().zip(other.lifetimes) {
        *sum = sum.saturating_add(bucket);
    }
    let confidence = |finding: &Option<Finding>| finding.as_ref().map(|finding| finding.confidence);
    if confidence(&other.finding) > confidence(&same.finding) {
        same.finding = other.finding;
    }
    same.is_runtimes &= other.is_runtimes;
    same.blocks.extend(other.blocks);
    order_blocks(&mut same.blocks, selection);
}

/// The oldest blocks first, as many as were asked for.
fn order_blocks(blocks: &mut Vec<BlockView>, selection: &Selection) {
    blocks.sort_unstable_by_key(|block| (std::cmp::Reverse(block.age_ns), block.address));
    blocks.truncate(selection.blocks);
}

/// Without id, finding and frames.
fn view(
    site: &Site,
    input: &Input<'_>,
    selection: &Selection,
    blocks: &HashMap<u64, Vec<BlockView>>,
) -> SiteView {
    let mut totals = site.totals;
    totals.settle();
    let mut own: Vec<BlockView> = match (site.kind, input.mappings) {
        (SiteKind::Mapping, Some(mappings)) if selection.blocks > 0 => mappings
            .live()
            .filter(|mapping| site.stacks.contains(&mapping.stack))
            .map(|mapping| BlockView {
                address: mapping.address,
                size_bytes: mapping.size_bytes,
                age_ns: input.now_ns.saturating_sub(mapping.born_ns),
            })
            .filter(|block| block.age_ns >= selection.older_ns.unwrap_or(0))
            .collect(),
        _ => site.stacks.iter().filter_map(|stack| blocks.get(stack)).flatten().copied().collect(),
    };
    order_blocks(&mut own, selection);
    SiteView {
        id: String::new(),
        kind: site.kind,
        totals,
        growth_bytes_per_second: site.growth_bytes_per_second,
        oldest_age_ns: site.oldest_age_ns,
        lifetimes: site.lifetimes.to_vec(),
        finding: None,
        is_runtimes: false,
        suppressed: None,
        frames: Arc::default(),
        stack_end: site.stack_end,
        blocks: own,
    }
}

/// By what sites are ordered.
pub(super) struct Rank<'a> {
    pub(super) totals: &'a Totals,
    pub(super) growth_bytes_per_second: Option<f64>,
    pub(super) oldest_age_ns: Option<u64>,
}

/// Descending by what was asked for, then by bytes; equal sites come in the order of their places.
fn compare(a: &Site, b: &Site, order: Order) -> std::cmp::Ordering {
    fn rank(site: &Site) -> Rank<'_> {
        Rank {
            totals: &site.totals,
            growth_bytes_per_second: site.growth_bytes_per_second,
            oldest_age_ns: site.oldest_age_ns,
        }
    }
    compare_ranks(&rank(a), &rank(b), order).then_with(|| a.place.cmp(&b.place))
}

/// Like [`compare`] without ids.
pub(super) fn compare_ranks(a: &Rank<'_>, b: &Rank<'_>, order: Order) -> std::cmp::Ordering {
    let growth = |rank: &Rank<'_>| rank.growth_bytes_per_second.unwrap_or(0.0);
    let bytes = || b.totals.outstanding_bytes.cmp(&a.totals.outstanding_bytes);
    let count = || b.totals.outstanding_count.cmp(&a.totals.outstanding_count);
    match order {
        Order::Bytes => bytes(),
        Order::Count => count(),
        Order::Growth => growth(b).total_cmp(&growth(a)),
        Order::Age => b.oldest_age_ns.cmp(&a.oldest_age_ns),
    }
    .then_with(bytes)
    .then_with(count)
    .then_with(|| b.totals.allocated_bytes.cmp(&a.totals.allocated_bytes))
}
