//! One row of call frame information, as gimli evaluates it, to the 16 bytes of a [`Rule`]. Which rows there
//! are is left to `cfi`.
//!
//! DWARF can say almost anything; compilers say about five things. What is neither becomes
//! [`kind::UNSUPPORTED`], which stops a walk there: a stack that ends early and says so is worth more than a
//! wrong one.
use gimli::{
    CfaRule, EndianSlice, LittleEndian, Reader, Register, RegisterRule, UnwindContextStorage,
    UnwindExpression, UnwindSection, UnwindTableRow,
};
use leaktrace_common::unwind::{Rule, SIGNAL_REGISTERS, SIGNAL_RSP, kind, saved};

/// What the sections are read through.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// DWARF numbers of the registers that are followed (System V ABI for AMD64, figure 3.36).
pub(super) const RBX: Register = Register(3);
pub(super) const RBP: Register = Register(6);
pub(super) const RSP: Register = Register(7);
pub(super) const RETURN_ADDRESS: Register = Register(16);

/// The return address lies just below the CFA: `call` pushed it.
const RETURN_SLOT: i64 = -8;

/// How much gimli remembers while it evaluates: x86-64 has 17 registers in CFI, with room for vector masks, and
/// compilers nest `DW_CFA_remember_state` once or twice. Larger rows only make hostile programs slower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 32];
    type Stack = Box<[UnwindTableRow<usize, Self>; 8]>;
}

/// A rule of one of the kinds that need no more than the kind.
pub(super) const fn plain(kind: u8) -> Rule {
    Rule { kind, saved: 0, cfa_register: 0, reserved: 0, cfa_offset: 0, rbp_offset: 0, rbx_offset: 0 }
}

/// The rule that a row stands for. `is_signal` is the CIE's 'S': the frame was entered by a signal.
pub(super) fn from_row<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize, Storage>,
    is_signal: bool,
    section: &S,
) -> Rule {
    let unsupported = plain(kind::UNSUPPORTED);
    if is_signal {
        return if restores_from_signal_frame(row, section) { plain(kind::SIGNAL) } else { unsupported };
    }
    match row.register(RETURN_ADDRESS) {
        Some(RegisterRule::Undefined) => return plain(kind::OUTERMOST),
        Some(RegisterRule::Offset(RETURN_SLOT)) => {}
        _ => return unsupported,
    }
    let rule = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => by_register(row, *register, *offset),
        CfaRule::Expression(expression) => {
            bytes_of(expression, section).and_then(|bytes| by_expression(row, bytes, section))
        }
    };
    rule.unwrap_or(unsupported)
}

/// CFA = register + offset, the ordinary case.
fn by_register(row: &UnwindTableRow<usize, Storage>, register: Register, offset: i64) -> Option<Rule> {
    if !matches!(register, RSP | RBP | RBX) {
        return None;
    }
    let mut rule = plain(kind::REGISTER);
    rule.cfa_register = u8::try_from(register.0).ok()?;
    rule.cfa_offset = i32::try_from(offset).ok()?;
    save_at_cfa(&mut rule, row)?;
    Some(rule)
}

fn by_expression<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize, Storage>,
    expression: Bytes<'a>,
    section: &S,
) -> Option<Rule> {
    if let Some(pushed_from) = plt_threshold(expression.slice()) {
        let mut rule = plain(kind::PLT);
        rule.cfa_offset = i32::from(pushed_from);
        return (saved_at(row.register(RBP)) == Saved::Unchanged
            && saved_at(row.register(RBX)) == Saved::Unchanged)
            .then_some(rule);
    }
    let (register, offset) = register_plus_offset_then_deref(expression)?;
    if register != RBP || rbp_relative(row.register(RBP), section)? != 0 {
        return None;
    }
    let mut rule = plain(kind::DRAP);
    rule.cfa_offset = i32::try_from(offset).ok()?;
    if saved_at(row.register(RBX)) != Saved::Unchanged {
        rule.saved = saved::RBX;
        rule.rbx_offset = i32::try_from(rbp_relative(row.register(RBX), section)?).ok()?;
    }
    Some(rule)
}

