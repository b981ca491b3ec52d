//! The mappings that one process made since tracing began, as an interval map fed by system-call records.
//!
//! Mappings made before tracing are not in it: unmapping or moving them changes nothing here. Protection changes
//! are not seen, so a reservation stays one when parts of it become usable. Turning sites into a report is left
//! to `target`.
//!
//! A *mapping* is what one mmap call made. Parts of it can leave (munmap, MAP_FIXED, mremap); its bytes shrink
//! with them, and it counts as freed when its last byte has left.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
};

use leaktrace_common::{
    event::{Change, MappingChange},
    heap::{SiteTotals, lifetime_bucket},
};

use super::snapshot::MappingTotals;

const PAGE_BYTES: u64 = 4096;
/// Mappings remembered at the most; the kernel's own default bound is 65,530 (vm.max_map_count).
const MAX_MAPPINGS: usize = 1 << 20;
/// A mapping this large for which the kernel sets no memory aside (MAP_NORESERVE) is address space to be used in part:
/// sanitizers take terabytes of it for their shadow.
const RESERVATION_BYTES: u64 = 1 << 30;
/// Threads whose last munmap or mremap can still be taken back.
const MAX_PENDING: usize = 4096;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Anonymous memory mapped by the program itself: these make sites.
    Program,
    /// The same outside of the sizes that are recorded: summed, but in no site.
    Unlisted,
    /// Anonymous memory mapped inside an allocation function: already counted as heap.
    Allocator,
    /// Anonymous memory without access rights, or more of it than is ever used.
    Reserved,
    /// The program break, where it makes sites.
    Break,
    /// The stack of a thread.
    ThreadStack,
    /// A file, private or shared.
    File,
}

impl Class {
    fn makes_sites(self) -> bool {
        matches!(self, Class::Program | Class::Break)
    }
}

/// One mmap call's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    stack: u64,
    born_ns: u64,
    class: Class,
    live_bytes: u64,
}

/// A piece of a mapping; its start is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    origin: u64,
}

/// A piece that left, with what it needs to come back.
#[derive(Clone, Copy, Debug)]
struct Departed {
    start: u64,
    end: u64,
    id: u64,
    origin: Origin,
}

#[derive(Debug)]
struct Pending {
    time_ns: u64,
    departed: Vec<Departed>,
}

/// A live mapping of class [`Class::Program`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveMapping {
    /// Lowest address that is still mapped.
    pub address: u64,
    /// Bytes of it that are still mapped.
    pub size_bytes: u64,
    /// When it was made, in ns of CLOCK_BOOTTIME.
    pub born_ns: u64,
    /// Hash of the stack that made it.
    pub stack: u64,
}

/// All mappings of one process.
#[derive(Debug, Default)]
pub struct Mappings {
    pieces: BTreeMap<u64, Piece>,
    origins: HashMap<u64, Origin>,
    next_origin: u64,
    pending: HashMap<u32, Pending>,
    sites: HashMap<u64, SiteTotals>,
    class_bytes: HashMap<Class, u64>,
    first_break: Option<u64>,
    current_break: u64,
    dropped: u64,
    sizes: Option<RangeInclusive<u64>>,
    lists_break: bool,
    break_stacks: HashSet<u64>,
    version: u64,
}

impl Mappings {
    /// No mappings; `program_break` is where the break was when tracing began, where that is known.
    pub fn new(program_break: Option<u64>) -> Mappings {
        Mappings {
            first_break: program_break,
            current_break: program_break.unwrap_or(0),
            ..Mappings::default()
        }
    }

    /// Lets only mappings of these sizes in bytes into sites.
    pub fn listing(mut self, sizes: RangeInclusive<u64>) -> Mappings {
        self.sizes = Some(sizes);
        self
    }

    /// Lets growth of the program break into sites: where allocations are not recorded, it stands for them.
    pub fn listing_break(mut self) -> Mappings {
        self.lists_break = true;
        self
    }

    /// Whether this stack moved the program break.
    pub fn moved_break(&self, stack: u64) -> bool {
        self.break_stacks.contains(&stack)
    }

