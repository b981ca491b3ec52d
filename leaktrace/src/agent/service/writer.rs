//! Writes snapshot files in a thread of its own, so that a slow or full disk never holds up tracing.
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::SystemTime,
};

use tokio::sync::oneshot;

use super::{
    state::Shared,
    store::{Reason, Store},
};
use crate::model::{
    service::{SnapshotFile, Work},
    snapshot::Snapshot,
};

/// Files that wait to be written.
const MAX_WAITING: usize = 2;

/// Who waits for a file.
pub type Reply = Option<oneshot::Sender<Result<SnapshotFile, String>>>;

struct Job {
    snapshot: Arc<Snapshot>,
    reason: Reason,
    reply: Reply,
}

/// The thread.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Writer> {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let own = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("snapshots".to_owned()).spawn(move || write_all(&waiting, &own))?;
        Ok(Writer { jobs: Some(jobs), shared, thread: Some(thread) })
    }

    /// Queues a file; where too many wait it is skipped and counted.
    pub fn write(&self, snapshot: Arc<Snapshot>, reason: Reason, reply: Reply) {
        let Some(jobs) = &self.jobs else { return };
        let job = match jobs.try_send(Job { snapshot, reason, reply }) {
            Ok(()) => return,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        self.shared.counts.add(Work::SnapshotsSkipped);
        tracing::warn!(
            reason = reason.name(),
            "a snapshot file is skipped: earlier ones are still being written"
        );
        if let Some(reply) = job.reply {
            let _ =
                reply.send(Err("earlier snapshot files are still being written: try again later".to_owned()));
        }
    }

    /// Waits until everything is written.
    pub fn finish(mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(jobs: &Receiver<Job>, shared: &Shared) {
    for job in jobs {
        let result = match shared.store() {
            Some(store) => write(&store, &job, shared),
            None => Err("no snapshots.directory is set in the configuration".to_owned()),
        };
        match &result {
            Ok(file) => {
                shared.counts.add(Work::SnapshotsWritten);
                tracing::info!(id = file.id, bytes = file.size_bytes, "snapshot written");
            }
            Err(error) => {
                shared.counts.add(Work::SnapshotsFailed);
                tracing::error!(reason = job.reason.name(), error, "a snapshot was not written");
            }
        }
        shared.set_write_error(result.as_ref().err().cloned());
        if let Some(reply) = job.reply {
            let _ = reply.send(result);
        }
    }
}

fn write(store: &Store, job: &Job, shared: &Shared) -> Result<SnapshotFile, String> {
    let keep = shared.config().snapshots.keep;
    let file = store
        .write(&job.snapshot, job.reason)
        .map_err(|error| format!("cannot write a snapshot to {}: {error}", store.folder().display()))?;
    match store.retain(&keep, SystemTime::now()) {
        Ok(removed) => shared.counts.add_many(Work::SnapshotsRemoved, removed),
        Err(error) => tracing::warn!(%error, "old snapshot files cannot be removed"),
    }
    Ok(file)
}
