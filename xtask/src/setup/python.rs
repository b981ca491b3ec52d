//! Installs the one test program that Debian does not have, in a virtual environment under `target/`.
use crate::command;
use anyhow::{Context, Result};

/// The version that the tests were written for.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// Makes the environment where it is missing or holds another version.
pub(super) fn install() -> Result<()> {
    let folder = command::root().join("target/schemathesis");
    let program = folder.join("bin/schemathesis");
    let wanted = SCHEMATHESIS.rsplit('=').next().unwrap_or_default();
    let is_there = command::capture(command::clean(&program).arg("--version"))
        .is_ok_and(|version| version.contains(wanted));
    if is_there {
        println!("schemathesis {wanted}: ready");
        return Ok(());
    }
    println!("installing {SCHEMATHESIS} in {}", folder.display());
    command::run(command::clean("python3").args(["-m", "venv"]).arg(&folder))
        .context("no virtual environment for Python can be made")?;
    let pip = folder.join("bin/pip");
    command::run(command::clean(&pip).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        SCHEMATHESIS,
    ]))
    .context("schemathesis cannot be installed")
}
