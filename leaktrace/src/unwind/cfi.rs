//! Call frame information in a file: finds the frame description entries (FDEs) of `.eh_frame` and
//! `.debug_frame`, puts them in order of address, and evaluates them one after the other. Turning a row into a
//! rule is left to `rule`, storing it to `table`.
//!
//! Everything is bounded. A hostile file can hold FDEs without end, let each refer to the same enormous CIE, or
//! spend a megabyte of instructions on one address: entries are counted, and each evaluation is paid for from a
//! budget in proportion to the size of the sections.
use std::{borrow::Cow, collections::HashMap};

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EhFrameHdr, EndianSlice,
    FrameDescriptionEntry, LittleEndian, Pointer, Reader, UnwindContext, UnwindOffset, UnwindSection,
};
use leaktrace_common::unwind::{Rule, kind};

use crate::unwind::{
    elf::{Elf, Packing, Section},
    packed,
    rule::{self, Bytes, RETURN_ADDRESS, Storage},
    source::Source,
    table::Limits,
};

/// A CIE is an augmentation string and a handful of instructions: about 24 bytes.
const MAX_CIE_BYTES: u64 = 1024;
/// CIEs that are kept parsed. Linkers merge equal ones: a file has a few dozen.
const MAX_KEPT_CIES: usize = 1024;
const ADDRESS_BYTES: u8 = 8;

type Cie<'a> = CommonInformationEntry<Bytes<'a>>;

/// Where a piece of unwind information was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// `.debug_frame`.
    DebugFrame,
    /// `.eh_frame`.
    EhFrame,
    /// No CFI but machine code: it calls `rt_sigreturn`.
    SignalCode,
    /// No CFI, but the ELF header says that the program begins here.
    EntryPoint,
    /// Code that the Go compiler made. Its CFI, where it was not stripped, says nothing of frame pointers, which it
    /// keeps, and is wrong where a function changes the stack.
    Go,
    /// No CFI but machine code: rows were synthesized. `offset` is the number of the region.
    Synthesized,
}

/// The place of one FDE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fde {
    /// First address that it describes.
    pub(super) start: u64,
    /// First address that it does not.
    pub(super) end: u64,
    /// Where it lies in its section.
    pub(super) offset: u32,
    /// Its section.
    pub(super) origin: Origin,
}

/// The sections that hold call frame information, as read from a file.
#[derive(Default)]
pub(super) struct Sections<'a> {
    eh_frame: Cow<'a, [u8]>,
    debug_frame: Cow<'a, [u8]>,
    header: Cow<'a, [u8]>,
    bases: BaseAddresses,
    /// Whether `eh_frame` is a section; else it is what the search table refers to, up to its segment's end.
    has_section: bool,
    /// What went wrong first.
    pub(super) problem: Option<String>,
}

/// The FDEs of a file.
#[derive(Default)]
pub(super) struct Index {
    /// By address; where two begin at one address the last one counts.
    pub(super) fdes: Vec<Fde>,
    /// Whether one of them is marked as entered by a signal.
    pub(super) has_signal_frame: bool,
    /// FDEs that are not there: too many, damaged, or not about this file's executable segments.
    pub(super) lost: u64,
}

