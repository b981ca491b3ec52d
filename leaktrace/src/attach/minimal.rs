//! Programs of two or three instructions: to try what this kernel lets this process load, and to measure probes
//! without anything in them.
use std::{io, os::fd::OwnedFd};

use aya_obj::generated::{bpf_func_id::BPF_FUNC_get_attach_cookie, bpf_insn, bpf_prog_type};

use super::sys;

/// BPF_ALU64 | BPF_MOV | BPF_K.
const MOVE_CONSTANT: u8 = 0xb7;
/// BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// BPF_JMP | BPF_EXIT.
const EXIT: u8 = 0x95;

/// Loads a uprobe program that does nothing but return `value`.
///
/// # Errors
/// The system call's error.
pub fn constant(value: i32, attach_type: u32) -> io::Result<OwnedFd> {
    load(&[instruction(MOVE_CONSTANT, value), instruction(EXIT, 0)], attach_type)
}

/// Loads a uprobe program that reads its attach cookie (Linux 5.15).
///
/// # Errors
/// The system call's error.
pub fn cookie_reader() -> io::Result<OwnedFd> {
    let helper = BPF_FUNC_get_attach_cookie as i32;
    load(&[instruction(CALL, helper), instruction(MOVE_CONSTANT, 0), instruction(EXIT, 0)], 0)
}

fn instruction(code: u8, immediate: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(0, 0);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: immediate }
}

fn load(instructions: &[bpf_insn], attach_type: u32) -> io::Result<OwnedFd> {
    let source = sys::ProgramSource {
        name: "leaktrace_try",
        kind: bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32,
        attach_type,
        instructions,
        license: c"Dual MIT/GPL",
        btf: None,
        functions: (&[], 0, 0),
        lines: (&[], 0, 0),
    };
    sys::load_program(&source, &mut [])
}
