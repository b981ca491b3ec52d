//! The process of the self-test. After fork it allocates nothing and takes no lock: other threads of leaktrace may
//! have held one.
use std::{
    io::{self, Read as _, Write as _},
    mem::offset_of,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use super::{CODE_BYTES, SLOT_BYTES};

/// A batch takes milliseconds; a child that is silent for longer hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Instead of a function: install a filter against the system call in the place of the number of calls.
const INSTALL_FILTER: u32 = u32::MAX;
/// What a return probe calls on x86-64 (Linux 6.11).
pub(super) const SYS_URETPROBE: u32 = 335;

/// The forked process.
pub(super) struct Child {
    pid: libc::pid_t,
    socket: UnixStream,
}

impl Child {
    /// Starts it; `file` holds the code.
    pub(super) fn start(file: &OwnedFd) -> io::Result<Child> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let (code, socket, other_end) = (file.as_raw_fd(), theirs.as_raw_fd(), ours.as_raw_fd());
        // SAFETY: the child calls only `serve`, which neither allocates nor locks.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => serve(code, socket, other_end),
            pid => Ok(Child { pid, socket: ours }),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// ns that `calls` calls of function `index` took.
    pub(super) fn run(&self, index: usize, calls: u32) -> io::Result<u64> {
        let index = u32::try_from(index).map_err(io::Error::other)?;
        let request = u64::from(index) | u64::from(calls) << 32;
        let mut answer = [0; 8];
        (&self.socket).write_all(&request.to_le_bytes())?;
        (&self.socket).read_exact(&mut answer)?;
        Ok(u64::from_le_bytes(answer))
    }

    /// Lets a seccomp filter kill it at this system call.
    pub(super) fn forbid(&mut self, system_call: u32) -> io::Result<()> {
        match self.run(INSTALL_FILTER as usize, system_call)? {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(libc::EINVAL))),
        }
    }

    /// Ends it; again does nothing.
    pub(super) fn end(&mut self) {
        if self.pid > 0 {
            // SAFETY: the child has not been waited for, so that the pid is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // SAFETY: as above; the status is not wanted.
            unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
            self.pid = 0;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// The child: answers requests until the socket is closed.
fn serve(code: RawFd, socket: RawFd, other_end: RawFd) -> ! {
    // SAFETY: no pointers; without it the child would outlive a killed leaktrace until its next read.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: the parent's end, which the child does not use; else its read would never end.
    unsafe { libc::close(other_end) };
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base =
        unsafe { libc::mmap(std::ptr::null_mut(), CODE_BYTES, protection, libc::MAP_PRIVATE, code, 0) };
    if base != libc::MAP_FAILED {
        let mut request = [0u8; 8];
        while receive(socket, &mut request) {
            let request = u64::from_le_bytes(request);
            let (index, calls) = (request as u32, (request >> 32) as u32);
            let answer = if index == INSTALL_FILTER {
                install_filter(calls)
            } else {
                call(base as usize, index, calls)
            };
            if !send(socket, &answer.to_le_bytes()) {
                break;
            }
        }
    }
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Times calls of one function; ns.
fn call(base: usize, index: u32, calls: u32) -> u64 {
    let address = base + (index as usize * SLOT_BYTES) % CODE_BYTES;
    // SAFETY: there is a function without arguments at each slot that is asked for.
    let function = unsafe { std::mem::transmute::<usize, extern "C" fn()>(address) };
    let began = now_ns();
    for _ in 0..calls {
        function();
    }
    now_ns().wrapping_sub(began)
}

/// Time on a processor, so that other processes do not count.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for a time.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.cast_unsigned())
}

fn receive(socket: RawFd, bytes: &mut [u8; 8]) -> bool {
    // SAFETY: room for eight bytes.
    let read = unsafe { libc::read(socket, bytes.as_mut_ptr().cast(), bytes.len()) };
    read == 8
}

fn send(socket: RawFd, bytes: &[u8; 8]) -> bool {
    // SAFETY: eight bytes.
    let written = unsafe { libc::write(socket, bytes.as_ptr().cast(), bytes.len()) };
    written == 8
}

/// Allows every system call but one. Gives 0 or the error number.
fn install_filter(forbidden: u32) -> u64 {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const ANSWER: u16 = 0x06;
    let number = offset_of!(libc::seccomp_data, nr) as u32;
    let statement = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = [
        statement(LOAD_WORD, 0, number),
        statement(JUMP_IF_EQUAL, 1, forbidden),
        statement(ANSWER, 0, libc::SECCOMP_RET_ALLOW),
        statement(ANSWER, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: no pointers; needed to install a filter without CAP_SYS_ADMIN.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the filter is valid during the call.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(1).unsigned_abs().into() }
}
