//! Compiles fixtures into `target/fixtures`, once for each content of their sources and each command line.
use crate::root;
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

/// How a C or C++ fixture is built and linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Build {
    /// gcc, position-independent, dynamic.
    Gcc,
    /// gcc at a fixed address.
    NoPie,
    /// gcc without frame pointers and with full optimisation, as distributions build.
    NoFramePointers,
    /// clang, linked by LLD.
    Clang,
    /// gcc, static.
    Static,
    /// gcc, static and position-independent.
    StaticPie,
    /// musl, dynamic.
    Musl,
    /// musl, static.
    MuslStatic,
    /// A shared library by gcc.
    Library,
    /// 32-bit, without a C library.
    Bare32,
}

impl Build {
    fn compiler(self, cxx: bool) -> &'static str {
        match (self, cxx) {
            (Build::Clang, false) => "clang",
            (Build::Clang, true) => "clang++",
            (Build::Musl | Build::MuslStatic, _) => "musl-gcc",
            (_, false) => "gcc",
            (_, true) => "g++",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Build::Gcc => &["-fno-omit-frame-pointer"],
            Build::NoPie => &["-fno-omit-frame-pointer", "-fno-pie", "-no-pie"],
            Build::NoFramePointers => &["-fomit-frame-pointer"],
            Build::Clang => &["-fno-omit-frame-pointer", "-fuse-ld=lld"],
            Build::Static => &["-fno-omit-frame-pointer", "-DSTATIC", "-static"],
            Build::StaticPie => &["-fno-omit-frame-pointer", "-DSTATIC", "-fPIE", "-static-pie"],
            Build::Musl => &["-fno-omit-frame-pointer"],
            Build::MuslStatic => &["-fno-omit-frame-pointer", "-DSTATIC", "-static"],
            Build::Library => &["-fno-omit-frame-pointer", "-fPIC", "-shared"],
            Build::Bare32 => &["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-no-pie"],
        }
    }
}

/// For every C and C++ fixture: sites stay functions of their own, and no call to an allocator is optimised away.
const ALWAYS: &[&str] =
    &["-O2", "-g", "-fno-builtin", "-fno-optimize-sibling-calls", "-Wall", "-Wextra", "-Werror"];

/// Where the sources are.
pub fn sources() -> PathBuf {
    root().join("tests/fixtures")
}

/// Compiles `source` (a file name in `tests/fixtures`), linked with `libraries`; returns the program or library.
pub fn fixture(source: &str, build: Build, libraries: &[&Path]) -> Result<PathBuf> {
    let cxx = source.ends_with(".cpp");
    let mut words: Vec<OsString> = vec![build.compiler(cxx).into()];
    words.extend(ALWAYS.iter().chain(build.flags()).map(OsString::from));
    words.push(if cxx { "-std=gnu++17" } else { "-std=gnu17" }.into());
    if cxx && build == Build::Clang {
        words.push("-fsized-deallocation".into());
    }
    words.push(sources().join(source).into());
    words.extend(libraries.iter().map(OsString::from));
    if libraries.iter().any(|library| library.extension().is_some_and(|end| end == "a")) {
        words.extend(["-lm", "-lpthread", "-lstdc++"].map(OsString::from));
    }
    let stem = source.split('.').next().unwrap_or(source);
    let output = if build == Build::Library { format!("lib{stem}.so") } else { stem.to_owned() };
    cached(&output, &words)
}

/// Compiles `source` to a program or library named `output` by `compiler`, with these flags and no others.
pub fn plain(compiler: &str, source: &str, flags: &[&str], output: &str) -> Result<PathBuf> {
    let mut words: Vec<OsString> = vec![compiler.into()];
    words.extend(flags.iter().map(OsString::from));
    words.push(sources().join(source).into());
    cached(output, &words)
}

