//! The tracepoints of process life, of mapping system calls and of processes that standing orders wait for.
use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CStr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_common::event::{Change, MOVED_PID, SIGNAL_FIELDS};

use super::{
    host::KernelVersion,
    links::close_together,
    object::KernelObject,
    sys::{self, PerfEventAttr},
    tracefs::Tracefs,
};

const PERF_TYPE_TRACEPOINT: u32 = 2;

/// A tracepoint's category and name, the program that goes there, and the cookie that tells it where it is.
type Point = (&'static str, &'static str, &'static str, u64);

/// Process life.
const LIFE: [Point; 3] = [
    ("task", "task_newtask", "process_fork", 0),
    ("sched", "sched_process_exec", "process_exec", 0),
    ("sched", "sched_process_exit", "thread_exit", 0),
];

/// A raw tracepoint's name, and the program that goes there.
type RawPoint = (&'static CStr, &'static str);

/// Process life, where the kernel's type information says where a task has its id.
const RAW_LIFE: [RawPoint; 3] =
    [(c"task_newtask", "raw_fork"), (c"sched_process_exec", "raw_exec"), (c"sched_process_exit", "raw_exit")];

/// Mappings, before Linux 7.0.
const RAW_MAPPINGS: [RawPoint; 2] = [(c"sys_enter", "system_call_enter"), (c"sys_exit", "system_call_exit")];

/// Mappings, from Linux 7.0 on.
const MAPPINGS: [Point; 6] = [
    ("syscalls", "sys_exit_mmap", "change_exit", Change::Map as u64),
    ("syscalls", "sys_enter_munmap", "munmap_enter", 0),
    ("syscalls", "sys_exit_munmap", "munmap_exit", 0),
    ("syscalls", "sys_enter_mremap", "mremap_enter", 0),
    ("syscalls", "sys_exit_mremap", "change_exit", Change::Remapped as u64),
    ("syscalls", "sys_exit_brk", "change_exit", Change::Break as u64),
];

/// The first kernel on which a task can be preempted at the raw tracepoints of system calls, so that programs there are
/// passed over. Nothing that could be tried tells.
const RAW_IS_PREEMPTED: KernelVersion = KernelVersion(7, 0);

/// Death by lack of memory.
const OUT_OF_MEMORY: [Point; 1] = [("oom", "mark_victim", "oom_victim", 0)];

/// Death by a signal that a probe may have caused.
const SIGNALS: [Point; 1] = [("signal", "signal_deliver", "signal_delivered", 0)];

/// Attached tracepoints; dropping them detaches.
pub struct Tracepoints {
    links: Vec<OwnedFd>,
    /// The programs, to ask how often the kernel passed them over.
    programs: Vec<OwnedFd>,
    /// What they are passed over at is a loss.
    counts_misses: bool,
}

impl Drop for Tracepoints {
    /// Each waits for two grace periods, so they are closed side by side.
    fn drop(&mut self) {
        close_together(std::mem::take(&mut self.links));
    }
}

impl Tracepoints {
    fn counting_misses(mut self) -> Tracepoints {
        self.counts_misses = true;
        self
    }

    /// Calls of which nothing is known because the kernel passed over the program, of this process or another; 0 where it
    /// does not say (before Linux 6.7).
    pub fn missed(&self) -> u64 {
        if !self.counts_misses {
            return 0;
        }
        let missed =
            |program: &OwnedFd| sys::program_info(program.as_fd()).map_or(0, |info| info.recursion_misses);
        self.programs.iter().map(missed).sum()
    }

    /// Attaches those of process life.
    ///
    /// # Errors
    /// When one of them is missing: leaktrace cannot work without.
    pub fn life(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        if kernel.knows_exit_status() {
            attach_raw(kernel, &RAW_LIFE)
        } else {
            attach(kernel, tracefs, &LIFE)
        }
    }

    /// Attaches those of mappings. While they are attached, every system call of every process takes the
    /// kernel's slow path (about 50 ns more).
    ///
    /// # Errors
    /// When the kernel has no system call tracepoints (CONFIG_FTRACE_SYSCALLS).
    pub fn mappings(
        kernel: &KernelObject,
        tracefs: &Tracefs,
        version: Option<KernelVersion>,
    ) -> Result<Tracepoints> {
        if version.is_some_and(|version| version >= RAW_IS_PREEMPTED) {
            attach(kernel, tracefs, &MAPPINGS).map(Tracepoints::counting_misses)
        } else {
            attach_raw(kernel, &RAW_MAPPINGS)
        }
    }

    /// Attaches the one that tells which process is killed because memory has run out.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn out_of_memory(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        attach(kernel, tracefs, &OUT_OF_MEMORY)
    }

    /// Attaches the one that tells where a process took a signal which ends it.
    ///
    /// # Errors
    /// When the kernel does not have it, or its record has another layout.
    pub fn signals(kernel: &KernelObject, tracefs: &Tracefs) -> Result<Tracepoints> {
        for (field, offset) in SIGNAL_FIELDS {
            ensure!(
                tracefs.field_offset("signal", "signal_deliver", field)? == offset,
                "tracepoint signal:signal_deliver of this kernel has an unknown layout"
            );
        }
        attach(kernel, tracefs, &SIGNALS)
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
        let points = [
            ("sched", "sched_process_exec", "order_exec", 0),
            ("task", "task_rename", "order_renamed", 0),
            ("cgroup", "cgroup_attach_task", "order_moved", pid),
        ];
        attach(kernel, tracefs, &points)
    }
}

fn attach_raw(kernel: &KernelObject, points: &[RawPoint]) -> Result<Tracepoints> {
    let mut links = Vec::with_capacity(points.len());
    let mut programs = Vec::with_capacity(points.len());
    for (name, program) in points {
        let program = kernel.load_program(program, 0)?;
        let link = sys::link_raw_tracepoint(program.as_fd(), name)
            .with_context(|| format!("attaching to raw tracepoint {}", name.to_string_lossy()))?;
        links.push(link);
        programs.push(program);
    }
    Ok(Tracepoints { links, programs, counts_misses: false })
}

fn attach(kernel: &KernelObject, tracefs: &Tracefs, points: &[Point]) -> Result<Tracepoints> {
    let mut programs: HashMap<&str, OwnedFd> = HashMap::new();
    let mut links = Vec::with_capacity(2 * points.len());
    for (category, name, program, cookie) in points {
        let id = tracefs.tracepoint_id(category, name)?;
        let mut attr = PerfEventAttr { kind: PERF_TYPE_TRACEPOINT, config: id, ..PerfEventAttr::default() };
        let event = sys::perf_event_open(&mut attr, -1, 0)
            .with_context(|| format!("opening tracepoint {category}:{name}"))?;
        let program = match programs.entry(program) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(kernel.load_program(program, 0)?),
        };
        let link = sys::link_perf_event(program.as_fd(), event.as_fd(), *cookie)
            .with_context(|| format!("attaching to tracepoint {category}:{name}"))?;
        links.extend([link, event]);
    }
    Ok(Tracepoints { links, programs: programs.into_values().collect(), counts_misses: false })
}
