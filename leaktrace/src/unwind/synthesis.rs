//! Rows for code that has no call frame information: musl's C library, assembly, stripped files. Follows the
//! control flow from each function's entry and keeps count of the stack (`heights`).
//!
//! Where functions begin is known from symbols, calls, and instructions that take their address. A jump is followed with what is known where it
//! begins, so it makes no difference whether it leads within a function, to a part of it that the compiler
//! moved away, or, as a tail call, to another. Where two ways meet that disagree, nothing is known from there
//! on. What is not reached gets no row: an incomplete stack says so, a wrong one does not.
use std::collections::{BTreeMap, BTreeSet, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, Register,
};
use leaktrace_common::unwind::{Rule, kind};

use crate::unwind::{heights::Frame, returns, rule::plain};

/// How often cases of a jump table may lead to others.
const MAX_ROUNDS: usize = 6;
/// Indirect jumps of one function that are compared.
const MAX_COMPARED: usize = 64;

/// Code without call frame information.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// Its first address.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) code: Vec<u8>,
}

/// The rows of each region, in ascending order of address. `start` is where the program begins, if it is one:
/// nothing called that.
pub(super) fn rows(regions: &[Region], entries: &BTreeSet<u64>, start: u64) -> Vec<Vec<(u64, Rule)>> {
    let image = Image { regions };
    let named = regions.iter().flat_map(named_entries);
    let all = entries.iter().copied().chain(named);
    let mut entries: BTreeSet<u64> = all.filter(|&address| image.code_at(address).is_some()).collect();
    entries.remove(&start);
    let returning = returns::returning(&image, &entries);
    let mut flow = Flow {
        image,
        entries,
        returning,
        states: BTreeMap::new(),
        indirect: BTreeMap::new(),
        ends: BTreeSet::new(),
        info: InstructionInfoFactory::new(),
    };
    flow.follow(vec![(start, Frame::Outermost)]);
    flow.follow(flow.entries.iter().map(|&entry| (entry, Frame::ENTRY)).collect());
    for _ in 0..MAX_ROUNDS {
        if !flow.follow_cases() {
            break;
        }
    }
    regions.iter().map(|region| flow.rows(region)).collect()
}

/// All regions, in ascending order.
pub(super) struct Image<'r> {
    regions: &'r [Region],
}

impl<'r> Image<'r> {
    /// The bytes from an address to the end of its region.
    pub(super) fn code_at(&self, address: u64) -> Option<&'r [u8]> {
        let after = self.regions.partition_point(|region| region.start <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let into = usize::try_from(address - region.start).ok()?;
        region.code.get(into..).filter(|code| !code.is_empty())
    }
}

/// What is known at an instruction.
#[derive(Clone, Copy, Debug)]
struct State {
    frame: Frame,
    /// The first address after the instruction.
    end: u64,
}

struct Flow<'r> {
    image: Image<'r>,
    /// Where functions begin.
    entries: BTreeSet<u64>,
    /// Those that return.
    returning: HashSet<u64>,
    states: BTreeMap<u64, State>,
    /// Indirect jumps, with what is known there.
    indirect: BTreeMap<u64, Frame>,
    /// Addresses behind instructions after which control does not go on.
    ends: BTreeSet<u64>,
    info: InstructionInfoFactory,
}

