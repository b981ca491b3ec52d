//! What the kernel says of code that processes map, as it happens: one software perf event for each CPU, with a
//! record for every executable mapping on the host (dlopen, JIT text, mprotect). Opened before the first look at
//! /proc/PID/maps, it leaves no gap. There is no record of a mapping that goes.
//!
//! The records carry device and inode and not the build id that Linux has since 5.12, because one takes the place of
//! the other, and without the inode a path could not be told from one that was replaced.
use std::{fs, io, os::fd::RawFd};

use anyhow::{Context as _, Result};
use leaktrace_common::{Plain, read};

use super::perf_ring::PerfRing;
use crate::{
    attach::sys::{self, PerfEventAttr},
    discover::maps::{Device, MapEntry},
};

/// PERF_TYPE_SOFTWARE.
const SOFTWARE: u32 = 1;
/// PERF_COUNT_SW_DUMMY: counts nothing.
const DUMMY: u64 = 9;
/// PERF_SAMPLE_TIME: the last 8 bytes of every record.
const SAMPLE_TIME: u64 = 1 << 2;
/// Bits of `struct perf_event_attr`: mmap, watermark, sample_id_all, mmap2, use_clockid.
const BITS: u64 = 1 << 8 | 1 << 14 | 1 << 18 | 1 << 23 | 1 << 25;
/// PERF_RECORD_LOST.
const LOST: u32 = 2;
/// PERF_RECORD_MMAP2.
const MMAP2: u32 = 10;
/// Bytes of an MMAP2 record before its path.
const MMAP2_BYTES: usize = 72;
/// Bytes of the time at a record's end.
const TIME_BYTES: usize = 8;
/// Room for some 4,000 records of each CPU.
const RING_BYTES: usize = 512 << 10;
/// The loop is woken by what traced processes do; by the ring only before it is full.
const WAKEUP_BYTES: u32 = 128 << 10;

/// A mapping of code that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The process.
    pub tgid: u32,
    /// When, in ns of CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// What, as /proc/PID/maps would say it.
    pub entry: MapEntry,
}

/// A record that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Code was mapped.
    Mapped(Mapped),
    /// So many records did not fit into the ring.
    Lost(u64),
}

/// The events of all CPUs.
#[derive(Debug)]
pub struct Sideband {
    rings: Vec<PerfRing>,
    lost: u64,
}

impl Sideband {
    /// Opens an event on every CPU that is online.
    ///
    /// # Errors
    /// When the kernel refuses: no permission (CAP_PERFMON), or no perf events.
    pub fn open() -> Result<Sideband> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").context("which CPUs are online")?;
        let ring = |cpu| -> io::Result<PerfRing> {
            let mut attr = PerfEventAttr {
                kind: SOFTWARE,
                config: DUMMY,
                sample_type: SAMPLE_TIME,
                flags: BITS,
                wakeup: WAKEUP_BYTES,
                clock: libc::CLOCK_BOOTTIME,
                ..PerfEventAttr::default()
            };
            PerfRing::map(sys::perf_event_open(&mut attr, -1, cpu)?, RING_BYTES)
        };
        let rings = cpus(&online)
            .map(|cpu| ring(cpu).with_context(|| format!("a perf event for mappings on CPU {cpu}")))
            .collect::<Result<Vec<_>>>()?;
        Ok(Sideband { rings, lost: 0 })
    }

    /// Descriptors that become readable when a ring fills up.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        use std::os::fd::AsRawFd as _;
        self.rings.iter().map(|ring| ring.fd().as_raw_fd())
    }

    /// The records of processes that are `wanted`, in no order, and whether any were lost since the last time.
    pub fn drain(&mut self, wanted: impl Fn(u32) -> bool) -> (Vec<Mapped>, bool) {
        let (mut mapped, mut lost) = (Vec::new(), 0);
        for ring in &mut self.rings {
            ring.drain(|bytes| match decode(bytes, &wanted) {
                Some(Record::Mapped(record)) => mapped.push(record),
                Some(Record::Lost(count)) => lost += count,
                None => {}
            });
        }
        self.lost += lost;
        (mapped, lost > 0)
    }

    /// Records that were lost so far, of whatever process.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// The numbers in a list such as `0-3,6`.
fn cpus(list: &str) -> impl Iterator<Item = i32> + '_ {
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<i32>().ok()?..=last.parse().ok()?)
        })
        .flatten()
}

/// Decodes a record; `None` for those that do not matter.
pub fn decode(bytes: &[u8], wanted: impl Fn(u32) -> bool) -> Option<Record> {
    match word(bytes, 0)? {
        MMAP2 => {
            let tgid = word(bytes, 8)?;
            if !wanted(tgid) {
                return None;
            }
            let (rest, time) = bytes.split_at_checked(bytes.len().checked_sub(TIME_BYTES)?)?;
            let entry = entry(rest)?;
            Some(Record::Mapped(Mapped { tgid, time_ns: read(time)?, entry }))
        }
        LOST => Some(Record::Lost(word(bytes, 16)?)),
        _ => None,
    }
}

