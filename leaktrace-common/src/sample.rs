//! Poisson sampling by bytes: how much an allocation takes, with which probability it is recorded, and what a
//! recorded block stands for. Drawing the random number is left to the kernel programs, sums and their errors to
//! user space.
//!
//! An allocation of s bytes is recorded with probability p = 1 − e^(−s/R), R being the mean interval: as if one
//! byte in R were marked at random and blocks with a marked byte were kept. The probability comes from a table
//! and is off by a few percent; the weight 1/p is exact all the same, because the very threshold that the random
//! number was compared with is stored with the block.

/// What an allocator takes for a request, so that a request of 0 bytes can be sampled and sums match memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SizeModel {
    /// What was asked for, at least a byte: nothing is known about the allocator.
    Asked = 0,
    /// Multiples of 16 and the size 8: a lower bound for tcmalloc's size classes, which waste up to an eighth.
    Sixteens = 1,
    /// glibc's chunk: a header of 8 bytes, multiples of 16, at least 32.
    GlibcChunk = 2,
    /// musl's slot: 4 bytes of its own, multiples of 16.
    MuslSlot = 3,
    /// Four size classes in each doubling above 128 bytes, multiples of 16 below, and the size 8: jemalloc 5 and
    /// mimalloc 2.
    Quarters = 4,
}

/// Above this mimalloc maps pages.
const LAST_CLASS_BYTES: u64 = 16 << 20;

/// Requests from here on fail, or are mapped page by page.
const UNROUNDED_BYTES: u64 = 1 << 47;

impl SizeModel {
    pub(crate) const fn from_bits(bits: u64) -> SizeModel {
        match bits & 7 {
            0 => SizeModel::Asked,
            1 => SizeModel::Sixteens,
            2 => SizeModel::GlibcChunk,
            3 => SizeModel::MuslSlot,
            _ => SizeModel::Quarters,
        }
    }

    /// Bytes that a request for `asked_bytes` takes; never 0.
    #[inline(always)]
    pub const fn taken_bytes(self, asked_bytes: u64) -> u64 {
        if asked_bytes >= UNROUNDED_BYTES {
            return asked_bytes;
        }
        let (own, least) = match self {
            SizeModel::Asked => return if asked_bytes == 0 { 1 } else { asked_bytes },
            SizeModel::Sixteens | SizeModel::Quarters => (0, 8),
            SizeModel::GlibcChunk => (8, 32),
            SizeModel::MuslSlot => (4, 16),
        };
        if asked_bytes + own <= least {
            return least;
        }
        let step = match self {
            SizeModel::Quarters if asked_bytes > 128 && asked_bytes <= LAST_CLASS_BYTES => {
                1 << (61 - (asked_bytes - 1).leading_zeros())
            }
            _ => 16,
        };
        (asked_bytes + own + (step - 1)) & !(step - 1)
    }
}

/// The stored threshold of a block that was recorded for certain.
pub const CERTAIN: u32 = 0;

/// The largest interval: up to here the arithmetic fits 64 bits.
pub const MAX_INTERVAL_BYTES: u64 = 1 << 32;

/// Entries of [`THRESHOLDS`]: 32 octaves of s/R with 8 steps each.
pub const TABLE_LENGTH: usize = 256;

/// Bits of the fraction in which s/R is computed; its octaves reach from 2^−28 to 2^4.
const FRACTION_BITS: u32 = 28;

/// The index in [`THRESHOLDS`] for `taken_bytes` at `interval_bytes` (1 to [`MAX_INTERVAL_BYTES`]); `None` from
/// 16 R on: such blocks are recorded for certain (what is missed otherwise is 1 in 9 million).
#[inline(always)]
pub const fn table_index(taken_bytes: u64, interval_bytes: u64) -> Option<usize> {
    if taken_bytes >= interval_bytes << 4 {
        return None;
    }
    let ratio = ((taken_bytes << FRACTION_BITS) / interval_bytes) | 1;
    let octave = 63 - ratio.leading_zeros();
    let step = if octave >= 3 { ratio >> (octave - 3) } else { ratio << (3 - octave) };
    Some((octave as usize & 31) << 3 | step as usize & 7)
}

