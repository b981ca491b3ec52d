//! Opens the very file behind a mapping and reads ranges of it. What the bytes mean is for [`super::elf`].
//!
//! `/proc/PID/map_files/START-END` leads to the mapped inode itself, whatever became of its path: it was
//! deleted, replaced by an upgrade, or lies in a container. It needs CAP_CHECKPOINT_RESTORE (5.9) or
//! CAP_SYS_ADMIN; without them the path is opened beneath the process's root and accepted only if device and
//! inode equal those of the mapping. Files are read with pread, never mapped: a file that is cut off under a
//! mapping raises SIGBUS.
use super::maps::MapEntry;
use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
};

/// Larger files are not looked into.
pub const MAX_FILE_BYTES: u64 = 8 << 30;
/// The most that one read takes into memory.
pub const MAX_READ_BYTES: u64 = 256 << 20;

/// What tells one file content from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device as fstat(2) gives it.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// Last modification, ns since the epoch.
    pub modified_ns: i128,
    /// Last change of the inode, ns since the epoch.
    pub changed_ns: i128,
}

/// An open file that a process maps.
#[derive(Debug)]
pub struct ObjectFile {
    file: File,
    identity: FileIdentity,
}

impl ObjectFile {
    /// Opens the file behind a mapping.
    ///
    /// # Errors
    /// The error of the fallback where both ways fail; `NotFound` also when the path leads to another file by
    /// now.
    pub fn of_mapping(pid: u32, entry: &MapEntry) -> io::Result<ObjectFile> {
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", entry.start, entry.end);
        // Asked before opening: opening a device may have effects.
        match fs::metadata(&link).and_then(|metadata| regular(&metadata)).and_then(|()| File::open(&link)) {
            Ok(file) => ObjectFile::of_file(file),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(error),
            Err(_) => {
                // A process that is gone has no root any more: mostly, it was leaktrace's own.
                let object = match ObjectFile::beneath_root(&format!("/proc/{pid}/root"), &entry.path) {
                    Err(error) if is_gone(&error) => ObjectFile::beneath_root("/", &entry.path)?,
                    result => result?,
                };
                object.matches(entry).then_some(object).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        "the path leads to another file than the one that is mapped; with CAP_SYS_ADMIN leaktrace opens the mapped one",
                    )
                })
            }
        }
    }

    /// Takes over an open file.
    ///
    /// # Errors
    /// What fstat(2) gives; `InvalidInput` for anything but a regular file of at most [`MAX_FILE_BYTES`].
    pub fn of_file(file: File) -> io::Result<ObjectFile> {
        let metadata = file.metadata()?;
        regular(&metadata)?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        };
        Ok(ObjectFile { file, identity })
    }

    /// Opens a path as a process sees it whose root this is: symbolic links cannot lead out of it (openat2, 5.6).
    fn beneath_root(root: &str, path: &[u8]) -> io::Result<ObjectFile> {
        let root = File::open(root)?;
        let mut name = path.to_vec();
        name.push(0);
        let how = OpenHow {
            flags: (libc::O_PATH | libc::O_CLOEXEC) as u64,
            mode: 0,
            resolve: libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        };
        // SAFETY: `name` ends with NUL, `how` is an open_how of the size that is passed; both outlive the
        // call.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                name.as_ptr(),
                std::ptr::from_ref(&how),
                size_of::<OpenHow>(),
            )
        };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
        let place = unsafe { File::from_raw_fd(opened as i32) };
        regular(&place.metadata()?)?;
        ObjectFile::of_file(File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?)
    }

    fn matches(&self, entry: &MapEntry) -> bool {
        let (major, minor) = (libc::major(self.identity.device), libc::minor(self.identity.device));
        self.identity.inode == entry.inode && (major, minor) == (entry.device.major, entry.device.minor)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What tells this file from others.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The path to give to the kernel when a probe is attached: it leads to the open file itself, also when its
    /// name or the process that mapped it is gone (tried on 6.18 with perf-event uprobes and uprobe_multi, also
    /// on a deleted file). Valid in this process while `self` lives.
    pub fn attach_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Reads up to `length` bytes at `offset`; fewer at the end of the file.
    ///
    /// # Errors
    /// What pread(2) gives; `InvalidInput` for more than [`MAX_READ_BYTES`].
    pub fn read_at(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let available = self.identity.size_bytes.saturating_sub(offset).min(length);
        if available > MAX_READ_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a range of more than 256 MiB"));
        }
        let mut buffer = vec![0; available as usize];
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() && metadata.len() <= MAX_FILE_BYTES {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file of at most 8 GiB"))
}

/// `struct open_how` of linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::maps;
    use std::io::Write;

    fn own_text() -> MapEntry {
        maps::read(std::process::id())
            .unwrap()
            .into_iter()
            .find(|entry| entry.executable && entry.is_file())
            .unwrap()
    }

    #[test]
    fn the_file_behind_a_mapping_is_the_mapped_inode() {
        let entry = own_text();
        let object = ObjectFile::of_mapping(std::process::id(), &entry).unwrap();
        assert_eq!(object.identity().inode, entry.inode);
        assert_eq!(object.read_at(0, 4).unwrap(), b"\x7fELF");
    }

    #[test]
    fn the_path_beneath_the_root_leads_to_the_same_file() {
        let entry = own_text();
        let object = ObjectFile::beneath_root("/proc/self/root", &entry.path).unwrap();
        assert_eq!(object.identity().inode, entry.inode);
    }

    #[test]
    fn a_read_past_the_end_is_short_and_a_huge_one_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let object = ObjectFile::of_file(file).unwrap();
        assert_eq!(object.read_at(1, 100).unwrap(), b"bc");
        assert_eq!(object.read_at(9, u64::MAX).unwrap(), b"");
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(1 << 32).unwrap();
        assert!(ObjectFile::of_file(sparse).unwrap().read_at(0, u64::MAX).is_err());
    }

    #[test]
    fn the_attach_path_opens_the_same_file_after_it_was_deleted() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"unlinked").unwrap();
        let object = ObjectFile::of_file(file).unwrap();
        assert_eq!(std::fs::read(object.attach_path()).unwrap(), b"unlinked");
    }
}
