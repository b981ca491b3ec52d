//! Which kernels there are: a series is what is asked for ("6.12"), a release is what was found. Pure.
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::{fmt, str::FromStr};

/// A series of kernels, in Debian's flavour for clouds or the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) is_plain: bool,
}

impl Series {
    const fn cloud(major: u32, minor: u32) -> Series {
        Series { major, minor, is_plain: false }
    }

    const fn plain(major: u32, minor: u32) -> Series {
        Series { major, minor, is_plain: true }
    }

    /// What the release string of a kernel starts with: `6.12` of `6.12.118+deb13-cloud-amd64`.
    pub(super) fn of_release(release: &str) -> Option<Series> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Series::cloud(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether leaktrace refuses it: it has no cookies to tell links apart.
    pub(super) fn is_refused(self) -> bool {
        (self.major, self.minor) < (5, 15)
    }

    /// Whether its compiler of kernel programs gives some of them stacks of their own for each processor.
    pub(super) fn has_private_stacks(self) -> bool {
        (self.major, self.minor) > (6, 12)
    }

    /// The kinds of links that it has, from the best.
    pub(super) fn links(self) -> &'static [&'static str] {
        match (self.major, self.minor) {
            (..5, _) | (5, ..15) => &[],
            (5, _) | (6, ..6) => &["perf"],
            (6, ..13) => &["multi", "perf"],
            _ => &["session", "multi", "perf"],
        }
    }

    /// The kinds of preemption that it can be booted with, the most demanding first.
    pub(super) fn preemptions(self) -> &'static [Preemption] {
        use Preemption::{Full, Lazy, None, Voluntary};
        match (self.major, self.minor) {
            (..5, _) | (5, ..12) => &[],
            (5, _) | (6, ..13) => &[Full, Voluntary, None],
            (6, _) => &[Full, Lazy, Voluntary, None],
            _ => &[Full, Lazy],
        }
    }
}

/// The kernels of the whole matrix.
pub(super) const MATRIX: [Series; 8] = [
    Series::cloud(5, 10),
    Series::cloud(6, 1),
    Series::plain(6, 1),
    Series::cloud(6, 12),
    Series::plain(6, 12),
    Series::cloud(6, 16),
    Series::cloud(6, 19),
    Series::cloud(7, 3),
];

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = if self.is_plain { "-plain" } else { "" };
        write!(f, "{}.{}{flavour}", self.major, self.minor)
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Series> {
        let (numbers, is_plain) = match text.strip_suffix("-plain") {
            Some(numbers) => (numbers, true),
            None => (text, false),
        };
        let about = || format!("{text:?} is no series of kernels: say 6.12 or 6.12-plain");
        let (major, minor) = numbers.split_once('.').with_context(about)?;
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { bail!(about()) };
        Ok(Series { major, minor, is_plain })
    }
}

/// How the kernel preempts its own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preemption {
    /// Anywhere, at once.
    Full,
    /// Anywhere, at the next tick.
    Lazy,
    /// At marked places.
    Voluntary,
    /// Nowhere.
    None,
}

impl Preemption {
    /// As the kernel spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Preemption::Full => "full",
            Preemption::Lazy => "lazy",
            Preemption::Voluntary => "voluntary",
            Preemption::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_and_written_alike() {
        for name in ["5.10", "6.12", "6.12-plain", "7.3"] {
            assert_eq!(name.parse::<Series>().unwrap().to_string(), name);
        }
        assert!("6".parse::<Series>().is_err());
        assert!("6.x".parse::<Series>().is_err());
    }

    #[test]
    fn a_release_tells_its_series() {
        let series = Series::of_release("6.12.118+deb13-cloud-amd64 (builder) #1 SMP").unwrap();
        assert_eq!((series.major, series.minor), (6, 12));
        assert_eq!(Series::of_release("x"), None);
    }

    #[test]
    fn links_and_preemption_follow_the_version() {
        let links = |name: &str| name.parse::<Series>().unwrap().links();
        assert_eq!(links("6.1"), ["perf"]);
        assert_eq!(links("6.12"), ["multi", "perf"]);
        assert_eq!(links("6.16"), ["session", "multi", "perf"]);
        assert!(links("5.10").is_empty());
        assert_eq!("7.3".parse::<Series>().unwrap().preemptions(), [Preemption::Full, Preemption::Lazy]);
    }
}
