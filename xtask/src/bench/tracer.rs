//! The ways to trace a process that are compared, and how they begin and end.
use super::{bpftrace::Bpftrace, floor::Floor};
use anyhow::Result;
use leaktrace_tests::{
    compare::{self, Rules},
    leaktrace::Leaktrace,
};

/// A way to trace processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracer {
    None,
    /// Probes with nothing in them.
    Floor,
    /// leaktrace with these flags. The cost is not bounded unless the flags say so.
    Leaktrace(&'static [&'static str]),
    Bpftrace,
}

pub(super) const GROWTH: Tracer = Tracer::Leaktrace(&["--mode", "growth"]);
pub(super) const SAMPLED: Tracer = Tracer::Leaktrace(&["--mode", "sampled"]);
pub(super) const EXACT: Tracer = Tracer::Leaktrace(&["--mode", "exact"]);
pub(super) const OFFSET_ZERO: Tracer = Tracer::Leaktrace(&["--mode", "exact", "--probe-offset-zero"]);

/// As often as a person would look, and no more lines than one would read.
const USUAL: &[&str] = &["--interval", "1s", "--top", "10"];

/// A tracer at work.
pub(super) enum Tracing {
    None,
    Floor { _probes: Floor },
    Leaktrace(Box<Leaktrace>),
    Bpftrace { _script: Bpftrace },
}

impl Tracer {
    /// Begins to trace; returns when the tracer is ready.
    pub(super) fn attach(self, pids: &[u32]) -> Result<Tracing> {
        let first = pids.first().copied().unwrap_or_default();
        Ok(match self {
            Tracer::None => Tracing::None,
            Tracer::Floor => Tracing::Floor { _probes: Floor::start(pids)? },
            Tracer::Bpftrace => Tracing::Bpftrace { _script: Bpftrace::start(first)? },
            Tracer::Leaktrace(flags) => {
                let flags: Vec<&str> = USUAL.iter().chain(flags).copied().collect();
                Tracing::Leaktrace(Box::new(Leaktrace::attach(pids, &flags)?))
            }
        })
    }
}

impl Tracing {
    /// Ends it; says what leaktrace has lost or was not allowed to record meanwhile, which makes it cheaper.
    pub(super) fn end(self) -> Result<Option<String>> {
        let Tracing::Leaktrace(leaktrace) = self else { return Ok(None) };
        let report = leaktrace.interrupt()?;
        let mut said = compare::losses(&report, &Rules::default());
        for target in &report.targets {
            let limited = target
                .overhead
                .as_ref()
                .filter(|overhead| !matches!(&*overhead.state, "within_budget" | "off"));
            said.extend(limited.map(|overhead| {
                let seconds = overhead.paused_ns as f64 / 1e9;
                format!(
                    "at its end {} was {}, and paused for {seconds:.0} s in all",
                    target.comm, overhead.state
                )
            }));
        }
        Ok((!said.is_empty()).then(|| said.join("; ")))
    }
}
