//! The few facts of an ELF file that unwinding needs: its loaded segments, where the unwind information lies, its
//! build id, and the load bias of a mapping. What the unwind information says is left to `cfi`.
//!
//! Only the headers are read. Every count and length in them is bounded before it is believed.
use std::{fmt, io};

use crate::unwind::source::Source;

/// Program headers read at the most; a real file has about a dozen.
const MAX_SEGMENTS: u16 = 256;
/// Section headers read at the most. Files with more have no sections for us, but still program headers.
const MAX_SECTIONS: u16 = 4096;
/// Bytes read of the table of section names.
const MAX_NAMES_BYTES: u64 = 1 << 20;
/// Bytes read of one note segment, where the build id is.
const MAX_NOTE_BYTES: u64 = 1 << 16;
/// Bytes of a build id: SHA-1 has 20, the longest in use 32.
const MAX_BUILD_ID_BYTES: usize = 64;
/// Mappings start at multiples of this, whatever the page size of the segment.
const PAGE_BYTES: u64 = 4096;

const FILE_HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const SECTION_HEADER_BYTES: u16 = 64;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;
/// Symbol tables read at the most; a file has two.
const MAX_SYMBOL_TABLES: usize = 4;
/// Bytes read of one of them.
const MAX_SYMBOLS_BYTES: u64 = 16 << 20;
const SYMBOL_BYTES: usize = 24;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const SHF_COMPRESSED: u64 = 1 << 11;
const NT_GNU_BUILD_ID: u32 = 3;
/// Go's build id (cmd/internal/buildid).
const NT_GO_BUILD_ID: u32 = 4;

/// Why a file yields no unwind table.
#[derive(Debug)]
pub enum ElfError {
    /// The file could not be read.
    Read(io::Error),
    /// Not an ELF file, or its headers lie outside of it.
    NotElf,
    /// An ELF file, but not 64-bit little-endian x86-64.
    OtherMachine,
}

impl fmt::Display for ElfError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::Read(error) => write!(out, "cannot be read: {error}"),
            ElfError::NotElf => out.write_str("not an ELF file"),
            ElfError::OtherMachine => out.write_str("not built for x86-64"),
        }
    }
}

impl std::error::Error for ElfError {}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { ElfError::NotElf } else { ElfError::Read(error) }
    }
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address, before any load bias.
    pub address: u64,
    /// Bytes of it that lie in the file.
    pub file_bytes: u64,
    /// Where they lie.
    pub file_offset: u64,
    /// Whether it is loaded executable.
    pub executable: bool,
}

impl Segment {
    /// First address after the bytes that lie in the file.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.file_bytes)
    }

    /// Whether a mapping at this offset of the file is (a part of) this segment.
    fn is_mapped_at(&self, file_offset: u64) -> bool {
        let first = self.file_offset & !(PAGE_BYTES - 1);
        file_offset >= first && file_offset < self.file_offset.saturating_add(self.file_bytes.max(1))
    }
}

/// A range of the file and the address it is loaded at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First address, before any load bias.
    pub address: u64,
    /// Where it lies in the file.
    pub file_offset: u64,
    /// How long it is there.
    pub file_bytes: u64,
}

/// How a section says that it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// By SHF_COMPRESSED and the header that the ELF specification gives it.
    Elf,
    /// By a name that begins with `.z`, and the header of old GNU tools.
    Gnu,
}

/// What unwinding needs to know of an ELF file.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// Where a program begins.
    pub entry: u64,
    /// The PT_LOAD segments, in file order.
    pub segments: Vec<Segment>,
    /// `.eh_frame`.
    pub eh_frame: Option<Section>,
    /// `.debug_frame`, where it is not compressed.
    pub debug_frame: Option<Section>,
    /// The PT_GNU_EH_FRAME segment: the search table that survives stripping of the section headers.
    pub eh_frame_header: Option<Section>,
    /// `.symtab` and `.dynsym`.
    pub symbols: Vec<Section>,
    /// `.text`: what text-relative pointers refer to.
    pub text: Option<Section>,
    /// `.got`: what data-relative pointers refer to.
    pub got: Option<Section>,
    /// `.debug_frame` where it is compressed.
    pub packed_debug_frame: Option<(Section, Packing)>,
    /// The GNU build id; empty where there is none.
    pub build_id: Vec<u8>,
    /// Whether it holds code that the Go compiler made.
    pub is_go: bool,
}

