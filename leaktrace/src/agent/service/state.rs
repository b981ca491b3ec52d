//! What the service's threads share: the last view, histories, counts, settings and a way to ask the loop for
//! something. Each part is replaced or locked for a moment only.
use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{config::Config, store::Store};
use crate::model::{
    series::Series,
    service::{SnapshotFile, View, Work},
    snapshot::Snapshot,
};

/// Requests to the loop that may wait.
pub const MAX_COMMANDS: usize = 16;

/// What the loop is asked for.
#[derive(Debug)]
pub enum Command {
    /// A snapshot with all call stacks, now.
    Whole(oneshot::Sender<Arc<Snapshot>>),
    /// The same, written to a file.
    Save(oneshot::Sender<Result<SnapshotFile, String>>),
}

/// What was done, by [`Work`].
#[derive(Debug)]
pub struct Counts(Vec<AtomicU64>);

impl Default for Counts {
    fn default() -> Counts {
        Counts(Work::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Counts {
    /// One more.
    pub fn add(&self, work: Work) {
        self.add_many(work, 1);
    }

    /// Some more.
    pub fn add_many(&self, work: Work, amount: u64) {
        if let Some(count) = self.0.get(work as usize) {
            count.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// How many.
    pub fn of(&self, work: Work) -> u64 {
        self.0.get(work as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All, in the order of [`Work::ALL`].
    pub fn all(&self) -> Vec<u64> {
        Work::ALL.iter().map(|work| self.of(*work)).collect()
    }
}

/// What is shared.
#[derive(Debug)]
pub struct Shared {
    /// The last view.
    pub view: watch::Receiver<Arc<View>>,
    /// Requests to the loop.
    pub commands: mpsc::Sender<Command>,
    /// What was done.
    pub counts: Arc<Counts>,
    series: RwLock<Series>,
    config: RwLock<Arc<Config>>,
    store: RwLock<Option<Store>>,
    /// Why the last file could not be written.
    write_error: Mutex<Option<String>>,
}

impl Shared {
    /// All empty.
    pub fn new(
        config: Arc<Config>,
        view: watch::Receiver<Arc<View>>,
        commands: mpsc::Sender<Command>,
    ) -> Shared {
        Shared {
            view,
            commands,
            counts: Arc::default(),
            series: RwLock::default(),
            config: RwLock::new(config),
            store: RwLock::default(),
            write_error: Mutex::default(),
        }
    }

    /// The last view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The settings.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings.
    pub fn set_config(&self, config: Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Reads the histories.
    pub fn with_series<T>(&self, read: impl FnOnce(&Series) -> T) -> T {
        read(&self.series.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the histories.
    pub fn change_series(&self, change: impl FnOnce(&mut Series)) {
        change(&mut self.series.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The folder of snapshot files, where there is one.
    pub fn store(&self) -> Option<Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it.
    pub fn set_store(&self, store: Option<Store>) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store;
    }

    /// Why the last file could not be written; `None` when it could.
    pub fn write_error(&self) -> Option<String> {
        self.write_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How writing the last file went.
    pub fn set_write_error(&self, error: Option<String>) {
        *self.write_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}
