//! What runtimes keep about their containers in files. Reads, with bounds; what the texts mean is `names`' work.
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    super::open::{Found, Way, read_only},
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
pub(super) struct Told {
    /// Whose files they are.
    pub(super) runtime: Option<Runtime>,
    /// What they tell.
    pub(super) names: Names,
}

impl Told {
    fn of(runtime: Runtime, names: Option<Names>) -> Option<Told> {
        names.map(|names| Told { runtime: Some(runtime), names })
    }
}

/// Looks in the places that the runtime of the container uses; where that is not known, in all.
pub(super) fn look_up(place: &Place) -> Told {
    if !super::cgroup::is_name(&place.id) {
        return Told::default();
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
    Told::default()
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

fn docker(root: &Path, id: &str) -> Option<Told> {
    let path = Path::new("var/lib/docker/containers").join(id).join("config.v2.json");
    Told::of(Runtime::Docker, names::of_docker(&read(root, &path, MAX_FILE_BYTES)?))
}

fn containerd(root: &Path, id: &str) -> Option<Told> {
    folders(root, "run/containerd/io.containerd.runtime.v2.task").into_iter().find_map(|namespace| {
        let path = namespace.join(id).join("config.json");
        Told::of(Runtime::Containerd, names::of_bundle(&read(root, &path, MAX_FILE_BYTES)?))
    })
}

/// containers/storage has a folder for each storage driver, `overlay-containers` and the like.
fn storage(root: &Path, place: &Place) -> Option<Told> {
    let id = &place.id;
    let drivers: Vec<PathBuf> = ["var/lib/containers/storage", "run/containers/storage"]
        .iter()
        .flat_map(|storage| folders(root, storage))
        .filter(|folder| folder.to_string_lossy().ends_with("-containers"))
        .collect();
    let mut names = Names::default();
    for driver in &drivers {
        let annotations = driver.join(id).join("userdata/config.json");
        let of_annotations =
            read(root, &annotations, MAX_FILE_BYTES).and_then(|json| names::of_bundle(&json));
        names.fill_from(of_annotations.unwrap_or_default());
        for list in ["containers.json", "volatile-containers.json"] {
            let listed =
                read(root, &driver.join(list), MAX_LIST_BYTES).and_then(|json| names::of_storage(&json, id));
            names.fill_from(listed.unwrap_or_default());
        }
    }
    let runtime = if names.pod.is_some() && place.runtime == Runtime::Unknown {
        Runtime::Crio
    } else {
        Runtime::Podman
    };
    let runtime = if place.runtime == Runtime::Unknown { runtime } else { place.runtime };
    (!names.is_empty()).then_some(Told { runtime: Some(runtime), names })
}

fn runc(root: &Path, id: &str) -> Option<Told> {
    let folders = [
        "run/runc",
        "run/containerd/runc/k8s.io",
        "run/containerd/runc/default",
        "run/docker/runtime-runc/moby",
    ];
    folders.iter().find_map(|folder| {
        let path = Path::new(folder).join(id).join("state.json");
        Told::of(Runtime::Runc, names::of_runc_state(&read(root, &path, MAX_FILE_BYTES)?))
    })
}

/// What is in a folder beneath a root, by path from the root.
fn folders(root: &Path, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join(folder)).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(Result::ok).map(|entry| Path::new(folder).join(entry.file_name())).collect()
}

/// A file of the kernel's as text; none where it cannot be read or is too long.
pub(super) fn read_text(path: &str, limit: u64) -> Option<String> {
    Some(String::from_utf8_lossy(&read_all(read_only(path.as_ref()).ok()?, limit)?).into_owned())
}

/// A regular file of root's, or of who runs leaktrace; none where it cannot be read or is too long. What is put in its
/// place may be anything.
fn read(root: &Path, path: &Path, limit: u64) -> Option<Vec<u8>> {
    // SAFETY: no memory.
    let own = unsafe { libc::geteuid() };
    let found = Found::beneath(&File::open(root).ok()?, path.as_os_str().as_bytes(), Way::Links).ok()?;
    let found = Some(found).filter(|found| found.is_of(own))?;
    read_all(found.open(limit).ok()?, limit)
}

fn read_all(file: File, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "12345").unwrap();
        let read = |path: &str, limit| read(folder.path(), Path::new(path), limit);
        assert_eq!(read("a", 5).unwrap(), b"12345");
        assert_eq!(read("a", 4), None);
        assert_eq!(read(".", 5), None);
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