    /// Takes the next record in. Records must come in the order of their time.
    pub fn apply(&mut self, record: &MappingChange) {
        const KINDS: [Change; 6] =
            [Change::Map, Change::Unmap, Change::UnmapFailed, Change::Remap, Change::Remapped, Change::Break];
        let Some(change) = KINDS.into_iter().find(|change| *change as u32 == record.change) else { return };
        self.version += 1;
        match change {
            Change::Map => self.map(record),
            Change::Unmap => self.leave(record, record.address, record.length_bytes),
            Change::UnmapFailed => self.come_back(record),
            Change::Remap => self.leave(record, record.old_address, record.old_length_bytes),
            Change::Remapped if failed(record.result) => self.come_back(record),
            Change::Remapped => self.remapped(record),
            Change::Break => self.move_break(record),
        }
    }

    /// Sums by stack of the mappings that the program made itself. A site's count is mappings, not pieces.
    pub fn sites(&self) -> impl Iterator<Item = (u64, &SiteTotals)> {
        self.sites.iter().map(|(stack, totals)| (*stack, totals))
    }

    /// The program's own mappings that are still there, in no order.
    pub fn live(&self) -> impl Iterator<Item = LiveMapping> {
        let mut lowest: HashMap<u64, u64> = HashMap::new();
        for (start, piece) in &self.pieces {
            lowest.entry(piece.origin).or_insert(*start);
        }
        self.origins.iter().filter(|(_, origin)| origin.class.makes_sites()).map(move |(id, origin)| {
            LiveMapping {
                address: lowest.get(id).copied().unwrap_or(0),
                size_bytes: origin.live_bytes,
                born_ns: origin.born_ns,
                stack: origin.stack,
            }
        })
    }

    /// What is mapped now, by class.
    pub fn totals(&self) -> MappingTotals {
        let bytes = |class| self.class_bytes.get(&class).copied().unwrap_or(0);
        MappingTotals {
            program_bytes: bytes(Class::Program) + bytes(Class::Unlisted),
            allocator_bytes: bytes(Class::Allocator),
            reserved_bytes: bytes(Class::Reserved),
            stack_bytes: bytes(Class::ThreadStack),
            break_bytes: self.first_break.map_or(0, |first| self.current_break.saturating_sub(first)),
        }
    }

