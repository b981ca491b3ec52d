//! The `leaktrace` command: parses the command line, calls the library, maps the result to an exit code.
use std::process::ExitCode;

fn main() -> ExitCode {
    return_large_buffers();
    leaktrace::cli::main()
}

/// A summary needs tables of some tens of MiB for a moment. glibc keeps such memory once some of it was freed,
/// because it raises the size from which it maps blocks apart (mallopt(3), M_MMAP_THRESHOLD); set by hand, the
/// size stays, and what a summary took goes back to the system.
#[cfg(target_env = "gnu")]
fn return_large_buffers() {
    const OWN_MAPPING_BYTES: libc::c_int = 256 << 10;
    // Smaller ones come and go with each summary: a few MiB stay, which would be faulted in again a second later.
    const KEPT_BYTES: libc::c_int = 8 << 20;
    const STEP_BYTES: libc::c_int = 4 << 20;
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_TOP_PAD, STEP_BYTES),
    ] {
        // SAFETY: no thread has been started, and the call only sets a number.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries give large blocks back by themselves.
#[cfg(not(target_env = "gnu"))]
fn return_large_buffers() {}
