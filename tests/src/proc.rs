//! Facts from /proc that scenarios check: whether a program's text is as its files have it, memory, children.
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs, os::unix::fs::FileExt, path::Path, time::Duration};

/// Places in the text of a process that differ from the mapped files: breakpoints that were left behind. Each as
/// `file+offset`, at most a few for each file.
pub fn damaged_text(pid: u32) -> Result<Vec<String>> {
    let folder = Path::new("/proc").join(pid.to_string());
    let maps =
        fs::read_to_string(folder.join("maps")).with_context(|| format!("no maps of process {pid}"))?;
    let memory = fs::File::open(folder.join("mem")).with_context(|| format!("no memory of process {pid}"))?;
    let mut found = Vec::new();
    for line in maps.lines() {
        let Some(text) = Text::parse(line) else { continue };
        let file = fs::File::open(folder.join("map_files").join(text.range))
            .with_context(|| format!("cannot open {}", text.path))?;
        let (mut is, mut was) = (vec![0; text.length], vec![0; text.length]);
        memory.read_exact_at(&mut is, text.start).with_context(|| format!("cannot read {}", text.path))?;
        let length = read_up_to(&file, &mut was, text.offset)?;
        let differing = is.iter().zip(&was).take(length).enumerate().filter(|(_, (is, was))| is != was);
        found.extend(differing.take(4).map(|(at, (is, was))| {
            format!("{}+{:#x}: {is:#04x} instead of {was:#04x}", text.path, text.offset + at as u64)
        }));
    }
    Ok(found)
}

fn read_up_to(file: &fs::File, bytes: &mut [u8], mut offset: u64) -> Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset).context("a mapped file cannot be read")? {
            0 => break,
            read => {
                length += read;
                offset += read as u64;
            }
        }
    }
    Ok(length)
}

/// An executable mapping of a file.
struct Text<'a> {
    range: &'a str,
    start: u64,
    length: usize,
    offset: u64,
    path: &'a str,
}

impl<'a> Text<'a> {
    fn parse(line: &'a str) -> Option<Text<'a>> {
        let mut words = line.split_ascii_whitespace();
        let range = words.next()?;
        let executable = words.next()?.contains('x');
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let path = words.nth(2)?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let of_file = executable && path.starts_with('/');
        of_file.then_some(Text { range, start, length: usize::try_from(end - start).ok()?, offset, path })
    }
}

/// A field of `/proc/PID/status` in kB, in bytes.
pub fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == field)
        .and_then(|(_, value)| value.trim().strip_suffix(" kB"))
        .with_context(|| format!("no {field} in the status of process {pid}"))?;
    Ok(value.trim().parse::<u64>().with_context(|| format!("{field} is {value:?}"))? * 1024)
}

/// The open files of a process, counted by what they are: `bpf-map`, `bpf-prog`, `perf_event`, `socket`, `file` and
/// the like.
pub fn open_files(pid: u32) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    let folder = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&folder).with_context(|| format!("no process {pid}"))? {
        // One that is closed meanwhile is not open.
        let Ok(link) = fs::read_link(entry?.path()) else { continue };
        let text = link.to_string_lossy();
        let kind = match text.split_once(':') {
            _ if text.starts_with('/') => "file",
            Some(("anon_inode", kind)) => kind.trim_matches(['[', ']']),
            Some((kind, _)) => kind,
            None => "other",
        };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    Ok(kinds)
}

/// Processor time that a process has used, good to 10 ms.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    let fields = text.rsplit_once(')').context("no name in stat")?.1;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok());
    Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
}

/// The children of a process, whichever of its threads made them.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    let path = format!("/proc/{pid}/task");
    for thread in fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.flatten() {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.extend(text.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    Ok(children)
}

/// A thread of the kernel, by its lack of a command line and its parent.
pub fn kernel_thread() -> Result<u32> {
    let of_kernel = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
            && status
                .lines()
                .any(|line| line == "Kthread:\t1" || line == "PPid:\t2" || line == "Name:\tkthreadd")
    };
    fs::read_dir("/proc")
        .context("no /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(of_kernel)
        .context("no thread of the kernel is visible here: the test needs the host's process ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_files_are_text() {
        let line = "7f00-9f00 r-xp 00001000 fd:00 123   /usr/lib/libc.so.6";
        let text = Text::parse(line).unwrap();
        assert_eq!(
            (text.start, text.length, text.offset, text.path),
            (0x7f00, 0x2000, 0x1000, "/usr/lib/libc.so.6")
        );
        assert!(Text::parse("7f00-9f00 r--p 00001000 fd:00 123   /usr/lib/libc.so.6").is_none());
        assert!(Text::parse("7f00-9f00 r-xp 00000000 00:00 0     [vdso]").is_none());
        assert!(Text::parse("7f00-9f00 r-xp 00000000 00:00 0 ").is_none());
    }
}
