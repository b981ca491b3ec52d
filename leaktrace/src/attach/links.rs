//! Attaching: programs of one link type, and the probes of one file in one process.
//!
//! Three link types serve the same hooks: session (one program at entry and return, Linux 6.13), multi (many
//! offsets in one link, 6.6) and perf events (5.15). Which one a kernel has is tried, not read off its version.
use std::{
    cell::OnceCell,
    ffi::CStr,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use leaktrace_common::hook::{Hook, Shape};

use super::{
    hidden::Feature,
    minimal,
    object::KernelObject,
    sys::{self, PerfEventAttr},
};

/// How probes are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Session uprobes.
    Session,
    /// Multi-uprobes, entry and return apart.
    Multi,
    /// Perf-event uprobes.
    Perf,
}

impl LinkKind {
    /// The name that `--link` takes.
    pub const fn name(self) -> &'static str {
        match self {
            LinkKind::Session => "session",
            LinkKind::Multi => "multi",
            LinkKind::Perf => "perf",
        }
    }

    /// Every kind, the best first.
    pub const ALL: [LinkKind; 3] = [LinkKind::Session, LinkKind::Multi, LinkKind::Perf];

    /// The best that this kernel has.
    pub fn best() -> LinkKind {
        LinkKind::ALL.into_iter().find(|kind| kind.is_available()).unwrap_or(LinkKind::Perf)
    }

    /// Whether this kernel has it and lets this process use it.
    pub fn is_available(self) -> bool {
        match self {
            LinkKind::Session => !Feature::Session.is_hidden() && has_multi(sys::ATTACH_UPROBE_SESSION),
            LinkKind::Multi => !Feature::Multi.is_hidden() && has_multi(sys::ATTACH_UPROBE_MULTI),
            LinkKind::Perf => has_uprobe_events() && minimal::cookie_reader().is_ok(),
        }
    }
}

/// Whether the kernel has uprobe events (CONFIG_UPROBE_EVENTS).
pub fn has_uprobe_events() -> bool {
    PerfPmu::find().is_ok()
}

/// Whether the kernel knows an attach type: a link on `/` must fail because that is no file (EBADF), and a
/// negative pid because it is negative (EINVAL): kernels that take it filter by thread, not by process
/// (fixed in Linux 6.10).
fn has_multi(attach_type: u32) -> bool {
    let Ok(program) = minimal::constant(0, attach_type) else { return false };
    let attempt = |pid| {
        let error = sys::link_uprobe_multi(program.as_fd(), attach_type, false, c"/", &[0], &[0], pid).err();
        error.and_then(|error| error.raw_os_error())
    };
    attempt(0) == Some(libc::EBADF) && attempt(u32::MAX) == Some(libc::EINVAL)
}

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Offset in the file.
    pub file_offset: u64,
    /// What is there.
    pub hook: Hook,
    /// The call's end is seen by a return probe at the same place.
    pub with_return: bool,
}

/// The programs of one link type. Those that few allocators need are loaded when the first one does: verifying each takes
/// the kernel a third of a second.
pub struct Programs {
    kind: LinkKind,
    /// Session program, or the return half.
    at_return: OwnedFd,
    free: OwnedFd,
    entry: OnceCell<OwnedFd>,
    exit: OnceCell<OwnedFd>,
    throw: OnceCell<OwnedFd>,
    perf: Option<PerfPmu>,
}

/// The links of one file in one process; dropping it detaches.
#[derive(Default)]
pub struct Links {
    fds: Vec<OwnedFd>,
    slow_to_close: bool,
}

/// A probe that could not be attached.
#[derive(Debug)]
pub struct AttachFailure {
    /// Index in the list that was passed.
    pub probe: usize,
    /// Why.
    pub error: io::Error,
}

