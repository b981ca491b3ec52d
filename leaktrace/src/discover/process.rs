//! Facts about one process from /proc, and whether it can be traced at all. Which files it maps and what is
//! in them is for the modules beside this one.
use super::{
    elf::{self, ElfError},
    maps::{self, MapEntry},
    object::ObjectFile,
};
use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
};

const MAX_CMDLINE_BYTES: u64 = 4096;
const MAX_STATUS_BYTES: u64 = 64 << 10;
const MAX_SMAPS_BYTES: u64 = 64 << 20;
const EM_X86_64: u16 = 62;
const ELFCLASS64: u8 = 2;
/// PF_KTHREAD of linux/sched.h, in the flags field of `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// PF_EXITING: set before the kernel tells of the exit, and some time before the process is a zombie.
const PF_EXITING: u64 = 0x0000_0004;

/// What tells one process from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Process id in leaktrace's pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_ticks: u64,
    /// The same as wall time, ns since the epoch; good to one tick.
    pub start_time_wall_ns: i64,
}

/// `Seccomp:` of `/proc/PID/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Not restricted.
    #[default]
    Disabled,
    /// read, write, exit and sigreturn only.
    Strict,
    /// A filter decides. On kernels 6.11 to about 6.13 it may kill the process at a return probe.
    Filter,
}

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Who it is.
    pub identity: ProcessIdentity,
    /// `/proc/PID/comm`. Hostile.
    pub comm: String,
    /// Command line, words joined by spaces, cut at 4 KiB. Hostile.
    pub cmdline: String,
    /// The executable's path as the kernel knows it, where it may be read. Hostile.
    pub executable: Option<String>,
    /// Real user id.
    pub uid: u32,
    /// System call restrictions.
    pub seccomp: Seccomp,
    /// The process id in each pid namespace it is in, leaktrace's first.
    pub namespace_pids: Vec<u32>,
    /// Resident set size.
    pub rss_bytes: u64,
}

/// Why a process cannot be traced.
#[derive(Debug)]
pub enum ProcessError {
    /// There is no such process, or it ended.
    Gone(u32),
    /// It ended and waits for its parent.
    Zombie(u32),
    /// A kernel thread: it has no user memory.
    KernelThread(u32),
    /// A thread of the process `process`, which is what can be traced.
    Thread {
        /// The thread.
        tid: u32,
        /// Its process.
        process: u32,
    },
    /// Its program is for another architecture.
    Foreign {
        /// The process.
        pid: u32,
        /// EI_CLASS: 1 is 32-bit.
        class: u8,
        /// e_machine.
        machine: u16,
    },
    /// Something of it may not be read.
    Permission {
        /// The process.
        pid: u32,
        /// The file under /proc.
        what: &'static str,
    },
    /// Anything else.
    Other {
        /// The process.
        pid: u32,
        /// The file under /proc.
        what: &'static str,
        /// The reason.
        error: io::Error,
    },
}

impl ProcessError {
    /// Sorts an error of reading `/proc/PID/<what>` into its kind.
    pub fn reading(pid: u32, what: &'static str, error: io::Error) -> ProcessError {
        match error.kind() {
            io::ErrorKind::NotFound => ProcessError::Gone(pid),
            io::ErrorKind::PermissionDenied => ProcessError::Permission { pid, what },
            _ if error.raw_os_error() == Some(libc::ESRCH) => ProcessError::Gone(pid),
            _ => ProcessError::Other { pid, what, error },
        }
    }
}

