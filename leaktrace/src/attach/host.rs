//! Facts about this host and this process that decide whether leaktrace can work here, and how. Nothing is
//! judged: that is for [`super::preflight`]. What is cheap to try is tried, not derived from a version.
use std::{
    fs::{self, File},
    io::Read as _,
};

use super::{
    capabilities::Capabilities,
    hidden::Feature,
    links, minimal,
    private_stacks::PrivateStacks,
    tracefs::{Access, Tracefs},
};

/// Where the kernel's type information lies.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Read of one file at the most.
const MAX_FACT_BYTES: u64 = 64 << 10;

/// Major and minor number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl KernelVersion {
    /// From a release such as `6.1.0-18-amd64`.
    pub fn parse(release: &str) -> Option<KernelVersion> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some(KernelVersion(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// What bpf(2) answers to the smallest program that leaktrace needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfAccess {
    /// A uprobe program that reads its attach cookie can be loaded.
    Works,
    /// Uprobe programs can be loaded, but the kernel has no attach cookies (before Linux 5.15).
    NoCookies,
    /// None can be loaded: the error number.
    Refused(i32),
}

/// Kernel lockdown (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Off, or not built in.
    None,
    /// Keeps user space from changing the kernel; leaktrace does not.
    Integrity,
    /// Also keeps user space from reading kernel memory and from tracefs.
    Confidentiality,
}

/// Which control group hierarchy is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 2 alone.
    Unified,
    /// Version 1 with version 2 beside it.
    Hybrid,
    /// Version 1 alone.
    Legacy,
    /// None.
    None,
}

/// The facts.
#[derive(Clone, Debug)]
pub struct Host {
    /// Kernel release, as of uname(2).
    pub release: String,
    /// Machine, as of uname(2).
    pub machine: String,
    /// Processor model, where /proc/cpuinfo has one.
    pub cpu: String,
    /// Processors that are online.
    pub cpus: u32,
    /// Effective user id of this process.
    pub user_id: u32,
    /// Effective capabilities of this process.
    pub capabilities: Capabilities,
    /// This process is in a user namespace of its own: capabilities count for nothing outside of it.
    pub in_user_namespace: bool,
    /// This process is in a pid namespace of its own: its pids are not the kernel's.
    pub in_pid_namespace: bool,
    /// This process runs under a seccomp filter, as in most containers.
    pub is_filtered: bool,
    /// `kernel.unprivileged_bpf_disabled`: 0 lets everyone load some programs.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// Kernel lockdown.
    pub lockdown: Lockdown,
    /// What bpf(2) answers.
    pub bpf: BpfAccess,
    /// `net.core.bpf_jit_enable`: 0 interprets programs.
    pub jit: Option<u32>,
    /// What the kernel does about stacks of programs that belong to a processor.
    pub private_stacks: PrivateStacks,
    /// How kernel code is preempted, in the kernel's words, where it says so.
    pub preemption: Option<String>,
    /// Whether the kernel's type information is there, or why it cannot be read.
    pub type_information: Result<(), String>,
    /// Whether tracepoints can be looked up.
    pub tracefs: Access,
    /// Whether the kernel has uprobe events (CONFIG_UPROBE_EVENTS); unknown without sysfs.
    pub uprobe_events: Option<bool>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// RLIMIT_MEMLOCK; none when unlimited.
    pub memlock_bytes: Option<u64>,
}

impl Host {
    /// Reads the facts. Takes a few milliseconds; loads two programs of three instructions and drops them.
    pub fn read() -> Host {
        let (release, machine) = uname();
        let status = text("/proc/self/status").unwrap_or_default();
        Host {
            release,
            machine,
            cpu: cpu_model().unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
            // SAFETY: geteuid takes nothing and cannot fail.
            user_id: unsafe { libc::geteuid() },
            capabilities: Capabilities::of_status(&status),
            in_user_namespace: text("/proc/self/uid_map").is_some_and(|map| !maps_every_user(&map)),
            in_pid_namespace: field(&status, "NSpid:").is_some_and(|ids| ids.split_whitespace().count() > 1),
            is_filtered: field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
            unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            lockdown: lockdown(),
            bpf: bpf_access(),
            jit: number("/proc/sys/net/core/bpf_jit_enable"),
            private_stacks: PrivateStacks::of_kernel(),
            preemption: preemption(),
            type_information: File::open(BTF).map(drop).map_err(|error| format!("{BTF}: {error}")),
            tracefs: Tracefs::access(),
            uprobe_events: fs::exists("/sys/bus/event_source/devices")
                .is_ok_and(|exists| exists)
                .then(links::has_uprobe_events),
            cgroups: cgroups(),
            memlock_bytes: memlock_bytes(),
        }
    }

