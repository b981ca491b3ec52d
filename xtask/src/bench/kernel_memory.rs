//! How much kernel memory a process's BPF maps take.
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// What the kernel says that the maps of a process take: of maps that are filled as needed, what is in them (from
/// Linux 6.4 on; before, what they may take at most).
pub(super) fn maps_bytes(pid: u32) -> Result<u64> {
    let folder = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut by_map = BTreeMap::new();
    for entry in entries.flatten() {
        if let Some((map, bytes)) = of_descriptor(&entry.path())? {
            by_map.insert(map, bytes);
        }
    }
    Ok(by_map.values().sum())
}

/// The map behind a descriptor, and its size; several descriptors can stand for one map.
fn of_descriptor(path: &Path) -> Result<Option<(u64, u64)>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(map_of(&text)),
        // A descriptor may be closed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn map_of(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.and_then(|value| value.trim().parse().ok())
    };
    Some((field("map_id")?, field("memlock")?))
}

/// What the kernel has allocated on the whole host and cannot give back: what others do meanwhile is in it.
pub(super) fn slab_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:")?.trim().strip_suffix(" kB"));
    Ok(value.and_then(|value| value.parse::<u64>().ok()).context("no SUnreclaim in /proc/meminfo")? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_of_maps_count() {
        let map =
            "pos:\t0\nflags:\t02\nmap_type:\t1\nmax_entries:\t64\nmemlock:\t4096\nmap_id:\t12\nfrozen:\t0\n";
        assert_eq!(map_of(map), Some((12, 4096)));
        assert_eq!(map_of("pos:\t0\nprog_type:\t2\nmemlock:\t4096\nprog_id:\t12\n"), None);
    }
}
