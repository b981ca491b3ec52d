//! What the kernel accounts to a process: resident memory and processor time, each by one read of a file under /proc.
use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
};

use super::process;
use crate::model::memory::Memory;

const MAX_STATUS_BYTES: u64 = 64 << 10;

/// Resident memory by what is behind it (`/proc/PID/status`, Linux 4.5); `None` where the process is gone, ended or a
/// kernel thread.
pub fn memory(pid: u32) -> Option<Memory> {
    parse_status(&read(pid, "status")?).or_else(|| {
        let shown = process::shown_as(pid);
        if shown == pid { None } else { parse_status(&read(shown, "status")?) }
    })
}

/// Processor time that all threads of a process have used, in ns, good to a clock tick (10 ms).
pub fn cpu_ns(pid: u32) -> Option<u64> {
    let ticks = parse_ticks(&read(pid, "stat")?)?;
    // SAFETY: sysconf has no preconditions.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    Some(ticks.saturating_mul(1_000_000_000 / per_second))
}

fn read(pid: u32, what: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{what}")).ok()?.take(MAX_STATUS_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn parse_status(status: &[u8]) -> Option<Memory> {
    let mut memory = Memory::default();
    let mut has_memory = false;
    for line in status.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let field = match name {
            b"VmRSS" => &mut memory.rss_bytes,
            b"RssAnon" => &mut memory.anonymous_bytes,
            b"RssFile" => &mut memory.file_bytes,
            b"RssShmem" => &mut memory.shared_bytes,
            b"VmSwap" => &mut memory.swapped_bytes,
            _ => continue,
        };
        let words = String::from_utf8_lossy(value.get(1..).unwrap_or_default()).into_owned();
        let kib: u64 = words.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        *field = kib.saturating_mul(1024);
        has_memory = true;
    }
    has_memory.then_some(memory)
}

/// Fields 14 and 15, counted after the last `)`: the name in between may hold anything.
fn parse_ticks(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// A process's `/proc/PID/statm`, kept open: reading it again is the cheapest look at its memory that there is, and
/// fails once the process is gone, even if its pid has come back.
#[derive(Debug)]
pub struct Statm(File);

impl Statm {
    /// Opens it.
    ///
    /// # Errors
    /// Not found where there is no such process; that of open(2), such as for too many open files.
    pub fn open(pid: u32) -> io::Result<Statm> {
        File::open(format!("/proc/{}/statm", process::shown_as(pid))).map(Statm)
    }

    /// Resident bytes, and of those the anonymous ones; `None` where the process is gone or has no memory of its own,
    /// as kernel threads and zombies have none.
    pub fn read(&self, page_bytes: u64) -> Option<(u64, u64)> {
        let mut bytes = [0; 256];
        let length = self.0.read_at(&mut bytes, 0).ok()?;
        parse_statm(bytes.get(..length)?, page_bytes)
    }
}

/// Size, resident and shared pages.
fn parse_statm(statm: &[u8], page_bytes: u64) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(statm).ok()?;
    let mut words = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
    let (size, resident, shared) = (words.next()??, words.next()??, words.next()??);
    let bytes = |pages: u64| pages.saturating_mul(page_bytes);
    (size > 0).then(|| (bytes(resident), bytes(resident.saturating_sub(shared))))
}

/// Bytes of a page.
pub fn page_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let pid = std::process::id();
        let memory = memory(pid).unwrap();
        assert!(memory.anonymous_bytes > 0 && memory.rss_bytes >= memory.anonymous_bytes);
        let started = cpu_ns(pid).unwrap();
        while cpu_ns(pid).unwrap() == started {
            std::hint::spin_loop();
        }
        let (rss, anonymous) = Statm::open(pid).unwrap().read(page_bytes()).unwrap();
        assert!(rss >= anonymous && anonymous > 0);
    }

    #[test]
    fn a_process_that_ended_is_not_mistaken_for_another() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let statm = Statm::open(child.id()).unwrap();
        assert!(statm.read(4096).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(statm.read(4096), None);
    }

    #[test]
    fn kernel_threads_have_no_memory() {
        assert_eq!(parse_statm(b"0 0 0 0 0 0 0\n", 4096), None);
        assert_eq!(parse_statm(b"100 10 4 1 0 20 0\n", 4096), Some((40960, 24576)));
        assert_eq!(parse_statm(b"junk", 4096), None);
        assert_eq!(parse_status(b"Name:\tkthreadd\nVmx: 3\n"), None);
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = b"7 (a) R 9) x) S 1 7 7 0 -1 4194560 0 0 0 0 12 30 0 0 20 0 1 0 4242 1 1\n";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_ticks(b"7 (x"), None);
    }
}