/// Requests that [`is_passed_over`] can tell of: beyond, the products do not fit.
const MAX_QUICK_BYTES: u64 = 1 << 31;

/// What the thresholds of tiny s/R can be too high by, in units of 2^−32: a step of the fraction and a sixteenth.
const TINY: u64 = 32;

/// Whether a request for `asked_bytes` is not recorded whatever its size model says, by `random` (32 bits) and
/// `interval_bytes` (1 to [`MAX_INTERVAL_BYTES`]): one multiplication instead of a division and a table, which decides
/// about nearly all requests. It compares with a probability that is higher than any the table gives: p < s/R, s is at
/// most a quarter more than was asked for, and a little, and the table is off by a sixteenth.
#[inline(always)]
pub const fn is_passed_over(asked_bytes: u64, interval_bytes: u64, random: u32) -> bool {
    if asked_bytes >= MAX_QUICK_BYTES {
        return false;
    }
    let most_bytes = asked_bytes + asked_bytes / 2 + 64;
    (random as u64).saturating_sub(TINY) * interval_bytes >= most_bytes << 32
}

/// Probabilities in units of 2^−32, by [`table_index`]. The random number must be below.
pub static THRESHOLDS: [u32; TABLE_LENGTH] = thresholds();

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time, where slices have no get_mut")]
const fn thresholds() -> [u32; TABLE_LENGTH] {
    let mut table = [0; TABLE_LENGTH];
    let mut index = 0;
    while index < TABLE_LENGTH {
        // The middle of the step: (8 + step + ½)/8 · 2^octave.
        let mut ratio = ((index & 7) as f64 + 8.5) / 8.0 / (1u64 << FRACTION_BITS) as f64;
        let mut octave = index >> 3;
        while octave > 0 {
            ratio *= 2.0;
            octave -= 1;
        }
        let threshold = probability(ratio) * 4_294_967_296.0;
        table[index] = if threshold < 1.0 { 1 } else { threshold as u32 };
        index += 1;
    }
    table
}

/// 1 − e^(−x) for 0 < x < 32, without a library: the series at x/256, then 1 − (1 − p)² eight times.
const fn probability(x: f64) -> f64 {
    let small = x / 256.0;
    let mut p =
        small - small * small / 2.0 + small * small * small / 6.0 - small * small * small * small / 24.0;
    let mut doublings = 0;
    while doublings < 8 {
        p = p * (2.0 - p);
        doublings += 1;
    }
    p
}

/// Bits of the fraction of [`weight`] and of the counts in [`crate::heap::SiteTotals`].
pub const WEIGHT_BITS: u32 = 16;

/// How many blocks one with this stored threshold stands for, 1/p, in units of 2^−16.
#[inline(always)]
pub const fn weight(threshold: u32) -> u64 {
    if threshold == CERTAIN { 1 << WEIGHT_BITS } else { (1 << (32 + WEIGHT_BITS)) / threshold as u64 }
}

/// The bytes that a block of `size_bytes` with this stored threshold stands for, s/p.
#[inline(always)]
pub const fn weighted_bytes(size_bytes: u64, threshold: u32) -> u64 {
    // A block with p < 1 is smaller than 16 R, and s/p is below 32 R: the product fits.
    if threshold == CERTAIN { size_bytes } else { size_bytes.wrapping_mul(weight(threshold)) >> WEIGHT_BITS }
}

/// Places of the filter of live blocks: three times as many as the samples of a heap of 10 GiB at 512 KiB.
pub const FILTER_LENGTH: usize = 1 << 16;

/// The place of a block in the filter, by its address (Fibonacci hashing of its 16-byte granules).
#[inline(always)]
pub const fn filter_index(address: u64) -> usize {
    ((address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_LENGTH.trailing_zeros())) as usize
}

