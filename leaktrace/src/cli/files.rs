//! Snapshot files as the commands see them: read one, write one, with messages that name it; and the report of a
//! session that keeps its last summary in a file.
use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::trace_args::TraceArgs;
use crate::{
    agent::session::Report,
    export::{file, pprof},
    model::{
        sites::{Order, Selection},
        snapshot::{CallView, Snapshot, TargetView},
    },
};

/// Processes that ended before the last summary and are kept for the file.
const MAX_ENDED: usize = 1000;

/// The snapshot in a file.
///
/// # Errors
/// When it cannot be read or is none.
pub(super) fn read(path: &Path) -> Result<Snapshot> {
    let bytes = file::read_bounded(path).with_context(|| format!("cannot read {}", path.display()))?;
    pprof::read(&bytes).with_context(|| format!("{} is not a snapshot that can be read", path.display()))
}

/// Writes a whole file, or to standard output without one; a closed pipe is no error.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: Option<&Path>, bytes: &[u8]) -> Result<()> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        return match io::stdout().write_all(bytes) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("writing to standard output")
            }
            _ => Ok(()),
        };
    };
    file::write_whole(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Fails early where a snapshot could not be written in the end: the folder must be there.
///
/// # Errors
/// When it is not.
pub(super) fn check_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let is_folder =
        fs::metadata(folder).with_context(|| format!("cannot write {}", path.display()))?.is_dir();
    if !is_folder || path.is_dir() {
        bail!("cannot write {}: it is not in a folder, or is one", path.display());
    }
    Ok(())
}

/// Which sites the tracer has to deliver: all, where a file is to hold them.
pub(super) fn selection(args: &TraceArgs, has_file: bool) -> Selection {
    let selection = args.selection();
    if has_file { Selection { top: 0, ..selection } } else { selection }
}

/// Passes summaries on, cut to what is to be shown, and keeps the last one whole in a file, together with the
/// processes that ended earlier.
pub(super) struct WithFile<R> {
    shown: R,
    file: Option<PathBuf>,
    order: Order,
    top: usize,
    /// Only the last summary is passed on.
    only_last: bool,
    /// Summaries are cut without a file, too: they hold more than is to be shown.
    cuts: bool,
    ended: Vec<TargetView>,
    ended_left_out: u64,
}

impl<R: Report> WithFile<R> {
    /// `shown` gets the summaries; without a file they are passed on as they are.
    pub(super) fn new(shown: R, file: Option<PathBuf>, selection: &Selection) -> WithFile<R> {
        WithFile {
            shown,
            file,
            order: selection.order,
            top: selection.top,
            only_last: false,
            cuts: false,
            ended: Vec::new(),
            ended_left_out: 0,
        }
    }

    /// Passes on only the last summary.
    pub(super) fn only_last(self) -> WithFile<R> {
        WithFile { only_last: true, ..self }
    }

    /// Cuts summaries to what is to be shown also without a file.
    pub(super) fn cutting(self) -> WithFile<R> {
        WithFile { cuts: true, ..self }
    }

    fn cut(&self, snapshot: &Snapshot) -> Snapshot {
        let mut shown = snapshot.clone();
        match self.cuts {
            true => shown.cut_findings_first(self.order, self.top),
            false => shown.cut(self.order, self.top),
        }
        shown
    }

    fn keep(&self, path: &Path, snapshot: &Snapshot) -> io::Result<()> {
        let mut whole = snapshot.clone();
        whole.targets.splice(0..0, self.ended.iter().cloned());
        if self.ended_left_out > 0 {
            whole
                .notes
                .push(format!("{} more processes ended and are not in this file", self.ended_left_out));
        }
        file::write_whole(path, &pprof::write(&whole)).map_err(|error| {
            io::Error::other(format!("cannot write the snapshot {}: {error}", path.display()))
        })
    }

    fn remember_ended(&mut self, snapshot: &Snapshot) {
        for target in snapshot.targets.iter().filter(|target| target.exited.is_some() || target.execed) {
            if self.ended.len() < MAX_ENDED {
                self.ended.push(target.clone());
            } else {
                self.ended_left_out += 1;
            }
        }
    }
}

impl<R: Report> Report for WithFile<R> {
    fn snapshot(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let Some(path) = self.file.clone() else {
            return match self.cuts {
                true => self.shown.snapshot(&self.cut(snapshot)),
                false => self.shown.snapshot(snapshot),
            };
        };
        // What was known of a process that died for lack of memory is not left to an end that may never come.
        let oom_killed = |target: &TargetView| target.exited.is_some_and(|exited| exited.oom_killed);
        if snapshot.last || snapshot.targets.iter().any(oom_killed) {
            self.keep(&path, snapshot)?;
        }
        if self.only_last && !snapshot.last {
            self.remember_ended(snapshot);
            return Ok(());
        }
        match self.shown.snapshot(&self.cut(snapshot)) {
            // The reader has gone, and with it the session ends: this was the last summary after all.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !snapshot.last => {
                self.keep(&path, snapshot)?;
                Err(error)
            }
            other => {
                self.remember_ended(snapshot);
                other
            }
        }
    }

    fn calls(&mut self, calls: &[CallView]) -> io::Result<()> {
        self.shown.calls(calls)
    }
}
