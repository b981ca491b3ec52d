//! What must hold for the kernel programs as they were built, whatever kernel they meet: looked for in their instructions,
//! without a kernel.
//!
//! Kernels up to 6.12 add the frames along each chain of calls and refuse a program whose sum is above 512 bytes
//! (`check_max_stack_depth` in kernel/bpf/verifier.c); up to 6.7 each frame is rounded up to 32 bytes, later to 16, and one
//! that is empty counts as well. A tail call in the entry function keeps a program off private stacks; in any other
//! function it would bound what its callers may use to 256 bytes.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aya_obj::generated::bpf_insn;

use super::super::private_stacks::is_tail_call;

/// MAX_BPF_STACK.
const MAX_STACK_BYTES: u32 = 512;
/// What the oldest kernels round frames up to.
const FRAME_GRAIN_BYTES: u32 = 32;
/// MAX_CALL_FRAMES.
const MAX_CALLS: usize = 8;
/// The register that points behind the frame.
const FRAME_POINTER: u8 = 10;
/// BPF_JMP | BPF_CALL, and the source register that makes it a call of another function of the program.
const CALL: (u8, u8) = (0x85, 1);
/// BPF_ALU64 | BPF_ADD | BPF_K, BPF_ALU64 | BPF_MOV | BPF_X.
const ADD_CONSTANT: u8 = 0x07;
const MOVE_REGISTER: u8 = 0xbf;
/// BPF_CLASS: loads and stores through a register.
const LOAD: u8 = 0x01;
const STORE: u8 = 0x02;
const STORE_REGISTER: u8 = 0x03;

/// What is wrong with a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The deepest chain, as the first instruction of each function and its frame, and what it adds up to.
    TooDeep { chain: Vec<(usize, u32)>, bytes: u32 },
    /// More functions call each other than a kernel follows, or one calls itself.
    TooLong,
    /// The entry function has no tail call.
    NoTailCall,
    /// A function other than the entry has one; its first instruction.
    InnerTailCall(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TooDeep { chain, bytes } => {
                write!(f, "{bytes} bytes of stack in a chain of calls (first instruction, frame): {chain:?}")
            }
            Fault::TooLong => write!(f, "more than {MAX_CALLS} functions call each other"),
            Fault::NoTailCall => write!(f, "no tail call: own_stack::keep() is missing"),
            Fault::InnerTailCall(at) => write!(f, "a tail call in the function at instruction {at}"),
        }
    }
}

/// Everything that is wrong with a linked program.
pub(super) fn faults(program: &[bpf_insn]) -> Vec<Fault> {
    let functions = Functions::of(program);
    let mut faults = Vec::new();
    match functions.deepest(0, &mut Vec::new()) {
        Some((chain, bytes)) if bytes > MAX_STACK_BYTES => faults.push(Fault::TooDeep { chain, bytes }),
        Some(_) => {}
        None => faults.push(Fault::TooLong),
    }
    let with_tail_call: Vec<usize> =
        functions.0.iter().filter(|(_, function)| function.has_tail_call).map(|(start, _)| *start).collect();
    if !with_tail_call.contains(&0) {
        faults.push(Fault::NoTailCall);
    }
    faults.extend(with_tail_call.into_iter().filter(|start| *start != 0).map(Fault::InnerTailCall));
    faults
}

/// The deepest chain of calls of a linked program, in bytes as the oldest kernels count them.
pub(super) fn stack_bytes(program: &[bpf_insn]) -> Option<u32> {
    Functions::of(program).deepest(0, &mut Vec::new()).map(|(_, bytes)| bytes)
}

#[derive(Default)]
struct Function {
    frame_bytes: u32,
    calls: BTreeSet<usize>,
    has_tail_call: bool,
}

/// The functions of a program by their first instructions.
struct Functions(BTreeMap<usize, Function>);

