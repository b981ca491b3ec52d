//! Answers that must not be wrong without saying so: names, reservations, inherited memory, who sees what.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::Agent,
    compile, http, leaktrace,
    report::{Report, Target},
};
use std::{path::Path, process::Stdio};

use super::service;

const TOKEN_HEADER: &str = "authorization: Bearer 0123456789abcdef";

/// Runs a program under `leaktrace run`; the last summary.
fn run(program: &Path, flags: &[&str]) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command = leaktrace::command(&["run", "--format", "json", "--top", "0", "-o"])?;
    command.arg(&file).args(flags).arg("--").arg(program).stdin(Stdio::null());
    let said = command.env("ASAN_OPTIONS", "detect_leaks=0").output()?;
    ensure!(said.status.success(), "{said:?}");
    let text = std::fs::read_to_string(&file)?;
    Report::parse(text.lines().last().context("an empty report")?)
}

const SHORT_NAMES: &str = "#include <stdlib.h>\nstatic void *volatile sink;\n\
    #define N(name, call) __attribute__((noinline)) void *name(void) { void *volatile p = call; return (void *)p; }\n\
    N(f, malloc(100)) N(g, f()) N(St, g()) N(Pc, St()) N(v, Pc())\n\
    int main(void) { for (int i = 0; i < 10; i++) sink = v(); sink = 0; return 0; }";

#[test]
fn short_names_of_c_are_shown_as_they_are() -> Result<()> {
    let words = ["gcc", "-O1", "-g", "-fno-builtin", "-fno-optimize-sibling-calls", "-w"];
    for strip in [&[][..], &["-Wl,--strip-debug"]] {
        let program = compile::text("short_names.c", SHORT_NAMES, &[&words[..], strip].concat())?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("short.pb.gz");
        let name = file.to_string_lossy().into_owned();
        let report = run(&program, &["--snapshot", &name])?;
        let target = report.targets.first().context("no target")?;
        let site = target.sites.iter().find(|site| site.outstanding_count == 10).context("no site")?;
        let names: Vec<&str> =
            site.frames.iter().filter_map(|frame| frame.function.as_deref()).take(6).collect();
        ensure!(names == ["f", "g", "St", "Pc", "v", "main"], "{names:?}");
        let folded = leaktrace::output(&["convert", "--to", "folded", &name])?;
        let folded = String::from_utf8_lossy(&folded.stdout).into_owned();
        ensure!(folded.contains("main;v;Pc;St;g;f "), "{folded}");
    }
    Ok(())
}

#[test]
fn the_shadow_of_a_sanitizer_is_no_finding() -> Result<()> {
    let text = "#include <stdlib.h>\nstatic void *volatile sink;\n\
        __attribute__((noinline)) void leak_here(void) { sink = malloc(640); __asm__ volatile(\"\"); }\n\
        int main(void) { for (int i = 0; i < 20; i++) leak_here(); sink = 0; return 0; }";
    let program = compile::text(
        "sanitized.c",
        text,
        &["gcc", "-O1", "-g", "-fno-builtin", "-fsanitize=address", "-w"],
    )?;
    let report = run(&program, &[])?;
    let target = report.targets.first().context("no target")?;
    let largest = target.sites.iter().map(|site| site.outstanding_bytes).max().unwrap_or(0);
    ensure!(
        largest < 1 << 30,
        "{largest} bytes in one site: {:?}",
        target.sites.first().map(leaktrace_tests::report::Site::stack)
    );
    Ok(())
}

#[test]
fn a_forked_child_has_what_its_parent_had() -> Result<()> {
    let text = "#include <stdlib.h>\n#include <string.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
        int main(void) { static void *p[1000]; for (int i = 0; i < 1000; i++) memset(p[i] = malloc(10000), 1, 10000);\n\
        if (fork() == 0) { for (int i = 0; i < 1000; i++) free(p[i]); _exit(0); } wait(0);\n\
        for (int i = 0; i < 1000; i++) free(p[i]); return 0; }";
    let program = compile::text("forked_heap.c", text, &["gcc", "-O1", "-w"])?;
    let report = run(&program, &[])?;
    let is_child = |target: &&Target| target.allocated_count == 0;
    let child = report.targets.iter().find(is_child).context("no child")?;
    let before = child.heap_before_attach_bytes.context("its heap is not known")?;
    ensure!((9_500_000..20_000_000).contains(&before), "{before} bytes before tracing instead of 10 MB");
    let parent = report.targets.iter().find(|target| !is_child(target)).context("no parent")?;
    ensure!(parent.heap_before_attach_bytes == Some(0), "{:?}", parent.heap_before_attach_bytes);
    Ok(())
}

