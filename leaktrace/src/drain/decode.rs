//! From the bytes of a ring-buffer record to a value. Records come from our own programs, yet a record that is
//! too short or of an unknown kind is an error value and not a panic.
use leaktrace_common::{
    event::{Call, Header, Kind, Life, MappingChange, STACK_GUESSED, STACK_HEADER_BYTES},
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
}

/// Decodes a record; `None` when it is malformed.
pub fn event(bytes: &[u8]) -> Option<Event> {
    let header: Header = read(bytes)?;
    Some(match Kind::from_code(header.kind)? {
        Kind::Fork => Event::Fork(read(bytes)?),
        Kind::Exec => Event::Exec(read(bytes)?),
        Kind::Exit => Event::Exit(read(bytes)?),
        Kind::Mapping => Event::Mapping(read(bytes)?),
        Kind::Call => Event::Call(read(bytes)?),
        Kind::Stack => Event::Stack(stack(header, bytes)?),
        Kind::Appeared => Event::Appeared(read(bytes)?),
        Kind::OutOfMemory => Event::OutOfMemory(read(bytes)?),
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
    fn short_and_unknown_records_are_refused() {
        assert_eq!(event(&[]), None);
        assert_eq!(event(&[0xff; 24]), None);
        assert_eq!(event(bytes_of(&header(Kind::Fork))), None);
    }
}
