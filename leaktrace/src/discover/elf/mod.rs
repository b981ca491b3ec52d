//! An ELF64 x86-64 file as far as finding functions needs it: segments, dynamic section, addresses to file
//! offsets, build id. Symbols, relocations and function extents are in the modules below. Reads only the
//! ranges it needs; everything in a file is hostile, so each range is checked and each table is bounded.
pub mod extents;
mod format;
pub mod relocations;
pub mod symbols;

use super::object::{FileIdentity, ObjectFile};
use format as elf;
use std::{
    cell::{Cell, OnceCell},
    fmt, io,
    ops::Range,
};

const MAX_PROGRAM_HEADERS: u64 = 512;
const MAX_SECTIONS: u64 = 65_536;
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
/// What reading one file may cost: bytes, with [`READ_COST`] for each read. The largest programs with full symbol tables
/// take a quarter of it.
const MAX_COST: u64 = 2 << 30;
/// What a read costs besides its bytes, as bytes that are looked through in the same time.
const READ_COST: u64 = 8 << 10;
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// Why a file could not be used.
#[derive(Debug)]
pub enum ElfError {
    /// Reading failed.
    Io(io::Error),
    /// Not an ELF file at all.
    NotElf,
    /// An ELF file for another class or machine: EI_CLASS and e_machine.
    Foreign {
        /// EI_CLASS: 1 is 32-bit, 2 is 64-bit.
        class: u8,
        /// e_machine.
        machine: u16,
    },
    /// A table lies outside the file or is larger than the bound.
    Malformed(&'static str),
    /// It is made so that looking through it takes too long.
    TooDear,
}

impl fmt::Display for ElfError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::Io(error) => write!(out, "cannot be read: {error}"),
            ElfError::NotElf => write!(out, "is not an ELF file"),
            ElfError::Foreign { class, machine } => {
                write!(out, "is built for another architecture (ELF class {class}, machine {machine})")
            }
            ElfError::TooDear => write!(out, "takes too long to look through"),
            ElfError::Malformed(what) => write!(out, "has a malformed {what}"),
        }
    }
}

impl std::error::Error for ElfError {}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> ElfError {
        ElfError::Io(error)
    }
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Virtual address.
    pub address: u64,
    /// Bytes that come from the file.
    pub file_bytes: u64,
    /// PF_X.
    pub executable: bool,
}

/// What the dynamic section points to, as virtual addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Dynamic {
    symbols: u64,
    strings: u64,
    strings_bytes: u64,
    hash: u64,
    gnu_hash: u64,
    plt_relocations: Range64,
    relocations: Range64,
    soname: Option<u64>,
    needs_libraries: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Range64 {
    start: u64,
    bytes: u64,
}

/// A file's headers, and access to its tables.
#[derive(Debug)]
pub struct ElfFile<'f> {
    file: &'f ObjectFile,
    /// PT_LOAD segments in file order.
    pub segments: Vec<Segment>,
    dynamic: Option<Dynamic>,
    frame_header: Option<Range64>,
    note: Vec<Range64>,
    sections_at: u64,
    sections: u64,
    /// What reading has cost so far.
    cost: Cell<u64>,
    relocations: OnceCell<Vec<relocations::Relocation>>,
    extents: OnceCell<Option<extents::FrameTable>>,
}

/// The e_ident class and the machine of an ELF file.
///
/// # Errors
/// `NotElf`, or what reading gives.
pub fn class_and_machine(file: &ObjectFile) -> Result<(u8, u16), ElfError> {
    let header = file.read_at(0, 64)?;
    if !header.starts_with(&elf::MAGIC) {
        return Err(ElfError::NotElf);
    }
    let class = header.get(4).copied().unwrap_or(0);
    let big_endian = header.get(5) == Some(&elf::ELFDATA2MSB);
    let machine = u16_at(&header, 18).ok_or(ElfError::NotElf)?;
    Ok((class, if big_endian { machine.swap_bytes() } else { machine }))
}

