//! Keeps programs at raw tracepoints from being preempted.
//!
//! A raw tracepoint passes over a program that is running on the processor already (`__bpf_trace_run`, by `prog->active`).
//! Up to some kernel after 6.19 nothing can preempt one. In Linux 7.3 other tasks can, and what they do while the first one
//! waits for its turn would not be seen. So the programs begin and end with kernel functions (`bpf_preempt_disable` and
//! `bpf_preempt_enable`, Linux 6.10); user space puts them in where the kernel takes them, and leaves them out elsewhere.
use core::arch::asm;

/// The program is not preempted from here on.
#[inline(always)]
pub fn off() {
    // SAFETY: a call whose number user space replaces before the kernel sees it; it takes no argument, and what it may
    // change is named.
    unsafe {
        asm!(
            "call 2147483632",
            out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
        );
    }
}

/// It may be, from here on.
#[inline(always)]
pub fn on() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "call 2147483633",
            out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
        );
    }
}