impl Functions {
    fn of(program: &[bpf_insn]) -> Functions {
        let target = |(at, instruction): (usize, &bpf_insn)| {
            let is_call = (instruction.code, instruction.src_reg()) == CALL;
            is_call.then(|| (at + 1).wrapping_add_signed(instruction.imm as isize))
        };
        let starts = program.iter().enumerate().filter_map(target).chain([0]);
        let mut functions: BTreeMap<usize, Function> =
            starts.map(|start| (start, Function::default())).collect();
        // Registers that hold the frame pointer since the function's start or the last write to them.
        let mut copies = BTreeSet::new();
        for (at, instruction) in program.iter().enumerate() {
            if functions.contains_key(&at) {
                copies = BTreeSet::from([FRAME_POINTER]);
            }
            let Some((_, function)) = functions.range_mut(..=at).next_back() else { continue };
            function.frame_bytes = function.frame_bytes.max(depth(instruction, &mut copies));
            function.calls.extend(target((at, instruction)));
            function.has_tail_call |= is_tail_call(instruction);
        }
        Functions(functions)
    }

    fn deepest(&self, start: usize, path: &mut Vec<usize>) -> Option<(Vec<(usize, u32)>, u32)> {
        if path.len() >= MAX_CALLS || path.contains(&start) {
            return None;
        }
        let function = self.0.get(&start)?;
        path.push(start);
        let mut below = (Vec::new(), 0);
        for call in &function.calls {
            let deepest = self.deepest(*call, path)?;
            if deepest.1 > below.1 {
                below = deepest;
            }
        }
        path.pop();
        let own = function.frame_bytes.max(1).next_multiple_of(FRAME_GRAIN_BYTES);
        let mut chain = vec![(start, function.frame_bytes)];
        chain.extend(below.0);
        Some((chain, own + below.1))
    }
}

/// How far below the frame pointer an instruction reaches. `copies` are the registers that hold it.
fn depth(instruction: &bpf_insn, copies: &mut BTreeSet<u8>) -> u32 {
    let (to, from) = (instruction.dst_reg(), instruction.src_reg());
    let below = |offset: i64| u32::try_from(-offset).unwrap_or(0);
    match instruction.code {
        MOVE_REGISTER if copies.contains(&from) => {
            copies.insert(to);
            return 0;
        }
        ADD_CONSTANT if copies.remove(&to) => return below(i64::from(instruction.imm)),
        _ => {}
    }
    let reached = match instruction.code & 7 {
        LOAD if copies.contains(&from) => below(i64::from(instruction.off)),
        STORE | STORE_REGISTER if copies.contains(&to) => below(i64::from(instruction.off)),
        _ => 0,
    };
    let writes_register = !matches!(instruction.code & 7, STORE | STORE_REGISTER | 5 | 6);
    if writes_register && to != FRAME_POINTER {
        copies.remove(&to);
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
        let mut instruction =
            bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off, imm };
        instruction.set_dst_reg(to);
        instruction.set_src_reg(from);
        instruction
    }

    fn store(offset: i16) -> bpf_insn {
        instruction(0x7b, FRAME_POINTER, 1, offset, 0)
    }

    fn call(to: i32) -> bpf_insn {
        instruction(0x85, 0, 1, 0, to)
    }

    fn exit() -> bpf_insn {
        instruction(0x95, 0, 0, 0, 0)
    }

    fn tail_call() -> bpf_insn {
        instruction(0x85, 0, 0, 0, 12)
    }

    #[test]
    fn frames_of_a_chain_are_rounded_and_added() {
        let program = [tail_call(), store(-480), call(1), exit(), store(-8), exit()];
        assert_eq!(stack_bytes(&program), Some(512));
        assert_eq!(faults(&program), []);
        let deep = [tail_call(), store(-488), call(1), exit(), store(-8), exit()];
        assert_eq!(faults(&deep), [Fault::TooDeep { chain: vec![(0, 488), (4, 8)], bytes: 544 }]);
    }

    #[test]
    fn an_address_in_the_frame_counts_as_its_offset() {
        let program = [
            tail_call(),
            instruction(MOVE_REGISTER, 2, FRAME_POINTER, 0, 0),
            instruction(ADD_CONSTANT, 2, 0, 0, -100),
            exit(),
        ];
        assert_eq!(stack_bytes(&program), Some(128));
    }

    #[test]
    fn a_tail_call_is_wanted_in_the_entry_alone() {
        assert_eq!(faults(&[exit()]), [Fault::NoTailCall]);
        let inner = [tail_call(), call(1), exit(), tail_call(), exit()];
        assert_eq!(faults(&inner), [Fault::InnerTailCall(3)]);
    }

    #[test]
    fn recursion_is_a_fault() {
        assert_eq!(faults(&[tail_call(), call(-2), exit()]), [Fault::TooLong]);
    }
}