impl Flow<'_> {
    fn follow(&mut self, mut ways: Vec<(u64, Frame)>) {
        while let Some((address, frame)) = ways.pop() {
            let Some(frame) = self.arrive(address, frame) else { continue };
            let Some(instruction) = self.image.code_at(address).and_then(|code| decode(code, address)) else {
                continue;
            };
            self.states.insert(address, State { frame, end: instruction.next_ip() });
            let next = frame.after(&instruction, &mut self.info);
            let target = instruction.near_branch_target();
            let (goes_on, target) = match instruction.flow_control() {
                FlowControl::Next => (true, None),
                FlowControl::Call | FlowControl::IndirectCall => (self.may_return(&instruction), None),
                FlowControl::ConditionalBranch => (true, Some(target)),
                FlowControl::UnconditionalBranch => (false, Some(target)),
                FlowControl::IndirectBranch => {
                    self.indirect.insert(address, frame);
                    (false, None)
                }
                _ => (false, None),
            };
            ways.extend(target.map(|target| (target, next)));
            if goes_on {
                ways.push((instruction.next_ip(), next));
            } else {
                self.ends.insert(instruction.next_ip());
            }
        }
    }

    /// What is known on arrival, if that is news.
    fn arrive(&self, address: u64, frame: Frame) -> Option<Frame> {
        let Some(state) = self.states.get(&address) else { return Some(frame) };
        let joined = state.frame.join(frame);
        (joined != state.frame).then_some(joined)
    }

    /// Whether a call may return: one to a function that does, to code that is not here, or to the system.
    /// Not where it looks as if another function began behind it: that one of these does not return after all.
    fn may_return(&self, call: &Instruction) -> bool {
        let target = call.near_branch_target();
        let is_known = call.is_call_near() && self.entries.contains(&target);
        (!is_known || self.returning.contains(&target)) && !self.begins_function(call.next_ip())
    }

    /// Whether there is padding up to an aligned address, or at one what functions begin with.
    fn begins_function(&self, address: u64) -> bool {
        let Some(next) = self.image.code_at(address).and_then(|code| decode(code, address)) else {
            return false;
        };
        let mut padding = next;
        while padding.mnemonic() == Mnemonic::Nop && !padding.next_ip().is_multiple_of(16) {
            let at = padding.next_ip();
            match self.image.code_at(at).and_then(|code| decode(code, at)) {
                Some(instruction) => padding = instruction,
                None => return true,
            }
        }
        let is_prologue = next.mnemonic() == Mnemonic::Push
            || next.mnemonic() == Mnemonic::Sub && next.op0_register() == Register::RSP;
        padding.mnemonic() == Mnemonic::Nop || address.is_multiple_of(16) && is_prologue
    }

    /// Follows code that lies where a way ends, in a function that jumps by a table: a case of that table.
    /// Not where padding or alignment suggest that another function begins.
    fn follow_cases(&mut self) -> bool {
        let is_open = |address: &u64| !address.is_multiple_of(16) && !self.states.contains_key(address);
        let ways: Vec<_> = self
            .ends
            .iter()
            .copied()
            .filter(is_open)
            .filter(|&address| {
                self.image.code_at(address).and_then(|code| decode(code, address)).is_some_and(is_real)
            })
            .filter_map(|address| Some((address, self.frame_of_cases(address)?)))
            .collect();
        let found = !ways.is_empty();
        self.follow(ways);
        found
    }

    /// What is known at the indirect jumps of the function before an address, where they agree.
    fn frame_of_cases(&self, address: u64) -> Option<Frame> {
        let entry = *self.entries.range(..=address).next_back()?;
        let mut frames = self.indirect.range(entry..address).map(|(_, &frame)| frame).take(MAX_COMPARED);
        let first = frames.next()?;
        (first != Frame::ENTRY && frames.all(|frame| frame == first)).then_some(first)
    }

    fn rows(&self, region: &Region) -> Vec<(u64, Rule)> {
        let mut rows = Vec::new();
        let end = region.start.saturating_add(region.code.len() as u64);
        let mut known_to = region.start;
        rows.push((region.start, plain(kind::NO_CFI)));
        for (&address, state) in self.states.range(region.start..end) {
            if address > known_to {
                rows.push((known_to, plain(kind::NO_CFI)));
            }
            rows.push((address, state.frame.rule()));
            known_to = state.end;
        }
        rows.push((known_to.min(end), plain(kind::NO_CFI)));
        rows
    }
}

/// The instruction at the start of some code.
pub(super) fn decode(code: &[u8], address: u64) -> Option<Instruction> {
    // No instruction is longer than 15 bytes.
    let code = code.get(..15).unwrap_or(code);
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Not padding; zeroes decode as `add %al,(%rax)`.
fn is_real(instruction: Instruction) -> bool {
    let is_filler = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3 | Mnemonic::Hlt);
    !is_filler && instruction.code() != iced_x86::Code::Add_rm8_r8
}

/// Where functions begin as far as a region's code says, by linear decoding: the targets of direct calls, and
/// the addresses of code that are taken.
fn named_entries(region: &Region) -> impl Iterator<Item = u64> {
    let decoder = Decoder::with_ip(64, &region.code, region.start, DecoderOptions::NONE);
    decoder.into_iter().filter_map(|instruction| match instruction.mnemonic() {
        Mnemonic::Call if instruction.is_call_near() => Some(instruction.near_branch_target()),
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
