//! Kernel arrays that user space writes through a shared mapping (BPF_F_MMAPABLE, Linux 5.5): unwind rows,
//! pages, rules, the settings and the mapping tables of processes. One store or one copy, no system call.
use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use leaktrace_common::{
    Plain, read,
    unwind::{MAPPINGS_HEADER_BYTES, MAX_MAPPINGS, Mapping, Mappings, ProcessMappings},
};

/// A shared mapping of an array map.
pub struct SharedArray {
    base: NonNull<u8>,
    bytes: usize,
    /// Bytes of the mapping before `base`.
    skipped: usize,
}

const PAGE_BYTES: usize = 4096;

// SAFETY: the mapping belongs to the process, not to a thread; writers have `&mut`.
unsafe impl Send for SharedArray {}

// SAFETY: what works on `&self` reads plain data or is atomic.
unsafe impl Sync for SharedArray {}

impl SharedArray {
    /// Maps the first `bytes` of the values of an array map.
    ///
    /// # Errors
    /// The system call's error.
    pub fn map(map: BorrowedFd<'_>, bytes: usize) -> io::Result<SharedArray> {
        SharedArray::map_part(map, 0, bytes)
    }

    /// Maps `bytes` of the values of an array map from `offset` on.
    ///
    /// # Errors
    /// The system call's error.
    pub fn map_part(map: BorrowedFd<'_>, offset: usize, bytes: usize) -> io::Result<SharedArray> {
        let skipped = offset % PAGE_BYTES;
        let length = (skipped + bytes).next_multiple_of(PAGE_BYTES);
        let first = libc::off_t::try_from(offset - skipped).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, map.as_raw_fd(), first)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned NULL"))?;
        // SAFETY: less than a page, and the mapping has one at least.
        let base = unsafe { start.add(skipped) };
        Ok(SharedArray { base, bytes: length - skipped, skipped })
    }

    /// Copies `values` to the place of value number `index` and after it; `false` when they do not fit.
    pub fn write<T: Plain>(&mut self, index: usize, values: &[T]) -> bool {
        let Some(offset) = index.checked_mul(size_of::<T>()) else { return false };
        let length = size_of_val(values);
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            return false;
        }
        // SAFETY: the offset was checked against the length of the mapping.
        let to = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: source and target are `length` bytes and do not overlap; the kernel reads plain data.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), to, length) };
        true
    }

    /// Copies value number `index` out.
    pub fn read<T: Plain>(&self, index: usize) -> Option<T> {
        let offset = index.checked_mul(size_of::<T>())?;
        offset.checked_add(size_of::<T>()).filter(|end| *end <= self.bytes)?;
        // SAFETY: the offset was checked against the length of the mapping.
        let from = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the value lies in the mapping; what it holds is written by this process alone.
        read(unsafe { std::slice::from_raw_parts(from, size_of::<T>()) })
    }

    /// How often the process in slot `slot` has mapped code, as the kernel programs count it. To be read before what the
    /// publication will be made of.
    pub fn changes(&self, slot: u32) -> u32 {
        let base = slot as usize * size_of::<ProcessMappings>();
        self.word(base + offset_of!(ProcessMappings, changes)).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether the process in slot `slot` has mapped code that its mappings do not know.
    pub fn is_pending(&self, slot: u32) -> bool {
        let base = slot as usize * size_of::<ProcessMappings>();
        let covered = self.word(base + offset_of!(ProcessMappings, covered));
        covered.is_some_and(|word| word.load(Ordering::Acquire) != self.changes(slot))
    }

    /// Takes 1 from the 32-bit word number `index`, modulo 2^32, while kernel programs may add to it.
    pub fn count_down(&self, index: usize) {
        if let Some(word) = index.checked_mul(4).and_then(|offset| self.word(offset)) {
            word.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The aligned 32-bit word at a byte offset, which kernel programs may write too.
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset + 4 > self.bytes {
            return None;
        }
        // SAFETY: the offset was checked against the length of the mapping.
        let word = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned (the base is a page) and valid as long as `self`; both sides use plain 32-bit accesses.
        Some(unsafe { AtomicU32::from_ptr(word.cast()) })
    }

    /// The aligned 64-bit word at a byte offset, which kernel programs may write too.
    pub fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset + 8 > self.bytes {
            return None;
        }
        // SAFETY: the offset was checked against the length of the mapping.
        let word = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned (the base is a page) and valid as long as `self`; both sides use plain 64-bit accesses.
        Some(unsafe { AtomicU64::from_ptr(word.cast()) })
    }

    /// Publishes the executable mappings of the process in slot `slot`: into the copy that the walker does not
    /// read, then one store switches. At most [`MAX_MAPPINGS`] entries are taken. They know all code that the
    /// process had mapped when [`SharedArray::changes`] was `covered`.
    pub fn publish(&mut self, slot: u32, mappings: &[Mapping], covered: u32) {
        let base = slot as usize * size_of::<ProcessMappings>();
        let Some(active) = self.word(base).map(|word| word.load(Ordering::Acquire)) else { return };
        let next = active.wrapping_add(1);
        let inactive = next & 1;
        let copy = base + MAPPINGS_HEADER_BYTES + inactive as usize * size_of::<Mappings>();
        let mappings = mappings.get(..mappings.len().min(MAX_MAPPINGS)).unwrap_or_default();
        let count = mappings.len() as u32;
        let written = self.write((copy + 8) / 8, &words(mappings));
        if !written {
            return;
        }
        if let Some(word) = self.word(copy) {
            word.store(count, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        if let Some(word) = self.word(base) {
            word.store(next, Ordering::Release);
        }
        if let Some(word) = self.word(base + offset_of!(ProcessMappings, covered)) {
            word.store(covered, Ordering::Release);
        }
        if let Some(loading) = self.word(base + offset_of!(ProcessMappings, loading)) {
            loading.store(0, Ordering::Release);
        }
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping begins so far before.
        let start = unsafe { self.base.as_ptr().sub(self.skipped) };
        // SAFETY: the mapping was made by `map_part` and is not used after this.
        unsafe { libc::munmap(start.cast(), self.skipped + self.bytes) };
    }
}

/// Mappings as words of 8 bytes, which is how their array is addressed.
fn words(mappings: &[Mapping]) -> Vec<u64> {
    let mut words = Vec::with_capacity(mappings.len() * 4);
    for mapping in mappings {
        let pages =
            u64::from(mapping.first_page) | u64::from(mapping.pages) << 32 | u64::from(mapping.salt) << 48;
        words.extend([mapping.start, mapping.end, mapping.bias, pages]);
    }
    words
}
