//! Comparing text with a file in `tests/golden`. With `LEAKTRACE_BLESS=1` the file is rewritten instead.
use std::{env, fs, path::PathBuf};

/// Compares; fails with the whole text where it differs.
pub(crate) fn compare(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if env::var_os("LEAKTRACE_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{} differs; LEAKTRACE_BLESS=1 rewrites it. It is now:\n{actual}",
        path.display()
    );
}
