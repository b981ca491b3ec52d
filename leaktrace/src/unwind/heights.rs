//! What one instruction does to a frame: how far the CFA is above rsp, and where rbp and rbx are saved. Which
//! instructions follow each other is left to `synthesis`.
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use leaktrace_common::unwind::{Rule, kind, saved};

use crate::unwind::rule::{self, plain};

/// Frames larger than this are not believed.
const MAX_FRAME_BYTES: i32 = 1 << 24;

/// What is known of a frame before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Where things are.
    Known(Layout),
    /// The ABI's mark of the deepest frame was set: rbp was cleared though it was not saved.
    Outermost,
    /// Nothing.
    Unknown,
}

/// Offsets in a frame, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// CFA − rsp.
    height: Option<i32>,
    /// CFA − rbp, where rbp is used as frame pointer.
    pointer: Option<i32>,
    /// Where rbp is saved, relative to the CFA.
    rbp_at: Option<i32>,
    /// Where rbx is saved, relative to the CFA.
    rbx_at: Option<i32>,
}

impl Frame {
    /// At a function's first instruction: only the return address is on the stack.
    pub(super) const ENTRY: Frame =
        Frame::Known(Layout { height: Some(8), pointer: None, rbp_at: None, rbx_at: None });

    /// What is known where control comes from two places.
    pub(super) fn join(self, other: Frame) -> Frame {
        match (self, other) {
            (a, b) if a == b => a,
            (Frame::Known(a), Frame::Known(b)) if (a.rbp_at, a.rbx_at) == (b.rbp_at, b.rbx_at) => {
                let same = |a: Option<i32>, b: Option<i32>| a.filter(|_| a == b);
                let (height, pointer) = (same(a.height, b.height), same(a.pointer, b.pointer));
                Frame::Known(Layout { height, pointer, ..a })
            }
            _ => Frame::Unknown,
        }
    }

    /// What is known after an instruction.
    pub(super) fn after(self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Frame {
        match self {
            Frame::Known(layout) => layout.after(instruction, info),
            same => same,
        }
    }

    /// The rule that leaves the frame.
    pub(super) fn rule(self) -> Rule {
        match self {
            Frame::Outermost => plain(kind::OUTERMOST),
            Frame::Unknown => plain(kind::NO_CFI),
            Frame::Known(layout) => layout.rule(),
        }
    }
}

impl Layout {
    fn rule(self) -> Rule {
        let (register, offset) = match (self.height, self.pointer) {
            (Some(height), _) => (rule::RSP, height),
            (None, Some(pointer)) => (rule::RBP, pointer),
            (None, None) => return plain(kind::NO_CFI),
        };
        let mut rule = plain(kind::REGISTER);
        (rule.cfa_register, rule.cfa_offset) = (register.0 as u8, offset);
        if let Some(offset) = self.rbp_at {
            (rule.saved, rule.rbp_offset) = (rule.saved | saved::RBP, offset);
        }
        if let Some(offset) = self.rbx_at {
            (rule.saved, rule.rbx_offset) = (rule.saved | saved::RBX, offset);
        }
        rule
    }

