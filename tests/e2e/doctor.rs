//! `doctor` on the real host, on real processes, and with less than it needs; and what `run` and `attach` say then.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace, proc,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// Runs `doctor --format json` with more arguments.
fn diagnosis(arguments: &[&str]) -> Result<(Value, Output)> {
    parsed(leaktrace::output(&[&["doctor", "--format", "json"], arguments].concat())?)
}

fn parsed(said: Output) -> Result<(Value, Output)> {
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(text.lines().count() == 1, "not one line: {text} {errors}");
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{text} {errors}"))?;
    ensure!(value.get("schema").is_some_and(|schema| schema == "leaktrace.doctor/1"), "{text}");
    Ok((value, said))
}

fn items<'a>(value: &'a Value, field: &str) -> Result<&'a [Value]> {
    let items = value[field].as_array().with_context(|| format!("no {field} in {value}"))?;
    Ok(items)
}

fn named<'a>(items: &'a [Value], field: &str, name: &str) -> Result<&'a Value> {
    items.iter().find(|item| item[field] == name).with_context(|| format!("no {name} among {items:?}"))
}

fn cost(diagnosis: &Value, what: &str) -> Result<u64> {
    let row = named(items(&diagnosis["costs"], "rows")?, "what", what)?;
    row["ns"].as_u64().with_context(|| format!("no cost: {row}"))
}

#[test]
fn this_host_will_do_and_its_costs_are_measured() -> Result<()> {
    let (diagnosis, said) = diagnosis(&[])?;
    ensure!(said.status.success() && diagnosis["works"] == true, "{diagnosis}");
    for check in items(&diagnosis, "checks")? {
        ensure!(check["level"] != "missing" && check["level"] != "unknown", "{check}");
    }
    let used = items(&diagnosis, "links")?.iter().filter(|link| link["used"] == true).count();
    ensure!(used == 1, "{diagnosis}");
    let (push, other) = (cost(&diagnosis, "push")?, cost(&diagnosis, "any other instruction")?);
    ensure!(push > 0 && push < other, "a push costs {push} ns, a single-stepped instruction {other} ns");
    Ok(())
}

#[test]
fn the_text_says_first_whether_it_works() -> Result<()> {
    let said = leaktrace::output(&["doctor"])?;
    let text = String::from_utf8_lossy(&said.stdout);
    ensure!(said.status.success() && text.starts_with("leaktrace can work on "), "{text}");
    for words in ["permissions", "Link types: ", "What a probe costs a call", "Limits"] {
        ensure!(text.contains(words), "no {words:?} in {text}");
    }
    Ok(())
}

#[test]
fn a_process_is_described_and_left_alone() -> Result<()> {
    let mut fixture = Fixture::start(&compile::fixture("churn.c", Build::Gcc, &[])?, &[], &[])?;
    let pid = fixture.pid();
    let (diagnosis, said) = diagnosis(&["-p", &pid.to_string()])?;
    ensure!(said.status.success(), "{diagnosis}");
    let process = &items(&diagnosis, "processes")?[0];
    ensure!(process["pid"] == pid && process["comm"] == "churn" && process["refused"].is_null(), "{process}");
    let glibc = named(items(process, "allocators")?, "name", "glibc")?;
    for (function, with_return) in [("malloc", true), ("calloc", true), ("realloc", true), ("free", false)] {
        let hook = named(items(glibc, "hooks")?, "function", function)?;
        ensure!(hook["emulated"] == true && hook["with_return"] == with_return, "{hook}");
        let (expected, push) = (hook["expected_ns"].as_u64().unwrap_or(0), cost(&diagnosis, "push")?);
        ensure!(expected > 0 && expected < 20 * push, "{hook}, where a push costs {push} ns");
    }
    let files = items(process, "files")?;
    let libc = files.iter().find(|file| file["path"].as_str().is_some_and(|path| path.contains("libc.so")));
    let table = &libc.context("no libc")?["table"];
    ensure!(table["rows"].as_u64().is_some_and(|rows| rows > 1000), "{table}");
    ensure!(table["sources"][0] == ".eh_frame", "{table}");
    let program = named(files, "path", &fs::read_link(format!("/proc/{pid}/exe"))?.to_string_lossy())?;
    ensure!(program["debug_info"] == "inside" && program["symbols"][0] == ".symtab", "{program}");
    named(files, "path", "[vdso]")?;
    let damaged = proc::damaged_text(pid)?;
    ensure!(damaged.is_empty() && fixture.is_running()?, "the process was changed: {damaged:?}");
    Ok(())
}