#[test]
fn a_duration_beyond_any_clock_is_refused() -> Result<()> {
    for flag in ["--interval", "--duration"] {
        let said = leaktrace::output(&["run", flag, "1e19", "--", "/bin/true"])?;
        let errors = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.code() == Some(2) && errors.contains("at most 100 years"), "{errors}");
    }
    Ok(())
}

fn addresses(target: &serde_json::Value) -> Vec<&serde_json::Value> {
    let sites = target["sites"].as_array().into_iter().flatten();
    sites
        .flat_map(|site| site["frames"].as_array().into_iter().flatten())
        .map(|frame| &frame["address"])
        .collect()
}

#[test]
fn addresses_are_for_those_who_have_the_token() -> Result<()> {
    let mut fixture = service::rounds("svc-token")?;
    let pid = fixture.pid();
    let agent = Agent::start(&service::config(&format!("\"pid:{pid}\""), ""))?;
    fixture.act()?;
    agent.until_held(pid, 100_000)?;
    let path = format!("/api/v1/targets/{pid}");
    let bare = agent.get(&path)?.json()?;
    ensure!(
        !addresses(&bare).is_empty() && addresses(&bare).iter().all(|address| address.is_null()),
        "{bare}"
    );
    let full = http::request(agent.address(), "GET", &path, &[TOKEN_HEADER])?.json()?;
    ensure!(addresses(&full).iter().all(|address| address.is_string()), "{full}");
    // A profile has addresses, and they are not the process's.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let start =
        maps.split('-').next().and_then(|text| u64::from_str_radix(text, 16).ok()).context("no maps")?;
    let profile = |headers: &[&str]| -> Result<Report> {
        let answer = http::request(agent.address(), "GET", "/debug/pprof/heap", headers)?;
        profile_of(&answer.body)
    };
    let lies_in_it = |report: &Report| {
        let frames = report.targets.iter().flat_map(|target| &target.sites).flat_map(|site| &site.frames);
        let address = |value: &serde_json::Value| {
            value.as_str().and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok())
        };
        frames.filter_map(|frame| address(&frame.address)).any(|address| address >> 24 == start >> 24)
    };
    ensure!(lies_in_it(&profile(&[TOKEN_HEADER])?) && !lies_in_it(&profile(&[])?), "addresses in a profile");
    Ok(())
}

/// A profile, as `leaktrace report` understands it.
fn profile_of(body: &[u8]) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("heap.pb.gz");
    std::fs::write(&file, body)?;
    let said = leaktrace::output(&["report", "--format", "json", "--top", "0", &file.to_string_lossy()])?;
    Report::parse(String::from_utf8_lossy(&said.stdout).trim_end())
}

#[test]
fn the_heap_of_ended_processes_is_no_part_of_the_live_profile() -> Result<()> {
    let mut fixture = service::rounds("svc-gone")?;
    let pid = fixture.pid();
    let agent =
        Agent::start(&service::config("\"comm:svc-gone\"", "[snapshots]\ndirectory = \"@DIR@/files\""))?;
    fixture.act()?;
    agent.until_held(pid, 100_000)?;
    let alive = profile_of(&agent.get("/debug/pprof/heap")?.body)?;
    ensure!(alive.target(pid).is_some(), "{:?}", alive.targets);
    ensure!(fixture.release()?.success(), "the fixture failed");
    agent.until(&format!("targets/{pid}"), "its end is seen", |target| {
        (!target["exited"].is_null()).then_some(())
    })?;
    // A profile that was just made answers again for a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let ended = profile_of(&agent.get("/debug/pprof/heap")?.body)?;
    ensure!(ended.targets.is_empty(), "{:?}", ended.targets);
    Ok(())
}
