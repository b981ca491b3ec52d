//! Looks at the memory of processes: one read of an open file for each. Which processes there are is told by the caller.
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
};

use crate::{
    analyse::memory_growth::{self, Growth, GrowthRule},
    discover::memory::{Statm, page_bytes},
    model::memory::{MemoryPoint, MemorySeries, WatchView, WatchedView},
};

/// Looks between which a process without memory (a kernel thread) is left alone.
const PATIENCE: u32 = 12;

/// A process.
#[derive(Debug)]
struct Watched {
    statm: Statm,
    rss_bytes: u64,
    anonymous_bytes: u64,
    series: MemorySeries,
}

impl Watched {
    fn open(pid: u32) -> io::Result<Watched> {
        let statm = Statm::open(pid)?;
        Ok(Watched { statm, rss_bytes: 0, anonymous_bytes: 0, series: MemorySeries::default() })
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// All processes that are watched.
#[derive(Debug)]
pub struct Watcher {
    rule: GrowthRule,
    page_bytes: u64,
    processes: HashMap<u32, Watched>,
    /// Processes without memory, and how many looks they are left alone for.
    without_memory: HashMap<u32, u32>,
    unwatched: u64,
}

impl Watcher {
    /// Watches nothing yet; `rule` says when a process counts as growing.
    pub fn new(rule: GrowthRule) -> Watcher {
        Watcher {
            rule,
            page_bytes: page_bytes(),
            processes: HashMap::new(),
            without_memory: HashMap::new(),
            unwatched: 0,
        }
    }

    /// Looks at these processes; others are forgotten. A process that ended is, too, even if its pid has come back.
    pub fn look(&mut self, pids: &[u32], now_ns: u64) {
        let wanted: HashSet<u32> = pids.iter().copied().collect();
        self.processes.retain(|pid, _| wanted.contains(pid));
        self.without_memory.retain(|pid, _| wanted.contains(pid));
        self.unwatched = 0;
        for pid in wanted {
            self.look_at(pid, now_ns);
        }
    }

    fn look_at(&mut self, pid: u32, now_ns: u64) {
        if let Some(left) = self.without_memory.get_mut(&pid).filter(|left| **left > 0) {
            *left -= 1;
            return;
        }
        let process = match self.processes.entry(pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => match Watched::open(pid) {
                Ok(new) => place.insert(new),
                Err(error) => {
                    self.unwatched += u64::from(!is_gone(&error));
                    return;
                }
            },
        };
        match process.statm.read(self.page_bytes) {
            Some((rss_bytes, anonymous_bytes)) => {
                process.rss_bytes = rss_bytes;
                process.anonymous_bytes = anonymous_bytes;
                process.series.record(MemoryPoint { time_ns: now_ns, bytes: anonymous_bytes });
                process.series.keep(self.rule.min_duration_ns.saturating_mul(2));
                self.without_memory.remove(&pid);
            }
            None => {
                self.processes.remove(&pid);
                self.without_memory.insert(pid, PATIENCE);
            }
        }
    }

    /// Whether the process is watched and lives.
    pub fn contains(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// How many processes are watched.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Processes that keep growing, the fastest first.
    pub fn growing(&self) -> Vec<(u32, Growth)> {
        let growth = |process: &Watched| memory_growth::growth(process.series.points(), &self.rule);
        let mut growing: Vec<(u32, Growth)> =
            self.processes.iter().filter_map(|(pid, process)| Some((*pid, growth(process)?))).collect();
        growing.sort_by(|(a, left), (b, right)| {
            right.bytes_per_second().total_cmp(&left.bytes_per_second()).then_with(|| a.cmp(b))
        });
        growing
    }

    /// The `count` processes that grow fastest; `name` tells a process's name.
    pub fn view(&self, count: usize, name: impl Fn(u32) -> String) -> WatchView {
        let mut rising: Vec<(u32, f64)> = self
            .processes
            .iter()
            .filter_map(|(pid, process)| Some((*pid, process.series.bytes_per_second()?)))
            .filter(|(_, rate)| *rate > 0.0)
            .collect();
        rising.sort_by(|(a, left), (b, right)| right.total_cmp(left).then_with(|| a.cmp(b)));
        let fastest = rising.into_iter().take(count).filter_map(|(pid, rate)| {
            let process = self.processes.get(&pid)?;
            Some(WatchedView {
                pid,
                comm: name(pid),
                rss_bytes: process.rss_bytes,
                anonymous_bytes: process.anonymous_bytes,
                growth_bytes_per_hour: Some(rate * 3600.0),
                reason: memory_growth::growth(process.series.points(), &self.rule)
                    .map(|growth| growth.evidence()),
            })
        });
        WatchView {
            processes: self.processes.len() as u64,
            unwatched: self.unwatched,
            fastest: fastest.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: GrowthRule =
        GrowthRule { min_growth_bytes: 8 << 20, min_duration_ns: 5_000_000_000, min_rising_share: 0.6 };

    #[test]
    fn a_process_that_grows_is_told_from_one_that_does_not() {
        let mut idle = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let me = std::process::id();
        let mut watcher = Watcher::new(RULE);
        let mut kept = Vec::new();
        for second in 0..10u64 {
            watcher.look(&[me, idle.id(), 2], second * 1_000_000_000);
            kept.push(vec![1u8; 4 << 20]);
        }
        let growing: Vec<u32> = watcher.growing().iter().map(|(pid, _)| *pid).collect();
        assert_eq!(growing, [me]);
        assert!(watcher.contains(idle.id()));
        let view = watcher.view(5, |pid| format!("process {pid}"));
        assert_eq!(view.fastest[0].pid, me);
        assert!(view.fastest[0].reason.as_ref().unwrap().contains("grew by"));
        assert!(kept.len() == 10);
        idle.kill().unwrap();
        idle.wait().unwrap();
        watcher.look(&[me, idle.id()], 11_000_000_000);
        assert!(!watcher.contains(idle.id()));
        watcher.look(&[], 12_000_000_000);
        assert!(watcher.is_empty());
    }

    /// Debug build, loaded machine: the bound is generous, the share is printed.
    #[test]
    fn five_hundred_processes_cost_less_than_a_hundredth_of_a_core() {
        let mut sleepers: Vec<_> =
            (0..500).map(|_| std::process::Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let pids: Vec<u32> = sleepers.iter().map(std::process::Child::id).collect();
        let mut watcher = Watcher::new(GrowthRule::AUTO);
        let looks = 60u64;
        let began = thread_cpu_ns();
        for look in 0..looks {
            watcher.look(&pids, look * 5_000_000_000);
            assert!(watcher.growing().is_empty());
        }
        let each_ns = (thread_cpu_ns() - began) / looks;
        let watched = watcher.len();
        for sleeper in &mut sleepers {
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
        }
        assert_eq!(watched, 500);
        let share = each_ns as f64 / 5e9;
        eprintln!(
            "a look at 500 processes takes {each_ns} ns of processor time, {:.3} % of a core every 5 s",
            share * 100.0
        );
        assert!(share < 0.01, "{share}");
    }

    fn thread_cpu_ns() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid timespec to write to.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    }
}
