//! Gathers what `doctor` shows of the host: facts, a trial load of the kernel programs, measured costs. Processes
//! are `examine`'s. Nothing is attached to anything of the user's.
use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use super::{
    bans::{self, Bans},
    clock, examine,
    options::TraceOptions,
    tracer::host_name,
};
use crate::{
    attach::{
        host::{BpfAccess, Host},
        links::{LinkKind, Programs},
        object::{KernelObject, Sizes},
        plan::EmulatedClasses,
        preflight::{self, Check, Level},
        prologue::InstructionClass,
        selftest::ProbeCosts,
    },
    model::{
        diagnosis::{CostRow, CostTable, Diagnosis, Limit, LinkDiagnosis},
        units,
    },
};

/// Looks at the host, and at the processes `pids`.
pub fn diagnose(pids: &[u32]) -> Diagnosis {
    let host = Host::read();
    let mut checks = preflight::checks(&host);
    let loads = host.bpf == BpfAccess::Works;
    let kind = if loads { Some(LinkKind::best()) } else { None };
    checks.push(kernel_programs(&checks, kind));
    let measured = match kind {
        Some(kind) => ProbeCosts::measure(kind).map_err(|error| format!("{error:#}")),
        None => Err("no program can be loaded".to_owned()),
    };
    let costs = measured.as_ref().ok();
    let look = examine::Look {
        emulated: costs.map_or(EmulatedClasses::COMMON, ProbeCosts::emulated),
        costs,
        link: kind.unwrap_or(LinkKind::Perf),
        refuse_filtered: refusal(&host, kind),
        bans: RefCell::new(Bans::open(&bans::default_path()).unwrap_or_default()),
    };
    Diagnosis {
        time: clock::wall_ns(),
        host: host_name(),
        processes: pids.iter().map(|pid| examine::process(*pid, &look)).collect(),
        checks,
        links: links(kind),
        costs: measured.as_ref().map(table).map_err(Clone::clone),
        limits: limits(),
    }
}

/// Why processes under a seccomp filter are not traced here.
fn refusal(host: &Host, kind: Option<LinkKind>) -> Option<String> {
    let kills = preflight::may_kill_filtered(host.version())
        && kind.is_none_or(|kind| crate::attach::selftest::return_probe_kills_filtered(kind).unwrap_or(true));
    kills.then(|| preflight::kills_filtered(&host.release))
}

/// Loads what tracing loads, with small maps.
fn kernel_programs(checks: &[Check], kind: Option<LinkKind>) -> Check {
    const TOPIC: &str = "kernel programs";
    let missing = checks.iter().any(|check| check.level == Level::Missing);
    let Some(kind) = kind.filter(|_| !missing) else {
        return Check::bad(TOPIC, Level::Unknown, "not tried", "get what is missing first");
    };
    let began = Instant::now();
    let sizes =
        Sizes { targets: 1, sites: 64, stacks: 64, threads: 64, slabs: 1, copies: 1, calls_bytes: 4096 };
    let loaded = KernelObject::load(&sizes, true, false)
        .and_then(|kernel| Programs::load_all(&kernel, kind).map(|_| kernel.verified_instructions()));
    match loaded {
        Ok(verified) => Check {
            topic: TOPIC,
            level: Level::Ok,
            finding: accepted(began.elapsed(), &verified),
            remedy: None,
        },
        Err(error) => Check::bad(
            TOPIC,
            Level::Missing,
            format!("refused: {error:#}"),
            "report this with the kernel's release: the programs should load on every kernel from 5.15 on",
        ),
    }
}

/// That the verifier takes the programs, in what time, and how much it has looked at, where the kernel says so.
fn accepted(took: Duration, verified: &[(String, u32)]) -> String {
    let most = verified.iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0);
    let took = format!("accepted by the verifier in {} ms", took.as_millis());
    match most {
        None => took,
        Some((name, count)) => {
            let all: u64 = verified.iter().map(|(_, count)| u64::from(*count)).sum();
            format!(
                "{took}: {} programs, {} instructions verified; most for {name}, {} of 1,000,000",
                verified.len(),
                units::count(all),
                units::count(u64::from(*count)),
            )
        }
    }
}

fn links(used: Option<LinkKind>) -> Vec<LinkDiagnosis> {
    let diagnosis = |kind: LinkKind| LinkDiagnosis {
        name: kind.name(),
        available: used.map(|_| kind.is_available()),
        used: used == Some(kind),
    };
    LinkKind::ALL.into_iter().map(diagnosis).collect()
}

fn table(costs: &ProbeCosts) -> CostTable {
    let emulated = costs.emulated();
    let of_class = |(class, ns): &(InstructionClass, Option<u64>)| CostRow {
        what: class.name(),
        ns: *ns,
        how: match ns {
            None => "the kernel takes no probe here",
            Some(_) if emulated.contains(*class) => "emulated",
            Some(_) => "single-stepped",
        },
    };
    let mut rows: Vec<CostRow> = costs.classes.iter().map(of_class).collect();
    let row = |what, ns: Option<u64>, how| CostRow { what, ns, how };
    rows.push(row(
        "nop of 5 bytes",
        costs.nop_of_five_ns,
        "a call instead of a trap from Linux 6.18 on: only where a function begins",
    ));
    rows.push(row("any other instruction", Some(costs.single_stepped_ns), "single-stepped"));
    rows.push(row("return probe", costs.return_ns, "on top of the entry"));
    rows.push(row("session, return skipped", costs.session_skip_ns, "instead of an entry probe on push"));
    CostTable {
        link: costs.link.name(),
        took_ns: u64::try_from(costs.took.as_nanos()).unwrap_or(u64::MAX),
        rows,
    }
}

fn limits() -> Vec<Limit> {
    let options = TraceOptions::default();
    let sizes = options.sizes;
    let limit = |what, value: u32, option| Limit { what, value: u64::from(value), option };
    vec![
        limit("processes at once", sizes.targets, None),
        limit("live blocks of each process", options.max_blocks, Some("--max-blocks")),
        limit("call stacks of all processes", sizes.sites, Some("--max-sites")),
        limit("different stacks in memory", sizes.stacks, None),
        limit("threads inside an allocation function", sizes.threads, None),
        limit("frames of a stack", options.stack_depth, Some("--stack-depth")),
        limit("MiB of unwind tables", sizes.slabs, None),
    ]
}
