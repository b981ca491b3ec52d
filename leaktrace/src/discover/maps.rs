//! Parses `/proc/PID/maps`: which file is mapped where, with which rights. Says nothing about what the files
//! hold; the formats are those of proc_pid_maps(5).
use std::{
    fs,
    io::{self, Read as _},
};

use super::process;

/// A process may have 65,530 mappings (vm.max_map_count), each with a path of 4 KiB: such a list takes seconds.
const MAX_BYTES: u64 = 64 << 20;

/// A device number as the kernel prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Readable.
    pub readable: bool,
    /// Writable.
    pub writable: bool,
    /// Executable.
    pub executable: bool,
    /// Shared with other processes (MAP_SHARED).
    pub shared: bool,
    /// Offset of `start` in the file, in bytes.
    pub offset: u64,
    /// Device of the file; 0:0 for anonymous memory.
    pub device: Device,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Path as the kernel knows it, escapes decoded and ` (deleted)` taken off; `[heap]` and the like; empty
    /// for anonymous memory. Hostile: escape before printing.
    pub path: Vec<u8>,
    /// The file has no name any more.
    pub deleted: bool,
}

impl MapEntry {
    /// Bytes of address space.
    pub fn length_bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether a file lies behind the mapping.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.first() == Some(&b'/')
    }

    /// The path for people, with bytes that are not UTF-8 replaced.
    pub fn path_lossy(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// Whether `address` lies in the mapping.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Reads the mappings of a process.
///
/// # Errors
/// What opening or reading `/proc/PID/maps` gives; `NotFound` and `ESRCH` mean that the process is gone.
pub fn read(pid: u32) -> io::Result<Vec<MapEntry>> {
    let mut text = bounded(pid)?;
    if text.is_empty() {
        // The first thread has ended, and its memory is that of the others alone.
        text = bounded(process::shown_as(pid))?;
    }
    Ok(parse(&text))
}

/// The list of mappings of a process, as the kernel prints it.
fn bounded(pid: u32) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(format!("/proc/{pid}/maps"))?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "its list of mappings is larger than 64 MiB",
        ));
    }
    Ok(text)
}

/// Where the program break of a process is, to the page: the end of `[heap]`, which only exists once it has moved.
pub fn program_break(pid: u32) -> Option<u64> {
    read(pid).ok()?.iter().find(|entry| entry.path == b"[heap]").map(|entry| entry.end)
}

/// Parses the text; a line that is not of the known form is left out.
pub fn parse(text: &[u8]) -> Vec<MapEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// Parses one line of maps, or the head line of an smaps paragraph.
pub fn parse_line(line: &[u8]) -> Option<MapEntry> {
    let mut rest = line;
    let (start, end) = split_pair(field(&mut rest)?, b'-', 16)?;
    let rights = field(&mut rest)?;
    let offset = number(field(&mut rest)?, 16)?;
    let (major, minor) = split_pair(field(&mut rest)?, b':', 16)?;
    let inode = number(field(&mut rest)?, 10)?;
    let named = decode_octal(rest.trim_ascii_start());
    let (path, deleted) = match named.strip_suffix(b" (deleted)") {
        Some(path) => (path.to_vec(), true),
        None => (named, false),
    };
    let has = |index: usize, letter: u8| rights.get(index) == Some(&letter);
    (start < end && rights.len() == 4).then(|| MapEntry {
        start,
        end,
        readable: has(0, b'r'),
        writable: has(1, b'w'),
        executable: has(2, b'x'),
        shared: has(3, b's'),
        offset,
        device: Device { major: major as u32, minor: minor as u32 },
        inode,
        path,
        deleted,
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let trimmed = rest.trim_ascii_start();
    let end = trimmed.iter().position(|byte| *byte == b' ').unwrap_or(trimmed.len());
    let (word, tail) = trimmed.split_at_checked(end)?;
    *rest = tail;
    (!word.is_empty()).then_some(word)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

fn split_pair(word: &[u8], separator: u8, radix: u32) -> Option<(u64, u64)> {
    let at = word.iter().position(|byte| *byte == separator)?;
    Some((number(word.get(..at)?, radix)?, number(word.get(at + 1..)?, radix)?))
}

/// Undoes the kernel's `\ooo` escapes (it escapes newlines; others are passed through).
fn decode_octal(escaped: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                decoded.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> MapEntry {
        parse_line(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_mapping_has_all_its_fields() {
        let entry =
            one("7f51b355f000-7f51b36b5000 r-xp 00026000 fe:01 1838 /usr/lib/x86_64-linux-gnu/libc.so.6");
        assert_eq!((entry.start, entry.end, entry.offset), (0x7f51_b355_f000, 0x7f51_b36b_5000, 0x26000));
        assert!(entry.readable && !entry.writable && entry.executable && !entry.shared && !entry.deleted);
        assert_eq!(entry.device, Device { major: 0xfe, minor: 1 });
        assert_eq!(entry.inode, 1838);
        assert!(entry.is_file());
        assert_eq!(entry.path_lossy(), "/usr/lib/x86_64-linux-gnu/libc.so.6");
    }

    #[test]
    fn anonymous_memory_has_no_path() {
        let entry = one("7f51b355f000-7f51b36b5000 rw-p 00000000 00:00 0 ");
        assert!(entry.path.is_empty() && !entry.is_file());
        assert_eq!(one("55c0-55c1 rw-p 00000000 00:00 0    [heap]").path, b"[heap]");
    }

    #[test]
    fn escapes_blanks_and_deletion_are_taken_off_the_path() {
        let entry = one("1000-2000 r-xp 00000000 08:01 7 /tmp/a b\\012c\\x (deleted)");
        assert_eq!(entry.path, b"/tmp/a b\nc\\x");
        assert!(entry.deleted);
    }

    #[test]
    fn a_line_of_another_form_is_left_out() {
        let text = b"garbage\n1000-2000 r-xp 0 08:01 7 /a\nzz-2000 r-xp 0 08:01 7 /b\n2000-1000 r-xp 0 08:01 7 /c\n\n1000 r";
        let entries = parse(text);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].path, b"/a");
    }

    #[test]
    fn the_mappings_of_this_process_contain_this_code() {
        let here = the_mappings_of_this_process_contain_this_code as *const () as u64;
        let entries = read(std::process::id()).unwrap();
        assert!(entries.iter().any(|entry| entry.contains(here) && entry.executable && entry.is_file()));
    }
}
