//! The two clocks: CLOCK_BOOTTIME, which the kernel programs stamp blocks with, and wall time for people.
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::snapshot::WallNs;

/// ns of CLOCK_BOOTTIME.
pub fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for a time; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.cast_unsigned())
}

/// ns since the Unix epoch.
pub fn wall_ns() -> WallNs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Wall time of a CLOCK_BOOTTIME stamp, by the clocks' present distance.
pub fn wall_of_boot(time_ns: u64) -> WallNs {
    let age = boot_ns().saturating_sub(time_ns);
    wall_ns().saturating_sub(i64::try_from(age).unwrap_or(0))
}
