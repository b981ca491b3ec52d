//! The twin of the kernel's stack walker, in user space: the same steps over the same tables, for stacks that
//! were copied while a table was missing, and to test both. How memory is read is left to the caller.
use leaktrace_common::unwind::{
    FRAME_EXACT, FRAME_GUESSED, GUESS_REACH, GUESS_TABLE, MAX_FRAMES, Mapping, NO_TABLE, Rule, SIGNAL_RBP,
    SIGNAL_RBX, SIGNAL_REGISTERS, SIGNAL_RIP, SIGNAL_RSP, Stop, kind, saved,
};

use crate::unwind::rule::{RBP, RBX, RSP};

/// Nothing lies in the first page of memory.
const PAGE_BYTES: u64 = 4096;

/// The registers that a walk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The instruction pointer, or a return address.
    pub ip: u64,
    /// The stack pointer; at a return address, its value after the return.
    pub sp: u64,
    /// rbp.
    pub rbp: u64,
    /// rbx.
    pub rbx: u64,
    /// Whether `ip` is the instruction to be executed next, not a return address.
    pub is_exact: bool,
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Addresses from the start outwards, with the bits [`FRAME_EXACT`] and [`FRAME_GUESSED`].
    pub frames: Vec<u64>,
    /// Why it ends.
    pub stop: Stop,
}

/// Where the walker finds rules: the kernel's maps, or their contents elsewhere.
pub trait Rules {
    /// The rule in force at an address of a mapping, found as the kernel walker finds it: the page by its
    /// number, in it the last row that is not behind the address. `None` where there is no unwind information.
    fn rule_at(&self, mapping: &Mapping, address: u64) -> Option<Rule>;

    /// Whether a step may be guessed where a file has no unwind information.
    fn may_guess(&self) -> bool {
        true
    }
}

/// Walks a stack to its end, to [`MAX_FRAMES`], or to the first frame whose caller cannot be found.
///
/// `mappings` are a process's, in ascending order. `read` reads the word at an address of its stack.
pub fn walk(
    start: Start,
    mappings: &[Mapping],
    rules: &impl Rules,
    read: impl FnMut(u64) -> Option<u64>,
) -> Stack {
    let mut walker = Walker::new(start, mappings, rules, read);
    let mut frames = vec![start.ip | if start.is_exact { FRAME_EXACT } else { 0 }];
    loop {
        match walker.step() {
            Err(stop) => return Stack { frames, stop },
            Ok(_) if frames.len() == MAX_FRAMES => return Stack { frames, stop: Stop::Depth },
            Ok(frame) => frames.push(frame),
        }
    }
}

/// One step, for tests: the caller's ip, rsp, rbp and rbx.
#[cfg(test)]
pub(super) fn one_step(
    start: Start,
    mappings: &[Mapping],
    contents: &crate::unwind::contents::Contents,
    read: impl FnMut(u64) -> Option<u64>,
) -> Result<[u64; 4], Stop> {
    let mut walker = Walker::new(start, mappings, contents, read);
    walker.step()?;
    Ok([walker.ip, walker.sp, walker.rbp()?, walker.rbx()?])
}

/// A register of a frame's caller: its value, or where an inner frame saved it. Most frames save rbp and rbx,
/// few rules need them: reading only what is needed halves the reads.
#[derive(Clone, Copy, Debug)]
enum Register {
    Value(u64),
    SavedAt(u64),
}

struct Walker<'t, T, R> {
    ip: u64,
    sp: u64,
    is_exact: bool,
    rbp: Register,
    rbx: Register,
    mappings: &'t [Mapping],
    rules: &'t T,
    read: R,
    has_guessed: bool,
}

impl<'t, T: Rules, R: FnMut(u64) -> Option<u64>> Walker<'t, T, R> {
    fn new(start: Start, mappings: &'t [Mapping], rules: &'t T, read: R) -> Self {
        let (rbp, rbx) = (Register::Value(start.rbp), Register::Value(start.rbx));
        let Start { ip, sp, is_exact, .. } = start;
        Walker { ip, sp, is_exact, rbp, rbx, mappings, rules, read, has_guessed: false }
    }

    /// From a frame to its caller: the address there, with its marks.
    fn step(&mut self) -> Result<u64, Stop> {
        // A return address belongs to the call before it, which may be the last instruction of its function.
        let pc = self.ip.wrapping_sub(u64::from(!self.is_exact));
        let mapping = self.mapping_at(pc).ok_or(Stop::NoMapping)?;
        match mapping.first_page {
            NO_TABLE => return Err(Stop::NoMapping),
            GUESS_TABLE => return self.guess(),
            _ => {}
        }
        let Some(rule) = self.rules.rule_at(mapping, pc) else { return self.guess_if_wanted() };
        match rule.kind {
            kind::REGISTER => {
                let base = match u16::from(rule.cfa_register) {
                    number if number == RSP.0 => self.sp,
                    number if number == RBP.0 => self.rbp()?,
                    number if number == RBX.0 => self.rbx()?,
                    _ => return Err(Stop::Unsupported),
                };
                self.leave(&rule, offset(base, rule.cfa_offset))
            }
            kind::OUTERMOST => Err(Stop::Complete),
            kind::NO_CFI => self.guess_if_wanted(),
            kind::SIGNAL => self.leave_signal_frame(),
            kind::DRAP => self.leave_realigned(&rule),
            kind::PLT => {
                let pushed = u64::from(pc & 15 >= u64::from(rule.cfa_offset.unsigned_abs()));
                self.leave(&rule, self.sp.wrapping_add(8 + 8 * pushed))
            }
            kind::GUESS => self.guess(),
            kind::GO => self.leave_go_frame(),
            _ => Err(Stop::Unsupported),
        }
    }

