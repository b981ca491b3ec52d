//! Whose hit it is: the settings of a traced process, found by the slot in the probe's cookie, or by its id where the
//! probe is set for another process (a child has its parent's) or there is none.
use leaktrace_common::{
    hook::{Hook, slot_of_table},
    target::{NOBODYS_SLOT, Target, flags},
};

use crate::maps::{PROCESSES, TARGETS};

/// The settings of the process `tgid`, which has hit the probe of `hook`; `None` when it is not traced. They stay while
/// the program runs; user space may change how much is recorded.
#[inline(always)]
pub fn at_probe(hook: Hook, tgid: u32) -> Option<&'static Target> {
    match TARGETS.get(hook.process) {
        Some(target) if target.owner == tgid && target.flags & flags::TRACED != 0 => Some(target),
        _ => of(tgid),
    }
}

/// The settings of the process `tgid`, or those of the one whose memory it shares; `None` when it is not traced.
#[inline(always)]
pub fn of(tgid: u32) -> Option<&'static Target> {
    match slot_of(tgid) {
        NOBODYS_SLOT => None,
        slot => TARGETS.get(slot),
    }
}

/// The slot of the process `tgid`; that of nobody when it is not traced. What PROCESSES says of a process that shares
/// another one's memory is no longer true once that one is gone or has executed another program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slot_of(tgid: u32) -> u32 {
    // SAFETY: the value is read at once.
    let Some(process) = (unsafe { PROCESSES.get(tgid) }) else { return NOBODYS_SLOT };
    let slot = slot_of_table(process.table);
    let Some(target) = TARGETS.get(slot) else { return NOBODYS_SLOT };
    let is_same = target.table == process.table && target.flags & flags::TRACED != 0;
    let is_current = target.owner == tgid || target.generation == process.generation;
    if is_same && is_current { slot } else { NOBODYS_SLOT }
}
