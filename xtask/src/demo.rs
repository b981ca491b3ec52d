//! `cargo xtask demo`: a program leaks, leaktrace attaches and says where. Nothing here is faked: it is the release
//! build on this kernel, and the program is `tests/fixtures/demo.c`.
use crate::{command, setup};
use anyhow::{Context, Result, bail};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace,
};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// The sample program; it ends with the demonstration.
struct Sample(Child);

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sets up, builds, leaks, looks.
pub(crate) fn run() -> Result<()> {
    if !command::is_root() {
        bail!("the demonstration attaches to the kernel and needs root: run `sudo -E cargo xtask demo`");
    }
    setup::run(false)?;
    step("building leaktrace (release)");
    command::run(&mut command::cargo(&["build", "--release", "--package", "leaktrace"]))?;
    let program = compile::fixture("demo.c", Build::Gcc, &[])?;
    let child = Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let sample = Sample(child);
    introduce(&sample, &program);
    watch(sample.0.id())
}

fn step(text: &str) {
    println!("\n── {text}");
}

fn introduce(sample: &Sample, program: &Path) {
    step(&format!("started {} as process {}", program.display(), sample.0.id()));
    println!("   Twenty times a second it handles a request:");
    println!("     open_session() allocates 64 KiB that nobody ever frees: the leak, 1.25 MiB a second;");
    println!("     render_page()  allocates 40 kB and frees them: no leak;");
    println!("     remember()     fills a cache of 32 entries and then replaces them: no leak.");
    println!("   leaktrace knows none of this. It attaches to the running program for ten seconds.");
}

fn watch(pid: u32) -> Result<()> {
    let pid = pid.to_string();
    let words = ["attach", "-p", &pid, "--mode", "exact", "--interval", "2s", "--duration", "10s"];
    step(&format!("leaktrace {}", words.join(" ")));
    let mut leaktrace = Command::new(leaktrace::binary()?);
    command::run(leaktrace.args(words).stdin(Stdio::null()))?;
    step(
        "the last summary holds the findings: open_session() should stand at the top, and the others not accused",
    );
    Ok(())
}
