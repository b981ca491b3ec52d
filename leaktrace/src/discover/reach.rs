//! Decides from a function's code whether a probe on it would see anything that probes on other functions do
//! not: `_ZdaPv` that only jumps to `free`, `valloc` that only jumps to `memalign`, jemalloc's aligned `new`
//! that calls `aligned_alloc` on every path. When in doubt the answer is that it needs its own probe.
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leaktrace_common::hook::Shape;
use std::collections::HashSet;

/// How a function reaches probed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Some path reaches none, or it cannot be told.
    Own,
    /// Every path that allocates or frees ends in a jump to a probed function: that one's caller is this
    /// one's caller.
    Jumps,
    /// Every path that allocates or frees calls, or jumps to, a probed function.
    Calls,
}

/// Where a direct call or jump leads: an address, or a slot of the GOT that is jumped through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A virtual address.
    Address(u64),
    /// The address of a slot that holds the address.
    Slot(u64),
}

/// Instructions looked at before giving up.
const MAX_STEPS: usize = 2048;

/// What is known on a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    address: u64,
    /// rax is 0: a return from here reports failure.
    zero: bool,
    /// rdi still holds the first argument.
    argument: bool,
    /// The last instruction was `test rdi, rdi` on the argument.
    tested: bool,
    /// This path is taken only for NULL.
    null: bool,
}

/// Follows every path through `code`, which stands at `address`. `probed` says what a probed target does, if
/// it is one.
pub fn reach(code: &[u8], address: u64, shape: Shape, probed: impl Fn(Target) -> Option<Shape>) -> Reach {
    let end = address.saturating_add(code.len() as u64);
    let mut seen = HashSet::new();
    let mut answer = None;
    let mut open = vec![State { address, zero: false, argument: true, tested: false, null: false }];
    while let Some(state) = open.pop() {
        if !seen.insert(state) {
            continue;
        }
        let bytes = state.address.checked_sub(address).and_then(|at| code.get(usize::try_from(at).ok()?..));
        let (Some(bytes), true) = (bytes, seen.len() <= MAX_STEPS) else { return Reach::Own };
        let instruction = Decoder::with_ip(64, bytes, state.address, DecoderOptions::NONE).decode();
        let found = |target| probed(target).is_some_and(|callee| stands_in(shape, callee));
        match step(&instruction, state, address..end, found) {
            Step::Follow(next) => open.extend(next),
            Step::Covered(how) if answer != Some(Reach::Calls) => answer = Some(how),
            Step::Covered(_) | Step::Harmless => {}
            Step::Uncovered => return Reach::Own,
        }
    }
    answer.unwrap_or(Reach::Own)
}

/// Whether a probe on a function of shape `callee` sees what one of shape `caller` does.
fn stands_in(caller: Shape, callee: Shape) -> bool {
    let allocates = |shape| matches!(shape, Shape::Allocate | Shape::Reallocate | Shape::StoreThrough);
    match caller {
        Shape::Allocate => allocates(callee),
        Shape::Reallocate | Shape::StoreThrough | Shape::Free | Shape::ResizeInPlace => callee == caller,
        Shape::Exit | Shape::Throw => false,
    }
}

enum Step {
    Follow(Vec<State>),
    Covered(Reach),
    Harmless,
    Uncovered,
}

fn step(
    instruction: &Instruction,
    state: State,
    extent: std::ops::Range<u64>,
    probed: impl Fn(Target) -> bool,
) -> Step {
    let next = after(instruction, state);
    let inside = |address: u64| extent.contains(&address);
    let target = target_of(instruction);
    match instruction.flow_control() {
        FlowControl::Next => Step::Follow(vec![next]),
        FlowControl::Call | FlowControl::IndirectCall => match target {
            Some(target) if probed(target) => Step::Covered(Reach::Calls),
            _ if !inside(next.address) => Step::Harmless,
            _ => Step::Follow(vec![State { zero: false, argument: false, tested: false, ..next }]),
        },
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => match target {
            Some(Target::Address(to)) if inside(to) => Step::Follow(vec![State { address: to, ..next }]),
            Some(target) if probed(target) => Step::Covered(Reach::Jumps),
            _ => Step::Uncovered,
        },
        FlowControl::ConditionalBranch => match target {
            Some(Target::Address(to)) if inside(to) => {
                let on_zero = matches!(instruction.mnemonic(), Mnemonic::Je);
                let on_other = matches!(instruction.mnemonic(), Mnemonic::Jne);
                let taken = State { address: to, null: state.null || state.tested && on_zero, ..next };
                Step::Follow(vec![taken, State { null: state.null || state.tested && on_other, ..next }])
            }
            _ => Step::Uncovered,
        },
        FlowControl::Return if state.zero || state.null => Step::Harmless,
        FlowControl::Interrupt | FlowControl::Exception if instruction.code() != Code::Int1 => Step::Harmless,
        _ => Step::Uncovered,
    }
}

/// The state behind an instruction that is fallen through.
fn after(instruction: &Instruction, state: State) -> State {
    let destination = if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register {
        instruction.op0_register().full_register()
    } else {
        Register::None
    };
    let same = instruction.op_count() == 2
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register();
    let reads_only =
        matches!(instruction.mnemonic(), Mnemonic::Test | Mnemonic::Cmp | Mnemonic::Push | Mnemonic::Nop);
    let clears = same && instruction.mnemonic() == Mnemonic::Xor && destination == Register::RAX;
    let writes = |register| destination == register && !reads_only;
    // Multiplications and the like write rax without naming it.
    let implicit = matches!(
        instruction.mnemonic(),
        Mnemonic::Mul
            | Mnemonic::Imul
            | Mnemonic::Div
            | Mnemonic::Idiv
            | Mnemonic::Cmpxchg
            | Mnemonic::Xchg
            | Mnemonic::Xadd
            | Mnemonic::Cdqe
            | Mnemonic::Cwde
            | Mnemonic::Cpuid
            | Mnemonic::Syscall
            | Mnemonic::Lodsq
            | Mnemonic::Leave
    );
    let strings = instruction.is_string_instruction();
    State {
        address: instruction.next_ip(),
        zero: clears || state.zero && !writes(Register::RAX) && !implicit && !strings,
        argument: state.argument
            && !writes(Register::RDI)
            && !strings
            && instruction.mnemonic() != Mnemonic::Xchg,
        tested: state.argument
            && same
            && instruction.mnemonic() == Mnemonic::Test
            && instruction.op0_register() == Register::RDI,
        null: state.null,
    }
}

