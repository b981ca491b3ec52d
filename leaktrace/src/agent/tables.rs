//! Unwind tables of the processes that are traced: which code they map, where the kernel finds each file's
//! table, and the slot that holds a process's mappings. Making tables is `unwind`'s work, on `builder`'s thread.
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::FileExt as _,
    },
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use leaktrace_common::unwind::{
    FRAME_ADDRESS, FRAME_EXACT, MAX_RULES, Mapping, PAGE_SHIFT, Page, ProcessMappings, Row, Rule, SLAB_ROWS,
};

use super::{
    builder::{Builder, Built, Job},
    options::UnwindMode,
};
use crate::{
    attach::{arrays::Arrays, object::KernelObject, shared::SharedArray},
    discover::{
        maps::MapEntry,
        object::{FileIdentity, ObjectFile},
        process,
    },
    drain::decode::CopyRecord,
    unwind::{
        elf::Elf,
        mappings::{Placement, Region, Regions},
        source::Source,
        store::{Capacity, Store, Usage, Write},
        walk::{self, Rules, Stack, Start},
    },
};

/// A vdso is a few pages.
const MAX_VDSO_BYTES: u64 = 64 << 10;
/// After this time no walk uses a table that no process's mappings name any more.
const REST: Duration = Duration::from_millis(100);
/// Files that wait for their table, each with an open descriptor.
const MAX_BUILDING: usize = 256;
/// Files whose headers are remembered although no process maps them.
const MAX_KNOWN: usize = 4096;
/// [`Mapping::salt`] of code that no file stands for.
const NO_FILE_SALT: u16 = 1;

/// What a file's table is known by: equal contents share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TableKey {
    /// GNU build id.
    BuildId(Vec<u8>),
    /// Files without one, by what tells them apart.
    File(FileIdentity),
    /// The vdso, by its contents.
    Vdso(u64),
}

/// What is remembered of a file that was looked into.
#[derive(Debug)]
pub struct KnownFile {
    key: TableKey,
    pub(super) elf: Elf,
    /// What tells its stacks from those of other files at the same address.
    salt: u16,
}

/// What a process has mapped somewhere.
#[derive(Clone, Debug)]
pub struct Code {
    entry: Rc<MapEntry>,
    /// The file, where there is one that could be read.
    file: Option<Arc<KnownFile>>,
}

impl Code {
    /// Code that no file stands for.
    #[cfg(test)]
    pub(super) fn of_no_file(entry: &MapEntry) -> Code {
        Code { entry: Rc::new(entry.clone()), file: None }
    }
}

/// Every table and slot.
pub struct Tables {
    mode: UnwindMode,
    store: Store<TableKey>,
    files: HashMap<FileIdentity, Arc<KnownFile>>,
    vdsos: HashMap<u64, Arc<KnownFile>>,
    salts: u16,
    builder: Builder,
    building: HashSet<TableKey>,
    /// Tables that will fit once others have rested.
    unplaced: Vec<Built>,
    /// Tables that did not fit even without the rows that only interrupted code needs.
    too_large: HashSet<TableKey>,
    /// References to be dropped once no walk uses the table.
    resting: VecDeque<(Instant, TableKey)>,
    slabs: Arrays,
    pages: SharedArray,
    rules: SharedArray,
    processes: Arrays,
    free_slots: Vec<u32>,
    /// Tables came that processes' mappings do not name yet.
    has_news: bool,
    refused: u64,
}

/// A process's slot, and the tables it refers to.
#[derive(Debug, Default)]
pub struct ProcessTables {
    slot: Option<u32>,
    held: HashSet<TableKey>,
    /// The kernel's copy of its mappings is older than what is known.
    is_changed: bool,
    /// Mappings that the kernel's table had no room for.
    pub left_out: usize,
}

impl ProcessTables {
    /// The slot in PROCESS_MAPS, where there is one.
    pub fn slot(&self) -> Option<u32> {
        self.slot
    }

    /// Its code has changed: the kernel is to see it.
    pub fn mark_changed(&mut self) {
        self.is_changed = true;
    }
}

