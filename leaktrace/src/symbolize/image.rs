//! A private copy of the parts of an ELF file that blazesym needs.
//!
//! blazesym maps the files it reads. A target can truncate or rewrite its own files at any time, and the mapping's
//! reader, a root process, would die of SIGBUS or see data change under its checks. So symbol tables and the
//! `.debug_` sections that are used are copied into a sealed memfd with pread, up to a bound, and blazesym gets
//! that. On the way, compressed sections are unpacked (to no more than the size they declare, within the same
//! bound) and every other section loses its name: links to other files (`.gnu_debuglink`, `.debug_sup`) could otherwise
//! make blazesym open a path that the target chose. The one link that stays, `.gnu_debugaltlink`, is rewritten to
//! lead to another such copy. Text and data are not copied: a
//! stripped 150 MB library costs the few megabytes of its dynamic symbols, and a copy lives only as long as
//! addresses are being resolved. Debug information that nests too deep to be read safely is left out (`nesting`).
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
};

use super::{
    elf::{Layout, SECTION_BYTES, Section, invalid, read_exact, u32_at, u64_at},
    nesting,
};

const SHT_NULL: u32 = 0;
const SHT_SYMTAB: u32 = 2;
const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;
const SHF_COMPRESSED: u64 = 0x800;
const ELFCOMPRESS_ZLIB: u32 = 1;
const HEADER_BYTES: u64 = 64;
const DEBUG_SECTIONS: [&str; 11] = [
    ".debug_abbrev",
    ".debug_addr",
    ".debug_aranges",
    ".debug_info",
    ".debug_line",
    ".debug_line_str",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_str",
    ".debug_str_offsets",
    ".debug_types",
];

/// The directory of all copies: the only one that blazesym may look for other files in.
pub(super) const DIRECTORY: &str = "/proc/self/fd";

/// The copy.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    pub(super) bytes: u64,
    /// Whether it has a full symbol table or debug information, not only dynamic symbols.
    pub(super) complete: bool,
    /// Debug information was left out because it did not fit the bound.
    pub(super) cut: bool,
}

/// Where the parts of a file's debug information are that dwz moved out of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supplement<'a> {
    /// Their copy.
    pub(super) image: &'a Image,
    /// Its build id.
    pub(super) build_id: &'a [u8],
}

impl Image {
    /// Copies what is needed of `file`, at most `limit_bytes`; without debug information if only that fits, or if `debug`
    /// does not ask for it.
    pub(super) fn copy(
        file: &File,
        layout: &Layout,
        supplement: Option<Supplement<'_>>,
        limit_bytes: u64,
        debug: bool,
    ) -> io::Result<Image> {
        match Image::copy_sections(file, layout, supplement, limit_bytes, debug) {
            Err(error) if debug && error.kind() == io::ErrorKind::FileTooLarge => {
                let mut image = Image::copy_sections(file, layout, None, limit_bytes, false)?;
                image.cut = true;
                Ok(image)
            }
            other => other,
        }
    }

    /// A path that opens the copy while it lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(self.file.as_raw_fd().to_string())
    }

    fn copy_sections(
        file: &File,
        layout: &Layout,
        supplement: Option<Supplement<'_>>,
        limit_bytes: u64,
        debug: bool,
    ) -> io::Result<Image> {
        let mut copy = Copy { out: memfd()?, at: HEADER_BYTES, limit_bytes };
        let wanted = wanted(layout, debug);
        let table_at = copy.reserve((layout.sections.len() * SECTION_BYTES) as u64)?;
        let mut table = Vec::with_capacity(layout.sections.len() * SECTION_BYTES);
        let mut complete = false;
        let (mut info, mut abbreviations) = (None, (0, 0));
        for (section, wanted) in layout.sections.iter().zip(&wanted) {
            let mut raw = section.raw;
            let link = supplement.filter(|_| section.name == ".gnu_debugaltlink");
            if *wanted || link.is_some() {
                let (offset, bytes) = match link {
                    Some(supplement) => copy.link(supplement)?,
                    None => copy.section(file, section)?,
                };
                put(&mut raw, 8, &(section.flags & !SHF_COMPRESSED).to_le_bytes());
                put(&mut raw, 24, &offset.to_le_bytes());
                put(&mut raw, 32, &bytes.to_le_bytes());
                complete |= section.kind == SHT_SYMTAB || section.name == ".debug_info";
                match section.name.as_str() {
                    // Of several, only the first is found by its name.
                    ".debug_info" if info.is_none() => info = Some((offset, bytes)),
                    ".debug_abbrev" if abbreviations == (0, 0) => abbreviations = (offset, bytes),
                    _ => {}
                }
            } else if section.kind != SHT_NULL {
                put(&mut raw, 0, &0u32.to_le_bytes());
                put(&mut raw, 4, &SHT_NOBITS.to_le_bytes());
            }
            table.extend_from_slice(&raw);
        }
        if let Some(info) = info
            && nesting::is_too_deep(&copy.out, info, abbreviations)?
        {
            // As with debug information that is too large: the symbols remain.
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        copy.out.write_all_at(&table, table_at)?;
        copy.out.write_all_at(&header(layout, table_at)?, 0)?;
        seal(&copy.out)?;
        Ok(Image { file: copy.out, bytes: copy.at, complete, cut: false })
    }
}

