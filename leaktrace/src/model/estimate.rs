//! Estimates from sampled blocks: sums over the blocks that were recorded, each standing for 1/p of its kind, and
//! 95 % intervals for them. Which blocks there are is `blocks`' business, drawing was the kernel's.
//!
//! With B the estimate and Var = Σ s²(1−p)/p² its variance, B behaves like a gamma variable of shape k = B²/Var:
//! for equal small blocks k is the number of samples and the interval is the one of a Poisson count, which holds
//! down to a single sample where the normal interval does not. The upper end also allows for one block that was
//! not seen, of R bytes for the estimate of bytes, because a block of any size that may be unseen stands for R.
use leaktrace_common::sample::CERTAIN;
use statrs::distribution::{ContinuousCDF as _, Gamma};

/// The probability that the truth is below the interval, and that it is above.
const TAIL: f64 = 0.025;
/// From this shape on the Wilson–Hilferty approximation is right to seven digits.
const LARGE_SHAPE: f64 = 10_000.0;
/// The 97.5 % point of the normal distribution.
const NORMAL_POINT: f64 = 1.959_963_984_540_054;
/// Without a sample, the truth is below this many intervals with a probability of 95 %: −ln 0.05, rounded up.
const UNSEEN_INTERVALS: u64 = 3;

/// Sums over sampled blocks from which estimates and their errors follow; sums of independent blocks add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Mean bytes between samples.
    pub interval_bytes: u64,
    /// Blocks.
    pub samples: u64,
    bytes: f64,
    bytes_variance: f64,
    count: f64,
    count_variance: f64,
    squared_weights: f64,
}

/// An estimate with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The unbiased estimate.
    pub value: u64,
    /// The lower end.
    pub low: u64,
    /// The upper end; `None` where nothing bounds it.
    pub high: Option<u64>,
}

impl Estimate {
    /// The larger of the distances to the two ends; 0 where there is no upper end.
    pub fn error(&self) -> u64 {
        let above = self.high.map_or(0, |high| high.saturating_sub(self.value));
        above.max(self.value.saturating_sub(self.low))
    }
}

impl Moments {
    /// No blocks, sampled every `interval_bytes` on average.
    pub fn new(interval_bytes: u64) -> Moments {
        Moments { interval_bytes, ..Moments::default() }
    }

    /// Adds a block that was recorded with this threshold ([`leaktrace_common::heap::Block::threshold`]).
    pub fn add(&mut self, size_bytes: u64, threshold: u32) {
        let size = size_bytes as f64;
        let probability =
            if threshold == CERTAIN { 1.0 } else { f64::from(threshold) / (f64::from(u32::MAX) + 1.0) };
        let weight = 1.0 / probability;
        let spread = (1.0 - probability) * weight * weight;
        self.samples += 1;
        self.bytes += size * weight;
        self.bytes_variance += size * size * spread;
        self.count += weight;
        self.count_variance += spread;
        self.squared_weights += weight * weight;
    }

    /// Adds the blocks of another sum.
    pub fn merge(&mut self, other: &Moments) {
        self.interval_bytes = self.interval_bytes.max(other.interval_bytes);
        self.samples += other.samples;
        self.bytes += other.bytes;
        self.bytes_variance += other.bytes_variance;
        self.count += other.count;
        self.count_variance += other.count_variance;
        self.squared_weights += other.squared_weights;
    }

    /// Interval, samples, and the sums, for a file.
    pub fn parts(&self) -> (u64, u64, [f64; 5]) {
        let sums = [self.bytes, self.bytes_variance, self.count, self.count_variance, self.squared_weights];
        (self.interval_bytes, self.samples, sums)
    }

    /// What [`Moments::parts`] gave; `None` where no blocks have such sums.
    pub fn from_parts((interval_bytes, samples, sums): (u64, u64, [f64; 5])) -> Option<Moments> {
        let [bytes, bytes_variance, count, count_variance, squared_weights] = sums;
        let are_sums = sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0);
        are_sums.then_some(Moments {
            interval_bytes,
            samples,
            bytes,
            bytes_variance,
            count,
            count_variance,
            squared_weights,
        })
    }

    /// The estimate of bytes alone, which costs nothing.
    pub fn bytes_value(&self) -> u64 {
        self.bytes.round() as u64
    }

    /// The estimate of blocks alone.
    pub fn count_value(&self) -> u64 {
        self.count.round() as u64
    }

    /// Bytes that all blocks hold.
    pub fn bytes(&self) -> Estimate {
        let value = self.bytes_value();
        if self.samples == 0 {
            return Estimate {
                value,
                low: 0,
                high: Some(UNSEEN_INTERVALS.saturating_mul(self.interval_bytes)),
            };
        }
        let low = lower(self.bytes, self.bytes_variance);
        let high = upper(self.bytes, self.bytes_variance, self.interval_bytes as f64);
        Estimate { value, low: low.floor() as u64, high: Some(high.ceil() as u64) }
    }

    /// How many blocks there are. Without a sample there is no upper end: their size is not known.
    pub fn count(&self) -> Estimate {
        let value = self.count_value();
        if self.samples == 0 {
            return Estimate { value, low: 0, high: None };
        }
        if self.count_variance <= 0.0 {
            return Estimate { value, low: value, high: Some(value) };
        }
        let low = lower(self.count, self.count_variance);
        let high = upper(self.count, self.count_variance, self.squared_weights / self.count);
        Estimate { value, low: low.floor() as u64, high: Some(high.ceil() as u64) }
    }
}

fn lower(value: f64, variance: f64) -> f64 {
    if variance <= 0.0 { value } else { gamma_point(value, variance, TAIL) }
}

/// The upper end when one more block that stands for `unseen` may be there.
fn upper(value: f64, variance: f64, unseen: f64) -> f64 {
    gamma_point(value + unseen, variance + unseen * unseen, 1.0 - TAIL)
}

/// The point of a gamma distribution with this mean and variance, both above 0, below which it is with
/// probability [`TAIL`] or 1 − [`TAIL`].
fn gamma_point(mean: f64, variance: f64, probability: f64) -> f64 {
    // A sum of blocks has at least the shape of one; sums from a file may have any.
    let shape = (mean * mean / variance).max(1.0);
    if shape < LARGE_SHAPE
        && let Ok(gamma) = Gamma::new(shape, 1.0)
    {
        return mean * gamma.inverse_cdf(probability) / shape;
    }
    let normal = if probability < 0.5 { -NORMAL_POINT } else { NORMAL_POINT };
    let root = 1.0 - 1.0 / (9.0 * shape) + normal / (3.0 * shape.sqrt());
    mean * root * root * root
}

#[cfg(test)]
mod tests;
