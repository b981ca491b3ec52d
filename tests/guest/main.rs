//! Runs scenarios in the guest that `cargo xtask kernels` boots: fixtures under leaktrace, compared with their ledgers
//! by the same code as the end-to-end tests. Prints one line for each scenario, and facts about the kernel; what to
//! run comes as words. Fixtures are in `/fixtures`, compiled and shipped by the task.
#![expect(clippy::print_stdout, reason = "the task reads what this program prints")]

mod attached;
mod life;
mod ran;
mod scenario;
mod storm;

use scenario::Scenario;
use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

/// A shipped program or library.
fn shipped(name: &str) -> PathBuf {
    PathBuf::from("/fixtures").join(name)
}

fn main() -> ExitCode {
    facts();
    let mut failed = 0;
    for word in std::env::args().skip(1) {
        println!("BEGIN {word}");
        let began = Instant::now();
        let result = word.parse::<Scenario>().and_then(|scenario| scenario.run());
        let took = began.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("SCENARIO {word} ok {took:.1}"),
            Err(error) => {
                failed += 1;
                // On one line, so that the task reads it as one.
                let why = format!("{error:#}").replace('\n', " | ");
                println!("SCENARIO {word} failed {took:.1} {why}");
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

/// What the kernel says about itself; a kernel without such a switch says nothing.
fn facts() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let modes = read("/sys/kernel/debug/sched/preempt");
    let mode = modes.split('(').nth(1).and_then(|rest| rest.split(')').next());
    println!("FACT preemption {}", mode.unwrap_or("fixed"));
    println!("FACT jit {}", read("/proc/sys/net/core/bpf_jit_enable"));
}
