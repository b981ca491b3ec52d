//! Writes the archive that a kernel unpacks into its first file system: cpio in its "newc" format, as the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst has it. Pure.
use std::collections::BTreeSet;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

/// An archive in the making. Paths have no leading slash; folders come into being with what is in them.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// An empty folder.
    pub(super) fn folder(&mut self, path: &str) {
        self.parents(path);
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// A program, or a library.
    pub(super) fn program(&mut self, path: &str, contents: &[u8]) {
        self.parents(path);
        self.entry(path, PROGRAM, contents);
    }

    /// A file.
    pub(super) fn file(&mut self, path: &str, contents: &[u8]) {
        self.parents(path);
        self.entry(path, FILE, contents);
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.entry(path, LINK, to.as_bytes());
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let Some(parent) = path.get(..end) else { continue };
            if self.folders.insert(parent.to_owned()) {
                self.entry(parent, FOLDER, &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let name = number(path.len() + 1);
        // Inode, mode, user, group, links, time, size, device and its parts, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, number(contents.len()), 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.program("bin/a", b"abc");
        archive.file("bin/b", b"");
        let text = String::from_utf8(archive.finish()).unwrap();
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.find("bin\0") < text.find("bin/a\0"));
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn a_header_has_size_and_mode_at_their_places() {
        let mut archive = Archive::default();
        archive.program("a", b"hello");
        let text = String::from_utf8(archive.finish()).unwrap();
        assert_eq!(&text[14..22], "000081ed");
        assert_eq!(&text[54..62], "00000005");
        assert_eq!(&text[110..112], "a\0");
        assert_eq!(&text[112..117], "hello");
    }
}
