//! The guest's only file system: busybox, leaktrace, programs with their libraries, and an init that runs one script
//! and switches the guest off. What the script does is not known here.
use super::{arch::Arch, archive::Archive};
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where things are in the guest.
pub(super) const LEAKTRACE: &str = "/leaktrace";
pub(super) const SCRIPT: &str = "/script";

/// Mounts what leaktrace looks at; the script's output goes to the second serial line, so that kernel messages on the
/// first one never cut a line in two.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin:/ HOME=/ LC_ALL=C LEAKTRACE_BIN=/leaktrace NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
ip link set lo up
stty -F @RESULTS@ raw
exec </dev/null >@RESULTS@ 2>&1
/bin/busybox sh /script
echo \"RESULT rc=$?\"
sync
echo o >/proc/sysrq-trigger
sleep 60
";

/// A file system in the making.
pub(super) struct FileSystem {
    archive: Archive,
    libraries: BTreeSet<String>,
}

impl FileSystem {
    /// With busybox, an init and leaktrace.
    pub(super) fn new(arch: Arch, leaktrace: &Path) -> Result<FileSystem> {
        let mut new = FileSystem { archive: Archive::default(), libraries: BTreeSet::new() };
        for folder in ["proc", "sys", "dev", "tmp", "run", "root"] {
            new.archive.folder(folder);
        }
        let init = INIT.replace("@RESULTS@", arch.results());
        new.archive.program("init", init.as_bytes());
        new.archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n");
        new.archive.file("etc/group", b"root:x:0:\n");
        new.busybox()?;
        new.stripped(LEAKTRACE, leaktrace)?;
        Ok(new)
    }

    fn busybox(&mut self) -> Result<()> {
        let busybox = command::find("busybox")
            .context("the guest needs busybox: run `cargo xtask setup --tests` (package busybox-static)")?;
        if !needed(&busybox)?.is_empty() {
            bail!("{} is not static: install busybox-static", busybox.display());
        }
        self.archive.program("bin/busybox", &read(&busybox)?);
        let applets = command::capture(command::clean(&busybox).arg("--list"))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            self.archive.link(&format!("bin/{applet}"), "busybox");
        }
        Ok(())
    }

    /// A program as it is, with what it loads.
    pub(super) fn program(&mut self, place: &str, program: &Path) -> Result<()> {
        self.with_libraries(program)?;
        self.archive.program(place.trim_start_matches('/'), &read(program)?);
        Ok(())
    }

    /// A program without its symbols, with what it loads.
    pub(super) fn stripped(&mut self, place: &str, program: &Path) -> Result<()> {
        let partial = tempfile::NamedTempFile::new().context("no temporary file")?;
        command::capture(command::clean("strip").arg("-o").arg(partial.path()).arg(program))?;
        self.with_libraries(program)?;
        self.archive.program(place.trim_start_matches('/'), &read(partial.path())?);
        Ok(())
    }

    /// The script that init runs.
    pub(super) fn script(&mut self, text: &str) {
        self.archive.program(SCRIPT.trim_start_matches('/'), text.as_bytes());
    }

    /// What the boot loader hands to the kernel.
    pub(super) fn finish(self) -> Vec<u8> {
        self.archive.finish()
    }

    fn with_libraries(&mut self, program: &Path) -> Result<()> {
        for library in needed(program)? {
            let place = library.to_string_lossy().trim_start_matches('/').to_owned();
            if self.libraries.insert(place.clone()) {
                self.archive.program(&place, &read(&library)?);
            }
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The loader and the libraries that a program names, by what the loader itself finds; none for a static one.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let said = command::clean("ldd")
        .arg(program)
        .output()
        .with_context(|| format!("cannot run ldd on {}", program.display()))?;
    // It fails for a static program.
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    libraries(&text).with_context(|| format!("{} cannot be shipped", program.display()))
}

/// Reads what `ldd` prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn libraries(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        if let Some(path) = path.split(' ').next().filter(|path| path.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_libraries_are_read_from_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(libraries(text).unwrap(), [PathBuf::from("/lib/libc.so.6"), "/lib64/ld.so.2".into()]);
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
        assert!(libraries("\tliba.so => not found\n").is_err());
    }
}
