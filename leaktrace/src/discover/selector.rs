//! Which processes are meant, in words that the command line and the configuration share. Pure: a selector answers
//! for a [`Candidate`] that was read before.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    candidate::Candidate,
    container::{Container, Membership},
};

/// The longest selector that is accepted, in bytes.
const MAX_BYTES: usize = 4096;
/// The shortest beginning of a container's id that is taken for one.
const MIN_ID_PREFIX: usize = 4;
/// Controllers of version 1, and the names of hierarchies, as directories in /sys/fs/cgroup.
const HIERARCHIES: [&str; 16] = [
    "blkio",
    "cpu",
    "cpu,cpuacct",
    "cpuacct",
    "cpuacct,cpu",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_cls,net_prio",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Which processes are meant. As text: `pid:1234`, `container:web`, `cgroup:/system.slice/web.service`, `comm:nginx*`,
/// `exe:/usr/sbin/*`, `all`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// One process.
    Pid(u32),
    /// The processes of a container: its id, the beginning of its id (4 digits or more), or its name.
    Container(String),
    /// The processes of a control group and of those beneath it.
    Cgroup(CgroupPath),
    /// Processes whose name fits this pattern.
    Comm(Pattern),
    /// Processes whose executable fits: a pattern for the whole path if it begins with `/` or `*`, else for its end.
    Exe(Pattern),
    /// Every process.
    All,
}

/// Why a text is no selector: a sentence that says what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorError(String);

impl fmt::Display for SelectorError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for SelectorError {}

impl Selector {
    /// The processes of a container.
    ///
    /// # Errors
    /// An empty or overlong name.
    pub fn container(text: &str) -> Result<Selector, SelectorError> {
        checked("container", text).map(|text| Selector::Container(text.trim_start_matches('/').to_owned()))
    }

    /// The processes of a control group: as a directory of /sys/fs/cgroup, or as /proc/PID/cgroup has it.
    ///
    /// # Errors
    /// A path that does not begin with `/`.
    pub fn cgroup(text: &str) -> Result<Selector, SelectorError> {
        checked("cgroup", text)?.parse().map(Selector::Cgroup)
    }

    /// Processes by name.
    ///
    /// # Errors
    /// An empty or overlong pattern.
    pub fn comm(text: &str) -> Result<Selector, SelectorError> {
        checked("comm", text).map(|text| Selector::Comm(Pattern(text.to_owned())))
    }

    /// Processes by executable.
    ///
    /// # Errors
    /// An empty or overlong pattern.
    pub fn exe(text: &str) -> Result<Selector, SelectorError> {
        checked("exe", text).map(|text| Selector::Exe(Pattern(text.to_owned())))
    }

    /// Whether the process is meant.
    pub fn matches(&self, candidate: &Candidate) -> bool {
        match self {
            Selector::Pid(pid) => candidate.pid == *pid,
            Selector::Container(wanted) => {
                candidate.container.as_deref().is_some_and(|container| is_container(container, wanted))
            }
            Selector::Cgroup(path) => path.contains(&candidate.groups),
            // The kernel keeps 15 bytes of a name.
            Selector::Comm(pattern) => {
                pattern.fits(&candidate.comm) || pattern.0.get(..15) == Some(&candidate.comm)
            }
            Selector::Exe(pattern) => {
                candidate.executable.as_deref().is_some_and(|path| pattern.fits_path(path))
            }
            Selector::All => true,
        }
    }

    /// Whether processes can come to be meant that are not there yet.
    pub fn is_standing(&self) -> bool {
        !matches!(self, Selector::Pid(_))
    }
}

fn checked<'a>(kind: &str, text: &'a str) -> Result<&'a str, SelectorError> {
    match text.len() {
        0 => Err(SelectorError(format!("the {kind} is empty: say which one"))),
        1..=MAX_BYTES => Ok(text),
        length => {
            Err(SelectorError(format!("the {kind} has {length} bytes: at most {MAX_BYTES} make sense")))
        }
    }
}