impl<'a> Sections<'a> {
    /// Reads the sections. One that cannot be read is noted and left out.
    pub(super) fn read(source: &Source<'a>, elf: &Elf, limits: &Limits) -> Sections<'a> {
        let mut sections = Sections::default();
        if let Some(text) = elf.text {
            sections.bases = sections.bases.set_text(text.address);
        }
        if let Some(got) = elf.got {
            sections.bases = sections.bases.set_got(got.address);
        }
        match (elf.debug_frame, elf.packed_debug_frame) {
            _ if elf.is_go => {}
            (Some(section), _) => sections.debug_frame = sections.load(source, &section, limits),
            (None, Some((section, packing))) => {
                let packed = sections.load(source, &section, limits);
                if !packed.is_empty() {
                    sections.unpack_debug_frame(&packed, packing, limits);
                }
            }
            (None, None) => {}
        }
        match (elf.eh_frame, elf.eh_frame_header) {
            (Some(section), _) => {
                sections.has_section = true;
                sections.bases = sections.bases.set_eh_frame(section.address);
                sections.eh_frame = sections.load(source, &section, limits);
            }
            (None, Some(header)) => sections.load_by_header(source, elf, &header, limits),
            (None, None) => {}
        }
        sections
    }

    /// Notes what is wrong with the file; the first problem counts.
    fn note(&mut self, problem: impl ToString) {
        self.problem.get_or_insert_with(|| problem.to_string());
    }

    fn load(&mut self, source: &Source<'a>, section: &Section, limits: &Limits) -> Cow<'a, [u8]> {
        if section.file_bytes > limits.section_bytes {
            self.note("its unwind section is larger than is read");
            return Cow::default();
        }
        source.read(section.file_offset, section.file_bytes).unwrap_or_else(|error| {
            self.note(error);
            Cow::default()
        })
    }

    /// One that cannot be unpacked is noted and left out.
    fn unpack_debug_frame(&mut self, packed: &[u8], packing: Packing, limits: &Limits) {
        match packed::unpack(packed, packing, limits.unpacked_bytes) {
            Ok(unpacked) => self.debug_frame = Cow::Owned(unpacked),
            Err(problem) => self.note(problem),
        }
    }

    /// The search table names the address of `.eh_frame` but not its size: take what its segment has.
    fn load_by_header(&mut self, source: &Source<'a>, elf: &Elf, header: &Section, limits: &Limits) {
        self.bases = self.bases.clone().set_eh_frame_hdr(header.address);
        self.header = self.load(source, header, limits);
        let parsed = EhFrameHdr::new(&self.header, LittleEndian).parse(&self.bases, ADDRESS_BYTES);
        let Ok(Pointer::Direct(address)) = parsed.map(|table| table.eh_frame_ptr()) else {
            return self.note("its PT_GNU_EH_FRAME does not say where .eh_frame is");
        };
        let Some((file_offset, rest)) = elf.file_range_at(address) else {
            return self.note("its .eh_frame lies in no segment");
        };
        self.bases = self.bases.clone().set_eh_frame(address);
        let section = Section { address, file_offset, file_bytes: rest.min(limits.section_bytes) };
        self.eh_frame = self.load(source, &section, limits);
    }

    fn eh_frame(&self) -> EhFrame<Bytes<'_>> {
        let mut section = EhFrame::new(&self.eh_frame, LittleEndian);
        section.set_address_size(ADDRESS_BYTES);
        section
    }

    fn debug_frame(&self) -> DebugFrame<Bytes<'_>> {
        let mut section = DebugFrame::new(&self.debug_frame, LittleEndian);
        section.set_address_size(ADDRESS_BYTES);
        section
    }

    /// Finds every FDE of both sections, by address.
    pub(super) fn index(&self, elf: &Elf, limits: &Limits) -> (Index, Option<String>) {
        let mut index = Index::default();
        let problem = if self.has_section {
            index.add_entries(&self.eh_frame(), self, elf, limits, Origin::EhFrame)
        } else {
            index.add_searchable(self, elf, limits)
        };
        index.sort();
        let covered = index.fdes.len();
        if elf.is_go {
            return (index, problem.map(|error| error.to_string()));
        }
        let other = index.add_entries(&self.debug_frame(), self, elf, limits, Origin::DebugFrame);
        index.drop_covered(covered);
        index.sort();
        (index, problem.or(other).map(|error| error.to_string()))
    }

    /// An evaluator of these sections' FDEs, and of the regions for which there are synthesized rows.
    pub(super) fn evaluator(&self, synthesized: Vec<Vec<(u64, Rule)>>) -> Evaluator<'_> {
        let bytes = self.eh_frame.len() as u64 + self.debug_frame.len() as u64;
        Evaluator {
            eh_frame: self.eh_frame(),
            debug_frame: self.debug_frame(),
            bases: &self.bases,
            eh_cies: HashMap::new(),
            debug_cies: HashMap::new(),
            context: UnwindContext::new_in(),
            budget_bytes: 4 * bytes + (1 << 16),
            synthesized,
        }
    }
}

