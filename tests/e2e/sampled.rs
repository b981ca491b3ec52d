//! Sampled mode on the real kernel: estimates are right on average, their intervals cover the truth as often as they
//! say, a call inside another one is not drawn for twice, and mappings of an allocator stay the allocator's.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a statistical test, shown with --nocapture or when it fails"
)]
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace::Leaktrace,
    ledger::{Entry, Ledger},
    report::{Report, Site, Target},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Mean bytes between samples.
const INTERVAL: &str = "4096";
/// Epochs at least, and the time for twice as many.
const EPOCHS: usize = 200;
const TIME: Duration = Duration::from_secs(30);

/// The heap site of a function.
fn site<'a>(target: &'a Target, function: &str) -> Option<&'a Site> {
    target.sites.iter().find(|site| site.kind == "heap" && site.has(function))
}

/// What was estimated at sites of one kind, over all epochs.
#[derive(Debug, Default)]
struct Record {
    trials: u32,
    bytes_to_truth: f64,
    count_to_truth: f64,
    bytes_covered: u32,
    count_covered: u32,
}

impl Record {
    /// A site that holds nothing sampled may be missing in the report: it is "under 3 R", as the whole process is.
    fn add(&mut self, entry: &Entry, site: Option<&Site>) -> Result<()> {
        let count = entry.count.context("an open count")?;
        let (bytes, number) = site.map_or((0, 0), |site| (site.outstanding_bytes, site.outstanding_count));
        self.trials += 1;
        self.bytes_to_truth += bytes as f64 / entry.bytes as f64;
        self.count_to_truth += number as f64 / count as f64;
        let interval: u64 = INTERVAL.parse()?;
        let ends = match site.map(|site| site.estimate) {
            None => (0, 3 * interval, 0, u64::MAX),
            Some(estimate) => (
                estimate.low_bytes.context("no low_bytes")?,
                estimate.high_bytes.context("no high_bytes")?,
                estimate.low_count.context("no low_count")?,
                estimate.high_count.unwrap_or(u64::MAX),
            ),
        };
        self.bytes_covered += u32::from((ends.0..=ends.1).contains(&entry.bytes));
        self.count_covered += u32::from((ends.2..=ends.3).contains(&count));
        Ok(())
    }

    fn merge(&mut self, other: &Record) {
        self.trials += other.trials;
        self.bytes_to_truth += other.bytes_to_truth;
        self.count_to_truth += other.count_to_truth;
        self.bytes_covered += other.bytes_covered;
        self.count_covered += other.count_covered;
    }

    /// Bytes and count: the mean of the estimates divided by the truth.
    fn means(&self) -> [f64; 2] {
        let trials = f64::from(self.trials);
        [self.bytes_to_truth / trials, self.count_to_truth / trials]
    }

    /// Bytes and count: how often the interval covered the truth.
    fn coverage(&self) -> [f64; 2] {
        [self.bytes_covered, self.count_covered].map(|covered| f64::from(covered) / f64::from(self.trials))
    }
}

/// Expected samples and size of a site of the fixture, from its name `size_SIZE_samples_EXPECTED_WHICH`.
fn kind(entry: &Entry) -> Result<(u32, u64)> {
    let mut words = entry.site.split('_');
    let size = words.nth(1).and_then(|word| word.parse().ok()).context("no size in the name")?;
    let samples = words.nth(1).and_then(|word| word.parse().ok()).context("no samples in the name")?;
    Ok((samples, size))
}

/// One epoch: the fixture allocates anew, and a report is taken that was made after that.
fn epoch(fixture: &mut Fixture, leaktrace: &mut Leaktrace) -> Result<(Ledger, Report)> {
    let ledger = fixture.act()?;
    let (pid, mark) = (fixture.pid(), ledger.entries.iter().find(|entry| entry.site == "epoch_mark"));
    let mark = mark.context("no mark in the ledger")?.bytes;
    let is_over = |report: &Report| {
        let marked = report.target(pid).and_then(|target| site(target, "epoch_mark"));
        match marked.map(|site| site.outstanding_bytes) {
            Some(bytes) if bytes == mark => Ok(()),
            other => Err(format!("the mark is {other:?} instead of {mark}")),
        }
    };
    let report = leaktrace.until_settled("the epoch is over", is_over)?;
    Ok((ledger, report))
}

#[test]
fn estimates_are_right_on_average_and_intervals_cover_the_truth() -> Result<()> {
    let program = compile::fixture("sampled.c", Build::Gcc, &[])?;
    let mut fixture = Fixture::start(&program, &[INTERVAL], &[])?;
    let flags = ["--mode", "sampled", "--sample-interval", INTERVAL, "--interval", "20ms"];
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
    let mut records: BTreeMap<(u32, u64), Record> = BTreeMap::new();
    let (started, mut epochs) = (Instant::now(), 0);
    while epochs < EPOCHS || started.elapsed() < TIME && epochs < 2 * EPOCHS {
        let (ledger, report) = epoch(&mut fixture, &mut leaktrace)?;
        let target = report.target(fixture.pid()).context("no target")?;
        ensure!(report.losses.is_empty(), "losses: {:?}", report.losses);
        ensure!(target.unmatched_frees.is_none(), "unmatched frees are counted while sampling");
        for site in target.sites.iter().filter(|site| site.kind == "heap") {
            ensure!(site.freed_count <= site.allocated_count, "more freed than allocated: {}", site.stack());
        }
        for entry in ledger.entries.iter().filter(|entry| entry.site != "epoch_mark") {
            records.entry(kind(entry)?).or_default().add(entry, site(target, &entry.site))?;
        }
        epochs += 1;
    }
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    judge(&records, epochs)
}