    /// Takes the caller's registers from a frame whose CFA is known.
    fn leave(&mut self, rule: &Rule, cfa: u64) -> Result<u64, Stop> {
        if cfa <= self.sp {
            return Err(Stop::Backwards);
        }
        let return_address = self.read(cfa.wrapping_sub(8))?;
        if rule.saved & saved::RBP != 0 {
            self.rbp = Register::SavedAt(offset(cfa, rule.rbp_offset));
        }
        if rule.saved & saved::RBX != 0 {
            self.rbx = Register::SavedAt(offset(cfa, rule.rbx_offset));
        }
        if return_address < PAGE_BYTES && self.has_guessed {
            // A guess further in was wrong about the stack pointer.
            return Err(Stop::Guessed);
        }
        if return_address == 0 {
            return Err(Stop::ZeroReturn);
        }
        self.sp = cfa;
        self.ip = return_address;
        self.is_exact = false;
        Ok(return_address)
    }

    /// A function that realigned its stack: rbp is its frame pointer and holds where the caller's rbp lies, a
    /// word below it points to the arguments. Its saved registers lie relative to rbp, not to the CFA.
    fn leave_realigned(&mut self, rule: &Rule) -> Result<u64, Stop> {
        let frame = self.rbp()?;
        let cfa = self.read(offset(frame, rule.cfa_offset))?;
        self.rbp = Register::SavedAt(frame);
        if rule.saved & saved::RBX != 0 {
            self.rbx = Register::SavedAt(offset(frame, rule.rbx_offset));
        }
        self.leave(&Rule { saved: 0, ..*rule }, cfa)
    }

    /// From a signal handler's trampoline to the code that the signal interrupted.
    fn leave_signal_frame(&mut self) -> Result<u64, Stop> {
        let registers = self.sp.wrapping_add(SIGNAL_REGISTERS);
        let at = |number: u64| registers.wrapping_add(8 * number);
        self.ip = self.read(at(SIGNAL_RIP))?;
        self.sp = self.read(at(SIGNAL_RSP))?;
        self.rbp = Register::SavedAt(at(SIGNAL_RBP));
        self.rbx = Register::SavedAt(at(SIGNAL_RBX));
        self.is_exact = true;
        Ok(self.ip | FRAME_EXACT)
    }

    /// One frame-pointer step through code without unwind information: only where rbp can be a frame pointer
    /// and what lies above it can be a return address.
    fn guess(&mut self) -> Result<u64, Stop> {
        self.has_guessed = true;
        let frame = self.rbp()?;
        if frame < self.sp || frame - self.sp > GUESS_REACH {
            return Err(Stop::Guessed);
        }
        let return_address = self.read(frame.wrapping_add(8))?;
        self.mapping_at(return_address.wrapping_sub(1)).ok_or(Stop::Guessed)?;
        self.rbp = Register::SavedAt(frame);
        self.sp = frame.wrapping_add(16);
        self.ip = return_address;
        self.is_exact = false;
        Ok(return_address | FRAME_GUESSED)
    }

    /// A guessed step through code of a file that says nothing of it.
    fn guess_if_wanted(&mut self) -> Result<u64, Stop> {
        if self.rules.may_guess() { self.guess().map_err(|_| Stop::NoCfi) } else { Err(Stop::NoCfi) }
    }

    /// One frame-pointer step in Go's code, which may lead from the thread's stack to a goroutine's.
    fn leave_go_frame(&mut self) -> Result<u64, Stop> {
        let frame = self.rbp()?;
        if frame == 0 {
            return Err(Stop::Complete);
        }
        let return_address = self.read(frame.wrapping_add(8))?;
        if return_address < PAGE_BYTES {
            return Err(Stop::Guessed);
        }
        self.rbp = Register::SavedAt(frame);
        self.sp = frame.wrapping_add(16);
        self.ip = return_address;
        self.is_exact = false;
        Ok(return_address)
    }

    fn mapping_at(&self, address: u64) -> Option<&'t Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        self.mappings.get(after.checked_sub(1)?).filter(|mapping| address < mapping.end)
    }

    fn rbp(&mut self) -> Result<u64, Stop> {
        let value = self.value_of(self.rbp)?;
        self.rbp = Register::Value(value);
        Ok(value)
    }

    fn rbx(&mut self) -> Result<u64, Stop> {
        let value = self.value_of(self.rbx)?;
        self.rbx = Register::Value(value);
        Ok(value)
    }

    fn value_of(&mut self, register: Register) -> Result<u64, Stop> {
        match register {
            Register::Value(value) => Ok(value),
            Register::SavedAt(address) => self.read(address),
        }
    }

    fn read(&mut self, address: u64) -> Result<u64, Stop> {
        (self.read)(address).ok_or(Stop::ReadFault)
    }
}

/// base + a signed offset, modulo 2^64 as addresses are.
fn offset(base: u64, offset: i32) -> u64 {
    base.wrapping_add_signed(i64::from(offset))
}

#[cfg(test)]
mod tests;