impl fmt::Display for ProcessError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessError::Gone(pid) => {
                write!(out, "there is no process {pid}: check the pid (it may have ended)")
            }
            ProcessError::Zombie(pid) => {
                write!(out, "process {pid} has ended and only waits for its parent: nothing is left to trace")
            }
            ProcessError::KernelThread(pid) => {
                write!(out, "{pid} is a kernel thread, which has no heap: give the pid of a user process")
            }
            ProcessError::Thread { tid, process } => {
                write!(out, "{tid} is a thread of process {process}: give the pid {process}")
            }
            ProcessError::Foreign { pid, class: 1, machine } => write!(
                out,
                "process {pid} runs a 32-bit program (ELF machine {machine}): only 64-bit x86-64 programs can be traced"
            ),
            ProcessError::Foreign { pid, machine, .. } => write!(
                out,
                "process {pid} runs a program for another architecture (ELF machine {machine}): only x86-64 can be traced"
            ),
            ProcessError::Permission { pid, what } if is_root() => write!(
                out,
                "no permission to read /proc/{pid}/{what}, for root either: a file system that its user has mounted (FUSE) \
                 shows its files to nobody else unless it is mounted with allow_other or allow_root"
            ),
            ProcessError::Permission { pid, what } => write!(
                out,
                "no permission to read /proc/{pid}/{what}: run as root, or give leaktrace CAP_SYS_PTRACE"
            ),
            ProcessError::Other { pid, what, error } => {
                write!(out, "cannot read /proc/{pid}/{what}: {error}")
            }
        }
    }
}

impl std::error::Error for ProcessError {}

fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Reads the facts of a process and refuses one that cannot be traced.
///
/// # Errors
/// See [`ProcessError`].
pub fn inspect(pid: u32) -> Result<Process, ProcessError> {
    let stat = read_bounded(pid, "stat", MAX_STATUS_BYTES)?;
    let stat = parse_stat(&stat).ok_or(ProcessError::Gone(pid))?;
    if stat.flags & PF_KTHREAD != 0 {
        return Err(ProcessError::KernelThread(pid));
    }
    let shown = match living_thread(pid, &stat) {
        Some(thread) => thread,
        None => return Err(ProcessError::Zombie(pid)),
    };
    let status = read_bounded(shown, "status", MAX_STATUS_BYTES)?;
    if let Some(&process) = status_words(&status, "Tgid:").first().filter(|tgid| **tgid != pid) {
        return Err(ProcessError::Thread { tid: pid, process });
    }
    let comm = read_bounded(pid, "comm", 64)?;
    let cmdline = read_bounded(shown, "cmdline", MAX_CMDLINE_BYTES)?;
    check_architecture(shown)?;
    let executable = fs::read_link(format!("/proc/{shown}/exe")).ok();
    Ok(Process {
        identity: ProcessIdentity {
            pid,
            start_ticks: stat.start_ticks,
            start_time_wall_ns: wall_ns_of_ticks(stat.start_ticks),
        },
        comm: String::from_utf8_lossy(comm.trim_ascii_end()).into_owned(),
        cmdline: join_words(&cmdline),
        executable: executable.map(|path| path.to_string_lossy().into_owned()),
        uid: status_words(&status, "Uid:").first().copied().unwrap_or(0),
        seccomp: match status_words(&status, "Seccomp:").first() {
            Some(1) => Seccomp::Strict,
            Some(2) => Seccomp::Filter,
            _ => Seccomp::Disabled,
        },
        namespace_pids: status_words(&status, "NSpid:"),
        rss_bytes: u64::from(status_words(&status, "VmRSS:").first().copied().unwrap_or(0)) * 1024,
    })
}

/// All processes, kernel threads included; none where /proc cannot be read.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `/proc/PID/comm`, empty where the process is gone. Hostile.
pub fn name(pid: u32) -> String {
    let comm = read_bounded(pid, "comm", 64).unwrap_or_default();
    String::from_utf8_lossy(comm.trim_ascii_end()).into_owned()
}

/// Takes a text for each of the texts that are read here, for fuzzers.
pub(crate) fn read_texts(text: &[u8]) {
    let _ = (
        heap_bytes_in(text, &[0x7ffc_0000_1000]),
        parse_stat(text).map(|stat| stat.has_ended()),
        join_words(text),
    );
    for name in ["Tgid:", "Uid:", "Seccomp:", "NSpid:", "VmRSS:"] {
        let _ = status_words(text, name);
    }
}

/// Lets this process open as many files as it may: watching a process takes one.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid to write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is valid to read.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// The threads of a process; none where it is gone.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The thread that traces the process by ptrace.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = read_bounded(pid, "status", MAX_STATUS_BYTES).ok()?;
    status_words(&status, "TracerPid:").first().copied().filter(|tracer| *tracer != 0)
}

