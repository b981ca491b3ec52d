//! bpf(2) and perf_event_open(2), as far as aya does not offer them: program load with an attach type of
//! choice, multi-uprobe and perf-event links, map batch operations. Each function is one system call.
use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};

/// BPF_TRACE_UPROBE_MULTI (Linux 6.6).
pub const ATTACH_UPROBE_MULTI: u32 = 48;
/// BPF_TRACE_UPROBE_SESSION (Linux 6.13).
pub const ATTACH_UPROBE_SESSION: u32 = 57;
/// BPF_PERF_EVENT (Linux 5.15).
pub const ATTACH_PERF_EVENT: u32 = 41;
/// BPF_F_UPROBE_MULTI_RETURN.
const UPROBE_MULTI_RETURN: u32 = 1;

/// Runs bpf(2). The result is a descriptor for the commands that make one, else 0.
///
/// # Errors
/// The system call's error.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a valid attribute of the size that is passed; its pointers are the caller's.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: the attribute is a union of plain structures, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What BPF_PROG_LOAD needs.
#[derive(Clone, Copy)]
pub struct ProgramSource<'a> {
    /// Name in the kernel, cut to 15 bytes.
    pub name: &'a str,
    /// BPF_PROG_TYPE.
    pub kind: u32,
    /// Expected attach type, or 0.
    pub attach_type: u32,
    /// Relocated instructions.
    pub instructions: &'a [aya_obj::generated::bpf_insn],
    /// License.
    pub license: &'a CStr,
    /// Type information, without which global functions are verified at each call.
    pub btf: Option<BorrowedFd<'a>>,
    /// Function records: bytes, count, record size.
    pub functions: (&'a [u8], u32, u32),
    /// Line records: bytes, count, record size.
    pub lines: (&'a [u8], u32, u32),
}

/// Loads a program. `log` takes the verifier's words and may be empty.
///
/// # Errors
/// The verifier's or the system call's error; `ENOSPC` when `log` is too small.
pub fn load_program(source: &ProgramSource<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    for (to, from) in load.prog_name.iter_mut().take(15).zip(source.name.bytes()) {
        *to = from.cast_signed();
    }
    load.prog_type = source.kind;
    load.expected_attach_type = source.attach_type;
    load.insns = source.instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(source.instructions.len()).map_err(io::Error::other)?;
    load.license = source.license.as_ptr() as u64;
    if let Some(btf) = source.btf {
        load.prog_btf_fd = btf.as_raw_fd().cast_unsigned();
        (load.func_info, load.func_info_cnt, load.func_info_rec_size) = records(source.functions);
        (load.line_info, load.line_info_cnt, load.line_info_rec_size) = records(source.lines);
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
    }
    owned(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// What the kernel says of a loaded program.
///
/// # Errors
/// The system call's error.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    info_of(program, 0, 0)
}

/// The machine code of a loaded program with its functions; empty where the kernel does not show it
/// (`kernel.kptr_restrict`, no CAP_SYSLOG), or interprets the program.
///
/// # Errors
/// The system call's error.
pub fn jited_code(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let length = program_info(program)?.jited_prog_len;
    let mut code = vec![0u8; length as usize];
    let info = info_of(program, code.as_mut_ptr() as u64, length)?;
    if info.jited_prog_insns == 0 {
        code.clear();
    }
    Ok(code)
}

/// BPF_OBJ_GET_INFO_BY_FD, with room for `length` bytes of machine code at `code`.
fn info_of(program: BorrowedFd<'_>, code: u64, length: u32) -> io::Result<bpf_prog_info> {
    // SAFETY: a plain structure, for which zeros are valid.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.jited_prog_insns = code;
    info.jited_prog_len = length;
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.info };
    request.bpf_fd = program.as_raw_fd().cast_unsigned();
    request.info_len = size_of::<bpf_prog_info>() as u32;
    request.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn records((bytes, count, size): (&[u8], u32, u32)) -> (u64, u32, u32) {
    if count == 0 { (0, 0, 0) } else { (bytes.as_ptr() as u64, count, size) }
}

/// Loads type information.
///
/// # Errors
/// The system call's error.
pub fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    owned(bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)?)
}

/// Attaches `program` to many places of one file, as a multi-uprobe or session link.
///
/// # Errors
/// The system call's error.
pub fn link_uprobe_multi(
    program: BorrowedFd<'_>,
    attach_type: u32,
    at_return: bool,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
) -> io::Result<OwnedFd> {
    debug_assert_eq!(offsets.len(), cookies.len());
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    link.attach_type = attach_type;
    // SAFETY: every variant of the union is plain data.
    let multi = unsafe { &mut link.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = offsets.as_ptr() as u64;
    multi.cookies = cookies.as_ptr() as u64;
    multi.cnt = u32::try_from(offsets.len()).map_err(io::Error::other)?;
    multi.flags = if at_return { UPROBE_MULTI_RETURN } else { 0 };
    multi.pid = pid;
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// Attaches `program` to a perf event (Linux 5.15).
///
/// # Errors
/// The system call's error.
pub fn link_perf_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    link.__bindgen_anon_2.target_fd = event.as_raw_fd().cast_unsigned();
    link.attach_type = ATTACH_PERF_EVENT;
    link.__bindgen_anon_3.perf_event.bpf_cookie = cookie;
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// Attaches `program` to the raw tracepoint `name` (Linux 4.17).
///
/// # Errors
/// The system call's error; `ENOENT` when the kernel has none of that name.
pub fn link_raw_tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.raw_tracepoint };
    request.name = name.as_ptr() as u64;
    request.prog_fd = program.as_raw_fd().cast_unsigned();
    owned(bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)?)
}

