//! Counts of passed and failed checks, and how to read them from what `cargo test` prints. Pure.
use anyhow::Result;

/// Sums over checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// One line for each failure.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// One check.
    pub(crate) fn of(what: &str, result: Result<()>) -> Tally {
        let mut tally = Tally::default();
        match result {
            Ok(()) => tally.passed = 1,
            Err(error) => tally.fail(format!("{what}: {error:#}")),
        }
        tally
    }

    pub(crate) fn fail(&mut self, line: String) {
        println!("{line}");
        self.failed += 1;
        self.failures.push(line);
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures.iter().cloned());
    }

    /// Takes in a line of `cargo test`: totals from the lines `test result: …`, names from `test NAME ... FAILED`.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        if let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        }
    }
}

/// The number before `word` in `12 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u64 {
    counts
        .split("; ")
        .filter_map(|part| part.split_once(' '))
        .find(|(_, name)| *name == word)
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_summed_over_test_binaries() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        tally.read(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }

    #[test]
    fn failing_tests_are_named() {
        let mut tally = Tally::default();
        tally.read("test heap::glibc ... ok");
        tally.read("test heap::musl ... FAILED");
        assert_eq!(tally.failures, ["heap::musl"]);
        assert_eq!(tally.failed, 0);
    }

    #[test]
    fn a_program_that_prints_about_tests_is_not_counted() {
        let mut tally = Tally::default();
        tally.read("the test result: ok. 12 passed; 0 failed");
        assert_eq!(tally, Tally::default());
    }
}
