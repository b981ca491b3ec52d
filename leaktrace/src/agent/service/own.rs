//! What the agent itself uses, from /proc/self, and whether that is too much.
use std::{collections::BTreeMap, fs, time::Duration, time::Instant};

use super::config::Limits;
use crate::{
    agent::bans::{self, Ban},
    model::{
        service::{AlertKind, OwnFault, OwnUse},
        units::bytes,
    },
    render::escape::escape,
};

/// Descriptors looked at for maps.
const MAX_DESCRIPTORS: usize = 16_384;

/// CPU shares are averaged over about this time, so that one costly moment is no fault.
const AVERAGED_SECONDS: f64 = 30.0;

/// Measures what is used.
#[derive(Debug)]
pub struct Meter {
    time: Instant,
    cpu: Duration,
    share: f64,
}

impl Meter {
    /// Begins.
    pub fn new() -> Meter {
        Meter { time: Instant::now(), cpu: cpu_time(), share: 0.0 }
    }

    /// What is used now, and of the CPU lately.
    pub fn read(&mut self) -> OwnUse {
        let (time, cpu) = (Instant::now(), cpu_time());
        let wall = time.duration_since(self.time).as_secs_f64();
        let used = cpu.saturating_sub(self.cpu).as_secs_f64();
        (self.time, self.cpu) = (time, cpu);
        if wall > 0.0 {
            let weight = 1.0 - (-wall / AVERAGED_SECONDS).exp();
            self.share += weight * (used / wall - self.share);
        }
        let (map_bytes, open_files) = descriptors();
        OwnUse {
            rss_bytes: rss_bytes(),
            map_bytes,
            cpu_seconds: cpu.as_secs_f64(),
            cpu_share: self.share,
            open_files,
        }
    }
}

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

/// What is above a limit.
pub fn faults(own: &OwnUse, limits: &Limits) -> Vec<OwnFault> {
    let mut found = Vec::new();
    if own.map_bytes > limits.map_memory.0 {
        found.push(format!(
            "the kernel maps take {}, limits.map_memory is {}: no more targets are traced",
            bytes(own.map_bytes),
            bytes(limits.map_memory.0)
        ));
    }
    if own.rss_bytes > limits.rss.0 {
        found.push(format!(
            "the agent takes {}, limits.rss is {}: histories are given up and no more targets are traced",
            bytes(own.rss_bytes),
            bytes(limits.rss.0)
        ));
    }
    if own.cpu_share > limits.cpu {
        found.push(format!(
            "the agent takes {:.0} % of a CPU, limits.cpu is {:.0} %: summaries become rarer",
            own.cpu_share * 100.0,
            limits.cpu * 100.0
        ));
    }
    if found.is_empty() {
        return Vec::new();
    }
    vec![OwnFault { kind: AlertKind::AgentLimit, message: found.join("; ") }]
}

/// Programs that tracing has probably killed, until they are forgotten.
pub fn killed(bans: &BTreeMap<String, Ban>) -> Option<OwnFault> {
    let (key, last) = bans.iter().max_by_key(|(_, ban)| ban.time_ns)?;
    let others = match bans.len() - 1 {
        0 => String::new(),
        count => format!("; so were {count} others"),
    };
    let message = format!("{}: {}{others}", escape(&last.comm), escape(&bans::sentence(key, last)));
    Some(OwnFault { kind: AlertKind::KilledByTracing, message })
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for a time; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let own = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0));
    own.saturating_add(cpu_of_readers())
}

/// What processes that read files for names took, as far as they have ended.
fn cpu_of_readers() -> Duration {
    // SAFETY: of integers; zero is a value of each.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let of = |time: libc::timeval| {
        let rest = Duration::from_micros(time.tv_usec.unsigned_abs());
        Duration::from_secs(time.tv_sec.unsigned_abs()).saturating_add(rest)
    };
    of(usage.ru_utime).saturating_add(of(usage.ru_stime))
}

fn rss_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// Bytes of the kernel maps behind this process's descriptors, as the kernel says since 4.11, and how many
/// descriptors there are.
fn descriptors() -> (u64, u64) {
    let Ok(entries) = fs::read_dir("/proc/self/fdinfo") else { return (0, 0) };
    let (mut map_bytes, mut open) = (0_u64, 0);
    let mut seen = std::collections::HashSet::new();
    for entry in entries.flatten().take(MAX_DESCRIPTORS) {
        open += 1;
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        // Several descriptors may be of one map.
        if let (Some(bytes), Some(id)) = (field("memlock:"), field("map_id:"))
            && seen.insert(id)
        {
            map_bytes = map_bytes.saturating_add(bytes);
        }
    }
    (map_bytes, open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::service::values::Size;

    #[test]
    fn the_test_itself_uses_memory_and_files() {
        let own = Meter::new().read();
        assert!(own.rss_bytes > 1 << 20 && own.open_files > 2, "{own:?}");
    }

    #[test]
    fn what_is_above_its_limit_is_one_fault_that_says_what_happens() {
        let limits = Limits { rss: Size(10), cpu: 0.5, ..Limits::default() };
        let own = OwnUse { rss_bytes: 11, cpu_share: 0.6, ..OwnUse::default() };
        let faults = faults(&own, &limits);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].message.contains("limits.rss") && faults[0].message.contains("limits.cpu"));
        assert!(super::faults(&OwnUse::default(), &limits).is_empty());
    }
}
