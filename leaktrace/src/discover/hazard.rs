//! Processes that breakpoints would kill: translators, which read code as data and run a copy of it, breakpoints
//! included. Found by what is executed, what is mapped and where threads run; what is done about them is for the
//! caller.
//!
//! None of this is a proof. A translator that is in no list here, links its own C library and keeps its threads in file
//! mappings is not recognised.
use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
};

use super::{
    elf::ElfFile,
    maps::{self, MapEntry},
    object::ObjectFile,
    process,
};

/// Threads that are asked where they are.
const MAX_THREADS: usize = 32;
/// Bytes of /proc/PID/syscall.
const MAX_SYSCALL_BYTES: u64 = 512;
/// A cache of translated code is larger than the few pages that a trampoline takes.
const MIN_CACHE_BYTES: u64 = 64 << 10;

/// Why a process must not have breakpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// A translator that is known by its name.
    Translator(&'static str),
    /// A static program that has mapped a dynamic loader for another program, and has code in anonymous memory.
    LooksTranslated,
    /// Its threads run code in anonymous memory and none in that of a file.
    RunsAnonymousCode,
}

impl fmt::Display for Hazard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hazard::Translator(name) => write!(out, "it runs under {name}")?,
            Hazard::LooksTranslated => {
                write!(
                    out,
                    "it looks like an emulator: a static program with another one's loader and code of its own"
                )?;
            }
            Hazard::RunsAnonymousCode => {
                write!(out, "its threads run code that lies in no file: it is translated, or has moved")?;
            }
        }
        write!(out, ", and breakpoints that are copied with the code would kill it (--mode growth sets none)")
    }
}

/// A translator, by the names of its files.
struct Translator {
    name: &'static str,
    /// Whether an executable's path, cut into its folder and its name, is it.
    is_program: fn(&str, &str) -> bool,
    /// Beginnings of names of files that it maps into what it translates.
    maps: &'static [&'static str],
}

/// What qemu's programs for system emulation and for images begin with.
const QEMU_OTHERS: [&str; 9] =
    ["system-", "img", "nbd", "io", "ga", "keymap", "pr-helper", "storage-daemon", "bridge-helper"];

const TRANSLATORS: [Translator; 7] = [
    Translator {
        name: "Valgrind",
        is_program: |folder, name| {
            folder.ends_with("/valgrind")
                && ["-amd64-", "-x86-", "-arm64-"].iter().any(|part| name.contains(part))
        },
        maps: &["vgpreload_"],
    },
    Translator {
        name: "QEMU's user-mode emulation",
        is_program: |_, name| {
            name.strip_prefix("qemu-").is_some_and(|kind| {
                !kind.is_empty() && !QEMU_OTHERS.iter().any(|other| kind.starts_with(other))
            })
        },
        maps: &[],
    },
    Translator {
        name: "DynamoRIO",
        is_program: |_, name| name == "drrun" || name.starts_with("libdynamorio.so"),
        maps: &["libdynamorio.so", "libdrmemorylib.so"],
    },
    Translator {
        name: "Pin",
        is_program: |_, name| matches!(name, "pinbin" | "sde64" | "sde"),
        maps: &["pinbin", "libpinvm.so", "libpindwarf.so", "libpin3dwarf.so"],
    },
    Translator { name: "rr", is_program: |_, name| name == "rr", maps: &["librrpreload.so", "librrpage.so"] },
    Translator {
        name: "box64",
        is_program: |_, name| matches!(name, "box64" | "box86" | "box64-bash"),
        maps: &["box64", "box86"],
    },
    Translator {
        name: "FEX",
        is_program: |_, name| name.starts_with("FEX"),
        maps: &["FEXInterpreter", "FEXLoader"],
    },
];

/// Why the process must not have breakpoints, if there is such a reason; none where it is gone.
pub fn of(pid: u32) -> Option<Hazard> {
    let mappings = maps::read(pid).ok()?;
    if let Some(hazard) = of_files(pid, &mappings) {
        return Some(hazard);
    }
    if let Some(name) = by_tracer(pid) {
        return Some(Hazard::Translator(name));
    }
    if has_code_cache(&mappings) && has_foreign_loader(pid, &mappings) {
        return Some(Hazard::LooksTranslated);
    }
    runs_anonymous_code(&mappings, &instruction_pointers(pid)).then_some(Hazard::RunsAnonymousCode)
}

/// The same by its program and by the names of what it maps alone, which costs next to nothing.
pub fn of_files(pid: u32, mappings: &[MapEntry]) -> Option<Hazard> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let by_program = program.and_then(|path| by_program(&path.to_string_lossy()));
    by_program.or_else(|| by_mappings(mappings)).map(Hazard::Translator)
}

/// The translator that a program is.
pub fn by_program(path: &str) -> Option<&'static str> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    TRANSLATORS.iter().find(|known| (known.is_program)(folder, name)).map(|known| known.name)
}

fn by_mappings(mappings: &[MapEntry]) -> Option<&'static str> {
    let is_of = |known: &Translator, entry: &MapEntry| {
        let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        known.maps.iter().any(|file| name.starts_with(file.as_bytes()))
    };
    let known = TRANSLATORS
        .iter()
        .find(|known| mappings.iter().filter(|entry| entry.is_file()).any(|entry| is_of(known, entry)));
    known.map(|known| known.name)
}

/// rr is another process, which traces this one.
fn by_tracer(pid: u32) -> Option<&'static str> {
    let tracer = process::tracer(pid)?;
    let path = fs::read_link(format!("/proc/{tracer}/exe")).ok()?;
    by_program(&path.to_string_lossy()).filter(|name| *name == "rr")
}

