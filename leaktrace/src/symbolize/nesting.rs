//! How deep the entries of `.debug_info` nest. blazesym's DWARF reader calls itself once for each inlined call
//! inside an inlined call; a crafted file could nest them until the stack of the reader, a root process, is used
//! up. Real programs stay below a hundred or two.
use std::{fs::File, io};

use gimli::{DebugAbbrev, DebugInfo, EndianSlice, LittleEndian};

use super::elf::{read_exact, u32_at, u64_at};

/// Levels that are still accepted: a reader's frames for them fit into a tenth of a thread's stack.
const MAX_LEVELS: isize = 500;

/// A header and nothing more: of version 4, with a length of 32 bits.
const MIN_UNIT_BYTES: u64 = 11;

/// Whether entries nest deeper than is safe to read. `info` and `abbreviations` are offset and size of the sections
/// in `file`. Units are read one at a time; where one is malformed, blazesym stops reading it at the same place.
pub(super) fn is_too_deep(file: &File, info: (u64, u64), abbreviations: (u64, u64)) -> io::Result<bool> {
    let size = |bytes: u64| usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let abbreviations = read_exact(file, abbreviations.0, size(abbreviations.1)?)?;
    let mut at = 0;
    while info.1.saturating_sub(at) >= MIN_UNIT_BYTES {
        let start = read_exact(file, info.0.saturating_add(at), 12.min(size(info.1 - at)?))?;
        let bytes = match u32_at(&start, 0) {
            u32::MAX => u64_at(&start, 4).saturating_add(12),
            short => u64::from(short) + 4,
        };
        if bytes < MIN_UNIT_BYTES {
            // A section of zeros has one such unit for each four bytes; blazesym stops at the first.
            return Ok(false);
        }
        let unit = read_exact(file, info.0.saturating_add(at), size(bytes.min(info.1 - at))?)?;
        if unit_is_too_deep(&unit, &abbreviations).unwrap_or(false) {
            return Ok(true);
        }
        at = at.saturating_add(bytes);
    }
    Ok(false)
}

fn unit_is_too_deep(unit: &[u8], abbreviations: &[u8]) -> gimli::Result<bool> {
    let info = DebugInfo::from(EndianSlice::new(unit, LittleEndian));
    let Some(header) = info.units().next()? else { return Ok(false) };
    let table = header.abbreviations(&DebugAbbrev::from(EndianSlice::new(abbreviations, LittleEndian)))?;
    let mut entries = header.entries_raw(&table, None)?;
    while !entries.is_empty() {
        if entries.next_depth() > MAX_LEVELS {
            return Ok(true);
        }
        if let Some(abbreviation) = entries.read_abbreviation()? {
            entries.skip_attributes(abbreviation.attributes())?;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Instant};

    use super::{super::elf::Layout, *};

    /// A unit of DWARF 5 whose entries, each a nested inlined call without attributes, go `levels` deep.
    fn crafted(levels: usize) -> File {
        // Abbreviations: 1 is a compile unit with children, 2 an inlined call with children.
        let abbreviations = [1, 0x11, 1, 0, 0, 2, 0x1d, 1, 0, 0, 0];
        let mut body = vec![5, 0, 1, 8, 0, 0, 0, 0, 1];
        body.resize(body.len() + levels, 2);
        let mut info = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        info.append(&mut body);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&abbreviations).unwrap();
        file.write_all(&info).unwrap();
        file
    }

    fn check(file: &File) -> bool {
        let bytes = file.metadata().unwrap().len();
        is_too_deep(file, (11, bytes - 11), (0, 11)).unwrap()
    }

    #[test]
    fn a_crafted_tower_of_inlined_calls_is_refused() {
        assert!(check(&crafted(100_000)));
        assert!(check(&crafted(501)));
        assert!(!check(&crafted(100)));
    }

    #[test]
    fn this_program_is_accepted() {
        let file = File::open("/proc/self/exe").unwrap();
        let layout = Layout::read(&file).unwrap();
        let place = |name| layout.section(name).map(|section| (section.offset, section.size_bytes)).unwrap();
        let begun = Instant::now();
        assert!(!is_too_deep(&file, place(".debug_info"), place(".debug_abbrev")).unwrap());
        println!("{} bytes of .debug_info: {:?}", place(".debug_info").1, begun.elapsed());
    }
}
