//! Finds out what there is to trace: the facts of a process, the files it maps, and the allocators in them
//! with the functions that need a probe. Opens files under /proc and reads them; where in a function a probe
//! goes is for [`crate::attach::plan`].
pub mod allocators;
pub mod candidate;
pub mod container;
pub mod elf;
pub mod hazard;
pub mod ifunc;
pub mod lsan;
pub mod maps;
pub mod memory;
pub mod memory_limit;
pub mod moved;
pub mod object;
pub mod open;
pub mod options;
pub mod process;
pub mod program;
pub mod reach;
pub mod scan;
pub mod selector;

use allocators::{Allocator, HookTable};
use elf::{ElfError, ElfFile, Segment};
use hazard::Hazard;
use ifunc::Loaded;
use maps::MapEntry;
use object::{FileIdentity, ObjectFile};
use options::Options;
use process::ProcessError;
use scan::{FailedFunction, FoundFunction, Scan};
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    sync::Arc,
};

/// The most files of one process that are looked into.
const MAX_FILES: usize = 4096;
/// Files remembered; a service that follows many containers meets more, and then forgets all of them at once.
const MAX_CACHED: usize = 1024;

/// An allocator in a file that a process maps.
#[derive(Clone, Debug)]
pub struct AllocatorInObject {
    /// Whose it is.
    pub allocator: Allocator,
    /// The file, held open: [`ObjectFile::attach_path`] is what a probe is attached by.
    pub file: Arc<ObjectFile>,
    /// Its path as the process's mappings show it. Hostile.
    pub path: String,
    /// The file has no name any more.
    pub deleted: bool,
    /// GNU build id.
    pub build_id: Option<Vec<u8>>,
    /// Added to an address of the file to get one of the process.
    pub load_bias: u64,
    /// Functions to probe, ascending by address, each address once.
    pub functions: Vec<FoundFunction>,
    /// Functions that need no probe: each reaches a probed one on every path that allocates or frees.
    pub left_out: Vec<String>,
    /// Functions that cannot be probed.
    pub failed: Vec<FailedFunction>,
}

/// A function that throws exceptions, for [`leaktrace_common::hook::Shape::Throw`].
#[derive(Clone, Debug)]
pub struct ThrowFunction {
    /// The file, held open.
    pub file: Arc<ObjectFile>,
    /// Its path. Hostile.
    pub path: String,
    /// `__cxa_throw` or `__cxa_rethrow`.
    pub function: FoundFunction,
}

/// What there is to probe in a process.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Allocators, in the order of their files' addresses.
    pub allocators: Vec<AllocatorInObject>,
    /// Where exceptions begin: probed if a function with `may_throw` is.
    pub throw_functions: Vec<ThrowFunction>,
    /// Files that could not be looked into: path and reason.
    pub unreadable: Vec<(String, String)>,
    /// Why the process must not have probes; then nothing was looked for.
    pub hazard: Option<Hazard>,
}

/// Looks for allocators and remembers what it found in each file, so that the next process with the same
/// libraries costs next to nothing.
#[derive(Debug)]
pub struct Discovery {
    options: Options,
    table: HookTable,
    forced: HashSet<(u64, u64)>,
    cache: HashMap<FileIdentity, Known>,
}

/// A file that was scanned; held open only if there is something in it.
#[derive(Clone, Debug)]
struct Known {
    file: Option<Arc<ObjectFile>>,
    scan: Arc<Scan>,
}

struct Mapped {
    file: Arc<ObjectFile>,
    path: String,
    deleted: bool,
    load_bias: u64,
    scan: Arc<Scan>,
}

/// Finds the allocators of one process. [`Discovery`] is better for several.
///
/// # Errors
/// See [`ProcessError`].
pub fn discover(pid: u32, options: &Options) -> Result<Found, ProcessError> {
    Discovery::new(options.clone()).find(pid)
}

impl Discovery {
    /// Nothing is read but the identities of the files of `--object`.
    pub fn new(options: Options) -> Discovery {
        let table = HookTable::new(&options.prefixes);
        let forced = options
            .objects
            .iter()
            .filter_map(|path| fs::metadata(path).ok())
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .collect();
        Discovery { options, table, forced, cache: HashMap::new() }
    }

    /// Looks into every file that the process maps executable.
    ///
    /// # Errors
    /// See [`ProcessError`]; a file that cannot be read is no error but listed.
    pub fn find(&mut self, pid: u32) -> Result<Found, ProcessError> {
        let mappings = maps::read(pid).map_err(|error| ProcessError::reading(pid, "maps", error))?;
        let mappings = moved::restored(pid, mappings);
        let mut found = Found { hazard: hazard::of_files(pid, &mappings), ..Found::default() };
        if found.hazard.is_some() {
            return Ok(found);
        }
        let mut mapped = Vec::new();
        for entry in first_of_each_file(&mappings) {
            match self.look_into(pid, entry) {
                Ok(object) => mapped.extend(object),
                Err(ElfError::NotElf) => {}
                Err(error) => found.unreadable.push((entry.path_lossy(), error.to_string())),
            }
        }
        for object in &mapped {
            self.collect(pid, object, &mapped, &mappings, &mut found);
        }
        Ok(found)
    }

