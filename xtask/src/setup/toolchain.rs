//! A compiler and a linker for kernel programs: where they can be, whether they work together, and the file that
//! `leaktrace/build.rs` reads. Works only with what is installed, except for building bpf-linker itself.
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

const TARGET: &str = "bpfel-unknown-none";
/// The LLVM of Debian's `rustc-web` 1.96.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// The smallest kernel program: compiling it needs `core`, linking it needs a linker that reads rustc's bitcode.
const SAMPLE: &str = r#"#![no_std]
#![no_main]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub extern "C" fn sample(context: *const u8) -> u32 { context as usize as u32 }
"#;

/// What `leaktrace/build.rs` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
    build_std: bool,
    /// The versions that were tried out together; a change means that they must be tried again.
    tried: String,
}

impl Toolchain {
    /// From the text that [`Toolchain::text`] gives; `None` where something is missing.
    pub(super) fn parse(text: &str) -> Option<Toolchain> {
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        Some(Toolchain {
            cargo: value("CARGO")?.into(),
            rustc: value("RUSTC")?.into(),
            linker: value("LINKER")?.into(),
            build_std: value("BUILD_STD")? == "1",
            tried: value("TRIED").unwrap_or_default().to_owned(),
        })
    }

    /// One `NAME=value` a line.
    pub(super) fn text(&self) -> String {
        format!(
            "CARGO={}\nRUSTC={}\nLINKER={}\nBUILD_STD={}\nTRIED={}\n",
            self.cargo.display(),
            self.rustc.display(),
            self.linker.display(),
            u8::from(self.build_std),
            self.versions().unwrap_or_default()
        )
    }

    pub(super) fn with_linker(mut self, linker: &Path) -> Toolchain {
        self.linker = linker.to_path_buf();
        self
    }

    pub(super) fn rustc(&self) -> std::path::Display<'_> {
        self.rustc.display()
    }

    /// Whether the file already says that these versions work together.
    pub(super) fn was_tried_with(&self, versions: &str) -> bool {
        self.tried == versions
    }

    /// The versions of compiler and linker, after making sure that they work: tried out now, unless the very same
    /// versions have been tried before.
    pub(super) fn check(&self) -> Result<String> {
        let versions = self.versions()?;
        command::capture(command::clean(&self.cargo).arg("--version"))?;
        if !self.was_tried_with(&versions) {
            self.try_out()?;
        }
        Ok(versions)
    }

    fn versions(&self) -> Result<String> {
        let rustc = command::capture(command::clean(&self.rustc).arg("-vV"))?;
        let line =
            |prefix: &str| rustc.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or("?").to_owned();
        let linker = command::capture(command::clean(&self.linker).arg("--version"))?;
        let core = if self.build_std { "core from source" } else { "ready-made core" };
        Ok(format!(
            "rustc {} (LLVM {}), {}, {core}",
            line("release: "),
            line("LLVM version: "),
            linker.trim()
        ))
    }

    /// Builds the smallest kernel program.
    pub(super) fn try_out(&self) -> Result<()> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let source = folder.path().join("sample.rs");
        fs::write(&source, SAMPLE).with_context(|| format!("cannot write {}", source.display()))?;
        let object = folder.path().join("sample.o");
        if self.build_std {
            self.try_with_own_core(folder.path())?;
        } else {
            let linker = format!("linker={}", self.linker.display());
            let flags =
                ["--edition", "2024", "--crate-type", "bin", "--target", TARGET, "-O", "-C", "panic=abort"];
            let mut rustc = command::clean(&self.rustc);
            rustc
                .args(flags)
                .args(["-C", &linker, "-o"])
                .arg(&object)
                .arg(&source)
                .env("RUSTC_BOOTSTRAP", "1");
            command::capture(&mut rustc)?;
            if !object.is_file() {
                bail!("no object came out of {}", self.linker.display());
            }
        }
        Ok(())
    }

    fn try_with_own_core(&self, folder: &Path) -> Result<()> {
        let manifest = "[package]\nname = \"sample\"\nedition = \"2024\"\n[[bin]]\nname = \"sample\"\npath = \"sample.rs\"\n\
                        [profile.dev]\npanic = \"abort\"\n[workspace]\n";
        fs::write(folder.join("Cargo.toml"), manifest).context("cannot write a manifest")?;
        let mut cargo = command::clean(&self.cargo);
        cargo
            .current_dir(folder)
            .args(["build", "--target", TARGET, "-Z", "build-std=core"])
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", format!("-C linker={}", self.linker.display()));
        command::capture(&mut cargo).map(drop)
    }
}

