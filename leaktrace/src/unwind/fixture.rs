//! For tests: small ELF files with call frame information, put together byte by byte.
use super::elf::Packing;

/// `DW_CFA_def_cfa rsp, 8; DW_CFA_offset rip, 1`: how every function begins.
pub(super) const AT_ENTRY: &[u8] = &[0x0c, 7, 8, 0x90, 1];
/// Where the text of a [`Fixture`] is loaded.
pub(super) const TEXT: u64 = 0x40_0000;

/// Call frame information under construction.
#[derive(Clone, Default)]
pub(super) struct Cfi {
    pub(super) bytes: Vec<u8>,
    is_debug_frame: bool,
    cie: usize,
}

impl Cfi {
    /// `.eh_frame`, or `.debug_frame`, with an ordinary CIE.
    pub(super) fn new(is_debug_frame: bool) -> Self {
        let mut cfi = Cfi { is_debug_frame, ..Cfi::default() };
        cfi.cie(if is_debug_frame { "" } else { "zR" }, AT_ENTRY);
        cfi
    }

    /// Adds a CIE, to which the FDEs after it refer.
    pub(super) fn cie(&mut self, augmentation: &str, instructions: &[u8]) -> &mut Self {
        self.cie = self.bytes.len();
        let id = if self.is_debug_frame { u32::MAX } else { 0 };
        // Version 1, code alignment 1, data alignment -8, return address in register 16.
        let mut body = [&id.to_le_bytes(), &[1][..], augmentation.as_bytes(), &[0, 1, 0x78, 16]].concat();
        if augmentation.starts_with('z') {
            // One byte of augmentation data: FDEs hold absolute addresses.
            body.extend([1, 0]);
        }
        body.extend(instructions);
        self.entry(body)
    }

    /// Adds an FDE for `length` bytes from `start` on.
    pub(super) fn fde(&mut self, start: u64, length: u64, instructions: &[u8]) -> &mut Self {
        let to_cie = if self.is_debug_frame { self.cie } else { self.bytes.len() + 4 - self.cie };
        let mut body = (to_cie as u32).to_le_bytes().to_vec();
        body.extend(start.to_le_bytes());
        body.extend(length.to_le_bytes());
        if !self.is_debug_frame {
            body.push(0);
        }
        body.extend(instructions);
        self.entry(body)
    }

    fn entry(&mut self, mut body: Vec<u8>) -> &mut Self {
        body.resize(body.len().next_multiple_of(4), 0);
        self.bytes.extend((body.len() as u32).to_le_bytes());
        self.bytes.extend(body);
        self
    }
}

/// An ELF file.
#[derive(Clone, Default)]
pub(super) struct Fixture {
    /// What the executable segment at [`TEXT`] holds.
    pub(super) text: Vec<u8>,
    /// `.eh_frame`, loaded at 0.
    pub(super) eh_frame: Vec<u8>,
    pub(super) debug_frame: Vec<u8>,
    /// A PT_GNU_EH_FRAME segment instead of section headers.
    pub(super) is_stripped: bool,
    /// How `.debug_frame` is said to be compressed, if it is.
    pub(super) packing: Option<Packing>,
}

impl Fixture {
    /// A file with `.eh_frame` and a megabyte of text.
    pub(super) fn new(eh_frame: &Cfi) -> Self {
        Fixture { text: vec![0x90; 1 << 20], eh_frame: eh_frame.bytes.clone(), ..Fixture::default() }
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.eh_frame\0.debug_frame\0.names\0.zdebug_frame\0";
        let header = self.search_table();
        let parts: [&[u8]; 5] = [&self.text, &self.eh_frame, &self.debug_frame, &header, NAMES];
        let mut file = vec![0; 64 + 3 * 56];
        let mut at = Vec::new();
        for part in parts {
            at.push(file.len() as u64);
            file.extend(part);
        }
        let [text, eh_frame, debug_frame, search, names] = at[..] else { unreachable!() };
        let load = |file_offset, address, bytes, flags| program_header(1, flags, file_offset, address, bytes);
        let mut headers = load(text, TEXT, self.text.len(), 5);
        headers.extend(load(eh_frame, 0, self.eh_frame.len(), 4));
        let kind = if self.is_stripped { 0x6474_e550 } else { 0 };
        headers.extend(program_header(kind, 4, search, 0x10_0000, header.len()));
        file[64..64 + headers.len()].copy_from_slice(&headers);
        let sections = file.len() as u64;
        let (debug_name, flags) = match self.packing {
            None => (11, 0),
            Some(Packing::Elf) => (11, 1 << 11),
            Some(Packing::Gnu) => (31, 0),
        };
        for (name, flags, file_offset, part) in [
            (0, 0, 0, &[][..]),
            (1, 2, eh_frame, &self.eh_frame),
            (debug_name, flags, debug_frame, &self.debug_frame),
            (24, 0, names, NAMES),
        ] {
            file.extend(section_header(name, flags, file_offset, part.len()));
        }
        let count = if self.is_stripped { 0 } else { 4 };
        let file_header = file_header(sections, count);
        file[..64].copy_from_slice(&file_header);
        file
    }

    /// `.eh_frame_hdr` without a search table: `.eh_frame` lies at 0, an absolute address.
    fn search_table(&self) -> Vec<u8> {
        let mut table = vec![1, 0x04, 0xff, 0xff];
        table.extend(0u64.to_le_bytes());
        table
    }
}

fn file_header(sections: u64, section_count: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, 64, sections] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 3, 64, section_count, 3] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, flags: u32, file_offset: u64, address: u64, bytes: usize) -> Vec<u8> {
    let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for word in [file_offset, address, address, bytes as u64, bytes as u64, 4096] {
        header.extend(word.to_le_bytes());
    }
    header
}

fn section_header(name: u32, flags: u64, file_offset: u64, bytes: usize) -> Vec<u8> {
    let mut header = [name.to_le_bytes(), 1u32.to_le_bytes()].concat();
    for word in [flags, 0, file_offset, bytes as u64, 0, 1, 0] {
        header.extend(word.to_le_bytes());
    }
    header
}
