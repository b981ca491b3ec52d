//! The page that the benchmark writes: what it was measured on, and the sections, printed as they come and kept in a
//! file where one is asked for.
use crate::command;
use anyhow::{Context, Result};
use leaktrace_tests::leaktrace::binary;
use std::{fs, path::PathBuf, process::Command};

/// Text that is printed, and written to a file after each section, so that an interrupted run leaves what it has.
pub(super) struct Page {
    text: String,
    file: Option<PathBuf>,
}

impl Page {
    /// An empty page.
    pub(super) fn new(file: Option<PathBuf>) -> Page {
        Page { text: String::new(), file }
    }

    /// Adds a section.
    pub(super) fn add(&mut self, text: &str) -> Result<()> {
        println!("{text}");
        self.text.push_str(text);
        self.text.push('\n');
        match &self.file {
            Some(file) => {
                fs::write(file, &self.text).with_context(|| format!("cannot write {}", file.display()))
            }
            None => Ok(()),
        }
    }
}

/// What was measured on what.
pub(super) fn introduction(rounds: u32) -> String {
    let version =
        binary().ok().and_then(|binary| command::capture(Command::new(binary).arg("--version")).ok());
    let version = version.unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let processor = read("/proc/cpuinfo");
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "# What tracing costs\n\n\
         {} on Linux {kernel}, {cpus} × {}, {} of memory; load when it began: {}.\n\n\
         Every number is the median of {rounds} rounds, with the smallest and the largest beside it. Rounds alternate \
         between the rows of a table, each with new processes; a ratio compares with the table's first row in the same \
         round. Times hold for this machine only, ratios travel better. “Floor” is programs of two instructions at the \
         places that leaktrace has chosen: what the traps themselves cost, and no tracer that traps there can go below.\n",
        version.trim(),
        model.map_or("an unnamed processor", |(_, name)| name),
        memory(),
        load(),
    )
}

/// How busy the machine is, of which the measurements are a part.
pub(super) fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn memory() -> String {
    let text = read("/proc/meminfo");
    let kilobytes: Option<f64> = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    format!("{:.1} GiB", kilobytes.unwrap_or_default() / f64::from(1 << 20))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