    /// Opens and scans a file, or takes what is known of it. `None` if there is nothing of interest in it.
    fn look_into(&mut self, pid: u32, entry: &MapEntry) -> Result<Option<Mapped>, ElfError> {
        let file = ObjectFile::of_mapping(pid, entry)?;
        let identity = file.identity();
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear();
        }
        let known = match self.cache.get(&identity) {
            Some(known) => known.clone(),
            None => {
                let known = self.scan(pid, file)?;
                self.cache.insert(identity, known.clone());
                known
            }
        };
        let Some(file) = known.file else { return Ok(None) };
        let load_bias = load_bias(&ElfFile::parse(&file)?.segments, entry);
        let load_bias =
            load_bias.ok_or(ElfError::Malformed("mapping: no executable segment is at its offset"))?;
        let (path, deleted) = (entry.path_lossy(), entry.deleted);
        Ok(Some(Mapped { file, path, deleted, load_bias, scan: known.scan }))
    }

    fn scan(&self, pid: u32, file: ObjectFile) -> Result<Known, ElfError> {
        let FileIdentity { device, inode, .. } = file.identity();
        let forced = self.forced.contains(&(device, inode));
        let is_executable = || {
            fs::metadata(format!("/proc/{}/exe", process::shown_as(pid)))
                .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (device, inode))
        };
        let given = if forced || self.options.objects.is_empty() && is_executable() {
            self.options.functions.as_slice()
        } else {
            &[]
        };
        let scan = scan::scan(&file, &self.table, forced, given)?;
        let empty = scan.allocators.is_empty() && scan.throws.is_empty() && scan.ifuncs.is_empty();
        Ok(Known { file: (!empty).then(|| Arc::new(file)), scan: Arc::new(scan) })
    }

    fn collect(&self, pid: u32, object: &Mapped, all: &[Mapped], mappings: &[MapEntry], found: &mut Found) {
        let mut allocators = object.scan.allocators.clone();
        for ifunc in &object.scan.ifuncs {
            let loaded: Vec<Loaded<'_>> = all.iter().map(Mapped::loaded).collect();
            let allocator = ifunc.entry.allocator.or(object.scan.owner).unwrap_or(Allocator::Custom);
            let group = allocators.entry(allocator).or_default();
            let function =
                ifunc::resolve(pid, ifunc, object.loaded(), &loaded, mappings).and_then(|address| {
                    let elf = ElfFile::parse(&object.file).map_err(|_| "its file cannot be parsed")?;
                    scan::at_address(&elf, &ifunc.entry.name, ifunc.entry.hook, ifunc.entry.class, address, 0)
                });
            match function {
                Ok(function) if group.functions.iter().all(|known| known.address != function.address) => {
                    group.functions.push(function);
                }
                Ok(_) => {}
                Err(reason) => {
                    let name = ifunc.entry.name.clone();
                    group.failed.push(FailedFunction { name, reason: reason.into() });
                }
            }
        }
        for (allocator, group) in allocators {
            found.allocators.push(AllocatorInObject {
                allocator,
                file: Arc::clone(&object.file),
                path: object.path.clone(),
                deleted: object.deleted,
                build_id: object.scan.build_id.clone(),
                load_bias: object.load_bias,
                functions: group.functions,
                left_out: group.left_out,
                failed: group.failed,
            });
        }
        found.throw_functions.extend(object.scan.throws.iter().map(|function| ThrowFunction {
            file: Arc::clone(&object.file),
            path: object.path.clone(),
            function: function.clone(),
        }));
    }
}

impl Mapped {
    fn loaded(&self) -> Loaded<'_> {
        Loaded { file: &self.file, load_bias: self.load_bias }
    }
}

/// The first executable mapping of each file.
fn first_of_each_file(mappings: &[MapEntry]) -> impl Iterator<Item = &MapEntry> {
    let mut seen = HashSet::new();
    mappings
        .iter()
        .filter(|entry| entry.executable && entry.is_file())
        .filter(move |entry| seen.insert((entry.device, entry.inode)))
        .take(MAX_FILES)
}

/// From the executable segment that the mapping shows: the first segment that contains the offset may be
/// another one, which overlaps it in the file (LLD lays Rust programs out so).
fn load_bias(segments: &[Segment], entry: &MapEntry) -> Option<u64> {
    let length = entry.length_bytes();
    let segment = segments.iter().filter(|segment| segment.executable).find(|segment| {
        segment.offset < entry.offset.saturating_add(length)
            && entry.offset < segment.offset.saturating_add(segment.file_bytes)
    })?;
    Some(entry.start.wrapping_sub(entry.offset).wrapping_add(segment.offset).wrapping_sub(segment.address))
}

#[cfg(test)]
mod tests;