/// The id under which /proc shows a process's memory and files: its own, or, where its first thread has ended and others
/// live on, that of one of them. A process lives as long as one of its threads does.
pub fn shown_as(pid: u32) -> u32 {
    let stat = read_bounded(pid, "stat", MAX_STATUS_BYTES).ok().and_then(|stat| parse_stat(&stat));
    stat.and_then(|stat| living_thread(pid, &stat)).unwrap_or(pid)
}

/// A thread that lives: the first one, of which this is the state, if it does.
fn living_thread(pid: u32, first: &Stat) -> Option<u32> {
    // A thread gives its memory up some time before it is shown as ended.
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    let has_memory = !exe.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if !first.has_ended() && has_memory {
        return Some(pid);
    }
    let lives = |tid: &u32| {
        let mut stat = Vec::new();
        let read = File::open(format!("/proc/{pid}/task/{tid}/stat"))
            .and_then(|file| file.take(MAX_STATUS_BYTES).read_to_end(&mut stat));
        read.is_ok() && parse_stat(&stat).is_some_and(|stat| !stat.has_ended())
    };
    let other = threads(pid).into_iter().filter(|tid| *tid != pid).find(lives);
    other.or_else(|| (!first.has_ended()).then_some(pid))
}

/// Resident bytes of private anonymous memory (smaps `Anonymous:`) in which heap blocks can lie: `[heap]`,
/// and writable, not executable, not shared mappings without a file that have no name or are named
/// `[anon:…]`. Stacks do not count: `[stack]`, and what the stack pointer of a thread points into, which tells a thread's
/// stack from an arena. That of a thread that runs all the time cannot be read, and its stack counts. `None` where smaps
/// cannot be read.
pub fn heap_bytes(pid: u32) -> Option<u64> {
    let mut text = Vec::new();
    File::open(format!("/proc/{}/smaps", shown_as(pid)))
        .ok()?
        .take(MAX_SMAPS_BYTES)
        .read_to_end(&mut text)
        .ok()?;
    Some(heap_bytes_in(&text, &stack_pointers(pid)))
}

fn heap_bytes_in(smaps: &[u8], stack_pointers: &[u64]) -> u64 {
    let mut counts = false;
    let mut sum = 0u64;
    for line in smaps.split(|byte| *byte == b'\n') {
        if let Some(entry) = maps::parse_line(line) {
            let is_stack = stack_pointers.iter().any(|pointer| entry.contains(*pointer));
            counts = holds_heap(&entry) && !is_stack;
        } else if counts && let Some(rest) = line.strip_prefix(b"Anonymous:") {
            let digits = rest.trim_ascii().split(|byte| *byte == b' ').next().unwrap_or(&[]);
            let kib: u64 = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            sum = sum.saturating_add(kib.saturating_mul(1024));
        }
    }
    sum
}

/// Stack pointers of the threads that wait in the kernel; a thread that runs is asked a few times.
fn stack_pointers(pid: u32) -> Vec<u64> {
    const TRIES: usize = 5;
    let of_thread = |tid: u32| {
        let read = || fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok();
        (0..TRIES).find_map(|_| stack_pointer_in(&read()?))
    };
    threads(pid).into_iter().filter_map(of_thread).collect()
}

/// Of `/proc/PID/syscall`: number, arguments, stack pointer, instruction pointer; or `-1` and the last two; or `running`.
fn stack_pointer_in(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [.., pointer, _instruction] = words.as_slice() else { return None };
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
}

fn holds_heap(entry: &MapEntry) -> bool {
    let named = entry.path.is_empty() || entry.path == b"[heap]" || entry.path.starts_with(b"[anon:");
    entry.writable && !entry.executable && !entry.shared && entry.inode == 0 && named
}

/// What a process has in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident set size.
    pub rss_bytes: u64,
    /// The anonymous part of it.
    pub anonymous_bytes: u64,
}

/// Reads `/proc/PID/status`, which anybody may; none where the process is gone or has no memory.
pub fn memory(pid: u32) -> Option<Memory> {
    let status = read_bounded(pid, "status", MAX_STATUS_BYTES).ok()?;
    let bytes = |name| status_words(&status, name).first().map(|kib| u64::from(*kib) * 1024);
    Some(Memory { rss_bytes: bytes("VmRSS:")?, anonymous_bytes: bytes("RssAnon:")? })
}

