//! `cargo xtask kernels`: leaktrace on other kernels, each booted in an emulator with nothing but leaktrace and
//! fixtures. Fetching kernels, building the guest's file system, booting and judging have their own files.
mod arch;
mod archive;
mod boot;
mod console;
mod fetch;
mod image;
mod initramfs;
mod series;
mod sources;

use anyhow::{Context, Result, bail};
use arch::Arch;
use boot::Guest;
use fetch::{Kernel, Packages};
use initramfs::FileSystem;
use leaktrace_tests::leaktrace;
use series::{Preemption, Series};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A kernel's path, in place of those that packages have.
const KERNEL_IMAGE: &str = "KERNEL_IMAGE";

/// What is asked for.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Series of kernels, such as 6.12 or 6.12-plain (all of the matrix without any); KERNEL_IMAGE=PATH boots another.
    kernels: Vec<Series>,
    /// The architecture of the guests.
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// Run this shell script in each guest, where leaktrace is /leaktrace.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// With a script: a program that it finds as /fixtures/NAME (repeatable).
    #[arg(long, value_name = "PROGRAM")]
    ship: Vec<PathBuf>,
    /// How the kernels preempt themselves, in place of the kinds of the matrix.
    #[arg(long, value_enum)]
    preempt: Option<Preemption>,
    /// More words for the kernels' command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// With a script: a guest that is not off after so many seconds hangs.
    #[arg(long, value_name = "SECONDS", default_value = "1800")]
    time: u64,
}

/// Runs what is asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.script {
        Some(script) => scripts(options, script),
        None => bail!("nothing to do"),
    }
}

fn kernels(options: &Options) -> Result<Vec<Kernel>> {
    if let Some(path) = std::env::var_os(KERNEL_IMAGE) {
        return Ok(vec![fetch::given(Path::new(&path))?]);
    }
    let packages = Packages::open(options.arch)?;
    options.kernels.iter().map(|series| packages.kernel(*series)).collect()
}

fn scripts(options: &Options, script: &Path) -> Result<()> {
    let text = fs::read_to_string(script).with_context(|| format!("cannot read {}", script.display()))?;
    let mut files = FileSystem::new(options.arch, &leaktrace::binary()?)?;
    for program in &options.ship {
        let name = program.file_name().with_context(|| format!("{} is no file", program.display()))?;
        files.program(&format!("/fixtures/{}", name.to_string_lossy()), program)?;
    }
    files.script(&text);
    let files = files.finish();
    for kernel in kernels(options)? {
        let mode = options.preempt.or_else(|| kernel.series.preemptions().first().copied());
        let mode = mode.map(|mode| format!("preempt={}", mode.name())).unwrap_or_default();
        println!("{} {mode}", kernel.release);
        let guest = Guest {
            arch: options.arch,
            kernel: &kernel,
            files: &files,
            append: &format!("{mode} {}", options.append),
            time: Duration::from_secs(options.time),
            label: &format!("{}-script-{}", kernel.name, std::process::id()),
        };
        let outcome = guest.run(|line| println!("{line}"))?;
        if let Some(harm) = outcome.harm {
            bail!("{}: {harm}\n{}", kernel.release, outcome.tail);
        }
        println!("RESULT rc={} after {:.0} s", outcome.code.unwrap_or(-1), outcome.took.as_secs_f64());
        if outcome.code != Some(0) {
            bail!("{}: the script failed", kernel.release);
        }
    }
    Ok(())
}
