//! `cargo xtask kernels`: leaktrace on other kernels, each booted in an emulator with nothing but leaktrace and
//! fixtures. Fetching kernels, building the guest's file system, planning, booting and judging have their own files.
mod arch;
mod archive;
mod boot;
mod console;
mod fetch;
mod image;
mod initramfs;
mod plan;
mod series;
mod shipment;
mod sources;
mod table;

use anyhow::{Context, Result, bail};
use arch::Arch;
use boot::Guest;
use fetch::{Kernel, Packages};
use plan::Boot;
pub(crate) use plan::Extent;
use series::{Preemption, Series};
use shipment::Shipment;
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};
pub(crate) use table::Row;

/// A kernel's path, in place of those that packages have.
const KERNEL_IMAGE: &str = "KERNEL_IMAGE";

/// What is asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Series of kernels, such as 6.12 or 6.12-plain (all of the matrix without any); KERNEL_IMAGE=PATH boots another.
    kernels: Vec<Series>,
    /// The architecture of the guests.
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// Only what continuous integration has time for.
    #[arg(long, conflicts_with_all = ["soak", "script"])]
    short: bool,
    /// Load with threads, signals, migrations and forks, for so many minutes a kernel and kind of preemption.
    #[arg(long, num_args = 0..=1, default_missing_value = "60", value_name = "MINUTES", conflicts_with = "script")]
    soak: Option<u64>,
    /// Only these scenarios, as the table names them (repeatable).
    #[arg(long, value_name = "NAME", conflicts_with = "script")]
    scenario: Vec<String>,
    /// Only this kind of preemption.
    #[arg(long, value_enum)]
    preempt: Option<Preemption>,
    /// Guests at once.
    #[arg(long, default_value = "2")]
    jobs: usize,
    /// More words for the kernels' command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Run this shell script in each guest, where leaktrace is /leaktrace.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// With a script: a program that it finds as /fixtures/NAME (repeatable).
    #[arg(long, value_name = "PROGRAM", requires = "script")]
    ship: Vec<PathBuf>,
    /// With a script: a guest that is not off after so many seconds hangs.
    #[arg(long, value_name = "SECONDS", default_value = "1800")]
    time: u64,
}

impl Options {
    /// What another task asks for: all usual kernels.
    pub(crate) fn of(extent: Extent) -> Options {
        Options {
            kernels: Vec::new(),
            arch: Arch::Amd64,
            short: extent == Extent::Short,
            soak: if let Extent::Soak(time) = extent { Some(time.as_secs() / 60) } else { None },
            scenario: Vec::new(),
            preempt: None,
            jobs: 2,
            append: String::new(),
            script: None,
            ship: Vec::new(),
            time: 0,
        }
    }

    fn extent(&self) -> Extent {
        match self.soak {
            Some(minutes) => Extent::Soak(Duration::from_secs(minutes * 60)),
            None if self.short => Extent::Short,
            None => Extent::Whole,
        }
    }
}

/// Runs what is asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(script) = &options.script {
        return scripts(options, script);
    }
    let rows = matrix(options)?;
    let failed: usize = rows.iter().map(|row| row.failed.len()).sum();
    let passed: usize = rows.iter().map(|row| row.passed.len()).sum();
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} scenarios failed");
    }
    Ok(())
}

/// Boots everything that is planned; the table is printed and written to `target/kernels/results.md`.
pub(crate) fn matrix(options: &Options) -> Result<Vec<Row>> {
    let shipment = Shipment::build(options.arch)?;
    let mut boots = Vec::new();
    let mut rows = Vec::new();
    for (series, kernel) in kernels(options)? {
        match kernel {
            Ok(kernel) => {
                boots.extend(planned(options, series).into_iter().map(|boot| (boot, kernel.clone())));
            }
            Err(error) => {
                println!("{series}: {error:#}");
                let name = series.to_string();
                rows.push(Row::failed(&name, &name, format!("the kernel cannot be had: {error:#}")));
            }
        }
    }
    rows.extend(side_by_side(options, &shipment, boots)?);
    let text = table::render(&rows);
    let file = fetch::folder().join("results.md");
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("\n{text}\n(also in {})", file.display());
    Ok(rows)
}

/// Every series that is meant, with its kernel or why there is none.
fn kernels(options: &Options) -> Result<Vec<(Series, Result<Kernel>)>> {
    if let Some(path) = std::env::var_os(KERNEL_IMAGE) {
        let kernel = fetch::given(Path::new(&path))?;
        return Ok(vec![(kernel.series, Ok(kernel))]);
    }
    let packages = Packages::open(options.arch)?;
    let series = match options.kernels.as_slice() {
        [] => plan::usual(options.extent()),
        named => named.to_vec(),
    };
    Ok(series.into_iter().map(|series| (series, packages.kernel(series))).collect())
}

fn planned(options: &Options, series: Series) -> Vec<Boot> {
    let mut boots = plan::boots(series, options.extent());
    if let Some(mode) = options.preempt {
        // Also one that the plan does not have for this extent.
        let first = boots.first().cloned().into_iter();
        let asked = first.map(|boot| Boot { preemption: Some(mode), ..boot });
        boots = match boots.iter().any(|boot| boot.preemption == Some(mode)) {
            true => boots.into_iter().filter(|boot| boot.preemption == Some(mode)).collect(),
            false => asked.collect(),
        };
    }
    if !options.scenario.is_empty() {
        boots.truncate(1);
        boots.iter_mut().for_each(|boot| boot.scenarios.clone_from(&options.scenario));
    }
    boots
}

/// Boots several guests at once; rows come in the order of the plan.
fn side_by_side(options: &Options, shipment: &Shipment, boots: Vec<(Boot, Kernel)>) -> Result<Vec<Row>> {
    let queue: Mutex<VecDeque<_>> = Mutex::new(boots.into_iter().enumerate().collect());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some((number, (boot, kernel))) =
                    queue.lock().ok().and_then(|mut queue| queue.pop_front())
                {
                    let row = one(options, shipment, &boot, &kernel).unwrap_or_else(|error| {
                        Row::failed(&boot.label(), &kernel.release, format!("{error:#}"))
                    });
                    if let Ok(mut done) = done.lock() {
                        done.push((number, row));
                    }
                }
            });
        }
    });
    let Ok(mut done) = done.into_inner() else { bail!("a guest's thread failed") };
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, row)| row).collect())
}

fn one(options: &Options, shipment: &Shipment, boot: &Boot, kernel: &Kernel) -> Result<Row> {
    let label = boot.label();
    let files = shipment.pack(&boot.scenarios)?;
    let mut row = Row::new(&label, &kernel.release);
    println!("[{label}] booting {}", kernel.release);
    let guest = Guest {
        arch: options.arch,
        kernel,
        files: &files,
        append: &format!("{} {}", boot.command_line(), options.append),
        time: boot.time(),
        label: &label,
    };
    let outcome = guest.run(|line| {
        println!("[{label}] {line}");
        row.read(line);
    })?;
    if let Some(harm) = &outcome.harm {
        println!("[{label}] {harm}");
    }
    row.finish(&boot.scenarios, &outcome);
    Ok(row)
}

/// One guest after another, with the developer's script.
fn scripts(options: &Options, script: &Path) -> Result<()> {
    let text = fs::read_to_string(script).with_context(|| format!("cannot read {}", script.display()))?;
    let files = shipment::for_script(options.arch, &text, &options.ship)?;
    for (_, kernel) in kernels(options)? {
        let kernel = kernel?;
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