#[test]
fn an_operator_that_may_throw_is_shown_with_its_exits_and_without_a_return_probe() -> Result<()> {
    let jemalloc = library("libjemalloc.so.2")?;
    let preload = jemalloc.to_string_lossy();
    let program = compile::fixture("churn.c", Build::Gcc, &[])?;
    let fixture = Fixture::start(&program, &[], &[("LD_PRELOAD", &preload)])?;
    let (diagnosis, _) = diagnosis(&["-p", &fixture.pid().to_string()])?;
    let process = &items(&diagnosis, "processes")?[0];
    let allocator = named(items(process, "allocators")?, "name", "jemalloc")?;
    let new = named(items(allocator, "hooks")?, "function", "_Znwm")?;
    ensure!(new["with_return"] == false && new["exits"].as_u64().is_some_and(|exits| exits > 0), "{new}");
    Ok(())
}

#[test]
fn processes_that_cannot_be_traced_are_named_with_the_reason() -> Result<()> {
    let thread = proc::kernel_thread()?;
    let (diagnosis, said) = diagnosis(&["-p", &format!("{thread},4194304")])?;
    ensure!(said.status.code() == Some(1) && diagnosis["works"] == false, "{diagnosis}");
    let processes = items(&diagnosis, "processes")?;
    let refused = |index: usize| processes[index]["refused"].as_str().unwrap_or_default().to_owned();
    ensure!(refused(0).contains("kernel thread") && refused(1).contains("no process"), "{processes:?}");
    Ok(())
}

/// The binary where every user may run it.
struct Everyones {
    _folder: TempDir,
    binary: PathBuf,
}

impl Everyones {
    fn new() -> Result<Everyones> {
        leaktrace::need_root()?;
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let binary = folder.path().join("leaktrace");
        fs::copy(leaktrace::binary()?, &binary).context("the binary cannot be copied")?;
        for path in [folder.path(), binary.as_path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Everyones { _folder: folder, binary })
    }

    /// Runs it by another command, such as setpriv.
    fn by(&self, wrapper: &[&str], arguments: &[&str]) -> Result<Output> {
        let (program, rest) = wrapper.split_first().context("no wrapper")?;
        let mut command = Command::new(program);
        command.args(rest).arg(&self.binary).args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {command:?}"))
    }

    /// As a user without capabilities but those given, such as `+bpf,+perfmon`.
    fn as_nobody(&self, capabilities: &str, arguments: &[&str]) -> Result<Output> {
        let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"]
            .map(|set| format!("{set}=-all{}{capabilities}", if capabilities.is_empty() { "" } else { "," }));
        let mut wrapper = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        wrapper.extend(sets.iter().map(String::as_str));
        self.by(&wrapper, arguments)
    }
}

/// It ended with this code and one line that has all of these words, none of those, and no panic.
fn one_line(said: &Output, code: i32, words: &[&str], not: &[&str]) -> Result<()> {
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.code() == Some(code), "{}: {errors}", said.status);
    ensure!(errors.trim_end().lines().count() == 1, "not one line: {errors}");
    ensure!(errors.starts_with("leaktrace: cannot trace on this host: "), "{errors}");
    for word in words {
        ensure!(errors.contains(word), "no {word:?} in {errors}");
    }
    for word in not {
        ensure!(!errors.contains(word), "{word:?} in {errors}");
    }
    Ok(())
}

/// Exit codes: of `attach` that cannot trace, and of `run`, which knows nothing of its program then.
const ATTACH_FAILED: i32 = 1;
const NOT_KNOWN: i32 = 4;
const RUN: &[&str] = &["run", "-o", "/dev/null", "--", "/bin/true"];

#[test]
fn root_without_one_capability_is_told_which() -> Result<()> {
    let everyones = Everyones::new()?;
    let said = everyones.by(&["setpriv", "--bounding-set=-bpf,-sys_admin"], RUN)?;
    one_line(&said, NOT_KNOWN, &["CAP_BPF"], &["CAP_PERFMON"])?;
    let said = everyones.by(&["setpriv", "--bounding-set=-perfmon,-sys_admin"], RUN)?;
    one_line(&said, NOT_KNOWN, &["CAP_PERFMON"], &["CAP_BPF"])?;
    let pid = std::process::id().to_string();
    let said = everyones.by(&["setpriv", "--bounding-set=-bpf,-sys_admin"], &["attach", "-p", &pid])?;
    one_line(&said, ATTACH_FAILED, &["CAP_BPF"], &["CAP_PERFMON"])
}

