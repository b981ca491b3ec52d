//! Reads the first instructions of a function: which of them a probe may stand on, where the arguments are
//! there, how far the stack pointer has moved. Which one to take is for [`super::plan`].
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use leaktrace_common::hook::Argument;

/// Instructions that the kernel may be able to emulate at a uprobe, which is some twenty times as fast as
/// single-stepping a copy (arch/x86/kernel/uprobes.c: `branch_setup_xol_ops`, `push_setup_xol_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum InstructionClass {
    /// `push` of rax to rdi: 50 to 57.
    Push = 1,
    /// `push` of r8 to r15: 41 50 to 41 57. Any other REX prefix is single-stepped.
    PushExtended = 2,
    /// One- and two-byte nop: 90, 66 90.
    Nop = 4,
    /// Multi-byte nop without prefixes: 0f 1f. With prefixes the kernel refuses the probe.
    LongNop = 8,
    /// f3 0f 1e fa.
    Endbr64 = 16,
    /// `jmp rel8`: eb.
    JumpShort = 32,
    /// `jmp rel32`: e9.
    JumpNear = 64,
    /// Conditional jump rel8: 70 to 7f.
    BranchShort = 128,
    /// Conditional jump rel32: 0f 80 to 0f 8f.
    BranchNear = 256,
    /// `call rel32`: e8.
    Call = 512,
}

impl InstructionClass {
    /// Every class with bytes to try it with on a host; jumps and calls go to the next instruction.
    pub const SAMPLES: [(InstructionClass, &'static [u8]); 10] = [
        (InstructionClass::Push, &[0x55]),
        (InstructionClass::PushExtended, &[0x41, 0x54]),
        (InstructionClass::Nop, &[0x90]),
        (InstructionClass::LongNop, &[0x0f, 0x1f, 0x40, 0x00]),
        (InstructionClass::Endbr64, &[0xf3, 0x0f, 0x1e, 0xfa]),
        (InstructionClass::JumpShort, &[0xeb, 0]),
        (InstructionClass::JumpNear, &[0xe9, 0, 0, 0, 0]),
        (InstructionClass::BranchShort, &[0x74, 0]),
        (InstructionClass::BranchNear, &[0x0f, 0x84, 0, 0, 0, 0]),
        (InstructionClass::Call, &[0xe8, 0, 0, 0, 0]),
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            InstructionClass::Push => "push",
            InstructionClass::PushExtended => "push of r8 to r15",
            InstructionClass::Nop => "nop",
            InstructionClass::LongNop => "nop of several bytes",
            InstructionClass::Endbr64 => "endbr64",
            InstructionClass::JumpShort => "jmp rel8",
            InstructionClass::JumpNear => "jmp rel32",
            InstructionClass::BranchShort => "jcc rel8",
            InstructionClass::BranchNear => "jcc rel32",
            InstructionClass::Call => "call rel32",
        }
    }

    /// The class of an instruction's bytes. (41 90 is `xchg r8, rax`, which kernels take for a nop and skip:
    /// in no class.)
    pub fn of(bytes: &[u8]) -> Option<InstructionClass> {
        match *bytes {
            [0x50..=0x57] => Some(InstructionClass::Push),
            [0x41, 0x50..=0x57] => Some(InstructionClass::PushExtended),
            [0x90] | [0x66, 0x90] => Some(InstructionClass::Nop),
            [0x0f, 0x1f, ..] => Some(InstructionClass::LongNop),
            [0xf3, 0x0f, 0x1e, 0xfa] => Some(InstructionClass::Endbr64),
            [0xeb, _] => Some(InstructionClass::JumpShort),
            [0xe9, _, _, _, _] => Some(InstructionClass::JumpNear),
            [0x70..=0x7f, _] => Some(InstructionClass::BranchShort),
            [0x0f, 0x80..=0x8f, _, _, _, _] => Some(InstructionClass::BranchNear),
            [0xe8, _, _, _, _] => Some(InstructionClass::Call),
            _ => None,
        }
    }
}

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
/// Arguments that a register can pass.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
const MAX_INSTRUCTIONS: usize = 32;
const MAX_PUSHED_WORDS: u64 = 64;