impl Elf {
    /// Reads the headers. Section headers that are missing or damaged are no error: the program headers are
    /// what the kernel loads by.
    pub fn read(source: &Source<'_>) -> Result<Elf, ElfError> {
        let header = source.read(0, FILE_HEADER_BYTES)?;
        if header.get(..4) != Some(b"\x7fELF".as_slice()) {
            return Err(ElfError::NotElf);
        }
        // e_ident: class 2 is 64-bit, data 1 is little-endian.
        if header.get(4..6) != Some([2, 1].as_slice()) || u16_at(&header, 18) != Some(EM_X86_64) {
            return Err(ElfError::OtherMachine);
        }
        let entry = u64_at(&header, 24).ok_or(ElfError::NotElf)?;
        let mut elf = Elf { entry, ..Elf::default() };
        elf.read_program_headers(source, &header)?;
        // Without section headers, PT_GNU_EH_FRAME remains.
        let _ = elf.read_section_headers(source, &header);
        Ok(elf)
    }

    /// The load bias of an executable mapping, so that address − bias is an address in the file: taken from
    /// the *executable* segment at this offset. The segment before may share the page (LLD packs them so), and
    /// its bias differs by that page.
    pub fn bias(&self, mapping_start: u64, file_offset: u64) -> Option<u64> {
        let mut candidates = self.segments.iter().rev().filter(|segment| segment.is_mapped_at(file_offset));
        let nearest = candidates.clone().next();
        let segment = candidates.find(|segment| segment.executable).or(nearest)?;
        let address = file_offset.wrapping_sub(segment.file_offset).wrapping_add(segment.address);
        Some(mapping_start.wrapping_sub(address))
    }

    /// Where the byte at `address` lies in the file, and how many bytes of its segment follow from there on.
    pub fn file_range_at(&self, address: u64) -> Option<(u64, u64)> {
        let segment = self.segments.iter().find(|s| s.address <= address && address < s.end())?;
        let into = address - segment.address;
        Some((segment.file_offset.checked_add(into)?, segment.file_bytes - into))
    }

    /// Where the file's functions begin, as far as its symbols say.
    pub fn function_starts(&self, source: &Source<'_>) -> Vec<u64> {
        let mut starts = Vec::new();
        for section in &self.symbols {
            let bytes = section.file_bytes.min(MAX_SYMBOLS_BYTES);
            let Ok(table) = source.read(section.file_offset, bytes) else { continue };
            let entries = table.chunks_exact(SYMBOL_BYTES);
            let is_function = |entry: &&[u8]| {
                entry.get(4).is_some_and(|info| matches!(info & 0xf, STT_FUNC | STT_GNU_IFUNC))
            };
            starts.extend(entries.filter(is_function).filter_map(|entry| u64_at(entry, 8)));
        }
        starts
    }

    fn read_program_headers(&mut self, source: &Source<'_>, header: &[u8]) -> Result<(), ElfError> {
        let offset = u64_at(header, 32).ok_or(ElfError::NotElf)?;
        let size = u16_at(header, 54).ok_or(ElfError::NotElf)?;
        let count = u16_at(header, 56).ok_or(ElfError::NotElf)?.min(MAX_SEGMENTS);
        if size != PROGRAM_HEADER_BYTES {
            return Err(ElfError::NotElf);
        }
        let table = source.read(offset, u64::from(count) * u64::from(size))?;
        for entry in table.chunks_exact(usize::from(size)) {
            self.add_program_header(source, entry).ok_or(ElfError::NotElf)?;
        }
        Ok(())
    }

