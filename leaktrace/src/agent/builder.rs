//! Builds unwind tables on a thread of its own, so that the loop never waits for a large file.
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::tables::{Contents, KnownFile};
use crate::{
    guard::guarded,
    unwind::table::{Options, Table},
};

/// A table to build.
pub(super) struct Job {
    /// The file's headers, and what its table is known by.
    pub(super) file: Arc<KnownFile>,
    /// Its bytes.
    pub(super) contents: Contents,
    /// Leave out what only interrupted code needs.
    pub(super) prune: bool,
}

/// A table that was built, and what it was built from.
pub(super) struct Built {
    pub(super) job: Job,
    pub(super) table: Table,
}

/// The thread.
pub(super) struct Builder {
    jobs: Sender<Job>,
    built: Receiver<Built>,
    bell: Arc<OwnedFd>,
}

impl Builder {
    /// Starts the thread. It ends when this is dropped, after the table under way.
    pub(super) fn start() -> Result<Builder> {
        let bell = Arc::new(bell().context("an eventfd")?);
        let (jobs, todo) = mpsc::channel();
        let (done, built) = mpsc::channel();
        let ring = Arc::clone(&bell);
        thread::Builder::new()
            .name("unwind-tables".to_owned())
            .spawn(move || build_all(&todo, &done, &ring))
            .context("starting the thread that builds unwind tables")?;
        Ok(Builder { jobs, built, bell })
    }

    /// Asks for a table. `false` when the thread is gone.
    pub(super) fn ask(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }

    /// The next table that is ready.
    pub(super) fn next(&self) -> Option<Built> {
        self.built.try_recv().ok()
    }

    /// Waits for a table; `None` when the time is up or the thread is gone.
    pub(super) fn wait(&self, patience: Duration) -> Result<Built, RecvTimeoutError> {
        self.built.recv_timeout(patience)
    }

    /// Readable when a table is ready.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes the bell silent until the next table is ready; to be called before [`Builder::next`].
    pub(super) fn silence(&self) {
        let mut count = 0_u64;
        // SAFETY: room for the 8 bytes that an eventfd gives.
        unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

fn build_all(jobs: &Receiver<Job>, done: &Sender<Built>, bell: &OwnedFd) {
    for job in jobs {
        let options = Options { prune: job.prune, ..Options::default() };
        let built = guarded(|| Table::build(job.contents.source(), &job.file.elf, &options));
        let table = built.unwrap_or_else(|panic| {
            tracing::warn!("a file's unwind table cannot be made: {panic}");
            Table::default()
        });
        if done.send(Built { job, table }).is_err() {
            return;
        }
        let one = 1_u64;
        // SAFETY: the 8 bytes that an eventfd takes.
        unsafe { libc::write(bell.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

fn bell() -> io::Result<OwnedFd> {
    // SAFETY: no memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
