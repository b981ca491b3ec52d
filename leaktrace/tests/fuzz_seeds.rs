//! The seeds of the fuzz targets pass the targets' own checks.
#![expect(clippy::indexing_slicing, reason = "a check fails by panicking")]
#[path = "../fuzz/check.rs"]
mod check;

#[test]
fn every_seed_of_the_unwind_table_passes() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/unwind_table");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        check::unwind_table(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 2, "the seeds are missing");
}