fn is_container(container: &Container, wanted: &str) -> bool {
    let is_prefix = wanted.len() >= MIN_ID_PREFIX && container.id.starts_with(wanted);
    container.id == wanted || is_prefix || container.names.name.as_deref() == Some(wanted)
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        if text == "all" {
            return Ok(Selector::All);
        }
        let unknown = || {
            SelectorError(format!(
                "'{text}' selects nothing: write pid:N, container:NAME, cgroup:PATH, comm:NAME, exe:PATH or all"
            ))
        };
        let (kind, value) = text.split_once(':').ok_or_else(unknown)?;
        match kind {
            "pid" => match value.parse() {
                Ok(pid) if (1..=4_194_304).contains(&pid) => Ok(Selector::Pid(pid)),
                _ => Err(SelectorError(format!(
                    "'{value}' is no process id: it is a number from 1 to 4194304"
                ))),
            },
            "container" => Selector::container(value),
            "cgroup" => Selector::cgroup(value),
            "comm" => Selector::comm(value),
            "exe" => Selector::exe(value),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Pid(pid) => write!(out, "pid:{pid}"),
            Selector::Container(name) => write!(out, "container:{name}"),
            Selector::Cgroup(path) => write!(out, "cgroup:{path}"),
            Selector::Comm(pattern) => write!(out, "comm:{}", pattern.0),
            Selector::Exe(pattern) => write!(out, "exe:{}", pattern.0),
            Selector::All => out.write_str("all"),
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Selector, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

/// A control group: a path, in one hierarchy or in any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPath {
    /// The directory of a version 1 hierarchy in /sys/fs/cgroup.
    hierarchy: Option<String>,
    path: String,
}

impl CgroupPath {
    fn contains(&self, groups: &[Membership]) -> bool {
        groups.iter().any(|group| {
            let is_hierarchy = match self.hierarchy.as_deref() {
                None => true,
                Some("unified") => group.controllers.is_empty(),
                Some(name) => {
                    group.controllers.split(',').any(|one| name.split(',').any(|other| one == other))
                        || group.controllers.strip_prefix("name=") == Some(name)
                }
            };
            let rest = group.path.strip_prefix(self.path.as_str());
            is_hierarchy
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path == "/")
        })
    }
}

impl FromStr for CgroupPath {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<CgroupPath, SelectorError> {
        if !text.starts_with('/') {
            return Err(SelectorError(format!(
                "'{text}' is no control group: give its directory in /sys/fs/cgroup, or the path in /proc/PID/cgroup"
            )));
        }
        let beneath =
            text.strip_prefix("/sys/fs/cgroup").filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let path = beneath.unwrap_or(text);
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let is_hierarchy = HIERARCHIES.contains(&first) || matches!(first, "systemd" | "unified");
        let hierarchy = (beneath.is_some() && is_hierarchy).then(|| first.to_owned());
        let path = match &hierarchy {
            Some(name) => path.trim_start_matches('/').get(name.len()..).unwrap_or_default(),
            None => path,
        };
        let path = format!("/{}", path.trim_matches('/'));
        Ok(CgroupPath { hierarchy, path })
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hierarchy {
            Some(hierarchy) => write!(out, "/sys/fs/cgroup/{hierarchy}{}", self.path),
            None => out.write_str(&self.path),
        }
    }
}

/// A pattern: `*` stands for any characters, `?` for one, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the whole text fits.
    pub fn fits(&self, text: &str) -> bool {
        let (pattern, text): (Vec<char>, Vec<char>) = (self.0.chars().collect(), text.chars().collect());
        // Where the last `*` was, and how much of the text it has taken: a mismatch makes it take one more.
        let (mut at, mut from) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while let Some(character) = text.get(from) {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at, from));
                    at += 1;
                }
                Some(wanted) if *wanted == '?' || wanted == character => {
                    at += 1;
                    from += 1;
                }
                _ => {
                    let Some((place, taken)) = star else { return false };
                    star = Some((place, taken + 1));
                    at = place + 1;
                    from = taken + 1;
                }
            }
        }
        pattern.get(at..).unwrap_or_default().iter().all(|rest| *rest == '*')
    }

    /// Whether a path fits: as a whole, or by its last components.
    fn fits_path(&self, path: &str) -> bool {
        if self.0.starts_with(['/', '*']) {
            return self.fits(path);
        }
        let components = self.0.split('/').count();
        let mut ends = path.rmatch_indices('/').map(|(at, _)| path.get(at + 1..).unwrap_or_default());
        ends.nth(components - 1).is_some_and(|end| self.fits(end))
    }
}

#[cfg(test)]
mod tests;
