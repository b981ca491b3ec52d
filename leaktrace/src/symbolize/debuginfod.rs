//! Debug files by build id from debuginfod servers (elfutils; the web interface is in debuginfod(8)).
//!
//! Only asked when the operator names servers. Files are fetched on a thread of their own, kept in the cache
//! directory that gdb and elfutils use too, and must carry the build id that was asked for. Whoever looks names up
//! waits for a file for a bounded time, and goes on without it when that is over: tracing must not hang on a server.
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Seek},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::image::memfd;
use crate::discover::open::{Found, Way};

/// Files that may wait to be fetched.
const QUEUE: usize = 64;
/// Messages kept.
const MAX_MESSAGES: usize = 5;

/// Which servers, and how long and how much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Addresses of servers, asked one after another, as in `DEBUGINFOD_URLS`. None: nothing is fetched.
    pub urls: Vec<String>,
    /// Where files are kept: `BUILD_ID/debuginfo`.
    pub cache: Option<PathBuf>,
    /// Time for one request.
    pub timeout: Duration,
    /// Time that a name waits for a file.
    pub patience: Duration,
    /// Time that all names together wait.
    pub total_patience: Duration,
    /// Bytes of a file at the most.
    pub file_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            urls: Vec::new(),
            cache: cache_dir(),
            timeout: Duration::from_secs(90),
            patience: Duration::from_secs(15),
            total_patience: Duration::from_secs(60),
            file_bytes: 1 << 30,
        }
    }
}

/// The directory of elfutils' client: `DEBUGINFOD_CACHE_PATH`, else below `XDG_CACHE_HOME`, else below the home.
fn cache_dir() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("DEBUGINFOD_CACHE_PATH")
        .or_else(|| Some(of("XDG_CACHE_HOME")?.join("debuginfod_client")))
        .or_else(|| Some(of("HOME")?.join(".cache").join("debuginfod_client")))
}

/// How far a file is.
#[derive(Clone, Debug)]
enum State {
    Asked,
    /// Fetched, or not to be had.
    Known(Option<Arc<File>>),
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<Files>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Files {
    states: HashMap<String, State>,
    messages: Vec<String>,
}

impl Shared {
    /// What a thread left behind that panicked is plain data: still good.
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, build_id: String, file: Option<File>) {
        self.lock().states.insert(build_id, State::Known(file.map(Arc::new)));
        self.changed.notify_all();
    }

    fn complain(&self, message: String) {
        let mut files = self.lock();
        if files.messages.len() < MAX_MESSAGES && !files.messages.contains(&message) {
            files.messages.push(message);
        }
    }
}

/// Fetches debug files.
#[derive(Debug)]
pub(super) struct Debuginfod {
    options: Options,
    shared: Arc<Shared>,
    wanted: Option<SyncSender<String>>,
    patience_left: Duration,
}

impl Debuginfod {
    /// A client that has not asked for anything yet.
    pub(super) fn new(options: Options) -> Debuginfod {
        let patience_left = options.total_patience;
        Debuginfod { options, shared: Arc::default(), wanted: None, patience_left }
    }

    /// The debug file with this build id (hexadecimal), if a server has it and sends it in time.
    pub(super) fn get(&mut self, build_id: &str) -> Option<Arc<File>> {
        let is_id = build_id.len() >= 16 && build_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.options.urls.is_empty() || !is_id {
            return None;
        }
        let state = self.shared.lock().states.get(build_id).cloned();
        match state {
            Some(State::Known(file)) => file,
            Some(State::Asked) => self.wait(build_id),
            None => {
                if let Some(file) = self.cached(build_id) {
                    self.shared.set(build_id.to_owned(), Some(file));
                    return self.get(build_id);
                }
                self.ask(build_id)?;
                self.wait(build_id)
            }
        }
    }

    /// What could not be fetched and why. A file that no server has is no news.
    pub(super) fn messages(&self) -> Vec<String> {
        self.shared.lock().messages.clone()
    }

