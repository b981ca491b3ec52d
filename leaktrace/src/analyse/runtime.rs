//! Not a finding: what the C, C++ and Rust runtimes allocate for themselves and keep on purpose, such as the buffer of
//! standard output, libstdc++'s reserve for exceptions, or the thread-local storage of threads that still run.
//!
//! It is known by the names of functions, in all the forms that symbol tables give them; where a file has no names, by
//! the file; and where the runtime is part of a stripped program, by its shape.
use crate::model::{
    site_id::base_name,
    sites::Site,
    snapshot::{Frame, SiteKind},
};

/// A runtime holds such a thing once, or once for each standard stream.
const FEW: u64 = 3;
/// Or once for each category of a locale, each library, each thread that still runs when the process ends. More than this
/// by one call stack is no such thing: it grows.
const MANY: u64 = 512;

/// Starts of the names of functions of which a process keeps one or a few allocations as long as it lives.
const KEEPERS: [&str; 12] = [
    // The buffers of streams; not the streams themselves, which whoever opened them should close.
    "_IO_file_doallocate",
    "_IO_wfile_doallocate",
    "_IO_wdefault_doallocate",
    "_IO_default_doallocate",
    // libstdc++'s reserve for exceptions.
    "_GLOBAL__sub_I_eh_alloc",
    "_GLOBAL__sub_I__ZN9__gnu_cxx9__freeresEv",
    "(anonymous namespace)::pool::pool",
    // Rust's main thread, its standard streams.
    "std::rt::init",
    "std::rt::lang_start",
    "std::sys::thread_local::",
    "std::io::stdio::",
    "std::thread::current::",
];

/// The same for functions of which it keeps more.
const MANY_KEEPERS: [&str; 31] = [
    // Character sets of the locale.
    "__gconv_find_transform",
    "__gconv_load_cache",
    "__gconv_load_conf",
    "__gconv_read_conf",
    "__gconv_lookup_cache",
    "__wcsmbs_load_conv",
    "_IO_fwide",
    // Locales and message catalogues.
    "_nl_find_locale",
    "_nl_load_locale",
    "_nl_intern_locale_data",
    "_nl_find_domain",
    "_nl_load_domain",
    "__dcigettext",
    "std::locale::",
    "std::__numpunct_cache",
    "std::__moneypunct_cache",
    "std::__timepunct_cache",
    "std::ostream& std::ostream::_M_insert",
    "std::istream& std::istream::_M_extract",
    // Time zones, the environment, functions to be called at exit, name services.
    "__tzset",
    "__tzfile",
    "__add_to_environ",
    "__new_exitfn",
    "__cxa_atexit",
    "__nss_",
    // Libraries that the program has loaded.
    "_dl_new_object",
    "_dl_map_object",
    "_dl_open",
    // What each thread has.
    "_dl_allocate_tls",
    "__tls_get_addr",
    "__cxa_get_globals",
];

/// Whole names of such functions, without what [`plain`] takes off: a program may well have others that begin so.
const NAMED_KEEPERS: [&str; 29] = [
    "setlocale",
    "textdomain",
    "bindtextdomain",
    "set_binding_values",
    "tzset",
    "setenv",
    "putenv",
    "dlopen",
    "on_exit",
    "internal_atexit",
    "cxa_thread_atexit",
    "cxa_thread_atexit_impl",
    // Buffers for answers that last until the next one.
    "getpwuid",
    "getpwnam",
    "getpwent",
    "getgrgid",
    "getgrnam",
    "getgrent",
    "getspnam",
    "gethostbyname",
    "gethostbyaddr",
    "getservbyname",
    "getservbyport",
    "getprotobyname",
    // What each thread has.
    "allocate_dtv",
    "allocate_stack",
    "tls_get_addr_tail",
    "dl_resize_dtv",
    "pthread_setspecific",
];

/// Starts of the names of library functions that may lie between an allocation and its keeper.
const LIBRARY: [&str; 18] = [
    "_IO_",
    "__rust",
    "__rdl",
    "__rustc::",
    "alloc::",
    "core::",
    "std::",
    "<alloc::",
    "<core::",
    "<std::",
    "operator new",
    "(anonymous namespace)::pool::",
    "__gnu_cxx::",
    "__gconv",
    "_nl_",
    "_dl_",
    "nss_",
    "gomp_",
];

