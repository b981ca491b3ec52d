//! Kernel functions between which a program is not preempted (`bpf_preempt_disable`, `bpf_preempt_enable`, Linux 6.10). The
//! kernel programs at raw tracepoints have two calls where they belong, with numbers that no helper has: a kernel whose
//! type information has the functions gets calls of them, any other nothing in their place.
use aya_obj::generated::bpf_insn;

use super::btf::Btf;

/// The numbers of the calls in the kernel object, as `leaktrace-ebpf/src/preemption.rs` has them.
const PLACES: [i32; 2] = [0x7fff_fff0, 0x7fff_fff1];
/// The functions that belong there.
const NAMES: [&str; 2] = ["bpf_preempt_disable", "bpf_preempt_enable"];
/// BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// BPF_ALU64 | BPF_MOV | BPF_K.
const MOVE_CONSTANT: u8 = 0xb7;
/// BPF_PSEUDO_KFUNC_CALL: the source register of a call of a kernel function.
const KERNEL_FUNCTION: u8 = 2;

/// The functions of this kernel, by their numbers in its type information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Functions([i32; 2]);

impl Functions {
    /// Those of the running kernel, if it has both.
    pub fn of_kernel() -> Option<Functions> {
        let btf = Btf::of_kernel().ok()?;
        let [off, on] = NAMES.map(|name| btf.function_id(name).and_then(|id| i32::try_from(id).ok()));
        Some(Functions([off?, on?]))
    }
}

/// Puts the functions where they belong, or nothing; whether there is such a place.
pub fn place(instructions: &mut [bpf_insn], functions: Option<Functions>) -> bool {
    let mut has_places = false;
    for instruction in instructions.iter_mut().filter(|instruction| instruction.code == CALL) {
        let Some(place) = PLACES.iter().position(|place| *place == instruction.imm) else { continue };
        if instruction.src_reg() != 0 {
            continue;
        }
        has_places = true;
        match functions.and_then(|functions| functions.0.get(place).copied()) {
            Some(id) => {
                instruction.set_src_reg(KERNEL_FUNCTION);
                instruction.imm = id;
            }
            None => {
                instruction.code = MOVE_CONSTANT;
                instruction.imm = 0;
            }
        }
    }
    has_places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(imm: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(0, 0);
        bpf_insn { code: CALL, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm }
    }

    #[test]
    fn functions_are_put_where_they_belong_or_nothing_is() {
        let program = [call(5), call(PLACES[0]), call(PLACES[1])];
        let mut with = program;
        assert!(place(&mut with, Some(Functions([77, 78]))));
        assert_eq!([with[0].imm, with[1].imm, with[2].imm], [5, 77, 78]);
        assert_eq!([with[0].src_reg(), with[1].src_reg()], [0, KERNEL_FUNCTION]);
        let mut without = program;
        assert!(place(&mut without, None));
        assert_eq!([without[1].code, without[2].code], [MOVE_CONSTANT; 2]);
        assert!(!place(&mut [call(5)], None));
    }
}