impl Tables {
    /// Empty tables over the kernel's maps.
    ///
    /// # Errors
    /// When a map cannot be mapped into this process, or no thread be started.
    pub fn new(kernel: &KernelObject, mode: UnwindMode) -> Result<Tables> {
        let shared = |name: &str, value_bytes: usize| -> Result<(SharedArray, u32)> {
            let entries = kernel.map(name)?.info()?.max_entries();
            let array = SharedArray::map(kernel.map_fd(name)?, entries as usize * value_bytes)
                .with_context(|| format!("mapping the kernel map {name}"))?;
            Ok((array, entries))
        };
        let slabs = Arrays::of(kernel, "UNWIND_ROWS", SLAB_ROWS * size_of::<Row>())?;
        let (pages, page_count) = shared("PAGES", size_of::<Page>())?;
        let (rules, _) = shared("RULES", size_of::<Rule>())?;
        let processes = Arrays::parts_of(kernel, "PROCESS_MAPS", size_of::<ProcessMappings>())?;
        let capacity = Capacity {
            slabs: u16::try_from(slabs.capacity()).unwrap_or(u16::MAX),
            pages: page_count,
            rules: MAX_RULES as u16,
        };
        let slot_count = processes.capacity();
        let mut tables = Tables {
            mode,
            store: Store::new(capacity),
            files: HashMap::new(),
            vdsos: HashMap::new(),
            salts: NO_FILE_SALT,
            builder: Builder::start()?,
            building: HashSet::new(),
            unplaced: Vec::new(),
            too_large: HashSet::new(),
            resting: VecDeque::new(),
            slabs,
            pages,
            rules,
            processes,
            free_slots: (0..slot_count).rev().collect(),
            has_news: false,
            refused: 0,
        };
        let first = tables.store.initial_writes();
        tables.carry_out(first);
        Ok(tables)
    }

    /// Readable when a table was built.
    pub fn bell(&self) -> RawFd {
        self.builder.bell().as_raw_fd()
    }

    /// A slot for a process, or none when all are taken (its stacks then have one frame).
    pub fn open(&mut self) -> ProcessTables {
        let slot = if self.mode == UnwindMode::FramePointers { None } else { self.free_slots.pop() };
        if let Some(slot) = slot
            && let Err(error) = self.processes.get_or_make(slot)
        {
            tracing::warn!(error = format!("{error:#}"), "a process's stacks will be cut");
            self.free_slots.push(slot);
            return ProcessTables::default();
        }
        ProcessTables { slot, ..ProcessTables::default() }
    }

    /// How often the process has mapped code; to be read before the news that [`Tables::publish`] shall cover.
    pub fn changes(&self, process: &ProcessTables) -> u32 {
        process.slot.and_then(|slot| self.processes.get(slot)).map_or(0, |mappings| mappings.changes(0))
    }

    /// The code of a process by all its mappings from /proc/PID/maps.
    pub fn regions(&mut self, pid: u32, process: &ProcessTables, entries: &[MapEntry]) -> Regions<Code> {
        let mut regions = Regions::default();
        for entry in entries {
            if let Some(region) = self.region(pid, process, entry) {
                regions.insert(region);
            }
        }
        regions
    }

    /// What one mapping means for the walker, and has its table built; `None` where it means nothing.
    pub fn region(&mut self, pid: u32, process: &ProcessTables, entry: &MapEntry) -> Option<Region<Code>> {
        if process.slot.is_none() || !entry.executable {
            return None;
        }
        let file = self.known_file(pid, entry);
        if let Some(file) = &file {
            self.want(pid, entry, file);
        }
        let (start, end, file_offset) = (entry.start, entry.end, entry.offset);
        Some(Region { start, end, file_offset, file: Code { entry: Rc::new(entry.clone()), file } })
    }

    /// Lets the kernel see a process's mappings, if anything is new. `covered` is what [`Tables::changes`] said before
    /// the news was read. Tables that are not needed any more are given up.
    pub fn publish(&mut self, pid: u32, process: &mut ProcessTables, regions: &Regions<Code>, covered: u32) {
        let Some(slot) = process.slot else { return };
        let is_pending = self.processes.get(slot).is_some_and(|mappings| mappings.is_pending(0));
        if !process.is_changed && !is_pending {
            return;
        }
        let mut held = HashSet::new();
        for region in regions.iter() {
            let Some(file) = &region.file.file else { continue };
            if held.contains(&file.key) {
                continue;
            }
            if process.held.contains(&file.key) || self.store.acquire(&file.key).is_some() {
                held.insert(file.key.clone());
            } else {
                self.want(pid, &region.file.entry, file);
            }
        }
        let layout = regions.layout(|region| self.place(region));
        if let Ok(mappings) = self.processes.get_or_make(slot) {
            mappings.publish(0, &layout.mappings, covered);
        }
        for key in process.held.difference(&held) {
            self.resting.push_back((Instant::now(), key.clone()));
        }
        process.held = held;
        process.left_out = layout.left_out;
        process.is_changed = false;
    }

    /// Whether every table that the code needs is there, or cannot be had.
    pub fn are_built(&self, regions: &Regions<Code>) -> bool {
        self.building.is_empty()
            || !regions
                .iter()
                .filter_map(|region| region.file.file.as_ref())
                .any(|file| self.building.contains(&file.key))
    }

