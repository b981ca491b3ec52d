//! The system calls that change mappings. What a call takes away leaves at its entry, because afterwards another thread may
//! own the addresses; what it makes is seen at its exit. Arguments are read from the task's registers, which a system call
//! leaves as they were.
//!
//! The programs come twice. At the raw tracepoints of all system calls nothing is missed up to Linux 6.19. From 7.0 on tasks
//! can be preempted there, and the kernel passes over a program of which another task on the processor has not come to the
//! end (`__bpf_trace_run`). At the tracepoints of single system calls it does so while any task on the processor is inside
//! bpf(2) (`trace_call_bpf`, `bpf_disable_instrumentation`), which happens less often, and is counted.
use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use leaktrace_common::{
    counter::Counter,
    event::{Change, Header, Kind, MappingChange},
    target::{Target, flags},
};

use crate::{
    count::count,
    maps::{EVENTS, PROCESS_MAPS},
    own_stack,
    probes::cookie,
    registers::{Registers, task_registers},
    sample, site,
    stack::{self, Start},
    target, thread,
    walk::PAGE_MASK,
};

/// Numbers of the system calls of 64-bit programs (arch/x86/entry/syscalls/syscall_64.tbl).
mod number {
    pub const MMAP: u64 = 9;
    pub const MUNMAP: u64 = 11;
    pub const BRK: u64 = 12;
    pub const MREMAP: u64 = 25;
}
/// Results from here on are error numbers, −4095 to −1.
const FIRST_ERROR: i64 = -4095;
/// linux/mman.h: code.
const PROT_EXEC: u64 = 4;
/// linux/mman.h: not backed by a file.
const MAP_ANONYMOUS: u32 = 0x20;

/// A system call begins: its registers, its number.
#[raw_tracepoint]
fn system_call_enter(context: RawTracePointContext) -> i32 {
    own_stack::keep();
    let (regs, called): (*const pt_regs, u64) = arguments(&context);
    match called {
        number::MUNMAP => change(regs, Change::Unmap, 0),
        number::MREMAP => change(regs, Change::Remap, 0),
        _ => {}
    }
    0
}

/// A system call has ended: its registers, its result.
#[raw_tracepoint]
fn system_call_exit(context: RawTracePointContext) -> i32 {
    own_stack::keep();
    let (regs, result): (*const pt_regs, u64) = arguments(&context);
    let kind = match Registers::system_call(regs) {
        Some(number::MMAP) => Some(Change::Map),
        Some(number::MUNMAP) => Some(Change::UnmapFailed),
        Some(number::MREMAP) => Some(Change::Remapped),
        Some(number::BRK) => Some(Change::Break),
        _ => None,
    };
    if let Some(kind) = kind {
        change(regs, kind, result as i64);
    }
    0
}

/// Offset of the result in a `sys_exit_*` record.
const RESULT: usize = 16;

/// The exits after which a stack may be taken: one program, because it is large. The cookie is the [`Change`].
#[tracepoint]
fn change_exit(context: TracePointContext) -> u32 {
    own_stack::keep();
    const MAP: u64 = Change::Map as u64;
    const REMAPPED: u64 = Change::Remapped as u64;
    let kind = match cookie(context.as_ptr()) {
        MAP => Change::Map,
        REMAPPED => Change::Remapped,
        _ => Change::Break,
    };
    change(task_registers(), kind, result(&context));
    0
}

#[tracepoint]
fn munmap_enter(_: TracePointContext) -> u32 {
    own_stack::keep();
    change(task_registers(), Change::Unmap, 0);
    0
}

#[tracepoint]
fn munmap_exit(context: TracePointContext) -> u32 {
    own_stack::keep();
    change(task_registers(), Change::UnmapFailed, result(&context));
    0
}

#[tracepoint]
fn mremap_enter(_: TracePointContext) -> u32 {
    own_stack::keep();
    change(task_registers(), Change::Remap, 0);
    0
}

#[inline(always)]
fn result(context: &TracePointContext) -> i64 {
    // SAFETY: the record's layout is that of every system call tracepoint.
    unsafe { context.read_at(RESULT) }.unwrap_or(-1)
}

