//! The process that reads files for names. What it reads can be made to bring it down or to keep it busy for ever: it
//! holds nothing but the files that it was given, has no privilege but to read, and whoever started it ends it.
use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
};

use super::{
    Module,
    finder::Finder,
    nameless, reason,
    wire::{self, Answer, Request},
};

/// Answers what comes by standard input, a socket, until its other end is closed.
pub(super) fn serve(input: BorrowedFd<'_>) -> io::Result<()> {
    let mut stream = UnixStream::from(input.try_clone_to_owned()?);
    give_up_what_is_not_needed(&stream);
    let Some((Request::Begin(limits), _)) = wire::receive(&mut stream)? else { return Ok(()) };
    limit_memory(limits.memory_bytes);
    let mut finder = Finder::new(*limits);
    let mut modules: HashMap<u32, Module> = HashMap::new();
    while let Some((request, file)) = wire::receive(&mut stream)? {
        match (request, file) {
            (Request::Open { id, path }, Some(file)) => {
                modules.insert(id, Module::open(path, file)?);
            }
            (Request::Ask { id, virtual_offset, lines }, _) => {
                let frames = match modules.get(&id) {
                    Some(module) => finder.resolve(module, virtual_offset, lines),
                    None => vec![nameless(reason::NOT_OPENED)],
                };
                let frames = frames.into_iter().map(Into::into).collect();
                wire::send(&mut stream, &Answer { frames, messages: finder.messages() }, None)?;
            }
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
    Ok(())
}

/// Descriptors, privileges, and a long life: each is dropped as far as the kernel lets it.
fn give_up_what_is_not_needed(stream: &UnixStream) {
    // SAFETY: no memory; nothing in this process owns a descriptor from 3 up but the stream.
    unsafe { close_range(3, stream.as_fd().as_raw_fd().cast_unsigned()) };
    // SAFETY: no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: no memory.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // Sent to all of a service's processes at its end, when names are still wanted.
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Of the two, the one that reads a file made to take much memory is the one to go.
    let _ = fs::write("/proc/self/oom_score_adj", "800");
    let _ = fs::write("/proc/self/comm", "leaktrace-names");
    drop_capabilities();
}

/// Closes all descriptors from `first` on but one.
unsafe fn close_range(first: u32, kept: u32) {
    let close = |from: u32, to: u32| {
        if from <= to {
            // SAFETY: no memory; the caller vouches for the descriptors.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    close(first, kept.saturating_sub(1));
    close(kept.saturating_add(1).max(first), u32::MAX);
}

/// Leaves the capability to read files of other users, which debug directories may be.
fn drop_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_DAC_READ_SEARCH: u32 = 1 << 2;
    let header = [VERSION_3, 0];
    let data = [CAP_DAC_READ_SEARCH, CAP_DAC_READ_SEARCH, 0, 0, 0, 0];
    // SAFETY: header and data have the sizes that version 3 asks for; the kernel only reads them.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
}

fn limit_memory(bytes: u64) {
    for (resource, limit) in [(libc::RLIMIT_AS, bytes), (libc::RLIMIT_CORE, 0)] {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: a limit that outlives the call.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process that tests of `reader` start: the test program itself, told to run this alone.
    #[test]
    #[ignore = "it is the other process of other tests"]
    fn the_process_that_reads() {
        serve(io::stdin().as_fd()).unwrap();
    }
}
