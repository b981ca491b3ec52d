//! Sections that lie compressed in their file: by SHF_COMPRESSED, with zlib or zstd, or as old GNU tools did it. They
//! are unpacked to exactly what they declare, and only where that is not too much: files are hostile.
use std::{fmt, io, io::Read};

use super::elf::Packing;

/// `Elf64_Chdr`: type, a reserved word, the size and the alignment of what is packed.
const ELF_HEADER_BYTES: usize = 24;
/// "ZLIB" and the size, most significant byte first.
const GNU_HEADER_BYTES: usize = 12;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;

/// Why a section stays packed.
#[derive(Debug)]
pub(super) enum PackedError {
    /// Its header is cut off or not of its kind.
    NoHeader,
    /// Compressed in a way that is not known: its number in ELF.
    Method(u32),
    /// What it declares is above what is allowed.
    TooLarge,
    /// It holds another number of bytes than it declares.
    OtherSize,
    /// The compressed bytes are damaged.
    Damaged(io::Error),
}

impl fmt::Display for PackedError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackedError::NoHeader => out.write_str("its compressed .debug_frame has no header"),
            PackedError::Method(number) => {
                write!(out, "its .debug_frame is compressed by method {number}, which is not known")
            }
            PackedError::TooLarge => out.write_str("its compressed .debug_frame is larger than is unpacked"),
            PackedError::OtherSize => {
                out.write_str("its compressed .debug_frame has another size than it says")
            }
            PackedError::Damaged(error) => write!(out, "its compressed .debug_frame is damaged: {error}"),
        }
    }
}

/// Unpacks a section to no more than `most_bytes`.
pub(super) fn unpack(section: &[u8], packing: Packing, most_bytes: u64) -> Result<Vec<u8>, PackedError> {
    let (method, size, packed) = header(section, packing).ok_or(PackedError::NoHeader)?;
    if size > most_bytes {
        return Err(PackedError::TooLarge);
    }
    match method {
        ELFCOMPRESS_ZLIB => exactly(size, flate2::read::ZlibDecoder::new(packed)),
        ELFCOMPRESS_ZSTD => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed)
                .map_err(|error| PackedError::Damaged(io::Error::other(error.to_string())))?;
            exactly(size, decoder)
        }
        other => Err(PackedError::Method(other)),
    }
}

/// The method, the size of what is packed, and what is packed.
fn header(section: &[u8], packing: Packing) -> Option<(u32, u64, &[u8])> {
    match packing {
        Packing::Elf => {
            let (header, packed) = section.split_first_chunk::<ELF_HEADER_BYTES>()?;
            let method = u32::from_le_bytes(*header.first_chunk()?);
            let size = u64::from_le_bytes(*header.get(8..)?.first_chunk()?);
            Some((method, size, packed))
        }
        Packing::Gnu => {
            let (header, packed) = section.split_first_chunk::<GNU_HEADER_BYTES>()?;
            let size = u64::from_be_bytes(*header.strip_prefix(b"ZLIB")?.first_chunk()?);
            Some((ELFCOMPRESS_ZLIB, size, packed))
        }
    }
}

/// Grows with what there is, not with what is declared; one byte too many is enough to see that.
fn exactly(size: u64, unpacked: impl Read) -> Result<Vec<u8>, PackedError> {
    let mut bytes = Vec::new();
    unpacked.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(PackedError::Damaged)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(PackedError::OtherSize) }
}

/// A section as [`unpack`] takes it, by zlib or, in ELF only, by zstd.
#[cfg(test)]
pub(super) fn pack(content: &[u8], packing: Packing, zstd: bool) -> Vec<u8> {
    let packed = if zstd {
        ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
    } else {
        let mut encoder = flate2::read::ZlibEncoder::new(content, flate2::Compression::default());
        let mut packed = Vec::new();
        encoder.read_to_end(&mut packed).unwrap();
        packed
    };
    let size = content.len() as u64;
    let mut section = match packing {
        Packing::Elf => {
            let method = if zstd { ELFCOMPRESS_ZSTD } else { ELFCOMPRESS_ZLIB };
            [&method.to_le_bytes()[..], &[0; 4], &size.to_le_bytes(), &8u64.to_le_bytes()].concat()
        }
        Packing::Gnu => [&b"ZLIB"[..], &size.to_be_bytes()].concat(),
    };
    section.extend(packed);
    section
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WAYS: [(Packing, bool); 3] = [(Packing::Elf, false), (Packing::Elf, true), (Packing::Gnu, false)];

    #[test]
    fn what_was_packed_is_unpacked_whatever_the_way() {
        let content: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
        for (packing, zstd) in WAYS {
            for content in [&content[..], &[]] {
                let section = pack(content, packing, zstd);
                assert_eq!(unpack(&section, packing, 1 << 20).unwrap(), content, "{packing:?} {zstd}");
            }
        }
    }

    #[test]
    fn more_than_is_allowed_is_refused_before_anything_is_unpacked() {
        for (packing, zstd) in WAYS {
            let section = pack(&[0; 5000], packing, zstd);
            assert!(matches!(unpack(&section, packing, 4999), Err(PackedError::TooLarge)), "{packing:?}");
        }
    }

    /// Ten megabytes behind a header that says 100 bytes: not more than one byte too many is kept.
    #[test]
    fn a_section_that_holds_more_or_less_than_it_says_is_refused() {
        for (packing, zstd) in WAYS {
            let section = pack(&vec![0; 10 << 20], packing, zstd);
            for said in [100_u64, (10 << 20) + 1] {
                let mut section = section.clone();
                match packing {
                    Packing::Elf => section[8..16].copy_from_slice(&said.to_le_bytes()),
                    Packing::Gnu => section[4..12].copy_from_slice(&said.to_be_bytes()),
                }
                let unpacked = unpack(&section, packing, 1 << 30);
                assert!(matches!(unpacked, Err(PackedError::OtherSize)), "{packing:?} {said}");
            }
        }
    }

    #[test]
    fn a_method_that_is_not_known_and_a_header_that_is_cut_off_are_named() {
        let mut section = pack(b"abc", Packing::Elf, false);
        section[0] = 9;
        let error = unpack(&section, Packing::Elf, 100).unwrap_err();
        assert_eq!(error.to_string(), "its .debug_frame is compressed by method 9, which is not known");
        for (packing, _) in WAYS {
            assert!(matches!(unpack(&[0; 11], packing, 100), Err(PackedError::NoHeader)));
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics_and_never_yields_another_size(
            way in 0..WAYS.len(),
            cut in 0..400_usize,
            changes in proptest::collection::vec((0..400_usize, any::<u8>()), 0..8),
        ) {
            let (packing, zstd) = WAYS[way];
            let content: Vec<u8> = (0..2000_u32).map(|number| (number * number / 7) as u8).collect();
            let mut section = pack(&content, packing, zstd);
            section.truncate(section.len().saturating_sub(cut));
            for (at, value) in changes {
                if let Some(byte) = section.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(unpacked) = unpack(&section, packing, 1 << 20) {
                prop_assert_eq!(header(&section, packing).unwrap().1, unpacked.len() as u64);
            }
        }
    }
}
