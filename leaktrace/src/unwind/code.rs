//! Looks at the machine code of a file's executable segments: whether a range can hold a call, and where the
//! code returns from a signal. Reads it through a window, because text is up to hundreds of megabytes.
use std::borrow::Cow;

use memchr::memmem;

use crate::unwind::{elf::Elf, source::Source};

/// How much is read at a time.
const WINDOW_BYTES: u64 = 1 << 20;

/// `mov $15, %rax; syscall`, where 15 is `rt_sigreturn`: glibc, musl and Go end a signal handler with it.
const LONG_SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// `mov $15, %eax; syscall`.
const SHORT_SIGRETURN: [u8; 7] = [0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];

const CALL_RELATIVE: u8 = 0xe8;
const GROUP_5: u8 = 0xff;

/// The executable segments of a file, read as they are asked for.
pub(super) struct Code<'a, 'e> {
    source: Source<'a>,
    elf: &'e Elf,
    window: Cow<'a, [u8]>,
    window_start: u64,
}

impl<'a, 'e> Code<'a, 'e> {
    pub(super) fn new(source: Source<'a>, elf: &'e Elf) -> Self {
        Code { source, elf, window: Cow::default(), window_start: 0 }
    }

    /// Whether an instruction in this range may be a call. Conservative: any byte that could begin one counts,
    /// in the middle of another instruction too, and so does code that cannot be read.
    pub(super) fn may_call(&mut self, start: u64, end: u64) -> bool {
        self.bytes(start, end).is_none_or(may_call)
    }

    /// The bytes from `start` to `end`, where they lie in one segment and fit the window.
    pub(super) fn bytes(&mut self, start: u64, end: u64) -> Option<&[u8]> {
        let length = end.checked_sub(start).filter(|&length| length <= WINDOW_BYTES)?;
        let is_loaded = |window: u64, bytes: usize| start >= window && end <= window + bytes as u64;
        if !is_loaded(self.window_start, self.window.len()) {
            let (file_offset, rest) = self.elf.file_range_at(start)?;
            self.window = self.source.read(file_offset, rest.min(WINDOW_BYTES)).ok()?;
            self.window_start = start;
        }
        let from = usize::try_from(start.checked_sub(self.window_start)?).ok()?;
        self.window.get(from..)?.get(..usize::try_from(length).ok()?)
    }

    /// A copy of the bytes from `start` to `end`, which may be larger than the window.
    pub(super) fn copy(&self, start: u64, end: u64) -> Option<Vec<u8>> {
        let (file_offset, rest) = self.elf.file_range_at(start)?;
        let length = end.checked_sub(start).filter(|&length| length <= rest)?;
        Some(self.source.read(file_offset, length).ok()?.into_owned())
    }

    /// Where the file returns from signals: first address and first address after.
    pub(super) fn signal_returns(&self, most: usize) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for segment in self.elf.segments.iter().filter(|segment| segment.executable) {
            let mut into = 0;
            while into < segment.file_bytes && found.len() < most {
                let length = (segment.file_bytes - into).min(WINDOW_BYTES);
                let Some(at) = segment.file_offset.checked_add(into) else { break };
                let Ok(bytes) = self.source.read(at, length) else { break };
                let places = signal_returns(&bytes).take(most - found.len());
                found.extend(places.map(|(offset, length)| {
                    let start = segment.address.saturating_add(into).saturating_add(offset as u64);
                    (start, start.saturating_add(length as u64))
                }));
                // Windows overlap, so that a sequence across their border is seen.
                into += length.saturating_sub(LONG_SIGRETURN.len() as u64).max(1);
                if length < WINDOW_BYTES {
                    break;
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn may_call(code: &[u8]) -> bool {
    memchr::memchr2_iter(CALL_RELATIVE, GROUP_5, code).any(|at| {
        let is_relative = code.get(at) == Some(&CALL_RELATIVE);
        // The ModRM byte's middle bits choose the operation: 2 and 3 call.
        is_relative || code.get(at + 1).is_none_or(|modrm| matches!(modrm >> 3 & 7, 2 | 3))
    })
}

fn signal_returns(code: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let long = memmem::find_iter(code, &LONG_SIGRETURN).map(|at| (at, LONG_SIGRETURN.len()));
    // With a REX prefix before it, this is a move to another register.
    let is_whole =
        |&at: &usize| at.checked_sub(1).and_then(|before| code.get(before)).is_none_or(|b| b & 0xf0 != 0x40);
    let short =
        memmem::find_iter(code, &SHORT_SIGRETURN).filter(is_whole).map(|at| (at, SHORT_SIGRETURN.len()));
    long.chain(short.collect::<Vec<_>>())
}
