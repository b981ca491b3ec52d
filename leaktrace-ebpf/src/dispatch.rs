//! Threads that catch their own system calls (prctl PR_SET_SYSCALL_USER_DISPATCH, Linux 5.11), as compatibility layers
//! and sandboxes do. From Linux 6.11 on a call with a return probe returns by a system call; such a thread would catch
//! it, make it from another place, and be killed for that by SIGILL.
use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, generated::bpf_get_current_task},
};

/// Offset of `thread_info.syscall_work` in a task, from the kernel's BTF; 0 where it has none.
#[unsafe(no_mangle)]
static TASK_SYSCALL_WORK: Global<u32> = Global::new(0);
/// SYSCALL_WORK_SYSCALL_USER_DISPATCH (linux/thread_info.h).
const USER_DISPATCH: u64 = 1 << 5;

/// Whether the current thread does.
#[inline(always)]
pub fn catches_system_calls() -> bool {
    let offset = TASK_SYSCALL_WORK.load();
    if offset == 0 {
        return false;
    }
    // SAFETY: a helper without preconditions.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the address.
    let work = unsafe { bpf_probe_read_kernel(task.wrapping_add(offset as u64) as *const u64) };
    work.is_ok_and(|work| work & USER_DISPATCH != 0)
}
