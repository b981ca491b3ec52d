//! Standing orders: which processes are to be traced, now and whenever they come to be. Pure; the tracer acts on them.
use std::fmt::Write as _;

use crate::discover::{candidate::Candidate, selector::Selector};

/// Targets at once, unless said otherwise.
pub const DEFAULT_MAX_TARGETS: usize = 64;
/// The most targets that can be asked for.
pub const MOST_TARGETS: usize = 1000;
/// Live blocks that are remembered of each target of an order, unless said otherwise: a table takes 16 bytes for each
/// that fits, from the beginning, so 64 targets take 128 MiB.
pub const DEFAULT_MAX_BLOCKS: u32 = 100_000;

/// What is to be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// A process that one of these means is traced …
    pub selectors: Vec<Selector>,
    /// … unless one of these means it too.
    pub exclude: Vec<Selector>,
    /// Targets at once; further ones are counted and wait until another has ended.
    pub max_targets: usize,
}

impl Default for Orders {
    fn default() -> Orders {
        Orders { selectors: Vec::new(), exclude: Vec::new(), max_targets: DEFAULT_MAX_TARGETS }
    }
}

impl Orders {
    /// Whether the process is to be traced. What sets up a container is in its control group only for a moment: it has
    /// to be meant by its own name.
    pub fn want(&self, candidate: &Candidate) -> bool {
        let is_meant = |selector: &Selector| {
            let by_place = matches!(selector, Selector::Container(_) | Selector::Cgroup(_) | Selector::All);
            selector.matches(candidate) && !(by_place && candidate.sets_up_container())
        };
        self.selectors.iter().any(is_meant)
            && !self.exclude.iter().any(|selector| selector.matches(candidate))
    }

    /// Whether processes can come to be meant that are not there yet.
    pub fn are_standing(&self) -> bool {
        self.selectors.iter().any(Selector::is_standing)
    }

    /// Whether an order names a container: then it matters what containers are called.
    pub fn name_containers(&self) -> bool {
        let mut all = self.selectors.iter().chain(&self.exclude);
        all.any(|selector| matches!(selector, Selector::Container(_)))
    }

    /// What is waited for, in words. Hostile: the words are the user's own.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for selector in self.selectors.iter().filter(|selector| selector.is_standing()) {
            let word = selector.to_string();
            let (kind, name) = word.split_once(':').unwrap_or(("any process", ""));
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = match kind {
                "comm" => write!(text, "{separator}processes named {name}"),
                "exe" => write!(text, "{separator}processes of {name}"),
                "cgroup" => write!(text, "{separator}processes in control group {name}"),
                _ => write!(text, "{separator}{kind} {name}"),
            };
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(selectors: &[&str], exclude: &[&str]) -> Orders {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Orders { selectors: parse(selectors), exclude: parse(exclude), ..Orders::default() }
    }

    fn candidate(comm: &str, executable: &str) -> Candidate {
        Candidate {
            pid: 7,
            comm: comm.to_owned(),
            executable: Some(executable.to_owned()),
            ..Candidate::default()
        }
    }

    #[test]
    fn a_process_is_wanted_if_it_is_meant_and_not_excluded() {
        let nginx = candidate("nginx", "/usr/sbin/nginx");
        assert!(orders(&["comm:x", "exe:nginx"], &[]).want(&nginx));
        assert!(!orders(&["all"], &["comm:ng*"]).want(&nginx));
        assert!(!orders(&[], &[]).want(&nginx));
    }

    #[test]
    fn what_sets_up_a_container_has_to_be_meant_by_name() {
        let runc = candidate("runc:[2:INIT]", "/usr/sbin/runc");
        assert!(!orders(&["all"], &[]).want(&runc));
        assert!(orders(&["exe:runc"], &[]).want(&runc));
        assert!(orders(&["pid:7"], &[]).want(&runc));
    }

    #[test]
    fn only_a_pid_cannot_come_later() {
        assert!(!orders(&["pid:1"], &[]).are_standing());
        assert!(orders(&["pid:1", "comm:a"], &[]).are_standing());
    }

    #[test]
    fn what_is_waited_for_is_said_in_words() {
        let text = orders(&["pid:1", "container:web", "comm:ng*", "cgroup:/a", "all"], &[]).describe();
        assert_eq!(text, "container web, processes named ng*, processes in control group /a, any process");
    }
}
