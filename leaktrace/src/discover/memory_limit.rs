//! The memory limit that a process is under: the tightest one of its cgroup and the groups above it. What to make
//! of it is left to alerts.
use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::model::service::MemoryLimit;

/// Bytes read of one file of a cgroup.
const MAX_BYTES: u64 = 64 << 10;
/// Limits from here on mean none: version 1 writes the largest multiple of a page.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Names of files in a memory group.
struct Names {
    limit: &'static str,
    used: &'static str,
    droppable: &'static str,
}

const VERSION_2: Names = Names { limit: "memory.max", used: "memory.current", droppable: "inactive_file" };
const VERSION_1: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", droppable: "total_inactive_file" };

/// The limit of a process; `None` without one or where cgroups cannot be read.
pub fn of(pid: u32) -> Option<MemoryLimit> {
    let text = read(&Path::new("/proc").join(pid.to_string()).join("cgroup"))?;
    of_groups(&text, Path::new("/sys/fs/cgroup"))
}

/// By the lines of `/proc/PID/cgroup` and the folder that cgroups are mounted in.
fn of_groups(text: &str, mount: &Path) -> Option<MemoryLimit> {
    let mut tightest: Option<MemoryLimit> = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (roots, names) = match controllers {
            "" => ([mount.to_path_buf(), mount.join("unified")], VERSION_2),
            "memory" => ([mount.join("memory"), PathBuf::new()], VERSION_1),
            _ => continue,
        };
        for root in roots.iter().filter(|root| root.is_dir()) {
            for limit in limits(root, path, &names) {
                if tightest.is_none_or(|tightest| limit.share() > tightest.share()) {
                    tightest = Some(limit);
                }
            }
        }
    }
    tightest
}

/// The limits of a group and of those above it.
fn limits(root: &Path, path: &str, names: &Names) -> Vec<MemoryLimit> {
    let mut found = Vec::new();
    let mut group = path.trim_start_matches('/');
    // A path that leads out of the mount belongs to another cgroup namespace.
    if group.split('/').any(|part| part == "..") {
        return found;
    }
    loop {
        let folder = root.join(group);
        let limit = number(&folder.join(names.limit)).filter(|bytes| *bytes < UNLIMITED_BYTES);
        if let (Some(limit_bytes), Some(used)) = (limit, number(&folder.join(names.used))) {
            let droppable =
                read(&folder.join("memory.stat")).and_then(|text| field(&text, names.droppable)).unwrap_or(0);
            found.push(MemoryLimit { limit_bytes, used_bytes: used.saturating_sub(droppable) });
        }
        if group.is_empty() {
            return found;
        }
        group = group.rsplit_once('/').map_or("", |(above, _)| above);
    }
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn group(root: &Path, name: &str, max: &str, current: &str) {
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("memory.max"), max).unwrap();
        fs::write(folder.join("memory.current"), current).unwrap();
        fs::write(folder.join("memory.stat"), "anon 5\ninactive_file 10\n").unwrap();
    }

    #[test]
    fn the_tightest_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "pod", "200\n", "110\n");
        group(root.path(), "pod/box", "1000\n", "60\n");
        group(root.path(), "pod/box/inner", "max\n", "60\n");
        let limit = of_groups("1:cpu:/x\n0::/pod/box/inner\n", root.path());
        assert_eq!(limit, Some(MemoryLimit { limit_bytes: 200, used_bytes: 100 }));
        assert_eq!(limit.unwrap().share(), 0.5);
    }

    #[test]
    fn no_limit_and_foreign_paths_yield_none() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "free", "max\n", "60\n");
        for text in ["0::/free\n", "0::/../x\n", "0::/gone\n", "", "garbage", "0::\n"] {
            assert_eq!(of_groups(text, root.path()), None, "{text:?}");
        }
    }
}
