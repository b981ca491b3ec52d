//! The tracer: targets come and go, the kernel is drained, snapshots are made. It owns the kernel object and
//! everything that is kept of targets; the loop that calls it is `session`'s.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::CString,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{MapData, RingBuf};
use leaktrace_common::{
    counter::Counter,
    event::{Call, Change, Life, MappingChange},
    heap::SiteTotals,
    hook::slot_of_table,
    target::{NO_SLOT, Target, flags},
    unwind::{FRAME_ADDRESS, Stop},
};

use super::{
    attachment::{self, Attachment},
    clock,
    code::{self, CodeOverTime},
    deferred::{Deferred, Waiting},
    functions::Functions,
    naming::{Naming, Unnamed},
    options::{TraceOptions, UnwindMode},
    stillness::Stillness,
    tables::Tables,
    target::{Care, KeptBlocks, OutOfMemory, Recording, Tracked},
    view,
};
use crate::{
    attach::{
        costs::TrapCosts,
        host::Host,
        links::{LinkKind, Programs},
        object::KernelObject,
        plan::EmulatedClasses,
        preflight, selftest,
        tracefs::Tracefs,
        tracepoints::Tracepoints,
    },
    discover::{
        Discovery, maps as process_maps, process,
        process::{Process, Seccomp},
    },
    drain::{
        decode::{self, CopyRecord, Event, StackRecord},
        maps::{Maps, Tally},
        sideband::{Mapped, Sideband},
    },
    model::{
        events::EventView,
        history::History,
        mappings::Mappings,
        sites::{Corrections, Selection},
        snapshot::{CallView, Exited, Mode, Snapshot, TargetView, WallNs},
        stacks::{ImageKey, Stacks},
    },
    symbolize::{self, AddressSpace, Modules, Symbolizer},
};

mod burial;
pub mod held;
mod standing;
mod sums;

/// linux/sched.h: the child shares its parent's memory.
const CLONE_VM: u64 = 0x0000_0100;
/// Stacks kept of images that are not known yet.
const MAX_EARLY_STACKS: usize = 10_000;
/// How long they are kept: a process that is not known by then was gone before it could be.
const EARLY_NS: u64 = 30_000_000_000;
/// Copies of stacks kept of them, of 20 KiB each.
const MAX_EARLY_COPIES: usize = 256;
/// Stacks that are named between two looks at the rings.
const NAMED_AT_A_TIME: usize = 16;
/// Records taken from the rings at a time: they are put in the order of their times.
const BATCH: usize = 16_384;
/// How long the tables of a process that is to be traced, and of stacks that wait at its end, are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A frame that lies in no known code is a reason to look again, but not more often than this.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;
/// How long it is remembered what a process had mapped: until the stacks of that time have been read.
const CODE_NS: u64 = 10_000_000_000;
/// Ended processes whose views are kept until the next snapshot; of more, those that hold the least are summed.
const MAX_FINISHED: usize = 1000;

