//! Register access at a probe: arguments, result, instruction and stack pointer of the user program.
use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_kernel, bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
};
use core::ffi::c_void;
use leaktrace_common::hook::Argument;

/// The code segment selector of 64-bit user code (arch/x86/include/asm/segment.h, `__USER_CS`).
const USER_CODE_SEGMENT_64: u64 = 0x33;

/// The context of a uprobe program: what most calls are judged by is read from it alone, without a copy of all registers.
#[derive(Clone, Copy)]
pub struct Context(*const c_void);

impl Context {
    /// # Safety
    /// `context` is the context pointer of a uprobe program.
    #[inline(always)]
    pub unsafe fn new(context: *const c_void) -> Context {
        Context(context)
    }

    /// The first argument of the function that was entered.
    #[inline(always)]
    pub fn first_argument(self) -> u64 {
        // SAFETY: the context holds registers; see `Registers::from_context`.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.cast::<pt_regs>()).rdi) }
    }

    /// rip.
    #[inline(always)]
    pub fn instruction(self) -> u64 {
        // SAFETY: the context holds registers; see `Registers::from_context`.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.cast::<pt_regs>()).rip) }
    }

    /// All that leaktrace needs.
    #[inline(always)]
    pub fn registers(self) -> Registers {
        // SAFETY: the context holds registers.
        unsafe { Registers::from_context(self.0) }
    }
}

/// The registers of the user program that leaktrace needs, copied out of the context: the verifier refuses a
/// load from the context at an offset that is not a constant, and a choice between arguments would become one.
#[derive(Clone, Copy)]
pub struct Registers {
    arguments: [u64; 8],
    /// What a function returned.
    pub result: u64,
    /// rip.
    pub instruction: u64,
    /// rsp.
    pub stack_pointer: u64,
    /// rbp.
    pub rbp: u64,
    /// rbx.
    pub rbx: u64,
    code_segment: u64,
}

impl Registers {
    /// # Safety
    /// `context` is the context pointer of a uprobe program, or points to a copy of registers.
    #[inline(always)]
    pub unsafe fn from_context(context: *const c_void) -> Registers {
        let regs = context.cast::<pt_regs>();
        macro_rules! load {
            ($name:ident) => {
                // SAFETY: the caller promises registers; volatile keeps each load at its constant offset.
                unsafe { core::ptr::read_volatile(&raw const (*regs).$name) }
            };
        }
        Registers {
            // Eight, so that a position can be masked; zeros would be set by a call.
            arguments: [
                load!(rdi),
                load!(rsi),
                load!(rdx),
                load!(rcx),
                load!(r8),
                load!(r9),
                load!(r9),
                load!(r9),
            ],
            result: load!(rax),
            instruction: load!(rip),
            stack_pointer: load!(rsp),
            rbp: load!(rbp),
            rbx: load!(rbx),
            code_segment: load!(cs),
        }
    }

    /// The user registers of the current task at its last entry to the kernel (Linux ≥ 5.15).
    #[inline(always)]
    pub fn of_task() -> Option<Registers> {
        Registers::at(task_registers())
    }

    /// The number of the system call that was entered with `registers`, which lie in kernel memory.
    #[inline(always)]
    pub fn system_call(registers: *const pt_regs) -> Option<u64> {
        // SAFETY: only the address is taken; the helper checks it.
        unsafe { bpf_probe_read_kernel((&raw const (*registers).orig_rax).cast()) }.ok()
    }

    /// User registers at a system call, which lie in kernel memory. Read a few at a time: a copy of all of them takes a
    /// third of the program stack.
    #[inline(always)]
    pub fn at(registers: *const pt_regs) -> Option<Registers> {
        macro_rules! from {
            ($first:ident) => {
                // SAFETY: only the address is taken; the helper checks it.
                unsafe { bpf_probe_read_kernel((&raw const (*registers).$first).cast()) }.ok()?
            };
        }
        let [rbp, rbx]: [u64; 2] = from!(rbp);
        let [r10, r9, r8, result]: [u64; 4] = from!(r10);
        let [rdx, rsi, rdi]: [u64; 3] = from!(rdx);
        let [instruction, code_segment, _, stack_pointer]: [u64; 4] = from!(rip);
        Some(Registers {
            // A system call has its fourth argument in r10.
            arguments: [rdi, rsi, rdx, r10, r8, r9, r9, r9],
            result,
            instruction,
            stack_pointer,
            rbp,
            rbx,
            code_segment,
        })
    }

    /// The argument at `position` of the System V calling convention, or of a system call.
    #[inline(always)]
    pub fn argument(&self, position: Argument) -> u64 {
        self.arguments[(position & 7) as usize]
    }

    /// Whether the thread runs 64-bit code.
    #[inline(always)]
    pub fn is_64_bit(&self) -> bool {
        self.code_segment & 0xffff == USER_CODE_SEGMENT_64
    }
}

/// Where the kernel keeps the user registers of the current task (Linux ≥ 5.15).
#[inline(always)]
pub fn task_registers() -> *const pt_regs {
    // SAFETY: helpers without preconditions in a tracing program.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs }
}

/// Reads a word of the current process's memory.
#[inline(always)]
pub fn read_user(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}