/// What tells a process that can be a target from what cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// It has no user memory.
    pub is_kernel_thread: bool,
    /// It is ending, waits for its parent, or is not there any more.
    pub has_ended: bool,
    /// It has the memory of a new program, which is not there yet.
    pub in_exec: bool,
    /// Clock ticks after boot.
    pub start_ticks: u64,
}

/// Reads `/proc/PID/stat`; none where the process is gone.
pub fn stat(pid: u32) -> Option<Vitals> {
    let stat = parse_stat(&read_bounded(pid, "stat", MAX_STATUS_BYTES).ok()?)?;
    Some(Vitals {
        is_kernel_thread: stat.flags & PF_KTHREAD != 0,
        has_ended: living_thread(pid, &stat).is_none(),
        in_exec: stat.start_code == 0,
        start_ticks: stat.start_ticks,
    })
}

fn check_architecture(pid: u32) -> Result<(), ProcessError> {
    let foreign = |class, machine| ProcessError::Foreign { pid, class, machine };
    let file =
        File::open(format!("/proc/{pid}/exe")).map_err(|error| ProcessError::reading(pid, "exe", error))?;
    let file = ObjectFile::of_file(file).map_err(|error| ProcessError::reading(pid, "exe", error))?;
    match elf::class_and_machine(&file) {
        Ok((ELFCLASS64, EM_X86_64)) => Ok(()),
        Ok((class, machine)) | Err(ElfError::Foreign { class, machine }) => Err(foreign(class, machine)),
        Err(ElfError::Io(error)) => Err(ProcessError::reading(pid, "exe", error)),
        Err(_) => Err(foreign(0, 0)),
    }
}

fn read_bounded(pid: u32, what: &'static str, limit: u64) -> Result<Vec<u8>, ProcessError> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{what}"))
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| ProcessError::reading(pid, what, error))?;
    Ok(bytes)
}

struct Stat {
    state: u8,
    flags: u64,
    start_ticks: u64,
    /// 0 until an exec is complete; 1 where it may not be known.
    start_code: u64,
}

impl Stat {
    fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X') || self.flags & PF_EXITING != 0
    }
}

/// Fields are counted after the last `)`: the name in between may hold anything.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        flags: fields.get(6)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
        start_code: fields.get(23).and_then(|field| field.parse().ok()).unwrap_or(1),
    })
}

