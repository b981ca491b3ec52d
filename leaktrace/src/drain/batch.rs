//! Reading whole hash maps with batch operations (Linux 5.6): a few system calls for a million entries, and no
//! restart when a key vanishes in between.
use std::{io, os::fd::BorrowedFd};

use leaktrace_common::{Plain, read};

use crate::attach::sys;

/// Entries per call to begin with; doubled when a bucket holds more. Few, so that the same memory is used again and
/// again: a call takes far longer than the kernel needs to find its place again.
const FIRST_CAPACITY: u32 = 2048;
/// A bucket with more entries than this is not believed.
const LAST_CAPACITY: u32 = 1 << 22;

/// Calls `each` for every entry of a hash map. Entries that are added or deleted meanwhile may be seen or not;
/// every other is seen once.
///
/// # Errors
/// The system call's error.
pub fn for_each<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    max_entries: u32,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    let mut capacity = FIRST_CAPACITY.min(max_entries.max(1));
    let mut keys = buffer::<K>(capacity);
    let mut values = buffer::<V>(capacity);
    let mut position = None;
    loop {
        let mut batch = sys::Batch { map, position, keys: &mut keys, values: &mut values, capacity };
        let found = match sys::lookup_batch(&mut batch) {
            Ok(found) => found,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < LAST_CAPACITY => {
                capacity *= 2;
                keys = buffer::<K>(capacity);
                values = buffer::<V>(capacity);
                continue;
            }
            Err(error) => return Err(error),
        };
        let pairs = keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(size_of::<V>()));
        for (key, value) in pairs.take(found.count as usize) {
            if let (Some(key), Some(value)) = (read(key), read(value)) {
                each(key, value);
            }
        }
        position = found.next;
        if position.is_none() {
            return Ok(());
        }
    }
}

fn buffer<T>(capacity: u32) -> Vec<u8> {
    vec![0; capacity as usize * size_of::<T>()]
}
