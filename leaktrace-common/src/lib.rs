//! What crosses the boundary between the kernel programs and user space: keys, values, events, counters and
//! the attach cookie, each with its layout asserted. Nothing here allocates, fails or knows a map's size.
//!
//! Every type is `repr(C)` without padding that the compiler could leave uninitialised, because the verifier
//! refuses to copy uninitialised bytes into a map and user space reads the bytes as they are.
#![no_std]

pub mod counter;
pub mod event;
pub mod heap;
pub mod hook;
pub mod near;
pub mod sample;
pub mod target;
pub mod unwind;

/// Asserts at compile time that a type has the size and alignment that both sides of the boundary rely on.
macro_rules! assert_layout {
    ($type:ty, size = $size:expr, align = $align:expr) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == $align);
        };
    };
}
pub(crate) use assert_layout;

/// A type whose every bit pattern is valid and that has no padding, so that it may be read from raw bytes.
///
/// # Safety
/// The implementor is `repr(C)` or primitive, `Copy`, without padding, and valid for every bit pattern.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: an integer has no padding and is valid for every bit pattern.
unsafe impl Plain for u32 {}
// SAFETY: an integer has no padding and is valid for every bit pattern.
unsafe impl Plain for u64 {}

/// Reads a value from the front of `bytes`, or `None` when there are too few of them. Alignment is not needed.
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, and `Plain` promises that any bytes make a valid `T`.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

/// The bytes of a value as they lie in memory.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` promises that `T` has no padding, and the slice borrows `value`.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}
