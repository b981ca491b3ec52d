//! Hook descriptors: what a probed function does with its arguments, packed into the 64-bit attach cookie, so
//! that one allocation program and one free program serve every allocator.

use crate::{Plain, assert_layout, sample::SizeModel};

/// What the probed function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shape {
    /// Returns a new block of `size` bytes (times `count`, where there is one) or NULL.
    Allocate = 0,
    /// Takes the old block in `pointer`, returns the new one; NULL with size > 0 leaves the old one as it was.
    Reallocate = 1,
    /// Stores the new block through `pointer` and returns 0, or returns an error number.
    StoreThrough = 2,
    /// Resizes the block in `pointer` in place and returns its size (jemalloc's `xallocx`).
    ResizeInPlace = 3,
    /// Frees the block in `pointer`.
    Free = 4,
    /// Marks the end of an [`Shape::Allocate`] call whose return cannot be probed: placed on its exits.
    Exit = 5,
    /// An exception is thrown: the call under way that it leaves will not return.
    Throw = 6,
}

impl Shape {
    const fn from_bits(bits: u64) -> Shape {
        match bits & 7 {
            0 => Shape::Allocate,
            1 => Shape::Reallocate,
            2 => Shape::StoreThrough,
            3 => Shape::ResizeInPlace,
            4 => Shape::Free,
            5 => Shape::Exit,
            _ => Shape::Throw,
        }
    }
}

/// Where an argument is: its position in the System V calling convention, 0 to 5.
pub type Argument = u8;

/// Where most functions have what they are about.
pub const FIRST_ARGUMENT: Argument = 0;

/// An absent argument.
pub const NO_ARGUMENT: Argument = 7;

/// A hook descriptor, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// What the function does.
    pub shape: Shape,
    /// The argument that holds the size in bytes.
    pub size: Argument,
    /// The argument that the size is multiplied by (`calloc`), or [`NO_ARGUMENT`].
    pub count: Argument,
    /// The argument that holds the old block, or the place where the new one is stored.
    pub pointer: Argument,
    /// `realloc(p, 0)` frees `p` (glibc) instead of returning a new block of size 0.
    pub zero_frees: bool,
    /// A failing reallocation frees the old block all the same (`reallocf`).
    pub failure_frees: bool,
    /// No return probe: an exception may cross the function. [`Shape::Exit`] probes see its end.
    pub may_throw: bool,
    /// Index of the function in the agent's list of probed functions, for reports.
    pub function: u16,
    /// Words of 8 bytes from the stack pointer at the probe to the word that holds the return address.
    pub return_slot_words: u8,
    /// What its allocator takes for a request.
    pub size_model: SizeModel,
    /// It may call, or jump to, other probed functions, or map memory where its stack cannot be told: a call that
    /// sampling passes over must leave a mark, so that what it calls is not drawn for again.
    pub nests: bool,
    /// What a hit costs the target, in units of [`COST_UNIT_NS`], as it was measured on this host.
    pub cost: u8,
    /// The slot of the process that the probe is set for, below [`SLOTS`]: what every hit needs is found by it
    /// without a hash.
    pub process: u32,
}

/// Unit of [`Hook::cost`]: a single-stepped probe takes up to 20 µs.
pub const COST_UNIT_NS: u64 = 128;

/// Slots of processes: a process's slot is its table's key, masked. No two processes have one slot at a time, and no
/// two tables ever one key.
pub const SLOTS: u32 = 2048;
const _: () = assert!(SLOTS.is_power_of_two());

/// The slot of the process whose table of live blocks has this key.
#[inline(always)]
pub const fn slot_of_table(table: u32) -> u32 {
    table & (SLOTS - 1)
}

/// Probe hits of a process, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hits {
    /// How many.
    pub count: u64,
    /// Sum of their costs, in units of [`COST_UNIT_NS`].
    pub cost: u64,
    /// State of the generator that sampling draws from.
    pub random: u64,
}
assert_layout!(Hits, size = 24, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Hits {}

impl Hook {
    /// Whether the first argument is the size and nothing else matters to the draw.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        matches!(self.shape, Shape::Allocate)
            && self.size == FIRST_ARGUMENT
            && self.count == NO_ARGUMENT
            && !self.nests
    }

    /// A hook of `shape` with no arguments, placed on a function's first instruction.
    pub const fn new(shape: Shape) -> Hook {
        Hook {
            shape,
            size: NO_ARGUMENT,
            count: NO_ARGUMENT,
            pointer: NO_ARGUMENT,
            zero_frees: false,
            failure_frees: false,
            may_throw: false,
            function: 0,
            return_slot_words: 0,
            size_model: SizeModel::Asked,
            nests: false,
            cost: 0,
            process: 0,
        }
    }

    /// Packs the descriptor. Bits from 0: shape 3, size 3, count 3, pointer 3, four flags,
    /// function 16, return slot 8, size model 3, cost 8, process 11.
    pub const fn to_cookie(self) -> u64 {
        (self.shape as u64)
            | (self.size as u64 & 7) << 3
            | (self.count as u64 & 7) << 6
            | (self.pointer as u64 & 7) << 9
            | (self.zero_frees as u64) << 12
            | (self.failure_frees as u64) << 13
            | (self.may_throw as u64) << 14
            | (self.nests as u64) << 15
            | (self.function as u64) << 16
            | (self.return_slot_words as u64) << 32
            | (self.size_model as u64) << 40
            | (self.cost as u64) << 43
            | (self.process as u64 & (SLOTS as u64 - 1)) << 51
    }

    /// Unpacks a descriptor; bits that [`Hook::to_cookie`] does not set are ignored.
    #[inline(always)]
    pub const fn from_cookie(cookie: u64) -> Hook {
        Hook {
            shape: Shape::from_bits(cookie),
            size: (cookie >> 3 & 7) as Argument,
            count: (cookie >> 6 & 7) as Argument,
            pointer: (cookie >> 9 & 7) as Argument,
            zero_frees: cookie >> 12 & 1 != 0,
            failure_frees: cookie >> 13 & 1 != 0,
            may_throw: cookie >> 14 & 1 != 0,
            function: (cookie >> 16) as u16,
            return_slot_words: (cookie >> 32) as u8,
            size_model: SizeModel::from_bits(cookie >> 40),
            nests: cookie >> 15 & 1 != 0,
            cost: (cookie >> 43) as u8,
            process: (cookie >> 51) as u32 & (SLOTS - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_the_cookie() {
        for shape in [
            Shape::Allocate,
            Shape::Reallocate,
            Shape::StoreThrough,
            Shape::ResizeInPlace,
            Shape::Free,
            Shape::Exit,
            Shape::Throw,
        ] {
            let hook = Hook {
                shape,
                size: 1,
                count: 2,
                pointer: 5,
                zero_frees: true,
                failure_frees: false,
                may_throw: true,
                function: 0xbeef,
                return_slot_words: 0x5a,
                size_model: SizeModel::GlibcChunk,
                nests: true,
                cost: 0xa7,
                process: 0x7a5,
            };
            assert_eq!(Hook::from_cookie(hook.to_cookie()), hook);
            let bare = Hook::new(shape);
            assert_eq!(Hook::from_cookie(bare.to_cookie()), bare);
        }
    }
}