fn judge(records: &BTreeMap<(u32, u64), Record>, epochs: usize) -> Result<()> {
    let (mut by_samples, mut by_size) = (BTreeMap::new(), BTreeMap::new());
    for ((samples, size), record) in records {
        println!(
            "{epochs} epochs, {samples} samples of {size} B: {:.3?} {:.3?}",
            record.means(),
            record.coverage()
        );
        by_samples.entry(samples).or_insert_with(Record::default).merge(record);
        let expected = f64::from(*samples);
        let (sum, weight) = by_size.entry(size).or_insert(([0.0; 2], 0.0));
        for (sum, mean) in sum.iter_mut().zip(record.means()) {
            *sum += mean * expected * f64::from(record.trials);
        }
        *weight += expected * f64::from(record.trials);
    }
    for (size, (sums, weight)) in by_size {
        let means = sums.map(|sum| sum / weight);
        println!("{size} B: mean estimate by truth {means:.4?}");
        ensure!(means.iter().all(|mean| (mean - 1.0).abs() < 0.02), "blocks of {size} B: {means:?}");
    }
    for (samples, record) in by_samples {
        let coverage = record.coverage();
        println!("{samples} samples expected, {} trials: covered {coverage:.4?}", record.trials);
        ensure!(coverage.iter().all(|share| *share >= 0.93), "{samples} samples expected: {coverage:?}");
    }
    Ok(())
}

/// Blocks at each site of the fixture `nested`; with an interval of 4 KiB about one in four or five is recorded.
const NESTED: &str = "8000";

/// Each site's estimate is within five standard errors of the truth: a second draw would nearly double it.
fn nested(build: Build, preload: Option<&str>, overhead: &str, flags: &[&str]) -> Result<()> {
    let program = compile::fixture("nested.c", build, &[])?;
    let path = preload.map(library).transpose()?.map(|path| path.to_string_lossy().into_owned());
    let environment: Vec<(&str, &str)> = path.iter().map(|path| ("LD_PRELOAD", path.as_str())).collect();
    let mut fixture = Fixture::start(&program, &[NESTED, overhead], &environment)?;
    let mut words = vec!["--mode", "sampled", "--sample-interval", "4096"];
    words.extend(flags);
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &words)?;
    let ledger = fixture.act()?;
    leaktrace.next_report()?;
    let report = leaktrace.interrupt()?;
    let target = report.target(fixture.pid()).context("no target")?;
    ensure!(report.losses.is_empty(), "losses: {:?}", report.losses);
    for entry in &ledger.entries {
        let held = site_sums(target, &entry.site);
        let count = entry.count.context("an open count")? as f64;
        // The standard deviation of the number of samples, times their weight.
        let error = 5.0 * (count * 5.0).sqrt();
        println!(
            "{}: {} blocks estimated, {count} held; {} bytes, {}",
            entry.site, held.1, held.0, entry.bytes
        );
        ensure!((held.1 as f64 - count).abs() <= error, "{}: {} blocks for {count}", entry.site, held.1);
        let share = held.0 as f64 / entry.bytes.max(1) as f64;
        // tcmalloc takes up to an eighth more than what is reckoned.
        ensure!(entry.bytes == 0 || (share - 1.0).abs() < 0.2, "{}: {share} of the bytes", entry.site);
    }
    ensure!(fixture.release()?.success(), "the fixture did not survive");
    Ok(())
}

/// Bytes and blocks of all sites below a function.
fn site_sums(target: &Target, function: &str) -> (u64, u64) {
    let sites = target.sites.iter().filter(|site| site.kind == "heap" && site.has(function));
    sites.fold((0, 0), |sums, site| (sums.0 + site.outstanding_bytes, sums.1 + site.outstanding_count))
}

#[test]
fn nested_calls_are_drawn_for_once_on_glibc() -> Result<()> {
    nested(Build::Gcc, None, "8", &[])
}

#[test]
fn nested_calls_are_drawn_for_once_with_multi_links() -> Result<()> {
    nested(Build::Gcc, None, "8", &["--link", "multi"])
}

#[test]
fn nested_calls_are_drawn_for_once_with_perf_links() -> Result<()> {
    nested(Build::Gcc, None, "8", &["--link", "perf"])
}

/// musl's calloc, memalign and posix_memalign reach malloc through the PLT, and its code has no unwind information.
#[test]
fn nested_calls_are_drawn_for_once_on_musl() -> Result<()> {
    nested(Build::Musl, None, "4", &[])
}

#[test]
fn nested_calls_are_drawn_for_once_on_jemalloc() -> Result<()> {
    nested(Build::Gcc, Some("libjemalloc.so.2"), "0", &[])
}

#[test]
fn nested_calls_are_drawn_for_once_on_tcmalloc() -> Result<()> {
    nested(Build::Gcc, Some("libtcmalloc_minimal.so.4"), "0", &[])
}

#[test]
fn nested_calls_are_drawn_for_once_on_mimalloc() -> Result<()> {
    nested(Build::Gcc, Some("libmimalloc.so.2.0"), "0", &[])
}