#[test]
fn a_user_without_capabilities_is_told_what_is_missing_and_to_use_sudo() -> Result<()> {
    let everyones = Everyones::new()?;
    one_line(
        &everyones.as_nobody("", RUN)?,
        NOT_KNOWN,
        &["CAP_BPF and CAP_PERFMON", "sudo"],
        &["CAP_SYS_PTRACE"],
    )?;
    one_line(&everyones.as_nobody("+bpf,+perfmon", RUN)?, NOT_KNOWN, &["tracefs"], &["CAP_BPF"])
}

#[test]
fn a_user_with_the_capabilities_that_it_takes_needs_not_be_root() -> Result<()> {
    let everyones = Everyones::new()?;
    let capabilities = "+sys_admin,+dac_read_search";
    let said = everyones.as_nobody(capabilities, RUN)?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let (diagnosis, said) = parsed(everyones.as_nobody(capabilities, &["doctor", "--format", "json"])?)?;
    ensure!(said.status.success() && diagnosis["works"] == true, "{diagnosis}");
    let processes = named(items(&diagnosis, "checks")?, "topic", "processes")?;
    ensure!(processes["level"] == "warning", "{processes}");
    ensure!(
        processes["remedy"].as_str().is_some_and(|words| words.contains("CAP_SYS_PTRACE")),
        "{processes}"
    );
    Ok(())
}

#[test]
fn doctor_works_as_far_as_it_can_without_any_permission() -> Result<()> {
    let everyones = Everyones::new()?;
    let own = std::process::id().to_string();
    let (diagnosis, said) = parsed(everyones.as_nobody("", &["doctor", "--format", "json", "-p", &own])?)?;
    ensure!(said.status.code() == Some(1) && diagnosis["works"] == false, "{diagnosis}");
    let permissions = named(items(&diagnosis, "checks")?, "topic", "permissions")?;
    ensure!(permissions["level"] == "missing", "{permissions}");
    ensure!(diagnosis["costs"].is_null() && !diagnosis["costs_problem"].is_null(), "{diagnosis}");
    let refused = &items(&diagnosis, "processes")?[0]["refused"];
    ensure!(refused.as_str().is_some_and(|words| words.contains("CAP_SYS_PTRACE")), "{refused}");
    Ok(())
}

#[test]
fn capabilities_of_a_user_namespace_are_told_from_real_ones() -> Result<()> {
    let said = Everyones::new()?.by(&["unshare", "--user", "--map-root-user"], RUN)?;
    one_line(&said, NOT_KNOWN, &["user namespace"], &["CAP_BPF"])
}

#[test]
fn a_kernel_without_type_information_will_do_with_a_warning() -> Result<()> {
    let everyones = Everyones::new()?;
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", hide];
    let (diagnosis, said) = parsed(everyones.by(&wrapper, &["doctor", "--format", "json"])?)?;
    ensure!(said.status.success(), "{diagnosis}");
    let check = named(items(&diagnosis, "checks")?, "topic", "BTF")?;
    ensure!(check["level"] == "warning" && check["remedy"].is_string(), "{check}");
    let said = everyones.by(&wrapper, RUN)?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

#[test]
fn a_mounted_tracefs_is_used_and_an_unreadable_one_is_named() -> Result<()> {
    let everyones = Everyones::new()?;
    // It is mounted already on most hosts.
    let mounted = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", mounted];
    let (diagnosis, _) = parsed(everyones.by(&wrapper, &["doctor", "--format", "json"])?)?;
    let check = named(items(&diagnosis, "checks")?, "topic", "tracefs")?;
    ensure!(check["level"] == "ok", "{check}");
    ensure!(check["finding"] == "mounted at /sys/kernel/tracing", "{check}");
    let nobody = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec setpriv --reuid=65534 --regid=65534 --clear-groups \
                  --inh-caps=-all,+bpf,+perfmon --ambient-caps=-all,+bpf,+perfmon \"$0\" \"$@\"";
    let said = everyones.by(&["unshare", "--mount", "sh", "-c", nobody], RUN)?;
    one_line(&said, NOT_KNOWN, &["/sys/kernel/tracing", "CAP_DAC_READ_SEARCH"], &["CAP_BPF"])
}
