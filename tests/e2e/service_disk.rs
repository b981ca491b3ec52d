//! Snapshot files of the service: schedule, events, retention, a full and a read-only disk, and kill -9 at any moment.
use crate::service::{config, rounds};
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    agent::{Agent, PATIENCE},
    leaktrace, lines,
};
use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

fn of_reason(folder: &Path, reason: &str) -> Result<Vec<PathBuf>> {
    let named = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".pb.gz") && name.contains(&format!("-{reason}"))
    };
    Ok(files(folder)?.into_iter().filter(named).collect())
}

/// The file is read by leaktrace itself; returns what it holds as JSON.
fn read(path: &Path) -> Result<serde_json::Value> {
    let said = leaktrace::output(&["report", &path.to_string_lossy(), "--format", "json"])?;
    ensure!(said.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&said.stderr));
    Ok(serde_json::from_slice(&said.stdout)?)
}

#[test]
fn files_are_written_by_time_growth_exit_and_signal_and_few_are_kept() -> Result<()> {
    let mut fixture = rounds("svc-files")?;
    let pid = fixture.pid();
    let more =
        "[snapshots]\ndirectory = \"@DIR@/files\"\non_growth = \"250000\"\non_exit = true\nmin_gap = 0";
    let mut agent = Agent::start(&config(&format!("\"pid:{pid}\""), more))?;
    let folder = agent.folder().join("files");
    let wait =
        |reason: &str| {
            lines::poll(&format!("a file because of {reason}"), PATIENCE, || {
                Ok(of_reason(&folder, reason)?.pop())
            })
        };
    agent.signal(libc::SIGUSR1)?;
    wait("signal")?;
    for round in 1..=3 {
        fixture.act()?;
        agent.until_held(pid, round * 100_000)?;
    }
    wait("growth")?;
    fixture.release()?;
    let exit = read(&wait("exit")?)?;
    ensure!(exit["targets"][0]["pid"] == pid && exit["targets"][0]["outstanding_bytes"] == 300_000, "{exit}");
    let more = "[snapshots]\ndirectory = \"@DIR@/files\"\nevery = \"1s\"\ncron = [\"* * * * *\"]\n[snapshots.keep]\ncount = 2";
    agent.reload(&config("", more))?;
    wait("interval")?;
    agent.until_work("snapshots_removed", 3)?;
    let kept = files(&folder)?.len();
    ensure!(kept <= 3, "{kept} files are kept");
    ensure!(agent.stop()?.success());
    Ok(())
}

/// A small file system; it is unmounted when this is dropped.
pub(crate) struct Small(pub(crate) PathBuf);

impl Small {
    pub(crate) fn mount(path: PathBuf, bytes: u32) -> Result<Small> {
        fs::create_dir_all(&path)?;
        let small = Small(path);
        small.call(0, bytes)?;
        Ok(small)
    }

    fn call(&self, flags: u64, bytes: u32) -> Result<()> {
        let target = CString::new(self.0.to_string_lossy().as_bytes())?;
        let options = CString::new(format!("size={bytes}"))?;
        let kind = c"tmpfs".as_ptr();
        // SAFETY: all pointers are of terminated strings that live on.
        let result = unsafe { libc::mount(kind, target.as_ptr(), kind, flags, options.as_ptr().cast()) };
        ensure!(result == 0, "mount {}: {}", self.0.display(), std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if let Ok(target) = CString::new(self.0.to_string_lossy().as_bytes()) {
            // SAFETY: a terminated string.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

#[test]
fn a_full_and_a_read_only_disk_are_counted_and_alerted_and_tracing_goes_on() -> Result<()> {
    let mut fixture = rounds("svc-full")?;
    let pid = fixture.pid();
    let folder = tempfile::tempdir()?;
    let small = Small::mount(folder.path().join("small"), 64 << 10)?;
    let filler = small.0.join("filler");
    let _ = fs::write(&filler, vec![1; 80 << 10]);
    let more = format!("[snapshots]\ndirectory = {:?}\nevery = \"1s\"\nmin_gap = 0", small.0);
    let mut agent = Agent::start(&config(&format!("\"pid:{pid}\""), &more))?;
    let is_alerted = |health: &serde_json::Value| {
        health["issues"].as_array()?.iter().any(|issue| issue["kind"] == "snapshot_failed").then_some(())
    };
    agent.until_work("snapshots_failed", 1)?;
    agent.until("health", "the full disk is an alert", is_alerted)?;
    let left: Vec<PathBuf> = files(&small.0)?.into_iter().filter(|path| *path != filler).collect();
    ensure!(left.is_empty(), "parts of files are left: {left:?}");
    fixture.act()?;
    agent.until_held(pid, 100_000)?;
    fs::remove_file(&filler)?;
    agent.until_work("snapshots_written", 1)?;
    agent.until("health", "the alert is over", |health| (health["healthy"] == true).then_some(()))?;
    small.call(libc::MS_REMOUNT | libc::MS_RDONLY, 64 << 10)?;
    agent.until("health", "the read-only disk is an alert", is_alerted)?;
    fixture.act()?;
    agent.until_held(pid, 200_000)?;
    small.call(libc::MS_REMOUNT, 64 << 10)?;
    agent.until("health", "the alert is over again", |health| (health["healthy"] == true).then_some(()))?;
    ensure!(agent.stop()?.success(), "{}", agent.log());
    drop(small);
    ensure!(fixture.release()?.success());
    Ok(())
}

#[test]
fn a_kill_at_any_moment_leaves_only_whole_files() -> Result<()> {
    let fixture = rounds("svc-kill")?;
    let text = config(
        &format!("\"pid:{}\"", fixture.pid()),
        "[snapshots]\ndirectory = \"@DIR@/files\"\nevery = \"1s\"\n[snapshots.keep]\ncount = 1000",
    )
    .replace("200ms", "100ms");
    let mut folder = tempfile::tempdir()?;
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..12 {
        let agent = Agent::start_in(folder, &text)?;
        for _ in 0..5 {
            agent.signal(libc::SIGUSR1)?;
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            std::thread::sleep(Duration::from_micros(u64::from(state % 30_000)));
        }
        folder = agent.kill()?;
        for path in files(&folder.path().join("files"))? {
            let name = path.to_string_lossy().into_owned();
            if name.ends_with(".pb.gz") {
                read(&path).context("a part of a file has a whole one's name")?;
            }
        }
    }
    let mut agent = Agent::start_in(folder, &text)?;
    let unfinished = files(&agent.folder().join("files"))?
        .into_iter()
        .filter(|path| !path.to_string_lossy().ends_with(".pb.gz"))
        .collect::<Vec<_>>();
    let own = format!(".{}-", agent.pid());
    let foreign: Vec<_> = unfinished.iter().filter(|path| !path.to_string_lossy().contains(&own)).collect();
    ensure!(foreign.is_empty(), "{foreign:?} are left of killed agents");
    ensure!(
        agent.stop()?.success() && !files(&agent.folder().join("files"))?.is_empty(),
        "no file was ever written"
    );
    Ok(())
}
