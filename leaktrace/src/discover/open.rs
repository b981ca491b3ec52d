//! Opens files whose place or content somebody else chooses: found first and looked at (O_PATH), then opened, so that a
//! pipe, a device or a file of the kernel's own never is. What must hold of a file is said where it is needed.
use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

/// What the way to a file may lead through. It never leads out of the directory that it begins at, and never through the
/// links of /proc that are no paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Symbolic links, as seen by whom the directory is the root.
    Links,
    /// Other file systems that are mounted on it, but no link.
    Mounts,
    /// Nothing but directories of one file system.
    Plain,
}

impl Way {
    fn resolve(self) -> u64 {
        libc::RESOLVE_NO_MAGICLINKS
            | match self {
                Way::Links => libc::RESOLVE_IN_ROOT,
                Way::Mounts => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS,
                Way::Plain => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV,
            }
    }
}

/// Something that was found by its path. It has not been opened.
#[derive(Debug)]
pub struct Found {
    place: File,
    metadata: Metadata,
}

impl Found {
    /// Finds what lies at a path from a directory on (openat2, Linux 5.6).
    ///
    /// # Errors
    /// What openat2(2) gives: ELOOP for a link and EXDEV for a mount that are not to be passed.
    pub fn beneath(directory: &File, path: &[u8], way: Way) -> io::Result<Found> {
        let mut name = path.to_vec();
        if name.contains(&0) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        name.push(0);
        let how = OpenHow { flags: (libc::O_PATH | libc::O_CLOEXEC) as u64, mode: 0, resolve: way.resolve() };
        // SAFETY: `name` ends with NUL, `how` is an open_how of the size that is passed; both outlive the call.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory.as_raw_fd(),
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
        let metadata = place.metadata()?;
        Ok(Found { place, metadata })
    }

    /// What it is.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The directory itself, for paths that begin there.
    ///
    /// # Errors
    /// Where it is none.
    pub fn into_directory(self) -> io::Result<File> {
        if self.metadata.is_dir() {
            Ok(self.place)
        } else {
            Err(io::Error::from(io::ErrorKind::NotADirectory))
        }
    }

    /// Whether it belongs to root or to this user.
    pub fn is_of(&self, user: u32) -> bool {
        self.metadata.uid() == 0 || self.metadata.uid() == user
    }

    /// Whether a process of some user answers for what is in it (FUSE): reading it may wait for ever.
    pub fn is_served_by_a_process(&self) -> bool {
        const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
        // SAFETY: of integers; zero is a value of each.
        let mut system: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: room for the answer, which outlives the call.
        let result = unsafe { libc::fstatfs(self.place.as_raw_fd(), &raw mut system) };
        result < 0 || system.f_type as u64 == FUSE_SUPER_MAGIC
    }

    /// Opens it to read, if it is a regular file of at most `max_bytes`.
    ///
    /// # Errors
    /// `InvalidInput` for anything else; what opening gives.
    pub fn open(self, max_bytes: u64) -> io::Result<File> {
        if !self.metadata.is_file() || self.metadata.len() > max_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a regular file of at most {max_bytes} bytes"),
            ));
        }
        read_only(format!("/proc/self/fd/{}", self.place.as_raw_fd()).as_ref())
    }
}

/// Opens a path to read; never waits, and never makes a terminal this process's own.
///
/// # Errors
/// What open(2) gives.
pub fn read_only(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
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
    use std::{fs, io::Read as _, os::unix::fs::symlink};

    use super::*;

    fn mkfifo(path: &Path) {
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    }

    fn open(directory: &Path, path: &str, way: Way) -> io::Result<String> {
        let mut text = String::new();
        let found = Found::beneath(&File::open(directory)?, path.as_bytes(), way)?;
        found.open(100)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn links_are_followed_only_where_they_may_be_and_never_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        symlink("file", folder.path().join("inner")).unwrap();
        symlink("/etc/passwd", folder.path().join("outer")).unwrap();
        symlink("/proc/self/fd/0", folder.path().join("magic")).unwrap();
        for way in [Way::Links, Way::Mounts, Way::Plain] {
            assert_eq!(open(folder.path(), "file", way).unwrap(), "text");
            assert_eq!(open(folder.path(), "inner", way).is_ok(), way == Way::Links);
            for path in ["outer", "magic", "file\0", "absent"] {
                assert!(open(folder.path(), path, way).is_err(), "{path} {way:?}");
            }
        }
        assert!(open(folder.path(), "../", Way::Plain).is_err());
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        mkfifo(&folder.path().join("pipe"));
        fs::write(folder.path().join("large"), [0; 101]).unwrap();
        for path in ["pipe", "large", "."] {
            let error = open(folder.path(), path, Way::Plain).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn another_file_system_is_not_passed_on_a_plain_way() {
        assert!(open(Path::new("/"), "proc/version", Way::Plain).is_err());
        let root = File::open("/").unwrap();
        assert!(Found::beneath(&root, b"proc/version", Way::Mounts).is_ok());
    }
}