    fn after(mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Frame {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        match (instruction.mnemonic(), to, from) {
            (Mnemonic::Push, register, _) => {
                self.height = moved(self.height, -instruction.stack_pointer_increment());
                self.save(register, self.height.map(|height| -height));
            }
            (Mnemonic::Pop, register, _) => {
                let at = self.height.map(|height| -height);
                self.height = moved(self.height, -instruction.stack_pointer_increment());
                if !self.restore(register, at) && !self.lose(register) {
                    return Frame::Unknown;
                }
            }
            (Mnemonic::Leave, ..) => {
                self.height = moved(self.pointer, -8);
                (self.pointer, self.rbp_at) = (None, None);
            }
            (Mnemonic::Mov, Register::RBP, Register::RSP) if self.rbp_at.is_some() => {
                self.pointer = self.height;
            }
            (Mnemonic::Mov, Register::RSP, Register::RBP) => self.height = self.pointer,
            (Mnemonic::Mov, Register::None, register) if instruction.op0_kind() == OpKind::Memory => {
                self.save(register, self.place(instruction));
            }
            (Mnemonic::Mov, register, Register::None) if instruction.op1_kind() == OpKind::Memory => {
                if !self.restore(register, self.place(instruction)) && !self.lose(register) {
                    return Frame::Unknown;
                }
            }
            (Mnemonic::Lea, Register::RSP, _) => self.height = self.place(instruction).map(|place| -place),
            (Mnemonic::Lea, Register::RBP, _) if self.rbp_at.is_some() => {
                self.pointer = self.place(instruction).map(|place| -place);
            }
            (Mnemonic::Add, Register::RSP, _) => {
                self.height = moved_by_immediate(self.height, instruction, -1);
            }
            (Mnemonic::Sub, Register::RSP, _) => {
                self.height = moved_by_immediate(self.height, instruction, 1);
            }
            (Mnemonic::Xor, Register::EBP | Register::RBP, Register::EBP | Register::RBP)
                if self.rbp_at.is_none() =>
            {
                return Frame::Outermost;
            }
            // A callee leaves rsp, rbp and rbx as they were.
            (Mnemonic::Call, ..) => {}
            _ => return self.after_any(instruction, info),
        }
        self.checked()
    }

    /// After an instruction of no special meaning: forgets what it overwrites.
    fn after_any(mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Frame {
        for used in info.info(instruction).used_registers() {
            let is_written =
                !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            if is_written && !self.lose(used.register()) {
                return Frame::Unknown;
            }
        }
        self.checked()
    }

    /// A layout that no function has is none.
    fn checked(self) -> Frame {
        let is_sound = self.height.is_none_or(|height| (8..MAX_FRAME_BYTES).contains(&height));
        if is_sound { Frame::Known(self) } else { Frame::Unknown }
    }

    /// Notes that a register's value at entry is now in memory.
    fn save(&mut self, register: Register, at: Option<i32>) {
        match register {
            Register::RBP if self.rbp_at.is_none() && self.pointer.is_none() => self.rbp_at = at,
            Register::RBX if self.rbx_at.is_none() => self.rbx_at = at,
            _ => {}
        }
    }

    /// Notes that a register was loaded; true if with its value at entry.
    fn restore(&mut self, register: Register, from: Option<i32>) -> bool {
        let place = match register {
            Register::RBP => &mut self.rbp_at,
            Register::RBX => &mut self.rbx_at,
            _ => return false,
        };
        let is_restored = from.is_some() && *place == from;
        if is_restored {
            *place = None;
            if register == Register::RBP {
                self.pointer = None;
            }
        }
        is_restored
    }

    /// Notes that a register was overwritten; false where its value at entry is lost with it.
    fn lose(&mut self, register: Register) -> bool {
        match register.full_register() {
            Register::RSP => self.height = None,
            Register::RBP => {
                self.pointer = None;
                return self.rbp_at.is_some();
            }
            Register::RBX => return self.rbx_at.is_some(),
            _ => {}
        }
        true
    }

    /// Where a memory operand lies relative to the CFA, if it is on the stack.
    fn place(&self, instruction: &Instruction) -> Option<i32> {
        let base = match instruction.memory_base() {
            Register::RSP => self.height?,
            Register::RBP => self.pointer?,
            _ => return None,
        };
        if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
            return None;
        }
        i32::try_from(instruction.memory_displacement64().cast_signed()).ok()?.checked_sub(base)
    }
}

fn moved(height: Option<i32>, bytes: i32) -> Option<i32> {
    height?.checked_add(bytes)
}

fn moved_by_immediate(height: Option<i32>, instruction: &Instruction, sign: i32) -> Option<i32> {
    let bytes = i32::try_from(instruction.try_immediate(1).ok()?.cast_signed()).ok()?;
    moved(height, bytes.checked_mul(sign)?)
}