/// Which sections are copied: symbol tables with their strings, section names, and debug information.
fn wanted(layout: &Layout, debug: bool) -> Vec<bool> {
    let mut wanted: Vec<bool> = layout
        .sections
        .iter()
        .map(|section| {
            matches!(section.kind, SHT_SYMTAB | SHT_DYNSYM)
                || (section.kind == SHT_NOTE && section.name == ".note.gnu.build-id")
                || (debug && section.kind != SHT_NOBITS && DEBUG_SECTIONS.contains(&section.name.as_str()))
        })
        .collect();
    let strings: Vec<usize> = layout
        .sections
        .iter()
        .filter(|section| matches!(section.kind, SHT_SYMTAB | SHT_DYNSYM))
        .map(|section| section.link as usize)
        .chain([layout.names_index])
        .collect();
    for index in strings {
        if let Some(wanted) = wanted.get_mut(index)
            && layout.sections.get(index).is_some_and(|section| section.kind == 3)
        {
            *wanted = true;
        }
    }
    wanted
}

struct Copy {
    out: File,
    at: u64,
    limit_bytes: u64,
}

impl Copy {
    fn reserve(&mut self, bytes: u64) -> io::Result<u64> {
        let offset = self.at.next_multiple_of(16);
        let end = offset.checked_add(bytes).filter(|end| *end <= self.limit_bytes);
        self.at = end.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(offset)
    }

    /// A link to the copy of a supplement, and its size.
    fn link(&mut self, supplement: Supplement<'_>) -> io::Result<(u64, u64)> {
        // Relative to the directory of copies.
        let mut link = format!("{}\0", supplement.image.file.as_raw_fd()).into_bytes();
        link.extend_from_slice(supplement.build_id);
        let bytes = link.len() as u64;
        let offset = self.reserve(bytes)?;
        self.out.write_all_at(&link, offset)?;
        Ok((offset, bytes))
    }

    /// Where the section lies in the copy, and its size there.
    fn section(&mut self, file: &File, section: &Section) -> io::Result<(u64, u64)> {
        if section.flags & SHF_COMPRESSED != 0 {
            return self.unpack(file, section);
        }
        let offset = self.reserve(section.size_bytes)?;
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        while done < section.size_bytes {
            let chunk = usize::try_from(section.size_bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let chunk = buffer.get_mut(..chunk).unwrap_or_default();
            file.read_exact_at(
                chunk,
                section.offset.checked_add(done).ok_or_else(|| invalid("bad offset"))?,
            )?;
            self.out.write_all_at(chunk, offset + done)?;
            done += chunk.len() as u64;
        }
        Ok((offset, section.size_bytes))
    }

    fn unpack(&mut self, file: &File, section: &Section) -> io::Result<(u64, u64)> {
        let header = read_exact(file, section.offset, 24)?;
        if u32_at(&header, 0) != ELFCOMPRESS_ZLIB {
            // Without its content the section is useless, but the rest of the file is not.
            return Ok((self.reserve(0)?, 0));
        }
        let bytes = u64_at(&header, 8);
        let offset = self.reserve(bytes)?;
        self.out.seek(SeekFrom::Start(offset))?;
        let packed = Range {
            file,
            at: section.offset.saturating_add(24),
            left: section.size_bytes.saturating_sub(24),
        };
        let mut unpacked = flate2::read::ZlibDecoder::new(packed).take(bytes);
        let copied = io::copy(&mut unpacked, &mut self.out)?;
        if copied != bytes {
            return Err(invalid("a compressed section is shorter than it says"));
        }
        Ok((offset, bytes))
    }
}

struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// The file's header with the new place of the section headers and without segments.
fn header(layout: &Layout, table_at: u64) -> io::Result<Vec<u8>> {
    let mut header = layout.header.clone();
    if header.len() as u64 != HEADER_BYTES {
        return Err(invalid("no header"));
    }
    put(&mut header, 32, &0u64.to_le_bytes());
    put(&mut header, 40, &table_at.to_le_bytes());
    put(&mut header, 56, &0u16.to_le_bytes());
    Ok(header)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// An anonymous file.
pub(super) fn memfd() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string; the call touches no other memory of ours.
    let fd =
        unsafe { libc::memfd_create(c"leaktrace".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: fcntl on a descriptor we own, with an integer argument.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An anonymous file with this content.
pub(super) fn memfd_with(content: &[u8]) -> io::Result<File> {
    let mut file = memfd()?;
    file.write_all(content)?;
    seal(&file)?;
    Ok(file)
}