/// Compilers that have `core` for the kernel's machine or its sources: rustup's, then Debian's.
pub(super) fn compilers() -> Vec<Toolchain> {
    let mut found: Vec<Toolchain> = rustup().into_iter().filter_map(|folder| in_folder(&folder)).collect();
    found.extend(debian());
    found
}

fn rustup() -> Vec<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    let Some(entries) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort_by_key(|folder| !folder.to_string_lossy().contains("nightly"));
    folders
}

fn in_folder(folder: &Path) -> Option<Toolchain> {
    let sources = folder.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
    let ready = has_core(&folder.join("lib/rustlib").join(TARGET).join("lib"));
    (sources || ready).then(|| Toolchain {
        cargo: folder.join("bin/cargo"),
        rustc: folder.join("bin/rustc"),
        linker: PathBuf::new(),
        build_std: !ready,
        tried: String::new(),
    })
}

/// The distribution's compiler with its ready-made `core`, where both are installed.
pub(super) fn debian() -> Option<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let folder =
        command::capture(command::clean(&rustc).args(["--print", "target-libdir", "--target", TARGET]))
            .ok()?;
    let cargo = PathBuf::from("/usr/bin/cargo");
    (cargo.is_file() && has_core(Path::new(folder.trim()))).then(|| Toolchain {
        cargo,
        rustc,
        linker: PathBuf::new(),
        build_std: false,
        tried: String::new(),
    })
}

fn has_core(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// The linkers that are there: our own build first.
pub(super) fn linkers(folder: &Path) -> Vec<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut found: Vec<PathBuf> = [Some(folder.join("bin/bpf-linker")), command::find("bpf-linker")]
        .into_iter()
        .chain([cargo_home.map(|home| home.join("bin/bpf-linker"))])
        .flatten()
        .filter(|file| file.is_file())
        .collect();
    found.dedup();
    found
}

/// Builds bpf-linker against Debian's LLVM into `folder/bin`.
pub(super) fn build_linker(folder: &Path) -> Result<()> {
    println!("kernel side: building bpf-linker {LINKER_VERSION} against {DEBIAN_LLVM} (about a minute) …");
    let mut cargo = command::clean("/usr/bin/cargo");
    cargo
        .args(["install", "--quiet", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(folder)
        .current_dir(command::root())
        .env("RUSTC", "/usr/bin/rustc")
        .env("LLVM_PREFIX", DEBIAN_LLVM);
    command::run(&mut cargo).context("bpf-linker could not be built")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text =
            "CARGO=/usr/bin/cargo\nRUSTC=/usr/bin/rustc\nLINKER=/x/bpf-linker\nBUILD_STD=1\nTRIED=a, b\n";
        let toolchain = Toolchain::parse(text).unwrap();
        assert!(toolchain.build_std);
        assert_eq!(toolchain.linker, PathBuf::from("/x/bpf-linker"));
        assert_eq!(toolchain.tried, "a, b");
    }

    #[test]
    fn a_file_with_a_missing_line_is_not_taken() {
        assert_eq!(Toolchain::parse("CARGO=/usr/bin/cargo\nRUSTC=/usr/bin/rustc\n"), None);
    }
}
