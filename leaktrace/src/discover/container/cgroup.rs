//! From the control groups of a process to the container that it is in. Pure: the text is `/proc/PID/cgroup`, whose
//! paths begin at the reader's own cgroup namespace. What a container is called is for the modules beside this one.

/// The most lines that are believed: one for each hierarchy.
const MAX_LINES: usize = 64;
/// The longest path that is believed, in bytes (PATH_MAX).
const MAX_PATH_BYTES: usize = 4096;

/// A line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Controllers of a version 1 hierarchy, or `name=…`; empty for version 2.
    pub controllers: String,
    /// The control group, from the root of the reader's namespace. Hostile.
    pub path: String,
}

/// Who made a container, as far as its control group tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// podman, or another user of libpod.
    Podman,
    /// containerd through the Kubernetes runtime interface.
    Containerd,
    /// CRI-O.
    Crio,
    /// runc or crun, on a bundle.
    Runc,
    /// The path has an id and does not say whose.
    Unknown,
}

impl Runtime {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Docker => "docker",
            Runtime::Podman => "podman",
            Runtime::Containerd => "containerd",
            Runtime::Crio => "cri-o",
            Runtime::Runc => "runc",
            Runtime::Unknown => "unknown",
        }
    }
}

/// A container as its control group names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// 64 hexadecimal digits, or what a bundle was called. Hostile.
    pub id: String,
    /// Who made it.
    pub runtime: Runtime,
    /// The pod's uid, with dashes, where Kubernetes made the group.
    pub pod_uid: Option<String>,
}

/// Parses the text; lines that are not of the known form are left out.
pub fn parse(text: &str) -> Vec<Membership> {
    text.lines().take(MAX_LINES).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Membership> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let fits = path.starts_with('/') && path.len() <= MAX_PATH_BYTES;
    fits.then(|| Membership { controllers: controllers.to_owned(), path: path.to_owned() })
}

/// The container that the groups belong to: by the version 2 group where it tells, else by any other. `is_bundle` says
/// whether a runtime knows a bundle by this name, because bundles may be called anything.
pub fn container(groups: &[Membership], is_bundle: impl Fn(&str) -> bool) -> Option<Place> {
    let ordered = || {
        let unified = groups.iter().filter(|group| group.controllers.is_empty());
        unified.chain(groups.iter().filter(|group| !group.controllers.is_empty()))
    };
    let by_id = ordered().find_map(|group| by_id(&group.path));
    by_id.or_else(|| ordered().find_map(|group| by_bundle(&group.path, &is_bundle)))
}

/// The innermost component that is a container's: a container may run containers, and its processes are in the inner.
fn by_id(path: &str) -> Option<Place> {
    let components: Vec<&str> = components(path).collect();
    components.iter().enumerate().rev().find_map(|(index, component)| {
        let parents = components.get(..index).unwrap_or_default();
        let (id, runtime) = id_in(component, parents)?;
        Some(Place { id, runtime, pod_uid: parents.iter().rev().find_map(|parent| pod_uid(parent)) })
    })
}

/// Components of a path; `..` leads out of the reader's namespace and says nothing.
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|component| !matches!(*component, "" | "." | ".."))
}

fn id_in(component: &str, parents: &[&str]) -> Option<(String, Runtime)> {
    let bare = component.strip_suffix(".scope").unwrap_or(component);
    // `conmon` is what watches a container; a `-conmon-` group is beside it, not in it.
    if bare.starts_with("crio-conmon-") || bare.starts_with("libpod-conmon-") {
        return None;
    }
    const PREFIXES: [(&str, Runtime); 7] = [
        ("docker-", Runtime::Docker),
        ("libpod-payload-", Runtime::Podman),
        ("libpod-", Runtime::Podman),
        ("cri-containerd-", Runtime::Containerd),
        ("nerdctl-", Runtime::Containerd),
        ("crio-", Runtime::Crio),
        ("runc-", Runtime::Runc),
    ];
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = bare.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some((id.to_owned(), runtime));
        }
    }
    // containerd with a cgroupfs driver that names slice, prefix and id: `kubepods-….slice:cri-containerd:ID`.
    if let Some((front, id)) = bare.rsplit_once(':').filter(|(_, id)| is_id(id)) {
        let named = |word: &str| front.split(':').any(|part| part == word);
        let runtime = match () {
            () if named("docker") => Runtime::Docker,
            () if named("crio") => Runtime::Crio,
            () if named("libpod") => Runtime::Podman,
            () => Runtime::Containerd,
        };
        return Some((id.to_owned(), runtime));
    }
    if !is_id(bare) {
        return is_fargate_id(bare, parents).then(|| (bare.to_owned(), Runtime::Unknown));
    }
    let parent = parents.last().copied().unwrap_or_default();
    let runtime = match parent {
        "docker" | "buildkit" => Runtime::Docker,
        "libpod" | "libpod_parent" => Runtime::Podman,
        _ if parent.starts_with("libpod_pod_") || parent.starts_with("machine-libpod_pod_") => {
            Runtime::Podman
        }
        _ => Runtime::Unknown,
    };
    Some((bare.to_owned(), runtime))
}