mod govern;

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
    /// Children that run in their parent's memory, and the parent.
    vforked: HashMap<u32, u32>,
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
    tally_of_gone: Tally,
    calls: Vec<CallView>,
    decisions: Vec<EventView>,
    /// Probes that are being taken out, by process.
    detaching: HashMap<u32, std::thread::JoinHandle<()>>,
    notes: Vec<String>,
    since: WallNs,
    host: String,
    /// Why processes under a seccomp filter are not traced, where that would kill them.
    refuse_filtered: Option<String>,
    events: RingBuf<MapData>,
    stack_records: RingBuf<MapData>,
    copy_records: RingBuf<MapData>,
    call_records: RingBuf<MapData>,
    selection: Selection,
    standing: standing::Standing,
    /// A target was killed because memory ran out: what is known of it should be told at once.
    is_urgent: bool,
    _tracepoints: Vec<Tracepoints>,
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
        let mut kernel = KernelObject::load(&options.sizes, options.samples(), options.debug)?;
        let tracefs = Tracefs::find()?;
        let link = options.link.unwrap_or_else(LinkKind::best);
        let kills_filtered = preflight::may_kill_filtered(host.version())
            && selftest::return_probe_kills_filtered(link).unwrap_or(true);
        let maps = Maps::of(&kernel, options.max_blocks, options.samples())?;
        let tables = Tables::new(&kernel, options.unwind)?;
        let is_bounded = options.governor.is_some() && !options.growth_only;
        let costs = if is_bounded { TrapCosts::measure(link) } else { TrapCosts::typical(link) };
        let mut notes = Vec::new();
        // Verifying the programs is what takes the longest of all, so they are loaded side by side.
        let (programs, life, mappings) = std::thread::scope(|scope| {
            let mappings = scope.spawn(|| Tracepoints::mappings(&kernel, &tracefs));
            let programs = Programs::load(&kernel, link);
            let life = Tracepoints::life(&kernel, &tracefs);
            (
                programs,
                life,
                mappings.join().unwrap_or_else(|_| Err(anyhow!("loading their programs failed"))),
            )
        });
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
            options,
            programs,
            maps,
            tables,
            modules: Modules::default(),
            stacks: Stacks::default(),
            functions: Functions::default(),
            costs,
            targets: BTreeMap::new(),
            vforked: HashMap::new(),
            early_stacks: Vec::new(),
            early_copies: Vec::new(),
            deferred: Deferred::default(),
            naming: Naming::default(),
            sideband,
            covered: HashMap::new(),
            finished: Vec::new(),
            finished_unlisted: 0,
            tally_of_gone: Tally::ZERO,
            calls: Vec::new(),
            decisions: Vec::new(),
            detaching: HashMap::new(),
            notes,
            since: clock::wall_ns(),
            host: host_name(),
            refuse_filtered: kills_filtered.then(|| preflight::kills_filtered(&host.release)),
            events,
            stack_records,
            copy_records,
            call_records,
            selection,
            standing: standing::Standing::default(),
            is_urgent: false,
            _tracepoints: tracepoints,
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

    /// Whether a target was killed because memory ran out, since this was last asked.
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

    /// Starts tracing a process. `fresh` says that it has not run yet, so that no heap is older than tracing.
    ///
    /// # Errors
    /// When the process cannot be traced: gone, kernel thread, other architecture, no permission, too many.
    pub fn add(&mut self, pid: u32, parent: Option<u32>, fresh: bool) -> Result<()> {
        if self.targets.contains_key(&pid) {
            return Ok(());
        }
        let process = process::inspect(pid)?;
        if let Some(reason) = self.refusal(&process) {
            bail!("{reason}");
        }
        let table = self.maps.prepare(pid)?;
        let image = ImageKey { tgid: pid, generation: 0 };
        let mut tracked = self.track(process, image, table, parent);
        tracked.heap_before_bytes = if fresh { Some(0) } else { process::heap_bytes(pid) };
        self.look(&mut tracked);
        if parent.is_none() && !self.options.holds_children {
            // It runs and is not held: with the tables there before the probes, its first stacks are whole.
            self.wait_for_tables(&mut tracked);
        }
        let settings = self.settings(&tracked);
        let result = self.maps.set_target(pid, &settings);
        if let Err(error) = result {
            self.tables.close(tracked.tables);
            drop(self.maps.forget(pid));
            return Err(error);
        }
        self.probe(&mut tracked);
        // What was mapped between the first look and the probes is seen by a second one.
        self.look(&mut tracked);
        self.targets.insert(pid, tracked);
        self.keep_spares();
        Ok(())
    }

    /// Takes over a process that the kernel made a target when a traced process made it.
    fn adopt(&mut self, pid: u32, parent: u32, settings: Target) {
        self.maps.adopt(pid, &settings);
        self.keep_spares();
        let facts = process::inspect(pid).ok();
        let Some(origin) = self.targets.get(&parent) else { return };
        let heap_before_bytes = origin.heap_before_bytes;
        // A child that is gone already is known by what its parent was.
        let process = facts.unwrap_or_else(|| {
            let mut process = origin.process.clone();
            process.identity.pid = pid;
            process
        });
        let image = ImageKey { tgid: pid, generation: settings.generation };
        let mut tracked = self.track(process, image, settings.table, Some(parent));
        tracked.heap_before_bytes = heap_before_bytes;
        self.look(&mut tracked);
        self.probe(&mut tracked);
        self.own_slot(&tracked);
        self.targets.insert(pid, tracked);
    }

    /// A process that nothing held has run for a moment without probes: says for how long.
    fn note_late_start(&mut self, pid: u32, life: &Life) {
        if self.options.holds_children {
            return;
        }
        let unseen_ns = clock::boot_ns().saturating_sub(life.header.time_ns);
        if let Some(target) = self.targets.get_mut(&pid) {
            target.unseen_ns = Some(unseen_ns);
            target.notes.push(format!(
                "what it allocated in its first {:.1} ms was not seen: it was made while its parent was traced \
                 (`leaktrace run` holds new processes until they are traced)",
                unseen_ns as f64 / 1e6
            ));
        }
    }

    /// Lets the kernel walk the process's stacks by its own mappings from now on.
    fn own_slot(&self, tracked: &Tracked) {
        let Some(mut settings) = self.maps.target(tracked.pid()) else { return };
        settings.slot = tracked.tables.slot().unwrap_or(NO_SLOT);
        settings.flags &= !flags::SHARED_SLOT;
        // A child may have been made while its parent was paused, or was sampled more widely.
        if tracked.care.recording == Recording::On {
            settings.flags |= flags::ALLOCATIONS;
        }
        settings.sample_interval_bytes = tracked.sample_interval_bytes;
        if let Err(error) = self.maps.set_target(tracked.pid(), &settings) {
            tracing::warn!(pid = tracked.pid(), error = format!("{error:#}"), "changing a target");
        }
    }

    fn keep_spares(&mut self) {
        if self.options.follow
            && let Err(error) = self.maps.keep_spares(self.options.spare_tables())
        {
            tracing::debug!(error = format!("{error:#}"), "no table can be kept for children");
        }
    }

    /// Why the process must not be probed.
    fn refusal(&self, process: &Process) -> Option<&str> {
        self.refuse_filtered.as_deref().filter(|_| process.seccomp != Seccomp::Disabled)
    }

    fn track(&mut self, process: Process, image: ImageKey, table: u32, parent: Option<u32>) -> Tracked {
        let (_, container) = self.standing.containers.of_process(image.tgid);
        // A child that is gone already was where its parent is.
        let of_parent = || parent.and_then(|parent| self.targets.get(&parent)?.container.clone());
        let container = container.or_else(of_parent);
        let range = self.options.min_size_bytes..=self.options.max_size_bytes;
        let mappings = if self.options.growth_only {
            Mappings::new(process_maps::program_break(process.identity.pid)).listing_break()
        } else {
            Mappings::new(None)
        };
        Tracked {
            table,
            image,
            since_boot_ns: clock::boot_ns(),
            since: clock::wall_ns(),
            parent,
            container,
            unseen_ns: None,
            oom: None,
            attached: HashMap::new(),
            tables: self.tables.open(),
            code: CodeOverTime::default(),
            mappings: mappings.listing(range),
            stillness: Stillness::default(),
            blocks: KeptBlocks::default(),
            corrections: Corrections::default(),
            history: History::default(),
            sample_interval_bytes: self.options.sample_interval_bytes,
            heap_before_bytes: None,
            tally_before: Tally::ZERO,
            notes: Vec::new(),
            exited: None,
            seems_gone: false,
            is_stale: false,
            has_new_files: false,
            care: Care::new(&self.options),
            process,
        }
    }

    fn settings(&self, tracked: &Tracked) -> Target {
        let options = &self.options;
        let mut bits = flags::MAPPINGS;
        if tracked.care.recording == Recording::On {
            bits |= flags::ALLOCATIONS;
        }
        if options.follow {
            bits |= flags::FOLLOW;
        }
        if options.trace_calls {
            bits |= flags::TRACE_CALLS;
        }
        if options.unwind == UnwindMode::FramePointers {
            bits |= flags::FRAME_POINTERS;
        }
        if options.unwind == UnwindMode::Tables {
            bits |= flags::NO_GUESSES;
        }
        if options.verify_unwind {
            bits |= flags::VERIFY_REUSE;
        }
        Target {
            owner: tracked.image.tgid,
            generation: tracked.image.generation,
            flags: bits,
            slot: tracked.tables.slot().unwrap_or(NO_SLOT),
            min_size_bytes: options.min_size_bytes,
            max_size_bytes: options.max_size_bytes,
            sample_interval_bytes: tracked.sample_interval_bytes,
            stack_depth: options.stack_depth,
            table: tracked.table,
        }
    }

    /// Reads the process's mappings: unwind tables and what its addresses mean.
    fn look(&mut self, tracked: &mut Tracked) {
        let pid = tracked.pid();
        let covered = self.tables.changes(&tracked.tables);
        let began_ns = clock::boot_ns();
        let Ok(entries) = process_maps::read(pid) else { return };
        let ended_ns = clock::boot_ns();
        let regions = self.tables.regions(pid, &tracked.tables, &entries);
        let space = AddressSpace::capture(pid, &entries, Some(&tracked.code.now().space), &mut self.modules);
        let mapped = code::Mapped { regions: Rc::new(regions), space: Rc::new(space) };
        tracked.tables.mark_changed();
        self.tables.publish(pid, &mut tracked.tables, &mapped.regions, covered);
        tracked.code.look(began_ns, ended_ns, mapped);
        tracked.is_stale = false;
    }

    /// Waits until the tables of a process are there, or for too long.
    fn wait_for_tables(&mut self, tracked: &mut Tracked) {
        let regions = Rc::clone(&tracked.code.now().regions);
        if !self.tables.wait_built(&regions, PATIENCE) {
            tracked
                .notes
                .push("its unwind tables take long to build: its first stacks may be cut".to_owned());
        }
        self.look(tracked);
    }

    /// A traced process has mapped code.
    fn mapped(&mut self, mapped: &Mapped) {
        let Some(target) = self.targets.get_mut(&mapped.tgid) else { return };
        let Mapped { tgid, time_ns, entry } = mapped;
        let region = self.tables.region(*tgid, &target.tables, entry);
        if target.code.map(*time_ns, entry, region.as_ref(), &mut self.modules) {
            target.tables.mark_changed();
            target.is_stale |= target.code.now().regions.refused() > 0;
            target.has_new_files |= entry.is_file();
        }
    }

    /// Lets the kernel see what processes have mapped, and the tables that were built.
    fn publish(&mut self) {
        let forgotten_ns = clock::boot_ns().saturating_sub(CODE_NS);
        let has_built = self.tables.take_built();
        for (pid, target) in &mut self.targets {
            target.code.forget_before(forgotten_ns);
            let regions = &target.code.now().regions;
            if has_built {
                self.tables.touch(&mut target.tables, regions);
            }
            // A target that came with this batch was published when it was looked at.
            if let Some(covered) = self.covered.get(pid) {
                self.tables.publish(*pid, &mut target.tables, regions, *covered);
            }
        }
    }

    /// Attaches to allocators that are not probed yet, and detaches from files that are not mapped any more.
    fn probe(&mut self, tracked: &mut Tracked) {
        let pid = tracked.pid();
        tracked.has_new_files = false;
        if tracked.care.recording != Recording::On {
            return;
        }
        if self.refuse_filtered.is_some() && self.refuse_newly_filtered(tracked) {
            return;
        }
        let found = match self.discovery.find(pid) {
            Ok(found) => found,
            Err(process::ProcessError::Gone(_)) => return,
            Err(error) => {
                tracked.notes.push(error.to_string());
                return;
            }
        };
        let options = &self.options;
        let emulated = if options.probe_offset_zero { EmulatedClasses::NONE } else { options.emulated };
        let plan = attachment::plan(&found, &mut self.functions, emulated, &self.costs);
        tracked.attached.retain(|identity, _| plan.iter().any(|part| part.file.identity() == *identity));
        for mut part in plan {
            let identity = part.file.identity();
            if tracked.attached.contains_key(&identity) {
                continue;
            }
            part.probes.iter_mut().for_each(|probe| probe.hook.process = slot_of_table(tracked.table));
            let attached = self.attach(pid, part);
            // Of a process that has ended meanwhile there is nothing to say.
            let has_failed = attached.allocators.iter().any(|view| !view.failed.is_empty());
            if has_failed && process::stat(pid).is_some_and(|stat| !stat.has_ended) {
                for (function, reason) in attached.allocators.iter().flat_map(|view| &view.failed) {
                    tracing::warn!(pid, function, reason, "a function is not probed");
                }
            }
            tracked.attached.insert(identity, attached);
        }
        for (path, reason) in &found.unreadable {
            let note = format!("{path} cannot be looked into: {reason}");
            if !tracked.notes.contains(&note) {
                tracked.notes.push(note);
            }
        }
    }

    /// Takes the probes out of a process that has come under a seccomp filter since it was added.
    fn refuse_newly_filtered(&self, tracked: &mut Tracked) -> bool {
        let Ok(process) = process::inspect(tracked.pid()) else { return false };
        let Some(reason) = self.refusal(&process) else { return false };
        tracked.attached.clear();
        let note = reason.to_owned();
        if !tracked.notes.contains(&note) {
            tracked.notes.push(note);
        }
        true
    }

    fn attach(&self, pid: u32, part: Attachment) -> super::target::Attached {
        let path = part.file.attach_path();
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return super::target::Attached::default();
        };
        let (links, failures) = self.programs.attach(&self.kernel, &path, pid, &part.probes);
        let code = part.code.clone();
        super::target::Attached { links, allocators: part.views(&failures), code }
    }

    /// Takes in everything that the kernel has sent. Call it whenever a ring is readable.
    pub fn drain(&mut self) {
        while self.drain_batch() == BATCH {}
        self.look_again();
        self.finish_copies();
        self.naming.name_some(NAMED_AT_A_TIME, &mut self.stacks, &mut self.symbolizer);
        self.drain_calls();
        self.settle();
    }

    fn drain_calls(&mut self) {
        while let Some(Event::Call(call)) = next(&mut self.call_records) {
            if self.has_work() {
                self.drain_stacks();
                self.name_all(None);
            }
            let view = self.call_view(&call);
            self.calls.push(view);
        }
    }

    /// Takes in a batch of records in the order of their times: a stack is understood by the code that was mapped when
    /// it was taken. The rings are read in the order in which one record can depend on another. Returns how many
    /// records there were in the fullest ring.
    fn drain_batch(&mut self) -> usize {
        let changes = self.targets.iter().map(|(pid, target)| (*pid, self.tables.changes(&target.tables)));
        self.covered = changes.collect();
        let mut batch: Vec<(u64, News)> = Vec::new();
        let mut most = 0;
        for ring in [&mut self.events, &mut self.stack_records, &mut self.copy_records] {
            let before = batch.len();
            while batch.len() - before < BATCH
                && let Some(event) = next(ring)
            {
                batch.push((event.time_ns(), News::Event(event)));
            }
            most = most.max(batch.len() - before);
        }
        if let Some(sideband) = &mut self.sideband {
            let made: HashSet<u32> = batch.iter().filter_map(|(_, news)| news.child()).collect();
            let targets = &self.targets;
            let (mapped, lost) = sideband.drain(|pid| targets.contains_key(&pid) || made.contains(&pid));
            batch.extend(mapped.into_iter().map(|mapped| (mapped.time_ns, News::Mapped(mapped))));
            if lost {
                self.targets.values_mut().for_each(|target| target.is_stale = true);
            }
        }
        batch.sort_by_key(|(time_ns, _)| *time_ns);
        for (_, news) in batch {
            match news {
                News::Event(event) => self.take_event(&event),
                News::Mapped(mapped) => self.mapped(&mapped),
            }
        }
        self.publish();
        most
    }

    fn take_event(&mut self, event: &Event) {
        match event {
            Event::Fork(life) => self.forked(life),
            Event::Exec(life) => self.execed(life),
            Event::Exit(life) => self.ended(life),
            Event::Mapping(change) => self.mapping_changed(change),
            Event::Stack(record) => self.stack_seen(record),
            Event::Copy(record) => self.copy_seen(record),
            Event::Appeared(life) => self.appeared(life),
            Event::OutOfMemory(life) => self.out_of_memory(life),
            Event::Call(_) => {}
        }
    }

    /// Takes in the stacks that came since the batch under way was read.
    fn drain_stacks(&mut self) {
        while let Some(event) = next(&mut self.stack_records) {
            self.take_event(&event);
        }
        while let Some(event) = next(&mut self.copy_records) {
            self.take_event(&event);
        }
    }

    /// Looks again at processes of which something was missed, and probes what is new in others.
    fn look_again(&mut self) {
        let changed = self.targets.iter().filter(|(_, target)| target.is_stale || target.has_new_files);
        let changed: Vec<(u32, bool)> = changed.map(|(pid, target)| (*pid, target.is_stale)).collect();
        for (pid, is_stale) in changed {
            if is_stale {
                self.refresh(pid);
            } else if let Some(mut tracked) = self.targets.remove(&pid) {
                self.probe(&mut tracked);
                self.targets.insert(pid, tracked);
            }
        }
    }

    /// Walks the copied stacks whose tables have come.
    fn finish_copies(&mut self) {
        let tables = &self.tables;
        for waiting in self.deferred.take(|waiting| tables.are_built(&waiting.mapped.regions)) {
            self.finish_copy(&waiting);
        }
    }

    /// Walks the copied stacks of an image, or all, waiting for their tables.
    fn finish_all_copies(&mut self, image: Option<ImageKey>) {
        for regions in self.deferred.code(image) {
            self.tables.wait_built(&regions, PATIENCE);
        }
        for waiting in self.deferred.take(|waiting| image.is_none_or(|image| waiting.image == image)) {
            self.finish_copy(&waiting);
        }
    }

    fn finish_copy(&mut self, waiting: &Waiting) {
        let Waiting { image, copy, mapped } = waiting;
        let mut stack = self.tables.finish(&mapped.regions, copy);
        let current = self.targets.get(&image.tgid).filter(|target| target.image == *image);
        let mut space = Rc::clone(&mapped.space);
        if stack.stop == Stop::NoMapping
            && let Some(target) = current
        {
            // Code that was found by looking again.
            stack = self.tables.finish(&target.code.now().regions, copy);
            space = Rc::clone(&target.code.now().space);
        }
        let limit = self.options.stack_depth as usize;
        if stack.frames.len() > limit {
            stack.frames.truncate(limit);
            stack.stop = Stop::Depth;
        }
        // A stack that is longer than its copy was cut elsewhere before.
        if stack.frames.len() < copy.frames
            || stack.stop == Stop::NoMapping && stack.frames.len() == copy.frames
        {
            return;
        }
        self.naming.push(Unnamed {
            image: *image,
            hash: copy.hash,
            frames: stack.frames,
            end: stack.stop.name(),
            space,
            is_completion: true,
        });
    }

    fn copy_seen(&mut self, record: &CopyRecord) {
        let pid = record.header.tgid;
        let image = ImageKey { tgid: pid, generation: record.header.generation };
        match self.targets.get(&pid) {
            Some(target) if target.image == image => {
                let mapped = target.code.at(record.header.time_ns).clone();
                self.deferred.push(Waiting { image, copy: record.clone(), mapped });
            }
            Some(target) if target.image.generation > image.generation => {}
            _ if self.early_copies.len() < MAX_EARLY_COPIES => self.early_copies.push(record.clone()),
            _ => {}
        }
    }

    /// Looks again at what a process maps, and probes what is new.
    pub fn refresh(&mut self, pid: u32) {
        let Some(mut tracked) = self.targets.remove(&pid) else { return };
        self.look(&mut tracked);
        self.probe(&mut tracked);
        self.targets.insert(pid, tracked);
    }

    fn forked(&mut self, life: &Life) {
        let (parent, child) = (life.header.tgid, life.child);
        if life.clone_flags & CLONE_VM != 0 {
            // A vfork child runs in its parent's memory until it execs.
            self.vforked.insert(child, parent);
            return;
        }
        if let Some(settings) = self.maps.target(child).filter(|settings| settings.owner == child) {
            self.adopt(child, parent, settings);
            self.note_late_start(child, life);
        } else if let Err(error) = self.add(child, Some(parent), false) {
            tracing::debug!(pid = child, error = format!("{error:#}"), "a child is not traced");
        }
    }

    fn execed(&mut self, life: &Life) {
        let pid = life.header.tgid;
        if let Some(parent) = self.vforked.remove(&pid) {
            self.execed_after_vfork(pid, parent, life);
            return;
        }
        self.drain_stacks();
        let Some(mut old) = self.targets.remove(&pid) else { return };
        let generation = life.header.generation;
        if old.image.generation == generation {
            self.targets.insert(pid, old);
            return;
        }
        self.finish_all_copies(Some(old.image));
        self.name_all(Some(old.image));
        let mut view = self.view_of(&mut old);
        view.execed = true;
        self.finish(view);
        self.forget_image(&old);
        let Ok(process) = process::inspect(pid) else {
            self.standing.missed();
            self.drop_target(old);
            return;
        };
        let mut new = self.track(process, ImageKey { tgid: pid, generation }, old.table, old.parent);
        // The slot and the links stay: the kernel keeps them over an exec.
        self.tables.close(std::mem::replace(&mut new.tables, std::mem::take(&mut old.tables)));
        new.attached = std::mem::take(&mut old.attached);
        new.sample_interval_bytes = old.sample_interval_bytes;
        new.care = old.care.clone().after_exec();
        new.heap_before_bytes = Some(0);
        new.tally_before = self.maps.tally(pid);
        self.look(&mut new);
        let files_before: Vec<_> = new.attached.keys().copied().collect();
        self.probe(&mut new);
        // The new program's calls into files that have probes already were seen from its beginning.
        if !self.options.holds_children && new.attached.keys().any(|file| !files_before.contains(file)) {
            new.unseen_ns = Some(clock::boot_ns().saturating_sub(life.header.time_ns));
        }
        self.own_slot(&new);
        self.targets.insert(pid, new);
        self.take_early_stacks(pid);
    }

    /// A vfork child has left its parent's memory: it is a process of its own from here on.
    fn execed_after_vfork(&mut self, pid: u32, parent: u32, life: &Life) {
        match self.maps.target(pid).filter(|settings| settings.owner == pid) {
            Some(settings) => {
                self.adopt(pid, parent, settings);
                self.note_late_start(pid, life);
                if let Some(target) = self.targets.get_mut(&pid) {
                    target.heap_before_bytes = Some(0);
                }
                self.take_early_stacks(pid);
            }
            None => {
                if let Err(error) = self.add(pid, Some(parent), true) {
                    tracing::debug!(pid, error = format!("{error:#}"), "a child is not traced");
                }
            }
        }
    }

    /// Stacks of a new image that arrived before the news of its exec.
    fn take_early_stacks(&mut self, pid: u32) {
        let (early, later) = std::mem::take(&mut self.early_stacks)
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.header.tgid == pid);
        self.early_stacks = later;
        for record in early {
            self.stack_seen(&record);
        }
        let (early, later) = std::mem::take(&mut self.early_copies)
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.header.tgid == pid);
        self.early_copies = later;
        for record in early {
            self.copy_seen(&record);
        }
    }

    fn ended(&mut self, life: &Life) {
        self.vforked.remove(&life.header.tgid);
        let knows = self.kernel.knows_exit_status();
        let status = if knows { exited(life.status) } else { Exited::default() };
        self.finish_target(life.header.tgid, status);
    }

    /// The process has ended: what is known of it is in the next snapshot.
    fn finish_target(&mut self, pid: u32, status: Exited) {
        self.drain_stacks();
        let Some(mut target) = self.targets.remove(&pid) else { return };
        self.finish_all_copies(Some(target.image));
        self.name_all(Some(target.image));
        let oom_killed = target.oom.is_some();
        target.exited = Some(Exited { oom_killed, ..status });
        self.is_urgent |= oom_killed;
        let view = self.view_of(&mut target);
        tracing::info!(pid, comm = view.comm, held_bytes = view.totals.outstanding_bytes, "ended");
        self.finish(view);
        self.forget_image(&target);
        self.drop_target(target);
    }

    /// Takes the wait status of a process that leaktrace itself waited for.
    pub fn note_exit(&mut self, pid: u32, status: u32) {
        self.drain();
        if let Some(target) = self.targets.get(&pid) {
            let header = leaktrace_common::event::Header {
                kind: 0,
                tgid: pid,
                tid: pid,
                generation: target.image.generation,
                time_ns: clock::boot_ns(),
            };
            self.ended(&Life { header, child: 0, status, clone_flags: 0 });
        }
    }

    /// The process is about to be killed: what can only be read while it lives is read now.
    fn out_of_memory(&mut self, life: &Life) {
        let pid = life.header.tgid;
        let rss_bytes = process::inspect(pid).ok().map(|facts| facts.rss_bytes).filter(|bytes| *bytes > 0);
        if let Some(target) = self.targets.get_mut(&pid) {
            target.oom = Some(OutOfMemory { rss_bytes });
        }
    }

    fn finish(&mut self, view: TargetView) {
        self.finished.push(view);
        if self.finished.len() > 2 * MAX_FINISHED {
            self.finished.sort_by_key(|view| std::cmp::Reverse(view.totals.outstanding_bytes));
            self.finished_unlisted += (self.finished.len() - MAX_FINISHED) as u64;
            self.finished.truncate(MAX_FINISHED);
        }
    }

    fn forget_image(&mut self, target: &Tracked) {
        let mut keys = Vec::new();
        let image = target.image;
        let _ = self.maps.for_each_site(|key, _| {
            if ImageKey::from(key) == image {
                keys.push(key);
            }
        });
        self.maps.delete_sites(&keys);
        self.stacks.forget(image);
        self.deferred.forget(image);
        self.naming.forget(image);
    }

    fn drop_target(&mut self, mut target: Tracked) {
        let pid = target.pid();
        self.tally_of_gone.merge(&self.maps.tally(pid));
        let table = self.maps.forget(pid);
        // Many may end at once, and the next ones wait to be probed.
        self.detach_aside(&mut target, table);
        self.symbolizer.forget_process(pid);
        self.tables.close(target.tables);
    }

    fn mapping_changed(&mut self, change: &MappingChange) {
        if change.stack != 0 && (self.options.sample_interval_bytes > 0 || self.options.governor.is_some()) {
            // Its stack was sent before it.
            self.drain_stacks();
        }
        let Some(target) = self.targets.get_mut(&change.header.tgid) else { return };
        if target.image.generation != change.header.generation {
            return;
        }
        let maps_code =
            change.change == Change::Map as u32 && change.protection & libc::PROT_EXEC.cast_unsigned() != 0;
        // With the side band, only what it did not tell of: a CPU that came online later has no ring.
        let is_known = self.sideband.is_some() && target.code.now().regions.at(change.address).is_some();
        target.is_stale |= maps_code && !is_known;
        let mut change = *change;
        let is_seen = target.care.recording == Recording::On && target.sample_interval_bytes == 0;
        if change.stack != 0 && !is_seen {
            self.naming.name_all(Some(target.image), &mut self.stacks, &mut self.symbolizer);
            // The kernel knows only of allocation calls that are recorded; the stack tells of the others.
            let frames = self.stacks.frames(target.image, change.stack);
            change.in_allocator |= u32::from(target.is_in_allocator(&frames));
        }
        target.mappings.apply(&change);
    }

    fn stack_seen(&mut self, record: &StackRecord) {
        let pid = record.header.tgid;
        let image = ImageKey { tgid: pid, generation: record.header.generation };
        let is_early = self.targets.get(&pid).is_none_or(|target| target.image.generation < image.generation);
        if is_early {
            if self.early_stacks.len() < MAX_EARLY_STACKS {
                self.early_stacks.push(record.clone());
            }
            return;
        }
        let unknown = self.targets.get(&pid).is_some_and(|target| {
            let mapped = target.code.at(record.header.time_ns);
            target.image == image
                && record.frames.iter().any(|frame| !mapped.space.contains(frame & FRAME_ADDRESS))
                && (self.sideband.is_none()
                    || clock::boot_ns().saturating_sub(target.code.looked_ns()) > LOOK_AGAIN_NS)
        });
        if unknown && let Some(mut target) = self.targets.remove(&pid) {
            self.look(&mut target);
            self.targets.insert(pid, target);
        }
        let Some(target) = self.targets.get(&pid) else { return };
        self.naming.push(Unnamed {
            image,
            hash: record.hash,
            frames: record.frames.clone(),
            end: record.stop.name(),
            space: Rc::clone(&target.code.at(record.header.time_ns).space),
            is_completion: false,
        });
    }

    /// Whether stacks wait for their names: then there is work without news from the kernel.
    pub fn has_work(&self) -> bool {
        !self.naming.is_done()
    }

    /// Finds the names of all stacks of an image, or of all images.
    fn name_all(&mut self, image: Option<ImageKey>) {
        self.naming.name_all(image, &mut self.stacks, &mut self.symbolizer);
    }

    fn call_view(&self, call: &Call) -> CallView {
        let image = ImageKey { tgid: call.header.tgid, generation: call.header.generation };
        let target = self.targets.get(&call.header.tgid);
        let is_free = call.free != 0;
        CallView {
            time: clock::wall_of_boot(call.header.time_ns),
            pid: call.header.tgid,
            tid: call.header.tid,
            comm: target.map_or_else(String::new, |target| target.process.comm.clone()),
            function: self.functions.name(u16::try_from(call.function).unwrap_or(u16::MAX)).to_owned(),
            free: is_free,
            address: call.address,
            size_bytes: Some(call.size_bytes),
            old_address: (call.old_address != 0).then_some(call.old_address),
            frames: self.stacks.frames(image, call.stack),
        }
    }

    /// Calls recorded since the last time, in order.
    pub fn take_calls(&mut self) -> Vec<CallView> {
        std::mem::take(&mut self.calls)
    }

    /// Stops recording, so that a last snapshot stands still.
    pub fn stop(&mut self) {
        for (pid, target) in &mut self.targets {
            self.maps.stop(*pid);
            target.attached.values_mut().for_each(|attached| attached.links = Default::default());
        }
        self.finish_detaching();
        self.drain();
    }

    /// Everything that is known now; processes that ended since the last snapshot are in it and then gone.
    pub fn snapshot(&mut self, last: bool) -> Snapshot {
        self.drain();
        self.make_up_for_losses();
        self.bury();
        let mut sums = self.read_sums(last);
        while self.drain_batch() == BATCH {}
        self.finish_copies();
        if last {
            self.finish_all_copies(None);
        }
        self.name_all(None);
        let mut views = std::mem::take(&mut self.finished);
        let mut tally = self.tally_of_gone;
        let mut targets = std::mem::take(&mut self.targets);
        for (pid, target) in &mut targets {
            // One that was made a target only now was not counted.
            let of_target = sums.tallies.remove(pid).unwrap_or_else(|| self.maps.tally(*pid));
            let heap = sums.heap_of(target.image);
            views.push(self.view_with(target, heap, &of_target));
            tally.merge(&of_target);
        }
        if last {
            tracing::debug!(
                stacks = tally.of(Counter::Stacks),
                frames = tally.of(Counter::Frames),
                reused = tally.of(Counter::StacksReused),
                mismatches = tally.of(Counter::ReuseMismatches),
                complete = tally.of(Counter::StopComplete),
                cut_at_limit = tally.of(Counter::StopDepth),
                "stacks were taken"
            );
        }
        self.symbolizer.release();
        let notes = self.current_notes(targets.values());
        self.targets = targets;
        let mut losses = view::tally_losses(&tally, &Tally::ZERO);
        for (cause, amount) in views.iter().flat_map(|view| &view.losses) {
            if matches!(cause.as_str(), "mappings_dropped") {
                *losses.entry(cause.clone()).or_default() += amount;
            }
        }
        let corrected: u64 = self.targets.values().map(|target| target.corrections.count()).sum();
        if corrected > 0 {
            *losses.entry("missed_frees".to_owned()).or_default() += corrected;
        }
        let lost = self.sideband.as_ref().map_or(0, Sideband::lost);
        for (cause, amount) in [("mapping_records_lost", lost), ("copies_dropped", self.deferred.dropped())] {
            if amount > 0 {
                *losses.entry(cause.to_owned()).or_default() += amount;
            }
        }
        if self.tables.refused() > 0 {
            losses.insert("unwind_tables_full".to_owned(), self.tables.refused());
        }
        Snapshot {
            time: clock::wall_ns(),
            since: self.since,
            host: self.host.clone(),
            mode: match self.options.sample_interval_bytes {
                _ if self.options.growth_only => Mode::Growth,
                0 => Mode::Exact,
                interval_bytes => Mode::Sampled { interval_bytes },
            },
            last,
            targets: views,
            losses,
            notes,
            events: std::mem::take(&mut self.decisions),
            watched: None,
        }
    }

    fn current_notes<'a>(&self, targets: impl Iterator<Item = &'a Tracked>) -> Vec<String> {
        let mut notes = self.notes.clone();
        for target in targets {
            let pid = target.pid();
            notes.extend(target.notes.iter().map(|note| format!("process {pid}: {note}")));
            notes.extend(govern::note(target));
            let records = target.care.recording != Recording::Off;
            if records && target.attached.values().all(|attached| attached.allocators.is_empty()) {
                notes.push(format!(
                    "process {pid} ({}): no allocator was found; see `leaktrace doctor -p {pid}`, --object and --function",
                    target.process.comm
                ));
            }
        }
        notes.extend(self.symbolizer.messages());
        notes.extend(self.standing_notes());
        if self.finished_unlisted > 0 {
            notes.push(format!("{} more processes ended and are not listed", self.finished_unlisted));
        }
        notes
    }

    fn view_of(&mut self, target: &mut Tracked) -> TargetView {
        let tally = self.maps.tally(target.pid());
        let heap = view::heap_of(target.image, &self.maps).unwrap_or_default();
        self.view_with(target, Some(heap), &tally)
    }

    fn view_with(
        &mut self,
        target: &mut Tracked,
        heap: Option<Vec<(u64, SiteTotals)>>,
        tally: &Tally,
    ) -> TargetView {
        target.container = target.container.as_ref().map(|known| self.standing.containers.latest(known));
        let sources = view::Sources {
            maps: &self.maps,
            stacks: &self.stacks,
            functions: &self.functions,
            selection: &self.selection,
            has_size_filter: self.options.min_size_bytes > 0 || self.options.max_size_bytes < u64::MAX,
        };
        view::target_view(target, heap, tally, &sources)
    }
}

/// What a batch of records is made of.
enum News {
    Event(Event),
    Mapped(Mapped),
}

impl News {
    /// The process that this made.
    fn child(&self) -> Option<u32> {
        match self {
            News::Event(Event::Fork(life)) => Some(life.child),
            News::Event(Event::Exec(life)) => Some(life.header.tgid),
            _ => None,
        }
    }
}

/// The next record of a ring that can be understood.
fn next(ring: &mut RingBuf<MapData>) -> Option<Event> {
    loop {
        let item = ring.next()?;
        match decode::event(&item) {
            Some(event) => return Some(event),
            None => tracing::error!(bytes = item.len(), "a malformed record from the kernel side"),
        }
    }
}

fn exited(status: u32) -> Exited {
    let signal = (status & 0x7f) as i32;
    if signal == 0 {
        Exited { code: Some((status >> 8 & 0xff) as i32), ..Exited::default() }
    } else {
        Exited { signal: Some(signal), ..Exited::default() }
    }
}

pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}