/// Compiles a short program given as text; `name` ends as its language wants it, and `command` is the compiler with its
/// options.
pub fn text(name: &str, text: &str, command: &[&str]) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let folder = root().join("target/fixtures").join(format!("text-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let source = folder.join(name);
    if !source.exists() {
        // Written under another name first: tests run side by side.
        let partial = tempfile::NamedTempFile::new_in(&folder).context("no temporary file")?;
        fs::write(partial.path(), text)?;
        partial.persist(&source).with_context(|| format!("cannot write {}", source.display()))?;
    }
    let mut words: Vec<OsString> = command.iter().map(OsString::from).collect();
    words.push(source.into());
    cached(name.split('.').next().unwrap_or(name), &words)
}

/// Compiles a Rust fixture with the toolchain that runs the tests.
pub fn rust_fixture(source: &str) -> Result<PathBuf> {
    let words = ["rustc", "--edition", "2024", "-O", "-g"].map(OsString::from);
    let mut words = words.to_vec();
    words.push(sources().join(source).into());
    cached(source.split('.').next().unwrap_or(source), &words)
}

/// Compiles a Go fixture with C in it.
pub fn go_fixture(source: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut words = ["env", "CGO_ENABLED=1", "GO111MODULE=off", "go", "build"].map(OsString::from).to_vec();
    words.extend(flags.iter().map(OsString::from));
    words.push(sources().join(source).into());
    cached(source.split('.').next().unwrap_or(source), &words)
}

/// The functions of Debian's static jemalloc, under the prefix that Rust's jemalloc crates use.
pub fn prefixed_jemalloc() -> Result<PathBuf> {
    const NAMES: &[&str] = &[
        "aligned_alloc",
        "calloc",
        "dallocx",
        "free",
        "mallctl",
        "mallctlbymib",
        "mallctlnametomib",
        "malloc",
        "malloc_conf",
        "malloc_conf_2_conf_harder",
        "malloc_message",
        "malloc_stats_print",
        "malloc_usable_size",
        "mallocx",
        "memalign",
        "nallocx",
        "posix_memalign",
        "rallocx",
        "realloc",
        "sallocx",
        "sdallocx",
        "valloc",
        "xallocx",
    ];
    let mut words = vec![OsString::from("objcopy")];
    words.extend(NAMES.iter().map(|name| format!("--redefine-sym={name}=_rjem_{name}").into()));
    words.push(library("libjemalloc_pic.a")?.into());
    cached("librjem.a", &words)
}

/// A library that a package of the distribution installs.
pub fn library(name: &str) -> Result<PathBuf> {
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed: run `cargo xtask setup --tests`"))
}

/// Runs the command with an output file as its last word, unless the same has been done before.
fn cached(output: &str, words: &[OsString]) -> Result<PathBuf> {
    let folder = root().join("target/fixtures").join(format!("{output}-{:016x}", fingerprint(words)?));
    let file = folder.join(output);
    if file.exists() {
        return Ok(file);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Built under another name first: tests run side by side.
    let partial =
        tempfile::Builder::new().prefix("partial-").tempdir_in(&folder).context("no temporary folder")?;
    let partial_file = partial.path().join(output);
    let (program, rest) = words.split_first().context("an empty command")?;
    let (last, options) = rest.split_last().context("a command without words")?;
    let mut command = Command::new(program);
    match program == "objcopy" {
        true => command.args(rest).arg(&partial_file),
        // Go takes options before the source only.
        false => command.args(options).arg("-o").arg(&partial_file).arg(last),
    };
    let said = command.output().with_context(|| {
        format!("cannot run {}: run `cargo xtask setup --tests`", program.to_string_lossy())
    })?;
    if !said.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&said.stderr));
    }
    fs::rename(&partial_file, &file).with_context(|| format!("cannot move {}", partial_file.display()))?;
    Ok(file)
}

/// Of the command line and of the contents of every file in it and every header.
fn fingerprint(words: &[OsString]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut files: Vec<PathBuf> = fs::read_dir(sources())
        .context("no fixtures")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "h"))
        .collect();
    files.sort();
    files.extend(words.iter().map(PathBuf::from).filter(|path| path.is_absolute()));
    for word in words {
        word.hash(&mut hasher);
    }
    for file in files {
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}