    /// The kernel's version, where its release begins with one.
    pub fn version(&self) -> Option<KernelVersion> {
        KernelVersion::parse(&self.release)
    }
}

fn text(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FACT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number(path: &str) -> Option<u32> {
    text(path)?.trim().parse().ok()
}

/// The value of a line such as `Seccomp:\t0`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn uname() -> (String, String) {
    // SAFETY: arrays of characters, for which zeros are valid.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: room for the names.
    unsafe { libc::uname(&raw mut names) };
    let word = |name: &[libc::c_char]| -> String {
        let bytes: Vec<u8> = name.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (word(&names.release), word(&names.machine))
}

fn cpu_model() -> Option<String> {
    let info = text("/proc/cpuinfo")?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The model in use is the one in parentheses (`none voluntary (full) lazy`); where debugfs is not mounted, what the
/// kernel was built with stands in its version.
fn preemption() -> Option<String> {
    let models = text("/sys/kernel/debug/sched/preempt").unwrap_or_default();
    if let Some((model, _)) = models.split_once('(').and_then(|(_, rest)| rest.split_once(')')) {
        return Some(model.to_owned());
    }
    let version = text("/proc/sys/kernel/version")?;
    let built = version.split_whitespace().find(|word| word.starts_with("PREEMPT"))?;
    Some(built.to_owned())
}

/// `/proc/self/uid_map` of the first user namespace: all 2³² − 1 users, as themselves.
fn maps_every_user(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The chosen level is the one in brackets.
fn lockdown() -> Lockdown {
    let levels = text("/sys/kernel/security/lockdown").unwrap_or_default();
    if levels.contains("[confidentiality]") {
        Lockdown::Confidentiality
    } else if levels.contains("[integrity]") {
        Lockdown::Integrity
    } else {
        Lockdown::None
    }
}

fn bpf_access() -> BpfAccess {
    match (minimal::cookie_reader(), minimal::constant(0, 0)) {
        (Ok(_), _) if Feature::Cookies.is_hidden() => BpfAccess::NoCookies,
        (Ok(_), _) => BpfAccess::Works,
        (Err(_), Ok(_)) => BpfAccess::NoCookies,
        (Err(_), Err(error)) => BpfAccess::Refused(error.raw_os_error().unwrap_or(libc::EPERM)),
    }
}

fn cgroups() -> Cgroups {
    let mounts = text("/proc/self/mounts").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    match (has("cgroup2"), has("cgroup")) {
        (true, false) => Cgroups::Unified,
        (true, true) => Cgroups::Hybrid,
        (false, true) => Cgroups::Legacy,
        (false, false) => Cgroups::None,
    }
}

fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for a limit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_two_numbers_of_the_release() {
        assert_eq!(KernelVersion::parse("6.1.0-18-amd64"), Some(KernelVersion(6, 1)));
        assert_eq!(KernelVersion::parse("5.14.0-503.el9.x86_64"), Some(KernelVersion(5, 14)));
        assert_eq!(KernelVersion::parse("6.18-rc1"), Some(KernelVersion(6, 18)));
        assert_eq!(KernelVersion::parse("linux"), None);
        assert!(KernelVersion(5, 15) < KernelVersion(6, 1) && KernelVersion(6, 9) < KernelVersion(6, 11));
    }

    #[test]
    fn this_host_has_a_kernel_and_a_machine() {
        let host = Host::read();
        assert!(host.version().is_some() && !host.machine.is_empty() && host.cpus > 0);
    }

    #[test]
    fn only_the_first_user_namespace_maps_every_user() {
        assert!(maps_every_user("         0          0 4294967295\n"));
        assert!(!maps_every_user("         0       1000          1\n"));
        assert!(!maps_every_user(""));
    }

    #[test]
    fn a_field_of_status_is_found_by_its_whole_name() {
        let status = "Seccomp_filters:\t3\nSeccomp:\t2\nNSpid:\t7\t1\n";
        assert_eq!(field(status, "Seccomp:"), Some("2"));
        assert_eq!(field(status, "NSpid:"), Some("7\t1"));
        assert_eq!(field(status, "CapEff:"), None);
    }
}
