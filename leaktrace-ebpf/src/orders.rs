//! Processes that are not traced and may have to be: attached only while a standing order waits for them. Whether
//! an order means a process is decided in user space. A child by fork has its parent's name, program and control
//! group, so what is asked of it was answered for its parent.
use aya_ebpf::{EbpfContext as _, macros::tracepoint, programs::TracePointContext};
use leaktrace_common::{
    counter::Counter,
    event::{Appearance, Header, Kind, Life, MOVED_PID},
};

use crate::{count::count_for_nobody, life, own_stack, probes, site, target, thread};

/// A process has another program from here on.
#[tracepoint]
fn order_exec(_: TracePointContext) -> u32 {
    own_stack::keep();
    let (_, tgid) = thread::current();
    appeared(tgid, Appearance::Exec);
    0
}

/// A process was moved to another control group. Its id is at one of two offsets in the record, by the kernel's age:
/// the cookie says at which.
#[tracepoint]
fn order_moved(context: TracePointContext) -> u32 {
    own_stack::keep();
    // SAFETY: the record is longer than both; user space read its layout from the kernel.
    let fields = unsafe {
        (context.read_at::<u32>(MOVED_PID[0] as usize), context.read_at::<u32>(MOVED_PID[1] as usize))
    };
    let pid = if probes::cookie(context.as_ptr()) == MOVED_PID[0] { fields.0 } else { fields.1 };
    match pid {
        Ok(pid) => appeared(pid, Appearance::ControlGroup),
        Err(_) => count_for_nobody(Counter::EventsDropped),
    }
    0
}

/// A thread takes another name; the main thread's is the process's.
#[tracepoint]
fn order_renamed(_: TracePointContext) -> u32 {
    own_stack::keep();
    let (tid, tgid) = thread::current();
    if tid == tgid {
        appeared(tgid, Appearance::Name);
    }
    0
}

fn appeared(pid: u32, how: Appearance) {
    if pid == 0 || target::of(pid).is_some() {
        return;
    }
    let header =
        Header { kind: Kind::Appeared as u32, tgid: pid, tid: pid, generation: 0, time_ns: site::now_ns() };
    if !life::try_send(Life { header, child: 0, status: how as u32, clone_flags: 0 }) {
        count_for_nobody(Counter::EventsDropped);
    }
}