/// Whether it is an id as runtimes make them: 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && is_lower_hex(text)
}

/// Whether it is an id as Fargate makes them: `/ecs/TASK/TASK-NUMBER`.
fn is_fargate_id(text: &str, parents: &[&str]) -> bool {
    let parts = text.split_once('-').filter(|(task, _)| task.len() == 32 && is_lower_hex(task));
    let is_number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    parts.is_some_and(|(task, number)| is_number(number) && parents.ends_with(&["ecs", task]))
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The uid in `kubepods-burstable-pod1234_5678_….slice` or `pod1234-5678-…`.
fn pod_uid(component: &str) -> Option<String> {
    let bare = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match bare.rsplit_once("-pod") {
        Some((front, uid)) if front.starts_with("kubepods") || front.contains("-kubepods") => uid,
        _ => bare.strip_prefix("pod")?,
    };
    let fits = (32..=36).contains(&uid.len())
        && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
    fits.then(|| uid.replace('_', "-"))
}

/// `/…/NAME`, or `runc-NAME.scope` where systemd made the group.
fn by_bundle(path: &str, is_bundle: &impl Fn(&str) -> bool) -> Option<Place> {
    let components: Vec<&str> = components(path).collect();
    components.iter().rev().find_map(|component| {
        let scope = component.strip_suffix(".scope").unwrap_or(component);
        let after_prefix = ["runc-", "crun-"].iter().find_map(|prefix| scope.strip_prefix(prefix));
        let name =
            after_prefix.into_iter().chain([*component]).find(|name| is_name(name) && is_bundle(name))?;
        Some(Place { id: name.to_owned(), runtime: Runtime::Runc, pod_uid: None })
    })
}

/// Whether runc would take it for a container's id; nothing else is made part of a path.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    (1..=1024).contains(&text.len()) && text.bytes().all(fits) && !matches!(text, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3858919f60641ae85a47c4c211529e6392052b4b13eff9cdf7a4d705fba9a4ed";
    const OTHER: &str = "d3a8291927fd1129cf3600c2f8bdb3246dd48ec470638868eff8f88a5c6d904e";
    const UID: &str = "8f6a1c8e-1c5c-4f59-8f0d-9d6e3d6d8c11";

    fn of(path: &str) -> Option<Place> {
        let path = path.replace("ID", ID).replace("OTHER", OTHER);
        container(&parse(&format!("0::{path}\n")), |name| name == "my-bundle")
    }

    fn found(path: &str) -> (Runtime, Option<String>) {
        let place = of(path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(place.id, ID, "{path}");
        (place.runtime, place.pod_uid)
    }

    #[test]
    fn every_runtime_s_path_gives_the_id_and_the_runtime() {
        let uid = UID.to_owned();
        for (path, runtime) in [
            ("/system.slice/docker-ID.scope", Runtime::Docker),
            ("/docker/ID", Runtime::Docker),
            ("/docker/ID/init.scope", Runtime::Docker),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope", Runtime::Docker),
            ("/machine.slice/libpod-ID.scope", Runtime::Podman),
            ("/machine.slice/libpod-ID.scope/container", Runtime::Podman),
            ("/libpod_parent/libpod-ID", Runtime::Podman),
            ("/libpod_parent/libpod_pod_OTHER/ID", Runtime::Podman),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
                Runtime::Podman,
            ),
            ("/system.slice/app.service/libpod-payload-ID", Runtime::Podman),
            ("/default/ID", Runtime::Unknown),
            ("/system.slice/containerd.service/nerdctl-ID.scope", Runtime::Containerd),
            ("/system.slice/runc-ID.scope", Runtime::Runc),
            ("/ecs/task/ID", Runtime::Unknown),
            ("/../../docker/ID", Runtime::Docker),
        ] {
            assert_eq!(found(path), (runtime, None), "{path}");
        }
        for (path, runtime) in [
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope",
                Runtime::Containerd,
            ),
            ("/kubepods.slice/kubepods-podUID.slice/crio-ID.scope", Runtime::Crio),
            ("/kubepods/besteffort/podUID/ID", Runtime::Unknown),
            ("/kubepods/podUID/ID", Runtime::Unknown),
            (
                "/system.slice/containerd.service/kubepods-besteffort-podUID.slice:cri-containerd:ID",
                Runtime::Containerd,
            ),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID.slice/cri-containerd-ID.scope",
                Runtime::Containerd,
            ),
            ("/kubepods.slice/kubepods-podUID.slice/docker-ID.scope", Runtime::Docker),
        ] {
            let slice = UID.replace('-', "_");
            let uid_in = if path.contains(".slice/") { slice.as_str() } else { UID };
            let got = found(&path.replace("UID", uid_in));
            let one_component = path.contains(".slice:");
            assert_eq!(got, (runtime, (!one_component).then(|| uid.clone())), "{path}");
        }
    }

    #[test]
    fn fargate_s_shorter_ids_are_known_by_their_place() {
        let task = OTHER.get(..32).unwrap();
        let place = of(&format!("/ecs/{task}/{task}-2531612879")).unwrap();
        assert_eq!(place.id, format!("{task}-2531612879"));
        assert_eq!(of(&format!("/other/{task}/{task}-2531612879")), None);
    }

    #[test]
    fn the_innermost_container_counts() {
        let path = "/docker/OTHER/docker/ID";
        assert_eq!(found(path).0, Runtime::Docker);
        assert_eq!(
            found("/kubepods.slice/cri-containerd-OTHER.scope/libpod_parent/libpod-ID").0,
            Runtime::Podman
        );
    }

    #[test]
    fn what_watches_a_container_and_what_only_looks_like_one_is_not_in_it() {
        for path in [
            "/",
            "/init.scope",
            "/user.slice/user-0.slice/session-1.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/libpod_parent/conmon",
            "/system.slice/crio-conmon-ID.scope",
            "/system.slice/docker.service",
            "/docker/3858919f6064",
            "/docker/IDff",
            "/service/d3a8291927fd1129cf3600c2f8bdb324",
            "/docker/3858919F60641AE85A47C4C211529E6392052B4B13EFF9CDF7A4D705FBA9A4ED",
            "/some/bundle",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_bundle_is_known_by_its_name_where_the_runtime_has_it() {
        for path in
            ["/my-bundle", "/user.slice/my-bundle", "/system.slice/runc-my-bundle.scope", "/my-bundle/sub"]
        {
            let place = of(path).unwrap();
            assert_eq!((place.id.as_str(), place.runtime), ("my-bundle", Runtime::Runc), "{path}");
        }
        assert_eq!(of("/../my-bundle").unwrap().id, "my-bundle");
    }

    #[test]
    fn on_a_hybrid_host_any_hierarchy_may_tell() {
        let text = format!("9:name=systemd:/\n4:memory:/docker/{ID}\n1:cpu,cpuacct:/\n0::/\n");
        assert_eq!(container(&parse(&text), |_| false).unwrap().id, ID);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_never_asked_for() {
        let asked = std::cell::RefCell::new(Vec::new());
        let ask = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            false
        };
        assert!(container(&parse("0::/../a b/\u{1b}[1m/ok"), ask).is_none());
        assert_eq!(asked.into_inner(), ["ok"]);
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        assert_eq!(parse("x\n1:cpu\n2:a:relative\n\n").len(), 0);
        assert_eq!(parse(&format!("0::/{}", "a".repeat(5000))).len(), 0);
        assert_eq!(parse(&"0::/\n".repeat(1000)).len(), MAX_LINES);
    }
}