    /// Takes in the tables that were built. `true` when mappings are to be published again: see [`Tables::touch`].
    pub fn take_built(&mut self) -> bool {
        self.builder.silence();
        self.end_rests();
        for built in std::mem::take(&mut self.unplaced) {
            self.place_built(built);
        }
        while let Some(built) = self.builder.next() {
            self.place_built(built);
        }
        std::mem::take(&mut self.has_news)
    }

    /// Waits until the tables of some code are built; `false` when the time is up.
    pub fn wait_built(&mut self, regions: &Regions<Code>, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.are_built(regions) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.builder.wait(left.min(REST)) {
                Ok(built) => self.place_built(built),
                Err(_) if left.is_zero() => return false,
                Err(_) => {
                    // What waits for room may have it now.
                    let has_news = self.take_built();
                    self.has_news = has_news;
                }
            }
        }
        true
    }

    /// Tables came: a process's mappings are to be published again if they lack any.
    pub fn touch(&self, process: &mut ProcessTables, regions: &Regions<Code>) {
        let lacks = |region: &Region<Code>| {
            region.file.file.as_ref().is_some_and(|file| !process.held.contains(&file.key))
        };
        process.is_changed |= regions.iter().any(lacks);
    }

    /// Walks a stack that was copied, in the mappings of its time.
    pub fn finish(&self, regions: &Regions<Code>, copy: &CopyRecord) -> Stack {
        let mappings = regions.layout(|region| self.place(region)).mappings;
        let start = Start {
            ip: copy.frame & FRAME_ADDRESS,
            sp: copy.sp,
            rbp: copy.rbp,
            rbx: copy.rbx,
            is_exact: copy.frame & FRAME_EXACT != 0,
        };
        walk::walk(start, &mappings, self, |address| copy.word(address))
    }

    /// Gives up a process's slot and tables.
    pub fn close(&mut self, process: ProcessTables) {
        if let Some(slot) = process.slot {
            if let Ok(mappings) = self.processes.get_or_make(slot) {
                let changes = mappings.changes(0);
                mappings.publish(0, &[], changes);
            }
            self.free_slots.push(slot);
        }
        let now = Instant::now();
        self.resting.extend(process.held.into_iter().map(|key| (now, key)));
    }

    /// Tables that there was no room for.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// What the walker may do in a region, and the region's salt.
    fn place(&self, region: &Region<Code>) -> (Placement, u16) {
        let Some(file) = &region.file.file else {
            let is_strict = self.mode == UnwindMode::Tables;
            return (if is_strict { Placement::Missing } else { Placement::Guess }, NO_FILE_SALT);
        };
        let placement = match self.store.placed(&file.key) {
            Some(placed) => Placement::of_file(region, &file.elf, placed),
            None => Placement::Missing,
        };
        (placement, file.salt)
    }

    /// Has a file's table built, unless it is there, under way or known not to fit.
    fn want(&mut self, pid: u32, entry: &MapEntry, file: &Arc<KnownFile>) {
        let key = &file.key;
        let is_settled = self.building.contains(key) || self.too_large.contains(key);
        if is_settled || self.store.placed(key).is_some() || self.building.len() >= MAX_BUILDING {
            return;
        }
        let Some(contents) = Contents::open(pid, entry) else { return };
        // Another file may have come to lie there meanwhile.
        if let (Contents::File(object), TableKey::File(identity)) = (&contents, key)
            && object.identity() != *identity
        {
            return;
        }
        if self.builder.ask(Job { file: Arc::clone(file), contents, prune: false }) {
            self.building.insert(key.clone());
        }
    }

    /// Places a table that was built; without room, has it built again without what only interrupted code needs.
    fn place_built(&mut self, built: Built) {
        let key = built.job.file.key.clone();
        let added = self.store.add(key.clone(), &built.table);
        self.carry_out(added.writes);
        if added.placed.is_some() {
            self.building.remove(&key);
            // Processes take references of their own; until then it must not go.
            self.resting.push_back((Instant::now(), key));
            self.has_news = true;
            return;
        }
        if !self.resting.is_empty() {
            self.unplaced.push(built);
        } else if !built.job.prune {
            let again = Job { prune: true, ..built.job };
            if !self.builder.ask(again) {
                self.building.remove(&key);
            }
        } else {
            self.refused += 1;
            self.building.remove(&key);
            self.too_large.insert(key);
        }
    }

    /// Drops the references that no walk can use any more.
    fn end_rests(&mut self) {
        while self.resting.front().is_some_and(|(since, _)| since.elapsed() >= REST) {
            let Some((_, key)) = self.resting.pop_front() else { return };
            self.store.release(&key);
            // There may be room now.
            self.too_large.clear();
        }
    }

    /// Looks into the file behind a mapping, once for each file.
    fn known_file(&mut self, pid: u32, entry: &MapEntry) -> Option<Arc<KnownFile>> {
        if entry.path == b"[vdso]" {
            return self.known_vdso(pid, entry);
        }
        if !entry.is_file() {
            return None;
        }
        let file = ObjectFile::of_mapping(pid, entry).ok()?;
        let identity = file.identity();
        if let Some(known) = self.files.get(&identity) {
            return Some(Arc::clone(known));
        }
        let elf = Elf::read(&Source::File(file.file())).ok()?;
        let key = match elf.build_id.as_slice() {
            [] => TableKey::File(identity),
            build_id => TableKey::BuildId(build_id.to_vec()),
        };
        if self.files.len() >= MAX_KNOWN {
            self.files.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let known = Arc::new(KnownFile { key, elf, salt: self.next_salt() });
        self.files.insert(identity, Arc::clone(&known));
        Some(known)
    }

    fn known_vdso(&mut self, pid: u32, entry: &MapEntry) -> Option<Arc<KnownFile>> {
        let Some(Contents::Bytes(bytes)) = Contents::open(pid, entry) else { return None };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(known) = self.vdsos.get(&hash) {
            return Some(Arc::clone(known));
        }
        let elf = Elf::read(&Source::Bytes(&bytes)).ok()?;
        if self.vdsos.len() >= MAX_KNOWN {
            self.vdsos.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let known = Arc::new(KnownFile { key: TableKey::Vdso(hash), elf, salt: self.next_salt() });
        self.vdsos.insert(hash, Arc::clone(&known));
        Some(known)
    }

    /// Numbers files from 2 on, and after 65,534 again.
    fn next_salt(&mut self) -> u16 {
        self.salts = self.salts.checked_add(1).unwrap_or(NO_FILE_SALT + 1);
        self.salts
    }

    fn carry_out(&mut self, writes: Vec<Write>) {
        for write in writes {
            let written = match write {
                Write::Rules { first, rules } => self.rules.write(first as usize, &rules),
                Write::Slab { slab, first_row, rows } => {
                    let slab = self.slabs.get_or_make(u32::from(slab));
                    slab.is_ok_and(|slab| slab.write(first_row as usize, &rows))
                }
                Write::Pages { first, pages } => self.pages.write(first as usize, &pages),
            };
            if !written {
                self.refused += 1;
            }
        }
    }
}

impl Rules for Tables {
    fn rule_at(&self, mapping: &Mapping, address: u64) -> Option<Rule> {
        let offset = address.wrapping_sub(mapping.bias);
        let page =
            u32::try_from(offset >> PAGE_SHIFT).ok().filter(|&page| page < u32::from(mapping.pages))?;
        let page: Page = self.pages.read(mapping.first_page.checked_add(page)? as usize)?;
        let slab = self.slabs.get(u32::from(page.slab))?;
        let row = |index: u32| slab.read::<Row>(index as usize);
        let low_bits = (offset & ((1 << PAGE_SHIFT) - 1)) as u32;
        let (mut low, mut high) = (page.first, page.first.checked_add(u32::from(page.rows))?);
        while low < high {
            let middle = low.midpoint(high);
            if row(middle)? & 0xffff <= low_bits {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let last = low.checked_sub(1).filter(|last| *last >= page.first)?;
        self.rules.read((row(last)? >> 16) as usize)
    }

    fn may_guess(&self) -> bool {
        self.mode != UnwindMode::Tables
    }
}

/// A file's bytes, or the vdso's.
pub(super) enum Contents {
    File(ObjectFile),
    Bytes(Vec<u8>),
}

impl Contents {
    pub(super) fn open(pid: u32, entry: &MapEntry) -> Option<Contents> {
        if entry.path != b"[vdso]" {
            return ObjectFile::of_mapping(pid, entry).ok().map(Contents::File);
        }
        let length = entry.length_bytes().min(MAX_VDSO_BYTES);
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        File::open(format!("/proc/{}/mem", process::shown_as(pid)))
            .ok()?
            .read_exact_at(&mut bytes, entry.start)
            .ok()?;
        Some(Contents::Bytes(bytes))
    }

    pub(super) fn source(&self) -> Source<'_> {
        match self {
            Contents::File(file) => Source::File(file.file()),
            Contents::Bytes(bytes) => Source::Bytes(bytes),
        }
    }
}
