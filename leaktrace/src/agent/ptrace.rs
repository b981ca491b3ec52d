//! ptrace(2), as far as the launcher needs it: each function is one request, with its errors as values. A thread
//! that has gone makes a request fail with ESRCH, which is no error here.
use std::{
    ffi::{CString, OsString, c_void},
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

/// Exit code of a child that could not exec, as in shells.
const NOT_EXECUTED: i32 = 127;
/// /proc/PID/auxv: entry point of the program.
const AT_ENTRY: u64 = 9;
/// /proc/PID/auxv: base address of the interpreter; 0 for a static program.
const AT_BASE: u64 = 7;
/// Debug control register: break on execution at the address in register 0.
const BREAK_ON_EXECUTION: u64 = 1;

/// The registers of a stopped thread.
pub struct Registers(libc::user_regs_struct);

impl Registers {
    /// Reads them.
    pub fn of(tid: i32) -> Option<Registers> {
        // SAFETY: a structure of integers, for which zeros are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let data = (&raw mut registers).cast::<c_void>();
        // SAFETY: the request writes one structure of this type to `data`.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, std::ptr::null_mut::<c_void>(), data) };
        (result == 0).then_some(Registers(registers))
    }

    /// rip.
    pub fn instruction(&self) -> u64 {
        self.0.rip
    }
}

/// A system call stop.
pub enum SyscallStop {
    /// Before the call.
    Entry {
        /// Its number.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// After it.
    Exit {
        /// Whether it returned an error.
        failed: bool,
    },
}

/// What the thread's system call stop is (Linux 5.3).
pub fn system_call(tid: i32) -> Option<SyscallStop> {
    // SAFETY: a structure of integers, for which zeros are valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    let data = (&raw mut info).cast::<c_void>();
    // SAFETY: the request writes at most `size` bytes to `data`.
    let result = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, data) };
    if result <= 0 {
        return None;
    }
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says which variant is valid.
            let entry = unsafe { info.u.entry };
            Some(SyscallStop::Entry { number: entry.nr, arguments: entry.args })
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says which variant is valid.
            let exit = unsafe { info.u.exit };
            Some(SyscallStop::Exit { failed: exit.is_error != 0 })
        }
        _ => None,
    }
}

/// Starts a program that is seized before its exec.
///
/// # Errors
/// fork's, ptrace's or exec's error.
pub fn spawn(path: &CString, arguments: &[OsString], follow: bool) -> io::Result<i32> {
    let words: Vec<CString> =
        arguments.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let (go, gate) = pipe()?;
    let (report, failure) = pipe()?;
    // SAFETY: the child only makes async-signal-safe calls until it execs or exits.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => exec_child(path, &argv, gate.as_raw_fd(), go.as_raw_fd(), report.as_raw_fd()),
        pid => {
            drop((gate, report));
            let seized = seize(pid, follow);
            if seized.is_err() {
                // SAFETY: the child that was just made.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            drop(go);
            seized?;
            exec_result(pid, &failure)
        }
    }
}

/// The child: waits until it is seized, execs, or reports why not.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one sequence of async-signal-safe calls between fork and exec, each with this process's own values"
)]
fn exec_child(path: &CString, argv: &[*const libc::c_char], gate: i32, go: i32, report: i32) -> ! {
    let mut byte = 0u8;
    // SAFETY: plain descriptors and signals of this process; the strings live until the exec.
    unsafe {
        libc::close(go);
        libc::read(gate, (&raw mut byte).cast(), 1);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execv(path.as_ptr(), argv.as_ptr());
        let error = *libc::__errno_location();
        libc::write(report, (&raw const error).cast(), size_of_val(&error));
        libc::_exit(NOT_EXECUTED)
    }
}

