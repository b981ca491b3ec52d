//! `cargo xtask setup`: makes sure that the kernel side can be built, and writes down with what. Finding and
//! trying toolchains is `toolchain`'s part, installing packages `packages`', the program that Debian lacks `python`'s.
mod packages;
mod python;
mod toolchain;

use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};
use toolchain::Toolchain;

/// Debian's compiler with a ready-made `core` for the kernel's machine, and the LLVM it was built with.
const DEBIAN_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "llvm-22-dev", "libstd-rust-web-dev-bpf"];

/// What building bpf-linker needs besides.
const DEBIAN_BUILD: &[&str] = &["gcc", "g++", "zlib1g-dev", "libzstd-dev"];

/// What the end-to-end tests and the benchmark run.
const DEBIAN_TESTS: &[&str] = &[
    "gcc",
    "g++",
    "binutils",
    "clang",
    "lld",
    "musl-tools",
    "libjemalloc2",
    "libjemalloc-dev",
    "libtcmalloc-minimal4",
    "libmimalloc2.0",
    "gdb",
    "bpftrace",
    "heaptrack",
    "sqlite3",
    "redis-server",
    "redis-tools",
    "nginx-light",
    "wrk",
    "python3",
    "golang-go",
    "graphviz",
    "dwz",
    "xz-utils",
    "zstd",
    "lz4",
    "qemu-system-x86",
    "busybox-static",
    "podman",
    "runc",
    "prometheus",
    "systemd",
    "python3-venv",
    "valgrind",
    "qemu-user-static",
];

/// Sets everything up; does nothing where everything is there.
pub(crate) fn run(tests: bool) -> Result<()> {
    kernel_side()?;
    if tests {
        packages::install("the tests", DEBIAN_TESTS)?;
        python::install()?;
    }
    Ok(())
}

fn folder() -> PathBuf {
    command::root().join("target/bpf-toolchain")
}

fn kernel_side() -> Result<()> {
    let file = folder().join("toolchain.env");
    if let Some(recorded) = fs::read_to_string(&file).ok().and_then(|text| Toolchain::parse(&text)) {
        match recorded.check() {
            Ok(versions) => {
                println!("kernel side: {versions}: ready");
                return if recorded.was_tried_with(&versions) { Ok(()) } else { record(&file, &recorded) };
            }
            Err(error) => println!("kernel side: what was set up no longer works ({error:#}); looking again"),
        }
    }
    let found = match find() {
        Some(found) => found,
        None => install()?,
    };
    let versions = found.check().context("the toolchain for the kernel side does not work")?;
    record(&file, &found)?;
    println!("kernel side: {versions}: ready, written to {}", file.display());
    Ok(())
}

fn record(file: &Path, toolchain: &Toolchain) -> Result<()> {
    fs::create_dir_all(folder()).with_context(|| format!("cannot create {}", folder().display()))?;
    fs::write(file, toolchain.text()).with_context(|| format!("cannot write {}", file.display()))
}

/// The first toolchain on this machine that really builds a kernel program, with a linker that understands it.
fn find() -> Option<Toolchain> {
    let linkers = toolchain::linkers(&folder());
    if linkers.is_empty() {
        println!("kernel side: no bpf-linker found");
        return None;
    }
    for compiler in toolchain::compilers() {
        for linker in &linkers {
            let candidate = compiler.clone().with_linker(linker);
            match candidate.try_out() {
                Ok(()) => return Some(candidate),
                Err(error) => {
                    println!("kernel side: {} with {}: {error:#}", candidate.rustc(), linker.display());
                }
            }
        }
    }
    None
}

/// Debian's way: packages, and bpf-linker built against the same LLVM.
fn install() -> Result<Toolchain> {
    packages::install("the kernel side", DEBIAN_TOOLCHAIN).context(
        "no toolchain for the kernel side was found. Either install rustup's rust-src and a bpf-linker with the same \
         LLVM as rustc (`rustup component add rust-src && cargo install bpf-linker`), or on Debian or Ubuntu run \
         this as root",
    )?;
    let Some(debian) = toolchain::debian() else {
        bail!("the packages {} are installed, but /usr/bin/rustc has no `core` for bpfel-unknown-none", {
            DEBIAN_TOOLCHAIN.join(" ")
        });
    };
    let linker = folder().join("bin/bpf-linker");
    if debian.clone().with_linker(&linker).try_out().is_err() {
        packages::install("building bpf-linker", DEBIAN_BUILD)?;
        toolchain::build_linker(&folder())?;
    }
    let toolchain = debian.with_linker(&linker);
    toolchain.try_out().context("Debian's toolchain cannot build a kernel program")?;
    Ok(toolchain)
}
