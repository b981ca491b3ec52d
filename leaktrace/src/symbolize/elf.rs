//! The few parts of an ELF file that finding symbols needs: segments, section headers, build id, debug link. Read
//! with pread, bounded, never by mmap: a file that shrinks under a mapping would kill the reader.
use std::{fs::File, io, os::unix::fs::FileExt};

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
pub(super) const SECTION_BYTES: usize = 64;
const MAX_SEGMENTS: usize = 1024;
const MAX_SECTIONS: usize = 131_072;
const MAX_NAMES_BYTES: u64 = 16 << 20;
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Segments of notes that are looked through: real files have one or two.
const MAX_NOTES: usize = 16;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const NT_GNU_BUILD_ID: u32 = 3;

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Where it lies in the file.
    pub(super) file_offset: u64,
    /// How much of it lies in the file.
    pub(super) file_bytes: u64,
    /// Its address as linked.
    pub(super) address: u64,
    /// Whether it holds code.
    pub(super) executable: bool,
}

/// A section header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) kind: u32,
    pub(super) flags: u64,
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
    pub(super) link: u32,
    pub(super) raw: [u8; SECTION_BYTES],
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Layout {
    pub(super) header: Vec<u8>,
    pub(super) loads: Vec<Load>,
    pub(super) sections: Vec<Section>,
    pub(super) names_index: usize,
    pub(super) build_id: Option<Vec<u8>>,
}

impl Layout {
    /// Reads the layout of a 64-bit little-endian file. Everything but the segments is optional.
    pub(super) fn read(file: &File) -> io::Result<Layout> {
        let header = read_exact(file, 0, HEADER_BYTES)?;
        if header.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(invalid("not a 64-bit little-endian ELF file"));
        }
        let mut layout = Layout::default();
        let notes = layout.read_segments(file, &header)?;
        layout.read_sections(file, &header)?;
        // A file that dwz made has no segments.
        let section = layout.section(".note.gnu.build-id").map(|note| (note.offset, note.size_bytes));
        layout.build_id = notes
            .into_iter()
            .take(MAX_NOTES)
            .chain(section)
            .find_map(|(offset, bytes)| build_id(file, offset, bytes));
        layout.header = header;
        Ok(layout)
    }

    /// The same without sections, which a file may have many of: what is needed of one that is mapped.
    pub(super) fn read_segments_only(file: &File) -> io::Result<Layout> {
        let header = read_exact(file, 0, HEADER_BYTES)?;
        if header.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(invalid("not a 64-bit little-endian ELF file"));
        }
        let mut layout = Layout::default();
        let notes = layout.read_segments(file, &header)?;
        layout.build_id =
            notes.into_iter().take(MAX_NOTES).find_map(|(offset, bytes)| build_id(file, offset, bytes));
        layout.header = header;
        Ok(layout)
    }

    /// Gives the file ranges of the notes.
    fn read_segments(&mut self, file: &File, header: &[u8]) -> io::Result<Vec<(u64, u64)>> {
        let (offset, count) = (u64_at(header, 32), usize::from(u16_at(header, 56)).min(MAX_SEGMENTS));
        if usize::from(u16_at(header, 54)) != SEGMENT_BYTES {
            return Ok(Vec::new());
        }
        let table = read_exact(file, offset, count * SEGMENT_BYTES)?;
        let mut notes = Vec::new();
        for raw in table.chunks_exact(SEGMENT_BYTES) {
            let (file_offset, file_bytes) = (u64_at(raw, 8), u64_at(raw, 32));
            match u32_at(raw, 0) {
                PT_LOAD => self.loads.push(Load {
                    file_offset,
                    file_bytes,
                    address: u64_at(raw, 16),
                    executable: u32_at(raw, 4) & PF_X != 0,
                }),
                PT_NOTE => notes.push((file_offset, file_bytes)),
                _ => {}
            }
        }
        Ok(notes)
    }

    fn read_sections(&mut self, file: &File, header: &[u8]) -> io::Result<()> {
        let offset = u64_at(header, 40);
        if offset == 0 || usize::from(u16_at(header, 58)) != SECTION_BYTES {
            return Ok(());
        }
        let first = read_exact(file, offset, SECTION_BYTES)?;
        let count = match u16_at(header, 60) {
            0 => usize::try_from(u64_at(&first, 32)).unwrap_or(usize::MAX),
            count => usize::from(count),
        };
        if count > MAX_SECTIONS {
            return Err(invalid("too many sections"));
        }
        self.names_index = match u16_at(header, 62) {
            u16::MAX => u32_at(&first, 40) as usize,
            index => usize::from(index),
        };
        let table = read_exact(file, offset, count * SECTION_BYTES)?;
        self.sections = table
            .chunks_exact(SECTION_BYTES)
            .filter_map(|raw| raw.try_into().ok())
            .map(|raw: [u8; SECTION_BYTES]| Section {
                name: String::new(),
                kind: u32_at(&raw, 4),
                flags: u64_at(&raw, 8),
                offset: u64_at(&raw, 24),
                size_bytes: u64_at(&raw, 32),
                link: u32_at(&raw, 40),
                raw,
            })
            .collect();
        self.name_sections(file)
    }

    fn name_sections(&mut self, file: &File) -> io::Result<()> {
        let Some(names) = self.sections.get(self.names_index) else { return Ok(()) };
        if names.size_bytes > MAX_NAMES_BYTES {
            return Err(invalid("the table of section names is too large"));
        }
        let names = read_exact(file, names.offset, usize::try_from(names.size_bytes).unwrap_or(0))?;
        for section in &mut self.sections {
            let bytes = names.get(u32_at(&section.raw, 0) as usize..).unwrap_or_default();
            let end = bytes.iter().take(64).position(|byte| *byte == 0).unwrap_or(0);
            section.name = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
        }
        Ok(())
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The file name and checksum in `.gnu_debuglink`. Only a bare name is given: a path in a file that a target
    /// brought along must not lead anywhere.
    pub(super) fn debug_link(&self, file: &File) -> Option<(String, u32)> {
        let section = self.section(".gnu_debuglink").filter(|section| section.size_bytes <= 4096)?;
        let bytes = read_exact(file, section.offset, usize::try_from(section.size_bytes).ok()?).ok()?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let checksum = bytes.get((end + 4) & !3..)?.get(..4)?;
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        plain.then(|| (name.to_owned(), u32_at(checksum, 0)))
    }

    /// The path and the build id in `.gnu_debugaltlink`, as dwz writes them.
    pub(super) fn alternate_link(&self, file: &File) -> Option<(String, Vec<u8>)> {
        let section = self.section(".gnu_debugaltlink").filter(|section| section.size_bytes <= 4096)?;
        let bytes = read_exact(file, section.offset, usize::try_from(section.size_bytes).ok()?).ok()?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let path = std::str::from_utf8(bytes.get(..end)?).ok()?.to_owned();
        let id = bytes.get(end + 1..)?;
        (!id.is_empty() && id.len() <= 64).then(|| (path, id.to_vec()))
    }

    /// Whether it has a symbol table besides the dynamic one.
    pub(super) fn has_symbol_table(&self) -> bool {
        const SHT_SYMTAB: u32 = 2;
        self.sections.iter().any(|section| section.kind == SHT_SYMTAB)
    }
}

