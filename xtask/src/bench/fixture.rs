//! Runs `tests/fixtures/pairs.c` and takes its times: processor time first, which other work on the machine disturbs
//! least, then the time that went by, which also has the waiting in it.
use super::{rounds::Measured, tracer::Tracer};
use anyhow::{Result, bail};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    ledger::Said,
};

/// What a pair takes each of its threads in a new process under a tracer: processor time and time, in ns.
pub(super) fn pair_ns(words: &[&str], build: Build, tracer: Tracer) -> Result<Measured> {
    pair_ns_among(0, words, build, tracer)
}

/// The same while so many others that do nothing are traced as well.
pub(super) fn pair_ns_among(others: usize, words: &[&str], build: Build, tracer: Tracer) -> Result<Measured> {
    let program = compile::fixture("pairs.c", build, &[])?;
    let mut fixture = Fixture::start(&program, words, &[])?;
    let others: Vec<Fixture> =
        (0..others).map(|_| Fixture::start(&program, &[], &[])).collect::<Result<_>>()?;
    let pids: Vec<u32> = std::iter::once(&fixture).chain(&others).map(Fixture::pid).collect();
    let tracing = tracer.attach(&pids)?;
    let price = timed(&mut fixture)?;
    Ok(Measured { values: price.to_vec(), note: tracing.end()? })
}

/// The same for a process that runs already, so that the tracers which take turns with it meet the same addresses and the
/// same state of its heap. leaktrace is given a time to build its tables in.
pub(super) fn pair_ns_of(fixture: &mut Fixture, tracer: Tracer) -> Result<Measured> {
    let tracing = tracer.attach(&[fixture.pid()])?;
    once(fixture)?;
    let price = timed(fixture)?;
    Ok(Measured { values: price.to_vec(), note: tracing.end()? })
}

/// Processor time and time of a pair. The first measurement warms up, the second counts.
pub(super) fn timed(fixture: &mut Fixture) -> Result<[f64; 2]> {
    once(fixture)?;
    once(fixture)
}

fn once(fixture: &mut Fixture) -> Result<[f64; 2]> {
    fixture.send("")?;
    match fixture.hear()? {
        Said::Priced { pairs, ns, cpu_ns } => Ok([cpu_ns, ns].map(|sum| sum as f64 / pairs as f64)),
        other => bail!("{other:?} instead of a time"),
    }
}