/// The decimal numbers of a line of `/proc/PID/status`.
fn status_words(status: &[u8], name: &str) -> Vec<u32> {
    let lines = status.split(|byte| *byte == b'\n');
    let mut values = lines.filter_map(|line| line.strip_prefix(name.as_bytes()));
    let text = values.next().map(String::from_utf8_lossy).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn join_words(cmdline: &[u8]) -> String {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let spaced: Vec<u8> =
        cmdline.iter().take(end).map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    String::from_utf8_lossy(&spaced).into_owned()
}

/// Boot time (`btime` of /proc/stat, whole seconds) plus ticks would be off by up to a second: the difference
/// of the real-time and the boot-time clock is taken instead.
fn wall_ns_of_ticks(ticks: u64) -> i64 {
    // SAFETY: sysconf has no preconditions.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    let after_boot_ns = i128::from(ticks) * 1_000_000_000 / i128::from(per_second);
    let boot_ns = clock_ns(libc::CLOCK_REALTIME) - clock_ns(libc::CLOCK_BOOTTIME);
    i64::try_from(boot_ns + after_boot_ns).unwrap_or(0)
}

fn clock_ns(clock: libc::clockid_t) -> i128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to.
    unsafe { libc::clock_gettime(clock, &mut time) };
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_itself_and_can_be_traced() {
        let pid = std::process::id();
        let process = inspect(pid).unwrap();
        assert_eq!(process.identity.pid, pid);
        assert_eq!(process.namespace_pids.first(), Some(&pid));
        assert!(process.rss_bytes > 0);
        assert!(process.cmdline.contains("leaktrace"));
        assert!(process.executable.is_some());
        let age = clock_ns(libc::CLOCK_REALTIME) - i128::from(process.identity.start_time_wall_ns);
        assert!((0..3_600_000_000_000).contains(&age), "started {age} ns ago");
        assert!(heap_bytes(pid).unwrap() > 0);
    }

    #[test]
    fn a_pid_that_is_not_there_is_gone() {
        let error = inspect(i32::MAX as u32).unwrap_err();
        assert!(matches!(error, ProcessError::Gone(_)));
        assert!(error.to_string().contains("check the pid"));
    }

    #[test]
    fn a_thread_is_told_from_its_process() {
        let tid = std::thread::spawn(|| {
            // SAFETY: gettid has no preconditions.
            let tid = unsafe { libc::gettid() } as u32;
            (tid, inspect(tid).unwrap_err().to_string())
        });
        let (tid, message) = tid.join().unwrap();
        assert_eq!(
            message,
            format!("{tid} is a thread of process {0}: give the pid {0}", std::process::id())
        );
    }

    #[test]
    fn a_zombie_is_told_apart() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        let state = || {
            fs::read(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|stat| parse_stat(&stat))
                .map(|stat| stat.state)
        };
        while state() != Some(b'Z') {
            std::thread::yield_now();
        }
        assert!(matches!(inspect(pid), Err(ProcessError::Zombie(_))));
        child.wait().unwrap();
        assert!(matches!(inspect(pid), Err(ProcessError::Gone(_))));
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_shown_by_another() {
        let pid = std::process::id();
        assert_eq!(shown_as(pid), pid);
        let ended = Stat { state: b'Z', flags: 0, start_ticks: 1, start_code: 1 };
        let thread = living_thread(pid, &ended).unwrap();
        assert!(thread != pid && threads(pid).contains(&thread), "tests run in threads");
        assert_eq!(living_thread(0, &ended), None);
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = b"7 (a) R 9) x) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4242 1 1\n";
        let stat = parse_stat(stat).unwrap();
        assert_eq!((stat.state, stat.flags, stat.start_ticks), (b'S', 4_194_560, 4242));
        assert!(parse_stat(b"7 (x").is_none());
    }

    #[test]
    fn only_private_writable_anonymous_memory_counts_as_heap() {
        let smaps = b"1000-2000 rw-p 00000000 00:00 0 [heap]\nAnonymous:       8 kB\n\
            2000-3000 rw-p 00000000 00:00 0 \nAnonymous:       4 kB\n\
            3000-4000 rw-p 00000000 00:00 0 [anon:scudo]\nAnonymous:       2 kB\n\
            4000-5000 rw-p 00000000 00:00 0 [stack]\nAnonymous:     100 kB\n\
            5000-6000 rwxp 00000000 00:00 0 \nAnonymous:     100 kB\n\
            6000-7000 rw-p 00000000 08:01 5 /x\nAnonymous:     100 kB\n\
            7000-8000 rw-s 00000000 00:00 0 \nAnonymous:     100 kB\n";
        assert_eq!(heap_bytes_in(smaps, &[]), 14 * 1024);
        assert_eq!(heap_bytes_in(smaps, &[0x2ff0, 0x9000]), 10 * 1024, "a thread's stack");
    }

    #[test]
    fn the_stack_pointer_of_a_waiting_thread_is_known() {
        assert_eq!(stack_pointer_in("202 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffe10 0x7f20\n"), Some(0x7f_fe10));
        assert_eq!(stack_pointer_in("-1 0x7ffe10 0x7f20\n"), Some(0x7f_fe10));
        for text in ["running\n", "", "0x1", "a b"] {
            assert_eq!(stack_pointer_in(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_stack_of_a_thread_is_no_heap() {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut own = [1u8; 1 << 20];
            std::hint::black_box(&mut own);
            ready.send(std::ptr::from_ref(&own) as u64).unwrap();
            let _ = ends.recv();
        });
        let address = is_ready.recv().unwrap();
        let pid = std::process::id();
        let mapping = maps::read(pid).unwrap().into_iter().find(|entry| entry.contains(address)).unwrap();
        let waits = || stack_pointers(pid).into_iter().any(|pointer| mapping.contains(pointer));
        while !waits() {
            std::thread::yield_now();
        }
        end.send(()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_command_line_is_joined_by_spaces() {
        assert_eq!(join_words(b"a\0b c\0\xff\0\0"), "a b c \u{fffd}");
        assert_eq!(join_words(b""), "");
    }
}
