//! Chooses where in a function to put a probe: on the instruction that the kernel handles cheapest among
//! those that every call executes once, with the arguments still in registers. Pure: code and the host's
//! abilities come in as values.
//!
//! Measured on 6.18: a probe on an emulated instruction costs 0.6 µs, on any other 10 to 19 µs. glibc's
//! `free` tests for NULL first, which is not emulated; the `push` behind the test is. An offset that is no
//! instruction boundary would corrupt the target, so everything is decoded from the function's first byte. So would
//! a probe that becomes a call where a function keeps values below the stack pointer: [`prologue::becomes_call`].
use super::prologue::{self, InstructionClass, Step};
use crate::discover::{
    reach::{Target, target_of},
    scan::{Code, FoundFunction},
};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use leaktrace_common::hook::{Argument, Hook, NO_ARGUMENT, Shape};
use std::collections::{BTreeSet, HashSet};

/// Which classes of instructions the host's kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedClasses(u16);

impl EmulatedClasses {
    /// None: every probe goes to a function's first instruction.
    pub const NONE: EmulatedClasses = EmulatedClasses(0);

    /// What kernels from 5.15 on emulate on x86-64 *(believed; measured on 6.18)*. `endbr64` is single-stepped
    /// by 6.18; long nops are emulated by it but not by all older kernels, so they are left to be measured.
    pub const COMMON: EmulatedClasses = EmulatedClasses::NONE
        .with(InstructionClass::Push)
        .with(InstructionClass::PushExtended)
        .with(InstructionClass::Nop)
        .with(InstructionClass::JumpShort)
        .with(InstructionClass::JumpNear)
        .with(InstructionClass::BranchShort)
        .with(InstructionClass::BranchNear)
        .with(InstructionClass::Call);

    /// These and one more.
    pub const fn with(self, class: InstructionClass) -> EmulatedClasses {
        EmulatedClasses(self.0 | class as u16)
    }

    /// Whether the class is emulated.
    pub fn contains(self, class: InstructionClass) -> bool {
        self.0 & class as u16 != 0
    }
}

/// What a probe costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostClass {
    /// The kernel emulates the instruction in the trap.
    Emulated,
    /// The kernel single-steps a copy of the instruction: a second trap.
    SingleStepped,
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// Offset in the file to attach to.
    pub file_offset: u64,
    /// Bytes from the function's first instruction.
    pub instruction_offset: u64,
    /// What it costs.
    pub cost_class: CostClass,
    /// The function's hook with the arguments where they are at this instruction and with the return slot.
    pub hook: Hook,
    /// Words of 8 bytes from the stack pointer to the return address.
    pub return_slot_words: u8,
    /// Calls with a NULL pointer do not come here.
    pub skips_null: bool,
    /// The instruction's bytes, to be found at the offset before attaching.
    pub bytes: Vec<u8>,
    /// Mnemonic and bytes, for reports.
    pub instruction_text: String,
}

/// Chooses the probe site of a function. With `need_return` a return or session probe goes there too: it
/// replaces the word at the stack pointer, which must then be the return address.
///
/// # Errors
/// A clause that says why no instruction of the function may have a probe.
pub fn plan(
    function: &FoundFunction,
    emulated: EmulatedClasses,
    need_return: bool,
) -> Result<ProbeSite, String> {
    let frees = function.hook.shape == Shape::Free && !need_return;
    let null_check = frees.then_some(function.hook.pointer);
    let steps = prologue::straight_line(&function.code, null_check);
    let repeated = prologue::first_jump_target(&function.code).unwrap_or(usize::MAX);
    let fit: Vec<(&Step, Hook)> = steps
        .iter()
        .filter(|step| step.offset == 0 || step.offset < repeated)
        .filter(|step| !need_return || step.return_slot_words == 0)
        .filter(|step| InstructionClass::of(&step.bytes).is_some_and(|class| emulated.contains(class)))
        .filter(|step| is_harmless(function, step))
        .filter_map(|step| Some((step, hook_at(function.hook, step)?)))
        .collect();
    let best = fit.iter().find(|(step, _)| step.skips_null).or(fit.first());
    match best {
        Some((step, hook)) => Ok(site(function, step, *hook, CostClass::Emulated)),
        None if steps.first().is_some_and(|first| !is_harmless(function, first)) => {
            Err("it begins with a nop that Linux replaces by a call, and jumps back to it: what it keeps below the \
                 stack pointer would be overwritten"
                .to_owned())
        }
        None => Ok(first_instruction(function, &steps)),
    }
}

/// Whether what the kernel makes of the instruction leaves the function's red zone alone.
fn is_harmless(function: &FoundFunction, step: &Step) -> bool {
    !prologue::becomes_call(&step.bytes) || prologue::is_before_red_zone(&function.code, step.offset)
}

/// The hook as a probe on this instruction must read it; `None` if an argument it needs is in no argument
/// register.
fn hook_at(hook: Hook, step: &Step) -> Option<Hook> {
    let moved = |argument: Argument| {
        if argument == NO_ARGUMENT { Some(NO_ARGUMENT) } else { step.holder(argument) }
    };
    Some(Hook {
        size: moved(hook.size)?,
        count: moved(hook.count)?,
        pointer: moved(hook.pointer)?,
        return_slot_words: step.return_slot_words,
        ..hook
    })
}

