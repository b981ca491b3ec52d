//! The folder of snapshot files: names, list, retention. A file's name says when it was taken and why; whole files
//! are `export::file`'s work.
use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::config::Keep;
use crate::{
    discover::open::{Found, Way},
    export::{
        file::{self, MAX_BYTES as MAX_FILE_BYTES},
        pprof,
    },
    model::{service::SnapshotFile, snapshot::Snapshot},
};

/// Around a snapshot's id in its file's name.
const PREFIX: &str = "leaktrace-";
const SUFFIX: &str = ".pb.gz";
/// Files that are listed or counted at the most.
const MAX_FILES: usize = 100_000;

/// Why a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `snapshots.every`.
    Interval,
    /// `snapshots.cron`.
    Cron,
    /// A target has grown.
    Growth,
    /// A target is near its memory limit.
    Limit,
    /// A target ended.
    Exit,
    /// The kernel killed a target for lack of memory.
    Oom,
    /// SIGUSR1.
    Signal,
    /// A request.
    Request,
    /// The last file could not be written.
    Retry,
    /// The agent ends.
    Stop,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 10] = [
        Reason::Interval,
        Reason::Cron,
        Reason::Growth,
        Reason::Limit,
        Reason::Exit,
        Reason::Oom,
        Reason::Signal,
        Reason::Request,
        Reason::Retry,
        Reason::Stop,
    ];

    /// The word in names and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Interval => "interval",
            Reason::Cron => "cron",
            Reason::Growth => "growth",
            Reason::Limit => "limit",
            Reason::Exit => "exit",
            Reason::Oom => "oom",
            Reason::Signal => "signal",
            Reason::Request => "request",
            Reason::Retry => "retry",
            Reason::Stop => "stop",
        }
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Makes the folder where it is missing, and removes what a killed agent left unfinished in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> io::Result<Store> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        file::remove_unfinished(folder);
        let store = Store { folder: folder.to_path_buf() };
        let mode = fs::metadata(folder)?.mode();
        if mode & 0o022 != 0 {
            tracing::warn!(
                folder = %folder.display(),
                "others can write to the folder of snapshots: chmod 700 it; what is not the agent's own is left alone there"
            );
        }
        store.close_to_others()?;
        Ok(store)
    }

    /// Earlier files could be read by everybody where the folder could.
    fn close_to_others(&self) -> io::Result<()> {
        for file in self.list()? {
            let Some(found) = self.find(&file.id)? else { continue };
            if found.metadata().mode() & 0o077 != 0 {
                let file = found.open(MAX_FILE_BYTES)?;
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
            }
        }
        Ok(())
    }

    /// A file of this id that is the agent's own: no link, in one place only.
    fn find(&self, id: &str) -> io::Result<Option<Found>> {
        let name = format!("{PREFIX}{id}{SUFFIX}");
        match Found::beneath(&fs::File::open(&self.folder)?, name.as_bytes(), Way::Plain) {
            Ok(found) => Ok(Some(found).filter(|found| is_own(found.metadata()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A link, or something that is mounted there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EXDEV)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file and returns what is in the folder then.
    ///
    /// # Errors
    /// When the disk is full, read-only or fails: nothing is left of the file then.
    pub fn write(&self, snapshot: &Snapshot, reason: Reason) -> io::Result<SnapshotFile> {
        let bytes = pprof::write(snapshot);
        let id = self.free_id(snapshot.time, reason)?;
        file::write_private(&self.path(&id), &bytes)?;
        Ok(SnapshotFile {
            id,
            reason: reason.name(),
            size_bytes: bytes.len() as u64,
            modified: SystemTime::now(),
        })
    }

    /// `20261121T144200Z-exit`, with a number where that is taken.
    fn free_id(&self, time: i64, reason: Reason) -> io::Result<String> {
        let stem = format!("{}-{}", crate::model::units::file_time(time), reason.name());
        for number in 0..1000_u32 {
            let id = if number == 0 { stem.clone() } else { format!("{stem}-{number}") };
            // Also where a link leads nowhere.
            match fs::symlink_metadata(self.path(&id)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Err(io::Error::other("a thousand snapshots within one second"))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{PREFIX}{id}{SUFFIX}"))
    }

    /// The files, newest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<SnapshotFile>> {
        let mut files: Vec<SnapshotFile> = fs::read_dir(&self.folder)?
            .flatten()
            .filter_map(|entry| of_entry(&entry))
            .take(MAX_FILES)
            .collect();
        files.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| b.id.cmp(&a.id)));
        Ok(files)
    }

    /// The content of a file; `None` where there is none of this id.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        if !is_id(id) {
            return Ok(None);
        }
        let Some(found) = self.find(id)? else { return Ok(None) };
        let mut bytes = Vec::new();
        found.open(MAX_FILE_BYTES)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(Some(bytes))
    }

    /// Removes what is too many, too old or too large; the newest file stays. Returns how many went.
    ///
    /// # Errors
    /// When the folder cannot be read or a file not be removed.
    pub fn retain(&self, keep: &Keep, now: SystemTime) -> io::Result<u64> {
        let files = self.list()?;
        let mut removed = 0;
        for file in superfluous(&files, keep, now) {
            match fs::remove_file(self.path(&file.id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => removed += 1,
            }
        }
        Ok(removed)
    }
}

/// Which of the files, newest first, are to go.
fn superfluous<'a>(files: &'a [SnapshotFile], keep: &Keep, now: SystemTime) -> Vec<&'a SnapshotFile> {
    let mut bytes = 0_u64;
    let mut gone = Vec::new();
    for (index, file) in files.iter().enumerate() {
        bytes = bytes.saturating_add(file.size_bytes);
        let age = now.duration_since(file.modified).unwrap_or(Duration::ZERO);
        let exceeds = index as u64 >= keep.count.0 || age > keep.age.0 || bytes > keep.bytes.0;
        if index > 0 && exceeds {
            gone.push(file);
        }
    }
    gone
}