    fn cached(&self, build_id: &str) -> Option<File> {
        let folder = File::open(self.options.cache.as_ref()?.join(build_id)).ok()?;
        let found = Found::beneath(&folder, b"debuginfo", Way::Plain).ok()?;
        // elfutils notes by an empty file that no server had it.
        (found.metadata().len() > 0).then(|| found.open(self.options.file_bytes).ok()).flatten()
    }

    fn ask(&mut self, build_id: &str) -> Option<()> {
        if self.wanted.is_none() {
            let (sender, receiver) = mpsc::sync_channel(QUEUE);
            let (options, shared) = (self.options.clone(), self.shared.clone());
            let thread = std::thread::Builder::new().name("debuginfod".to_owned());
            match thread.spawn(move || fetch_all(&options, &shared, &receiver)) {
                Ok(_) => self.wanted = Some(sender),
                Err(error) => {
                    self.shared.complain(format!("debug files are not fetched: {error}"));
                    return None;
                }
            }
        }
        self.shared.lock().states.insert(build_id.to_owned(), State::Asked);
        if self.wanted.as_ref()?.try_send(build_id.to_owned()).is_err() {
            // To be asked for again later.
            self.shared.lock().states.remove(build_id);
            return None;
        }
        Some(())
    }

    fn wait(&mut self, build_id: &str) -> Option<Arc<File>> {
        let begun = Instant::now();
        let patience = self.options.patience.min(self.patience_left);
        let is_asked = |files: &mut Files| matches!(files.states.get(build_id), Some(State::Asked));
        let (files, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), patience, is_asked)
            .unwrap_or_else(PoisonError::into_inner);
        let state = files.states.get(build_id).cloned();
        drop(files);
        self.patience_left = self.patience_left.saturating_sub(begun.elapsed());
        match state {
            Some(State::Known(file)) => file,
            _ => {
                self.shared.complain(format!(
                    "the debug file {build_id} is still being fetched: names of its functions lack files and lines"
                ));
                None
            }
        }
    }
}

/// The thread.
fn fetch_all(options: &Options, shared: &Shared, wanted: &Receiver<String>) {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(5).min(options.timeout)))
        .timeout_global(Some(options.timeout))
        .max_redirects(5)
        .user_agent(concat!("leaktrace/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = ureq::Agent::new_with_config(config);
    while let Ok(build_id) = wanted.recv() {
        let file = options.urls.iter().find_map(|url| match fetch(&agent, url, &build_id, options) {
            Ok(file) => Some(file),
            Err(ureq::Error::StatusCode(404)) => None,
            Err(error) => {
                shared
                    .complain(format!("the debug file {build_id} could not be fetched from {url}: {error}"));
                None
            }
        });
        shared.set(build_id, file);
    }
}

fn fetch(agent: &ureq::Agent, url: &str, build_id: &str, options: &Options) -> Result<File, ureq::Error> {
    let address = format!("{}/buildid/{build_id}/debuginfo", url.trim_end_matches('/'));
    let mut response = agent.get(&address).call()?;
    let mut body = response.body_mut().with_config().limit(options.file_bytes).reader();
    if let Some(cache) = &options.cache {
        match Unfinished::create(&cache.join(build_id)) {
            Ok(mut unfinished) => {
                io::copy(&mut body, &mut unfinished.file)?;
                return Ok(unfinished.finish()?);
            }
            Err(error) => tracing::debug!(cache = %cache.display(), %error, "debug files are not kept"),
        }
    }
    let mut file = memfd()?;
    io::copy(&mut body, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// A file in the cache that is being written: it gets its name when it is whole, and goes if it never is.
struct Unfinished {
    file: File,
    path: PathBuf,
    name: PathBuf,
}

impl Unfinished {
    fn create(directory: &Path) -> io::Result<Unfinished> {
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("debuginfo.{}.leaktrace-tmp", std::process::id()));
        // What a killed process with this number left, or anything else, is not written to.
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Unfinished { file, path, name: directory.join("debuginfo") })
    }

    fn finish(self) -> io::Result<File> {
        fs::rename(&self.path, &self.name)?;
        self.file.try_clone()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After `finish` it is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}
