//! Kernel arrays that user space writes through a shared mapping (BPF_F_MMAPABLE, Linux 5.5): unwind rows,
//! pages, rules and the mapping tables of processes. One store or one copy, no system call.
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering, fence},
};

use leaktrace_common::{
    Plain,
    unwind::{MAX_MAPPINGS, Mapping, Mappings, ProcessMappings},
};

/// A shared mapping of an array map.
pub struct SharedArray {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; writers have `&mut`.
unsafe impl Send for SharedArray {}

impl SharedArray {
    /// Maps the first `bytes` of the values of an array map.
    ///
    /// # Errors
    /// The system call's error.
    pub fn map(map: BorrowedFd<'_>, bytes: usize) -> io::Result<SharedArray> {
        let bytes = bytes.next_multiple_of(4096);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned NULL"))?;
        Ok(SharedArray { base, bytes })
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

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset + 4 > self.bytes {
            return None;
        }
        // SAFETY: the offset was checked against the length of the mapping.
        let word = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: aligned (the base is a page) and valid as long as `self`; both sides use plain 32-bit accesses.
        Some(unsafe { AtomicU32::from_ptr(word.cast()) })
    }

    /// Publishes the executable mappings of the process in slot `slot`: into the copy that the walker does not
    /// read, then one store switches. At most [`MAX_MAPPINGS`] entries are taken.
    pub fn publish(&mut self, slot: u32, mappings: &[Mapping]) {
        let base = slot as usize * size_of::<ProcessMappings>();
        let Some(active) = self.word(base).map(|word| word.load(Ordering::Acquire)) else { return };
        let next = active.wrapping_add(1);
        let inactive = next & 1;
        let copy = base + 8 + inactive as usize * size_of::<Mappings>();
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
        if let Some(loading) = self.word(base + 4) {
            loading.store(0, Ordering::Release);
        }
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and is not used after this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Mappings as words of 8 bytes, which is how their array is addressed.
fn words(mappings: &[Mapping]) -> Vec<u64> {
    let mut words = Vec::with_capacity(mappings.len() * 4);
    for mapping in mappings {
        let pages = u64::from(mapping.first_page) | u64::from(mapping.pages) << 32;
        words.extend([mapping.start, mapping.end, mapping.bias, pages]);
    }
    words
}
