//! Not what somebody looks for: what shells, `make`, interpreters, compilers and the small tools that scripts call still
//! hold when they end. They leave it to the kernel to take it back, on purpose. What a library holds that an interpreter
//! has loaded is no part of that.
use super::runtime;
use crate::model::{
    site_id::base_name,
    snapshot::{Frame, SiteView},
};

/// Where systems keep them. A program of the same name elsewhere is somebody's own.
const FOLDERS: [&str; 9] = [
    "/bin/",
    "/sbin/",
    "/usr/bin/",
    "/usr/sbin/",
    "/usr/local/bin/",
    "/usr/lib/gcc/",
    "/usr/libexec/gcc/",
    "/usr/lib/llvm-",
    "/lib/",
];

/// Shells and `make`.
const SHELLS: [&str; 9] = ["sh", "dash", "bash", "zsh", "ksh", "mksh", "busybox", "make", "gmake"];

/// Interpreters; their version may follow the name.
const INTERPRETERS: [&str; 4] = ["python", "perl", "ruby", "tclsh"];

/// Compilers and linkers, behind the name of their target where they have one.
const COMPILERS: [&str; 22] = [
    "cc",
    "c++",
    "gcc",
    "g++",
    "cpp",
    "cc1",
    "cc1plus",
    "collect2",
    "lto1",
    "lto-wrapper",
    "as",
    "ld",
    "ld.bfd",
    "ld.gold",
    "ld.lld",
    "lld",
    "clang",
    "clang++",
    "ar",
    "ranlib",
    "strip",
    "objcopy",
];

/// The small tools of scripts.
const SMALL: [&str; 62] = [
    "awk",
    "basename",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cmp",
    "comm",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "gawk",
    "getconf",
    "grep",
    "head",
    "id",
    "install",
    "join",
    "kill",
    "ln",
    "ls",
    "mawk",
    "md5sum",
    "mkdir",
    "mktemp",
    "mv",
    "nproc",
    "od",
    "paste",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "uname",
    "uniq",
    "wc",
    "xargs",
];

/// Libraries that are parts of these programs.
const LIBRARIES: [&str; 16] = [
    "libpython",
    "libperl",
    "libruby",
    "libreadline",
    "libtinfo",
    "libncurses",
    "libncursesw",
    "libselinux",
    "libpcre",
    "libpcre2",
    "libbfd",
    "libopcodes",
    "libacl",
    "libLLVM",
    "libffi",
    "liblto_plugin",
];

/// Parts of the interpreters that are files of their own.
const MODULES: [&str; 3] = ["/lib-dynload/", "/perl-base/auto/", "/perl/5."];

/// The name of the suppression, where all of a stack is code of such a program, of its own libraries or of the C
/// runtime.
pub(super) fn suppression(site: &SiteView) -> Option<String> {
    let of_program = site.frames.iter().find_map(|frame| tool(frame));
    let name = of_program?;
    // A stack that was cut might have gone through somebody else's code.
    let is_whole = matches!(site.stack_end, "complete" | "none" | "");
    (is_whole && site.frames.iter().all(is_part)).then(|| format!("built-in: {name}"))
}

fn is_part(frame: &Frame) -> bool {
    tool(frame).is_some() || is_library(frame) || runtime::is_in_runtime_file(frame)
}

/// The name of the tool that the frame is in.
fn tool(frame: &Frame) -> Option<&str> {
    let path = frame.module.as_deref()?;
    FOLDERS.iter().find(|folder| path.starts_with(**folder))?;
    let name = base_name(path);
    let unversioned = name.trim_end_matches(|end: char| end.is_ascii_digit() || matches!(end, '.' | '-'));
    let is_in = |list: &[&str]| list.contains(&name) || list.contains(&unversioned);
    let is_compiler = || {
        let bare = |name: &str| COMPILERS.iter().any(|tool| name.ends_with(&format!("-{tool}")));
        is_in(&COMPILERS) || bare(name) || bare(unversioned)
    };
    let is_tool = is_in(&SHELLS) || is_in(&INTERPRETERS) || is_in(&SMALL) || is_compiler();
    is_tool.then_some(name)
}

fn is_library(frame: &Frame) -> bool {
    let Some(path) = frame.module.as_deref() else { return false };
    let name = base_name(path);
    let stem = name.split_once(".so").map_or(name, |(stem, _)| stem);
    let is_of_tool = |library: &str| {
        stem.strip_prefix(library)
            .is_some_and(|rest| rest.chars().next().is_none_or(|next| !next.is_alphabetic()))
    };
    let is_system = ["/lib", "/usr/lib", "/usr/local/lib"].iter().any(|folder| path.starts_with(folder));
    is_system && (LIBRARIES.iter().any(|library| is_of_tool(library)) || is_module(path))
}

fn is_module(path: &str) -> bool {
    MODULES.iter().any(|part| path.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(modules: &[&str], stack_end: &'static str) -> SiteView {
        let frame = |module: &&str| Frame { module: Some((*module).to_owned()), ..Frame::default() };
        SiteView {
            frames: modules.iter().map(frame).collect::<Vec<_>>().into(),
            stack_end,
            ..SiteView::default()
        }
    }

    #[test]
    fn what_a_tool_holds_by_its_own_code_is_suppressed() {
        const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        for modules in [
            &["/usr/bin/dash", LIBC, "/usr/bin/dash"][..],
            &[LIBC, "/usr/bin/make"],
            &["/usr/bin/python3.11", "/usr/lib/python3.11/lib-dynload/_json.cpython-311.so", LIBC],
            &["/usr/local/lib/libpython3.11.so.1.0", "/usr/local/bin/python3.11", LIBC],
            &["/usr/bin/x86_64-linux-gnu-gcc-12", LIBC],
            &["/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", LIBC],
            &["/usr/bin/gcc-12", LIBC],
            &["/usr/lib/x86_64-linux-gnu/libtinfo.so.6.4", "/usr/bin/bash", LIBC],
            &["/usr/bin/ls", LIBC],
        ] {
            assert!(suppression(&site(modules, "complete")).is_some(), "{modules:?}");
        }
        let named = suppression(&site(&["/usr/bin/dash"], "complete"));
        assert_eq!(named.as_deref(), Some("built-in: dash"));
    }

    #[test]
    fn what_others_hold_is_not() {
        for modules in [
            &["/srv/app"][..],
            &["/home/me/bash"],
            &["/usr/lib/python3/dist-packages/mine.so", "/usr/bin/python3.11"],
            &["/home/me/lib-dynload/mine.so", "/usr/bin/python3.11"],
            &["/usr/lib/x86_64-linux-gnu/libxml2.so.2", "/usr/bin/python3.11"],
            &["/usr/lib/x86_64-linux-gnu/libc.so.6"],
            &["/usr/bin/pythonista"],
            &["/usr/bin/trove"],
            &[],
        ] {
            assert_eq!(suppression(&site(modules, "complete")), None, "{modules:?}");
        }
        assert_eq!(suppression(&site(&["/usr/bin/dash"], "no_cfi")), None, "cut");
    }
}