/// Files of the runtimes, without version and extension.
const FILES: [&str; 20] = [
    "libc",
    "libstdc++",
    "libc++",
    "libc++abi",
    "libgcc_s",
    "libunwind",
    "libpthread",
    "libdl",
    "libm",
    "librt",
    "libresolv",
    "libgomp",
    "ld",
    "ld-linux",
    "ld-musl",
    // What they allocate before main is their own.
    "libjemalloc",
    "libtcmalloc",
    "libtcmalloc_minimal",
    "libmimalloc",
    "libasan",
];

/// Bytes of libstdc++'s reserve for exceptions: of GCC 5 to 12, and later.
const RESERVES: [u64; 2] = [72_704, 73_728];

/// Whether the site is the runtime's own: only library code between the allocation and a known keeper, or no other
/// code in the whole stack.
pub(super) fn is_own(site: &Site, frames: &[Frame]) -> bool {
    let held = site.totals.outstanding_count;
    let within = |starts: &[&str], names: &[&str]| {
        let keeps = |frame: &Frame| starts_with_any(frame, starts) || is_named_one_of(frame, names);
        frames.iter().take_while(|frame| keeps(frame) || is_library(frame)).any(keeps)
    };
    if frames.is_empty() || held > MANY {
        return false;
    }
    if within(&MANY_KEEPERS, &NAMED_KEEPERS) {
        return true;
    }
    if held > FEW {
        return false;
    }
    // A stack that was cut may belong to anybody.
    let is_whole = matches!(site.stack_end, "complete" | "none" | "");
    within(&KEEPERS, &[])
        || is_whole && frames.iter().all(is_in_runtime_file)
        || is_reserve(site, frames)
        // A process that ended before its files were seen: this is its loader.
        || frames.iter().all(|frame| frame.module.is_none() && frame.function.is_none())
}

/// libstdc++'s reserve in a program that has libstdc++ in it and no names: one block of that very size, allocated by a
/// constructor of the program.
fn is_reserve(site: &Site, frames: &[Frame]) -> bool {
    let [first, rest @ ..] = frames else { return false };
    let is_start = |frame: &Frame| frame.function.as_deref().is_none_or(|name| name == "_start");
    site.kind == SiteKind::Heap
        && site.totals.allocated_count == 1
        && RESERVES.contains(&site.totals.outstanding_bytes)
        && first.function.is_none()
        && rest.first().is_some_and(is_in_runtime_file)
        && rest.iter().all(|frame| is_in_runtime_file(frame) || is_start(frame))
}

/// The name without what libraries put before it for aliases of their own.
fn unaliased(function: &str) -> &str {
    function.strip_prefix("__GI_").unwrap_or(function)
}

/// The bare name: also without the underscores of reserved names, versions, and what compilers append to parts and
/// copies of a function.
fn plain(function: &str) -> &str {
    let name = unaliased(function).trim_start_matches("__");
    name.split(['.', '@']).next().unwrap_or(name)
}

fn starts_with_any(frame: &Frame, starts: &[&str]) -> bool {
    frame.function.as_deref().is_some_and(|function| {
        starts.iter().any(|start| function.starts_with(start) || unaliased(function).starts_with(start))
    })
}

fn is_named_one_of(frame: &Frame, names: &[&str]) -> bool {
    frame.function.as_deref().is_some_and(|function| names.contains(&plain(function)))
}

fn is_library(frame: &Frame) -> bool {
    starts_with_any(frame, &LIBRARY) || is_in_runtime_file(frame)
}

/// Whether the frame is code of the C or C++ runtime, of the loader, or of an allocator.
pub(super) fn is_in_runtime_file(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(is_runtime_file)
}

fn is_runtime_file(path: &str) -> bool {
    let name = base_name(path);
    let stem = name.split_once(".so").map_or(name, |(stem, _)| stem);
    stem.starts_with("libnss_")
        || FILES.iter().any(|file| {
            stem == *file || stem.strip_prefix(file).is_some_and(|rest| rest.starts_with(['-', '.']))
        })
}
