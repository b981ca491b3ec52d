//! `cargo xtask fuzz`: every target for some seconds, by changing its seeds at random. Where cargo-fuzz and a nightly
//! compiler are there, `cargo +nightly fuzz run TARGET` in `leaktrace/` is guided by coverage and finds more.
use crate::command;
use anyhow::{Result, ensure};
use std::fs;

/// Seconds for each target.
pub(crate) const SECONDS: u64 = 5;

/// The targets: each has a folder of seeds.
pub(crate) fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(command::root().join("leaktrace/fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Runs one target, or all; prints executions and findings, and fails where there is one.
pub(crate) fn run(target: Option<&str>, seconds: u64) -> Result<()> {
    let all = targets()?;
    let names = all.iter().filter(|name| target.is_none_or(|target| target == *name));
    let mut failed = Vec::new();
    let mut count = 0;
    for name in names {
        count += 1;
        if one(name, seconds).is_err() {
            failed.push(name.as_str());
        }
    }
    ensure!(count > 0, "there is no such target; there are {}", all.join(", "));
    ensure!(failed.is_empty(), "findings in {}: inputs are in target/fuzz", failed.join(", "));
    Ok(())
}

/// Runs one target.
pub(crate) fn one(name: &str, seconds: u64) -> Result<()> {
    let seconds = seconds.to_string();
    let words =
        ["run", "--quiet", "--package", "leaktrace", "--example", "mutate", "--", name, seconds.as_str()];
    command::run(&mut command::cargo(&words))
}