fn build_id(file: &File, offset: u64, bytes: u64) -> Option<Vec<u8>> {
    let notes = read_exact(file, offset, usize::try_from(bytes.min(MAX_NOTE_BYTES)).ok()?).ok()?;
    let mut rest = notes.as_slice();
    loop {
        let (name_bytes, id_bytes) = (u32_at(rest.get(..12)?, 0) as usize, u32_at(rest, 4) as usize);
        let body = rest.get(12..)?;
        let id_start = name_bytes.checked_next_multiple_of(4)?;
        let id = body.get(id_start..id_start.checked_add(id_bytes)?)?;
        if u32_at(rest, 8) == NT_GNU_BUILD_ID && body.get(..name_bytes)? == b"GNU\0" {
            return (!id.is_empty() && id.len() <= 64).then(|| id.to_vec());
        }
        rest = body.get(id_start.checked_add(id_bytes.checked_next_multiple_of(4)?)?..)?;
    }
}

pub(super) fn read_exact(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

pub(super) fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Little-endian integers; 0 past the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_this_program_is_read() {
        let file = File::open("/proc/self/exe").unwrap();
        let layout = Layout::read(&file).unwrap();
        assert!(layout.loads.iter().any(|load| load.executable));
        assert!(layout.section(".symtab").is_some() && layout.section(".debug_info").is_some());
    }

    #[test]
    fn a_file_that_is_no_elf_file_is_an_error() {
        assert!(Layout::read(&File::open("/etc/passwd").unwrap()).is_err());
        assert!(Layout::read(&File::open("/dev/null").unwrap()).is_err());
    }
}