impl<'f> ElfFile<'f> {
    /// Reads the headers.
    ///
    /// # Errors
    /// See [`ElfError`]; files for another architecture are refused.
    pub fn parse(file: &'f ObjectFile) -> Result<ElfFile<'f>, ElfError> {
        let (class, machine) = class_and_machine(file)?;
        if class != elf::ELFCLASS64 || machine != elf::EM_X86_64 {
            return Err(ElfError::Foreign { class, machine });
        }
        let header = file.read_at(0, 64)?;
        let malformed = ElfError::Malformed("file header");
        let (Some(programs_at), Some(sections_at), Some(programs), Some(sections)) =
            (u64_at(&header, 32), u64_at(&header, 40), u16_at(&header, 56), u16_at(&header, 60))
        else {
            return Err(malformed);
        };
        let mut parsed = ElfFile {
            file,
            segments: Vec::new(),
            dynamic: None,
            frame_header: None,
            note: Vec::new(),
            sections_at,
            sections: u64::from(sections).min(MAX_SECTIONS),
            cost: Cell::new(0),
            relocations: OnceCell::new(),
            extents: OnceCell::new(),
        };
        parsed.read_program_headers(programs_at, u64::from(programs).min(MAX_PROGRAM_HEADERS))?;
        Ok(parsed)
    }

    fn read_program_headers(&mut self, at: u64, count: u64) -> Result<(), ElfError> {
        let table = self.read(at, count * 56)?;
        let mut dynamic = None;
        for header in table.chunks_exact(56) {
            let (Some(kind), Some(flags), Some(offset), Some(address), Some(file_bytes)) = (
                u32_at(header, 0),
                u32_at(header, 4),
                u64_at(header, 8),
                u64_at(header, 16),
                u64_at(header, 32),
            ) else {
                continue;
            };
            let range = Range64 { start: offset, bytes: file_bytes };
            match kind {
                elf::PT_LOAD => self.segments.push(Segment {
                    offset,
                    address,
                    file_bytes,
                    executable: flags & elf::PF_X != 0,
                }),
                elf::PT_DYNAMIC => dynamic = Some(range),
                elf::PT_GNU_EH_FRAME => {
                    self.frame_header = Some(Range64 { start: address, bytes: file_bytes });
                }
                elf::PT_NOTE => self.note.push(range),
                _ => {}
            }
        }
        self.dynamic = dynamic.map(|range| self.read_dynamic(range)).transpose()?;
        Ok(())
    }

    fn read_dynamic(&self, range: Range64) -> Result<Dynamic, ElfError> {
        let table = self.read(range.start, range.bytes.min(MAX_DYNAMIC_BYTES))?;
        let mut dynamic = Dynamic::default();
        for entry in table.chunks_exact(16) {
            let (Some(tag), Some(value)) = (u64_at(entry, 0), u64_at(entry, 8)) else { continue };
            match tag {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => dynamic.symbols = value,
                elf::DT_STRTAB => dynamic.strings = value,
                elf::DT_STRSZ => dynamic.strings_bytes = value,
                elf::DT_HASH => dynamic.hash = value,
                elf::DT_GNU_HASH => dynamic.gnu_hash = value,
                elf::DT_JMPREL => dynamic.plt_relocations.start = value,
                elf::DT_PLTRELSZ => dynamic.plt_relocations.bytes = value,
                elf::DT_RELA => dynamic.relocations.start = value,
                elf::DT_RELASZ => dynamic.relocations.bytes = value,
                elf::DT_NEEDED => dynamic.needs_libraries = true,
                elf::DT_SONAME => dynamic.soname = Some(value),
                _ => {}
            }
        }
        Ok(dynamic)
    }

    /// A range of the file, fewer bytes at its end. All that is read of it comes by here, so that a file that leads from
    /// one large read to the next comes to an end.
    fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let available = self.file.identity().size_bytes.saturating_sub(offset).min(length);
        self.cost.set(self.cost.get().saturating_add(available).saturating_add(READ_COST));
        if self.is_too_dear() {
            return Err(io::Error::other("it takes too long to look through"));
        }
        self.file.read_at(offset, length)
    }

