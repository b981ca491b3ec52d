//! Blocks and sites: the values of the LIVE and SITES maps.
use crate::{Plain, assert_layout, sample::WEIGHT_BITS};

/// Key of the SITES map: one allocation call stack of one process image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SiteKey {
    /// The process (thread group id in the initial pid namespace) that owns the address space.
    pub tgid: u32,
    /// The image of that process: bumped by every exec.
    pub generation: u32,
    /// Hash of the stack, never 0; [`NO_STACK`] where none was taken.
    pub stack: u64,
}
assert_layout!(SiteKey, size = 16, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for SiteKey {}

/// The stack hash of allocations recorded without a stack (`--combined-only`).
pub const NO_STACK: u64 = 1;

/// One live allocation: the value of a target's LIVE map, keyed by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// Bytes asked for; of a block recorded by sampling, bytes taken ([`crate::sample::SizeModel`]).
    pub size_bytes: u64,
    /// When it was allocated, in ns of CLOCK_BOOTTIME.
    pub born_ns: u64,
    /// The site's stack hash; in a block that has been freed, a mark ([`Block::is_live`]).
    pub stack: u64,
    /// Sampling threshold: the block was recorded with probability threshold / 2^32; 0 stands for 1
    /// ([`crate::sample::CERTAIN`]).
    pub threshold: u32,
    /// Low 16 bits of the process image's generation.
    pub generation: u16,
    /// The hook that recorded it: [`crate::hook::Hook::function`].
    pub function: u16,
}
assert_layout!(Block, size = 32, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for Block {}

/// Bit of a key in a table of live blocks whose block lies at the address without it: the entry at that address was being
/// removed when the block was recorded, by a thread that did not get to run.
pub const SET_ASIDE: u64 = 1 << 63;

/// The bit that marks a block as freed. No stack's hash has it.
const FREED: u64 = 1 << 63;
/// The bit that marks it as being written or removed.
const CLAIMED: u64 = 1 << 62;

/// A stack's hash as it is used: below the marks, and neither 0 nor [`NO_STACK`].
#[inline(always)]
pub const fn stack_id(hash: u64) -> u64 {
    let id = hash & !FREED;
    if id <= NO_STACK { NO_STACK + 1 } else { id }
}

impl Block {
    /// Whether it is live. A block that was freed may stay in the table for a while, for the next allocation at its
    /// address.
    pub const fn is_live(&self) -> bool {
        self.stack & FREED == 0
    }

    /// What takes the place of the stack in a block at `address` that was freed. It names the address, so that nobody
    /// takes the memory of one block for that of another.
    #[inline(always)]
    pub const fn freed_mark(address: u64) -> u64 {
        FREED | address & !CLAIMED
    }

    /// What takes its place while somebody writes or removes the block.
    #[inline(always)]
    pub const fn claimed_mark(address: u64) -> u64 {
        FREED | CLAIMED | address
    }
}

/// Buckets of the lifetime histogram; see [`lifetime_bucket`].
pub const LIFETIME_BUCKETS: usize = 32;

/// What a site has allocated and freed since tracing began: the value of the SITES map.
///
/// Outstanding is allocated minus freed. The four totals are updated atomically; each is exact, a reader may
/// see them a few events apart. With sampling each block adds what it stands for ([`crate::sample`]), at its end
/// the very same amounts, so that the difference is never negative. In the kernel's map counts have a fraction of
/// [`WEIGHT_BITS`] bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SiteTotals {
    /// Sum of the sizes of all recorded allocations.
    pub allocated_bytes: u64,
    /// How many allocations were recorded.
    pub allocated_count: u64,
    /// Sum of the sizes of those that were freed.
    pub freed_bytes: u64,
    /// How many of them were freed.
    pub freed_count: u64,
    /// Lifetimes of the freed ones, by [`lifetime_bucket`]: how many records, whatever they stand for.
    pub lifetimes: [u32; LIFETIME_BUCKETS],
}
assert_layout!(SiteTotals, size = 160, align = 8);
// SAFETY: `repr(C)`, integers only, no padding (asserted by its size).
unsafe impl Plain for SiteTotals {}

impl SiteTotals {
    /// A site that has recorded nothing.
    pub const ZERO: SiteTotals = SiteTotals {
        allocated_bytes: 0,
        allocated_count: 0,
        freed_bytes: 0,
        freed_count: 0,
        lifetimes: [0; LIFETIME_BUCKETS],
    };

    /// The same with counts rounded to whole numbers.
    pub fn in_whole_blocks(self) -> SiteTotals {
        let whole = |count: u64| count.saturating_add(1 << (WEIGHT_BITS - 1)) >> WEIGHT_BITS;
        SiteTotals {
            allocated_count: whole(self.allocated_count),
            freed_count: whole(self.freed_count),
            ..self
        }
    }
}

/// The histogram bucket of a lifetime: bucket `b` > 0 holds 2^(b+9) ≤ ns < 2^(b+10); bucket 0 all below 1024 ns,
/// the last one all that is longer (about 18 minutes and more).
#[inline(always)]
pub const fn lifetime_bucket(lifetime_ns: u64) -> usize {
    let bits = 64 - (lifetime_ns >> 10).leading_zeros() as usize;
    if bits < LIFETIME_BUCKETS { bits } else { LIFETIME_BUCKETS - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_buckets_are_powers_of_two_above_a_microsecond() {
        assert_eq!(lifetime_bucket(0), 0);
        assert_eq!(lifetime_bucket(1023), 0);
        assert_eq!(lifetime_bucket(1024), 1);
        assert_eq!(lifetime_bucket(2047), 1);
        assert_eq!(lifetime_bucket(2048), 2);
        assert_eq!(lifetime_bucket(u64::MAX), LIFETIME_BUCKETS - 1);
    }
}
