//! For tests: the tables and mappings of a live process, built from /proc as the agent builds them for a target.
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Child,
    time::{Duration, Instant},
};

use leaktrace_common::unwind::Mapping;

use crate::unwind::{
    contents::Contents,
    elf::Elf,
    mappings::{Placement, Region, Regions},
    source::Source,
    store::{Capacity, Store},
    table::{Options, Table},
    walk::{self, Stack, Start},
};

/// What a walk of this process needs.
pub(super) struct Process {
    pub(super) mappings: Vec<Mapping>,
    pub(super) contents: Contents,
}

impl Process {
    /// Reads the maps of this process and builds every table that it needs.
    pub(super) fn this(options: &Options) -> Process {
        Process::of("self", options)
    }

    fn of(pid: &str, options: &Options) -> Process {
        let mut store = Store::new(Capacity::for_bytes(64 << 20));
        let mut contents = Contents::default();
        store.initial_writes().iter().for_each(|write| contents.apply(write));
        let mut regions = Regions::default();
        let mut files = Vec::new();
        for (start, end, file_offset, name) in executable_mappings(pid) {
            let Some(bytes) = bytes(pid, &name, start, end) else { continue };
            let elf = Elf::read(&Source::Bytes(&bytes)).unwrap();
            let table = Table::build(Source::Bytes(&bytes), &elf, options);
            let added = store.add(name, &table);
            added.writes.iter().for_each(|write| contents.apply(write));
            regions.insert(Region { start, end, file_offset, file: files.len() });
            files.push((elf, added.placed.unwrap()));
        }
        let layout = regions.layout(|region| {
            let (elf, placed) = &files[region.file];
            (Placement::of_file(region, elf, *placed), 0)
        });
        Process { mappings: layout.mappings, contents }
    }
}

/// Start, end, file offset and name of a process's executable mappings.
fn executable_mappings(pid: &str) -> Vec<(u64, u64, u64, String)> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_executable = fields.next()?.contains('x');
        let offset = fields.next()?;
        let name = fields.nth(2).unwrap_or_default().to_owned();
        let hex = |text| u64::from_str_radix(text, 16).ok();
        is_executable.then_some((hex(start)?, hex(end)?, hex(offset)?, name))
    };
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().filter_map(parse).collect()
}

fn bytes(pid: &str, name: &str, start: u64, end: u64) -> Option<Vec<u8>> {
    if name == "[vdso]" {
        let mut bytes = vec![0; (end - start) as usize];
        File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut bytes, start).unwrap();
        return Some(bytes);
    }
    // Other tests map code that has no file: none of it is on a stack that is walked here.
    if name.starts_with('/') { fs::read(name).ok() } else { None }
}

/// Stops a child once it sleeps, and walks its stack.
pub(super) fn stack_of_sleeping(child: &Child) -> Stack {
    let pid = child.id().to_string();
    let limit = Instant::now() + Duration::from_secs(10);
    let sleeps = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S"));
    while !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(sleeps) {
        assert!(Instant::now() < limit, "the program never sleeps");
        std::thread::yield_now();
    }
    let process = Process::of(&pid, &Options::default());
    let registers = registers(child.id() as libc::pid_t);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let start = Start {
        ip: registers.rip,
        sp: registers.rsp,
        rbp: registers.rbp,
        rbx: registers.rbx,
        is_exact: true,
    };
    walk::walk(start, &process.mappings, &process.contents, |address| {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_le_bytes(word))
    })
}

/// The registers of a child, which stays stopped for as long as it lives.
fn registers(pid: libc::pid_t) -> libc::user_regs_struct {
    // SAFETY: attaching changes no memory of this process.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) }, 0);
    // SAFETY: no status is asked for.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
    // SAFETY: all zeroes are valid registers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the registers have the size that the kernel writes.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers) }, 0);
    registers
}
