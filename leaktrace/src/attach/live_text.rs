//! Whether a function's code in a process is that of its file. A probe goes into the file: where the process has put
//! other code in its place (hooking libraries do), the kernel would carry out the wrong instruction; where it has moved
//! the code away, no probe would ever be hit.
use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::prologue;
use crate::discover::{
    maps::{self, MapEntry},
    memory::page_bytes,
};

/// `int3`: another probe, or a debugger's breakpoint.
const BREAKPOINT: u8 = 0xcc;
/// `call rel32`, which a probed nop may have become.
const CALL: u8 = 0xe8;
/// Bits of an entry of `/proc/PID/pagemap`.
const IS_PRESENT: u64 = 1 << 63;
const IS_SWAPPED: u64 = 1 << 62;
/// The page is the file's, and not a copy of this process.
const IS_OF_FILE: u64 = 1 << 61;

/// The code of a process as it is now.
#[derive(Debug)]
pub struct LiveText {
    mappings: Vec<MapEntry>,
    pages: File,
    memory: File,
    page_bytes: u64,
}

impl LiveText {
    /// Opens what tells of it.
    ///
    /// # Errors
    /// Of opening files under /proc: the process is gone, or may not be looked into.
    pub fn open(pid: u32) -> io::Result<LiveText> {
        Ok(LiveText {
            mappings: maps::read(pid)?,
            pages: File::open(format!("/proc/{pid}/pagemap"))?,
            memory: File::open(format!("/proc/{pid}/mem"))?,
            page_bytes: page_bytes(),
        })
    }

    /// Checks the instruction at an address, which is `bytes` in the file.
    ///
    /// # Errors
    /// A clause that says why no probe may be there.
    pub fn check(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let entry = self.mappings.iter().find(|entry| entry.contains(address));
        if !entry.is_some_and(|entry| entry.executable && entry.is_file()) {
            return Err(
                "the process has moved this code out of its file: no probe can be where it is now".to_owned()
            );
        }
        // Pages that the process has not written to are the file's own.
        let last = address.saturating_add(bytes.len().saturating_sub(1) as u64);
        let is_copy = self.is_copy(address) || self.is_copy(last);
        if is_copy && !self.is_same(address, bytes) {
            return Err(
                "the process has changed this code: a probe would carry out what its file says".to_owned()
            );
        }
        Ok(())
    }

    fn is_copy(&self, address: u64) -> bool {
        let mut entry = [0; 8];
        let at = (address / self.page_bytes).saturating_mul(8);
        let is_read = self.pages.read_exact_at(&mut entry, at).is_ok();
        let bits = u64::from_ne_bytes(entry);
        is_read && bits & (IS_PRESENT | IS_SWAPPED) != 0 && bits & IS_OF_FILE == 0
    }

    /// Whether memory holds these bytes, or a breakpoint in front of them.
    fn is_same(&self, address: u64, bytes: &[u8]) -> bool {
        let mut live = vec![0; bytes.len()];
        if self.memory.read_exact_at(&mut live, address).is_err() {
            return false;
        }
        match (live.split_first(), bytes.split_first()) {
            (Some((&first, rest)), Some((&expected, behind))) => {
                let is_call = first == CALL && prologue::becomes_call(bytes);
                is_call || rest == behind && (first == expected || first == BREAKPOINT)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of code that this process may write to; the file that it stands for has `push %rbp`s.
    fn page(file: &File, flags: i32) -> u64 {
        use std::os::fd::AsRawFd as _;
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_raw_fd(), 0) };
        page as u64
    }

    fn file_of_code() -> File {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x55; 4096]).unwrap();
        file
    }

    fn write(address: u64, byte: u8) {
        // SAFETY: the address lies in a writable page that `page` mapped and nothing unmaps.
        unsafe { std::ptr::write_volatile(address as *mut u8, byte) };
    }

    #[test]
    fn code_as_in_its_file_may_be_probed_and_changed_code_may_not() {
        let file = file_of_code();
        let address = page(&file, libc::MAP_PRIVATE) + 0x100;
        let check = || LiveText::open(std::process::id()).unwrap().check(address, &[0x55, 0x55]);
        assert_eq!(check(), Ok(()));
        write(address, BREAKPOINT);
        assert_eq!(check(), Ok(()), "another probe");
        write(address, 0xe9);
        assert!(check().unwrap_err().contains("has changed this code"));
        write(address, 0x55);
        assert_eq!(check(), Ok(()), "a copy of the page that says the same");
        write(address + 1, 0x90);
        assert!(check().is_err());
    }

    #[test]
    fn code_that_lies_in_no_file_any_more_cannot_be_probed() {
        let file = file_of_code();
        let address = page(&file, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let refused = LiveText::open(std::process::id()).unwrap().check(address, &[0x55]).unwrap_err();
        assert!(refused.contains("moved this code"), "{refused}");
    }

    #[test]
    fn a_nop_that_has_become_a_call_is_another_probe() {
        let file = file_of_code();
        let address = page(&file, libc::MAP_PRIVATE);
        write(address, CALL);
        let text = LiveText::open(std::process::id()).unwrap();
        assert_eq!(text.check(address, &[0x0f, 0x1f, 0x44, 0, 0]), Ok(()));
        assert!(text.check(address, &[0x48, 0x89, 0x7c, 0x24, 0xf8]).is_err());
    }
}
