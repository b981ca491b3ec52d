//! Process life: fork, exec, exit, death by lack of memory and by signals that probes can cause, as events; thread entries go with their thread.
use aya_ebpf::{
    EbpfContext, Global,
    helpers::{bpf_probe_read_kernel, generated::bpf_get_current_task},
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use leaktrace_common::{
    counter::Counter,
    event::{FatalSignal, Header, Kind, Life, SIGNAL_FIELDS},
    hook::slot_of_table,
    target::{NO_SLOT, Process, Target, flags},
};

use crate::{
    count::count,
    maps::{EVENTS, PROCESS_MAPS, PROCESSES, SPARE_TABLES, TARGETS},
    own_stack,
    registers::Registers,
    site, target, thread,
};

/// Offset of `pid` in the `task:task_newtask` record (Linux 3.5 and later).
const NEWTASK_PID: usize = 8;
/// Offset of `clone_flags` in that record.
const NEWTASK_CLONE_FLAGS: usize = 32;
/// Offset of `old_pid` in the `sched:sched_process_exec` record (Linux 3.4 and later): the thread's id before.
const EXEC_OLD_TID: usize = 16;
/// Offset of `pid` in the `oom:mark_victim` record (Linux 4.14 and later).
const MARK_VICTIM_PID: usize = 8;
/// linux/sched.h: the new task shares its maker's memory.
const CLONE_VM: u64 = 0x0000_0100;
/// linux/sched.h: the new task is a thread.
const CLONE_THREAD: u64 = 0x0001_0000;
/// Signals by which breakpoints end a program (asm/signal.h).
const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGSEGV: i32 = 11;
/// linux/sched/signal.h: the group's exit code is valid.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// Offsets of kernel structure members, from the kernel's BTF; 0 where it has none.
#[unsafe(no_mangle)]
static TASK_EXIT_CODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_GROUP_EXIT_CODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_FLAGS: Global<u32> = Global::new(0);

// Each of the three comes twice: at a raw tracepoint, and for kernels without type information at the other kind, which
// the kernel passes over while any task on the processor is inside bpf(2).

/// A task was made: the task, its flags.
#[raw_tracepoint]
fn raw_fork(context: RawTracePointContext) -> i32 {
    own_stack::keep();
    let child = read_kernel(argument(&context, 0), TASK_PID.load());
    forked(&context, child, Some(argument(&context, 1)));
    0
}

#[tracepoint]
fn process_fork(context: TracePointContext) -> u32 {
    own_stack::keep();
    // SAFETY: the record's layout is part of the tracepoint.
    let (child, clone_flags) =
        unsafe { (context.read_at::<u32>(NEWTASK_PID), context.read_at::<u64>(NEWTASK_CLONE_FLAGS)) };
    forked(&context, child.ok(), clone_flags.ok());
    0
}

#[inline(always)]
fn forked<C: EbpfContext>(context: &C, child: Option<u32>, clone_flags: Option<u64>) {
    let Some((tid, tgid, target)) = traced() else { return };
    if target.flags & flags::FOLLOW == 0 {
        return;
    }
    let (Some(child), Some(clone_flags)) = (child, clone_flags) else {
        count(&target, Counter::EventsDropped);
        return;
    };
    if clone_flags & CLONE_THREAD == 0 {
        debug!(context, "process {} makes process {} with flags {:x}", tgid, child, clone_flags);
        adopt(child, &target, clone_flags & CLONE_VM != 0);
        let header = header(Kind::Fork, tid, tgid, &target);
        send(&target, Life { header, child, status: 0, clone_flags });
    }
}

/// An argument of a raw tracepoint.
#[inline(always)]
fn argument(context: &RawTracePointContext, position: usize) -> u64 {
    // SAFETY: the callers ask for arguments that the tracepoint has.
    unsafe { core::ptr::read_volatile(context.as_ptr().cast::<u64>().add(position)) }
}

/// Makes the child of a traced process a target before it runs.
fn adopt(child: u32, parent: &Target, shares_memory: bool) {
    if shares_memory {
        let process = Process { table: parent.table, generation: parent.generation };
        let _ = PROCESSES.insert(child, process, 0);
    } else if let Ok(Some(table)) = SPARE_TABLES.pop() {
        settle(child, Target { generation: 0, ..*parent }, table);
    }
}

/// Gives the process `tgid` a target of its own, which is `like` its parent's; the slot of its mapping table stays the
/// parent's. `None` when there is no room.
fn settle(tgid: u32, like: Target, table: u32) -> Option<*mut Target> {
    let entry = TARGETS.get_ptr_mut(slot_of_table(table))?;
    let flags = like.flags | flags::SHARED_SLOT;
    // SAFETY: an entry that nothing refers to until the process is in PROCESSES.
    unsafe { *entry = Target { owner: tgid, flags, table, bigger: 0, ..like } };
    if PROCESSES.insert(tgid, Process { table, generation: like.generation }, 0).is_err() {
        let _ = SPARE_TABLES.push(table, 0);
        return None;
    }
    Some(entry)
}

/// Another program was executed: the task, the id that its thread had before.
#[raw_tracepoint]
fn raw_exec(context: RawTracePointContext) -> i32 {
    own_stack::keep();
    executed(&context, Some(argument(&context, 1) as u32));
    0
}

#[tracepoint]
fn process_exec(context: TracePointContext) -> u32 {
    own_stack::keep();
    // SAFETY: the record's layout is part of the tracepoint.
    let old_tid = unsafe { context.read_at::<u32>(EXEC_OLD_TID) };
    executed(&context, old_tid.ok());
    0
}

#[inline(always)]
fn executed<C: EbpfContext>(context: &C, old_tid: Option<u32>) {
    let Some((tid, tgid, before)) = traced() else { return };
    debug!(context, "process {} executes another program", tgid);
    // The thread that executes it takes over the id of the process's first one, which has ended.
    let old_tid = old_tid.unwrap_or(tid);
    if let Some(state) = thread::existing(old_tid) {
        // SAFETY: the entry belongs to the current thread.
        let state = unsafe { &mut *state };
        state.call.slot = 0;
        state.passed.slot = 0;
        state.freed_address = 0;
        site::forget_thread(&before, state);
    }
    let other_tid = if old_tid == tid { 0 } else { old_tid };
    if other_tid != 0 {
        thread::drop_entry(other_tid);
    }
    let entry = if before.owner == tgid {
        TARGETS.get_ptr_mut(slot_of_table(before.table))
    } else {
        // A vfork child leaves its parent's memory.
        SPARE_TABLES.pop().ok().flatten().and_then(|table| settle(tgid, before, table))
    };
    let Some(entry) = entry else {
        let _ = PROCESSES.remove(tgid);
        let after = Target { generation: before.generation.wrapping_add(1), ..before };
        let header = header(Kind::Exec, tid, tgid, &after);
        send(&before, Life { header, child: other_tid, status: 0, clone_flags: 0 });
        return;
    };
    // SAFETY: the value stays; only this thread is left in the process. Of what is written here user space writes only
    // the slot, and it does so again when it learns of the exec.
    let target = unsafe { &mut *entry };
    target.generation = target.generation.wrapping_add(1);
    if target.flags & flags::SHARED_SLOT != 0 {
        target.slot = NO_SLOT;
    }
    if target.slot != NO_SLOT
        && let Some(process) = PROCESS_MAPS.get_ptr_mut(target.slot)
    {
        // SAFETY: a field of a map value that stays.
        unsafe { (*process).loading = 1 };
    }
    let header = header(Kind::Exec, tid, tgid, target);
    send(target, Life { header, child: other_tid, status: 0, clone_flags: 0 });
}

/// A thread ends.
#[raw_tracepoint]
fn raw_exit(_: RawTracePointContext) -> i32 {
    own_stack::keep();
    ended();
    0
}

#[tracepoint]
fn thread_exit(_: TracePointContext) -> u32 {
    own_stack::keep();
    ended();
    0
}

#[inline(always)]
fn ended() {
    let Some((tid, tgid, target)) = traced() else {
        // It may have been, or have shared the memory of a target.
        let (tid, tgid) = thread::current();
        thread::drop_entry(tid);
        forget_orphan(tid, tgid);
        return;
    };
    if let Some(state) = thread::existing(tid) {
        // SAFETY: the entry belongs to the current thread.
        let state = unsafe { &mut *state };
        if state.call.slot != 0 {
            count(&target, Counter::LostReturns);
        }
        site::forget_thread(&target, state);
        thread::drop_entry(tid);
    }
    if let Some(status) = process_status(tid == tgid) {
        if target.owner != tgid {
            // A vfork child that ends without exec: what it did counts for its parent.
            let _ = PROCESSES.remove(tgid);
            return;
        }
        let header = header(Kind::Exit, tid, tgid, &target);
        send(&target, Life { header, child: 0, status, clone_flags: 0 });
    }
}

/// A process that shared the memory of a target which has gone, or has executed another program, ends: it was not
/// traced any more.
fn forget_orphan(tid: u32, tgid: u32) {
    // SAFETY: only its presence is asked for.
    if tid == tgid && unsafe { PROCESSES.get(tgid) }.is_some() {
        let _ = PROCESSES.remove(tgid);
    }
}

/// The kernel is about to kill a process because memory has run out, the host's or its control group's.
#[tracepoint]
fn oom_victim(context: TracePointContext) -> u32 {
    own_stack::keep();
    // SAFETY: the record's layout is part of the tracepoint.
    let Ok(pid) = (unsafe { context.read_at::<u32>(MARK_VICTIM_PID) }) else { return 0 };
    let Some(target) = target::of(pid).copied() else { return 0 };
    let header = header(Kind::OutOfMemory, pid, pid, &target);
    send(&target, Life { header, child: 0, status: 0, clone_flags: 0 });
    0
}

/// A thread takes a signal that may be the work of a probe, and that its process has no handler for.
#[tracepoint]
fn signal_delivered(context: TracePointContext) -> u32 {
    own_stack::keep();
    let [(_, signal_at), (_, code_at), (_, handler_at)] = SIGNAL_FIELDS;
    // SAFETY: user space has compared the offsets with the record's layout.
    let (Ok(signal), Ok(code), Ok(handler)) = (unsafe {
        (
            context.read_at::<i32>(signal_at as usize),
            context.read_at::<i32>(code_at as usize),
            context.read_at::<u64>(handler_at as usize),
        )
    }) else {
        return 0;
    };
    if handler != 0 || !matches!(signal, SIGILL | SIGTRAP | SIGSEGV) {
        return 0;
    }
    let Some((tid, tgid, target)) = traced() else { return 0 };
    let instruction = Registers::of_task().map_or(0, |registers| registers.instruction);
    let header = header(Kind::Signal, tid, tgid, &target);
    match EVENTS.reserve_untyped::<FatalSignal>(0) {
        Some(mut entry) => {
            entry.write(FatalSignal { header, signal, code, instruction });
            entry.submit(0);
        }
        None => count(&target, Counter::EventsDropped),
    }
    0
}

/// The wait status, if this was the process's last thread. Without the kernel's offsets the leader's exit is
/// taken for the process's.
fn process_status(leader: bool) -> Option<u32> {
    // SAFETY: a helper without preconditions.
    let task = unsafe { bpf_get_current_task() };
    if TASK_SIGNAL.load() == 0 {
        return leader.then_some(0);
    }
    let signal: u64 = read_kernel(task, TASK_SIGNAL.load())?;
    let live: i32 = read_kernel(signal, SIGNAL_LIVE.load())?;
    if live > 0 {
        return None;
    }
    let flags: u32 = read_kernel(signal, SIGNAL_FLAGS.load())?;
    if flags & SIGNAL_GROUP_EXIT != 0 {
        read_kernel(signal, SIGNAL_GROUP_EXIT_CODE.load())
    } else {
        read_kernel(task, TASK_EXIT_CODE.load())
    }
}

fn read_kernel<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as u64) as *const T) }.ok()
}

fn traced() -> Option<(u32, u32, Target)> {
    let (tid, tgid) = thread::current();
    let target = *target::of(tgid)?;
    Some((tid, tgid, target))
}

fn header(kind: Kind, tid: u32, tgid: u32, target: &Target) -> Header {
    Header { kind: kind as u32, tgid, tid, generation: target.generation, time_ns: site::now_ns() }
}

fn send(target: &Target, life: Life) {
    if !try_send(life) {
        count(target, Counter::EventsDropped);
    }
}

/// Sends a record; whether there was room.
pub fn try_send(life: Life) -> bool {
    match EVENTS.reserve(0) {
        Some(mut entry) => {
            entry.write(life);
            entry.submit(0);
            true
        }
        None => false,
    }
}
