//! Starting a program so that nothing of it runs untraced: leaktrace is its ptrace tracer and holds it, and with
//! `follow` every process it makes, at the moments when probes must be set before it goes on: after an exec,
//! after a fork, and after each library is mapped until the program's entry point is reached.
//!
//! Nothing is written into the program's memory: the entry point is met with a debug register. All ptrace calls
//! are made by one thread, as the kernel demands; it asks the agent's loop to set probes and waits. What the
//! program does to its own children (stopping them, waiting for them) it does not notice. When leaktrace dies,
//! the kernel lets the program go on.
use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{CString, OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::ptrace::{self, Registers, SyscallStop};

/// Why a process is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It has a new image; nothing of it has run.
    Exec,
    /// It was made by fork and has not run; the parent's process id.
    Fork(u32),
    /// It has mapped an executable file while it starts.
    Mapped,
    /// It has reached its entry point; libraries' constructors have run.
    Started,
}

/// What the launcher tells the agent's loop.
#[derive(Debug)]
pub enum Notice {
    /// A process is held until `release` is sent to or dropped.
    Held {
        /// The process.
        pid: u32,
        /// Why.
        why: Held,
        /// Lets it go on.
        release: mpsc::Sender<()>,
    },
    /// The program ended: its wait status.
    Ended {
        /// As waitpid(2) gives it.
        status: i32,
    },
    /// Every process that was followed has ended.
    AllEnded,
    /// Holding processes does not work any more; they go on untraced from here.
    Failed(io::Error),
}

/// A started program.
#[derive(Debug)]
pub struct Launched {
    /// Its process id.
    pub pid: u32,
    /// What happens to it.
    pub notices: UnboundedReceiver<Notice>,
}

