//! What `doctor` prints of made-up hosts and processes, compared with files in `tests/golden`. `LEAKTRACE_BLESS=1
//! cargo test -p leaktrace --test golden_doctor` rewrites them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod golden_file;

use golden_file::compare;
use leaktrace::{
    attach::{
        capabilities::{Capabilities, Capability},
        host::{BpfAccess, Cgroups, Host, Lockdown},
        preflight,
        private_stacks::PrivateStacks,
        tracefs::Access,
    },
    export,
    model::diagnosis::{
        AllocatorDiagnosis, CostRow, CostTable, Diagnosis, FileDiagnosis, HookDiagnosis, Limit,
        LinkDiagnosis, ProcessDiagnosis, TableDiagnosis,
    },
    render::{self, text::Style},
};

fn good_host() -> Host {
    Host {
        release: "6.12.48+deb13-amd64".to_owned(),
        machine: "x86_64".to_owned(),
        cpu: "A Processor @ 3.00GHz".to_owned(),
        cpus: 8,
        user_id: 0,
        capabilities: Capabilities::default()
            .with(Capability::SysAdmin)
            .with(Capability::SysPtrace)
            .with(Capability::DacOverride),
        in_user_namespace: false,
        in_pid_namespace: false,
        is_filtered: false,
        unprivileged_bpf_disabled: Some(2),
        lockdown: Lockdown::Integrity,
        bpf: BpfAccess::Works,
        jit: Some(0),
        private_stacks: PrivateStacks::TurnedOff,
        preemption: Some("full".to_owned()),
        type_information: Ok(()),
        tracefs: Access::Private,
        uprobe_events: Some(true),
        cgroups: Cgroups::Unified,
        memlock_bytes: Some(8 << 20),
    }
}

fn poor_host() -> Host {
    Host {
        release: "5.10.0-30-amd64".to_owned(),
        user_id: 1000,
        capabilities: Capabilities::default().with(Capability::Bpf),
        bpf: BpfAccess::Refused(libc::EPERM),
        lockdown: Lockdown::None,
        type_information: Err("/sys/kernel/btf/vmlinux: No such file or directory (os error 2)".to_owned()),
        tracefs: Access::Denied("/sys/kernel/tracing"),
        uprobe_events: None,
        cgroups: Cgroups::Legacy,
        jit: None,
        ..good_host()
    }
}

fn costs() -> CostTable {
    let row = |what, ns, how| CostRow { what, ns, how };
    CostTable {
        link: "multi",
        took_ns: 81_000_000,
        rows: vec![
            row("push", Some(571), "emulated"),
            row("endbr64", Some(12_345), "single-stepped"),
            row("nop of several bytes", None, "the kernel takes no probe here"),
            row("return probe", Some(280), "on top of the entry"),
        ],
    }
}

fn hooks() -> Vec<HookDiagnosis> {
    let malloc = HookDiagnosis {
        function: "malloc".to_owned(),
        action: "allocates",
        file_offset: 0x9_8f10,
        instruction: "push [41 54]".to_owned(),
        emulated: true,
        link: "multi",
        with_return: true,
        expected_ns: Some(851),
        ..HookDiagnosis::default()
    };
    let free = HookDiagnosis {
        function: "free".to_owned(),
        action: "frees",
        file_offset: 0x9_9679,
        instruction_offset: 9,
        instruction: "push [55]".to_owned(),
        skips_null: true,
        with_return: false,
        expected_ns: Some(571),
        ..malloc.clone()
    };
    let new = HookDiagnosis {
        function: "_Znwm".to_owned(),
        instruction: "test [48 85 ff]".to_owned(),
        emulated: false,
        with_return: false,
        exits: 3,
        expected_ns: None,
        ..malloc.clone()
    };
    vec![malloc, free, new]
}

