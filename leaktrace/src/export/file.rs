//! Files that are whole or not there: written under another name first, made durable, then renamed. What is in
//! them is left to the formats.
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The end of the names of files that are being written.
const UNFINISHED: &str = ".leaktrace-tmp";
/// Bytes of a file that is read.
pub const MAX_BYTES: u64 = 128 << 20;
/// Tells the unfinished files of one process apart.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Writes a file so that at any moment, power failure included, its name stands for its old content or for the new
/// one, never for part of it. A link is followed, permissions of a file that was there are kept; a pipe, a terminal
/// or another device is simply written to. Unfinished files of the same name whose writer was killed are removed.
///
/// # Errors
/// When the disk is full, read-only or fails, or the folder does not exist; nothing is left of the new file then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    if let Some(old) = &old
        && !old.is_file()
    {
        let mut file = OpenOptions::new().write(true).open(path)?;
        return file.write_all(bytes);
    }
    let path = if old.is_some() { fs::canonicalize(path)? } else { path.to_path_buf() };
    replace(&path, bytes, old.map(|old| old.permissions()))
}

/// The same for a file that nobody else may read. A link in its place is replaced, not followed.
///
/// # Errors
/// As [`write_whole`].
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, Some(Permissions::from_mode(0o600)))
}

fn replace(path: &Path, bytes: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let folder = folder_of(path);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let unfinished = unfinished_name(path, std::process::id(), write)?;
    remove_abandoned(path);
    let written = write_durably(&unfinished, bytes, permissions).and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_folder(folder)
}

fn write_durably(path: &Path, bytes: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    // A link that someone else put there is not followed. At no moment may more read it than in the end.
    let mode = permissions.as_ref().map_or(0o666, |permissions| permissions.mode() & 0o666);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the new name durable; some file systems do not know how, and need not.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn unfinished_name(path: &Path, pid: u32, write: u64) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    let mut unfinished = name.to_os_string();
    unfinished.push(format!(".{pid}-{write}{UNFINISHED}"));
    Ok(path.with_file_name(unfinished))
}

/// Removes what a writer of the same file left when it was killed.
fn remove_abandoned(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    remove_of_killed(folder_of(path), |text| text.strip_prefix(name)?.strip_prefix('.'));
}

/// Removes all unfinished files in a folder whose writers were killed.
pub fn remove_unfinished(folder: &Path) {
    remove_of_killed(folder, |text| Some(text.rsplit_once('.')?.1));
}

/// `part` takes from a name, its ending cut off, what says which process wrote it.
fn remove_of_killed(folder: &Path, part: impl Fn(&str) -> Option<&str>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let writer = file_name
            .to_str()
            .and_then(|text| part(text.strip_suffix(UNFINISHED)?)?.split_once('-')?.0.parse::<u32>().ok());
        if let Some(pid) = writer
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The content of a file of at most 128 MiB.
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {MAX_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pb.gz");
        write_whole(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(folder.path()), ["a.pb.gz"]);
    }

    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        fs::write(folder.path().join("file"), b"old").unwrap();
        symlink("file", &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"new");
        write_whole(Path::new("/dev/null"), b"new").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let abandoned = unfinished_name(&path, 4_194_305, 0).unwrap();
        let living = unfinished_name(&path, 1, 0).unwrap();
        let of_another = unfinished_name(&folder.path().join("ab"), 4_194_305, 0).unwrap();
        for file in [&abandoned, &living, &of_another] {
            fs::write(file, b"part").unwrap();
        }
        write_whole(&path, b"whole").unwrap();
        assert!(!abandoned.exists() && living.exists() && of_another.exists());
        remove_unfinished(folder.path());
        assert!(path.exists() && living.exists() && !of_another.exists());
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_whole(&folder.path().join("no/such"), b"").is_err());
        assert!(write_whole(folder.path(), b"").is_err());
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