fn seize(pid: i32, follow: bool) -> io::Result<()> {
    let mut options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC;
    if follow {
        options |= libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
    }
    // SAFETY: a request without memory.
    let result = unsafe {
        libc::ptrace(libc::PTRACE_SEIZE, pid, std::ptr::null_mut::<c_void>(), options as usize as *mut c_void)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads what the child reports: nothing, when its exec closed the pipe. The exec's own ptrace stop comes after
/// the close, so this does not wait for the launcher.
fn exec_result(pid: i32, failure: &OwnedFd) -> io::Result<i32> {
    let mut error = [0u8; 4];
    // SAFETY: the buffer is as long as what is read.
    let read = unsafe { libc::read(failure.as_raw_fd(), error.as_mut_ptr().cast(), error.len()) };
    if read == 4 {
        // SAFETY: reaps the child that has just exited.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error)));
    }
    Ok(pid)
}

/// A pipe whose ends close at exec: (write end, read end) named by what they are for.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [read, write] = ends;
    // SAFETY: the kernel has just made this descriptor for us.
    let read = unsafe { OwnedFd::from_raw_fd(read) };
    // SAFETY: the kernel has just made this descriptor for us.
    let write = unsafe { OwnedFd::from_raw_fd(write) };
    Ok((write, read))
}

/// Waits for any traced thread: its id and wait status.
///
/// # Errors
/// ECHILD when there is none left.
pub fn wait() -> io::Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: room for a status.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    if tid < 0 { Err(io::Error::last_os_error()) } else { Ok((tid, status)) }
}

/// Lets a thread go on, delivering `signal` if it is not 0; to the next system call with `to_system_call`.
pub fn go_on(tid: i32, signal: i32, to_system_call: bool) {
    let request = if to_system_call { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
    let data = signal as usize as *mut c_void;
    // SAFETY: a request without memory; a thread that is gone makes it fail, which is fine.
    unsafe { libc::ptrace(request, tid, std::ptr::null_mut::<c_void>(), data) };
}

/// Leaves a thread stopped by job control as it is.
pub fn listen(tid: i32) {
    let nothing = std::ptr::null_mut::<c_void>();
    // SAFETY: a request without memory.
    unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, nothing, nothing) };
}

/// Makes the thread trap before it runs the instruction at `address`.
///
/// # Errors
/// Where debug registers cannot be set.
pub fn break_at(tid: i32, address: u64) -> io::Result<()> {
    poke_debug(tid, 0, address)?;
    poke_debug(tid, 7, BREAK_ON_EXECUTION)
}

/// Undoes [`break_at`].
pub fn clear_break(tid: i32) {
    let _ = poke_debug(tid, 7, 0);
    let _ = poke_debug(tid, 6, 0);
}

fn poke_debug(tid: i32, register: usize, value: u64) -> io::Result<()> {
    let offset = std::mem::offset_of!(libc::user, u_debugreg) + 8 * register;
    // SAFETY: the offset names a debug register in the user area.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_POKEUSER, tid, offset as *mut c_void, value as *mut c_void) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The entry point of a program that an interpreter (ld.so) loads; none for a static one, which has all its code
/// from the start.
pub fn interpreted_entry(tid: i32) -> Option<u64> {
    let auxiliary = fs::read(format!("/proc/{tid}/auxv")).ok()?;
    let value = |key: u64| {
        auxiliary.chunks_exact(16).find_map(|pair| {
            let (name, value) = pair.split_at_checked(8)?;
            let name = u64::from_ne_bytes(name.try_into().ok()?);
            (name == key).then_some(u64::from_ne_bytes(value.try_into().ok()?))
        })
    };
    if value(AT_BASE)? == 0 { None } else { value(AT_ENTRY) }
}

/// The process that a thread belongs to.
pub fn process_of(tid: i32) -> Option<i32> {
    status_field(tid, "Tgid:")
}

/// The process's parent.
pub fn parent_of(pid: i32) -> Option<i32> {
    status_field(pid, "PPid:")
}

fn status_field(tid: i32, name: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
