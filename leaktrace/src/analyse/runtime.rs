//! Not a finding: what the C, C++ and Rust runtimes allocate once for themselves and keep on purpose, such as the
//! buffer of standard output or libstdc++'s reserve for exceptions.
use crate::model::{site_id::base_name, sites::Site, snapshot::Frame};

/// A runtime allocates such a thing once, or once for each standard stream.
const MAX_BLOCKS: u64 = 3;

/// Starts of the names of functions whose allocations last as long as the process.
const KEEPERS: [&str; 9] = [
    "_IO_file_doallocate",
    "_IO_wfile_doallocate",
    "__gconv_open",
    "_GLOBAL__sub_I_eh_alloc.cc",
    "(anonymous namespace)::pool::pool",
    "std::rt::init",
    "std::rt::lang_start",
    "std::sys::thread_local::",
    "std::io::stdio::",
];

/// Starts of the names of library functions that may lie between an allocation and its keeper.
const LIBRARY: [&str; 12] = [
    "_IO_",
    "__rust",
    "__rdl",
    "alloc::",
    "core::",
    "std::",
    "<alloc::",
    "<core::",
    "<std::",
    "operator new",
    "(anonymous namespace)::pool::",
    "__gnu_cxx::",
];

/// Files of the runtimes, without version and extension.
const FILES: [&str; 8] =
    ["libc", "libstdc++", "libc++", "libgcc_s", "libpthread", "ld", "ld-linux", "ld-musl"];

/// Whether the site is the runtime's own: only library code between the allocation and a known keeper, or no other
/// code in the whole stack.
pub(super) fn is_own(site: &Site, frames: &[Frame]) -> bool {
    if site.totals.allocated_count > MAX_BLOCKS || frames.is_empty() {
        return false;
    }
    frames.iter().take_while(|frame| is_library(frame)).any(is_keeper)
        || frames.iter().all(is_in_runtime_file)
        // A process that ended before its files were seen: this is its loader.
        || frames.iter().all(|frame| frame.module.is_none() && frame.function.is_none())
}

fn starts_with_any(frame: &Frame, starts: &[&str]) -> bool {
    frame.function.as_deref().is_some_and(|function| starts.iter().any(|start| function.starts_with(start)))
}

fn is_keeper(frame: &Frame) -> bool {
    starts_with_any(frame, &KEEPERS)
}

fn is_library(frame: &Frame) -> bool {
    is_keeper(frame) || starts_with_any(frame, &LIBRARY) || is_in_runtime_file(frame)
}

fn is_in_runtime_file(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(is_runtime_file)
}

fn is_runtime_file(path: &str) -> bool {
    let name = base_name(path);
    let stem = name.split_once(".so").map_or(name, |(stem, _)| stem);
    FILES
        .iter()
        .any(|file| stem == *file || stem.strip_prefix(file).is_some_and(|rest| rest.starts_with(['-', '.'])))
}