impl Programs {
    /// Loads the programs for `kind` that are always needed, side by side.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn load(kernel: &KernelObject, kind: LinkKind) -> Result<Programs> {
        let (at_return, attach_type) = match kind {
            LinkKind::Session => ("alloc_session", sys::ATTACH_UPROBE_SESSION),
            LinkKind::Multi | LinkKind::Perf => ("alloc_return", multi(kind)),
        };
        let (at_return, free) = side_by_side(
            || kernel.load_program(at_return, attach_type),
            || kernel.load_program("free_entry", multi(kind)),
        );
        Ok(Programs {
            kind,
            at_return: at_return?,
            free: free?,
            entry: OnceCell::new(),
            exit: OnceCell::new(),
            throw: OnceCell::new(),
            perf: if kind == LinkKind::Perf { Some(PerfPmu::find()?) } else { None },
        })
    }

    /// Loads every program.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn load_all(kernel: &KernelObject, kind: LinkKind) -> Result<Programs> {
        let programs = Programs::load(kernel, kind)?;
        for role in Role::IN_ORDER {
            programs.program(kernel, role)?;
        }
        Ok(programs)
    }

    /// The link type.
    pub fn kind(&self) -> LinkKind {
        self.kind
    }

    /// Attaches `probes` of the file at `path` in process `pid`. A probe that fails costs only itself.
    ///
    /// Frees are attached first and entries last, so that no free of a recorded block is missed and no call is
    /// seen to begin whose end would not be.
    pub fn attach(
        &self,
        kernel: &KernelObject,
        path: &CStr,
        pid: u32,
        probes: &[Probe],
    ) -> (Links, Vec<AttachFailure>) {
        let mut links = Links { fds: Vec::new(), slow_to_close: self.kind == LinkKind::Perf };
        let mut failures = Vec::new();
        for role in Role::IN_ORDER {
            let members: Vec<usize> = (0..probes.len())
                .filter(|index| probes.get(*index).is_some_and(|probe| role.applies(probe, self.kind)))
                .filter(|index| !failures.iter().any(|failure: &AttachFailure| failure.probe == *index))
                .collect();
            if members.is_empty() {
                continue;
            }
            match self.program(kernel, role) {
                Ok(program) => {
                    let place = Place { role, program, path, pid };
                    self.attach_role(&place, probes, &members, &mut links, &mut failures);
                }
                Err(error) => failures.extend(
                    members
                        .into_iter()
                        .map(|probe| AttachFailure { probe, error: io::Error::other(format!("{error:#}")) }),
                ),
            }
        }
        (links, failures)
    }

    fn attach_role(
        &self,
        place: &Place<'_>,
        probes: &[Probe],
        members: &[usize],
        links: &mut Links,
        failures: &mut Vec<AttachFailure>,
    ) {
        if self.perf.is_none() {
            let all: Vec<Probe> = members.iter().filter_map(|index| probes.get(*index).copied()).collect();
            if let Ok(link) = self.link_multi(place, &all) {
                links.fds.push(link);
                return;
            }
        }
        for &index in members {
            let Some(probe) = probes.get(index) else { continue };
            let attached = match &self.perf {
                None => self.link_multi(place, std::slice::from_ref(probe)).map(|link| vec![link]),
                Some(pmu) => link_perf(place, pmu, probe),
            };
            match attached {
                Ok(fds) => links.fds.extend(fds),
                Err(error) => failures.push(AttachFailure { probe: index, error }),
            }
        }
    }

    fn link_multi(&self, place: &Place<'_>, probes: &[Probe]) -> io::Result<OwnedFd> {
        let offsets: Vec<u64> = probes.iter().map(|probe| probe.file_offset).collect();
        let cookies: Vec<u64> = probes.iter().map(|probe| probe.hook.to_cookie()).collect();
        let session = place.role == Role::Return && self.kind == LinkKind::Session;
        let attach_type = if session { sys::ATTACH_UPROBE_SESSION } else { sys::ATTACH_UPROBE_MULTI };
        let at_return = place.role == Role::Return && !session;
        sys::link_uprobe_multi(
            place.program,
            attach_type,
            at_return,
            place.path,
            &offsets,
            &cookies,
            place.pid,
        )
    }

    fn program(&self, kernel: &KernelObject, role: Role) -> Result<BorrowedFd<'_>> {
        let (place, name) = match role {
            Role::Free => return Ok(self.free.as_fd()),
            Role::Return => return Ok(self.at_return.as_fd()),
            Role::Throw => (&self.throw, "exception_thrown"),
            Role::Exit => (&self.exit, "alloc_exit"),
            Role::Entry => (&self.entry, "alloc_entry"),
        };
        if let Some(program) = place.get() {
            return Ok(program.as_fd());
        }
        let loaded = kernel.load_program(name, multi(self.kind))?;
        Ok(place.get_or_init(|| loaded).as_fd())
    }
}

/// The attach type of programs that are no session.
fn multi(kind: LinkKind) -> u32 {
    if kind == LinkKind::Perf { 0 } else { sys::ATTACH_UPROBE_MULTI }
}

