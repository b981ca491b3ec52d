//! Names of code made by just-in-time compilers, from `/tmp/perf-PID.map` in the process's own root. The format is
//! that of Linux' tools/perf/Documentation/jit-interface.txt: start and size in hexadecimal, then the name.
//!
//! The file is whatever the process puts there, and is looked into on the loop: what was read once is not read again, and
//! how much time all that takes is bounded.
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    time::{Duration, Instant},
};

use crate::discover::{
    open::{Found, Way},
    process,
};

/// Larger maps are not opened.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// Bytes of a map that are read in all.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes that are read at a time.
const MAX_CHUNK_BYTES: u64 = 4 << 20;
const MAX_ENTRIES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 1024;
/// What reading may take at once, and which share of the time after that.
const BURST: Duration = Duration::from_millis(1000);
const SHARE: f64 = 0.02;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    bytes: u64,
    name: Box<str>,
}

/// What has been read of one process's map.
#[derive(Clone, Debug)]
pub(super) struct PerfMap {
    entries: Vec<Entry>,
    /// Device and inode.
    file: Option<(u64, u64)>,
    read_bytes: u64,
    since: Instant,
    spent: Duration,
}

impl Default for PerfMap {
    fn default() -> PerfMap {
        PerfMap {
            entries: Vec::new(),
            file: None,
            read_bytes: 0,
            since: Instant::now(),
            spent: Duration::ZERO,
        }
    }
}

impl PerfMap {
    /// Reads what has been added to the map of a living process.
    pub(super) fn refresh(&mut self, pid: u32) -> io::Result<()> {
        let begun = Instant::now();
        if self.spent > BURST.saturating_add(self.since.elapsed().mul_f64(SHARE)) {
            return Ok(());
        }
        let result = open(pid).and_then(|file| self.read_more(&file));
        self.spent = self.spent.saturating_add(begun.elapsed());
        result
    }

    fn read_more(&mut self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if self.file != identity || metadata.len() < self.read_bytes {
            (self.file, self.read_bytes) = (identity, 0);
            self.entries.clear();
        }
        while self.read_bytes < metadata.len().min(MAX_BYTES) && self.entries.len() < MAX_ENTRIES {
            let left = metadata.len().min(MAX_BYTES) - self.read_bytes;
            let mut chunk = vec![0; left.min(MAX_CHUNK_BYTES) as usize];
            let count = file.read_at(&mut chunk, self.read_bytes)?;
            chunk.truncate(count);
            // A line that is still being written is read when it is whole; one without an end is passed over.
            let whole = match memchr::memrchr(b'\n', &chunk) {
                Some(end) => end + 1,
                None if chunk.len() as u64 == MAX_CHUNK_BYTES => chunk.len(),
                None => return Ok(()),
            };
            chunk.truncate(whole);
            self.read_bytes += whole as u64;
            self.add(&String::from_utf8_lossy(&chunk));
        }
        Ok(())
    }

    /// The function at an address and the offset in it.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let index = self.entries.partition_point(|entry| entry.start <= address).checked_sub(1)?;
        let entry = self.entries.get(index)?;
        let offset = address - entry.start;
        (offset < entry.bytes).then_some((&*entry.name, offset))
    }

    /// Takes in lines; those that make no sense are left out. Of two entries for one address the later one holds, because
    /// compilers reuse memory.
    pub(super) fn add(&mut self, text: &str) {
        let room = MAX_ENTRIES.saturating_sub(self.entries.len());
        let mut entries: Vec<Entry> = text.lines().filter_map(parse_line).take(room).collect();
        entries.reverse();
        entries.append(&mut self.entries);
        entries.sort_by_key(|entry| entry.start);
        entries.dedup_by_key(|entry| entry.start);
        self.entries = entries;
    }
}

/// Opens the map of a process. `/tmp` may be mounted apart or be a link, the map itself is a plain file in it, and belongs
/// to the process's user or to root: anyone can write to /tmp.
fn open(pid: u32) -> io::Result<File> {
    let user = fs::metadata(format!("/proc/{pid}"))?.uid();
    let root = File::open(format!("/proc/{}/root", process::shown_as(pid)))?;
    let folder = Found::beneath(&root, b"tmp", Way::Links)?.into_directory()?;
    let name = format!("perf-{}.map", pid_inside(pid)?);
    let found = Found::beneath(&folder, name.as_bytes(), Way::Plain)?;
    if !found.is_of(user) || found.is_served_by_a_process() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    found.open(MAX_FILE_BYTES)
}

