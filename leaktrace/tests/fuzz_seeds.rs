//! The seeds of the fuzz targets pass the targets' own checks.
#![expect(clippy::indexing_slicing, reason = "a check fails by panicking")]
#[path = "../fuzz/check.rs"]
mod check;

#[test]
fn every_seed_of_every_target_passes() {
    for (name, take) in check::TARGETS {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let seeds: Vec<Vec<u8>> =
            entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() >= 2, "the seeds of {name} are missing");
        seeds.iter().for_each(|seed| take(seed));
    }
}

#[test]
fn every_target_is_one_for_libfuzzer_too() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut known: Vec<&str> = check::TARGETS.iter().map(|(name, _)| *name).collect();
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}
