//! Memory that programs map themselves, through every change that a mapping can undergo.
use anyhow::{Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    scenario::Case,
};

fn case() -> Result<Case> {
    Ok(Case::new(compile::fixture("mappings.c", Build::Gcc, &[])?).must_have(&[
        "map_partial",
        "map_spanned",
        "map_over",
        "map_moved",
        "leak_large_malloc",
    ]))
}

#[test]
fn mappings_equal_the_ledger() -> Result<()> {
    case()?.run()
}

#[test]
fn what_malloc_maps_inside_itself_is_heap_and_no_mapping() -> Result<()> {
    let report = case()?.run_twin(false)?;
    let large = |kind: &str| {
        let sites = report.targets.iter().flat_map(|target| &target.sites);
        sites.filter(|site| site.kind == kind && site.has("leak_large_malloc")).count()
    };
    ensure!(large("heap") > 0, "no heap site");
    ensure!(large("mapping") == 0, "a block of malloc is counted a second time as a mapping");
    Ok(())
}
