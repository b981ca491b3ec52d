//! From the bytes of a ring-buffer record to a value. Records come from our own programs, yet a record that is
//! too short or of an unknown kind is an error value and not a panic.
use leaktrace_common::{
    event::{
        COPY_HEADER_BYTES, COPY_PAGE_BYTES, COPY_PAGES, Call, FatalSignal, Header, Kind, Life, MappingChange,
        STACK_GUESSED, STACK_HEADER_BYTES,
    },
    read,
    unwind::Stop,
};

/// A stack as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Process and time.
    pub header: Header,
    /// The hash that blocks and sites refer to.
    pub hash: u64,
    /// Why it ends where it does.
    pub stop: Stop,
    /// Whether a frame is a guess.
    pub guessed: bool,
    /// Frames, innermost first, with the mark bits of [`leaktrace_common::unwind`].
    pub frames: Vec<u64>,
}

/// Registers and memory of a stack that could not be walked to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRecord {
    /// Process and time.
    pub header: Header,
    /// The hash of the stack as far as it was walked.
    pub hash: u64,
    /// The first frame, with its mark.
    pub frame: u64,
    /// The stack pointer in it.
    pub sp: u64,
    /// rbp in it.
    pub rbp: u64,
    /// rbx in it.
    pub rbx: u64,
    /// The return slot of the call under way, and the return address that belongs there.
    pub watch: (u64, u64),
    /// Frames that were found without the table.
    pub frames: usize,
    /// Memory from the start of the page that holds `sp`.
    pub memory: Vec<u8>,
}

