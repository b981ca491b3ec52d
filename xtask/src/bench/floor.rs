//! The floor under any tracer: programs that do nothing, linked as leaktrace links its own and at the instructions that
//! leaktrace has chosen. What is above it is leaktrace's own work. Uses bpf(2) directly: no library is in the way.
use super::doctor::{self, Hook};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// BPF_PROG_LOAD and BPF_LINK_CREATE.
const LOAD: libc::c_long = 5;
const LINK: libc::c_long = 28;
/// BPF_PROG_TYPE_KPROBE.
const KPROBE: u32 = 2;
/// BPF_TRACE_UPROBE_MULTI (Linux 6.6) and BPF_TRACE_UPROBE_SESSION (Linux 6.13).
const MULTI: u32 = 48;
const SESSION: u32 = 57;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD (include/uapi/linux/bpf.h).
#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for BPF_LINK_CREATE with `uprobe_multi`.
#[derive(Default)]
#[repr(C)]
struct Link {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

/// The empty probes; they are gone with the value.
pub(super) struct Floor {
    _links: Vec<OwnedFd>,
}

impl Floor {
    /// Attaches wherever leaktrace would attach to the processes.
    pub(super) fn start(pids: &[u32]) -> Result<Floor> {
        let mut links = Vec::new();
        for pid in pids {
            for allocator in doctor::process(*pid)?.allocators {
                for hook in &allocator.hooks {
                    let link = probe(&allocator.file, hook, *pid);
                    links.push(link.with_context(|| format!("an empty probe on {}", hook.function))?);
                }
            }
        }
        ensure!(!links.is_empty(), "leaktrace would probe nothing");
        Ok(Floor { _links: links })
    }
}

fn probe(file: &str, hook: &Hook, pid: u32) -> Result<OwnedFd> {
    let attach_type = match hook.link.as_str() {
        "session" => SESSION,
        "multi" => MULTI,
        other => bail!("leaktrace would use {other} links, of which this benchmark has none"),
    };
    empty_probe(attach_type, file, hook.file_offset, pid)
}

fn empty_probe(attach_type: u32, file: &str, offset: u64, pid: u32) -> Result<OwnedFd> {
    // A session whose program returns 1 at the entry has no return probe: the way of a call that is not sampled.
    let program = constant(i32::from(attach_type == SESSION), attach_type).context("the program")?;
    let path = CString::new(file)?;
    let link = Link {
        program: program.as_raw_fd(),
        attach_type,
        path: path.as_ptr() as u64,
        offsets: std::ptr::from_ref(&offset) as u64,
        count: 1,
        pid,
        ..Link::default()
    };
    Ok(bpf(LINK, &link)?)
}

/// `r0 = value; exit`.
fn constant(value: i32, attach_type: u32) -> io::Result<OwnedFd> {
    let instructions = [0xb7 | (u64::from(value.cast_unsigned()) << 32), 0x95];
    let license = c"GPL";
    bpf(
        LOAD,
        &Load {
            kind: KPROBE,
            instruction_count: 2,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            attach_type,
            ..Load::default()
        },
    )
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is plain data of the size that is passed, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
