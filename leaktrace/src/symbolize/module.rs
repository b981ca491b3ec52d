//! Mapped files, each opened once while its process lives, so that names can be found after the process, the
//! container or the file is gone.
use std::{
    collections::HashMap,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, Weak},
};

use super::{
    elf::{Layout, Load},
    image,
};
use crate::discover::{maps::MapEntry, object::ObjectFile, process};

const MAX_VDSO_BYTES: u64 = 64 << 10;

/// What makes a file the same file: device, inode, size, time of last change, or for the vdso its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleKey {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed: (i64, i64),
}

impl ModuleKey {
    pub(super) fn is_inode(&self, inode: u64) -> bool {
        self.inode == inode
    }
}

/// A mapped file.
#[derive(Debug)]
pub struct Module {
    /// Which file.
    pub key: ModuleKey,
    /// Path as the process sees it. Hostile.
    pub path: String,
    /// Build id in hexadecimal.
    pub build_id: Option<String>,
    pub(super) file: File,
    pub(super) layout: Option<Layout>,
}

impl Module {
    /// Takes over an opened file. One that is no ELF file is a module without symbols.
    pub fn open(path: String, file: File) -> io::Result<Module> {
        let layout = Layout::read(&file).ok();
        Module::with_layout(path, file, layout)
    }

    /// The same for a file that is mapped, whose sections are not looked at before names are wanted.
    fn open_mapped(path: String, file: File) -> io::Result<Module> {
        let layout = Layout::read_segments_only(&file).ok();
        Module::with_layout(path, file, layout)
    }

    fn with_layout(path: String, file: File, layout: Option<Layout>) -> io::Result<Module> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let key = ModuleKey {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(Module::with_key(key, path, file, layout))
    }

    fn with_key(key: ModuleKey, path: String, file: File, layout: Option<Layout>) -> Module {
        let build_id = layout.as_ref().and_then(|layout| layout.build_id.as_deref()).map(hexadecimal);
        Module { key, path, build_id, file, layout }
    }

    /// What the file has at an offset, at most `bytes` of it; nothing where it cannot be read.
    pub fn read_at(&self, file_offset: u64, bytes: u64) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let length = self.file.read_at(&mut content, file_offset).unwrap_or(0);
        content.truncate(length);
        content
    }

    /// An address so many bytes into its first code.
    pub(crate) fn first_code(&self, bytes: u64) -> Option<u64> {
        let load = self.layout.as_ref()?.loads.iter().find(|load| load.executable)?;
        load.address.checked_add(bytes)
    }

    /// The address as linked of a place in the file. Only segments with code count: with LLD the first segment
    /// that contains the offset can be another one.
    pub fn virtual_offset(&self, file_offset: u64) -> Option<u64> {
        let contains = |load: &&Load| {
            load.executable
                && file_offset.checked_sub(load.file_offset).is_some_and(|within| within < load.file_bytes)
        };
        let load = self.layout.as_ref()?.loads.iter().find(contains)?;
        load.address.checked_add(file_offset - load.file_offset)
    }
}

/// Every mapped file that is in use by an address space or is cached.
#[derive(Debug, Default)]
pub struct Modules {
    open: HashMap<ModuleKey, Weak<Module>>,
}

impl Modules {
    /// Opens the file behind a mapping of a living process, or gives the module that is there already.
    pub fn capture(&mut self, pid: u32, entry: &MapEntry) -> io::Result<Arc<Module>> {
        let module = if entry.path == b"[vdso]" {
            vdso(pid, entry)?
        } else {
            Module::open_mapped(entry.path_lossy(), ObjectFile::of_mapping(pid, entry)?.into_file())?
        };
        Ok(self.share(module))
    }

    /// The module that stands for this file from now on: this one, or an equal one that is there already.
    pub fn share(&mut self, module: Module) -> Arc<Module> {
        if let Some(known) = self.open.get(&module.key).and_then(Weak::upgrade) {
            return known;
        }
        if self.open.len() >= 64 && self.open.len().is_power_of_two() {
            self.open.retain(|_, module| module.strong_count() > 0);
        }
        let module = Arc::new(module);
        self.open.insert(module.key, Arc::downgrade(&module));
        module
    }
}

fn vdso(pid: u32, entry: &MapEntry) -> io::Result<Module> {
    let bytes = entry.length_bytes().min(MAX_VDSO_BYTES);
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
    File::open(format!("/proc/{}/mem", process::shown_as(pid)))?.read_exact_at(&mut content, entry.start)?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let key = ModuleKey { device: u64::MAX, inode: hasher.finish(), size_bytes: bytes, changed: (0, 0) };
    let file = image::memfd_with(&content)?;
    let layout = Layout::read(&file).ok();
    Ok(Module::with_key(key, entry.path_lossy(), file, layout))
}

/// Two digits a byte.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
