//! Builds the kernel object with the toolchain that `cargo xtask setup` found, and embeds it.
//!
//! Without that toolchain everything still compiles, with an empty object: `cargo check`, `clippy` and unit
//! tests need no kernel side. A binary built so says at run time what is missing.
#[path = "build/strip.rs"]
mod strip;

use std::{collections::HashMap, env, fs, path::Path, path::PathBuf, process::Command};

/// Written by `cargo xtask setup`: one `NAME=value` a line.
const TOOLCHAIN_FILE: &str = "target/bpf-toolchain/toolchain.env";

fn main() {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = package.parent().map(Path::to_path_buf).unwrap_or(package);
    let kernel = root.join("leaktrace-ebpf");
    let object = PathBuf::from(variable("OUT_DIR")).join("leaktrace.bpf.o");
    for path in [
        "leaktrace-ebpf/src",
        "leaktrace-ebpf/Cargo.toml",
        "leaktrace-common/src",
        "leaktrace/build.rs",
        "leaktrace/build",
        TOOLCHAIN_FILE,
    ] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let built = match fs::read_to_string(root.join(TOOLCHAIN_FILE)) {
        Ok(text) => build(&kernel, &object, &parse(&text)),
        Err(_) => Err("the kernel side is not built: run `cargo xtask setup` once, then build again".into()),
    };
    if let Err(reason) = built {
        println!("cargo:warning={reason}");
        if let Err(error) = fs::write(&object, []) {
            println!("cargo:error=cannot write {}: {error}", object.display());
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn parse(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// Runs cargo for the kernel crate; a compile error there is an error here.
fn build(kernel: &Path, object: &Path, toolchain: &HashMap<String, String>) -> Result<(), String> {
    let setting = |name: &str| toolchain.get(name).filter(|value| !value.is_empty());
    let (Some(cargo), Some(rustc), Some(linker)) = (setting("CARGO"), setting("RUSTC"), setting("LINKER"))
    else {
        return Err(format!("{TOOLCHAIN_FILE} is incomplete: run `cargo xtask setup` again"));
    };
    let target = PathBuf::from(variable("OUT_DIR")).join("bpf-target");
    let mut command = Command::new(cargo);
    command
        .current_dir(kernel)
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", format!("-C linker={linker} -C debuginfo=2 -C link-arg=--btf"));
    if setting("BUILD_STD").is_some_and(|value| value == "1") {
        command.args(["-Z", "build-std=core"]);
    }
    let output = command.output().map_err(|error| format!("cannot run {cargo}: {error}"))?;
    if !output.status.success() {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo:warning={line}");
        }
        println!("cargo:error=the kernel side does not build (see the lines above)");
        std::process::exit(1);
    }
    let built = target.join("bpfel-unknown-none/release/leaktrace-ebpf");
    let whole = fs::read(&built).map_err(|error| format!("cannot read {}: {error}", built.display()))?;
    let slim = strip::without_debug_information(&whole)
        .ok_or_else(|| format!("{} is not an object of the kernel toolchain", built.display()))?;
    fs::write(object, slim).map_err(|error| format!("cannot write {}: {error}", object.display()))?;
    Ok(())
}
