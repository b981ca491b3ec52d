//! Entry points of the uprobe programs. `alloc_session` serves entry and return in one (Linux ≥ 6.13); the
//! others are the same halves for kernels without session probes. Written by hand, not with aya's macros,
//! because those throw the program's return value away, and a session's tells the kernel to skip the return.
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_func_ip};
use core::ffi::c_void;
use leaktrace_common::hook::Hook;

use crate::{allocation, free, own_stack, registers::Context};

/// A session program's answer: do not call me at the return.
const SKIP_RETURN: u32 = 1;

/// Entry and return of an allocation function, as a session.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_session(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let probe = unsafe { Context::new(context) };
    // SAFETY: the context is this program's.
    let probed = unsafe { bpf_get_func_ip(context) };
    if probe.instruction() != probed {
        allocation::leave_by_return(&probe.registers());
        return 0;
    }
    if allocation::enter(probe, cookie(context), true) { 0 } else { SKIP_RETURN }
}

/// Entry of an allocation function.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_entry(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let probe = unsafe { Context::new(context) };
    allocation::enter(probe, cookie(context), false);
    0
}

/// Return of an allocation function.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uretprobe")]
extern "C" fn alloc_return(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let probe = unsafe { Context::new(context) };
    allocation::leave_by_return(&probe.registers());
    0
}

/// An exit of an allocation function that must not have a return probe.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn alloc_exit(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let regs = unsafe { Context::new(context) }.registers();
    let hook = Hook::from_cookie(cookie(context));
    let slot = regs.stack_pointer.wrapping_add(8 * hook.return_slot_words as u64);
    allocation::leave_at_exit(&regs, hook, slot);
    0
}

/// An exception is thrown.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn exception_thrown(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let regs = unsafe { Context::new(context) }.registers();
    allocation::thrown(&regs);
    0
}

/// Entry of a free function.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn free_entry(context: *mut c_void) -> u32 {
    own_stack::keep();
    // SAFETY: the kernel passes the registers.
    let probe = unsafe { Context::new(context) };
    free::enter(probe, cookie(context));
    0
}

/// The cookie that the program was attached with.
#[inline(always)]
pub fn cookie(context: *mut c_void) -> u64 {
    // SAFETY: the context is this program's.
    unsafe { bpf_get_attach_cookie(context) }
}