/// One call of BPF_MAP_LOOKUP_BATCH or its deleting twin (Linux 5.6).
pub struct Batch<'a> {
    /// The map.
    pub map: BorrowedFd<'a>,
    /// Position from the previous call, none for the first.
    pub position: Option<u32>,
    /// Room for the keys.
    pub keys: &'a mut [u8],
    /// Room for the values.
    pub values: &'a mut [u8],
    /// Entries that fit in both.
    pub capacity: u32,
}

/// What one batch call found.
pub struct BatchResult {
    /// Entries that were written.
    pub count: u32,
    /// Where to go on; none at the end.
    pub next: Option<u32>,
}

/// Reads the next entries of a map.
///
/// # Errors
/// `ENOSPC` when one bucket holds more than `capacity`; else the system call's error.
pub fn lookup_batch(batch: &mut Batch<'_>) -> io::Result<BatchResult> {
    let mut attr = zeroed();
    let mut next = 0u32;
    let position = batch.position.unwrap_or(0);
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.batch };
    request.in_batch = if batch.position.is_some() { std::ptr::from_ref(&position) as u64 } else { 0 };
    request.out_batch = std::ptr::from_mut(&mut next) as u64;
    request.keys = batch.keys.as_mut_ptr() as u64;
    request.values = batch.values.as_mut_ptr() as u64;
    request.count = batch.capacity;
    request.map_fd = batch.map.as_raw_fd().cast_unsigned();
    let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
    // SAFETY: the kernel wrote the count, also with ENOENT at the end of the map.
    let count = unsafe { attr.batch.count };
    match result {
        Ok(_) => Ok(BatchResult { count, next: Some(next) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(BatchResult { count, next: None }),
        Err(error) => Err(error),
    }
}

/// Deletes the entries with `count` keys that lie one after the other in `keys`; stops at the first error.
///
/// # Errors
/// The system call's error.
pub fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.batch };
    request.keys = keys.as_ptr() as u64;
    request.count = count;
    request.map_fd = map.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr).map(|_| ())
}

/// The first part of `struct perf_event_attr` (include/uapi/linux/perf_event.h), up to `sig_data`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct PerfEventAttr {
    /// PERF_TYPE_ or a dynamic PMU's number.
    pub kind: u32,
    /// Size of this structure.
    pub size: u32,
    /// Meaning by type.
    pub config: u64,
    /// Period or frequency.
    pub sample_period: u64,
    /// PERF_SAMPLE_ bits.
    pub sample_type: u64,
    /// PERF_FORMAT_ bits.
    pub read_format: u64,
    /// The bit field.
    pub flags: u64,
    /// Events or bytes until a wake-up.
    pub wakeup: u32,
    /// Break point type.
    pub breakpoint_kind: u32,
    /// config1: address, or the path of a uprobe.
    pub config1: u64,
    /// config2: length, or the offset of a uprobe.
    pub config2: u64,
    /// PERF_SAMPLE_BRANCH_ bits.
    pub branch_sample_type: u64,
    /// Registers wanted.
    pub sample_regs_user: u64,
    /// Stack bytes wanted.
    pub sample_stack_user: u32,
    /// Clock.
    pub clock: i32,
}

/// Opens a perf event; `pid` −1 is every process, `cpu` −1 every CPU.
///
/// # Errors
/// The system call's error.
pub fn perf_event_open(attr: &mut PerfEventAttr, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    const FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    attr.size = size_of::<PerfEventAttr>() as u32;
    // SAFETY: `attr` is valid and says its size; the paths it points to are the caller's.
    let result = unsafe {
        libc::syscall(libc::SYS_perf_event_open, std::ptr::from_mut(attr), pid, cpu, -1, FLAG_FD_CLOEXEC)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { owned(result) }
}

/// Reads one value; `false` when the key is absent.
///
/// # Errors
/// The system call's error.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = map.as_raw_fd().cast_unsigned();
    request.key = key.as_ptr() as u64;
    request.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    absent_is_false(bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr))
}

/// Writes one value.
///
/// # Errors
/// The system call's error; `E2BIG` when the map is full.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = map.as_raw_fd().cast_unsigned();
    // Queues have no keys and want none.
    request.key = if key.is_empty() { 0 } else { key.as_ptr() as u64 };
    request.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// Deletes one key; `false` when it was absent.
///
/// # Errors
/// The system call's error.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = zeroed();
    // SAFETY: every variant of the union is plain data.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = map.as_raw_fd().cast_unsigned();
    request.key = key.as_ptr() as u64;
    absent_is_false(bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr))
}

fn absent_is_false(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
