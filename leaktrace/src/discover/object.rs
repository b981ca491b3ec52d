//! Opens the very file behind a mapping and reads ranges of it. What the bytes mean is for [`super::elf`].
//!
//! `/proc/PID/map_files/START-END` leads to the mapped inode itself, whatever became of its path: it was
//! deleted, replaced by an upgrade, or lies in a container. It needs CAP_CHECKPOINT_RESTORE (5.9) or
//! CAP_SYS_ADMIN; without them, and where something else has come to lie at the place meanwhile, the path is opened
//! beneath the process's root and accepted only if it is the inode of the mapping. Files are read with pread, never mapped: a file that is cut off under a
//! mapping raises SIGBUS.
use super::{
    maps::{self, MapEntry},
    open::{Found, Way, read_only},
    process,
};
use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::AsRawFd,
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
        let pid = process::shown_as(pid);
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", entry.start, entry.end);
        // Asked before opening: opening a device may have effects.
        match fs::metadata(&link)
            .and_then(|metadata| regular(&metadata))
            .and_then(|()| read_only(link.as_ref()))
        {
            Ok(file) => {
                let object = ObjectFile::of_file(file)?;
                // News of a mapping may be older than what lies there now. Only file systems in layers number a file in
                // two ways.
                if object.identity.inode == entry.inode || is_still_mapped(pid, entry) {
                    return Ok(object);
                }
                ObjectFile::of_path(pid, entry)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(error),
            Err(_) => ObjectFile::of_path(pid, entry),
        }
    }

    /// Opens the path of a mapping, if that still leads to the file that was mapped.
    fn of_path(pid: u32, entry: &MapEntry) -> io::Result<ObjectFile> {
        // A process that is gone has no root any more: mostly, it was leaktrace's own.
        let (object, is_own) = match ObjectFile::beneath_root(pid, &entry.path) {
            Err(error) if is_gone(&error) => (ObjectFile::beneath("/", &entry.path)?, true),
            result => (result?, false),
        };
        let (major, minor) = (libc::major(object.identity.device), libc::minor(object.identity.device));
        let same_device = (major, minor) == (entry.device.major, entry.device.minor);
        // In the process's own root, a device number of its own is how layers of file systems look.
        (object.identity.inode == entry.inode && (same_device || !is_own)).then_some(object).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the path leads to another file than the one that is mapped; with CAP_SYS_ADMIN leaktrace opens the mapped one",
            )
        })
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

    /// Opens a regular file by its path as a process sees it, which leads through no link.
    ///
    /// # Errors
    /// As for [`ObjectFile::of_file`], and what openat2(2) gives.
    pub fn beneath_root(pid: u32, path: &[u8]) -> io::Result<ObjectFile> {
        ObjectFile::beneath(&format!("/proc/{}/root", process::shown_as(pid)), path)
    }

    /// Opens a path as a process sees it whose root this is.
    fn beneath(root: &str, path: &[u8]) -> io::Result<ObjectFile> {
        // The kernel names a mapping by a path without links.
        let found = Found::beneath(&File::open(root)?, path, Way::Mounts)?;
        ObjectFile::of_file(found.open(MAX_FILE_BYTES)?)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the open file away.
    pub fn into_file(self) -> File {
        self.file
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

/// Whether what /proc/PID/maps says of the place is what `entry` says.
fn is_still_mapped(pid: u32, entry: &MapEntry) -> bool {
    let same = |now: &MapEntry| {
        (now.start, now.end, now.device, now.inode) == (entry.start, entry.end, entry.device, entry.inode)
    };
    maps::read(pid).is_ok_and(|entries| entries.iter().any(same))
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
    fn a_file_that_has_taken_the_place_of_another_is_not_taken_for_it() {
        let own = own_text();
        let earlier = MapEntry { inode: own.inode.wrapping_add(1), ..own };
        let error = ObjectFile::of_mapping(std::process::id(), &earlier).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_file_that_lay_at_a_place_before_is_found_by_its_path() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"earlier").unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let path = file.path().to_str().unwrap().as_bytes().to_vec();
        let earlier = MapEntry { inode: metadata.ino(), path, ..own_text() };
        let object = ObjectFile::of_mapping(std::process::id(), &earlier).unwrap();
        assert_eq!(object.read_at(0, 7).unwrap(), b"earlier");
    }

    #[test]
    fn the_path_beneath_the_root_leads_to_the_same_file() {
        let entry = own_text();
        let object = ObjectFile::beneath_root(std::process::id(), &entry.path).unwrap();
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
