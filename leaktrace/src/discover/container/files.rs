//! What runtimes keep about their containers in files. Reads, with bounds; what the texts mean is `names`' work.
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    cgroup::{Place, Runtime},
    names::{self, Names},
};

/// The longest file about one container that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The longest list of all containers that is read.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 64;

/// What the files tell.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whose files they are.
    pub(super) runtime: Option<Runtime>,
    /// What they tell.
    pub(super) names: Names,
}

impl Found {
    fn of(runtime: Runtime, names: Option<Names>) -> Option<Found> {
        names.map(|names| Found { runtime: Some(runtime), names })
    }
}

/// Looks in the places that the runtime of the container uses; where that is not known, in all.
pub(super) fn look_up(place: &Place) -> Found {
    if !super::cgroup::is_name(&place.id) {
        return Found::default();
    }
    let is = |runtime: Runtime| place.runtime == runtime || place.runtime == Runtime::Unknown;
    for root in roots() {
        let found = None
            .or_else(|| is(Runtime::Docker).then(|| docker(&root, &place.id)).flatten())
            .or_else(|| is(Runtime::Containerd).then(|| containerd(&root, &place.id)).flatten())
            .or_else(|| (is(Runtime::Podman) || is(Runtime::Crio)).then(|| storage(&root, place)).flatten())
            .or_else(|| is(Runtime::Runc).then(|| runc(&root, &place.id)).flatten());
        if let Some(found) = found {
            return found;
        }
    }
    Found::default()
}

/// Whether runc or crun has a container of this name.
pub(super) fn is_bundle(name: &str) -> bool {
    let state = |root: &Path| {
        root.join("run/runc").join(name).join("state.json").is_file()
            || root.join("run/crun").join(name).join("status").is_file()
    };
    roots().iter().any(|root| state(root))
}

/// This process's root; where it runs in a container that shares the host's processes, the host's as well.
pub(super) fn roots() -> Vec<PathBuf> {
    let own = PathBuf::from("/");
    let first = PathBuf::from("/proc/1/root");
    let identity = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    match (identity(&own), identity(&first.join("."))) {
        (Some(ours), Some(theirs)) if ours != theirs => vec![own, first],
        _ => vec![own],
    }
}

fn docker(root: &Path, id: &str) -> Option<Found> {
    let path = root.join("var/lib/docker/containers").join(id).join("config.v2.json");
    Found::of(Runtime::Docker, names::of_docker(&read(&path, MAX_FILE_BYTES)?))
}

fn containerd(root: &Path, id: &str) -> Option<Found> {
    let tasks = root.join("run/containerd/io.containerd.runtime.v2.task");
    folders(&tasks).into_iter().find_map(|namespace| {
        let path = namespace.join(id).join("config.json");
        Found::of(Runtime::Containerd, names::of_bundle(&read(&path, MAX_FILE_BYTES)?))
    })
}

/// containers/storage has a folder for each storage driver, `overlay-containers` and the like.
fn storage(root: &Path, place: &Place) -> Option<Found> {
    let id = &place.id;
    let drivers: Vec<PathBuf> = ["var/lib/containers/storage", "run/containers/storage"]
        .iter()
        .flat_map(|storage| folders(&root.join(storage)))
        .filter(|folder| folder.to_string_lossy().ends_with("-containers"))
        .collect();
    let mut names = Names::default();
    for driver in &drivers {
        let annotations = driver.join(id).join("userdata/config.json");
        let of_annotations = read(&annotations, MAX_FILE_BYTES).and_then(|json| names::of_bundle(&json));
        names.fill_from(of_annotations.unwrap_or_default());
        for list in ["containers.json", "volatile-containers.json"] {
            let listed =
                read(&driver.join(list), MAX_LIST_BYTES).and_then(|json| names::of_storage(&json, id));
            names.fill_from(listed.unwrap_or_default());
        }
    }
    let runtime = if names.pod.is_some() && place.runtime == Runtime::Unknown {
        Runtime::Crio
    } else {
        Runtime::Podman
    };
    let runtime = if place.runtime == Runtime::Unknown { runtime } else { place.runtime };
    (!names.is_empty()).then_some(Found { runtime: Some(runtime), names })
}

fn runc(root: &Path, id: &str) -> Option<Found> {
    let folders = [
        "run/runc",
        "run/containerd/runc/k8s.io",
        "run/containerd/runc/default",
        "run/docker/runtime-runc/moby",
    ];
    folders.iter().find_map(|folder| {
        let path = root.join(folder).join(id).join("state.json");
        Found::of(Runtime::Runc, names::of_runc_state(&read(&path, MAX_FILE_BYTES)?))
    })
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

/// A file as text; none where it cannot be read or is too long.
pub(super) fn read_text(path: &str, limit: u64) -> Option<String> {
    Some(String::from_utf8_lossy(&read(Path::new(path), limit)?).into_owned())
}

/// A regular file; none where it cannot be read or is too long. What is put in its place may be anything: opening a
/// pipe must not wait.
fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let is_regular = file.metadata().ok()?.is_file();
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).ok().filter(|_| is_regular)?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4), None);
        assert_eq!(read(folder.path(), 5), None);
    }

    #[test]
    fn docker_s_file_is_found_beneath_a_root() {
        let root = tempfile::tempdir().unwrap();
        let id = "a".repeat(64);
        let folder = root.path().join("var/lib/docker/containers").join(&id);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.v2.json"), r#"{"Name":"/web"}"#).unwrap();
        let found = docker(root.path(), &id).unwrap();
        assert_eq!((found.runtime, found.names.name.as_deref()), (Some(Runtime::Docker), Some("web")));
        assert!(docker(root.path(), "b").is_none());
    }

    #[test]
    fn containerd_s_and_podman_s_files_are_found_beneath_a_root() {
        let root = tempfile::tempdir().unwrap();
        let id = "a".repeat(64);
        let task = root.path().join("run/containerd/io.containerd.runtime.v2.task/k8s.io").join(&id);
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("config.json"), r#"{"annotations":{"io.kubernetes.cri.sandbox-name":"web-0"}}"#)
            .unwrap();
        assert_eq!(containerd(root.path(), &id).unwrap().names.pod.as_deref(), Some("web-0"));
        let list = root.path().join("var/lib/containers/storage/overlay-containers");
        fs::create_dir_all(&list).unwrap();
        fs::write(list.join("containers.json"), format!(r#"[{{"id":"{id}","names":["lt1"]}}]"#)).unwrap();
        let place = Place { id, runtime: Runtime::Podman, pod_uid: None };
        assert_eq!(storage(root.path(), &place).unwrap().names.name.as_deref(), Some("lt1"));
    }
}
