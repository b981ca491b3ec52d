//! Unwind tables of the processes that are traced: which files they map, where the kernel finds each file's
//! table, and the slot that holds a process's mappings. Making tables is `unwind`'s work.
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::FileExt as _,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use leaktrace_common::unwind::{MAX_RULES, Page, ProcessMappings, Row, Rule, SLAB_ROWS};

use super::options::UnwindMode;
use crate::{
    attach::{object::KernelObject, shared::SharedArray},
    discover::{
        maps::MapEntry,
        object::{FileIdentity, ObjectFile},
    },
    unwind::{
        elf::Elf,
        mappings::{Placement, Region, Regions},
        source::Source,
        store::{Capacity, Store, Write},
        table::{Options, Table, TableFacts},
    },
};

/// A vdso is a few pages.
const MAX_VDSO_BYTES: u64 = 64 << 10;

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
    elf: Elf,
    /// How its table was made; none where the table was there already.
    pub facts: Option<TableFacts>,
    /// Rows of its table.
    pub rows: usize,
}

/// Every table and slot.
pub struct Tables {
    mode: UnwindMode,
    store: Store<TableKey>,
    files: HashMap<FileIdentity, Rc<KnownFile>>,
    vdsos: HashMap<u64, Rc<KnownFile>>,
    slabs: SharedArray,
    pages: SharedArray,
    rules: SharedArray,
    processes: SharedArray,
    free_slots: Vec<u32>,
    refused: u64,
}

/// A process's slot and the tables it refers to.
#[derive(Debug, Default)]
pub struct ProcessTables {
    slot: Option<u32>,
    held: HashSet<TableKey>,
    /// Path, or what there is instead of one, and what is known of each mapped file; for reports.
    pub files: Vec<(String, Option<Rc<KnownFile>>)>,
    /// Mappings that the kernel's table had no room for.
    pub left_out: usize,
}

impl ProcessTables {
    /// The slot in PROCESS_MAPS, where there is one.
    pub fn slot(&self) -> Option<u32> {
        self.slot
    }
}

impl Tables {
    /// Empty tables over the kernel's maps.
    ///
    /// # Errors
    /// When a map cannot be mapped into this process.
    pub fn new(kernel: &KernelObject, mode: UnwindMode) -> Result<Tables> {
        let shared = |name: &str, value_bytes: usize| -> Result<(SharedArray, u32)> {
            let entries = kernel.map(name)?.info()?.max_entries();
            let array = SharedArray::map(kernel.map_fd(name)?, entries as usize * value_bytes)
                .with_context(|| format!("mapping the kernel map {name}"))?;
            Ok((array, entries))
        };
        let (slabs, slab_count) = shared("SLABS", SLAB_ROWS * size_of::<Row>())?;
        let (pages, page_count) = shared("PAGES", size_of::<Page>())?;
        let (rules, _) = shared("RULES", size_of::<Rule>())?;
        let (processes, slot_count) = shared("PROCESS_MAPS", size_of::<ProcessMappings>())?;
        let capacity = Capacity {
            slabs: u16::try_from(slab_count).unwrap_or(u16::MAX),
            pages: page_count,
            rules: MAX_RULES as u16,
        };
        let mut tables = Tables {
            mode,
            store: Store::new(capacity),
            files: HashMap::new(),
            vdsos: HashMap::new(),
            slabs,
            pages,
            rules,
            processes,
            free_slots: (0..slot_count).rev().collect(),
            refused: 0,
        };
        let first = tables.store.initial_writes();
        tables.carry_out(first);
        Ok(tables)
    }

    /// A slot for a process, or none when all are taken (its stacks then have one frame).
    pub fn open(&mut self) -> ProcessTables {
        let slot = if self.mode == UnwindMode::FramePointers { None } else { self.free_slots.pop() };
        ProcessTables { slot, ..ProcessTables::default() }
    }

    /// Reads the process's executable mappings into its slot. New tables are complete before the kernel sees
    /// them; tables that are not needed any more are given up afterwards.
    pub fn update(&mut self, pid: u32, process: &mut ProcessTables, entries: &[MapEntry]) {
        let Some(slot) = process.slot else { return };
        let mut regions: Regions<usize> = Regions::default();
        let mut files = Vec::new();
        for entry in entries.iter().filter(|entry| entry.executable) {
            let file = files.len();
            regions.insert(Region { start: entry.start, end: entry.end, file_offset: entry.offset, file });
            files.push((entry.path_lossy(), self.known_file(pid, entry)));
        }
        let mut held = HashSet::new();
        let layout = regions.layout(|region| {
            let Some((_, Some(known))) = files.get(region.file) else {
                return if self.mode == UnwindMode::Tables { Placement::Missing } else { Placement::Guess };
            };
            match self.place(pid, region, entries, known, &process.held, &mut held) {
                Some(placement) => placement,
                None => Placement::Missing,
            }
        });
        self.processes.publish(slot, &layout.mappings);
        for key in process.held.difference(&held) {
            self.store.release(key);
        }
        process.held = held;
        process.left_out = layout.left_out;
        files.dedup_by(|a, b| a.0 == b.0);
        process.files = files;
    }

