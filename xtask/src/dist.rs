//! `cargo xtask dist`: the binary that is given to others: optimised, static where the toolchain allows, stripped,
//! with the kernel side inside. It is tried out before its size is printed.
use crate::{command, deb, setup};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A larger file than this is a mistake.
const LARGEST_BYTES: u64 = 20_000_000;

/// Builds it, and a Debian package of it where that is asked for.
pub(crate) fn run(with_deb: bool) -> Result<()> {
    setup::run(false)?;
    let target = target()?;
    println!("building for {target}, static …");
    let mut cargo =
        command::cargo(&["build", "--profile", "dist", "--package", "leaktrace", "--target", &target]);
    command::run(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let file = command::root().join("target").join(&target).join("dist/leaktrace");
    let bytes = fs::metadata(&file).with_context(|| format!("no {}", file.display()))?.len();
    let version = command::capture(command::clean(&file).arg("--version"))?;
    let linked = if is_static(&file)? { "static" } else { "dynamic" };
    println!("{}: {}, {linked}, {:.1} MB", file.display(), version.trim(), bytes as f64 / 1e6);
    if linked != "static" {
        bail!("{} needs an interpreter: it is not static", file.display());
    }
    if bytes > LARGEST_BYTES {
        bail!("{bytes} bytes are more than {LARGEST_BYTES}");
    }
    // Where packaging finds it, whatever it was built for.
    let folder = command::root().join("target/dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let copy = folder.join("leaktrace");
    fs::copy(&file, &copy)
        .with_context(|| format!("cannot copy {} to {}", file.display(), copy.display()))?;
    if with_deb {
        let package = deb::run(&folder)?;
        let bytes = fs::metadata(&package).with_context(|| format!("no {}", package.display()))?.len();
        println!("{}: {:.1} MB", package.display(), bytes as f64 / 1e6);
    }
    Ok(())
}

/// musl where its standard library is installed, else the host's own.
fn target() -> Result<String> {
    let version = command::capture(command::clean("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?;
    let musl = host.replace("-gnu", "-musl");
    let installed =
        command::capture(command::clean("rustc").args(["--print", "target-libdir", "--target", &musl]))
            .is_ok_and(|folder| PathBuf::from(folder.trim()).is_dir());
    Ok(if installed { musl } else { host.to_owned() })
}

/// Whether an ELF file for a 64-bit little-endian machine names no interpreter.
fn is_static(file: &Path) -> Result<bool> {
    const INTERPRETER: u32 = 3;
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let u16_at = |at: usize| bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let u32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(table), Some(size), Some(count)) = (u64_at(32), u16_at(54), u16_at(56)) else {
        bail!("{} is no ELF file", file.display());
    };
    let table = usize::try_from(table).context("a program header table beyond memory")?;
    let kinds = (0..usize::from(count)).map(|index| u32_at(table + index * usize::from(size)));
    Ok(!kinds.flatten().any(|kind| kind == INTERPRETER))
}
