//! Which processes the service traces: standing orders, looked at again at each summary. Tracing them is the
//! tracer's work.
use std::{collections::HashSet, fmt, fs};

use serde::Deserialize;

use crate::discover::process::{self, Process};

/// A standing order. Further kinds (containers, control groups, everything) belong here: one variant, its word in
/// [`Selector::try_from`], its line in [`Selector::matches`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Selector {
    /// One process.
    Pid(u32),
    /// Every process of this name.
    Comm(String),
}

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Selector, String> {
        let wrong =
            |why: &str| format!("{text:?} selects nothing: {why}: say \"pid:1234\" or \"comm:nginx\"");
        match text.split_once(':') {
            Some(("pid", number)) => match number.trim().parse() {
                Ok(pid @ 1..=4_194_304) => Ok(Selector::Pid(pid)),
                _ => Err(wrong("a pid is a number from 1 to 4194304")),
            },
            Some(("comm", name)) if !name.is_empty() && name.len() <= 15 => {
                Ok(Selector::Comm(name.to_owned()))
            }
            Some(("comm", _)) => Err(wrong("the kernel's names of processes have 1 to 15 bytes")),
            Some((kind, _)) => Err(wrong(&format!("there is no kind {kind:?}"))),
            None => Err(wrong("its kind is missing")),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Pid(pid) => write!(out, "pid:{pid}"),
            Selector::Comm(name) => write!(out, "comm:{name}"),
        }
    }
}

impl Selector {
    fn matches(&self, process: &Process) -> bool {
        match self {
            Selector::Pid(pid) => process.identity.pid == *pid,
            Selector::Comm(name) => process.comm == *name,
        }
    }
}

/// The orders and what has been tried.
#[derive(Debug, Default)]
pub struct Orders {
    selectors: Vec<Selector>,
    /// Processes that were offered once: those that cannot be traced are not tried again and again, and a pid that
    /// came back is another process.
    offered: HashSet<(u32, u64)>,
    /// Named pids that were seen; a later process of the same pid was not meant.
    seen_pids: HashSet<u32>,
}

impl Orders {
    /// Replaces the orders; targets that are traced already stay.
    pub fn set(&mut self, selectors: Vec<Selector>) {
        let kept: HashSet<u32> = selectors
            .iter()
            .filter_map(|selector| if let Selector::Pid(pid) = selector { Some(*pid) } else { None })
            .collect();
        self.seen_pids.retain(|pid| kept.contains(pid));
        self.selectors = selectors;
        self.offered.clear();
    }

    /// Processes that match and were not offered before.
    pub fn new_matches(&mut self) -> Vec<u32> {
        let mut found = Vec::new();
        let mut alive = HashSet::new();
        for pid in self.candidates() {
            let Ok(process) = process::inspect(pid) else { continue };
            let key = (pid, process.identity.start_ticks);
            alive.insert(key);
            if self.offered.contains(&key) || !self.matches(&process) {
                continue;
            }
            self.offered.insert(key);
            found.push(pid);
        }
        self.offered.retain(|key| alive.contains(key));
        found
    }

    /// Offers a process again: it could not be taken for a reason that may pass.
    pub fn offer_again(&mut self, pid: u32) {
        self.offered.retain(|(offered, _)| *offered != pid);
        self.seen_pids.remove(&pid);
    }

    fn matches(&mut self, process: &Process) -> bool {
        let pid = process.identity.pid;
        let mut matched = false;
        for selector in self.selectors.iter().filter(|selector| selector.matches(process)) {
            match selector {
                Selector::Pid(_) => matched |= self.seen_pids.insert(pid),
                Selector::Comm(_) => matched = true,
            }
        }
        matched
    }

    /// Pids that could match, this process left out.
    fn candidates(&self) -> Vec<u32> {
        let own = std::process::id();
        let names = self.selectors.iter().any(|selector| matches!(selector, Selector::Comm(_)));
        let named = self.selectors.iter().filter_map(|selector| match selector {
            Selector::Pid(pid) => Some(*pid),
            Selector::Comm(_) => None,
        });
        if !names {
            return named.collect();
        }
        let Ok(entries) = fs::read_dir("/proc") else { return named.collect() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<Selector, String> {
        Selector::try_from(text.to_owned())
    }

    #[test]
    fn selectors_are_a_kind_and_a_value() {
        assert_eq!(selector("pid:12"), Ok(Selector::Pid(12)));
        assert_eq!(selector("comm:nginx: worker"), Ok(Selector::Comm("nginx: worker".to_owned())));
        for wrong in ["12", "pid:0", "pid:x", "comm:", "comm:0123456789abcdef", "exec:/bin/sh", ""] {
            assert!(selector(wrong).unwrap_err().contains("comm:nginx"), "{wrong}");
        }
        assert_eq!(selector("comm:a").unwrap().to_string(), "comm:a");
    }

    #[test]
    fn a_process_is_offered_once() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut orders = Orders::default();
        orders.set(vec![Selector::Pid(child.id())]);
        assert_eq!(orders.new_matches(), [child.id()]);
        assert_eq!(orders.new_matches(), [0; 0]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(orders.new_matches(), [0; 0]);
    }
}
