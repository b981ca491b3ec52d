//! Boots a kernel in an emulator and watches it until it is off, comes to harm, or its time is up. What runs in the
//! guest is in its file system; what its lines mean is told to whoever asked.
use super::{arch::Arch, console, fetch::Kernel};
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// For every kernel: what it says is heard from warnings on, and harm ends the guest, so that nothing runs on after it.
const COMMAND_LINE: &str = "panic=-1 oops=panic panic_on_warn=1 loglevel=5 init_on_alloc=0";

/// How long a guest that has come to harm may go on saying what happened.
const LAST_WORDS: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// What to boot.
pub(super) struct Guest<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Kernel,
    /// Its file system.
    pub(super) files: &'a [u8],
    /// More words for the kernel.
    pub(super) append: &'a str,
    /// After this time it hangs.
    pub(super) time: Duration,
    /// Names the files that stay: console and results.
    pub(super) label: &'a str,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What the script returned; `None` where it did not come so far.
    pub(super) code: Option<i32>,
    /// What went wrong with the guest itself, in a sentence.
    pub(super) harm: Option<String>,
    /// The console's part that tells of it.
    pub(super) tail: String,
    pub(super) took: Duration,
}

impl Guest<'_> {
    /// Boots it; each line that the script prints is handed over as it comes.
    pub(super) fn run(&self, mut hear: impl FnMut(&str)) -> Result<Outcome> {
        let folder = super::fetch::folder().join("logs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let log = |end: &str| folder.join(format!("{}.{end}", self.label));
        let (console, results) = (log("console"), log("results"));
        let files = tempfile::NamedTempFile::new_in(&folder).context("no temporary file")?;
        fs::write(files.path(), self.files).context("the guest's file system cannot be written")?;
        for file in [&console, &results] {
            fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
        }
        let began = Instant::now();
        let mut machine = Machine::start(&mut self.command(files.path(), &console, &results))?;
        let mut tail = Tail::open(&results)?;
        let mut code = None;
        let mut listen = |line: &str| match line.strip_prefix("RESULT rc=") {
            Some(number) => code = number.trim().parse().ok(),
            None => hear(line),
        };
        let mut harmed: Option<Instant> = None;
        let hangs = loop {
            let is_off = machine.is_off()?;
            tail.read()?.iter().for_each(|line| listen(line));
            if is_off {
                break false;
            }
            if harmed.is_none() && console::harm(&text(&console)?).is_some() {
                harmed = Some(Instant::now());
            }
            if harmed.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                break false;
            }
            if began.elapsed() > self.time {
                break true;
            }
            std::thread::sleep(POLL);
        };
        drop(machine);
        let said = text(&console)?;
        let harm = match console::harm(&said) {
            Some(line) => Some(format!("the kernel came to harm: {line}")),
            None if hangs => Some(format!("the guest was not off after {} s", self.time.as_secs())),
            None if code.is_none() => Some("the guest went off before its script had ended".to_owned()),
            None => None,
        };
        Ok(Outcome { code, harm, tail: console::tail(&said), took: began.elapsed() })
    }

    fn command(&self, files: &Path, console: &Path, results: &Path) -> Command {
        let mut qemu = command::clean(self.arch.qemu());
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]);
        for file in [console, results] {
            qemu.arg("-serial").arg(format!("file:{}", file.display()));
        }
        // Without hardware's help, also where there is some: what is found must not depend on the host.
        qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-smp", "2", "-m", "2G"]);
        qemu.args(self.arch.machine());
        qemu.arg("-kernel").arg(&self.kernel.vmlinux).arg("-initrd").arg(files);
        qemu.arg("-append").arg(format!("{} {COMMAND_LINE} {}", self.arch.command_line(), self.append));
        qemu
    }
}

/// The emulator; killed when this is dropped, and by the kernel when this program dies.
struct Machine(Child);

impl Machine {
    fn start(qemu: &mut Command) -> Result<Machine> {
        let die_with_parent = || {
            // SAFETY: prctl takes numbers and is safe to call between fork and exec.
            let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        qemu.stdin(Stdio::null());
        // SAFETY: the closure makes one system call and neither allocates nor locks.
        unsafe { qemu.pre_exec(die_with_parent) };
        let child = qemu.spawn().with_context(|| {
            format!("cannot run `{}`: run `cargo xtask setup --tests`", command::describe(qemu))
        })?;
        Ok(Machine(child))
    }

    fn is_off(&mut self) -> Result<bool> {
        match self.0.try_wait().context("the emulator got lost")? {
            Some(status) if !status.success() => bail!("the emulator ended with {status}"),
            ended => Ok(ended.is_some()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn text(file: &PathBuf) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The complete lines of a file that grows.
struct Tail {
    file: File,
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> Result<Tail> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Tail { file, partial: Vec::new() })
    }

    fn read(&mut self) -> Result<Vec<String>> {
        self.file.read_to_end(&mut self.partial).context("the guest's results cannot be read")?;
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        Ok(String::from_utf8_lossy(&whole).lines().map(|line| line.trim_end().to_owned()).collect())
    }
}