    /// A number that changes with every record.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Mappings that were not remembered because there were too many: a loss.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn map(&mut self, record: &MappingChange) {
        if failed(record.result) {
            return;
        }
        let Some((start, end)) = range(record.address, record.length_bytes) else { return };
        self.cut_out(start, end, record.header.time_ns);
        let listed = self.sizes.as_ref().is_none_or(|sizes| sizes.contains(&record.length_bytes));
        let class = match classify(record) {
            Class::Program if !listed => Class::Unlisted,
            class => class,
        };
        let origin =
            Origin { stack: record.stack, born_ns: record.header.time_ns, class, live_bytes: end - start };
        self.insert_new(start, end, origin);
    }

    fn insert_new(&mut self, start: u64, end: u64, origin: Origin) {
        if self.origins.len() >= MAX_MAPPINGS {
            self.dropped += 1;
            return;
        }
        let id = self.next_origin;
        self.next_origin += 1;
        self.origins.insert(id, origin);
        self.pieces.insert(start, Piece { end, origin: id });
        self.count_in(&origin, origin.live_bytes, 1);
    }

    /// Memory leaves, and is kept aside in case the call turns out to fail.
    fn leave(&mut self, record: &MappingChange, address: u64, length_bytes: u64) {
        let departed = match range(address, length_bytes) {
            Some((start, end)) => self.cut_out(start, end, record.header.time_ns),
            None => Vec::new(),
        };
        self.pending.remove(&record.header.tid);
        if departed.is_empty() {
            return;
        }
        if self.pending.len() >= MAX_PENDING
            && let Some(oldest) =
                self.pending.iter().min_by_key(|(_, pending)| pending.time_ns).map(|(tid, _)| *tid)
        {
            self.pending.remove(&oldest);
        }
        self.pending.insert(record.header.tid, Pending { time_ns: record.header.time_ns, departed });
    }

    /// The call failed: what left is put back, except where something newer lies by now.
    fn come_back(&mut self, record: &MappingChange) {
        let Some(pending) = self.pending.remove(&record.header.tid) else { return };
        for departed in &pending.departed {
            self.restore(departed, pending.time_ns);
        }
    }

    fn restore(&mut self, departed: &Departed, left_ns: u64) {
        for (start, end) in self.holes(departed.start, departed.end) {
            let bytes = end - start;
            match self.origins.get_mut(&departed.id) {
                Some(origin) => origin.live_bytes += bytes,
                None => {
                    self.origins.insert(departed.id, Origin { live_bytes: bytes, ..departed.origin });
                    self.uncount_freed(&departed.origin, left_ns);
                }
            }
            self.pieces.insert(start, Piece { end, origin: departed.id });
            *self.class_bytes.entry(departed.origin.class).or_default() += bytes;
            if let Some(site) = self.site_of(&departed.origin) {
                site.freed_bytes = site.freed_bytes.saturating_sub(bytes);
            }
        }
    }

    /// A mapping that had left as a whole is back.
    fn uncount_freed(&mut self, origin: &Origin, left_ns: u64) {
        let bucket = lifetime_bucket(left_ns.saturating_sub(origin.born_ns));
        let Some(site) = self.site_of(origin) else { return };
        site.freed_count = site.freed_count.saturating_sub(1);
        if let Some(count) = site.lifetimes.get_mut(bucket) {
            *count = count.saturating_sub(1);
        }
    }

    /// The sums that a mapping counts in, where it counts.
    fn site_of(&mut self, origin: &Origin) -> Option<&mut SiteTotals> {
        if origin.class.makes_sites() { self.sites.get_mut(&origin.stack) } else { None }
    }

    /// mremap succeeded: the pieces that left arrive at the new place, cut or extended at their end.
    fn remapped(&mut self, record: &MappingChange) {
        let pending = self.pending.remove(&record.header.tid);
        let Some((start, end)) = range(record.address, record.length_bytes) else { return };
        let copies = record.old_length_bytes == 0;
        let stays = copies || i64::from(record.flags) & i64::from(libc::MREMAP_DONTUNMAP) != 0;
        let Some(old_end) = range(record.old_address, record.old_length_bytes.max(1)).map(|(_, end)| end)
        else {
            return;
        };
        if copies {
            self.cut_out(start, end, record.header.time_ns);
            self.duplicate(record, start, end);
            return;
        }
        let Some(pending) = pending else {
            self.cut_out(start, end, record.header.time_ns);
            return;
        };
        if stays {
            for departed in &pending.departed {
                self.restore(departed, pending.time_ns);
            }
        }
        self.cut_out(start, end, record.header.time_ns);
        for departed in &pending.departed {
            let from = start.saturating_add(departed.start - record.old_address.min(departed.start));
            let reaches_end = departed.end == old_end;
            let to =
                if reaches_end { end } else { from.saturating_add(departed.end - departed.start).min(end) };
            if from >= to {
                continue;
            }
            if stays {
                let origin =
                    Origin { born_ns: record.header.time_ns, live_bytes: to - from, ..departed.origin };
                self.insert_new(from, to, origin);
            } else {
                self.arrive(departed, pending.time_ns, from, to);
            }
        }
    }

    /// A moved piece keeps its mapping; only growth counts as allocated and only what is cut off as freed.
    fn arrive(&mut self, departed: &Departed, left_ns: u64, from: u64, to: u64) {
        let old_bytes = departed.end - departed.start;
        let new_bytes = to - from;
        let kept = Departed { start: from, end: from + old_bytes.min(new_bytes), ..*departed };
        self.restore(&kept, left_ns);
        if new_bytes <= old_bytes {
            return;
        }
        let grown = new_bytes - old_bytes;
        if let Some(origin) = self.origins.get_mut(&departed.id) {
            origin.live_bytes += grown;
        }
        if let Some(piece) = self.pieces.get_mut(&from) {
            piece.end = to;
        }
        self.count_in(&departed.origin, grown, 0);
    }

    /// mremap with an old length of 0 maps shared memory a second time.
    fn duplicate(&mut self, record: &MappingChange, start: u64, end: u64) {
        let source = self
            .pieces
            .range(..=record.old_address)
            .next_back()
            .filter(|(_, piece)| piece.end > record.old_address)
            .and_then(|(_, piece)| self.origins.get(&piece.origin))
            .copied();
        if let Some(source) = source {
            let origin = Origin { born_ns: record.header.time_ns, live_bytes: end - start, ..source };
            self.insert_new(start, end, origin);
        }
    }

    fn move_break(&mut self, record: &MappingChange) {
        let (address, before) = (record.address, self.current_break);
        if self.lists_break && before != 0 && address != 0 {
            if address < before {
                self.cut_out(address, before, record.header.time_ns);
            } else if address > before && record.stack != 0 {
                let origin = Origin {
                    stack: record.stack,
                    born_ns: record.header.time_ns,
                    class: Class::Break,
                    live_bytes: address - before,
                };
                self.break_stacks.insert(record.stack);
                self.insert_new(before, address, origin);
            }
        }
        if self.first_break.is_none() && address != 0 {
            self.first_break = Some(address);
        }
        self.current_break = address;
    }

    /// Removes everything between two addresses and says what it was.
    fn cut_out(&mut self, start: u64, end: u64, now_ns: u64) -> Vec<Departed> {
        let first = match self.pieces.range(..start).next_back() {
            Some((first, piece)) if piece.end > start => *first,
            _ => start,
        };
        let hit: Vec<(u64, Piece)> =
            self.pieces.range(first..end).map(|(start, piece)| (*start, *piece)).collect();
        let mut departed = Vec::with_capacity(hit.len());
        for (piece_start, piece) in hit {
            self.pieces.remove(&piece_start);
            if piece_start < start {
                self.pieces.insert(piece_start, Piece { end: start, origin: piece.origin });
            }
            if piece.end > end {
                self.pieces.insert(end, piece);
            }
            let (from, to) = (piece_start.max(start), piece.end.min(end));
            departed.extend(self.count_out(piece.origin, from, to, now_ns));
        }
        departed
    }

    fn count_in(&mut self, origin: &Origin, bytes: u64, count: u64) {
        *self.class_bytes.entry(origin.class).or_default() += bytes;
        if origin.class.makes_sites() {
            let site = self.sites.entry(origin.stack).or_insert(SiteTotals::ZERO);
            site.allocated_bytes += bytes;
            site.allocated_count += count;
        }
    }

    fn count_out(&mut self, id: u64, start: u64, end: u64, now_ns: u64) -> Option<Departed> {
        let bytes = end - start;
        let origin = self.origins.get_mut(&id)?;
        let before = *origin;
        origin.live_bytes = origin.live_bytes.saturating_sub(bytes);
        let last_of_origin = origin.live_bytes == 0;
        if last_of_origin {
            self.origins.remove(&id);
        }
        if let Some(class_bytes) = self.class_bytes.get_mut(&before.class) {
            *class_bytes = class_bytes.saturating_sub(bytes);
        }
        if let Some(site) = self.site_of(&before) {
            site.freed_bytes += bytes;
            if last_of_origin {
                site.freed_count += 1;
                if let Some(bucket) =
                    site.lifetimes.get_mut(lifetime_bucket(now_ns.saturating_sub(before.born_ns)))
                {
                    *bucket += 1;
                }
            }
        }
        Some(Departed { start, end, id, origin: before })
    }

    /// The parts of a range where nothing is mapped.
    fn holes(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let before = self.pieces.range(..start).next_back().map_or(start, |(_, piece)| piece.end.max(start));
        let mut holes = Vec::new();
        let mut free_from = before;
        for (piece_start, piece) in self.pieces.range(start..end) {
            if *piece_start > free_from {
                holes.push((free_from, *piece_start));
            }
            free_from = free_from.max(piece.end);
        }
        if free_from < end {
            holes.push((free_from, end));
        }
        holes
    }
}

/// Whether a system call returned an error number.
fn failed(result: i64) -> bool {
    (-4095..0).contains(&result)
}

/// The pages of a range, or `None` when it is empty or not page-aligned (the call fails then).
fn range(address: u64, length_bytes: u64) -> Option<(u64, u64)> {
    if length_bytes == 0 || !address.is_multiple_of(PAGE_BYTES) {
        return None;
    }
    let end = address.checked_add(length_bytes.checked_next_multiple_of(PAGE_BYTES)?)?;
    Some((address, end))
}

fn classify(record: &MappingChange) -> Class {
    let has = |flag: libc::c_int| record.flags & flag.cast_unsigned() != 0;
    if !has(libc::MAP_ANONYMOUS) && record.fd != -1 {
        Class::File
    } else if has(libc::MAP_STACK) || has(libc::MAP_GROWSDOWN) {
        Class::ThreadStack
    } else if record.protection == 0 || has(libc::MAP_NORESERVE) && record.length_bytes >= RESERVATION_BYTES {
        Class::Reserved
    } else if record.in_allocator != 0 {
        Class::Allocator
    } else {
        Class::Program
    }
}

#[cfg(test)]
mod tests;
