//! Programs of two or three instructions: to try what this kernel lets this process load, and to measure probes
//! without anything in them.
use std::{io, os::fd::OwnedFd};

use aya_obj::generated::{
    bpf_func_id::{BPF_FUNC_get_attach_cookie, BPF_FUNC_tail_call},
    bpf_insn, bpf_prog_type,
};

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

/// Loads a uprobe program of two functions whose frames together are deeper than a program's stack may be
/// (MAX_BPF_STACK, 512 bytes): a kernel takes it only if it gives the functions stacks of their own. With `tail_call`
/// it has a tail call that is never reached, as leaktrace's own programs have.
///
/// # Errors
/// The system call's error; `EACCES` when the stack is too deep.
pub fn deep(tail_call: bool) -> io::Result<OwnedFd> {
    const FRAME_BYTES: i16 = 400;
    /// BPF_STX | BPF_MEM | BPF_DW.
    const STORE_WORD: u8 = 0x7b;
    /// BPF_JMP | BPF_JEQ | BPF_K.
    const JUMP_IF_EQUAL: u8 = 0x15;
    /// BPF_PSEUDO_CALL, the source register of a call of another function of the program.
    const PSEUDO_CALL: u8 = 1;
    let touch = [
        instruction(MOVE_CONSTANT, 0).with_registers(1, 0),
        instruction(STORE_WORD, 0).with_registers(10, 1).with_offset(-FRAME_BYTES),
    ];
    let end = [instruction(MOVE_CONSTANT, 0), instruction(EXIT, 0)];
    let mut program = touch.to_vec();
    if tail_call {
        program.push(instruction(MOVE_CONSTANT, 0));
        program.push(instruction(JUMP_IF_EQUAL, 0).with_offset(1));
        program.push(instruction(CALL, BPF_FUNC_tail_call as i32));
    }
    // The function begins behind the two instructions that end this one.
    program.push(instruction(CALL, end.len() as i32).with_registers(0, PSEUDO_CALL));
    program.extend(end);
    program.extend(touch);
    program.extend(end);
    load(&program, 0)
}

/// An instruction without registers and offset.
fn instruction(code: u8, immediate: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(0, 0);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: immediate }
}

/// What most instructions here do without.
trait With {
    fn with_registers(self, to: u8, from: u8) -> Self;
    fn with_offset(self, offset: i16) -> Self;
}

impl With for bpf_insn {
    fn with_registers(mut self, to: u8, from: u8) -> bpf_insn {
        self.set_dst_reg(to);
        self.set_src_reg(from);
        self
    }

    fn with_offset(self, offset: i16) -> bpf_insn {
        bpf_insn { off: offset, ..self }
    }
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
