//! Takes the debug information out of the kernel object: nothing that loads it reads any, and it is four fifths of it. Type
//! information (.BTF, .BTF.ext) stays. Sections keep their numbers, because symbols and relocations refer to them.

/// Bytes of a section's header.
const HEADER: usize = 64;
/// Where things stand in the header of a 64-bit ELF file and in that of a section.
const SECTIONS_AT: usize = 0x28;
const SECTION_COUNT_AT: usize = 0x3c;
const NAMES_AT: usize = 0x3e;
const NAME_AT: usize = 0;
const KIND_AT: usize = 4;
const OFFSET_AT: usize = 24;
const SIZE_AT: usize = 32;
const ALIGNMENT_AT: usize = 48;
/// The kind of a section without contents in the file.
const NO_BITS: u64 = 8;

/// The object without debug information; `None` when it is not what the kernel toolchain makes.
pub(crate) fn without_debug_information(object: &[u8]) -> Option<Vec<u8>> {
    let at = usize::try_from(number(object, SECTIONS_AT, 8)?).ok()?;
    let count = number(object, SECTION_COUNT_AT, 2)? as usize;
    let headers = object.get(at..at.checked_add(count.checked_mul(HEADER)?)?)?;
    let headers: Vec<&[u8]> = headers.chunks_exact(HEADER).collect();
    let names = contents(object, headers.get(number(object, NAMES_AT, 2)? as usize)?)?;
    let mut slim = object.get(..HEADER)?.to_vec();
    let mut kept = Vec::new();
    for header in headers {
        let name = names.get(number(header, NAME_AT, 4)? as usize..)?;
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            kept.extend([0; HEADER]);
            continue;
        }
        let alignment = usize::try_from(number(header, ALIGNMENT_AT, 8)?).ok()?.max(1);
        slim.resize(slim.len().next_multiple_of(alignment), 0);
        let mut header = header.to_vec();
        let offset = slim.len() as u64;
        slim.extend(contents(object, &header)?);
        header.get_mut(OFFSET_AT..OFFSET_AT + 8)?.copy_from_slice(&offset.to_le_bytes());
        kept.extend(header);
    }
    slim.resize(slim.len().next_multiple_of(8), 0);
    let at = slim.len() as u64;
    slim.get_mut(SECTIONS_AT..SECTIONS_AT + 8)?.copy_from_slice(&at.to_le_bytes());
    slim.extend(kept);
    Some(slim)
}

fn contents<'a>(object: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    if number(header, KIND_AT, 4)? == NO_BITS {
        return Some(&[]);
    }
    let offset = usize::try_from(number(header, OFFSET_AT, 8)?).ok()?;
    let size = usize::try_from(number(header, SIZE_AT, 8)?).ok()?;
    object.get(offset..offset.checked_add(size)?)
}

/// The little-endian number in `length` bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..length)?.copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    Some(u64::from_le_bytes(whole))
}
