//! What is in `packaging`, with the tools that it is for: systemd, promtool, podman. That the manifest for Kubernetes is
//! right needs no tool: `leaktrace/tests/packaging.rs`.
use crate::service_tools::{run, well};
use anyhow::{Result, ensure};
use leaktrace_tests::{
    container::{Image, Root},
    leaktrace::binary,
    root,
};
use std::{fs, process::Command};

#[test]
fn the_shipped_rules_pass_their_tests() -> Result<()> {
    let folder = root().join("packaging/prometheus");
    let mut command = Command::new("promtool");
    command.args(["test", "rules", "leaktrace.test.yml"]).current_dir(&folder);
    well("promtool test rules", &run(&mut command, b"")?)
}

#[test]
fn the_unit_is_sound() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let unit = fs::read_to_string(root().join("packaging/systemd/leaktrace.service"))?;
    let program = leaktrace_tests::leaktrace::binary()?;
    let unit = unit
        .replace("/usr/bin/leaktrace", &program.to_string_lossy())
        .replace("Documentation=man:leaktrace(1)\n", "");
    let path = folder.path().join("leaktrace.service");
    fs::write(&path, unit)?;
    let output = run(Command::new("systemd-analyze").arg("verify").arg(&path), b"")?;
    well("systemd-analyze verify", &output)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!said.contains("leaktrace.service"), "{said}");
    Ok(())
}

/// On an image that has the libraries of this binary; the one that is given to others is static and needs none.
#[test]
fn the_image_runs_leaktrace_and_has_a_configuration_that_it_accepts() -> Result<()> {
    let context = tempfile::tempdir()?;
    let program = binary()?;
    fs::copy(&program, context.path().join("binary"))?;
    let configuration = "packaging/leaktrace.toml";
    fs::create_dir(context.path().join("packaging"))?;
    fs::copy(root().join(configuration), context.path().join(configuration))?;
    let base = Image::of("base", &Root::of(&program)?)?;
    let dockerfile = root().join("packaging/docker/Dockerfile");
    let image =
        Image::build("image", &dockerfile, context.path(), &[("BASE", base.tag()), ("BINARY", "binary")])?;
    let said = image.run(&["--version"])?;
    ensure!(said == format!("leaktrace {}", env!("CARGO_PKG_VERSION")), "{said}");
    image.run(&["agent", "-c", "/etc/leaktrace/leaktrace.toml", "--check"])?;
    let words = image.default_command()?;
    ensure!(words == ["/usr/bin/leaktrace", "agent", "-c", "/etc/leaktrace/leaktrace.toml"], "{words:?}");
    Ok(())
}