fn of_entry(entry: &fs::DirEntry) -> Option<SnapshotFile> {
    let name = entry.file_name();
    let id = name.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let metadata = entry.metadata().ok()?;
    if !is_id(id) || !is_own(&metadata) {
        return None;
    }
    let word = id.split('-').nth(1).unwrap_or_default();
    let reason = Reason::ALL.iter().map(|reason| reason.name()).find(|name| *name == word)?;
    Some(SnapshotFile {
        id: id.to_owned(),
        reason,
        size_bytes: metadata.len(),
        modified: metadata.modified().ok()?,
    })
}

/// Whether a file is one that the agent wrote: regular, its user's, and under no second name.
fn is_own(metadata: &fs::Metadata) -> bool {
    // SAFETY: no memory.
    let own = unsafe { libc::geteuid() };
    metadata.is_file() && metadata.uid() == own && metadata.nlink() == 1
}

/// Whether a text from outside can name a file of ours, and nothing else.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::service::values::{Count, Size, Span};

    fn file(id: &str, age_s: u64, size_bytes: u64, now: SystemTime) -> SnapshotFile {
        let modified = now - Duration::from_secs(age_s);
        SnapshotFile { id: id.to_owned(), reason: "cron", size_bytes, modified }
    }

    fn gone(keep: Keep) -> Vec<String> {
        let now = SystemTime::now();
        let files =
            [file("d", 0, 50, now), file("c", 10, 50, now), file("b", 20, 50, now), file("a", 30, 50, now)];
        superfluous(&files, &keep, now).into_iter().map(|file| file.id.clone()).collect()
    }

    #[test]
    fn files_go_by_count_age_and_bytes_and_the_newest_stays() {
        let keep = Keep::default();
        assert_eq!(gone(keep), [""; 0]);
        assert_eq!(gone(Keep { count: Count(2), ..keep }), ["b", "a"]);
        assert_eq!(gone(Keep { age: Span::seconds(25), ..keep }), ["a"]);
        assert_eq!(gone(Keep { bytes: Size(110), ..keep }), ["b", "a"]);
        assert_eq!(gone(Keep { bytes: Size(1), ..keep }), ["c", "b", "a"]);
    }

    #[test]
    fn files_are_listed_read_and_removed_and_others_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("made")).unwrap();
        fs::write(store.folder().join("leaktrace-notes.txt"), "mine").unwrap();
        fs::write(store.folder().join("leaktrace-other.pb.gz"), "mine").unwrap();
        let snapshot = Snapshot { time: 1_763_640_000_000_000_000, ..Snapshot::default() };
        let first = store.write(&snapshot, Reason::Request).unwrap();
        let second = store.write(&snapshot, Reason::Request).unwrap();
        assert_eq!(
            (first.id.as_str(), second.id.as_str()),
            ("20251120T120000Z-request", "20251120T120000Z-request-1")
        );
        assert_eq!(store.list().unwrap().len(), 2);
        let read = pprof::read(&store.read(&first.id).unwrap().unwrap()).unwrap();
        assert_eq!(read.time, snapshot.time);
        let keep = Keep { count: Count(1), ..Keep::default() };
        assert_eq!(store.retain(&keep, SystemTime::now()).unwrap(), 1);
        assert_eq!(fs::read_dir(store.folder()).unwrap().count(), 3);
    }

    #[test]
    fn an_id_never_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for id in ["../../etc/passwd", "", "a/b", "a.b", "%2e%2e", "é", "\0"] {
            assert_eq!(store.read(id).unwrap(), None, "{id}");
        }
    }

    #[test]
    fn links_pipes_and_files_of_others_are_neither_listed_nor_opened() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("made")).unwrap();
        let of = |number: u32| format!("20251120T12000{number}Z-cron");
        let path = |number: u32| store.path(&of(number));
        std::os::unix::fs::symlink("/etc/passwd", path(0)).unwrap();
        std::os::unix::fs::symlink("/nowhere", path(1)).unwrap();
        let name = std::ffi::CString::new(path(2).to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        fs::write(folder.path().join("secret"), "mine").unwrap();
        fs::hard_link(folder.path().join("secret"), path(3)).unwrap();
        fs::create_dir(path(4)).unwrap();
        for number in 0..5 {
            assert_eq!(store.read(&of(number)).unwrap(), None, "{number}");
        }
        assert!(store.list().unwrap().is_empty());
        let again = Store::open(store.folder()).unwrap();
        assert!(again.list().unwrap().is_empty());
        // A new file does not take the place of what a link leads to.
        let time = 1_763_640_001_000_000_000;
        let written = store.write(&Snapshot { time, ..Snapshot::default() }, Reason::Cron).unwrap();
        assert_eq!(written.id, "20251120T120001Z-cron-1");
    }

    #[test]
    fn folder_and_files_are_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("made")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let written = store.write(&Snapshot::default(), Reason::Cron).unwrap();
        assert_eq!((mode(store.folder()), mode(&store.path(&written.id))), (0o700, 0o600));
        fs::set_permissions(store.path(&written.id), fs::Permissions::from_mode(0o644)).unwrap();
        Store::open(store.folder()).unwrap();
        assert_eq!(mode(&store.path(&written.id)), 0o600, "one of an earlier version");
    }
}
