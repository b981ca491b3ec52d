//! What guests get: leaktrace, the program that runs scenarios, and the fixtures, compiled as the end-to-end tests
//! compile them.
use super::{arch::Arch, initramfs::FileSystem};
use crate::command;
use anyhow::{Context, Result, bail};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace,
};
use std::path::{Path, PathBuf};

/// Where the program that runs scenarios is in the guest.
const GUEST: &str = "/guest";

/// Fixtures that are one C or C++ source and nothing else.
const FIXTURES: &[&str] = &[
    "calls.c",
    "threads.c",
    "cxx.cpp",
    "mappings.c",
    "exchange.c",
    "fork.c",
    "dlopen.c",
    "sampled.c",
    "rounds.c",
    "churn.c",
    "storm.c",
];

/// Programs and libraries of a host, ready to be packed.
pub(super) struct Shipment {
    arch: Arch,
    leaktrace: PathBuf,
    guest: PathBuf,
    /// The name in the guest's `/fixtures`, and the file.
    fixtures: Vec<(String, PathBuf)>,
}

impl Shipment {
    /// Compiles everything but leaktrace itself.
    pub(super) fn build(arch: Arch) -> Result<Shipment> {
        let leaktrace = leaktrace::binary()?;
        let words = ["build", "--quiet", "--release", "-p", "leaktrace-tests", "--bin", "leaktrace-guest"];
        command::run(&mut command::cargo(&words)).context("the guest's own program cannot be built")?;
        let guest = command::root().join("target/release/leaktrace-guest");
        if !guest.is_file() {
            bail!("{} was built and is not there", guest.display());
        }
        Ok(Shipment { arch, leaktrace, guest, fixtures: fixtures()? })
    }

    /// A file system that runs these scenarios.
    pub(super) fn pack(&self, scenarios: &[String]) -> Result<Vec<u8>> {
        let mut files = FileSystem::new(self.arch, &self.leaktrace)?;
        files.stripped(GUEST, &self.guest)?;
        for (name, file) in &self.fixtures {
            files.program(&format!("/fixtures/{name}"), file)?;
        }
        files.script(&format!("export LEAKTRACE_PATIENCE=3\n{GUEST} {}\n", scenarios.join(" ")));
        Ok(files.finish())
    }
}

fn fixtures() -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for source in FIXTURES {
        let name = source.split('.').next().unwrap_or(source);
        all.push((name.to_owned(), compile::fixture(source, Build::Gcc, &[])?));
    }
    let library = compile::fixture("early_library.c", Build::Library, &[])?;
    all.push(("early".to_owned(), compile::fixture("early.c", Build::Gcc, &[&library])?));
    all.push(("libownalloc.so".to_owned(), compile::fixture("ownalloc.c", Build::Library, &[])?));
    all.extend(oracle()?);
    Ok(all)
}

/// Without frame pointers, as distributions build; with the libraries that it opens.
fn oracle() -> Result<Vec<(String, PathBuf)>> {
    let flags =
        ["-O2", "-g", "-std=gnu++17", "-Wall", "-Wextra", "-Werror", "-pthread", "-fomit-frame-pointer"];
    let mut all = vec![("oracle".to_owned(), compile::plain("g++", "oracle.cpp", &flags, "oracle")?)];
    for (source, output, frame) in [
        ("oracle_library.c", "libsmall.so", "-DFRAME=32"),
        ("oracle_library.c", "liblarge.so", "-DFRAME=1900"),
        ("oracle_other.c", "libother.so", "-DFRAME=0"),
    ] {
        let flags = ["-O2", "-g", "-shared", "-fPIC", "-Wl,-z,lazy", "-Wl,--build-id", frame];
        all.push((format!("oracle-libraries/{output}"), compile::plain("gcc", source, &flags, output)?));
    }
    Ok(all)
}

/// A file system for a script of the developer's.
pub(super) fn for_script(arch: Arch, script: &str, programs: &[PathBuf]) -> Result<Vec<u8>> {
    let mut files = FileSystem::new(arch, &leaktrace::binary()?)?;
    for program in programs {
        let name = program
            .file_name()
            .map(Path::new)
            .with_context(|| format!("{} is no file", program.display()))?;
        files.program(&format!("/fixtures/{}", name.display()), program)?;
    }
    files.script(script);
    Ok(files.finish())
}