/// The next state of a generator, and the random number that it gives: SplitMix64 (Steele, Lea, Flood 2014).
#[inline(always)]
pub const fn next_random(state: u64) -> (u64, u32) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, (mixed >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(taken_bytes: u64, interval_bytes: u64) -> f64 {
        match table_index(taken_bytes, interval_bytes) {
            None => 1.0,
            Some(index) => f64::from(THRESHOLDS[index]) / 4_294_967_296.0,
        }
    }

    #[test]
    fn blocks_side_by_side_fall_to_places_far_apart_and_none_outside() {
        let mut places: [usize; 1000] = [0; 1000];
        places
            .iter_mut()
            .zip(0u64..)
            .for_each(|(place, block)| *place = filter_index(0x7f00_0000_0010 + 48 * block));
        places.sort_unstable();
        let distinct = places.chunk_by(|one, other| one == other).count();
        assert!(distinct > 950 && places.iter().all(|place| *place < FILTER_LENGTH), "{distinct}");
        assert!(filter_index(u64::MAX) < FILTER_LENGTH);
    }

    #[test]
    fn random_numbers_are_uniform_whatever_the_generator_started_from() {
        for seed in [0, 1, u64::MAX, 0x1234_5678_0000_0000] {
            let mut state = seed;
            let (mut below, mut pairs) = ([0u32; 3], 0u32);
            let mut last = false;
            for _ in 0..1 << 20 {
                let (next, random) = next_random(state);
                state = next;
                for (count, bits) in below.iter_mut().zip([31, 24, 20]) {
                    *count += u32::from(random < 1 << bits);
                }
                pairs += u32::from(last && random < 1 << 31);
                last = random < 1 << 31;
            }
            for (count, expected) in below.iter().zip([1 << 19, 1 << 12, 1 << 8]) {
                let deviation = (f64::from(*count) - f64::from(expected)) / f64::from(expected).sqrt();
                assert!(deviation.abs() < 4.0, "{seed:x}: {count} instead of {expected}");
            }
            assert!((f64::from(pairs) / f64::from(1 << 18) - 1.0).abs() < 0.01, "{pairs}");
        }
    }

    #[test]
    fn what_is_passed_over_at_a_glance_is_passed_over_by_the_table_too() {
        use SizeModel::{Asked, GlibcChunk, MuslSlot, Quarters, Sixteens};
        let large = (0..=40).flat_map(|power| (1u64 << power).saturating_sub(2)..=(1 << power) + 2);
        let sizes = (0..3000).chain(large).chain([u64::MAX - 1, u64::MAX]);
        let intervals =
            [1, 2, 7, 64, 1000, 4096, 512 << 10, 64 << 20, MAX_INTERVAL_BYTES - 1, MAX_INTERVAL_BYTES];
        for asked_bytes in sizes {
            for interval_bytes in intervals {
                for model in [Asked, Sixteens, GlibcChunk, MuslSlot, Quarters] {
                    let index = table_index(model.taken_bytes(asked_bytes), interval_bytes);
                    let last_drawn = index.map_or(u32::MAX, |index| THRESHOLDS[index] - 1);
                    assert!(
                        !is_passed_over(asked_bytes, interval_bytes, last_drawn),
                        "{asked_bytes} at {interval_bytes} by {model:?}"
                    );
                }
            }
        }
        assert!(is_passed_over(100, 512 << 10, u32::MAX / 2300), "nearly all are told");
    }

    #[test]
    fn what_glibc_takes_is_its_chunk() {
        for (asked, taken) in [(0, 32), (8, 32), (24, 32), (25, 48), (40, 48), (41, 64), (1000, 1008)] {
            assert_eq!(SizeModel::GlibcChunk.taken_bytes(asked), taken, "{asked}");
        }
    }

    #[test]
    fn size_classes_are_quarters_of_a_doubling() {
        let classes =
            [(8, 8), (9, 16), (128, 128), (129, 160), (161, 192), (257, 320), (1000, 1024), (1025, 1280)];
        for (asked, taken) in classes {
            assert_eq!(SizeModel::Quarters.taken_bytes(asked), taken, "{asked}");
        }
        assert_eq!(SizeModel::Quarters.taken_bytes((2 << 20) + 1), 5 << 19);
    }

    #[test]
    fn no_request_takes_nothing_and_none_overflows() {
        for model in [
            SizeModel::Asked,
            SizeModel::Sixteens,
            SizeModel::GlibcChunk,
            SizeModel::MuslSlot,
            SizeModel::Quarters,
        ] {
            assert_eq!(SizeModel::from_bits(model as u64), model);
            for asked in [0, 1, 7, 8, 9, 12, 13, 16, 17, 1 << 20, UNROUNDED_BYTES, u64::MAX] {
                assert!(model.taken_bytes(asked) >= asked.max(1), "{model:?} {asked}");
            }
        }
        assert_eq!(SizeModel::Sixteens.taken_bytes(8), 8);
        assert_eq!(SizeModel::Sixteens.taken_bytes(9), 16);
        assert_eq!(SizeModel::MuslSlot.taken_bytes(12), 16);
        assert_eq!(SizeModel::MuslSlot.taken_bytes(13), 32);
    }

    #[test]
    fn probabilities_are_right_within_the_step_of_the_table() {
        for interval in [1u64, 100, 4096, 512 << 10, 64 << 20, MAX_INTERVAL_BYTES] {
            for shift in 0..37 {
                for taken in [1u64 << shift, (1 << shift) + (1 << shift) / 3, (1 << shift) * 7 / 4] {
                    let ratio = taken as f64 / interval as f64;
                    if ratio < 1e-6 {
                        continue;
                    }
                    let exact = -(-ratio).exp_m1();
                    let error = p(taken, interval) / exact - 1.0;
                    assert!(error.abs() < 0.07, "{taken} of {interval}: off by {error}");
                }
            }
        }
    }

    #[test]
    fn the_table_rises_and_ends_at_certainty() {
        assert!(THRESHOLDS.windows(2).all(|pair| pair[0] <= pair[1]) && THRESHOLDS[0] > 0);
        assert_eq!(table_index(16 << 19, 512 << 10), None);
        assert_eq!(table_index((16 << 19) - 1, 512 << 10), Some(255));
        assert_eq!(table_index(u64::MAX, 512 << 10), None);
        assert_eq!(table_index(1, MAX_INTERVAL_BYTES), Some(0));
    }

    #[test]
    fn a_weight_is_the_inverse_of_the_stored_probability() {
        for &threshold in &THRESHOLDS {
            let exact = 4_294_967_296.0 / f64::from(threshold);
            let stored = weight(threshold) as f64 / f64::from(1 << WEIGHT_BITS);
            assert!((stored / exact - 1.0).abs() < 2e-5, "{threshold}");
        }
        assert_eq!(weight(CERTAIN), 1 << WEIGHT_BITS);
        assert_eq!(weighted_bytes(u64::MAX, CERTAIN), u64::MAX);
    }

    #[test]
    fn weighted_bytes_do_not_overflow_at_any_interval() {
        for interval in [1u64, 4096, 512 << 10, MAX_INTERVAL_BYTES] {
            for taken in [1, 32, interval / 2 + 1, interval, 15 * interval, 16 * interval - 1] {
                let Some(index) = table_index(taken, interval) else { continue };
                let threshold = THRESHOLDS[index];
                let exact = taken as f64 * 4_294_967_296.0 / f64::from(threshold);
                let stored = weighted_bytes(taken, threshold) as f64;
                assert!((stored - exact).abs() <= 1.0 + exact * 2e-5, "{taken} of {interval}");
            }
        }
    }
}