fn parse_line(line: &str) -> Option<Entry> {
    let (start, rest) = line.split_once(' ')?;
    let (bytes, name) = rest.split_once(' ')?;
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    let name: Box<str> = name.chars().take(MAX_NAME_BYTES).collect();
    Some(Entry { start: number(start)?, bytes: number(bytes)?, name })
}

/// The process's pid in its own namespace, which is what it names the file by.
fn pid_inside(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let inner = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|pids| pids.split_ascii_whitespace().next_back())
        .and_then(|pid| pid.parse().ok());
    Ok(inner.unwrap_or(pid))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// There is one map for this process.
    static HELD: Mutex<()> = Mutex::new(());

    #[test]
    fn an_address_is_found_by_range_and_the_last_entry_wins() {
        let mut map = PerfMap::default();
        map.add("1000 20 first\n2000 10 old\n0x2000 0x8 new one\nnonsense\n3000 zz x\n");
        assert_eq!(map.find(0x1000), Some(("first", 0)));
        assert_eq!(map.find(0x101f), Some(("first", 0x1f)));
        assert_eq!(map.find(0x1020), None);
        assert_eq!(map.find(0x2004), Some(("new one", 4)));
        assert_eq!(map.find(0x200c), None);
        assert_eq!(map.find(0), None);
    }

    #[test]
    fn the_map_of_a_process_is_read_from_its_own_tmp() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        let _held = HELD.lock().unwrap();
        fs::write(&path, "5000 10 jitted\n").unwrap();
        let mut map = PerfMap::default();
        let result = map.refresh(pid);
        fs::remove_file(&path).unwrap();
        result.unwrap();
        assert_eq!(map.find(0x5001), Some(("jitted", 1)));
    }

    #[test]
    fn only_what_was_added_is_read_and_a_new_file_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let mut map = PerfMap::default();
        fs::write(&path, "1000 10 first\n2000 10 sec").unwrap();
        map.read_more(&File::open(&path).unwrap()).unwrap();
        assert_eq!((map.find(0x1000), map.find(0x2000)), (Some(("first", 0)), None));
        // In place: what was read is not looked at again.
        fs::write(&path, "9000 10 other\n2000 10 second\n1000 8 newer\n").unwrap();
        map.read_more(&File::open(&path).unwrap()).unwrap();
        assert_eq!((map.find(0x1000), map.find(0x2000)), (Some(("newer", 0)), Some(("second", 0))));
        assert_eq!(map.find(0x9000), None);
        fs::write(&path, "9000 10 other\n").unwrap();
        map.read_more(&File::open(&path).unwrap()).unwrap();
        assert_eq!((map.find(0x9000), map.find(0x2000)), (Some(("other", 0)), None));
    }

    #[test]
    fn a_map_that_is_huge_costs_its_share_of_time_and_no_more() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 30).unwrap();
        let mut map = PerfMap::default();
        map.read_more(&file).unwrap();
        assert_eq!((map.read_bytes, map.entries.len()), (MAX_BYTES, 0));
        map.spent = Duration::from_secs(2);
        assert!(map.refresh(u32::MAX).is_ok(), "no look at all");
        map.spent = Duration::ZERO;
        assert!(map.refresh(u32::MAX).is_err());
    }

    #[test]
    fn a_map_that_is_a_link_a_pipe_or_another_users_is_not_opened() {
        let pid = std::process::id();
        let path = std::path::PathBuf::from(format!("/tmp/perf-{pid}.map"));
        // Held against the test that writes a good one.
        let _held = HELD.lock().unwrap();
        for case in ["link", "pipe", "directory"] {
            match case {
                "link" => std::os::unix::fs::symlink("/proc/self/status", &path).unwrap(),
                "directory" => fs::create_dir(&path).unwrap(),
                _ => {
                    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
                    // SAFETY: a NUL-terminated string.
                    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
                }
            }
            let opened = open(pid);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            assert!(opened.is_err(), "{case}");
        }
    }
}