impl CopyRecord {
    /// The word at an address of the stack, from before a return probe replaced it.
    pub fn word(&self, address: u64) -> Option<u64> {
        if address == self.watch.0 && address != 0 {
            return Some(self.watch.1);
        }
        let page = self.sp & !(COPY_PAGE_BYTES as u64 - 1);
        let offset = usize::try_from(address.checked_sub(page)?).ok()?;
        read(self.memory.get(offset..)?)
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A traced process made another one.
    Fork(Life),
    /// A traced process replaced its image.
    Exec(Life),
    /// A traced process ended.
    Exit(Life),
    /// A system call changed mappings.
    Mapping(MappingChange),
    /// A recorded call, for `--trace`.
    Call(Call),
    /// A stack seen for the first time.
    Stack(StackRecord),
    /// A process that is not traced may be one that a standing order means.
    Appeared(Life),
    /// The kernel is about to kill a traced process because memory has run out.
    OutOfMemory(Life),
    /// A traced process takes a signal that ends it.
    Signal(FatalSignal),
    /// A traced process has been given a bigger table of live blocks.
    Grown(Life),
    /// Its memory, where it was cut for want of a table.
    Copy(CopyRecord),
}

impl Event {
    /// When, in ns of CLOCK_BOOTTIME.
    pub fn time_ns(&self) -> u64 {
        match self {
            Event::Fork(life)
            | Event::Exec(life)
            | Event::Exit(life)
            | Event::Appeared(life)
            | Event::Grown(life)
            | Event::OutOfMemory(life) => life.header.time_ns,
            Event::Mapping(change) => change.header.time_ns,
            Event::Call(call) => call.header.time_ns,
            Event::Stack(stack) => stack.header.time_ns,
            Event::Signal(signal) => signal.header.time_ns,
            Event::Copy(copy) => copy.header.time_ns,
        }
    }
}

/// Decodes a record; `None` when it is malformed.
pub fn event(bytes: &[u8]) -> Option<Event> {
    let header: Header = read(bytes)?;
    Some(match Kind::from_code(header.kind)? {
        Kind::Fork => Event::Fork(read(bytes)?),
        Kind::Exec => Event::Exec(read(bytes)?),
        Kind::Exit => Event::Exit(read(bytes)?),
        Kind::Grown => Event::Grown(read(bytes)?),
        Kind::Mapping => Event::Mapping(read(bytes)?),
        Kind::Call => Event::Call(read(bytes)?),
        Kind::Stack => Event::Stack(stack(header, bytes)?),
        Kind::Appeared => Event::Appeared(read(bytes)?),
        Kind::OutOfMemory => Event::OutOfMemory(read(bytes)?),
        Kind::Copy => Event::Copy(copy(header, bytes)?),
        Kind::Signal => Event::Signal(read(bytes)?),
    })
}

fn copy(header: Header, bytes: &[u8]) -> Option<CopyRecord> {
    let at = |index: usize| read::<u64>(bytes.get(size_of::<Header>() + 8 * index..)?);
    let pages = usize::try_from(at(7)? & 0xffff_ffff).ok().filter(|pages| *pages <= COPY_PAGES)?;
    let memory = bytes.get(COPY_HEADER_BYTES..)?.get(..pages * COPY_PAGE_BYTES)?.to_vec();
    Some(CopyRecord {
        header,
        hash: at(0)?,
        frame: at(1)?,
        sp: at(2)?,
        rbp: at(3)?,
        rbx: at(4)?,
        watch: (at(5)?, at(6)?),
        frames: usize::try_from(at(7)? >> 32).ok()?,
        memory,
    })
}

fn stack(header: Header, bytes: &[u8]) -> Option<StackRecord> {
    let hash = read(bytes.get(24..)?)?;
    let count: u32 = read(bytes.get(32..)?)?;
    let stop: u32 = read(bytes.get(36..)?)?;
    let frames = bytes.get(STACK_HEADER_BYTES..)?.chunks_exact(8);
    let frames: Vec<u64> = frames.take(count as usize).filter_map(read).collect();
    if frames.len() != count as usize {
        return None;
    }
    let guessed = stop & STACK_GUESSED != 0;
    Some(StackRecord { header, hash, stop: Stop::from_code(stop & !STACK_GUESSED), guessed, frames })
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaktrace_common::bytes_of;

    fn header(kind: Kind) -> Header {
        Header { kind: kind as u32, tgid: 7, tid: 8, generation: 2, time_ns: 99 }
    }

    #[test]
    fn a_stack_is_decoded_with_its_frames_and_marks() {
        let mut bytes = bytes_of(&header(Kind::Stack)).to_vec();
        bytes.extend(0xabcd_u64.to_ne_bytes());
        bytes.extend(2_u32.to_ne_bytes());
        bytes.extend((Stop::Complete as u32 | STACK_GUESSED).to_ne_bytes());
        bytes.extend(0x1000_u64.to_ne_bytes());
        bytes.extend(0x2000_u64.to_ne_bytes());
        let Some(Event::Stack(stack)) = event(&bytes) else { panic!("not a stack") };
        assert_eq!((stack.hash, stack.stop, stack.guessed), (0xabcd, Stop::Complete, true));
        assert_eq!(stack.frames, [0x1000, 0x2000]);
    }

    #[test]
    fn a_stack_that_promises_more_frames_than_it_has_is_refused() {
        let mut bytes = bytes_of(&header(Kind::Stack)).to_vec();
        bytes.extend([0; 8]);
        bytes.extend(2_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([0; 8]);
        assert_eq!(event(&bytes), None);
    }

    #[test]
    fn a_copy_gives_the_words_of_its_stack_and_no_others() {
        let mut bytes = bytes_of(&header(Kind::Copy)).to_vec();
        for word in [5_u64, 0x40_0000, 0x7010, 1, 2, 0x7020, 0xaaaa, 3 << 32 | 1] {
            bytes.extend(word.to_ne_bytes());
        }
        let mut page = vec![0_u8; COPY_PAGE_BYTES];
        page[0x18..0x20].copy_from_slice(&0x1234_u64.to_ne_bytes());
        bytes.extend(&page);
        let Some(Event::Copy(copy)) = event(&bytes) else { panic!("not a copy") };
        assert_eq!((copy.hash, copy.word(0x7018), copy.word(0x7020)), (5, Some(0x1234), Some(0xaaaa)));
        assert_eq!(copy.frames, 3);
        assert_eq!((copy.word(0x7ffc), copy.word(0x6ff8), copy.word(u64::MAX)), (None, None, None));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(event(&bytes), None);
    }

    #[test]
    fn short_and_unknown_records_are_refused() {
        assert_eq!(event(&[]), None);
        assert_eq!(event(&[0xff; 24]), None);
        assert_eq!(event(bytes_of(&header(Kind::Fork))), None);
    }
}