    /// Gives up a process's slot and tables.
    pub fn close(&mut self, process: ProcessTables) {
        if let Some(slot) = process.slot {
            self.processes.publish(slot, &[]);
            self.free_slots.push(slot);
        }
        for key in &process.held {
            self.store.release(key);
        }
    }

    /// Tables that there was no room for.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What is in use.
    pub fn usage(&self) -> crate::unwind::store::Usage {
        self.store.usage()
    }

    /// Where the table of a region's file lies; makes the table if need be.
    fn place(
        &mut self,
        pid: u32,
        region: &Region<usize>,
        entries: &[MapEntry],
        known: &Rc<KnownFile>,
        held_before: &HashSet<TableKey>,
        held: &mut HashSet<TableKey>,
    ) -> Option<Placement> {
        let placed = match self.store.acquire(&known.key) {
            Some(placed) => placed,
            None => self.build(pid, region, entries, known)?,
        };
        // One reference for each process and file.
        if held_before.contains(&known.key) || !held.insert(known.key.clone()) {
            self.store.release(&known.key);
        }
        held.insert(known.key.clone());
        Some(Placement::of_file(region, &known.elf, placed))
    }

    fn build(
        &mut self,
        pid: u32,
        region: &Region<usize>,
        entries: &[MapEntry],
        known: &KnownFile,
    ) -> Option<crate::unwind::store::Placed> {
        let entry = entries.iter().find(|entry| entry.start == region.start)?;
        let contents = Contents::open(pid, entry)?;
        let mut placed = None;
        for prune in [false, true] {
            let table = Table::build(contents.source(), &known.elf, &Options { prune, ..Options::default() });
            let added = self.store.add(known.key.clone(), &table);
            self.carry_out(added.writes);
            placed = added.placed;
            if placed.is_some() {
                break;
            }
        }
        if placed.is_none() {
            self.refused += 1;
        }
        placed
    }

    /// Looks into the file behind a mapping, once for each file.
    fn known_file(&mut self, pid: u32, entry: &MapEntry) -> Option<Rc<KnownFile>> {
        if entry.path == b"[vdso]" {
            return self.known_vdso(pid, entry);
        }
        if !entry.is_file() {
            return None;
        }
        let file = ObjectFile::of_mapping(pid, entry).ok()?;
        let identity = file.identity();
        if let Some(known) = self.files.get(&identity) {
            return Some(Rc::clone(known));
        }
        let elf = Elf::read(&Source::File(file.file())).ok()?;
        let key = match elf.build_id.as_slice() {
            [] => TableKey::File(identity),
            build_id => TableKey::BuildId(build_id.to_vec()),
        };
        let known = Rc::new(KnownFile { key, elf, facts: None, rows: 0 });
        self.files.insert(identity, Rc::clone(&known));
        Some(known)
    }

    fn known_vdso(&mut self, pid: u32, entry: &MapEntry) -> Option<Rc<KnownFile>> {
        let Some(Contents::Bytes(bytes)) = Contents::open(pid, entry) else { return None };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(known) = self.vdsos.get(&hash) {
            return Some(Rc::clone(known));
        }
        let elf = Elf::read(&Source::Bytes(&bytes)).ok()?;
        let known = Rc::new(KnownFile { key: TableKey::Vdso(hash), elf, facts: None, rows: 0 });
        self.vdsos.insert(hash, Rc::clone(&known));
        Some(known)
    }

    fn carry_out(&mut self, writes: Vec<Write>) {
        for write in writes {
            let written = match write {
                Write::Rules { first, rules } => self.rules.write(first as usize, &rules),
                Write::Slab { slab, first_row, rows } => {
                    self.slabs.write(usize::from(slab) * SLAB_ROWS + first_row as usize, &rows)
                }
                Write::Pages { first, pages } => self.pages.write(first as usize, &pages),
            };
            if !written {
                self.refused += 1;
            }
        }
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
        File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, entry.start).ok()?;
        Some(Contents::Bytes(bytes))
    }

    pub(super) fn source(&self) -> Source<'_> {
        match self {
            Contents::File(file) => Source::File(file.file()),
            Contents::Bytes(bytes) => Source::Bytes(bytes),
        }
    }
}
