//! Separate debug information on this host: by build id, then by `.gnu_debuglink` with its checksum.
//!
//! Only directories named by the operator or by convention on the host are searched, never a container's. What is
//! found must carry the same build id, or the checksum that the link gives.
use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{elf::Layout, module::Module};

/// Where distributions install debug information.
pub const DEFAULT_DEBUG_DIR: &str = "/usr/lib/debug";
const MAX_CHECKSUM_BYTES: u64 = 1 << 30;

/// A debug file and its layout.
pub(super) fn find(module: &Module, directories: &[PathBuf]) -> Option<(File, Layout)> {
    by_build_id(module, directories).or_else(|| by_link(module, directories))
}

fn by_build_id(module: &Module, directories: &[PathBuf]) -> Option<(File, Layout)> {
    let id = module.build_id.as_deref().filter(|id| id.len() >= 16)?;
    let (first, rest) = id.split_at_checked(2)?;
    directories.iter().find_map(|directory| {
        let path = directory.join(".build-id").join(first).join(format!("{rest}.debug"));
        let (file, layout) = open(&path)?;
        same_build_id(module, &layout).then_some((file, layout))
    })
}

fn by_link(module: &Module, directories: &[PathBuf]) -> Option<(File, Layout)> {
    let (name, checksum) = module.layout.as_ref()?.debug_link(&module.file)?;
    let beside = Path::new(&module.path).parent()?.strip_prefix("/").ok()?;
    let stays_inside = beside.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    directories.iter().flat_map(|directory| [directory.join(beside), directory.clone()]).find_map(
        |directory| {
            let path = if stays_inside { directory.join(&name) } else { return None };
            let (file, layout) = open(&path)?;
            let same = match (&module.build_id, &layout.build_id) {
                (Some(_), Some(_)) => same_build_id(module, &layout),
                _ => checksum_of(&path) == Some(checksum),
            };
            same.then_some((file, layout))
        },
    )
}

fn open(path: &Path) -> Option<(File, Layout)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let layout = file.metadata().ok()?.is_file().then(|| Layout::read(&file).ok())??;
    Some((file, layout))
}

fn same_build_id(module: &Module, layout: &Layout) -> bool {
    let ours = module.layout.as_ref().and_then(|layout| layout.build_id.as_ref());
    ours.is_some() && ours == layout.build_id.as_ref()
}

/// The CRC-32 that binutils put into a debug link.
fn checksum_of(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?.take(MAX_CHECKSUM_BYTES);
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hasher.finalize()),
            count => hasher.update(buffer.get(..count)?),
        }
    }
}
