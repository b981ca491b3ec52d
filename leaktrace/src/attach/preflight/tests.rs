use super::*;
use crate::attach::{capabilities::Capabilities, private_stacks::PrivateStacks};

fn good() -> Host {
    Host {
        release: "6.18.1".to_owned(),
        machine: "x86_64".to_owned(),
        cpu: "A Processor".to_owned(),
        cpus: 2,
        user_id: 0,
        capabilities: Capabilities::default()
            .with(Capability::SysAdmin)
            .with(Capability::SysPtrace)
            .with(Capability::DacOverride),
        in_user_namespace: false,
        in_pid_namespace: false,
        is_filtered: false,
        unprivileged_bpf_disabled: Some(2),
        lockdown: Lockdown::None,
        bpf: BpfAccess::Works,
        jit: Some(1),
        private_stacks: PrivateStacks::TurnedOff,
        preemption: Some("full".to_owned()),
        type_information: Ok(()),
        tracefs: Access::Mounted("/sys/kernel/tracing"),
        uprobe_events: Some(true),
        cgroups: Cgroups::Unified,
        memlock_bytes: Some(8 << 20),
    }
}

fn said(host: &Host) -> String {
    demand(host).unwrap_err().to_string()
}

fn of(host: &Host, topic: &str) -> Check {
    checks(host).into_iter().find(|check| check.topic == topic).unwrap()
}

#[test]
fn a_good_host_passes_every_check() {
    assert!(checks(&good()).iter().all(|check| check.level == Level::Ok && check.remedy.is_none()));
    assert!(demand(&good()).is_ok());
}

#[test]
fn each_missing_capability_is_named_and_no_other() {
    let without = |bits: &[Capability]| Host {
        capabilities: bits.iter().fold(Capabilities::default(), |set, bit| set.with(*bit)),
        bpf: BpfAccess::Refused(libc::EPERM),
        ..good()
    };
    let message = said(&without(&[Capability::Perfmon, Capability::SysPtrace]));
    assert!(message.contains("CAP_BPF") && !message.contains("CAP_PERFMON"), "{message}");
    let message = said(&without(&[Capability::Bpf, Capability::SysPtrace]));
    assert!(message.contains("CAP_PERFMON") && !message.contains("CAP_BPF"), "{message}");
    let message = said(&Host { user_id: 1000, ..without(&[]) });
    assert!(message.contains("CAP_BPF and CAP_PERFMON") && message.contains("sudo"), "{message}");
    assert!(!message.contains('\n') && !message.contains("more:"), "one cause, one line: {message}");
}

#[test]
fn a_refusal_in_spite_of_all_capabilities_is_explained_by_what_is_known() {
    let refused = Host { bpf: BpfAccess::Refused(libc::EPERM), ..good() };
    assert!(said(&Host { in_user_namespace: true, ..refused.clone() }).contains("user namespace"));
    assert!(said(&Host { is_filtered: true, ..refused.clone() }).contains("seccomp"));
    assert!(said(&refused).contains("security module"));
    assert!(said(&Host { bpf: BpfAccess::Refused(libc::ENOSYS), ..good() }).contains("CONFIG_BPF_SYSCALL"));
    let locked = Host { lockdown: Lockdown::Confidentiality, ..refused };
    assert!(said(&locked).contains("lockdown"));
}

#[test]
fn a_kernel_is_too_old_by_what_it_lacks_not_by_its_number() {
    let old = Host { release: "5.10.0".to_owned(), bpf: BpfAccess::NoCookies, ..good() };
    assert!(said(&old).contains("5.10.0") && said(&old).contains("5.15 or later"));
    let enterprise = Host { release: "5.14.0-503.el9".to_owned(), ..good() };
    assert!(demand(&enterprise).is_ok());
    assert_eq!(of(&enterprise, "kernel").level, Level::Warning);
}

#[test]
fn what_else_can_be_missing_says_what_to_do() {
    let machine = Host { machine: "aarch64".to_owned(), ..good() };
    assert!(said(&machine).contains("aarch64"));
    let uprobes = Host { uprobe_events: Some(false), ..good() };
    assert!(said(&uprobes).contains("CONFIG_UPROBES"));
    let tracefs = Host { tracefs: Access::Unavailable("Operation not permitted".to_owned()), ..good() };
    assert!(said(&tracefs).contains("mount -t tracefs"));
    let tracefs = Host { tracefs: Access::Denied("/sys/kernel/tracing"), ..good() };
    assert!(said(&tracefs).contains("CAP_DAC_READ_SEARCH"));
    assert!(said(&Host { in_pid_namespace: true, ..good() }).contains("--pid=host"));
}

#[test]
fn drawbacks_do_not_keep_from_tracing() {
    let host = Host {
        type_information: Err("No such file or directory".to_owned()),
        jit: Some(0),
        cgroups: Cgroups::Legacy,
        capabilities: Capabilities::default().with(Capability::Bpf).with(Capability::Perfmon),
        ..good()
    };
    assert!(demand(&host).is_ok());
    for topic in ["BTF", "BPF JIT", "cgroups", "processes"] {
        assert_eq!(of(&host, topic).level, Level::Warning, "{topic}");
    }
    assert!(of(&host, "processes").remedy.unwrap().contains("CAP_SYS_PTRACE"));
}

#[test]
fn locked_memory_matters_before_5_11_only() {
    assert_eq!(of(&good(), "locked memory").level, Level::Ok);
    let old = Host { release: "5.10.0".to_owned(), ..good() };
    assert_eq!(of(&old, "locked memory").level, Level::Warning);
}

#[test]
fn return_probes_are_suspect_on_three_kernels() {
    for (release, suspect) in [
        ("6.10.9", false),
        ("6.11.0", true),
        ("6.12.48+deb13", true),
        ("6.13.7", true),
        ("6.14", false),
        ("7", false),
    ] {
        assert_eq!(may_kill_filtered(KernelVersion::parse(release)), suspect, "{release}");
    }
}