impl Index {
    /// Adds the entries of a section in file order, up to its end or to the first that is damaged.
    fn add_entries<'s, S: UnwindSection<Bytes<'s>> + gimli::Section<Bytes<'s>>>(
        &mut self,
        section: &S,
        sections: &'s Sections<'_>,
        elf: &Elf,
        limits: &Limits,
        origin: Origin,
    ) -> Option<gimli::Error> {
        let mut cies = HashMap::new();
        let mut entries = section.entries(&sections.bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return None,
                Err(error) => return Some(error),
            };
            match partial.parse(|section, bases, offset| cie(&mut cies, section, bases, offset)) {
                Ok(fde) => self.add(&fde, elf, limits, origin),
                Err(_) => self.lost += 1,
            }
        }
    }

    /// Adds what the search table of PT_GNU_EH_FRAME lists.
    fn add_searchable(
        &mut self,
        sections: &Sections<'_>,
        elf: &Elf,
        limits: &Limits,
    ) -> Option<gimli::Error> {
        let section = sections.eh_frame();
        let header =
            EhFrameHdr::new(&sections.header, LittleEndian).parse(&sections.bases, ADDRESS_BYTES).ok()?;
        let Pointer::Direct(section_address) = header.eh_frame_ptr() else { return None };
        let Some(table) = header.table() else {
            return self.add_entries(&section, sections, elf, limits, Origin::EhFrame);
        };
        let mut cies = HashMap::new();
        let mut entries = table.iter(&sections.bases);
        loop {
            let address = match entries.next() {
                Ok(Some((_, Pointer::Direct(address)))) => address,
                Ok(Some(_)) => continue,
                Ok(None) => return None,
                Err(error) => return Some(error),
            };
            let offset = address.checked_sub(section_address).and_then(|offset| usize::try_from(offset).ok());
            let fde = offset.and_then(|offset| {
                let cie = |section: &_, bases: &_, offset| cie(&mut cies, section, bases, offset);
                section.fde_from_offset(&sections.bases, offset.into(), cie).ok()
            });
            match fde {
                Some(fde) => self.add(&fde, elf, limits, Origin::EhFrame),
                None => self.lost += 1,
            }
        }
    }

    fn add(&mut self, fde: &FrameDescriptionEntry<Bytes<'_>>, elf: &Elf, limits: &Limits, origin: Origin) {
        let start = fde.initial_address();
        let segment = elf.segments.iter().find(|s| s.executable && s.address <= start && start < s.end());
        let end = start.checked_add(fde.len());
        let (Some(segment), Some(end), Ok(offset)) = (segment, end, u32::try_from(fde.offset())) else {
            self.lost += 1;
            return;
        };
        self.has_signal_frame |= fde.is_signal_trampoline();
        if self.fdes.len() >= limits.fdes {
            self.lost += 1;
        } else if end > start {
            self.fdes.push(Fde { start, end: end.min(segment.end()), offset, origin });
        }
    }

    /// Puts the FDEs in order. The sort is stable: of several at one address the last in the file stays, as
    /// the linker's own search table would find it.
    fn sort(&mut self) {
        self.fdes.sort_by_key(|fde| (fde.start, fde.origin));
        self.fdes.dedup_by(|later, kept| {
            let is_same = later.start == kept.start;
            if is_same {
                *kept = *later;
            }
            is_same
        });
    }

    /// Adds entries and restores the order.
    pub(super) fn add_sorted(&mut self, fdes: Vec<Fde>) {
        self.fdes.extend(fdes);
        self.sort();
    }

    /// Drops the FDEs from `first_other` on that describe what the sorted ones before describe already.
    fn drop_covered(&mut self, first_other: usize) {
        let others = self.fdes.split_off(first_other);
        let is_new = |fde: &Fde| self.covering(fde.start).is_none();
        let added: Vec<Fde> = others.into_iter().filter(is_new).collect();
        self.fdes.extend(added);
    }

    /// The ranges between `start` and `end` that no FDE describes. Needs the order that [`Index::sort`] makes.
    pub(super) fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for fde in self.fdes.iter().filter(|fde| fde.end > start && fde.start < end) {
            if fde.start > at {
                gaps.push((at, fde.start));
            }
            at = at.max(fde.end);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// The FDE that describes an address. Needs the order that [`Index::sort`] makes.
    pub(super) fn covering(&self, address: u64) -> Option<usize> {
        let index = self.fdes.partition_point(|fde| fde.start <= address).checked_sub(1)?;
        self.fdes.get(index).filter(|fde| address < fde.end).map(|_| index)
    }
}

/// Evaluates FDEs, within a budget.
pub(super) struct Evaluator<'s> {
    eh_frame: EhFrame<Bytes<'s>>,
    debug_frame: DebugFrame<Bytes<'s>>,
    bases: &'s BaseAddresses,
    eh_cies: HashMap<usize, gimli::Result<Cie<'s>>>,
    debug_cies: HashMap<usize, gimli::Result<Cie<'s>>>,
    context: UnwindContext<usize, Storage>,
    budget_bytes: u64,
    synthesized: Vec<Vec<(u64, Rule)>>,
}