/// The first two arguments of a raw tracepoint.
#[inline(always)]
fn arguments(context: &RawTracePointContext) -> (*const pt_regs, u64) {
    let words = context.as_ptr().cast::<u64>();
    // SAFETY: both tracepoints have two arguments, each in a word.
    let first = unsafe { core::ptr::read_volatile(words) };
    // SAFETY: as above.
    let second = unsafe { core::ptr::read_volatile(words.add(1)) };
    (first as *const pt_regs, second)
}

#[inline(always)]
fn change(regs: *const pt_regs, change: Change, result: i64) {
    let (tid, tgid) = thread::current();
    let Some(target) = target::of(tgid) else { return };
    if target.flags & flags::MAPPINGS == 0 {
        return;
    }
    let failed = (FIRST_ERROR..0).contains(&result);
    if (failed && matches!(change, Change::Map)) || (!failed && matches!(change, Change::UnmapFailed)) {
        return;
    }
    let Some(regs) = Registers::at(regs) else {
        count(target, Counter::ReadFailures);
        return;
    };
    if !regs.is_64_bit() {
        return;
    }
    if matches!(change, Change::Map) && regs.argument(2) & PROT_EXEC != 0 {
        note_code(target.slot, result as u64, regs.argument(1));
    }
    send(tid, target, &regs, change, result);
}

/// The process has mapped code: until user space has published that, what its mappings say of the place is not to
/// be believed. Two threads at once can lose a range to each other; then a stack is cut for a moment.
#[inline(always)]
fn note_code(slot: u32, address: u64, length: u64) {
    let Some(process) = PROCESS_MAPS.get_ptr_mut(slot) else { return };
    let end = address.wrapping_add(length.wrapping_add(PAGE_MASK) & !PAGE_MASK);
    // SAFETY: the value stays as long as the map, its fields are plain, and user space only reads what is
    // written here.
    let process = unsafe { &mut *process };
    if process.changes == process.covered {
        process.pending_start = address;
        process.pending_end = end;
    } else {
        process.pending_start = process.pending_start.min(address);
        process.pending_end = process.pending_end.max(end);
    }
    process.changes = process.changes.wrapping_add(1);
}

#[inline(always)]
fn send(tid: u32, target: &Target, regs: &Registers, change: Change, result: i64) {
    let Some(state) = thread::entry(tid) else {
        count(target, Counter::ThreadsFull);
        return;
    };
    // SAFETY: the entry belongs to the current thread and stays while its program runs.
    let state = unsafe { &mut *state };
    let in_allocator = state.call.slot != 0 && regs.stack_pointer < state.call.slot
        || sample::passed_lately(state, regs.stack_pointer);
    let map_flags = regs.argument(3) as u32;
    let wants_stack = match change {
        Change::Map => map_flags & MAP_ANONYMOUS != 0 && !in_allocator,
        Change::Remapped => !in_allocator,
        // The break is an allocator's own business, and all that is seen of it where allocations are not recorded.
        Change::Break => target.flags & flags::ALLOCATIONS == 0,
        _ => false,
    };
    let stack = if wants_stack {
        let start = Start { ip: regs.instruction, sp: regs.stack_pointer, exact: true };
        stack::take(target, state, regs, start)
    } else {
        0
    };
    let Some(mut entry) = EVENTS.reserve_untyped::<MappingChange>(0) else {
        count(target, Counter::EventsDropped);
        return;
    };
    let (first, second) = (regs.argument(0), regs.argument(1));
    let (address, length, old_address, old_length, flags) = match change {
        Change::Map => (result as u64, second, 0, 0, map_flags),
        Change::Unmap | Change::UnmapFailed => (first, second, 0, 0, 0),
        Change::Remap => (0, regs.argument(2), first, second, map_flags),
        Change::Remapped => (result as u64, regs.argument(2), first, second, map_flags),
        Change::Break => (result as u64, 0, 0, 0, 0),
    };
    entry.write(MappingChange {
        header: Header {
            kind: Kind::Mapping as u32,
            tgid: target.owner,
            tid,
            generation: target.generation,
            time_ns: site::now_ns(),
        },
        change: change as u32,
        in_allocator: in_allocator as u32,
        address,
        length_bytes: length,
        old_address,
        old_length_bytes: old_length,
        protection: if matches!(change, Change::Map) { regs.argument(2) as u32 } else { 0 },
        flags,
        result,
        stack,
        fd: if matches!(change, Change::Map) { regs.argument(4) as i32 } else { -1 },
        reserved: 0,
    });
    entry.submit(0);
}
