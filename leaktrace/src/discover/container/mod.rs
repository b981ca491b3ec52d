//! Which container a process is in, and what people call it: the id from its control group, names and labels from the
//! files of the runtime, and from its socket where the files do not tell. Nothing is changed in a runtime, and a
//! runtime that does not answer costs names, never time of the caller.
mod ask;
pub mod cgroup;
mod files;
mod names;

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use ask::Asker;
pub use cgroup::{Membership, Runtime};
pub use names::Names;

/// Containers remembered; a host that makes more of them forgets all at once.
const MAX_CONTAINERS: usize = 4096;
/// Digits of an id that people write.
const SHORT_ID: usize = 12;
/// The longest text of `/proc/PID/cgroup` that is read.
const MAX_CGROUP_BYTES: u64 = 256 << 10;

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits, or what a bundle was called. Hostile.
    pub id: String,
    /// Who made it.
    pub runtime: Runtime,
    /// The uid of the Kubernetes pod, where its control group tells.
    pub pod_uid: Option<String>,
    /// What it is called, as far as that is known.
    pub names: Names,
}

impl Container {
    /// The part of the id that people write.
    pub fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID).filter(|_| self.id.len() >= 32).unwrap_or(&self.id)
    }
}

/// The containers that were met.
#[derive(Debug, Default)]
pub struct Containers {
    known: HashMap<String, Arc<Container>>,
    /// Asked for at a socket.
    asked: HashSet<String>,
    asker: Option<Asker>,
}

impl Containers {
    /// The control groups of a process, and its container; none where it is gone or not in a container.
    pub fn of_process(&mut self, pid: u32) -> (Vec<Membership>, Option<Arc<Container>>) {
        let Some(text) = files::read_text(&format!("/proc/{pid}/cgroup"), MAX_CGROUP_BYTES) else {
            return (Vec::new(), None);
        };
        let groups = cgroup::parse(&text);
        let container = self.of_groups(&groups);
        (groups, container)
    }

    /// The container that control groups belong to.
    pub fn of_groups(&mut self, groups: &[Membership]) -> Option<Arc<Container>> {
        let place = cgroup::container(groups, files::is_bundle)?;
        if let Some(known) = self.known.get(&place.id) {
            return Some(Arc::clone(known));
        }
        let found = files::look_up(&place);
        let container = Arc::new(Container {
            runtime: found.runtime.unwrap_or(place.runtime),
            id: place.id,
            pod_uid: place.pod_uid,
            names: found.names,
        });
        if self.known.len() >= MAX_CONTAINERS {
            self.known.clear();
            self.asked.clear();
        }
        self.known.insert(container.id.clone(), Arc::clone(&container));
        self.ask(&container);
        Some(container)
    }

    /// What is known of a container by now.
    pub fn latest(&self, container: &Arc<Container>) -> Arc<Container> {
        Arc::clone(self.known.get(&container.id).unwrap_or(container))
    }

    /// A descriptor that becomes readable when a runtime has answered, once one was asked.
    pub fn answers(&self) -> Option<BorrowedFd<'_>> {
        self.asker.as_ref().map(|asker| asker.bell().as_fd())
    }

    /// Whether a runtime was asked and has not answered yet.
    pub fn is_waiting(&self) -> bool {
        self.asker.as_ref().is_some_and(Asker::is_busy)
    }

    /// Takes in what runtimes have answered; whether there was anything.
    pub fn take_answers(&mut self) -> bool {
        let answers = self.asker.as_ref().map(Asker::answers).unwrap_or_default();
        let any = !answers.is_empty();
        for (id, answer) in answers {
            if let Some(known) = self.known.get_mut(&id) {
                let mut container = Container::clone(known);
                container.names.fill_from(answer.names);
                container.runtime = answer.runtime;
                *known = Arc::new(container);
            }
        }
        any
    }

    /// Makes the descriptor that [`Containers::answers`] gives, so that a loop can wait for it from the start.
    pub fn prepare(&mut self) {
        if self.asker.is_none() {
            self.asker = Asker::start();
        }
    }

    fn ask(&mut self, container: &Container) {
        let may_know_more = match container.runtime {
            Runtime::Docker | Runtime::Podman | Runtime::Unknown => !container.names.has_labels,
            Runtime::Containerd | Runtime::Crio | Runtime::Runc => false,
        };
        if may_know_more && self.asked.insert(container.id.clone()) {
            self.prepare();
            if let Some(asker) = &self.asker {
                asker.ask(&container.id, container.runtime);
            }
        }
    }
}

/// Takes a text for `/proc/PID/cgroup`, for fuzzers.
pub(crate) fn read_groups(text: &str) {
    let _ = cgroup::container(&cgroup::parse(text), |name| name.len() % 2 == 0);
}

/// Takes bytes for each of the descriptions of containers, for fuzzers.
pub(crate) fn read_descriptions(json: &[u8]) {
    let _ = (names::of_docker(json), names::of_bundle(json), names::of_runc_state(json));
    let _ = names::of_storage(json, "0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_shortened_and_a_bundle_s_name_is_not() {
        let mut container = Container {
            id: "a".repeat(64),
            runtime: Runtime::Docker,
            pod_uid: None,
            names: Names::default(),
        };
        assert_eq!(container.short_id(), "a".repeat(12));
        container.id = "a-bundle-with-a-name".to_owned();
        assert_eq!(container.short_id(), "a-bundle-with-a-name");
    }

    #[test]
    fn this_process_has_control_groups_and_one_that_is_not_there_has_none() {
        let mut containers = Containers::default();
        assert!(!containers.of_process(std::process::id()).0.is_empty());
        assert_eq!(containers.of_process(i32::MAX as u32), (Vec::new(), None));
    }
}
