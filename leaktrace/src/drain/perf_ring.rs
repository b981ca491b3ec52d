//! The ring of one perf event: a buffer shared with the kernel, which moves its head; this side moves the tail.
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// Where `data_head` lies in `struct perf_event_mmap_page`; `data_tail` follows it.
const HEAD: usize = 1024;
const TAIL: usize = HEAD + 8;
/// The page before the data.
const PAGE_BYTES: usize = 4096;
/// Bytes of a record's header: type, misc, size.
const HEADER_BYTES: usize = 8;

/// A perf event's ring.
#[derive(Debug)]
pub struct PerfRing {
    event: OwnedFd,
    base: NonNull<u8>,
    data_bytes: usize,
}

impl PerfRing {
    /// Maps the ring of `event`, with room for `data_bytes`: a power of two, in whole pages.
    ///
    /// # Errors
    /// The system call's error.
    pub fn map(event: OwnedFd, data_bytes: usize) -> io::Result<PerfRing> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let bytes = PAGE_BYTES + data_bytes;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, event.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned NULL"))?;
        Ok(PerfRing { event, base, data_bytes })
    }

    /// The event's descriptor: readable when there are records.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Gives every record that is there now to `each`, and frees their room.
    pub fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        let head = self.position(HEAD).load(Ordering::Acquire);
        let mut tail = self.position(TAIL).load(Ordering::Relaxed);
        let mut record = Vec::new();
        while head.wrapping_sub(tail) >= HEADER_BYTES as u64 {
            self.copy(tail, HEADER_BYTES, &mut record);
            let size = record.get(6..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes);
            if usize::from(size) < HEADER_BYTES || u64::from(size) > head.wrapping_sub(tail) {
                // The kernel writes whole records: what lies here cannot be made sense of.
                tail = head;
                break;
            }
            self.copy(tail, usize::from(size), &mut record);
            each(&record);
            tail = tail.wrapping_add(u64::from(size));
        }
        self.position(TAIL).store(tail, Ordering::Release);
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets lie in the first page.
        let word = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned, and valid as long as `self`; the kernel accesses it as a whole.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Copies bytes at a position of the ring, which may go on at its start.
    fn copy(&self, position: u64, length: usize, to: &mut Vec<u8>) {
        let start = (position % self.data_bytes as u64) as usize;
        let first = length.min(self.data_bytes - start);
        to.clear();
        to.reserve(length);
        for (offset, count) in [(start, first), (0, length - first)] {
            // SAFETY: `offset` is less than the length of the data, which follows the first page.
            let from = unsafe { self.base.as_ptr().add(PAGE_BYTES + offset) };
            // SAFETY: `count` bytes from there lie in the data; the kernel does not write what is behind its head.
            to.extend_from_slice(unsafe { std::slice::from_raw_parts(from, count) });
        }
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and is not used after this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), PAGE_BYTES + self.data_bytes) };
    }
}