fn shop() -> ProcessDiagnosis {
    let library = FileDiagnosis {
        path: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
        deleted: true,
        build_id: Some("93ac61ec5a8eb1396f9fbd350e3169a558528a40".to_owned()),
        symbols: vec!["separate .symtab", ".dynsym"],
        debug_info: Some("separate"),
        table: TableDiagnosis {
            sources: vec![".eh_frame", "signal return code"],
            functions: 3713,
            rows: 28_401,
            rules: 355,
            bytes: 113_700,
            took_ns: 50_000_000,
            unsupported_rows: 5,
            lost: 2,
            problem: Some("its .debug_frame is compressed".to_owned()),
        },
        ..FileDiagnosis::default()
    };
    let stripped = FileDiagnosis { path: "/opt/plug\u{1b}[2Jin.so".to_owned(), ..FileDiagnosis::default() };
    let unreadable = FileDiagnosis {
        path: "/opt/gone.so".to_owned(),
        problem: Some("it cannot be opened".to_owned()),
        ..FileDiagnosis::default()
    };
    ProcessDiagnosis {
        pid: 1234,
        comm: "shop\u{1b}[31m".to_owned(),
        cmdline: "/usr/bin/shop --port 80".to_owned(),
        executable: Some("/usr/bin/shop".to_owned()),
        start_time: 1_763_639_900_500_000_000,
        user_id: 33,
        seccomp: "filter",
        inner_pid: Some(1),
        rss_bytes: 40_000_000,
        heap_bytes: Some(5_000_000),
        allocators: vec![AllocatorDiagnosis {
            name: "glibc".to_owned(),
            file: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
            deleted: true,
            hooks: hooks(),
            failed: vec![("pvalloc".to_owned(), "its end is not known".to_owned())],
            left_out: vec!["reallocarray".to_owned()],
        }],
        files: vec![library, stripped, unreadable],
        generated_code_bytes: 3 << 20,
        notes: vec!["/opt/gone.so: cannot be read: No such file or directory".to_owned()],
        ..ProcessDiagnosis::default()
    }
}

fn example(host: &Host, processes: Vec<ProcessDiagnosis>) -> Diagnosis {
    let tried = host.bpf == BpfAccess::Works;
    let link = |name, available: bool, used: bool| LinkDiagnosis {
        name,
        available: tried.then_some(available),
        used: used && tried,
    };
    Diagnosis {
        time: 1_763_640_000_123_456_789,
        host: "web-1".to_owned(),
        checks: preflight::checks(host),
        links: vec![link("session", false, false), link("multi", true, true), link("perf", true, false)],
        costs: if tried { Ok(costs()) } else { Err("no program can be loaded".to_owned()) },
        limits: vec![
            Limit { what: "processes at once", value: 256, option: None },
            Limit { what: "live blocks of each process", value: 1_000_000, option: Some("--max-blocks") },
        ],
        processes,
    }
}

fn kernel_thread() -> ProcessDiagnosis {
    ProcessDiagnosis {
        pid: 2,
        refused: Some("2 is a kernel thread, which has no heap: give the pid of a user process".to_owned()),
        seccomp: "none",
        ..ProcessDiagnosis::default()
    }
}

#[test]
fn the_text_is_as_reviewed() {
    let style = Style::default();
    let good = example(&good_host(), vec![shop(), kernel_thread()]);
    compare("doctor.txt", &render::doctor::diagnosis(&good, style));
    let poor = example(&poor_host(), Vec::new());
    compare("doctor-missing.txt", &render::doctor::diagnosis(&poor, Style { color: true, ..style }));
}

#[test]
fn the_json_schema_is_as_reviewed() {
    let line = export::doctor::diagnosis(&example(&good_host(), vec![shop(), kernel_thread()]));
    assert_eq!(line.matches('\n').count(), 1);
    compare("doctor.json", &line);
}

#[test]
fn it_works_only_when_nothing_is_missing_and_every_process_can_be_traced() {
    assert!(example(&good_host(), vec![shop()]).works());
    assert!(!example(&good_host(), vec![shop(), kernel_thread()]).works());
    assert!(!example(&poor_host(), Vec::new()).works());
}

#[test]
fn no_name_from_a_process_reaches_the_terminal_unescaped() {
    let text = render::doctor::diagnosis(&example(&good_host(), vec![shop()]), Style::default());
    assert!(!text.contains('\u{1b}'), "{text}");
}
