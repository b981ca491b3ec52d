//! The symbol table in `.gnu_debugdata`: distributions strip a program's full table and leave the names of its
//! functions in it, as an xz-compressed ELF file inside the program ("MiniDebugInfo", Fedora).
use std::{fs::File, io::Read};

use super::{
    elf::{Layout, Section, read_exact},
    image::memfd_with,
};

const MAX_PACKED_BYTES: u64 = 64 << 20;
const MAX_UNPACKED_BYTES: u64 = 256 << 20;
/// xz -9 takes 65 MiB.
const MAX_DECODER_BYTES: u64 = 100 << 20;

/// A private copy of the embedded file and its layout.
pub(super) fn find(file: &File, layout: &Layout) -> Option<(File, Layout)> {
    let section = layout.section(".gnu_debugdata")?;
    match unpack(file, section) {
        Ok(unpacked) => Layout::read(&unpacked).ok().map(|layout| (unpacked, layout)),
        Err(error) => {
            tracing::debug!(%error, "the symbols in .gnu_debugdata cannot be read");
            None
        }
    }
}

fn unpack(file: &File, section: &Section) -> std::io::Result<File> {
    let bytes = usize::try_from(section.size_bytes.min(MAX_PACKED_BYTES)).unwrap_or(0);
    let packed = read_exact(file, section.offset, bytes)?;
    let stream = liblzma::stream::Stream::new_stream_decoder(MAX_DECODER_BYTES, 0)?;
    let decoder = liblzma::read::XzDecoder::new_stream(packed.as_slice(), stream);
    let mut unpacked = Vec::new();
    decoder.take(MAX_UNPACKED_BYTES).read_to_end(&mut unpacked)?;
    memfd_with(&unpacked)
}
