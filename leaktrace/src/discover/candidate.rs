//! A process that may have to be traced: what selectors ask about. Whether it can be traced is `process`' work.
use std::{fs, sync::Arc};

use super::{
    container::{Container, Containers, Membership},
    process,
};

/// Programs that set up a container inside its control group before they become what runs in it.
const SETTING_UP: [&str; 6] =
    ["runc", "crun", "youki", "conmon", "containerd-shim", "containerd-shim-runc-v2"];

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Its id.
    pub pid: u32,
    /// `/proc/PID/comm`. Hostile.
    pub comm: String,
    /// The executable's path as the kernel knows it, where it may be read. Hostile.
    pub executable: Option<String>,
    /// Its control groups.
    pub groups: Vec<Membership>,
    /// The container that it is in.
    pub container: Option<Arc<Container>>,
    /// An exec is under way: its new program is not there yet.
    pub in_exec: bool,
}

impl Candidate {
    /// Reads what there is to know; none for kernel threads, for processes that have ended, and for this one.
    pub fn read(pid: u32, containers: &mut Containers) -> Option<Candidate> {
        if pid == std::process::id() {
            return None;
        }
        let stat = process::stat(pid)?;
        if stat.is_kernel_thread || stat.has_ended {
            return None;
        }
        let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
        let executable = fs::read_link(format!("/proc/{}/exe", process::shown_as(pid))).ok();
        let (groups, container) = containers.of_process(pid);
        Some(Candidate {
            pid,
            comm: String::from_utf8_lossy(comm.trim_ascii_end()).into_owned(),
            executable: executable.map(|path| {
                let path = path.to_string_lossy();
                path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()
            }),
            groups,
            container,
            in_exec: stat.in_exec,
        })
    }

    /// Whether it is a runtime that makes the container rather than a process of the container.
    pub fn sets_up_container(&self) -> bool {
        let path = self.executable.as_deref().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        // runc runs from a sealed copy of itself, which is called otherwise.
        let is_copy = path.starts_with("/memfd:runc_cloned:") || self.comm.starts_with("runc:[");
        is_copy || SETTING_UP.contains(&name) || SETTING_UP.contains(&self.comm.as_str())
    }
}

/// Ids of the processes that there are now.
pub fn process_ids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_a_candidate_and_this_process_is_none() {
        let mut containers = Containers::default();
        assert_eq!(Candidate::read(std::process::id(), &mut containers), None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let candidate = Candidate::read(child.id(), &mut containers);
        assert!(process_ids().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let candidate = candidate.unwrap();
        assert!(!candidate.groups.is_empty() && candidate.executable.is_some());
        assert_eq!(Candidate::read(child.id(), &mut containers), None);
    }

    #[test]
    fn what_sets_up_a_container_is_not_in_it() {
        let of = |path: &str| Candidate { executable: Some(path.to_owned()), ..Candidate::default() };
        assert!(of("/usr/sbin/runc").sets_up_container());
        assert!(of("/memfd:runc_cloned:/proc/self/exe").sets_up_container());
        assert!(!of("/usr/sbin/nginx").sets_up_container());
    }
}
