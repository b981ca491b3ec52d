//! What a fixture says: the lines of its ledger. Pure; running fixtures is `fixture`'s part.
use anyhow::{Context, Result};
use serde::Deserialize;

/// What must be outstanding at one site.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// The function that calls the allocator.
    pub site: String,
    /// The process; a ledger can hold several.
    #[serde(default)]
    pub pid: Option<u32>,
    /// `heap` or `mapping`.
    #[serde(default = "heap")]
    pub kind: String,
    /// Blocks that must be outstanding; `None` leaves the number open.
    #[serde(default)]
    pub count: Option<u64>,
    /// Bytes that must be outstanding.
    #[serde(default)]
    pub bytes: u64,
    /// Blocks that were allocated, freed ones included; `None` leaves it open.
    #[serde(default)]
    pub allocated_count: Option<u64>,
    /// Bytes of those.
    #[serde(default)]
    pub allocated_bytes: Option<u64>,
    /// Whatever is outstanding here is not the fixture's to count.
    #[serde(default)]
    pub open: bool,
}

/// A stack next to an allocation, as libgcc's unwinder found it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Truth {
    /// What the stack is made of.
    #[serde(rename = "oracle")]
    pub scene: String,
    /// The process.
    pub pid: u32,
    /// The block's size, which no other block has; without meaning for a tail.
    pub bytes: u64,
    /// Whether the block is allocated further in, by code that does not know its size.
    pub tail: bool,
    /// Return addresses, from the caller of the allocating function outwards.
    pub frames: Vec<u64>,
}

fn heap() -> String {
    "heap".to_owned()
}

/// One line of a fixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It waits for the tracer.
    Ready {
        /// Its process.
        pid: u32,
    },
    /// It has acted and printed everything.
    Done,
    /// An entry of its ledger.
    Entry(Entry),
    /// A stack, as the fixture itself found it.
    Stack(Truth),
    /// It waits until the tracer has caught up with what it has mapped.
    Pause {
        /// Its process.
        pid: u32,
    },
    /// Something in the fixture itself went wrong: the test is void.
    Broken(String),
    /// What `churn` has checked.
    Checked {
        /// Operations.
        rounds: u64,
        /// Blocks that were damaged, and calls that failed.
        errors: u64,
    },
    /// What a fixture has measured.
    Timed {
        /// Pairs of malloc and free.
        pairs: u64,
        /// How long they took together.
        ns: u64,
    },
    /// What `pairs` has measured, in all threads.
    Priced {
        /// Pairs of malloc and free.
        pairs: u64,
        /// Sum of the threads' times.
        ns: u64,
        /// Sum of the threads' processor times.
        cpu_ns: u64,
    },
}

#[derive(Deserialize)]
struct Line {
    pause: Option<bool>,
    oracle: Option<String>,
    ready: Option<bool>,
    done: Option<bool>,
    pid: Option<u32>,
    broken: Option<String>,
    rounds: Option<u64>,
    errors: Option<u64>,
    pairs: Option<u64>,
    ns: Option<u64>,
    cpu_ns: Option<u64>,
}

impl Said {
    /// Reads a line.
    pub fn parse(text: &str) -> Result<Said> {
        let about = || format!("not a line of a ledger: {text:?}");
        let line: Line = serde_json::from_str(text).with_context(about)?;
        if let Some(why) = line.broken {
            return Ok(Said::Broken(why));
        }
        if line.oracle.is_some() {
            return Ok(Said::Stack(serde_json::from_str(text).with_context(about)?));
        }
        if line.pause.is_some() {
            return Ok(Said::Pause { pid: line.pid.with_context(about)? });
        }
        if line.ready.is_some() {
            return Ok(Said::Ready { pid: line.pid.with_context(about)? });
        }
        if line.done.is_some() {
            return Ok(Said::Done);
        }
        if let (Some(rounds), Some(errors)) = (line.rounds, line.errors) {
            return Ok(Said::Checked { rounds, errors });
        }
        if let (Some(pairs), Some(ns), Some(cpu_ns)) = (line.pairs, line.ns, line.cpu_ns) {
            return Ok(Said::Priced { pairs, ns, cpu_ns });
        }
        if let (Some(pairs), Some(ns)) = (line.pairs, line.ns) {
            return Ok(Said::Timed { pairs, ns });
        }
        Ok(Said::Entry(serde_json::from_str(text).with_context(about)?))
    }
}

/// All entries of a fixture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// In the order in which they were printed.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// The entries of one process.
    pub fn of(&self, pid: u32) -> Ledger {
        let belongs = |entry: &&Entry| entry.pid.is_none_or(|owner| owner == pid);
        Ledger { entries: self.entries.iter().filter(belongs).cloned().collect() }
    }

    /// The processes in it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.entries.iter().filter_map(|entry| entry.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether anything must be outstanding.
    pub fn is_clean(&self) -> bool {
        self.entries.iter().all(|entry| entry.bytes == 0 && entry.count.unwrap_or(0) == 0)
    }

    /// The names of its sites.
    pub fn sites(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.site.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_fixture_are_told_apart() {
        assert_eq!(Said::parse(r#"{"ready":true,"pid":7}"#).unwrap(), Said::Ready { pid: 7 });
        assert_eq!(Said::parse(r#"{"done":true,"pid":7}"#).unwrap(), Said::Done);
        assert_eq!(Said::parse(r#"{"broken":"x"}"#).unwrap(), Said::Broken("x".into()));
        assert_eq!(
            Said::parse(r#"{"rounds":5,"errors":0}"#).unwrap(),
            Said::Checked { rounds: 5, errors: 0 }
        );
        assert_eq!(Said::parse(r#"{"pairs":5,"ns":9}"#).unwrap(), Said::Timed { pairs: 5, ns: 9 });
        assert_eq!(
            Said::parse(r#"{"pairs":5,"ns":9,"cpu_ns":8}"#).unwrap(),
            Said::Priced { pairs: 5, ns: 9, cpu_ns: 8 }
        );
        let Said::Entry(entry) = Said::parse(r#"{"site":"a","count":2,"bytes":30}"#).unwrap() else {
            panic!("not an entry");
        };
        assert_eq!((entry.count, entry.bytes, entry.kind.as_str(), entry.open), (Some(2), 30, "heap", false));
    }

    #[test]
    fn a_line_of_something_else_is_an_error() {
        assert!(Said::parse("Segmentation fault").is_err());
        assert!(Said::parse(r#"{"count":2}"#).is_err());
    }
}
