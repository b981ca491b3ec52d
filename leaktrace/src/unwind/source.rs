//! Where a file's bytes come from: an open file, or bytes in memory (the vdso, tests). Opening it, and proving
//! that it is the file that is mapped, is left to the caller.
//!
//! Files are read with `pread` and never mapped: a file that shrinks while it is mapped kills its reader with
//! SIGBUS, and these files belong to others.
use std::{borrow::Cow, fs::File, io, os::unix::fs::FileExt};

/// The bytes of an ELF file.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file that is open for reading.
    File(&'a File),
    /// A file's bytes, or the vdso's as they lie in memory.
    Bytes(&'a [u8]),
}

impl<'a> Source<'a> {
    /// How long the file is, in bytes.
    pub fn len_bytes(&self) -> io::Result<u64> {
        match self {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Reads exactly `length` bytes at `offset`. A range that leaves the file is an error before anything is
    /// allocated, so that a made-up length costs nothing.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Cow<'a, [u8]>> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        match self {
            Source::Bytes(bytes) => {
                let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
                let part = range.and_then(|(from, to)| bytes.get(from..to));
                part.map(Cow::Borrowed).ok_or(io::ErrorKind::UnexpectedEof.into())
            }
            Source::File(file) => {
                if end > self.len_bytes()? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let length = usize::try_from(length).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let mut buffer = vec![0; length];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(Cow::Owned(buffer))
            }
        }
    }
}