/// Starts `program` and holds it at its exec; with `follow`, its children too.
///
/// # Errors
/// When it cannot be started: not found, not executable, ptrace refused.
pub fn launch(program: &[OsString], follow: bool) -> Result<Launched> {
    let Some(name) = program.first() else { bail!("no program was given") };
    let path = find_program(name)?;
    let arguments = program.to_vec();
    let (sender, notices) = unbounded_channel();
    let (started, start) = mpsc::channel();
    thread::Builder::new()
        .name("launcher".to_owned())
        .spawn(move || {
            let result = ptrace::spawn(&path, &arguments, follow);
            match result {
                Ok(pid) => {
                    if started.send(Ok(pid)).is_ok() {
                        Launcher::new(pid, sender).run();
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })
        .context("starting the launcher thread")?;
    let pid = start
        .recv()
        .context("the launcher thread ended")?
        .with_context(|| format!("cannot run {}", Path::new(name).display()))?;
    Ok(Launched { pid: pid.cast_unsigned(), notices })
}

/// What a shell's exit code is for a program that [`launch`] could not start, where that is why.
pub fn exit_code(error: &anyhow::Error) -> Option<u8> {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
    Some(if cause.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Looks a program up as a shell does.
fn find_program(name: &OsStr) -> Result<CString> {
    let given = Path::new(name);
    if name.as_bytes().contains(&b'/') {
        return Ok(CString::new(name.as_bytes())?);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    for directory in std::env::split_paths(&path) {
        let candidate = CString::new(directory.join(given).into_os_string().into_vec())?;
        // SAFETY: a terminated string.
        if unsafe { libc::access(candidate.as_ptr(), libc::X_OK) } == 0 && is_file(&candidate) {
            return Ok(candidate);
        }
    }
    let message = format!("{}: no such program on PATH", given.display());
    Err(io::Error::new(io::ErrorKind::NotFound, message).into())
}

fn is_file(path: &CString) -> bool {
    Path::new(OsStr::from_bytes(path.as_bytes())).is_file()
}

/// How far a traced thread is.
#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    /// The process it belongs to.
    process: i32,
    /// It is between its exec and its entry point, whose address this is.
    entry: Option<u64>,
    /// The system call under way maps an executable file.
    maps_code: bool,
}

struct Launcher {
    root: i32,
    threads: HashMap<i32, Thread>,
    notices: UnboundedSender<Notice>,
}

impl Launcher {
    fn new(root: i32, notices: UnboundedSender<Notice>) -> Launcher {
        let thread = Thread { process: root, ..Thread::default() };
        Launcher { root, threads: HashMap::from([(root, thread)]), notices }
    }

    /// Serves stops until every traced thread is gone.
    fn run(mut self) {
        loop {
            match ptrace::wait() {
                Ok((tid, status)) => self.serve(tid, status),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
                Err(error) => {
                    let _ = self.notices.send(Notice::Failed(error));
                    break;
                }
            }
        }
        let _ = self.notices.send(Notice::AllEnded);
    }

    fn serve(&mut self, tid: i32, status: i32) {
        if !libc::WIFSTOPPED(status) {
            self.threads.remove(&tid);
            if tid == self.root {
                let _ = self.notices.send(Notice::Ended { status });
            }
            return;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_EXEC => self.serve_exec(tid),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.go_on(tid, 0);
            }
            libc::PTRACE_EVENT_STOP => self.serve_event_stop(tid, signal),
            _ if signal == libc::SIGTRAP | 0x80 => self.serve_system_call(tid),
            _ if signal == libc::SIGTRAP && self.reached_entry(tid) => {
                let process = self.threads.get(&tid).map_or(tid, |thread| thread.process);
                self.hold(process, Held::Started);
                self.go_on(tid, 0);
            }
            _ => self.go_on(tid, signal),
        }
    }

    /// A new thread or process, or a stop by job control.
    fn serve_event_stop(&mut self, tid: i32, signal: i32) {
        if let Entry::Vacant(unseen) = self.threads.entry(tid) {
            let process = ptrace::process_of(tid).unwrap_or(tid);
            unseen.insert(Thread { process, ..Thread::default() });
            if process == tid {
                let parent = ptrace::parent_of(tid).unwrap_or(self.root);
                self.hold(tid, Held::Fork(parent.cast_unsigned()));
            }
            self.go_on(tid, 0);
        } else if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            ptrace::listen(tid);
        } else {
            self.go_on(tid, 0);
        }
    }

    fn serve_exec(&mut self, tid: i32) {
        // The other threads are gone; the one that called exec now has the process's id.
        self.threads.retain(|other, thread| thread.process != tid || *other == tid);
        let mut thread = Thread { process: tid, ..Thread::default() };
        self.hold(tid, Held::Exec);
        thread.entry = ptrace::interpreted_entry(tid).filter(|entry| ptrace::break_at(tid, *entry).is_ok());
        self.threads.insert(tid, thread);
        self.go_on(tid, 0);
    }

    fn serve_system_call(&mut self, tid: i32) {
        let mut mapped = None;
        if let Some(thread) = self.threads.get_mut(&tid) {
            match ptrace::system_call(tid) {
                Some(SyscallStop::Entry { number, arguments }) => {
                    thread.maps_code = number == libc::SYS_mmap.cast_unsigned()
                        && arguments.get(2).is_some_and(|bits| bits & libc::PROT_EXEC as u64 != 0)
                        && arguments.get(4).is_some_and(|fd| *fd as i32 >= 0);
                }
                Some(SyscallStop::Exit { failed }) if thread.maps_code && !failed => {
                    thread.maps_code = false;
                    mapped = Some(thread.process);
                }
                _ => {}
            }
        }
        if let Some(process) = mapped {
            self.hold(process, Held::Mapped);
        }
        self.go_on(tid, 0);
    }

    /// Whether a trap is the debug register's; clears it.
    fn reached_entry(&mut self, tid: i32) -> bool {
        let Some(thread) = self.threads.get_mut(&tid) else { return false };
        let Some(entry) = thread.entry else { return false };
        if Registers::of(tid).is_none_or(|registers| registers.instruction() != entry) {
            return false;
        }
        thread.entry = None;
        ptrace::clear_break(tid);
        true
    }

    /// Lets a thread go on: from system call to system call while it starts.
    fn go_on(&self, tid: i32, signal: i32) {
        let starting = self.threads.get(&tid).is_some_and(|thread| thread.entry.is_some());
        ptrace::go_on(tid, signal, starting);
    }

    fn hold(&self, pid: i32, why: Held) {
        let (release, released) = mpsc::channel();
        let notice = Notice::Held { pid: pid.cast_unsigned(), why, release };
        if self.notices.send(notice).is_ok() {
            let _ = released.recv();
        }
    }
}