/// Notes where rbp and rbx are saved; `None` where they are saved in a way that a rule cannot say.
fn save_at_cfa(rule: &mut Rule, row: &UnwindTableRow<usize, Storage>) -> Option<()> {
    match saved_at(row.register(RBP)) {
        Saved::Unchanged => {}
        Saved::AtCfa(offset) => (rule.saved, rule.rbp_offset) = (rule.saved | saved::RBP, offset),
        Saved::Otherwise => return None,
    }
    match saved_at(row.register(RBX)) {
        Saved::Unchanged => {}
        Saved::AtCfa(offset) => (rule.saved, rule.rbx_offset) = (rule.saved | saved::RBX, offset),
        Saved::Otherwise => return None,
    }
    Some(())
}

/// Where a frame keeps its caller's value of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    /// Still in the register.
    Unchanged,
    /// In memory at CFA + offset.
    AtCfa(i32),
    /// Lost, in another register, or at an address that only an expression gives.
    Otherwise,
}

fn saved_at(rule: Option<RegisterRule<usize>>) -> Saved {
    match rule {
        None | Some(RegisterRule::SameValue) => Saved::Unchanged,
        Some(RegisterRule::Offset(offset)) => i32::try_from(offset).map_or(Saved::Otherwise, Saved::AtCfa),
        Some(_) => Saved::Otherwise,
    }
}

/// The offset n of `DW_CFA_expression: DW_OP_breg6 (rbp) n`, by which functions that realign their stack say
/// where they saved a register.
fn rbp_relative<'a, S: UnwindSection<Bytes<'a>>>(
    rule: Option<RegisterRule<usize>>,
    section: &S,
) -> Option<i64> {
    let Some(RegisterRule::Expression(expression)) = rule else { return None };
    let mut bytes = bytes_of(&expression, section)?;
    let (register, offset) = register_plus_offset(&mut bytes)?;
    (register == RBP && bytes.is_empty()).then_some(offset)
}

/// Whether the row takes its CFA, which is rsp, from where the kernel put it in an `rt_sigframe`. Code that is
/// marked 'S' for another reason (a context switch in assembly) keeps its registers elsewhere.
fn restores_from_signal_frame<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize, Storage>,
    section: &S,
) -> bool {
    let CfaRule::Expression(expression) = row.cfa() else { return false };
    let place = bytes_of(expression, section).and_then(register_plus_offset_then_deref);
    let rsp_slot = i64::try_from(SIGNAL_REGISTERS + 8 * SIGNAL_RSP);
    rsp_slot.is_ok_and(|slot| place == Some((RSP, slot)))
}

fn bytes_of<'a, S: UnwindSection<Bytes<'a>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
) -> Option<Bytes<'a>> {
    Some(expression.get(section).ok()?.0)
}

/// `DW_OP_breg<register> offset; DW_OP_deref`, and no more.
fn register_plus_offset_then_deref(mut bytes: Bytes<'_>) -> Option<(Register, i64)> {
    let place = register_plus_offset(&mut bytes)?;
    (bytes.slice() == [gimli::DW_OP_deref.0]).then_some(place)
}

fn register_plus_offset(bytes: &mut Bytes<'_>) -> Option<(Register, i64)> {
    let operation = bytes.read_u8().ok()?;
    let register = operation.checked_sub(gimli::DW_OP_breg0.0).filter(|&number| number < 32)?;
    Some((Register(u16::from(register)), bytes.read_sleb128().ok()?))
}

/// The expression that linkers write for a lazily bound PLT: each entry of 16 bytes pushes one word on its way,
/// so CFA = rsp + 8 + ((rip & 15) >= n) << 3. Returns n: 11 in ordinary entries, 9 behind `endbr64`.
fn plt_threshold(expression: &[u8]) -> Option<u8> {
    let [
        0x77, // DW_OP_breg7 (rsp)
        8,
        0x80, // DW_OP_breg16 (rip)
        0,
        0x3f,                  // DW_OP_lit15
        0x1a,                  // DW_OP_and
        literal @ 0x30..=0x3f, // DW_OP_lit0 + n
        0x2a,                  // DW_OP_ge
        0x33,                  // DW_OP_lit3
        0x24,                  // DW_OP_shl
        0x22,                  // DW_OP_plus
    ] = expression
    else {
        return None;
    };
    Some(literal - 0x30)
}
