//! Starts the process that reads files for names, asks it, and ends it when an answer takes too long. What that means for
//! a file is for `symbolizer`.
use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    Limits, Module, ModuleKey, serve,
    wire::{self, Answer, Request},
};

/// The argument that makes this program the one that reads.
pub const SERVE: &str = "__read-symbols";
/// How often the processor time of a question is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Longer than any server with debug information is waited for.
const MAX_SILENCE: Duration = Duration::from_secs(100);
/// A message comes and goes in one piece.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Files that the process holds at the most.
const MAX_FILES: usize = 512;

/// This program serves when it is started with [`SERVE`]: only then may it be started so.
static CAN_SERVE: AtomicBool = AtomicBool::new(false);

/// To be called first of all by a program's `main`: reads files for names where it was started for that, else returns.
pub fn serve_if_asked() -> Option<ExitCode> {
    CAN_SERVE.store(true, Ordering::Relaxed);
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|word| word != SERVE) {
        return None;
    }
    let served = serve::serve(io::stdin().as_fd());
    Some(if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The process could not be started.
    Start(io::Error),
    /// It took more than the time of a question.
    TooDear,
    /// It died.
    Crashed,
}

/// The process. It ends with this.
#[derive(Debug)]
pub(super) struct Reader {
    child: Child,
    stream: UnixStream,
    /// The files that it holds, and what they are called.
    known: HashMap<ModuleKey, u32>,
    question_cpu: Duration,
}

impl Reader {
    pub(super) fn start(limits: &Limits) -> io::Result<Reader> {
        if !CAN_SERVE.load(Ordering::Relaxed) && !cfg!(test) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this program does not read symbols"));
        }
        let (mut stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(MAX_PAUSE))?;
        stream.set_write_timeout(Some(MAX_PAUSE))?;
        let child = command()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What is typed at the terminal is not for it.
            .process_group(0)
            .spawn()?;
        wire::send(&mut stream, &Request::Begin(Box::new(limits.clone())), None)?;
        Ok(Reader { child, stream, known: HashMap::new(), question_cpu: limits.question_cpu })
    }

    /// Processor time that the process has taken.
    pub(super) fn cpu(&self) -> Duration {
        // As clock_getcpuclockid(3) makes it.
        let clock = (!self.child.id().cast_signed() << 3) | 2;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for a time; of a process that is gone there is none, and it stays zero.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    /// Asks for the names at an address of a file. After a failure the process is of no more use.
    pub(super) fn ask(
        &mut self,
        module: &Module,
        virtual_offset: u64,
        lines: bool,
    ) -> Result<Answer, Failure> {
        let begun = self.cpu();
        let id = self.open(module).map_err(|_| Failure::Crashed)?;
        wire::send(&mut self.stream, &Request::Ask { id, virtual_offset, lines }, None)
            .map_err(|_| Failure::Crashed)?;
        let asked = Instant::now();
        while !self.is_readable() {
            if self.cpu().saturating_sub(begun) > self.question_cpu || asked.elapsed() > MAX_SILENCE {
                return Err(Failure::TooDear);
            }
        }
        // Sent in one piece: what has begun to come is there, or the process has died meanwhile.
        match wire::receive(&mut self.stream) {
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) | Err(_) => Err(Failure::Crashed),
        }
    }

    fn open(&mut self, module: &Module) -> io::Result<u32> {
        if let Some(id) = self.known.get(&module.key) {
            return Ok(*id);
        }
        if self.known.len() >= MAX_FILES {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let id = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let open = Request::Open { id, path: module.path.clone() };
        wire::send(&mut self.stream, &open, Some(module.file.as_fd()))?;
        self.known.insert(module.key, id);
        Ok(id)
    }

    /// Whether it can be asked about one more file.
    pub(super) fn has_room(&self) -> bool {
        self.known.len() < MAX_FILES
    }

    /// Waits a moment for an answer.
    fn is_readable(&self) -> bool {
        let mut polled =
            libc::pollfd { fd: self.stream.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that outlives the call.
        unsafe { libc::poll(&raw mut polled, 1, LOOK.as_millis() as i32) > 0 }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This very program, also after its file was replaced.
fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if cfg!(test) {
        command.args([
            "--exact",
            "symbolize::serve::tests::the_process_that_reads",
            "--ignored",
            "--nocapture",
        ]);
    } else {
        command.arg(SERVE);
    }
    command
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{super::wire::Named, *};

    fn own() -> Module {
        Module::open("/own".to_owned(), File::open("/proc/self/exe").unwrap()).unwrap()
    }

    #[test]
    fn a_question_that_takes_too_long_ends_the_wait_and_the_process() {
        let limits = Limits { question_cpu: Duration::from_millis(100), ..Limits::default() };
        let mut reader = Reader::start(&limits).unwrap();
        let begun = Instant::now();
        // The debug information of this program takes longer.
        let module = own();
        let answer = (0..2000_u64).find_map(|at| reader.ask(&module, at * 4096, true).err());
        assert!(matches!(answer, Some(Failure::TooDear)), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let pid = reader.child.id();
        drop(reader);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_process_that_dies_is_an_answer() {
        let mut reader = Reader::start(&Limits::default()).unwrap();
        reader.child.kill().unwrap();
        reader.child.wait().unwrap();
        assert!(matches!(reader.ask(&own(), 0, true), Err(Failure::Crashed)));
    }

    #[test]
    fn too_little_memory_brings_down_the_reader_alone() {
        let mut reader = Reader::start(&Limits { memory_bytes: 64 << 20, ..Limits::default() }).unwrap();
        let answer = reader.ask(&own(), 0x1000, true);
        let is_nameless = |answer: &Answer| answer.frames.iter().all(Named::is_nameless);
        assert!(
            answer.as_ref().map_or_else(|error| matches!(error, Failure::Crashed), is_nameless),
            "{answer:?}"
        );
    }
}
