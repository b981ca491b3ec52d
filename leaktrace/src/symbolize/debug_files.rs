//! Separate debug information on this host: by build id, then by `.gnu_debuglink` with its checksum.
//!
//! Only directories named by the operator or by convention on the host are searched, never a container's. What is
//! found must carry the same build id, or the checksum that the link gives.
use std::{
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::{Path, PathBuf},
};

use super::{
    elf::Layout,
    module::{Module, hexadecimal},
};
use crate::discover::{
    object::MAX_FILE_BYTES,
    open::{Found, Way},
};

/// Where distributions install debug information.
pub const DEFAULT_DEBUG_DIR: &str = "/usr/lib/debug";
const MAX_CHECKSUM_BYTES: u64 = 1 << 30;

/// A debug file and its layout.
pub(super) fn find(module: &Module, directories: &[PathBuf]) -> Option<(File, Layout)> {
    by_build_id(module, directories).or_else(|| by_link(module, directories))
}

fn by_build_id(module: &Module, directories: &[PathBuf]) -> Option<(File, Layout)> {
    let id = module.layout.as_ref()?.build_id.as_deref()?;
    directories.iter().find_map(|directory| with_build_id(&build_id_path(directory, id)?, id))
}

/// Where a file with this build id is kept; none for ids that are too short to mean one file.
fn build_id_path(directory: &Path, id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = id.split_first().filter(|(_, rest)| rest.len() >= 7)?;
    let name = format!("{}.debug", hexadecimal(rest));
    Some(directory.join(".build-id").join(format!("{first:02x}")).join(name))
}

/// Opens a file that must have this build id.
fn with_build_id(path: &Path, id: &[u8]) -> Option<(File, Layout)> {
    open(path).filter(|(_, layout)| layout.build_id.as_deref() == Some(id))
}

/// The file that dwz moved the common parts of several debug files to (`.gnu_debugaltlink`): by its build id, else
/// by the part of its path from `.dwz` on. Also gives the build id that the link asks for.
pub(super) fn supplement(
    file: &File,
    layout: &Layout,
    directories: &[PathBuf],
) -> Option<(File, Layout, Vec<u8>)> {
    let (link, id) = layout.alternate_link(file)?;
    let inside = link
        .split_once(".dwz/")
        .map(|(_, inside)| Path::new(inside))
        .filter(|inside| inside.components().all(|part| matches!(part, std::path::Component::Normal(_))));
    directories.iter().find_map(|directory| {
        let by_name = inside.map(|inside| directory.join(".dwz").join(inside));
        let (file, layout) = [build_id_path(directory, &id), by_name]
            .into_iter()
            .flatten()
            .find_map(|path| with_build_id(&path, &id))?;
        Some((file, layout, id.clone()))
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
                _ => checksum_of(&file) == Some(checksum),
            };
            same.then_some((file, layout))
        },
    )
}

/// Distributions lead from a build id to the file by a link.
fn open(path: &Path) -> Option<(File, Layout)> {
    let path = std::path::absolute(path).ok()?;
    let found = Found::beneath(&File::open("/").ok()?, path.as_os_str().as_bytes(), Way::Links).ok()?;
    let file = found.open(MAX_FILE_BYTES).ok()?;
    let layout = Layout::read(&file).ok()?;
    Some((file, layout))
}

/// Whether a debug file says that it belongs to the module.
pub(super) fn same_build_id(module: &Module, layout: &Layout) -> bool {
    let ours = module.layout.as_ref().and_then(|layout| layout.build_id.as_ref());
    ours.is_some() && ours == layout.build_id.as_ref()
}

/// The CRC-32 that binutils put into a debug link.
fn checksum_of(file: &File) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    while at < MAX_CHECKSUM_BYTES {
        match file.read_at(&mut buffer, at).ok()? {
            0 => break,
            count => {
                hasher.update(buffer.get(..count)?);
                at += count as u64;
            }
        }
    }
    Some(hasher.finalize())
}
