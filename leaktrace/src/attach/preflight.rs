//! From the facts of a host to what works, what is missing and what to do about it. Pure. `attach` and `run` stop at
//! the first thing that is missing; `doctor` shows all.
use anyhow::{Result, bail};

use super::{
    capabilities::Capability,
    host::{BpfAccess, Cgroups, Host, KernelVersion, Lockdown},
    private_stacks::PrivateStacks,
    tracefs::Access,
};

/// The oldest kernel that leaktrace is made for: attach cookies.
const OLDEST: KernelVersion = KernelVersion(5, 15);
/// From here on the memory of maps is charged to a control group, not to RLIMIT_MEMLOCK.
const MEMLOCK_UNUSED: KernelVersion = KernelVersion(5, 11);
/// Kernels whose return probes make a system call that seccomp filters see: from and up to.
const RETURN_PROBES_FILTERED: [KernelVersion; 2] = [KernelVersion(6, 11), KernelVersion(6, 13)];
/// What nothing works without.
const NEEDED: [Capability; 2] = [Capability::Bpf, Capability::Perfmon];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Could not be found out.
    Unknown,
    /// Works, with a drawback.
    Warning,
    /// Without it leaktrace does not work.
    Missing,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub topic: &'static str,
    /// How it ended.
    pub level: Level,
    /// What was found: a clause.
    pub finding: String,
    /// What to do; none where there is nothing to do.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(topic: &'static str, finding: impl Into<String>) -> Check {
        Check { topic, level: Level::Ok, finding: finding.into(), remedy: None }
    }

    /// A check that did not end well.
    pub fn bad(
        topic: &'static str,
        level: Level,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { topic, level, finding: finding.into(), remedy: Some(remedy.into()) }
    }
}

/// Fails when something is missing without which nothing can be traced.
///
/// # Errors
/// One line: what is missing and what to do.
pub fn demand(host: &Host) -> Result<()> {
    let checks = checks(host);
    let missing: Vec<&Check> = checks.iter().filter(|check| check.level == Level::Missing).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let remedy = first.remedy.as_deref().unwrap_or("see `leaktrace doctor`");
    let more = match missing.len() {
        1 => String::new(),
        count => format!(" (and {} more: see `leaktrace doctor`)", count - 1),
    };
    bail!("cannot trace on this host: {}: {remedy}{more}", first.finding)
}

/// Every check, what is most basic first.
pub fn checks(host: &Host) -> Vec<Check> {
    let mut checks = vec![machine(host), kernel(host), permissions(host)];
    checks.extend(lockdown(host));
    checks.extend([bpf(host), uprobes(host), tracefs(host), type_information(host)]);
    checks.extend([
        jit(host),
        private_stacks(host),
        memory(host),
        namespaces(host),
        cgroups(host),
        other_processes(host),
    ]);
    checks
}

/// Whether return probes may kill processes under a seccomp filter: on these kernels it has to be tried, because the
/// correction was also made in some of them after their release.
pub fn may_kill_filtered(version: Option<KernelVersion>) -> bool {
    let [from, to] = RETURN_PROBES_FILTERED;
    version.is_some_and(|version| (from..=to).contains(&version))
}

/// Why a process under a seccomp filter is not traced on such a kernel.
pub fn kills_filtered(release: &str) -> String {
    format!(
        "it runs under a seccomp filter, and on this kernel ({release}) a return probe would kill it: Linux 6.14 lets \
         the system call of return probes pass; until then trace it without seccomp (for a container: \
         --security-opt seccomp=unconfined)"
    )
}

fn machine(host: &Host) -> Check {
    if host.machine == "x86_64" {
        let cpu = if host.cpu.is_empty() { String::new() } else { format!(", {}", host.cpu) };
        return Check::ok("processor", format!("x86-64, {} online{cpu}", host.cpus));
    }
    Check::bad(
        "processor",
        Level::Missing,
        format!("this is {}, and leaktrace knows the registers and stacks of x86-64 only", host.machine),
        "run it on an x86-64 host",
    )
}

