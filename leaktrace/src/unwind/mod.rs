//! Unwind tables: what the kernel program needs to walk a stack that has no frame pointers.
//!
//! # The problem
//! A stack is a run of memory in which, here and there, a return address lies. Where, only the compiler knows:
//! code built without frame pointers says nothing of it at run time. But it says so in the file. For the sake of
//! exceptions, every x86-64 program and library carries *call frame information* (CFI) in `.eh_frame`: for each
//! instruction, how to compute the *canonical frame address* (CFA, the value that rsp had in the caller before
//! the `call`) and where the registers that the function must preserve were saved. With the CFA, the return
//! address is the word at CFA − 8, and the walk goes on from there.
//!
//! CFI is a program for a small machine. That is compact, but not something to run in the kernel, at every
//! allocation, within a few hundred nanoseconds. So it is run here, once for each file, and what comes out is
//! tabulated.
//!
//! # The table
//! A [`Rule`] says how to leave a frame. There are few: a C library's 28,000 distinct places share some 350.
//! A [`Row`] says from which address on which rule holds:
//!
//! ```text
//!                       31            16 15             0
//!                row    |  rule number  |  address low  |     4 bytes
//!
//!  text of a file       page 0 (64 KiB)             page 1
//!  ─────────────────────┬───────────────────────────┬──────────────────
//!                       │ 0000 → rule 7             │ 0000 → rule 31 ← a copy of what holds at the border
//!                       │ 0001 → rule 9  (after push %rbp)
//!                       │ 0004 → rule 12 (after mov %rsp,%rbp)
//!                       │ …                         │ …
//! ```
//!
//! An address is looked up in four steps, none of which can take long: the process's mapping that holds it
//! (binary search, and usually the one found last), the page (a division), the row (binary search among the rows of
//! one page, at most 16 steps), the rule (an index). Four things keep that simple:
//! - **A page begins with a copy of the rule in force**, so that a search never looks into the page before.
//! - **Gaps are rows too**: where no function is, a row says [`kind::NO_CFI`]. A page without any row is a gap. There a
//!   walk goes on by the frame pointer, if that can be one, and marks the frame as a guess.
//! - **Rows name the rule by a number** that is global to all files. Most files use the same few hundred.
//! - **A page's rows lie in one slab** (an array map's value of 1 MiB): one map lookup, then plain loads.
//!
//! # What a rule can say
//! Compilers use a small part of what CFI can express. CFA = rsp, rbp or rbx + offset covers nearly all;
//! [`kind::DRAP`] functions that realign their stack, [`kind::PLT`] the linker's stubs, [`kind::SIGNAL`] the
//! trampoline behind a signal handler; [`kind::OUTERMOST`] ends a complete stack. Anything else is
//! [`kind::UNSUPPORTED`] and ends an incomplete one. Of the registers only rsp, rbp and rbx are followed,
//! since no rule needs another.
//!
//! **A return address is looked up at the byte before it.** It names the instruction after the call, and a
//! function may end with a call that never returns: then it is the first of the *next* function. The exception
//! is code that a signal interrupted, and where a walk begins: that address is an instruction, and exact.
//!
//! # The modules, in the order in which data flows
//! | module | does |
//! |---|---|
//! | [`source`] | reads a file's bytes, or the vdso's |
//! | [`elf`] | finds segments and sections; the load bias of a mapping |
//! | `cfi`, `rule`, `code` | finds and evaluates CFI; makes rules of it; looks at machine code |
//! | `heights`, `returns`, `synthesis` | makes rows for code without CFI by following what it does to the stack |
//! | [`table`], `pages` | lays rows into pages: one file's table |
//! | [`store`], `extents`, `numbers` | places all files' tables in the kernel's maps, shares and evicts them |
//! | [`mappings`] | which mapping of a process has which table |
//! | [`contents`], [`walk`] | the kernel walker's twin: the same maps and the same steps in user space |
//!
//! Only `source` touches a file, and it is given one that is open. Everything in a file is taken as hostile:
//! bounded in time and memory, and never a panic.
//!
//! [`Rule`]: leaktrace_common::unwind::Rule
//! [`Row`]: leaktrace_common::unwind::Row
//! [`kind::NO_CFI`]: leaktrace_common::unwind::kind::NO_CFI
//! [`kind::DRAP`]: leaktrace_common::unwind::kind::DRAP
//! [`kind::PLT`]: leaktrace_common::unwind::kind::PLT
//! [`kind::SIGNAL`]: leaktrace_common::unwind::kind::SIGNAL
//! [`kind::OUTERMOST`]: leaktrace_common::unwind::kind::OUTERMOST
//! [`kind::UNSUPPORTED`]: leaktrace_common::unwind::kind::UNSUPPORTED
pub mod contents;
pub mod elf;
pub mod mappings;
pub mod source;
pub mod store;
pub mod table;
pub mod walk;

mod cfi;
mod code;
mod extents;
mod heights;
mod numbers;
mod packed;
mod pages;
mod returns;
mod rule;
mod synthesis;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
