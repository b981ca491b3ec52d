//! The tracer: targets come and go, the kernel is drained, snapshots are made. It owns the kernel object and
//! everything that is kept of targets; the loop that calls it is `session`'s.
use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};

use super::{
    bans::Bans,
    clock,
    deferred::Deferred,
    functions::Functions,
    naming::Naming,
    options::TraceOptions,
    tables::Tables,
    target::{Recording, Tracked},
};
use crate::{
    attach::{
        costs::TrapCosts,
        host::Host,
        links::{self, LinkKind, Programs},
        object::KernelObject,
        preflight, selftest,
        tracefs::Tracefs,
        tracepoints::Tracepoints,
    },
    discover::Discovery,
    drain::{
        decode::{CopyRecord, StackRecord},
        maps::{Maps, Tally},
        sideband::Sideband,
    },
    model::{
        events::EventView,
        sites::Selection,
        snapshot::{CallView, TargetView, WallNs},
        stacks::Stacks,
    },
    symbolize::{self, Modules, Symbolizer},
};

mod burial;
mod govern;
pub mod harm;
pub mod held;
mod life;
mod news;
mod stacks;
mod standing;
pub mod summary;
mod sums;
mod targets;

/// How long they are kept: a process that is not known by then was gone before it could be.
const EARLY_NS: u64 = 30_000_000_000;
/// Records taken from the rings at a time: they are put in the order of their times.
const BATCH: usize = 16_384;
/// How long the tables of a process that is to be traced, and of stacks that wait at its end, are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ended processes whose views are kept until the next snapshot; of more, those that hold the least are summed.
const MAX_FINISHED: usize = 1000;

/// The tracer.
pub struct Tracer {
    options: TraceOptions,
    programs: Programs,
    maps: Maps,
    tables: Tables,
    discovery: Discovery,
    modules: Modules,
    symbolizer: Symbolizer,
    stacks: Stacks,
    functions: Functions,
    costs: TrapCosts,
    targets: BTreeMap<u32, Tracked>,
    /// The process that leaktrace itself waits for.
    waited_for: Option<u32>,
    /// Children that run in their parent's memory, and the parent.
    vforked: HashMap<u32, u32>,
    /// Children that live on and could not be made targets, and why the first was not.
    untraced_children: u64,
    why_untraced: Option<String>,
    early_stacks: Vec<StackRecord>,
    early_copies: Vec<CopyRecord>,
    deferred: Deferred,
    naming: Naming,
    /// What is mapped as it happens; none where the kernel does not tell, and then mappings are read again.
    sideband: Option<Sideband>,
    /// Changes of each process's code that were counted before the batch under way was read.
    covered: HashMap<u32, u32>,
    finished: Vec<TargetView>,
    finished_unlisted: u64,
    /// Those of them that something was to be said of.
    finished_unjudged: u64,
    tally_of_gone: Tally,
    calls: Vec<CallView>,
    decisions: Vec<EventView>,
    /// Probes that are being taken out, by process.
    detaching: HashMap<u32, std::thread::JoinHandle<()>>,
    notes: Vec<String>,
    since: WallNs,
    /// Of the last summary.
    last_time: WallNs,
    host: String,
    /// Why processes under a seccomp filter are not traced, where that would kill them.
    refuse_filtered: Option<String>,
    events: RingBuf<MapData>,
    stack_records: RingBuf<MapData>,
    copy_records: RingBuf<MapData>,
    call_records: RingBuf<MapData>,
    selection: Selection,
    standing: standing::Standing,
    bans: Bans,
    /// A target was killed, because memory ran out or by tracing: what is known of it should be told at once.
    is_urgent: bool,
    tracepoints: Vec<Tracepoints>,
    kernel: KernelObject,
}