fn is_anonymous_code(entry: &MapEntry) -> bool {
    let is_unnamed = entry.path.is_empty() || entry.path.starts_with(b"[anon");
    entry.executable && entry.inode == 0 && is_unnamed
}

fn has_code_cache(mappings: &[MapEntry]) -> bool {
    let bytes = |entry: &MapEntry| if is_anonymous_code(entry) { entry.length_bytes() } else { 0 };
    mappings.iter().map(bytes).fold(0, u64::saturating_add) >= MIN_CACHE_BYTES
}

/// Whether the process's program is static and a dynamic loader is mapped all the same. (A static program that looks
/// names up maps one, too: but it makes no code.)
fn has_foreign_loader(pid: u32, mappings: &[MapEntry]) -> bool {
    let is_loader = |entry: &MapEntry| {
        let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        entry.is_file() && (name.starts_with(b"ld-linux") || name.starts_with(b"ld-musl"))
    };
    if !mappings.iter().any(is_loader) {
        return false;
    }
    let Ok(file) = File::open(format!("/proc/{pid}/exe")).and_then(ObjectFile::of_file) else { return false };
    // A loader that was executed itself, with a program to load, is dynamic code of its own.
    ElfFile::parse(&file).is_ok_and(|elf| elf.is_static() && elf.soname().is_none())
}

/// Where the threads that wait in a system call have made it.
fn instruction_pointers(pid: u32) -> Vec<u64> {
    let pointer = |tid: u32| {
        let mut text = String::new();
        let file = File::open(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
        file.take(MAX_SYSCALL_BYTES).read_to_string(&mut text).ok()?;
        pointer_in(&text)
    };
    process::threads(pid).into_iter().take(MAX_THREADS).filter_map(pointer).collect()
}

/// The last word of `/proc/PID/syscall`; none for a thread that runs.
fn pointer_in(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let last = words.last().filter(|_| words.len() >= 3)?;
    u64::from_str_radix(last.strip_prefix("0x")?, 16).ok().filter(|pointer| *pointer != 0)
}

fn runs_anonymous_code(mappings: &[MapEntry], pointers: &[u64]) -> bool {
    let entry = |pointer: &u64| mappings.iter().find(|entry| entry.contains(*pointer));
    let places: Vec<&MapEntry> = pointers.iter().filter_map(entry).collect();
    !places.is_empty() && places.iter().all(|entry| is_anonymous_code(entry))
}

#[cfg(test)]
mod tests {
    use super::{super::maps::parse, *};

    #[test]
    fn translators_are_known_by_their_programs() {
        for (path, name) in [
            ("/usr/libexec/valgrind/memcheck-amd64-linux", Some("Valgrind")),
            ("/usr/lib/valgrind/none-amd64-linux", Some("Valgrind")),
            ("/usr/bin/qemu-x86_64-static", Some("QEMU's user-mode emulation")),
            ("/usr/bin/qemu-aarch64 (deleted)", Some("QEMU's user-mode emulation")),
            ("/opt/pin/intel64/bin/pinbin", Some("Pin")),
            ("/opt/dr/lib64/release/libdynamorio.so.11.0", Some("DynamoRIO")),
            ("/usr/bin/FEXInterpreter", Some("FEX")),
            ("/usr/bin/box64", Some("box64")),
            ("/usr/bin/qemu-system-x86_64", None),
            ("/usr/bin/qemu-img", None),
            ("/home/me/valgrind/tests/mine", None),
            ("/usr/bin/redis-server", None),
        ] {
            assert_eq!(by_program(path), name, "{path}");
        }
    }

    #[test]
    fn translators_are_known_by_what_they_map() {
        let text = b"1000-2000 r-xp 0 08:01 7 /usr/bin/shop\n\
            3000-4000 r-xp 0 08:01 8 /usr/libexec/valgrind/vgpreload_core-amd64-linux.so\n";
        assert_eq!(by_mappings(&parse(text)), Some("Valgrind"));
        assert_eq!(by_mappings(&parse(b"1000-2000 r-xp 0 08:01 7 /usr/bin/shop\n")), None);
    }

    #[test]
    fn code_outside_files_counts_where_every_thread_is_in_it() {
        let mappings = parse(
            b"1000-2000 r-xp 00000000 08:01 7 /usr/bin/shop\n\
              5000-6000 rwxp 00000000 00:00 0\n\
              7000-8000 r-xp 00000000 00:00 0 [vdso]\n",
        );
        assert!(runs_anonymous_code(&mappings, &[0x5010, 0x5ff0]));
        for pointers in [&[][..], &[0x5010, 0x1010], &[0x7010], &[0x9010]] {
            assert!(!runs_anonymous_code(&mappings, pointers), "{pointers:x?}");
        }
    }

    #[test]
    fn a_waiting_thread_says_where_it_is() {
        assert_eq!(pointer_in("0 0x3 0x7f 0x0 0x0 0x0 0x0 0x7ffe00 0x7f1234\n"), Some(0x7f1234));
        assert_eq!(pointer_in("-1 0x7ffe00 0x7f1234\n"), Some(0x7f1234));
        assert_eq!(pointer_in("running\n"), None);
        assert_eq!(pointer_in("0 0x0 0x0\n"), None);
        assert_eq!(pointer_in(""), None);
    }

    #[test]
    fn this_process_and_what_waits_for_nothing_are_no_translators() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for pid in [std::process::id(), child.id()] {
            assert_eq!(of(pid), None);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