    fn add_program_header(&mut self, source: &Source<'_>, entry: &[u8]) -> Option<()> {
        let (kind, flags) = (u32_at(entry, 0)?, u32_at(entry, 4)?);
        let (file_offset, address, file_bytes) = (u64_at(entry, 8)?, u64_at(entry, 16)?, u64_at(entry, 32)?);
        match kind {
            PT_LOAD => {
                let executable = flags & PF_X != 0;
                self.segments.push(Segment { address, file_bytes, file_offset, executable });
            }
            PT_GNU_EH_FRAME => self.eh_frame_header = Some(Section { address, file_offset, file_bytes }),
            PT_NOTE if file_bytes <= MAX_NOTE_BYTES => {
                if let Ok(notes) = source.read(file_offset, file_bytes) {
                    self.add_notes(&notes);
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Notes: name size, descriptor size, type, name, descriptor, the two last padded to 4 bytes.
    fn add_notes(&mut self, mut notes: &[u8]) -> Option<()> {
        loop {
            let (name_bytes, id_bytes) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize);
            let kind = u32_at(notes, 8)?;
            let id_at = 12usize.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
            let id_end = id_at.checked_add(id_bytes)?;
            match (kind, notes.get(12..16)?) {
                (NT_GNU_BUILD_ID, b"GNU\0") if self.build_id.is_empty() => {
                    let id = notes.get(id_at..id_end).filter(|id| id.len() <= MAX_BUILD_ID_BYTES);
                    self.build_id = id.map(<[u8]>::to_vec).unwrap_or_default();
                }
                (NT_GO_BUILD_ID, b"Go\0\0") => self.is_go = true,
                _ => {}
            }
            notes = notes.get(id_end.checked_next_multiple_of(4)?..)?;
        }
    }

    fn read_section_headers(&mut self, source: &Source<'_>, header: &[u8]) -> Option<()> {
        let offset = u64_at(header, 40)?;
        let (size, count, names_index) = (u16_at(header, 58)?, u16_at(header, 60)?, u16_at(header, 62)?);
        if size != SECTION_HEADER_BYTES || count == 0 || count > MAX_SECTIONS {
            return None;
        }
        let table = source.read(offset, u64::from(count) * u64::from(size)).ok()?;
        let entries = || table.chunks_exact(usize::from(size));
        let names = entries().nth(usize::from(names_index))?;
        let names = source.read(u64_at(names, 24)?, u64_at(names, 32)?.min(MAX_NAMES_BYTES)).ok()?;
        for entry in entries() {
            self.add_section_header(entry, &names);
        }
        Some(())
    }

    fn add_section_header(&mut self, entry: &[u8], names: &[u8]) -> Option<()> {
        let name = names.get(u32_at(entry, 0)? as usize..)?;
        let section = Section {
            address: u64_at(entry, 16)?,
            file_offset: u64_at(entry, 24)?,
            file_bytes: u64_at(entry, 32)?,
        };
        let kind = u32_at(entry, 4)?;
        if kind == SHT_NOBITS {
            return None;
        }
        if matches!(kind, SHT_SYMTAB | SHT_DYNSYM) && self.symbols.len() < MAX_SYMBOL_TABLES {
            self.symbols.push(section);
            return Some(());
        }
        let is_compressed = u64_at(entry, 8)? & SHF_COMPRESSED != 0;
        let is_named = |wanted: &[u8]| name.strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0));
        if is_named(b".eh_frame") && !is_compressed {
            self.eh_frame = Some(section);
        } else if is_named(b".debug_frame") && !is_compressed {
            self.debug_frame = Some(section);
        } else if is_named(b".debug_frame") {
            self.packed_debug_frame = Some((section, Packing::Elf));
        } else if is_named(b".zdebug_frame") {
            self.packed_debug_frame = Some((section, Packing::Gnu));
        } else if is_named(b".gopclntab") {
            self.is_go = true;
        } else if is_named(b".text") {
            self.text = Some(section);
        } else if is_named(b".got") {
            self.got = Some(section);
        }
        Some(())
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests;
