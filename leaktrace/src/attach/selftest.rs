//! What probes cost on this host: a child process calls small functions, one for each kind of instruction, with and
//! without a probe that does nothing. Nothing of the user's is touched. Which instructions the kernel emulates
//! differs between kernels and processors; here it is seen by the time that a probe takes.
//!
//! The functions lie in a file in memory (memfd), because a probe needs a file. The child is forked, not executed:
//! it only makes system calls and runs those functions until its socket is closed.
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    links::{LinkKind, PerfPmu},
    minimal,
    plan::{CostClass, EmulatedClasses, ProbeSite},
    prologue::InstructionClass,
    sys,
};

mod child;
use child::Child;

/// Bytes of code for each function.
const SLOT_BYTES: usize = 64;
/// Room for all of them.
const CODE_BYTES: usize = 4096;
/// Calls in a batch, and batches of which the median counts: a single-stepped probe takes 20 µs.
const CALLS: u32 = 40;
const BATCHES: usize = 7;
/// `ret`.
const RETURN: u8 = 0xc3;
/// `push %rbp`, which every kernel emulates (Linux 5.1).
const PUSH: Function = Function { instruction: &[0x55], rest: &[0x5d] };
/// `test %rdi,%rdi`, which none does.
const TEST: Function = Function { instruction: &[0x48, 0x85, 0xff], rest: &[] };
/// The nop of five bytes, which Linux 6.18 replaces by a call.
const NOP_OF_FIVE: Function = Function { instruction: &[0x0f, 0x1f, 0x44, 0x00, 0x00], rest: &[] };

/// What a probe costs, in ns for each hit, beyond the call itself; programs that do nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCosts {
    /// How probes are linked.
    pub link: LinkKind,
    /// By instruction; none where the kernel refuses a probe.
    pub classes: Vec<(InstructionClass, Option<u64>)>,
    /// An instruction that is single-stepped.
    pub single_stepped_ns: u64,
    /// A nop of five bytes.
    pub nop_of_five_ns: Option<u64>,
    /// A return probe, on top of the probe at the entry.
    pub return_ns: Option<u64>,
    /// A session whose program skips the return, instead of a probe at the entry.
    pub session_skip_ns: Option<u64>,
    /// How long measuring took.
    pub took: Duration,
}

impl ProbeCosts {
    /// Measures.
    ///
    /// # Errors
    /// When no program may be loaded, no probe attached, or the child fails.
    pub fn measure(link: LinkKind) -> Result<ProbeCosts> {
        let began = Instant::now();
        let bench = Bench::prepare(link)?;
        let class_at = |index: usize| bench.cost(index);
        let classes: Vec<(InstructionClass, Option<u64>)> = InstructionClass::SAMPLES
            .iter()
            .enumerate()
            .map(|(index, (class, _))| (*class, class_at(index)))
            .collect();
        let entry_ns = bench.cost(Slot::Entry.index());
        let single_stepped_ns = bench.cost(Slot::SingleStepped.index());
        let with_return = bench.cost(Slot::Return.index());
        let costs = ProbeCosts {
            link,
            classes,
            single_stepped_ns: single_stepped_ns.context("no probe could be measured")?,
            nop_of_five_ns: bench.cost(Slot::NopOfFive.index()),
            return_ns: with_return.zip(entry_ns).map(|(both, entry)| both.saturating_sub(entry)),
            session_skip_ns: bench.cost(Slot::SessionSkip.index()),
            took: Duration::ZERO,
        };
        drop(bench);
        Ok(ProbeCosts { took: began.elapsed(), ..costs })
    }

    /// The classes on which a probe costs clearly less than a single-stepped one.
    pub fn emulated(&self) -> EmulatedClasses {
        let is_cheap = |ns: u64| ns.saturating_mul(4) < self.single_stepped_ns.saturating_mul(3);
        self.classes
            .iter()
            .filter(|(_, ns)| ns.is_some_and(is_cheap))
            .fold(EmulatedClasses::NONE, |classes, (class, _)| classes.with(*class))
    }