fn kernel(host: &Host) -> Check {
    let release = &host.release;
    let old = host.version().is_some_and(|version| version < OLDEST);
    match host.bpf {
        BpfAccess::NoCookies => Check::bad(
            "kernel",
            Level::Missing,
            format!("Linux {release} has no attach cookies (bpf_get_attach_cookie)"),
            "use Linux 5.15 or later",
        ),
        BpfAccess::Works if old => Check::bad(
            "kernel",
            Level::Warning,
            format!("Linux {release} is older than 5.15 but has attach cookies"),
            "leaktrace is not tested with it; Linux 5.15 or later is",
        ),
        BpfAccess::Refused(_) if old => Check::bad(
            "kernel",
            Level::Missing,
            format!("Linux {release} is too old"),
            "use Linux 5.15 or later",
        ),
        _ if may_kill_filtered(host.version()) => Check::bad(
            "kernel",
            Level::Warning,
            format!(
                "Linux {release}: return probes may kill processes under a seccomp filter (6.11 to 6.13)"
            ),
            "nothing: leaktrace tries it with a process of its own first, and refuses such targets if so",
        ),
        _ => Check::ok("kernel", format!("Linux {release}")),
    }
}

fn permissions(host: &Host) -> Check {
    let missing = host.capabilities.missing(&NEEDED);
    if missing.is_empty() {
        let who = if host.user_id == 0 { "root" } else { "not root, but" };
        return Check::ok("permissions", format!("{who} with CAP_BPF and CAP_PERFMON"));
    }
    let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
    let (who, remedy) = if host.user_id == 0 {
        (
            "root, but without",
            "start it with them: a container needs `--cap-add`, a service AmbientCapabilities=",
        )
    } else {
        ("no permission: not root, and without", "run it with sudo, or give it these capabilities")
    };
    Check::bad("permissions", Level::Missing, format!("{who} {}", names.join(" and ")), remedy)
}

fn lockdown(host: &Host) -> Option<Check> {
    match host.lockdown {
        Lockdown::None => None,
        Lockdown::Integrity => Some(Check::ok("lockdown", "integrity, which does not matter here")),
        Lockdown::Confidentiality => Some(Check::bad(
            "lockdown",
            Level::Missing,
            "kernel lockdown (confidentiality) keeps programs from reading memory and tracefs",
            "boot with lockdown=integrity or lockdown=none",
        )),
    }
}

fn bpf(host: &Host) -> Check {
    let error = match host.bpf {
        BpfAccess::Works | BpfAccess::NoCookies => return Check::ok("bpf(2)", "programs can be loaded"),
        BpfAccess::Refused(error) => error,
    };
    let missing = host.capabilities.missing(&NEEDED);
    if !missing.is_empty() {
        let words = match host.unprivileged_bpf_disabled {
            _ if !missing.contains(&Capability::Bpf) => "refused: uprobe programs need CAP_PERFMON as well",
            Some(0) => "refused: without CAP_BPF only socket programs may be loaded",
            _ => "refused: without CAP_BPF nothing may be loaded (kernel.unprivileged_bpf_disabled)",
        };
        return Check::bad("bpf(2)", Level::Unknown, words, "get the permissions first");
    }
    let system_error = std::io::Error::from_raw_os_error(error);
    let (why, remedy) = match error {
        libc::ENOSYS => ("the kernel has no bpf(2)".to_owned(), "use a kernel with CONFIG_BPF_SYSCALL"),
        libc::EPERM if host.in_user_namespace => (
            "bpf(2) is refused: the capabilities of a user namespace do not count".to_owned(),
            "run it as root of the host, outside of rootless containers",
        ),
        libc::EPERM | libc::EACCES if host.is_filtered => (
            format!("bpf(2) is refused ({system_error}), probably by the seccomp filter of this container"),
            "start the container with --privileged or with a seccomp profile that allows bpf and perf_event_open",
        ),
        libc::EPERM | libc::EACCES => (
            format!("bpf(2) is refused ({system_error}) in spite of all capabilities"),
            "look for a security module (SELinux, AppArmor) that denies it: `dmesg`, `ausearch -m avc`",
        ),
        _ => (
            format!("the kernel takes no uprobe program ({system_error})"),
            "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_BPF_EVENTS and CONFIG_UPROBE_EVENTS",
        ),
    };
    Check::bad("bpf(2)", Level::Missing, why, remedy)
}

fn uprobes(host: &Host) -> Check {
    match host.uprobe_events {
        Some(true) => Check::ok("uprobes", "the kernel has them"),
        Some(false) => Check::bad(
            "uprobes",
            Level::Missing,
            "the kernel has no uprobes",
            "use a kernel with CONFIG_UPROBES and CONFIG_UPROBE_EVENTS",
        ),
        None => Check::bad("uprobes", Level::Unknown, "not known without /sys", "mount sysfs at /sys"),
    }
}