/// An instruction that is executed exactly once in each call, except perhaps in calls with a NULL pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes from the function's start.
    pub offset: usize,
    /// Bytes of the instruction.
    pub bytes: Vec<u8>,
    /// Lower-case mnemonic.
    pub mnemonic: String,
    /// For each of the six arguments: the positions of the argument registers that hold it before this
    /// instruction, as bits.
    pub holders: [u8; 6],
    /// Words of 8 bytes from the stack pointer before this instruction to the return address.
    pub return_slot_words: u8,
    /// Only calls with a non-NULL pointer come here.
    pub skips_null: bool,
}

impl Step {
    /// An argument register that holds what was argument `argument`, its own if it still does.
    pub fn holder(&self, argument: Argument) -> Option<Argument> {
        let held = *self.holders.get(usize::from(argument))?;
        if held & 1 << argument != 0 {
            return Some(argument);
        }
        (0..6).find(|position| held & 1 << position != 0)
    }
}

/// What is known between two instructions.
struct State {
    /// For each argument, the general registers that hold it, as bits by register number.
    values: [u16; 6],
    words: u64,
    /// The pointer argument was compared with NULL by the instruction before.
    tested: bool,
    skips_null: bool,
}

/// The straight line from a function's first instruction, up to where control or knowledge is lost.
/// `null_check` is the pointer argument whose comparison with NULL may be passed (free does nothing for
/// NULL).
pub fn straight_line(code: &[u8], null_check: Option<Argument>) -> Vec<Step> {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    let mut state = State { values: ARGUMENTS.map(bit), words: 0, tested: false, skips_null: false };
    let mut steps = Vec::new();
    while decoder.can_decode() && steps.len() < MAX_INSTRUCTIONS {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        steps.extend(step(&instruction, code, &state));
        if !pass(&instruction, &mut state, &mut factory, null_check) {
            break;
        }
    }
    steps
}

/// The lowest offset above 0 that a direct jump inside the code leads to: from there on an instruction may be
/// executed again.
pub fn first_jump_target(code: &[u8]) -> Option<usize> {
    jump_targets(code).filter(|target| *target > 0).min()
}

/// The offsets inside the code that its direct jumps lead to.
fn jump_targets(code: &[u8]) -> impl Iterator<Item = usize> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter().filter_map(|instruction| {
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        let is_direct = jumps && instruction.op0_kind() == OpKind::NearBranch64;
        let target = usize::try_from(instruction.near_branch64()).ok().filter(|_| is_direct)?;
        (target < code.len()).then_some(target)
    })
}

/// Bytes of a call to a near address, and of the nops that Linux 6.18 replaces by one.
const CALL_BYTES: usize = 5;

/// Whether the kernel may replace a probed instruction by a call, which writes below the stack pointer.
///
/// From Linux 6.18 on that is every instruction of five bytes that does nothing (arch/x86/kernel/uprobes.c:
/// `can_optimize`; arch/x86/lib/insn-eval.c: `insn_is_nop`): nops, moves and address computations from a register to
/// itself, jumps to the next instruction. All that do nothing are meant here, those too that the kernel passes over
/// now. (The nop of ten bytes that later kernels take instead leaves the red zone alone.)
pub fn becomes_call(bytes: &[u8]) -> bool {
    if bytes.len() != CALL_BYTES {
        return false;
    }
    let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    let first = instruction.op0_register();
    match instruction.mnemonic() {
        Mnemonic::Nop | Mnemonic::Fnop => true,
        Mnemonic::Mov | Mnemonic::Xchg => {
            instruction.op1_kind() == OpKind::Register && instruction.op1_register() == first
        }
        Mnemonic::Lea => instruction.memory_base() == first && instruction.memory_displacement64() == 0,
        Mnemonic::Jmp => {
            instruction.op0_kind() == OpKind::NearBranch64
                && instruction.near_branch64() == instruction.next_ip()
        }
        _ => false,
    }
}

