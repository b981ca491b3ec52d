//! The fixtures themselves, untraced: each is what the scenarios take it for. Needs neither root nor leaktrace.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    ledger::Ledger,
    scenario::Case,
};

fn ledger_of(case: &Case, clean: bool) -> Result<Ledger> {
    let mut fixture = case.start(clean)?;
    let ledger = fixture.act()?;
    case.check_ledger(&ledger, clean)?;
    let status = fixture.release()?;
    ensure!(status.success(), "{} ended with {status}", case.program.display());
    Ok(ledger)
}

fn both_twins(case: &Case) -> Result<()> {
    let leaky = ledger_of(case, false).context("the leaking twin")?;
    let clean = ledger_of(case, true).context("the clean twin")?;
    ensure!(leaky.sites() == clean.sites(), "the twins have different sites");
    Ok(())
}

#[test]
fn the_calls_fixture_has_a_clean_twin_on_every_allocator() -> Result<()> {
    for build in [Build::Gcc, Build::Clang, Build::Static, Build::StaticPie, Build::Musl, Build::MuslStatic] {
        both_twins(&Case::new(compile::fixture("calls.c", build, &[])?))
            .with_context(|| format!("{build:?}"))?;
    }
    for name in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2.0"] {
        let case = Case::new(compile::fixture("calls.c", Build::Gcc, &[])?);
        both_twins(&case.variable("LD_PRELOAD", &library(name)?.to_string_lossy())).context(name)?;
    }
    Ok(())
}

#[test]
fn the_cxx_fixture_has_a_clean_twin_on_every_allocator() -> Result<()> {
    let program = compile::fixture("cxx.cpp", Build::Gcc, &[])?;
    both_twins(&Case::new(program.clone()))?;
    for (name, words) in [
        ("libjemalloc.so.2", &[][..]),
        ("libtcmalloc_minimal.so.4", &[]),
        ("libmimalloc.so.2.0", &["no-throw-by-new"]),
    ] {
        let case = Case::new(program.clone()).arguments(words);
        both_twins(&case.variable("LD_PRELOAD", &library(name)?.to_string_lossy())).context(name)?;
    }
    Ok(())
}

#[test]
fn the_other_fixtures_have_clean_twins() -> Result<()> {
    let sources =
        [("threads.c", ""), ("exchange.c", ""), ("mappings.c", ""), ("fork.c", "fork"), ("fork.c", "vfork")];
    for (source, words) in sources {
        let case = Case::new(compile::fixture(source, Build::Gcc, &[])?).arguments(&[words]);
        both_twins(&case).with_context(|| format!("{source} {words}"))?;
    }
    both_twins(&Case::new(compile::rust_fixture("rust_leak.rs")?))
}