fn tracefs(host: &Host) -> Check {
    match &host.tracefs {
        Access::Mounted(place) => Check::ok("tracefs", format!("mounted at {place}")),
        Access::Private => Check::ok("tracefs", "not mounted on the host; leaktrace mounts it privately"),
        bad @ (Access::Denied(_) | Access::Unavailable(_)) => {
            let problem = bad.problem().unwrap_or_default();
            let (finding, remedy) = problem.rsplit_once(": ").unwrap_or((&problem, "run as root"));
            Check::bad("tracefs", Level::Missing, finding, remedy)
        }
    }
}

fn type_information(host: &Host) -> Check {
    match &host.type_information {
        Ok(()) => Check::ok("BTF", "the kernel's type information is there"),
        Err(error) => Check::bad(
            "BTF",
            Level::Warning,
            format!("the kernel's type information cannot be read ({error})"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF; without it the exit codes of attached processes are not known",
        ),
    }
}

fn jit(host: &Host) -> Check {
    match host.jit {
        Some(0) => Check::bad(
            "BPF JIT",
            Level::Warning,
            "off: programs are interpreted, which makes each call several times as slow",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Check::ok("BPF JIT", "on"),
        None => Check::bad("BPF JIT", Level::Unknown, "not known", "mount proc at /proc"),
    }
}

fn private_stacks(host: &Host) -> Check {
    let preemption =
        host.preemption.as_ref().map_or(String::new(), |model| format!(" (preemption: {model})"));
    match host.private_stacks {
        PrivateStacks::None => {
            Check::ok("program stacks", format!("those of the threads that programs run in{preemption}"))
        }
        PrivateStacks::TurnedOff => Check::ok(
            "program stacks",
            format!(
                "those of the threads that programs run in; this kernel's stacks by processor are turned off{preemption}"
            ),
        ),
        PrivateStacks::Forced => Check::bad(
            "program stacks",
            Level::Missing,
            format!(
                "this kernel runs uprobe programs on stacks that threads overwrite for each other{preemption}"
            ),
            "sysctl -w net.core.bpf_jit_enable=0 (slow), and report this with the kernel's release",
        ),
    }
}

fn memory(host: &Host) -> Check {
    match (host.memlock_bytes, host.version()) {
        (Some(limit), Some(version)) if version < MEMLOCK_UNUSED => Check::bad(
            "locked memory",
            Level::Warning,
            format!("limited to {limit} bytes, which this kernel counts maps against"),
            "ulimit -l unlimited (needs CAP_SYS_RESOURCE)",
        ),
        _ => Check::ok("locked memory", "no limit applies to maps"),
    }
}

fn namespaces(host: &Host) -> Check {
    if host.in_pid_namespace {
        return Check::bad(
            "pid namespace",
            Level::Missing,
            "leaktrace runs in a pid namespace of its own and cannot tell processes apart",
            "run it on the host, or in a container with the host's pid namespace (docker run --pid=host, hostPID: true)",
        );
    }
    Check::ok("pid namespace", "the host's")
}

fn cgroups(host: &Host) -> Check {
    match host.cgroups {
        Cgroups::Unified => Check::ok("cgroups", "version 2"),
        Cgroups::Hybrid => Check::ok("cgroups", "version 1 with version 2 beside it"),
        Cgroups::Legacy | Cgroups::None => Check::bad(
            "cgroups",
            Level::Warning,
            "no version 2 hierarchy is mounted: containers cannot be told apart in the kernel",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2",
        ),
    }
}

fn other_processes(host: &Host) -> Check {
    let missing = host.capabilities.missing(&[Capability::SysPtrace, Capability::CheckpointRestore]);
    let missing = if host.in_user_namespace {
        vec![Capability::SysPtrace, Capability::CheckpointRestore]
    } else {
        missing
    };
    if missing.contains(&Capability::SysPtrace) {
        return Check::bad(
            "processes",
            Level::Warning,
            "only processes of this user can be traced",
            "run it as root, or give it CAP_SYS_PTRACE",
        );
    }
    if missing.contains(&Capability::CheckpointRestore) {
        return Check::bad(
            "processes",
            Level::Warning,
            "files that were deleted or replaced while a process maps them cannot be opened",
            "run it as root, or give it CAP_CHECKPOINT_RESTORE",
        );
    }
    Check::ok("processes", "those of all users, with the files that they map")
}

#[cfg(test)]
mod tests;
