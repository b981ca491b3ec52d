//! Runs `tests/fixtures/pairs.c` and takes its times.
use super::tracer::Tracer;
use anyhow::{Result, bail};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    ledger::Said,
};

/// Nanoseconds of a pair in a new process under a tracer.
pub(super) fn pair_ns(words: &[&str], build: Build, tracer: Tracer) -> Result<f64> {
    let program = compile::fixture("pairs.c", build, &[])?;
    let mut fixture = Fixture::start(&program, words, &[])?;
    let tracing = tracer.attach(&[fixture.pid()])?;
    let time = timed(&mut fixture)?;
    tracing.end()?;
    Ok(time)
}

/// The first measurement warms up, the second counts.
pub(super) fn timed(fixture: &mut Fixture) -> Result<f64> {
    once(fixture)?;
    once(fixture)
}

fn once(fixture: &mut Fixture) -> Result<f64> {
    fixture.send("")?;
    match fixture.hear()? {
        Said::Timed { pairs, ns } => Ok(ns as f64 / pairs as f64),
        other => bail!("{other:?} instead of a time"),
    }
}
