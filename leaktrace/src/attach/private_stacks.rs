//! Private stacks: whether this kernel would run leaktrace's programs on stacks that belong to a processor, and how that
//! is turned off.
//!
//! After Linux 6.12 the JIT gives each function of a kprobe, tracepoint or perf-event program whose frame has 64 bytes or
//! more a stack of its own, one for each processor (`bpf_enable_priv_stack` in kernel/bpf/verifier.c), because such
//! programs are taken not to run twice at once there. Uprobe programs do: they can be preempted (`uprobe_prog_run` in
//! kernel/trace/bpf_trace.c and `bpf_prog_run_array_uprobe` do not count recursion), and a second thread on the
//! processor overwrites what the first one has on its stack. On preemptible kernels that was seen to crash the kernel.
//!
//! A program with a tail call in any of its functions gets no private stack (`check_max_stack_depth`), so each program of
//! leaktrace has one that is never reached: the verifier counts it and then removes it as dead code. Whether that works
//! here is tried with two small programs whose frames fit on private stacks alone, and looked for in the code that the JIT
//! made of each program, where the kernel shows that.
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, bail};
use aya_obj::generated::{bpf_func_id::BPF_FUNC_tail_call, bpf_insn};

use super::{minimal, sys};

/// Why nothing is traced where programs run on private stacks.
const REFUSAL: &str = "this kernel runs uprobe programs on stacks that belong to a processor, which two threads would \
                       overwrite for each other and crash the kernel: please report this with the kernel's release; \
                       until then, `sysctl -w net.core.bpf_jit_enable=0` makes tracing possible, but slow";
/// BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// BPF_ALU64 | BPF_MOV | BPF_K.
const MOVE_CONSTANT: u8 = 0xb7;
/// What x86-64's JIT puts into the prologue of a function with a private stack: `add %gs:disp32,%r9`
/// (`emit_priv_frame_ptr` in arch/x86/net/bpf_jit_comp.c), or `add %gs:disp32(%rip),%r9`.
const X86_PROLOGUES: [[u8; 4]; 2] = [[0x65, 0x4c, 0x03, 0x0c], [0x65, 0x4c, 0x03, 0x0d]];

/// What this kernel does about private stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateStacks {
    /// It gives programs of this type none: it does not know them, or interprets programs.
    None,
    /// It would, and a tail call turns that off.
    TurnedOff,
    /// It does in spite of a tail call.
    Forced,
}

impl PrivateStacks {
    /// Tries it; takes less than a millisecond. Where nothing can be loaded, that is told by other checks.
    pub fn of_kernel() -> PrivateStacks {
        if is_interpreted() || minimal::deep(false).is_err() {
            return PrivateStacks::None;
        }
        if minimal::deep(true).is_ok() { PrivateStacks::Forced } else { PrivateStacks::TurnedOff }
    }

    /// Fails where programs would run on private stacks.
    ///
    /// # Errors
    /// One sentence that says so.
    pub fn demand(self) -> Result<()> {
        if self == PrivateStacks::Forced {
            bail!(REFUSAL);
        }
        Ok(())
    }

    /// Makes a program ready for this kernel. The tail call is left out where it is not needed: a program with functions
    /// and a tail call is refused where programs are interpreted.
    pub fn prepare(self, instructions: &mut [bpf_insn]) {
        if self == PrivateStacks::TurnedOff {
            return;
        }
        for instruction in instructions.iter_mut().filter(|instruction| is_tail_call(instruction)) {
            instruction.code = MOVE_CONSTANT;
            instruction.imm = 0;
        }
    }
}

/// Whether an instruction is a tail call.
pub fn is_tail_call(instruction: &bpf_insn) -> bool {
    instruction.code == CALL && instruction.src_reg() == 0 && instruction.imm == BPF_FUNC_tail_call as i32
}

/// Fails if the JIT has given a function of a loaded program a private stack. Where the kernel does not show the code
/// (`kernel.kptr_restrict`, no CAP_SYSLOG), what [`PrivateStacks::of_kernel`] has tried is all that is known.
///
/// # Errors
/// One sentence that says so, or the system call's error.
pub fn demand_none(program: BorrowedFd<'_>) -> Result<()> {
    let code = sys::jited_code(program).context("asking the kernel for the code of a program")?;
    if cfg!(target_arch = "x86_64") && loads_private_stack(&code) {
        bail!(REFUSAL);
    }
    Ok(())
}

/// Whether this kernel interprets programs.
fn is_interpreted() -> bool {
    std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|text| text.trim() == "0")
}

fn loads_private_stack(code: &[u8]) -> bool {
    code.windows(4).any(|bytes| X86_PROLOGUES.iter().any(|prologue| bytes == prologue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_call_is_replaced_where_it_is_not_needed() {
        let registers = bpf_insn::new_bitfield_1(0, 0);
        let call = |imm| bpf_insn { code: CALL, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm };
        let program = [call(5), call(BPF_FUNC_tail_call as i32)];
        let mut kept = program;
        PrivateStacks::TurnedOff.prepare(&mut kept);
        assert!(is_tail_call(&kept[1]) && !is_tail_call(&kept[0]));
        for kernel in [PrivateStacks::None, PrivateStacks::Forced] {
            let mut replaced = program;
            kernel.prepare(&mut replaced);
            assert_eq!((replaced[0].code, replaced[0].imm), (CALL, 5));
            assert_eq!((replaced[1].code, replaced[1].imm), (MOVE_CONSTANT, 0));
        }
    }

    #[test]
    fn the_prologue_of_a_private_stack_is_recognised() {
        // push %rbp; mov %rsp,%rbp; movabs $x,%r9; add %gs:0x28,%r9
        let with =
            [0x55, 0x48, 0x89, 0xe5, 0x49, 0xb9, 1, 2, 3, 4, 5, 6, 7, 8, 0x65, 0x4c, 0x03, 0x0c, 0x25, 0x28];
        assert!(loads_private_stack(&with));
        assert!(!loads_private_stack(&with[..14]));
    }

    #[test]
    fn this_kernel_says_what_it_does() {
        assert!(PrivateStacks::of_kernel().demand().is_ok());
        assert!(PrivateStacks::Forced.demand().is_err());
    }
}
