//! The intervals against known values, and the whole estimator against simulated programs: the kernel's own table
//! and arithmetic, a seeded generator in place of the kernel's.
use leaktrace_common::sample::{SizeModel, THRESHOLDS, table_index, weight, weighted_bytes};

use super::*;
use std::collections::HashMap;

const INTERVAL: u64 = 512 << 10;

fn of(blocks: &[(u64, u64)]) -> Moments {
    let mut moments = Moments::new(INTERVAL);
    for (size, count) in blocks {
        let threshold = table_index(*size, INTERVAL).map_or(CERTAIN, |index| THRESHOLDS[index]);
        (0..*count).for_each(|_| moments.add(*size, threshold));
    }
    moments
}

fn near(value: Option<u64>, expected: f64) {
    let value = value.unwrap() as f64;
    assert!((value / expected - 1.0).abs() < 0.02, "{value} instead of {expected}");
}

#[test]
fn equal_small_blocks_have_the_interval_of_a_poisson_count() {
    for (samples, low, high) in
        [(1u32, 0.0253, 5.572), (3, 0.6187, 8.767), (10, 4.795, 18.39), (100, 81.36, 121.6)]
    {
        let mut moments = Moments::new(INTERVAL);
        (0..samples).for_each(|_| moments.add(32, ((32 << 32) / INTERVAL) as u32));
        let unit = moments.bytes_value() as f64 / f64::from(samples);
        let estimate = moments.bytes();
        near(Some(estimate.low), low * unit);
        near(estimate.high, high * unit);
        let count = moments.count();
        near(Some(count.low), low * unit / 32.0);
        near(count.high, high * unit / 32.0);
    }
}

#[test]
fn without_a_sample_the_truth_is_under_three_intervals() {
    let none = Moments::new(INTERVAL);
    assert_eq!(none.bytes(), Estimate { value: 0, low: 0, high: Some(3 * INTERVAL) });
    assert_eq!(none.count(), Estimate { value: 0, low: 0, high: None });
}

#[test]
fn blocks_that_are_always_recorded_are_exact_but_for_what_may_be_unseen() {
    let large = of(&[(64 << 20, 10)]);
    let estimate = large.bytes();
    assert_eq!((estimate.value, estimate.low), (640 << 20, 640 << 20));
    assert!(estimate.error() > 2 * INTERVAL && estimate.error() < 4 * INTERVAL, "{estimate:?}");
    assert_eq!(large.count(), Estimate { value: 10, low: 10, high: Some(10) });
}

#[test]
fn many_samples_have_the_normal_interval() {
    let many = of(&[(32, 1_000_000)]);
    let unit = many.bytes_value() as f64 / 1e6;
    near(Some(many.bytes().error()), 1960.0 * unit);
    let below = gamma_point(9_999.0, 1.0001, 1.0 - TAIL);
    let above = gamma_point(10_001.0, 0.9999, 1.0 - TAIL);
    assert!((above - below - 2.0).abs() < 0.01, "the two ways to compute it meet: {below} {above}");
}

#[test]
fn sums_of_parts_are_the_sum_of_the_whole() {
    let mut parts = of(&[(32, 5), (4096, 2)]);
    parts.merge(&of(&[(64 << 20, 1), (700 << 10, 3)]));
    let whole = of(&[(32, 5), (4096, 2), (64 << 20, 1), (700 << 10, 3)]);
    assert_eq!((parts.bytes(), parts.count(), parts.samples), (whole.bytes(), whole.count(), 11));
}

#[test]
fn a_file_holds_all_of_it_and_nonsense_in_one_does_no_harm() {
    let moments = of(&[(32, 5), (4096, 2)]);
    assert_eq!(Moments::from_parts(moments.parts()), Some(moments));
    assert_eq!(Moments::from_parts((1, 1, [f64::NAN; 5])), None);
    assert_eq!(Moments::from_parts((1, 1, [0.0, -1.0, 0.0, 0.0, 0.0])), None);
    for sums in [[0.0; 5], [f64::MAX; 5], [0.0, 1.0, 0.0, 1.0, 0.0], [1.0, f64::MAX, 1.0, f64::MAX, 0.0]] {
        let odd = Moments::from_parts((u64::MAX, 7, sums)).unwrap();
        assert!(odd.bytes().low <= odd.bytes().high.unwrap());
        odd.count();
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }

    /// How many of `count` draws fall below `threshold`, by the gaps between them.
    fn draws_below(&mut self, threshold: u32, count: u64) -> u64 {
        let passed_over = (-f64::from(threshold) / 4_294_967_296.0).ln_1p();
        let mut at = 0.0;
        for drawn in 0.. {
            let uniform = (f64::from(self.next()) + 0.5) / 4_294_967_296.0;
            at += (uniform.ln() / passed_over).floor() + 1.0;
            if at > count as f64 {
                return drawn;
            }
        }
        0
    }

    /// The kernel's draw: the threshold to be stored, if the block is recorded.
    fn draw(&mut self, taken_bytes: u64) -> Option<u32> {
        let Some(index) = table_index(taken_bytes, INTERVAL) else { return Some(CERTAIN) };
        let threshold = THRESHOLDS[index];
        (self.next() < threshold).then_some(threshold)
    }
}

