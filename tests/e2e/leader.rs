//! A process lives as long as one of its threads does: the first one ends, and others go on.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile, leaktrace,
    leaktrace::Leaktrace,
    lines::{Lines, poll},
    report::{Report, Target},
};
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The first thread leaks 10 blocks and ends; another one leaks 490 more: at once, or 10 for each line that it is given.
const PROGRAM: &str = "#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
    static void *volatile sink;\n\
    __attribute__((noinline)) void leak_here(void) { sink = malloc(100); __asm__ volatile(\"\"); }\n\
    static void *work(void *waits) { usleep(300000); int left = 490; char line[100];\n\
    if (waits) { puts(\"alone\"); fflush(stdout);\n\
    while (fgets(line, sizeof line, stdin)) for (int i = 0; i < 10; i++) { leak_here(); left--; } }\n\
    else while (left-- > 0) leak_here();\n\
    sink = 0; exit(0); }\n\
    int main(int argc, char **argv) { pthread_t t; pthread_create(&t, 0, work, argc > 1 ? argv : 0);\n\
    for (int i = 0; i < 10; i++) leak_here(); pthread_exit(0); }";

fn program() -> Result<PathBuf> {
    compile::text("leader.c", PROGRAM, &["gcc", "-O1", "-g", "-fno-builtin", "-pthread", "-w"])
}

fn leaked(target: &Target) -> (u64, u64) {
    let sites = target.sites.iter().filter(|site| site.has("leak_here"));
    sites.fold((0, 0), |sum, site| (sum.0 + site.outstanding_count, sum.1 + site.outstanding_bytes))
}

#[test]
fn run_sees_what_threads_do_after_the_first_one_has_ended() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(&file).arg("--").arg(program()?).stdin(Stdio::null());
    let said = command.output()?;
    ensure!(said.status.success(), "{said:?}");
    let report = Report::parse(std::fs::read_to_string(&file)?.trim_end())?;
    let target = report.targets.first().context("no target")?;
    ensure!(
        leaked(target) == (500, 50_000),
        "{:?} instead of 500 blocks; {:?}",
        leaked(target),
        report.losses
    );
    ensure!(target.exited.is_some_and(|exited| exited.code == Some(0)), "{:?}", target.exited);
    Ok(())
}

/// The program with its first thread gone.
struct Headless {
    child: Child,
    _lines: Lines,
}

impl Headless {
    fn start() -> Result<Headless> {
        let mut child =
            Command::new(program()?).arg("wait").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = Lines::new("leader", child.stdout.take().context("no output")?);
        let line = lines.next_before(Instant::now() + Duration::from_secs(20))?;
        ensure!(line.as_deref() == Some("alone"), "{line:?}");
        let stat = format!("/proc/{}/stat", child.id());
        poll("the end of the first thread", Duration::from_secs(20), || {
            Ok(std::fs::read_to_string(&stat)?.contains(") Z ").then_some(()))
        })?;
        Ok(Headless { child, _lines: lines })
    }

    fn leak_ten(&mut self) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("no input")?).context("it takes no orders")
    }
}

impl Drop for Headless {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn attach_takes_a_process_whose_first_thread_has_ended() -> Result<()> {
    let mut program = Headless::start()?;
    let pid = program.child.id();
    let mut leaktrace = Leaktrace::attach(&[pid], &[])?;
    for tens in 1..=3 {
        program.leak_ten()?;
        let report = leaktrace.until("it is seen to leak", |report| {
            let target = report.target(pid).ok_or("no target")?;
            let wanted = (10 * tens, 1000 * tens);
            if leaked(target) == wanted { Ok(()) } else { Err(format!("{:?}: {target:?}", leaked(target))) }
        })?;
        let target = report.target(pid).context("no target")?;
        ensure!(target.exited.is_none() && target.memory.is_some(), "{target:?}");
    }
    drop(program);
    leaktrace.until("its end is seen", |report| {
        let target = report.target(pid).ok_or("no target")?;
        if target.exited.is_some() { Ok(()) } else { Err(format!("{target:?}")) }
    })?;
    Ok(())
}
