//! The tracepoints of process life, of mapping system calls and of processes that standing orders wait for.
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use leaktrace_common::event::MOVED_PID;

use super::{
    object::KernelObject,
    sys::{self, PerfEventAttr},
    tracefs::Tracefs,
};

const PERF_TYPE_TRACEPOINT: u32 = 2;

/// Category, tracepoint and program of process life.
const LIFE: [(&str, &str, &str); 3] = [
    ("task", "task_newtask", "process_fork"),
    ("sched", "sched_process_exec", "process_exec"),
    ("sched", "sched_process_exit", "thread_exit"),
];

/// Category, tracepoint and program of mappings.
const MAPPINGS: [(&str, &str, &str); 6] = [
    ("syscalls", "sys_exit_mmap", "mmap_exit"),
    ("syscalls", "sys_enter_munmap", "munmap_enter"),
    ("syscalls", "sys_exit_munmap", "munmap_exit"),
    ("syscalls", "sys_enter_mremap", "mremap_enter"),
    ("syscalls", "sys_exit_mremap", "mremap_exit"),
    ("syscalls", "sys_exit_brk", "brk_exit"),
];

/// Category, tracepoint and program of death by lack of memory.
const OUT_OF_MEMORY: [(&str, &str, &str); 1] = [("oom", "mark_victim", "oom_victim")];

/// Attached tracepoints; dropping them detaches.
pub struct Tracepoints {
    _links: Vec<OwnedFd>,
}

impl Tracepoints {
    /// Attaches those of process life.
    ///
    /// # Errors
    /// When one of them is missing: leaktrace cannot work without.
    pub fn life(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        attach(kernel, tracefs, &LIFE)
    }

    /// Attaches those of mappings. While they are attached, every system call of every process takes the
    /// kernel's slow path (about 50 ns more).
    ///
    /// # Errors
    /// When the kernel has no system call tracepoints (CONFIG_FTRACE_SYSCALLS).
    pub fn mappings(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        attach(kernel, tracefs, &MAPPINGS)
    }

    /// Attaches the one that tells which process is killed because memory has run out.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn out_of_memory(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        attach(kernel, tracefs, &OUT_OF_MEMORY)
    }

    /// Attaches those that tell of processes which a standing order may mean: when one executes a program, is moved to
    /// another control group, gives itself another name.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn orders(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        let pid = tracefs.field_offset("cgroup", "cgroup_attach_task", "pid")?;
        ensure!(
            MOVED_PID.contains(&pid),
            "tracepoint cgroup:cgroup_attach_task of this kernel has an unknown layout"
        );
        let mut links = Vec::new();
        links.extend(attach_each(kernel, tracefs, ("sched", "sched_process_exec", "order_exec"), 0)?);
        links.extend(attach_each(kernel, tracefs, ("task", "task_rename", "order_renamed"), 0)?);
        links.extend(attach_each(kernel, tracefs, ("cgroup", "cgroup_attach_task", "order_moved"), pid)?);
        Ok(Tracepoints { _links: links })
    }
}

fn attach(kernel: &KernelObject, tracefs: &Tracefs, points: &[(&str, &str, &str)]) -> Result<Tracepoints> {
    let mut links = Vec::with_capacity(2 * points.len());
    for point in points {
        links.extend(attach_each(kernel, tracefs, *point, 0)?);
    }
    Ok(Tracepoints { _links: links })
}

fn attach_each(
    kernel: &KernelObject,
    tracefs: &Tracefs,
    (category, name, program): (&str, &str, &str),
    cookie: u64,
) -> Result<[OwnedFd; 2]> {
    let id = tracefs.tracepoint_id(category, name)?;
    let mut attr = PerfEventAttr { kind: PERF_TYPE_TRACEPOINT, config: id, ..PerfEventAttr::default() };
    let event = sys::perf_event_open(&mut attr, -1, 0)
        .with_context(|| format!("opening tracepoint {category}:{name}"))?;
    let program = kernel.load_program(program, 0)?;
    let link = sys::link_perf_event(program.as_fd(), event.as_fd(), cookie)
        .with_context(|| format!("attaching to tracepoint {category}:{name}"))?;
    Ok([link, event])
}