    /// What one call through this probe site costs, in ns, without what the program does.
    pub fn of_site(&self, site: &ProbeSite, with_return: bool) -> u64 {
        let at_entry = if site.cost_class == CostClass::SingleStepped {
            self.single_stepped_ns
        } else if site.bytes.len() == NOP_OF_FIVE.instruction.len() && site.bytes.starts_with(&[0x0f, 0x1f]) {
            self.nop_of_five_ns.unwrap_or(self.single_stepped_ns)
        } else {
            let class = InstructionClass::of(&site.bytes);
            let known = self.classes.iter().find(|(known, _)| Some(*known) == class);
            known.and_then(|(_, ns)| *ns).unwrap_or(self.single_stepped_ns)
        };
        if with_return { at_entry + self.return_ns.unwrap_or(0) } else { at_entry }
    }
}

/// Whether a return probe kills a process under a seccomp filter that does not know the system call which Linux 6.11
/// introduced for return probes: tried in a child. Kernels from 6.14 on, and some before, let that call pass.
///
/// # Errors
/// When it cannot be tried.
pub fn return_probe_kills_filtered(link: LinkKind) -> Result<bool> {
    let mut bench = Bench::start()?;
    bench.child.forbid(child::SYS_URETPROBE)?;
    bench.attach_at(link, Slot::Return)?;
    Ok(bench.child.run(Slot::Return.index(), 1).is_err())
}

/// A function of the child: the instruction that is probed, then what undoes its effect.
#[derive(Clone, Copy)]
struct Function {
    instruction: &'static [u8],
    rest: &'static [u8],
}

/// The functions behind those of [`InstructionClass::SAMPLES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Entry,
    SingleStepped,
    NopOfFive,
    Return,
    SessionSkip,
}

impl Slot {
    const ALL: [(Slot, Function); 5] = [
        (Slot::Entry, PUSH),
        (Slot::SingleStepped, TEST),
        (Slot::NopOfFive, NOP_OF_FIVE),
        (Slot::Return, PUSH),
        (Slot::SessionSkip, PUSH),
    ];

    fn index(self) -> usize {
        InstructionClass::SAMPLES.len() + self as usize
    }
}

fn functions() -> Vec<Function> {
    let samples = InstructionClass::SAMPLES.iter().map(|(class, bytes)| {
        let rest: &[u8] = match class {
            InstructionClass::Push => &[0x5d],
            InstructionClass::PushExtended => &[0x41, 0x5c],
            // What the call pushed.
            InstructionClass::Call => &[0x58],
            _ => &[],
        };
        Function { instruction: bytes, rest }
    });
    samples.chain(Slot::ALL.map(|(_, function)| function)).collect()
}

fn code() -> Vec<u8> {
    let mut code = Vec::with_capacity(CODE_BYTES);
    for (index, function) in functions().iter().enumerate() {
        // int3 between functions: nothing runs on past an end.
        code.resize(index * SLOT_BYTES, 0xcc);
        code.extend(function.instruction.iter().chain(function.rest));
        code.push(RETURN);
    }
    code.resize(CODE_BYTES, 0xcc);
    code
}

/// The child, its file, and the links into it.
struct Bench {
    child: Child,
    path: CString,
    /// ns of a call without a probe.
    bare: Vec<Option<f64>>,
    attached: Vec<bool>,
    links: Vec<OwnedFd>,
    _file: OwnedFd,
}

impl Bench {
    fn start() -> Result<Bench> {
        let file = executable_memory(&code()).context("a file of code in memory")?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let child = Child::start(&file).context("the process of the self-test")?;
        let count = functions().len();
        Ok(Bench {
            child,
            path,
            bare: vec![None; count],
            attached: vec![false; count],
            links: Vec::new(),
            _file: file,
        })
    }