/// What is attached where.
struct Place<'p> {
    role: Role,
    program: BorrowedFd<'p>,
    path: &'p CStr,
    pid: u32,
}

fn link_perf(place: &Place<'_>, pmu: &PerfPmu, probe: &Probe) -> io::Result<Vec<OwnedFd>> {
    let event = pmu.open(place.path, probe.file_offset, place.pid, place.role == Role::Return)?;
    let link = sys::link_perf_event(place.program, event.as_fd(), probe.hook.to_cookie())?;
    Ok(vec![link, event])
}

impl Links {
    /// Takes over the links of `other`.
    pub fn extend(&mut self, mut other: Links) {
        self.slow_to_close |= other.slow_to_close;
        self.fds.append(&mut other.fds);
    }

    /// Whether nothing is attached by them.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }
}

impl Drop for Links {
    /// Detaches. Perf events wait for a grace period each, so they are closed side by side.
    fn drop(&mut self) {
        if !self.slow_to_close {
            // The last attached goes first: entries before ends, frees last.
            while self.fds.pop().is_some() {}
            return;
        }
        close_together(std::mem::take(&mut self.fds));
    }
}

/// Does the first on a thread of its own, where one can be had, and the second here.
pub fn side_by_side<A: Send, B>(
    first: impl Fn() -> Result<A> + Send + Sync,
    second: impl FnOnce() -> B,
) -> (Result<A>, B) {
    thread::scope(|scope| {
        let started = thread::Builder::new().spawn_scoped(scope, &first);
        let second = second();
        let first = match started {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of leaktrace's failed"))),
            Err(_) => first(),
        };
        (first, second)
    })
}

/// Closes descriptors side by side, each of which waits for grace periods of the kernel's.
pub(super) fn close_together(fds: Vec<OwnedFd>) {
    thread::scope(|scope| {
        for fd in fds {
            // Without a thread, it is closed here and now.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(fd));
        }
    });
}

/// What a program does at a place, in the order of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Free,
    Throw,
    Exit,
    /// The return half; of a session, both halves.
    Return,
    Entry,
}

impl Role {
    const IN_ORDER: [Role; 5] = [Role::Free, Role::Throw, Role::Exit, Role::Return, Role::Entry];

    fn applies(self, probe: &Probe, kind: LinkKind) -> bool {
        match probe.hook.shape {
            Shape::Free => self == Role::Free,
            Shape::Throw => self == Role::Throw,
            Shape::Exit => self == Role::Exit,
            Shape::Allocate | Shape::Reallocate | Shape::StoreThrough | Shape::ResizeInPlace => match self {
                Role::Return => probe.with_return,
                Role::Entry => !probe.with_return || kind != LinkKind::Session,
                Role::Free | Role::Throw | Role::Exit => false,
            },
        }
    }
}

/// The kernel's dynamic PMU for uprobes.
pub(super) struct PerfPmu {
    kind: u32,
    return_bit: u32,
}

impl PerfPmu {
    pub(super) fn find() -> Result<PerfPmu> {
        let directory = "/sys/bus/event_source/devices/uprobe";
        let kind = fs::read_to_string(format!("{directory}/type"))
            .context("this kernel has no uprobe events (CONFIG_UPROBE_EVENTS)")?;
        let format = fs::read_to_string(format!("{directory}/format/retprobe"))
            .context("this kernel's uprobe events have no return probes")?;
        Ok(PerfPmu {
            kind: kind.trim().parse().context("the number of the uprobe PMU")?,
            return_bit: format
                .trim()
                .trim_start_matches("config:")
                .parse()
                .context("the return probe bit")?,
        })
    }

    /// Never with `inherit`: the kernel would open the event again in every process that the target makes, read
    /// the path from that process's memory, and fail its fork when it finds none there (Linux 6.18).
    pub(super) fn open(&self, path: &CStr, offset: u64, pid: u32, at_return: bool) -> io::Result<OwnedFd> {
        let mut attr = PerfEventAttr {
            kind: self.kind,
            config: u64::from(at_return) << self.return_bit,
            config1: path.as_ptr() as u64,
            config2: offset,
            ..PerfEventAttr::default()
        };
        sys::perf_event_open(&mut attr, i32::try_from(pid).map_err(io::Error::other)?, -1)
    }
}