fn site(function: &FoundFunction, step: &Step, hook: Hook, cost_class: CostClass) -> ProbeSite {
    let hex: Vec<String> = step.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    ProbeSite {
        file_offset: function.file_offset.saturating_add(step.offset as u64),
        instruction_offset: step.offset as u64,
        cost_class,
        hook,
        return_slot_words: step.return_slot_words,
        skips_null: step.skips_null,
        bytes: step.bytes.clone(),
        instruction_text: format!("{} [{}]", step.mnemonic, hex.join(" ")),
    }
}

fn first_instruction(function: &FoundFunction, steps: &[Step]) -> ProbeSite {
    match steps.first() {
        Some(step) => site(function, step, function.hook, CostClass::SingleStepped),
        None => ProbeSite {
            file_offset: function.file_offset,
            instruction_offset: 0,
            cost_class: CostClass::SingleStepped,
            hook: function.hook,
            return_slot_words: 0,
            skips_null: false,
            bytes: Vec::new(),
            instruction_text: "unknown".into(),
        },
    }
}

/// An instruction at which a call ends: the result is in rax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExitSite {
    /// Offset in the file to attach to.
    pub file_offset: u64,
    /// Words of 8 bytes from the stack pointer to the return address: 0 at a `ret`.
    pub return_slot_words: u8,
}

/// How a function ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Every `ret` that a call of the function can end with, those of functions it jumps to included.
    pub sites: Vec<ExitSite>,
    /// Jumps out of it whose destination is unknown: a call that ends behind one is not recorded.
    pub unresolved: u32,
}

const MAX_INSTRUCTIONS: usize = 50_000;
const MAX_FUNCTIONS: usize = 64;
const MAX_EXITS: usize = 256;

/// Finds the exits of a function that must not have a return probe because an exception may cross it.
/// `code_of` gives the function that a jump leads to. Only instructions that control reaches from the entry
/// are taken.
///
/// # Errors
/// A clause that says why the exits are not known: the function's end is unknown, it is too large, or no exit
/// was found.
pub fn exits(function: &FoundFunction, code_of: impl Fn(Target) -> Option<Code>) -> Result<Exits, String> {
    let mut walk = Walk { sites: BTreeSet::new(), seen: HashSet::new(), unresolved: 0 };
    let own =
        Code { address: function.address, file_offset: function.file_offset, bytes: function.code.clone() };
    let whole = function.size_bytes != 0 && function.size_bytes == function.code.len() as u64;
    let own = if whole { Some(own) } else { code_of(Target::Address(function.address)) };
    let own = own.ok_or("its end is not known: neither symbol size nor unwind information")?;
    let mut open = vec![(own, function.address)];
    let mut functions = 0;
    while let Some((code, entry)) = open.pop() {
        functions += 1;
        if functions > MAX_FUNCTIONS {
            return Err(format!("it jumps on through more than {MAX_FUNCTIONS} functions"));
        }
        for target in walk.function(&code, entry)? {
            match code_of(target) {
                Some(next) => {
                    let to = match target {
                        Target::Address(to) if contains(&next, to) => to,
                        _ => next.address,
                    };
                    open.push((next, to));
                }
                None => walk.unresolved += 1,
            }
        }
    }
    if walk.sites.is_empty() {
        return Err("no return was found: it ends in jumps whose destination is unknown".into());
    }
    Ok(Exits { sites: walk.sites.into_iter().collect(), unresolved: walk.unresolved })
}

fn contains(code: &Code, address: u64) -> bool {
    address.checked_sub(code.address).is_some_and(|within| within < code.bytes.len() as u64)
}

struct Walk {
    sites: BTreeSet<ExitSite>,
    seen: HashSet<u64>,
    unresolved: u32,
}

impl Walk {
    /// Walks one function from `entry`; gives the targets outside it.
    fn function(&mut self, code: &Code, entry: u64) -> Result<Vec<Target>, String> {
        let mut outside = Vec::new();
        let mut open = vec![entry];
        while let Some(address) = open.pop() {
            if !contains(code, address) || !self.seen.insert(address) {
                continue;
            }
            if self.seen.len() > MAX_INSTRUCTIONS || self.sites.len() > MAX_EXITS {
                return Err(format!(
                    "it is larger than {MAX_INSTRUCTIONS} instructions or {MAX_EXITS} exits"
                ));
            }
            let within = (address - code.address) as usize;
            let bytes = code.bytes.get(within..).unwrap_or(&[]);
            let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
            let target = target_of(&instruction);
            let mut jump = |to: Option<Target>, open: &mut Vec<u64>| match to {
                Some(Target::Address(to)) if contains(code, to) => open.push(to),
                Some(to) => outside.push(to),
                None => self.unresolved += 1,
            };
            match instruction.flow_control() {
                FlowControl::Return => {
                    let file_offset = code.file_offset + within as u64;
                    self.sites.insert(ExitSite { file_offset, return_slot_words: 0 });
                }
                FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => jump(target, &mut open),
                FlowControl::ConditionalBranch => {
                    jump(target, &mut open);
                    open.push(instruction.next_ip());
                }
                FlowControl::Exception => {}
                _ if instruction.is_invalid() => {}
                _ => open.push(instruction.next_ip()),
            }
        }
        Ok(outside)
    }
}

#[cfg(test)]
mod tests;
