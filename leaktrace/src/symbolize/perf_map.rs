//! Names of code made by just-in-time compilers, from `/tmp/perf-PID.map` in the process's own root. The format is
//! that of Linux' tools/perf/Documentation/jit-interface.txt: start and size in hexadecimal, then the name.
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
};

use crate::discover::object::ObjectFile;

const MAX_BYTES: u64 = 64 << 20;
const MAX_ENTRIES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    bytes: u64,
    name: Box<str>,
}

/// The map of one process at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PerfMap {
    entries: Vec<Entry>,
    version: Option<(u64, i64, i64)>,
}

impl PerfMap {
    /// Reads the map of a living process again if it changed since. The file must belong to the process's user or
    /// to root: anyone can write to /tmp.
    pub(super) fn refresh(&mut self, pid: u32) -> io::Result<()> {
        let path = format!("/tmp/perf-{}.map", pid_inside(pid)?);
        let file = ObjectFile::beneath_root(pid, path.as_bytes())?.into_file();
        let metadata = file.metadata()?;
        let owner = fs::metadata(format!("/proc/{pid}"))?.uid();
        if metadata.uid() != owner && metadata.uid() != 0 {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let version = Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
        if self.version != version {
            *self = PerfMap { version, ..read(file)? };
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

    /// Reads a map; lines that make no sense are left out. Of two entries for one address the later one holds,
    /// because compilers reuse memory.
    fn parse(text: &str) -> PerfMap {
        let mut entries: Vec<Entry> = text.lines().filter_map(parse_line).take(MAX_ENTRIES).collect();
        entries.reverse();
        entries.sort_by_key(|entry| entry.start);
        entries.dedup_by_key(|entry| entry.start);
        PerfMap { entries, version: None }
    }
}

fn read(file: File) -> io::Result<PerfMap> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(PerfMap::parse(&String::from_utf8_lossy(&bytes)))
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
    use super::*;

    #[test]
    fn an_address_is_found_by_range_and_the_last_entry_wins() {
        let map = PerfMap::parse("1000 20 first\n2000 10 old\n0x2000 0x8 new one\nnonsense\n3000 zz x\n");
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
        fs::write(&path, "5000 10 jitted\n").unwrap();
        let mut map = PerfMap::default();
        let result = map.refresh(pid);
        fs::remove_file(&path).unwrap();
        result.unwrap();
        assert_eq!(map.find(0x5001), Some(("jitted", 1)));
    }
}
