//! Installs missing packages on Debian and Ubuntu, without starting the services that some of them bring.
use crate::command;
use anyhow::{Context, Result, bail};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// Asked by every maintainer script before it starts a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `packages` that are missing; `purpose` completes "for …" in messages.
pub(super) fn install(purpose: &str, packages: &[&str]) -> Result<()> {
    if command::find("dpkg-query").is_none() || command::find("apt-get").is_none() {
        bail!(
            "this is not Debian or Ubuntu: install what corresponds to {} for {purpose}",
            packages.join(" ")
        );
    }
    let missing = missing(packages);
    if missing.is_empty() {
        println!("packages for {purpose}: all {} are installed", packages.len());
        return Ok(());
    }
    let list = missing.join(" ");
    if !command::is_root() {
        bail!("missing for {purpose}: {list}. Run this as root, or `sudo apt-get install {list}`");
    }
    println!("packages for {purpose}: installing {list}");
    let _quiet = NoServices::begin()?;
    command::run(apt().args(["update", "-qq"])).context("the lists of packages could not be fetched")?;
    command::run(apt().args(["install", "-qq", "--yes", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("these packages could not be installed: {list}"))?;
    let left = self::missing(&missing);
    if !left.is_empty() {
        bail!("apt-get went through, but these are still missing: {}", left.join(" "));
    }
    Ok(())
}

fn apt() -> Command {
    let mut apt = command::clean("apt-get");
    apt.args([
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Dpkg::Options::=--force-confold",
        "-o",
        "Dpkg::Use-Pty=0",
    ])
    .env("DEBIAN_FRONTEND", "noninteractive")
    .env("RUNLEVEL", "1");
    apt
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut query = command::clean("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\\n"]).args(packages);
    // dpkg-query fails when one of the packages is unknown, and lists the others all the same.
    let listed =
        query.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    packages
        .iter()
        .filter(|package| !listed.lines().any(|line| line == format!("{package} installed")))
        .copied()
        .collect()
}

/// While it lives, no maintainer script starts a service. A policy that the machine already has stays.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<NoServices> {
        if Path::new(POLICY).exists() {
            return Ok(NoServices { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        let guard = NoServices { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            println!(
                "could not remove {POLICY}: remove it by hand, or services will not start when installed"
            );
        }
    }
}
