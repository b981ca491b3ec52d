//! Keeps programs on the stack of the thread that they run in.
//!
//! After Linux 6.12 the JIT gives kprobe and tracepoint programs a stack for each processor, unless one of their functions
//! has a tail call (`check_max_stack_depth` in kernel/bpf/verifier.c). Uprobe programs can be preempted, so two threads
//! would write to one stack, and the kernel crashes.
use core::arch::asm;

/// To be called by each program: a tail call that is never reached. The verifier counts it before it looks at what can be
/// reached, knows that the branch is always taken, and removes both. User space leaves it out where the kernel has no such
/// stacks. In assembly, because the compiler would remove it too.
#[inline(always)]
pub fn keep() {
    // SAFETY: a register is set; the call (bpf_tail_call, helper 12) is jumped over.
    unsafe { asm!("r0 = 0", "if r0 == 0 goto +1", "call 12", out("r0") _) }
}
