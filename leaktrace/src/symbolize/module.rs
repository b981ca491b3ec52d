//! Mapped files, each opened once while its process lives, so that names can be found after the process, the
//! container or the file is gone.
use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    sync::{Arc, Weak},
};

use super::{
    elf::{Layout, Load},
    image,
};

const MAX_VDSO_BYTES: u64 = 64 << 10;

/// A line of /proc/PID/maps, as far as symbols need it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MapLine {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Whether code in it can run.
    pub executable: bool,
    /// Where in the file it starts.
    pub offset: u64,
    /// Device number, major and minor.
    pub device: (u32, u32),
    /// Inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path in the process's own mount namespace, `[vdso]` and the like, or empty. Hostile.
    pub path: String,
}

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
        Ok(Module::with_key(key, path, file))
    }

    fn with_key(key: ModuleKey, path: String, file: File) -> Module {
        let layout = Layout::read(&file).ok();
        let build_id = layout.as_ref().and_then(|layout| layout.build_id.as_deref()).map(hexadecimal);
        Module { key, path, build_id, file, layout }
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
    pub fn capture(&mut self, pid: u32, line: &MapLine) -> io::Result<Arc<Module>> {
        let module = if line.path == "[vdso]" {
            vdso(pid, line)?
        } else {
            Module::open(plain_path(line).to_owned(), open_mapped(pid, line)?)?
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

/// Opens the very file that is mapped: through map_files, which also finds deleted files and cannot be misled by a
/// container's symbolic links, else by its path below the process's root, if that is still the same file.
fn open_mapped(pid: u32, line: &MapLine) -> io::Result<File> {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", line.start, line.end);
    match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(link) {
        Ok(file) => Ok(file),
        Err(error) => {
            // A process that is gone has no root any more: mostly, it was leaktrace's own.
            let (file, is_own) = match open_below_root(pid, plain_path(line)) {
                Ok(file) => (file, false),
                Err(_) => (open_below("/", plain_path(line)).map_err(|_| error)?, true),
            };
            let metadata = file.metadata()?;
            let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
            let same = metadata.ino() == line.inode && (!is_own || device == line.device);
            if same {
                Ok(file)
            } else {
                Err(io::Error::new(io::ErrorKind::NotFound, "the file was replaced"))
            }
        }
    }
}

/// The path without the mark of a deleted file: names and site ids stay the same after an upgrade.
pub(super) fn plain_path(line: &MapLine) -> &str {
    line.path.strip_suffix(" (deleted)").unwrap_or(&line.path)
}

/// Opens a path as the process would, without leaving its root.
pub(super) fn open_below_root(pid: u32, path: &str) -> io::Result<File> {
    open_below(&format!("/proc/{pid}/root"), path)
}

fn open_below(root: &str, path: &str) -> io::Result<File> {
    let root = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root)?;
    let path = CString::new(path)?;
    // SAFETY: open_how is a plain structure of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY).cast_unsigned().into();
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path is NUL-terminated, the structure has the size that is passed, both outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of_val(&how))
    };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn vdso(pid: u32, line: &MapLine) -> io::Result<Module> {
    let bytes = line.end.saturating_sub(line.start).min(MAX_VDSO_BYTES);
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
    fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut content, line.start)?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let key = ModuleKey { device: u64::MAX, inode: hasher.finish(), size_bytes: bytes, changed: (0, 0) };
    Ok(Module::with_key(key, line.path.clone(), image::memfd_with(&content)?))
}

/// Two digits a byte.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