impl Evaluator<'_> {
    /// Passes each row of an FDE on, as an address and the rule from there on. What cannot be evaluated is
    /// [`kind::UNSUPPORTED`].
    pub(super) fn rows(&mut self, fde: &Fde, sink: &mut impl FnMut(u64, Rule)) {
        let unevaluated = match fde.origin {
            Origin::SignalCode => {
                sink(fde.start, rule::plain(kind::SIGNAL));
                return;
            }
            Origin::EntryPoint => {
                sink(fde.start, rule::plain(kind::OUTERMOST));
                return;
            }
            Origin::Go => {
                sink(fde.start, rule::plain(kind::GO));
                return;
            }
            Origin::Synthesized => {
                let rows = self.synthesized.get(fde.offset as usize).into_iter().flatten();
                rows.filter(|row| row.0 < fde.end).for_each(|&(address, rule)| sink(address, rule));
                return;
            }
            Origin::EhFrame => {
                let work =
                    Work { bases: self.bases, context: &mut self.context, budget: &mut self.budget_bytes };
                work.rows(&self.eh_frame, &mut self.eh_cies, fde, sink)
            }
            Origin::DebugFrame => {
                let work =
                    Work { bases: self.bases, context: &mut self.context, budget: &mut self.budget_bytes };
                work.rows(&self.debug_frame, &mut self.debug_cies, fde, sink)
            }
        };
        if let Err(from) = unevaluated
            && from < fde.end
        {
            sink(from, rule::plain(kind::UNSUPPORTED));
        }
    }
}

/// What one evaluation works with, whichever section the FDE is in.
struct Work<'w, 's> {
    bases: &'s BaseAddresses,
    context: &'w mut UnwindContext<usize, Storage>,
    budget: &'w mut u64,
}

impl Work<'_, '_> {
    /// The error is the address from which on the rows are not known.
    fn rows<'s, S: UnwindSection<Bytes<'s>> + gimli::Section<Bytes<'s>>>(
        self,
        section: &S,
        cies: &mut HashMap<usize, gimli::Result<Cie<'s>>>,
        fde: &Fde,
        sink: &mut impl FnMut(u64, Rule),
    ) -> Result<(), u64>
    where
        S::Offset: UnwindOffset<usize>,
    {
        let at = S::Offset::from(fde.offset as usize);
        let parsed = section
            .fde_from_offset(self.bases, at, |section, bases, offset| cie(cies, section, bases, offset))
            .map_err(|_| fde.start)?;
        let cost = parsed.entry_len() as u64 + parsed.cie().entry_len() as u64;
        *self.budget = self.budget.checked_sub(cost).ok_or(fde.start)?;
        if parsed.cie().return_address_register() != RETURN_ADDRESS {
            return Err(fde.start);
        }
        let is_signal = parsed.is_signal_trampoline();
        let mut known_to = fde.start;
        let mut rows = parsed.rows(section, self.bases, self.context).map_err(|_| fde.start)?;
        while let Some(row) = rows.next_row().map_err(|_| known_to)? {
            if row.start_address() >= fde.end {
                break;
            }
            sink(row.start_address(), rule::from_row(row, is_signal, section));
            known_to = row.end_address();
        }
        Ok(())
    }
}

/// The CIE at an offset, parsed once. Longer ones than any compiler writes are refused, since every FDE that
/// refers to one costs its length again.
fn cie<'s, S: UnwindSection<Bytes<'s>> + gimli::Section<Bytes<'s>>>(
    kept: &mut HashMap<usize, gimli::Result<Cie<'s>>>,
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
) -> gimli::Result<Cie<'s>> {
    let at = UnwindOffset::into(offset);
    if let Some(cie) = kept.get(&at) {
        return cie.clone();
    }
    if kept.len() >= MAX_KEPT_CIES {
        kept.clear();
    }
    let parsed = match entry_bytes(section.reader(), at) {
        Ok(bytes) if bytes <= MAX_CIE_BYTES => section.cie_from_offset(bases, offset),
        Ok(_) => Err(gimli::Error::NoUnwindInfoForAddress),
        Err(error) => Err(error),
    };
    kept.insert(at, parsed.clone());
    parsed
}

/// The length field of the entry at an offset.
fn entry_bytes(section: &EndianSlice<'_, LittleEndian>, offset: usize) -> gimli::Result<u64> {
    let mut reader = *section;
    reader.skip(offset)?;
    match reader.read_u32()? {
        u32::MAX => reader.read_u64(),
        bytes => Ok(u64::from(bytes)),
    }
}