/// Whether nothing can be kept below the stack pointer when the instruction at `offset` of a function is executed: it
/// is the function's first one, perhaps behind an `endbr64`, and no jump of the function leads back to it.
///
/// At a function's first instruction the stack pointer is at the return address, which the call has just written;
/// what is below is the function's own red zone, and it has not used it yet. `endbr64` does not use it. Behind any
/// other instruction this would have to be proved, for little: the next cheap instruction is never far.
pub fn is_before_red_zone(code: &[u8], offset: usize) -> bool {
    let before = code.get(..offset);
    let is_first = before.is_some_and(|before| before.is_empty() || before == ENDBR64);
    is_first && jump_targets(code).all(|target| target > offset)
}

fn step(instruction: &Instruction, code: &[u8], state: &State) -> Option<Step> {
    let offset = instruction.ip() as usize;
    let position_bits = |held: u16| {
        ARGUMENTS
            .iter()
            .enumerate()
            .fold(0, |bits, (position, register)| bits | u8::from(held & bit(*register) != 0) << position)
    };
    Some(Step {
        offset,
        bytes: code.get(offset..offset + instruction.len())?.to_vec(),
        mnemonic: format!("{:?}", instruction.mnemonic()).to_lowercase(),
        holders: state.values.map(position_bits),
        return_slot_words: u8::try_from(state.words).ok()?,
        skips_null: state.skips_null,
    })
}

/// Takes the state past an instruction; false where the straight line ends with it.
fn pass(
    instruction: &Instruction,
    state: &mut State,
    factory: &mut InstructionInfoFactory,
    null_check: Option<Argument>,
) -> bool {
    match instruction.flow_control() {
        FlowControl::Next => {}
        FlowControl::ConditionalBranch if state.tested && instruction.mnemonic() == Mnemonic::Je => {
            state.skips_null = true;
            state.tested = false;
            return true;
        }
        _ => return false,
    }
    state.tested = null_check.is_some_and(|argument| tests_for_null(instruction, state, argument));
    let copied = copy(instruction);
    let mut moves_stack = false;
    for used in factory.info(instruction).used_registers() {
        let register = used.register().full_register();
        if matches!(
            used.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
        ) {
            continue;
        }
        moves_stack |= register == Register::RSP;
        for held in &mut state.values {
            *held &= !bit(register);
        }
    }
    if let Some((to, from)) = copied {
        for held in state.values.iter_mut().filter(|held| **held & bit(from) != 0) {
            *held |= bit(to);
        }
    }
    if moves_stack {
        match pushed_words(instruction) {
            Some(words) => state.words += words,
            None => return false,
        }
    }
    state.words <= MAX_PUSHED_WORDS
}

fn bit(register: Register) -> u16 {
    if register.is_gpr64() { 1u16.checked_shl(register.number() as u32).unwrap_or(0) } else { 0 }
}

fn tests_for_null(instruction: &Instruction, state: &State, argument: Argument) -> bool {
    instruction.code() == Code::Test_rm64_r64
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
        && state
            .values
            .get(usize::from(argument))
            .is_some_and(|held| held & bit(instruction.op0_register()) != 0)
}

/// Destination and source of a 64-bit register move.
fn copy(instruction: &Instruction) -> Option<(Register, Register)> {
    let moves = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64);
    let registers = instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register;
    (moves && registers).then(|| (instruction.op0_register(), instruction.op1_register()))
}

/// Words by which an instruction lowers the stack pointer; `None` for a change that is not followed.
fn pushed_words(instruction: &Instruction) -> Option<u64> {
    match instruction.code() {
        Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Some(1),
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
            let bytes = instruction.immediate(1);
            (bytes.is_multiple_of(8) && bytes <= 8 * MAX_PUSHED_WORDS).then_some(bytes / 8)
        }
        _ => None,
    }
}
