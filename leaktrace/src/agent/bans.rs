//! Programs that tracing has probably killed: standing orders pass them by until somebody says otherwise. Kept in a
//! file, so that the next agent knows; read again where somebody else has changed it.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    discover::program,
    model::{snapshot::WallNs, units},
};

/// Where it is where no service manager says otherwise.
const DEFAULT_FOLDER: &str = "/var/lib/leaktrace";
const FILE: &str = "killed-by-tracing.json";
/// Far more than are killed before somebody looks.
const MAX_ENTRIES: usize = 1000;
const MAX_BYTES: u64 = 1 << 20;

/// The file in the folder that the service manager gives (`$STATE_DIRECTORY`), else in the usual one.
pub fn default_path() -> PathBuf {
    let given = std::env::var_os("STATE_DIRECTORY").filter(|folders| !folders.is_empty());
    let first = given.and_then(|folders| std::env::split_paths(&folders).next());
    first.unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER)).join(FILE)
}

/// A program that was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// Its name. Hostile.
    pub comm: String,
    /// When, wall time.
    pub time_ns: WallNs,
    /// What was seen: a sentence. Hostile.
    pub reason: String,
}

/// The programs, by [`program::key`].
#[derive(Debug, Default)]
pub struct Bans {
    path: Option<PathBuf>,
    entries: BTreeMap<String, Ban>,
    /// What tells whether the file was changed.
    version: Option<(u64, i64, i64)>,
}

impl Bans {
    /// Those of a file, which need not be there.
    ///
    /// # Errors
    /// When it cannot be read, or is not what it should be.
    pub fn open(path: &Path) -> io::Result<Bans> {
        let mut bans = Bans { path: Some(path.to_path_buf()), ..Bans::default() };
        bans.read()?;
        Ok(bans)
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.entries.clear();
                self.version = None;
                return Ok(());
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        self.entries = serde_json::from_slice(&text).map_err(io::Error::other)?;
        self.version = Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()));
        Ok(())
    }

    /// Takes over what others have changed. What cannot be read leaves all as it was.
    fn refresh(&mut self) {
        let Some(path) = self.path.clone() else { return };
        let metadata = fs::metadata(&path).ok();
        let version = metadata.map(|metadata| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()));
        if version != self.version
            && let Err(error) = self.read()
        {
            tracing::warn!(%error, path = %path.display(), "the programs that tracing has killed cannot be read");
            self.version = version;
        }
    }

    /// Adds a program.
    ///
    /// # Errors
    /// When the file cannot be written: the program is remembered all the same, as long as this process lives.
    pub fn add(&mut self, key: String, ban: Ban) -> io::Result<()> {
        self.refresh();
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, ban)| ban.time_ns).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.entries.remove(&key));
        }
        self.entries.insert(key, ban);
        self.write()
    }

    /// Forgets a program, by its key or the part of it behind the colon, or every one by `all`; gives their keys.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&mut self, which: &str) -> io::Result<Vec<String>> {
        self.refresh();
        let is_meant = |key: &str| {
            which == "all" || key == which || key.split_once(':').is_some_and(|(_, name)| name == which)
        };
        let keys: Vec<String> = self.entries.keys().filter(|key| is_meant(key)).cloned().collect();
        if !keys.is_empty() {
            self.entries.retain(|key, _| !keys.contains(key));
            self.write()?;
        }
        Ok(keys)
    }

    /// Why standing orders pass a process by, if they do: a sentence without its pid.
    pub fn of_process(&mut self, pid: u32) -> Option<String> {
        self.refresh();
        if self.entries.is_empty() {
            return None;
        }
        let key = program::of_process(pid)?;
        self.entries.get(&key).map(|ban| sentence(&key, ban))
    }

    /// All of them, by key.
    pub fn entries(&mut self) -> &BTreeMap<String, Ban> {
        self.refresh();
        &self.entries
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let partial = path.with_extension("partial");
        let _ = fs::remove_file(&partial);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(&self.entries).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        let metadata = file.metadata()?;
        self.version = Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()));
        Ok(())
    }
}

/// What is said of such a program, and what to do.
pub fn sentence(key: &str, ban: &Ban) -> String {
    format!(
        "tracing has probably killed this program before ({}, {}): `leaktrace agent --forget {key}` lets standing \
         orders trace it again",
        ban.reason,
        units::wall_time(ban.time_ns)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(time_ns: i64) -> Ban {
        Ban { comm: "shop".to_owned(), time_ns, reason: "SIGTRAP at the breakpoint of malloc".to_owned() }
    }

    #[test]
    fn a_program_is_remembered_by_the_next_one_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state").join(FILE);
        let mut bans = Bans::open(&path).unwrap();
        let own = program::of_process(std::process::id()).unwrap();
        assert_eq!(bans.of_process(std::process::id()), None);
        bans.add(own.clone(), ban(7)).unwrap();
        let mut next = Bans::open(&path).unwrap();
        let sentence = next.of_process(std::process::id()).unwrap();
        assert!(sentence.contains("malloc") && sentence.contains(&own), "{sentence}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let bare = own.split_once(':').unwrap().1;
        assert_eq!(next.forget("something else").unwrap(), Vec::<String>::new());
        assert_eq!(next.forget(bare).unwrap(), [own]);
        assert_eq!(bans.of_process(std::process::id()), None, "the first one looks again");
    }

    #[test]
    fn a_file_that_is_none_is_an_error_and_changes_nothing_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut bans = Bans::open(&path).unwrap();
        bans.add("path:/bin/a".to_owned(), ban(7)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(Bans::open(&path).is_err());
        assert_eq!(bans.entries().len(), 1);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut bans = Bans::default();
        for time in 0..=MAX_ENTRIES as i64 {
            bans.add(format!("path:/bin/{time}"), ban(time)).unwrap();
        }
        assert_eq!(bans.entries().len(), MAX_ENTRIES);
        assert!(!bans.entries().contains_key("path:/bin/0"));
    }
}
