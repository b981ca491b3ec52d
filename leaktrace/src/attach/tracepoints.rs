//! The tracepoints of process life and of mapping system calls.
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};

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
}

fn attach(kernel: &KernelObject, tracefs: &Tracefs, points: &[(&str, &str, &str)]) -> Result<Tracepoints> {
    let mut links = Vec::with_capacity(2 * points.len());
    for (category, name, program) in points {
        let id = tracefs.tracepoint_id(category, name)?;
        let mut attr = PerfEventAttr { kind: PERF_TYPE_TRACEPOINT, config: id, ..PerfEventAttr::default() };
        let event = sys::perf_event_open(&mut attr, -1, 0)
            .with_context(|| format!("opening tracepoint {category}:{name}"))?;
        let program = kernel.load_program(program, 0)?;
        let link = sys::link_perf_event(program.as_fd(), event.as_fd(), 0)
            .with_context(|| format!("attaching to tracepoint {category}:{name}"))?;
        links.extend([link, event]);
    }
    Ok(Tracepoints { _links: links })
}
