//! Gathers what `ps` shows: reads /proc, attaches nothing, and needs no privileges for the user's own processes.
use std::time::{Duration, Instant};

use super::{
    bans::{self, Bans},
    clock,
    orders::Orders,
    tracer::host_name,
    view::container_view,
};
use crate::{
    attach::{host::Host, preflight},
    discover::{
        self, Discovery,
        candidate::{self, Candidate},
        container::Containers,
        hazard,
        process::{self, Memory, ProcessError, Seccomp},
    },
    model::listing::{Listed, Listing},
};

/// How long runtimes get to say what containers are called.
const PATIENCE_FOR_NAMES: Duration = Duration::from_millis(500);

/// A process between the two looks at its memory.
struct Seen {
    listed: Listed,
    candidate: Candidate,
    memory: Option<Memory>,
    at: Instant,
}

/// The processes that the orders mean (all, if they mean none in particular), watched for a while.
pub fn list(orders: &Orders, watch: Duration) -> Listing {
    let host = Host::read();
    let may_kill = preflight::may_kill_filtered(host.version());
    let host_problem = preflight::demand(&host).err().map(|error| format!("{error:#}"));
    let mut containers = Containers::default();
    let mut seen: Vec<Seen> = Vec::new();
    let mut unnamed = Vec::new();
    for pid in candidate::process_ids() {
        let Some(candidate) = Candidate::read(pid, &mut containers) else { continue };
        if is_meant(orders, &candidate) {
            seen.push(look(candidate));
        } else if candidate.container.is_some() && orders.name_containers() {
            unnamed.push(candidate);
        }
    }
    await_names(&mut containers);
    for mut candidate in unnamed {
        candidate.container = candidate.container.map(|container| containers.latest(&container));
        if is_meant(orders, &candidate) {
            seen.push(look(candidate));
        }
    }
    let started = Instant::now();
    let mut discovery = Discovery::new(discover::options::Options::default());
    let mut bans = Bans::open(&bans::default_path()).unwrap_or_default();
    for process in &mut seen {
        find_allocators(process, &mut discovery, may_kill.then_some(host.release.as_str()));
        let listed = &mut process.listed;
        listed.problem = listed.problem.take().or_else(|| bans.of_process(listed.pid));
    }
    std::thread::sleep(watch.saturating_sub(started.elapsed()));
    let processes = seen.into_iter().map(|process| finish(process, &containers, watch)).collect();
    Listing {
        time: clock::wall_ns(),
        host: host_name(),
        watched_ns: u64::try_from(watch.as_nanos()).unwrap_or(u64::MAX),
        host_problem,
        processes,
        cut: 0,
    }
}

fn is_meant(orders: &Orders, candidate: &Candidate) -> bool {
    let all = orders.selectors.is_empty();
    (all && !orders.exclude.iter().any(|selector| selector.matches(candidate))) || orders.want(candidate)
}

fn look(candidate: Candidate) -> Seen {
    let memory = process::memory(candidate.pid);
    let listed = Listed { pid: candidate.pid, comm: candidate.comm.clone(), ..Listed::default() };
    Seen { listed, candidate, memory, at: Instant::now() }
}

/// A daemon that does not answer costs names only, and no more time than this.
fn await_names(containers: &mut Containers) {
    let deadline = Instant::now() + PATIENCE_FOR_NAMES;
    while containers.is_waiting() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        containers.take_answers();
    }
}

fn find_allocators(process: &mut Seen, discovery: &mut Discovery, kills_filtered: Option<&str>) {
    let pid = process.candidate.pid;
    let facts = process::inspect(pid);
    let found = match &facts {
        Ok(_) => discovery.find(pid),
        Err(_) => Err(ProcessError::Gone(pid)),
    };
    let listed = &mut process.listed;
    match (facts, found) {
        (Err(error), _) => listed.problem = Some(error.to_string()),
        (Ok(_), Err(error)) => listed.problem = Some(error.to_string()),
        (Ok(facts), Ok(found)) => {
            for allocator in &found.allocators {
                let name = allocator.allocator.name().to_owned();
                if !listed.allocators.contains(&name) {
                    listed.allocators.push(name);
                }
            }
            let is_filtered = facts.seccomp != Seccomp::Disabled;
            listed.problem = hazard::of(pid)
                .map(|hazard| hazard.to_string())
                .or_else(|| kills_filtered.filter(|_| is_filtered).map(preflight::kills_filtered));
            if listed.allocators.is_empty()
                && listed.problem.is_none()
                && let Some((path, reason)) = found.unreadable.first()
            {
                listed.problem = Some(format!("{path} cannot be looked into: {reason}"));
            }
        }
    }
}

fn finish(process: Seen, containers: &Containers, watch: Duration) -> Listed {
    let memory = process::memory(process.candidate.pid);
    let seconds = process.at.elapsed().as_secs_f64();
    let growth = match (&process.memory, &memory) {
        (Some(before), Some(now)) if !watch.is_zero() && seconds > 0.0 => {
            Some((now.anonymous_bytes as f64 - before.anonymous_bytes as f64) / seconds)
        }
        _ => None,
    };
    let memory = memory.or(process.memory);
    Listed {
        container: process
            .candidate
            .container
            .map(|container| container_view(&containers.latest(&container))),
        rss_bytes: memory.map(|memory| memory.rss_bytes),
        anonymous_bytes: memory.map(|memory| memory.anonymous_bytes),
        growth_bytes_per_second: growth,
        ..process.listed
    }
}