    /// Whether no more is read of it.
    pub fn is_too_dear(&self) -> bool {
        self.cost.get() > MAX_COST
    }

    /// The file that this is read from.
    pub fn identity(&self) -> FileIdentity {
        self.file.identity()
    }

    /// DT_SONAME, at most 256 bytes of it.
    pub fn soname(&self) -> Option<Vec<u8>> {
        let dynamic = self.dynamic?;
        let bytes = self.read_address(dynamic.strings.checked_add(dynamic.soname?)?, 256)?;
        Some(bytes.split(|byte| *byte == 0).next()?.to_vec())
    }

    /// Whether it is linked statically: it needs no library.
    pub fn is_static(&self) -> bool {
        self.dynamic.is_none_or(|dynamic| !dynamic.needs_libraries)
    }

    /// The GNU build id.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        self.note.iter().find_map(|range| {
            let notes = self.read(range.start, range.bytes.min(MAX_NOTE_BYTES)).ok()?;
            build_id_in(&notes)
        })
    }

    /// The file offset of an address in an executable segment.
    pub fn code_offset(&self, address: u64) -> Option<u64> {
        self.segments
            .iter()
            .filter(|segment| segment.executable)
            .find_map(|segment| segment.offset_of(address))
    }

    /// The address of a file offset in an executable segment.
    pub fn code_address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().filter(|segment| segment.executable).find_map(|segment| {
            let within = offset.checked_sub(segment.offset).filter(|within| *within < segment.file_bytes)?;
            segment.address.checked_add(within)
        })
    }

    /// Code bytes from an address on, cut at `length`, the segment's end and the file's end.
    pub fn code(&self, address: u64, length: u64) -> Option<Vec<u8>> {
        let segment = self
            .segments
            .iter()
            .find(|segment| segment.executable && segment.offset_of(address).is_some())?;
        let left = segment.file_bytes - (address - segment.address);
        let bytes = self.read(segment.offset_of(address)?, length.min(left)).ok()?;
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Bytes at an address of any segment; fewer where the segment or the file ends.
    pub(in crate::discover) fn read_address(&self, address: u64, length: u64) -> Option<Vec<u8>> {
        let segment = self.segments.iter().find(|segment| segment.offset_of(address).is_some())?;
        let left = segment.file_bytes - (address - segment.address);
        self.read(segment.offset_of(address)?, length.min(left)).ok()
    }

    /// File range and linked section of the first section of a type.
    fn section(&self, wanted: u32) -> Option<(Range<u64>, u64)> {
        let table = self.read(self.sections_at, self.sections * 64).ok()?;
        let header = table.chunks_exact(64).find(|header| u32_at(header, 4) == Some(wanted))?;
        let link = u64::from(u32_at(header, 40)?);
        section_range(header).map(|range| (range, link))
    }

    fn section_at(&self, index: u64) -> Option<Range<u64>> {
        let at = (index < self.sections).then(|| self.sections_at.checked_add(index * 64)).flatten()?;
        section_range(&self.read(at, 64).ok()?)
    }
}

impl Segment {
    fn offset_of(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address).filter(|within| *within < self.file_bytes)?;
        self.offset.checked_add(within)
    }
}

fn section_range(header: &[u8]) -> Option<Range<u64>> {
    let (offset, bytes) = (u64_at(header, 24)?, u64_at(header, 32)?);
    (u32_at(header, 4)? != elf::SHT_NOBITS).then_some(())?;
    Some(offset..offset.checked_add(bytes)?)
}

fn build_id_in(notes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = notes;
    loop {
        let (name, value, kind) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize, u32_at(rest, 8)?);
        let value_at = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let bytes = rest.get(value_at..value_at.checked_add(value)?)?;
        if kind == elf::NT_GNU_BUILD_ID && rest.get(12..12 + 4) == Some(b"GNU\0") && value <= 64 {
            return Some(bytes.to_vec());
        }
        rest = rest.get(value_at.checked_add(value.checked_next_multiple_of(4)?)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
