//! `cargo xtask dist --deb`: a Debian package of the binary that `dist` has made, with manual pages and completions that
//! this binary writes itself. What is packaged and where it goes is in `leaktrace/Cargo.toml`; cargo-deb builds it.
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The version that the packaging was written for.
const CARGO_DEB: &str = "3.8.0";
/// Completions: the shell, and what its file is called.
const SHELLS: [(&str, &str); 3] = [("bash", "leaktrace"), ("zsh", "_leaktrace"), ("fish", "leaktrace.fish")];

/// What the package must hold, among others, and how.
const CONTENTS: [(&str, &str); 15] = [
    ("-rwxr-xr-x", "./usr/bin/leaktrace"),
    // It may hold a token.
    ("-rw-r-----", "./etc/leaktrace/leaktrace.toml"),
    ("-rw-r--r--", "./usr/lib/systemd/system/leaktrace.service"),
    ("-rw-r--r--", "./usr/share/man/man1/leaktrace.1.gz"),
    ("-rw-r--r--", "./usr/share/man/man1/leaktrace-agent.1.gz"),
    ("-rw-r--r--", "./usr/share/man/man1/leaktrace-run.1.gz"),
    ("-rw-r--r--", "./usr/share/bash-completion/completions/leaktrace"),
    ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_leaktrace"),
    ("-rw-r--r--", "./usr/share/fish/vendor_completions.d/leaktrace.fish"),
    ("-rw-r--r--", "./usr/share/leaktrace/prometheus/leaktrace.rules.yml"),
    ("-rw-r--r--", "./usr/share/leaktrace/grafana/leaktrace.json"),
    ("-rw-r--r--", "./usr/share/doc/leaktrace/copyright"),
    ("-rw-r--r--", "./usr/share/doc/leaktrace/LICENSE-APACHE"),
    ("-rw-r--r--", "./usr/share/doc/leaktrace/README.md"),
    ("-rw-r--r--", "./usr/share/doc/leaktrace/CHANGELOG.md"),
];

/// Packages what is in `folder`, where the binary is; returns the package.
pub(crate) fn run(folder: &Path) -> Result<PathBuf> {
    let tool = tool()?;
    let binary = folder.join("leaktrace");
    manual(&binary, &folder.join("man"))?;
    completions(&binary, &folder.join("completions"))?;
    println!("packaging …");
    let mut deb = command::clean(&tool);
    deb.args(["--quiet", "--package", "leaktrace", "--no-build", "--no-strip", "--output"]).arg(folder);
    let said = command::capture(deb.current_dir(command::root()))?;
    let package = said.lines().last().map(str::trim).filter(|line| line.ends_with(".deb"));
    let package = PathBuf::from(package.with_context(|| format!("cargo-deb names no package: {said:?}"))?);
    if command::find("dpkg-deb").is_none() {
        println!("dpkg-deb is not here: what the package holds was not looked at");
        return Ok(package);
    }
    let contents = command::capture(command::clean("dpkg-deb").arg("--contents").arg(&package))?;
    println!("{contents}");
    let missing = missing(&contents);
    if !missing.is_empty() {
        bail!("{} must hold, and does not: {}", package.display(), missing.join(", "));
    }
    Ok(package)
}

/// What of [`CONTENTS`] is not there, or not so, by the list that dpkg-deb prints: mode, owner, size, day, time, path. All
/// of it must be root's.
fn missing(contents: &str) -> Vec<String> {
    let has = |mode: &str, path: &str| {
        contents.lines().any(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_owner = |owner: &&str| matches!(*owner, "0/0" | "root/root");
            words.first() == Some(&mode) && words.get(1).is_some_and(is_owner) && words.last() == Some(&path)
        })
    };
    let absent = CONTENTS.iter().filter(|(mode, path)| !has(mode, path));
    absent.map(|(mode, path)| format!("{mode} {path}")).collect()
}

/// cargo-deb in `target/tools`, installed there where it is missing or another version.
fn tool() -> Result<PathBuf> {
    let folder = command::root().join("target/tools");
    let tool = folder.join("bin/cargo-deb");
    let is_there = command::capture(command::clean(&tool).arg("--version"))
        .is_ok_and(|version| version.split_ascii_whitespace().any(|word| word == CARGO_DEB));
    if !is_there {
        println!("installing cargo-deb {CARGO_DEB} in {} …", folder.display());
        let mut cargo =
            command::cargo(&["install", "--quiet", "cargo-deb", "--version", CARGO_DEB, "--locked"]);
        cargo.args(["--no-default-features", "--features", "lzma", "--force", "--root"]).arg(&folder);
        command::run(&mut cargo).with_context(|| {
            format!(
                "cargo-deb cannot be had, and without it there is no Debian package: `cargo install cargo-deb \
                 --version {CARGO_DEB} --root {}` must work, which needs a registry of crates and a C compiler",
                folder.display()
            )
        })?;
    }
    Ok(tool)
}

/// A page for leaktrace, and one for each subcommand that its page names.
fn manual(binary: &Path, folder: &Path) -> Result<()> {
    remade(folder)?;
    let page =
        |subcommand: Option<&str>| command::capture(command::clean(binary).arg("man").args(subcommand));
    let main = page(None)?;
    let subcommands = subcommands(&main);
    if subcommands.is_empty() {
        bail!("the manual page of {} names no subcommand", binary.display());
    }
    for name in &subcommands {
        write(&folder.join(format!("leaktrace-{name}.1")), &page(Some(name))?)?;
    }
    write(&folder.join("leaktrace.1"), &main)
}

/// As roff writes it: `leaktrace\-run(1)`.
fn subcommands(page: &str) -> Vec<&str> {
    let named = page.lines().filter_map(|line| line.strip_prefix("leaktrace\\-")?.strip_suffix("(1)"));
    named.filter(|name| *name != "help").collect()
}

fn completions(binary: &Path, folder: &Path) -> Result<()> {
    remade(folder)?;
    for (shell, name) in SHELLS {
        let text = command::capture(command::clean(binary).args(["completions", shell]))?;
        let folder = folder.join(shell);
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        write(&folder.join(name), &text)?;
    }
    Ok(())
}

/// An empty folder: pages of subcommands that are gone must not stay.
fn remade(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_in_the_package_or_has_another_mode_or_owner_is_named() {
        let line = |(mode, path): &(&str, &str)| format!("{mode} 0/0   1590 2026-11-21 00:00 {path}\n");
        let whole: String = CONTENTS.iter().map(line).collect();
        assert_eq!(missing(&whole), Vec::<String>::new());
        assert_eq!(missing(&whole.replace("leaktrace.toml", "leaktrace.toml.old")).len(), 1);
        assert_eq!(
            missing(&whole.replace("-rw-r-----", "-rw-r--r--")),
            ["-rw-r----- ./etc/leaktrace/leaktrace.toml"]
        );
        assert_eq!(missing(&whole.replace(" 0/0 ", " 1000/1000 ")).len(), CONTENTS.len());
        assert_eq!(missing(&whole.replace(" 0/0 ", " root/root ")), Vec::<String>::new());
    }

    #[test]
    fn a_page_names_its_subcommands() {
        let page =
            ".TH leaktrace 1\n.TP\nleaktrace\\-run(1)\nRun a program\n.TP\nleaktrace\\-help(1)\nhelp\n";
        assert_eq!(subcommands(page), ["run"]);
    }
}