fn entry(bytes: &[u8]) -> Option<MapEntry> {
    let (start, length): (u64, u64) = (word(bytes, 16)?, word(bytes, 24)?);
    let protection = word::<u32>(bytes, 64)?.cast_signed();
    let flags = word::<u32>(bytes, 68)?.cast_signed();
    let named = bytes.get(MMAP2_BYTES..)?;
    let named = named.split(|byte| *byte == 0).next().unwrap_or_default();
    let inode = word(bytes, 48)?;
    let (path, deleted) = match named.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (named, false),
    };
    // /proc/PID/maps has no name for anonymous memory.
    let path = if inode == 0 && path.starts_with(b"//") { Vec::new() } else { path.to_vec() };
    let end = start.checked_add(length)?;
    (start < end).then_some(MapEntry {
        start,
        end,
        readable: protection & libc::PROT_READ != 0,
        writable: protection & libc::PROT_WRITE != 0,
        executable: protection & libc::PROT_EXEC != 0,
        shared: flags & libc::MAP_SHARED != 0,
        offset: word(bytes, 32)?,
        device: Device { major: word(bytes, 40)?, minor: word(bytes, 44)? },
        inode,
        path,
        deleted,
    })
}

fn word<T: Plain>(bytes: &[u8], offset: usize) -> Option<T> {
    read(bytes.get(offset..)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as Linux writes it.
    fn mmap2(tgid: u32, path: &[u8], inode: u64, time_ns: u64) -> Vec<u8> {
        let mut path = path.to_vec();
        path.push(0);
        path.resize(path.len().next_multiple_of(8), 0);
        let size = MMAP2_BYTES + path.len() + TIME_BYTES;
        let mut bytes = Vec::new();
        bytes.extend(MMAP2.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend((size as u16).to_ne_bytes());
        bytes.extend(tgid.to_ne_bytes());
        bytes.extend(9_u32.to_ne_bytes());
        for value in [0x7000_u64, 0x2000, 0x1000] {
            bytes.extend(value.to_ne_bytes());
        }
        bytes.extend(8_u32.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(inode.to_ne_bytes());
        bytes.extend(0_u64.to_ne_bytes());
        bytes.extend(5_u32.to_ne_bytes());
        bytes.extend(2_u32.to_ne_bytes());
        bytes.extend(path);
        bytes.extend(time_ns.to_ne_bytes());
        assert_eq!(bytes.len(), size);
        bytes
    }

    fn mapped(bytes: &[u8]) -> Mapped {
        match decode(bytes, |_| true) {
            Some(Record::Mapped(mapped)) => mapped,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mapping_is_decoded_as_proc_maps_would_say_it() {
        let mapped = mapped(&mmap2(7, b"/lib/a b.so", 42, 99));
        assert_eq!((mapped.tgid, mapped.time_ns), (7, 99));
        let line = b"7000-9000 r-xp 00001000 08:01 42 /lib/a b.so";
        assert_eq!(Some(mapped.entry), crate::discover::maps::parse_line(line));
    }

    #[test]
    fn anonymous_code_has_no_path_and_deleted_files_keep_theirs() {
        assert!(mapped(&mmap2(7, b"//anon", 0, 1)).entry.path.is_empty());
        let gone = mapped(&mmap2(7, b"/memfd:jit (deleted)", 3, 1)).entry;
        assert!(gone.deleted && gone.is_file());
        assert_eq!(gone.path, b"/memfd:jit");
    }

    #[test]
    fn records_of_others_and_damaged_ones_are_passed_over() {
        let bytes = mmap2(7, b"/lib/a.so", 42, 99);
        assert_eq!(decode(&bytes, |tgid| tgid == 8), None);
        for length in 0..MMAP2_BYTES {
            assert_eq!(decode(&bytes[..length], |_| true), None, "{length}");
        }
    }

    #[test]
    fn ranges_of_cpus_are_read() {
        assert_eq!(cpus("0-2,5\n").collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert_eq!(cpus("").count(), 0);
    }

    #[test]
    fn code_that_is_mapped_is_told_with_its_time() {
        let mut sideband = Sideband::open().unwrap();
        let before = crate::agent::clock::boot_ns();
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) } as u64;
        let (mapped, lost) = sideband.drain(|tgid| tgid == std::process::id());
        assert!(!lost);
        let own = mapped.iter().find(|mapped| mapped.entry.contains(page)).unwrap();
        assert!(own.entry.executable && own.entry.path.is_empty());
        assert!(own.time_ns >= before && own.time_ns <= crate::agent::clock::boot_ns());
    }
}