    fn prepare(link: LinkKind) -> Result<Bench> {
        let mut bench = Bench::start()?;
        bench.bare = (0..functions().len()).map(|index| bench.time(index)).collect();
        if bench.bare.iter().any(Option::is_none) {
            bail!("the process of the self-test does not run");
        }
        for index in 0..InstructionClass::SAMPLES.len() {
            // A kernel that refuses a probe on an instruction says so here; the others are measured all the same.
            let _ = bench.attach(link, index, Kind::Entry);
        }
        for (slot, _) in Slot::ALL {
            let _ = bench.attach_at(link, slot);
        }
        Ok(bench)
    }

    fn attach_at(&mut self, link: LinkKind, slot: Slot) -> Result<()> {
        let kind = match slot {
            Slot::Return => Kind::Return,
            Slot::SessionSkip => Kind::SessionSkip,
            Slot::Entry | Slot::SingleStepped | Slot::NopOfFive => Kind::Entry,
        };
        self.attach(link, slot.index(), kind)
    }

    fn attach(&mut self, link: LinkKind, index: usize, kind: Kind) -> Result<()> {
        let offset = (index * SLOT_BYTES) as u64;
        let pid = self.child.pid();
        if link == LinkKind::Perf {
            if kind == Kind::SessionSkip {
                bail!("perf events have no sessions");
            }
            let program = minimal::constant(0, 0)?;
            let event = PerfPmu::find()?.open(&self.path, offset, pid, kind == Kind::Return)?;
            self.links.push(sys::link_perf_event(program.as_fd(), event.as_fd(), 0)?);
            self.links.push(event);
        } else {
            let is_session = link == LinkKind::Session && kind != Kind::Entry;
            if kind == Kind::SessionSkip && !is_session {
                bail!("this kernel has no sessions");
            }
            let attach_type = if is_session { sys::ATTACH_UPROBE_SESSION } else { sys::ATTACH_UPROBE_MULTI };
            let program = minimal::constant(i32::from(kind == Kind::SessionSkip), attach_type)?;
            let at_return = kind == Kind::Return && !is_session;
            let program = program.as_fd();
            let (offsets, cookies) = ([offset], [0]);
            let linked =
                sys::link_uprobe_multi(program, attach_type, at_return, &self.path, &offsets, &cookies, pid)?;
            self.links.push(linked);
        }
        if let Some(attached) = self.attached.get_mut(index) {
            *attached = true;
        }
        Ok(())
    }

    /// ns that the probe adds to a call.
    fn cost(&self, index: usize) -> Option<u64> {
        if !*self.attached.get(index)? {
            return None;
        }
        let bare = self.bare.get(index).copied().flatten()?;
        Some((self.time(index)? - bare).max(0.0).round() as u64)
    }

    /// ns of one call: the median of several batches, after a few calls that set things up.
    fn time(&self, index: usize) -> Option<f64> {
        self.child.run(index, 4).ok()?;
        let mut batches = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            batches.push(self.child.run(index, CALLS).ok()?);
        }
        batches.sort_unstable();
        Some(*batches.get(BATCHES / 2)? as f64 / f64::from(CALLS))
    }
}

impl Drop for Bench {
    /// The child goes first: then there is nothing left to remove a probe from. Perf events wait for a grace period
    /// each, so links are closed side by side.
    fn drop(&mut self) {
        self.child.end();
        let links = std::mem::take(&mut self.links);
        std::thread::scope(|scope| {
            for link in links {
                scope.spawn(move || drop(link));
            }
        });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Entry,
    Return,
    SessionSkip,
}

/// A file in memory that may be mapped executable. Kernels before 6.3 do not know the flag that asks for that.
fn executable_memory(code: &[u8]) -> io::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let make = |flags: libc::c_uint| {
        // SAFETY: the name is a terminated string.
        let fd = unsafe { libc::memfd_create(c"leaktrace-selftest".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let file = make(libc::MFD_CLOEXEC | MFD_EXEC).or_else(|_| make(libc::MFD_CLOEXEC))?;
    let mut writer = std::fs::File::from(file);
    io::Write::write_all(&mut writer, code)?;
    Ok(writer.into())
}

#[cfg(test)]
mod tests;