impl Tracer {
    /// Loads the kernel object and attaches what does not depend on a target.
    ///
    /// # Errors
    /// With what is missing: permission, BTF, tracefs, the kernel object.
    pub fn new(options: TraceOptions, selection: Selection) -> Result<Tracer> {
        let host = Host::read();
        preflight::demand(&host)?;
        let sizes = options.kernel_sizes();
        let mut kernel = KernelObject::load(&sizes, options.samples(), options.debug)?;
        let tracefs = Tracefs::find()?;
        let link = options.link.unwrap_or_else(LinkKind::best);
        let kills_filtered = preflight::may_kill_filtered(host.version())
            && selftest::return_probe_kills_filtered(link).unwrap_or(true);
        let max_blocks = if options.growth_only { 1 } else { options.max_blocks };
        let maps = Maps::of(&kernel, max_blocks, options.samples())?;
        let tables = Tables::new(&kernel, options.unwind)?;
        let is_bounded = options.governor.is_some() && !options.growth_only;
        let costs = if is_bounded { TrapCosts::measure(link) } else { TrapCosts::typical(link) };
        let mut notes = Vec::new();
        // Verifying the programs is what takes the longest of all, so they are loaded side by side.
        let (mappings, (programs, life)) = links::side_by_side(
            || Tracepoints::mappings(&kernel, &tracefs, host.version()),
            || (Programs::load(&kernel, link), Tracepoints::life(&kernel, &tracefs)),
        );
        let programs = programs?;
        let mut tracepoints = vec![life?];
        match mappings {
            Ok(attached) => tracepoints.push(attached),
            Err(error) => notes.push(format!("mappings are not traced: {error:#}")),
        }
        match Tracepoints::out_of_memory(&kernel, &tracefs) {
            Ok(attached) => tracepoints.push(attached),
            Err(error) => notes.push(format!("deaths by lack of memory are not told apart: {error:#}")),
        }
        match Tracepoints::signals(&kernel, &tracefs) {
            Ok(attached) => tracepoints.push(attached),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "where signals come from is not told");
            }
        }
        let mut ring = |name: &str| -> Result<RingBuf<MapData>> {
            let map = kernel.ebpf_mut().take_map(name).with_context(|| format!("no kernel map {name}"))?;
            RingBuf::try_from(map).with_context(|| format!("kernel map {name}"))
        };
        let (events, stack_records, call_records) = (ring("EVENTS")?, ring("STACKS")?, ring("CALLS")?);
        let copy_records = ring("COPIES")?;
        // Before the first look at /proc/PID/maps of anything, so that nothing is mapped unseen.
        let sideband = match Sideband::open() {
            Ok(sideband) => Some(sideband),
            Err(error) => {
                notes
                    .push(format!("code that is mapped later is noticed late, stacks may be cut: {error:#}"));
                None
            }
        };
        tracing::debug!(link = link.name(), tracefs = tracefs.describe(), "kernel side is ready");
        let mut limits = symbolize::Limits::default();
        limits.debug_dirs.splice(0..0, options.debug_dirs.iter().cloned());
        limits.debuginfod.urls.clone_from(&options.debuginfod_urls);
        Ok(Tracer {
            discovery: Discovery::new(options.discover.clone()),
            symbolizer: Symbolizer::new(limits),
            deferred: Deferred::new(options.sizes.copies),
            options,
            programs,
            maps,
            tables,
            modules: Modules::default(),
            stacks: Stacks::default(),
            functions: Functions::default(),
            costs,
            targets: BTreeMap::new(),
            waited_for: None,
            vforked: HashMap::new(),
            untraced_children: 0,
            why_untraced: None,
            early_stacks: Vec::new(),
            early_copies: Vec::new(),
            naming: Naming::new(selection.top == 0),
            sideband,
            covered: HashMap::new(),
            finished: Vec::new(),
            finished_unlisted: 0,
            finished_unjudged: 0,
            tally_of_gone: Tally::ZERO,
            calls: Vec::new(),
            decisions: Vec::new(),
            detaching: HashMap::new(),
            notes,
            since: clock::wall_ns(),
            last_time: 0,
            host: host_name(),
            refuse_filtered: kills_filtered.then(|| preflight::kills_filtered(&host.release)),
            events,
            stack_records,
            copy_records,
            call_records,
            selection,
            standing: standing::Standing::default(),
            bans: Bans::default(),
            is_urgent: false,
            tracepoints,
            kernel,
        })
    }

    /// The link type in use.
    pub fn link(&self) -> LinkKind {
        self.programs.kind()
    }

    /// Whether allocation functions are probed at all.
    pub fn probes(&self) -> bool {
        !self.options.growth_only
    }

    /// Descriptors that become readable when there is something to drain.
    pub fn ring_fds(&self) -> Vec<i32> {
        let rings = [&self.events, &self.stack_records, &self.copy_records, &self.call_records];
        let mut fds: Vec<i32> = rings.iter().map(|ring| ring.as_raw_fd()).collect();
        fds.push(self.tables.bell());
        fds.extend(self.sideband.iter().flat_map(Sideband::fds));
        fds.extend(self.standing.containers.answers().map(|fd| fd.as_raw_fd()));
        fds
    }

    /// Whether a target was killed because memory ran out, or by tracing, since this was last asked.
    pub fn take_urgent(&mut self) -> bool {
        std::mem::take(&mut self.is_urgent)
    }

    /// The kernel object, for logs.
    pub fn kernel_mut(&mut self) -> &mut KernelObject {
        &mut self.kernel
    }

    /// Whether the process is traced and lives.
    pub fn is_traced(&self, pid: u32) -> bool {
        self.targets.contains_key(&pid)
    }

    /// Whether every call stack will be seen some time: then names are found when there is time, not when a summary waits
    /// for them. Otherwise for what is shown alone.
    pub fn name_ahead(&mut self, is_ahead: bool) {
        self.naming.set_ahead(is_ahead);
    }

    /// The targets that live.
    pub fn pids(&self) -> Vec<u32> {
        self.targets.keys().copied().collect()
    }

    /// Which sites the next snapshots show.
    pub fn select(&mut self, selection: Selection) {
        self.selection = selection;
    }

    /// Whether the unwind tables of a process are there; also when it is not traced.
    pub fn is_ready(&self, pid: u32) -> bool {
        self.targets.get(&pid).is_none_or(|target| self.tables.are_built(&target.code.now().regions))
    }

    /// How many targets live.
    pub fn target_count(&self) -> usize {
        self.targets.len()
    }

    /// How many blocks are live in a traced process and how it was attached: for messages.
    pub fn describe(&self, pid: u32) -> Option<String> {
        let target = self.targets.get(&pid)?;
        if target.care.recording == Recording::Off {
            return Some(format!("{} {}: growth of its memory", pid, target.process.comm));
        }
        let allocators: Vec<String> = target
            .attached
            .values()
            .flat_map(|attached| &attached.allocators)
            .map(|view| format!("{} ({} functions)", view.name, view.probed))
            .collect();
        let list = if allocators.is_empty() { "no allocator yet".to_owned() } else { allocators.join(", ") };
        Some(format!("{} {}: {list}", pid, target.process.comm))
    }
}

/// What this host is called.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}