/// Sizes from 8 B to 64 MiB as glibc takes them.
fn sizes() -> Vec<u64> {
    let asked = [0, 8, 100, 1000, 4096, 40_000, 200_000, 512 << 10, 1 << 20, 5 << 20, 64 << 20];
    asked.iter().map(|asked| SizeModel::GlibcChunk.taken_bytes(*asked)).collect()
}

fn blocks_for(samples: f64, taken_bytes: u64) -> u64 {
    let probability = -(-(taken_bytes as f64) / INTERVAL as f64).exp_m1();
    ((samples / probability).round() as u64).max(1)
}

#[derive(Default)]
struct Runs {
    runs: u32,
    bytes: f64,
    bytes_covered: u32,
    count_covered: u32,
}

/// Runs a program that holds `count` blocks of each size.
fn simulate(random: &mut Random, runs: u32, held: &[(u64, u64)]) -> Runs {
    let truth_bytes: u64 = held.iter().map(|(size, count)| size * count).sum();
    let truth_count: u64 = held.iter().map(|(_, count)| count).sum();
    let mut sum = Runs { runs, ..Runs::default() };
    let mut known: HashMap<Vec<u64>, (Estimate, Estimate)> = HashMap::new();
    for _ in 0..runs {
        let thresholds = held
            .iter()
            .map(|(size, _)| table_index(*size, INTERVAL).map_or(CERTAIN, |index| THRESHOLDS[index]));
        let drawn: Vec<u64> = held
            .iter()
            .zip(thresholds.clone())
            .map(|((_, count), threshold)| match threshold {
                CERTAIN => *count,
                _ => random.draws_below(threshold, *count),
            })
            .collect();
        let (bytes, count) = *known.entry(drawn.clone()).or_insert_with(|| {
            let mut moments = Moments::new(INTERVAL);
            for (((size, _), threshold), drawn) in held.iter().zip(thresholds).zip(drawn) {
                (0..drawn).for_each(|_| moments.add(*size, threshold));
            }
            (moments.bytes(), moments.count())
        });
        let covers = |estimate: Estimate, truth| {
            u32::from(estimate.low <= truth && estimate.high.is_none_or(|high| truth <= high))
        };
        sum.bytes += bytes.value as f64 / truth_bytes as f64;
        sum.bytes_covered += covers(bytes, truth_bytes);
        sum.count_covered += covers(count, truth_count);
    }
    sum
}

#[test]
fn the_mean_is_right_and_the_interval_covers_the_truth_at_every_size_and_number_of_samples() {
    let mut random = Random(4);
    for samples in [1.0, 3.0, 10.0, 100.0] {
        for size in sizes() {
            let count = blocks_for(samples, size);
            let held = simulate(&mut random, 20_000, &[(size, count)]);
            let share = |covered: u32| f64::from(covered) / f64::from(held.runs);
            let mean = held.bytes / f64::from(held.runs);
            assert!((mean - 1.0).abs() < 0.02, "{size} B, {samples} samples: mean {mean}");
            let covered = (share(held.bytes_covered), share(held.count_covered));
            assert!(covered.0 >= 0.93 && covered.1 >= 0.93, "{size} B, {samples} samples: {covered:?}");
        }
    }
}

#[test]
fn mixed_sizes_at_one_site_are_covered_too() {
    let mut random = Random(44);
    for samples in [0.3, 1.0, 3.0, 10.0] {
        let held: Vec<(u64, u64)> =
            sizes().into_iter().map(|size| (size, blocks_for(samples, size))).collect();
        let sum = simulate(&mut random, 4000, &held);
        let mean = sum.bytes / f64::from(sum.runs);
        assert!((mean - 1.0).abs() < 0.02, "{samples}: mean {mean}");
        let share = f64::from(sum.bytes_covered) / f64::from(sum.runs);
        assert!(share >= 0.93, "{samples} samples of each size: {share}");
    }
}

/// What the kernel adds up in whole numbers agrees with what is computed here.
#[test]
fn kernel_sums_and_estimates_agree() {
    let mut random = Random(444);
    let (mut bytes, mut count, mut moments) = (0, 0, Moments::new(INTERVAL));
    for index in 0..200_000 {
        let size = SizeModel::GlibcChunk.taken_bytes(index % 5000);
        if let Some(threshold) = random.draw(size) {
            bytes += weighted_bytes(size, threshold);
            count += weight(threshold);
            moments.add(size, threshold);
        }
    }
    near(Some(bytes), moments.bytes_value() as f64);
    assert!((count as f64 / 65536.0 / moments.count_value() as f64 - 1.0).abs() < 1e-4);
}