/// Where a call or jump leads, unless that depends on a register.
pub fn target_of(instruction: &Instruction) -> Option<Target> {
    match instruction.op0_kind() {
        OpKind::NearBranch64 => Some(Target::Address(instruction.near_branch64())),
        OpKind::Memory if instruction.is_ip_rel_memory_operand() => {
            Some(Target::Slot(instruction.ip_rel_memory_address()))
        }
        _ => None,
    }
}

/// The slot that a PLT entry jumps through: `[endbr64] [bnd] jmp *slot(%rip)`.
pub fn plt_slot(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if instruction.code() == Code::Endbr64 {
        instruction = decoder.decode();
    }
    if instruction.flow_control() != FlowControl::IndirectBranch {
        return None;
    }
    match target_of(&instruction)? {
        Target::Slot(slot) => Some(slot),
        Target::Address(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;
    const HOOKED: u64 = 0x5000;

    /// `jmp rel32` or `call rel32` to the probed function, standing at offset `at`.
    fn to_hooked(opcode: u8, at: usize) -> Vec<u8> {
        let mut bytes = vec![opcode];
        bytes.extend(((HOOKED - (BASE + at as u64 + 5)) as u32).to_le_bytes());
        bytes
    }

    fn reach_of(code: &[u8], shape: Shape, callee: Shape) -> Reach {
        reach(code, BASE, shape, |target| (target == Target::Address(HOOKED)).then_some(callee))
    }

    #[test]
    fn a_bare_jump_needs_no_probe() {
        let code = to_hooked(0xe9, 0);
        assert_eq!(reach_of(&code, Shape::Free, Shape::Free), Reach::Jumps);
        assert_eq!(reach_of(&code, Shape::Free, Shape::Allocate), Reach::Own);
    }

    #[test]
    fn an_overflow_check_that_returns_null_needs_no_probe() {
        // mov rsi, rax; mul rdx; mov rax, rsi; jo +5; jmp realloc; xor eax, eax; ret
        let mut code = vec![0x48, 0x89, 0xf0, 0x48, 0xf7, 0xe2, 0x48, 0x89, 0xc6, 0x70, 5];
        code.extend(to_hooked(0xe9, 11));
        code.extend([0x31, 0xc0, 0xc3]);
        assert_eq!(reach_of(&code, Shape::Reallocate, Shape::Reallocate), Reach::Jumps);
    }

    #[test]
    fn a_path_that_returns_something_else_needs_its_own_probe() {
        // je +5; jmp malloc; mov rax, rdx; ret
        let mut code = vec![0x74, 5];
        code.extend(to_hooked(0xe9, 2));
        code.extend([0x48, 0x89, 0xd0, 0xc3]);
        assert_eq!(reach_of(&code, Shape::Allocate, Shape::Allocate), Reach::Own);
    }

    #[test]
    fn a_call_on_every_path_is_a_call() {
        // push rbx; call malloc; pop rbx; ret
        let mut code = vec![0x53];
        code.extend(to_hooked(0xe8, 1));
        code.extend([0x5b, 0xc3]);
        assert_eq!(reach_of(&code, Shape::Allocate, Shape::Allocate), Reach::Calls);
    }

    #[test]
    fn freeing_null_is_no_free() {
        // test rdi, rdi; je +7; sub rsp, 8 (4); ...: test/je to ret, else jmp free
        let mut code = vec![0x48, 0x85, 0xff, 0x74, 5];
        code.extend(to_hooked(0xe9, 5));
        code.push(0xc3);
        assert_eq!(reach_of(&code, Shape::Free, Shape::Free), Reach::Jumps);
        let mut other = vec![0x48, 0x85, 0xff, 0x75, 5];
        other.extend(to_hooked(0xe9, 5));
        other.push(0xc3);
        assert_eq!(reach_of(&other, Shape::Free, Shape::Free), Reach::Own);
    }

    #[test]
    fn code_that_cannot_be_followed_needs_its_own_probe() {
        assert_eq!(reach_of(&[0xff, 0xe0], Shape::Free, Shape::Free), Reach::Own);
        assert_eq!(reach_of(&[0x90], Shape::Free, Shape::Free), Reach::Own);
        assert_eq!(reach_of(&[], Shape::Free, Shape::Free), Reach::Own);
        assert_eq!(reach_of(&[0xeb, 0xfe], Shape::Free, Shape::Free), Reach::Own);
        assert_eq!(reach_of(&[0x06, 0x06], Shape::Free, Shape::Free), Reach::Own);
    }

    #[test]
    fn a_plt_entry_leads_to_its_slot() {
        let endbr = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0x10, 0, 0, 0];
        assert_eq!(plt_slot(&endbr, 0x2000), Some(0x2000 + 11 + 0x10));
        assert_eq!(plt_slot(&[0xff, 0x25, 0, 1, 0, 0], 0x2000), Some(0x2106));
        assert_eq!(plt_slot(&[0x90, 0x90], 0x2000), None);
    }
}
