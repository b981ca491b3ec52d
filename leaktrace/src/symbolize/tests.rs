//! Names in this very program, in fixtures built by the system's compilers, and in damaged files.
use std::{
    fs::{self, File},
    io::Write,
    process::Command,
};

use proptest::prelude::*;

use super::*;

fn lines_of(pid: u32) -> Vec<MapLine> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let executable = words.next().unwrap().contains('x');
            let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let offset = hex(words.next().unwrap());
            let inode = words.nth(1).unwrap().parse().unwrap();
            let path = words.next().unwrap_or_default().to_owned();
            MapLine { start: hex(start), end: hex(end), executable, offset, inode, path, device: (0, 0) }
        })
        .collect()
}

fn own_space(modules: &mut Modules) -> AddressSpace {
    let pid = std::process::id();
    AddressSpace::capture(pid, lines_of(pid), None, modules)
}

#[inline(never)]
fn some_function_to_find() -> u32 {
    std::hint::black_box(41) + 1
}

#[test]
fn a_function_of_this_program_has_name_module_and_line() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let mut symbolizer = Symbolizer::new(Limits::default());
    let address = some_function_to_find as fn() -> u32 as usize as u64;
    let frames = symbolizer.frames(&space, address, true);
    let frame = frames.last().unwrap();
    assert!(frame.function.as_deref().unwrap().ends_with("some_function_to_find"), "{frame:?}");
    assert_eq!((frame.offset, frame.address), (Some(0), address));
    assert!(frame.file.as_deref().unwrap().ends_with("symbolize/tests.rs"), "{frame:?}");
    assert!(frame.line.is_some() && frame.module.is_some());
    let again = symbolizer.frames(&space, address + 1, false);
    assert_eq!(again.last().unwrap().offset, Some(1));
    println!("held {} bytes", symbolizer.held_bytes());
    symbolizer.release();
    assert_eq!(symbolizer.held_bytes(), 0);
    assert_eq!(symbolizer.frames(&space, address, true), frames, "names stay after the copies are gone");
}

#[test]
fn libc_has_names_from_its_dynamic_symbols_and_the_vdso_has_too() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let mut symbolizer = Symbolizer::new(Limits { debug_dirs: Vec::new(), ..Limits::default() });
    let frames = symbolizer.frames(&space, libc::getenv as *const () as u64, true);
    assert_eq!(frames[0].function.as_deref(), Some("getenv"), "{frames:?}");
    assert!(frames[0].build_id.as_deref().is_some_and(|id| id.len() == 40));
    let vdso = lines_of(std::process::id()).into_iter().find(|line| line.path == "[vdso]").unwrap();
    let found = (vdso.start..vdso.end)
        .step_by(16)
        .any(|address| symbolizer.frames(&space, address, true)[0].function.is_some());
    assert!(found, "no function in the vdso");
}

#[test]
fn an_address_without_code_says_so() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let frames = Symbolizer::new(Limits::default()).frames(&space, 0x10, false);
    assert_eq!(frames[0].reason, Some("no code was mapped there"));
    assert!(!space.contains(0x10));
}

fn compile(directory: &std::path::Path, compiler: &str, source: &str, options: &[&str]) -> PathBuf {
    let input = directory.join(if compiler == "g++" { "f.cc" } else { "f.c" });
    let output = directory.join("f");
    fs::write(&input, source).unwrap();
    let result = Command::new(compiler).args(options).arg("-o").arg(&output).arg(&input).output();
    let result = result.unwrap_or_else(|error| panic!("{compiler} is needed by this test: {error}"));
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    output
}

fn module(path: &std::path::Path) -> Arc<Module> {
    Arc::new(Module::open(path.to_string_lossy().into_owned(), File::open(path).unwrap()).unwrap())
}

/// The address as linked of a symbol, by nm.
fn address_of(path: &std::path::Path, name: &str) -> u64 {
    let listing = Command::new("nm").arg(path).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let line = listing.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
    u64::from_str_radix(line.split_once(' ').unwrap().0, 16).unwrap()
}

const INLINING: &str = "#include <stdlib.h>
namespace shop { template<class T> struct Cart {
  __attribute__((always_inline)) inline void* innermost(int n) { return malloc(n); }
  __attribute__((always_inline)) inline void* middle(int n) { return innermost(n + 1); }
  __attribute__((noinline)) void* outer(int n) { void* p = middle(n); asm volatile(\"\" : : \"r\"(p)); return p; }
}; }
int main() { shop::Cart<int> cart; return cart.outer(5) == 0; }
";
const OUTER: &str = "_ZN4shop4CartIiE5outerEi";

/// All frames at each address of `outer` where something is inlined.
fn inlined_frames(path: &std::path::Path, nm: &std::path::Path, limits: Limits) -> Vec<Vec<Frame>> {
    let mut symbolizer = Symbolizer::new(limits);
    let module = module(path);
    let start = address_of(nm, OUTER);
    (start..start + 24)
        .map(|address| symbolizer.resolve(&module, address).to_vec())
        .filter(|f| f.len() > 1)
        .collect()
}

#[test]
fn inlined_frames_come_first_and_names_are_demangled() {
    let directory = tempfile::tempdir().unwrap();
    for extra in [&["-g"][..], &["-g", "-gz=zlib"], &["-g", "-gdwarf-4"]] {
        let options: Vec<&str> = ["-O1"].iter().chain(extra).copied().collect();
        let path = compile(directory.path(), "g++", INLINING, &options);
        let stacks = inlined_frames(&path, &path, Limits::default());
        let frames =
            stacks.iter().find(|frames| frames.len() == 3).unwrap_or_else(|| panic!("{extra:?} {stacks:?}"));
        let names: Vec<&str> = frames.iter().map(|frame| frame.function.as_deref().unwrap()).collect();
        assert!(names[0].contains("innermost") && names[1].contains("middle"), "{names:?}");
        assert_eq!(names[2], "shop::Cart<int>::outer(int)");
        let lines: Vec<_> = frames.iter().map(|frame| frame.line).collect();
        assert_eq!(lines, [Some(3), Some(4), Some(5)]);
        assert_eq!(frames.iter().map(|frame| frame.inlined).collect::<Vec<_>>(), [true, true, false]);
    }
}

#[test]
fn separate_debug_information_is_found_by_build_id_and_by_link() {
    let directory = tempfile::tempdir().unwrap();
    let debug_dir = directory.path().join("debug");
    let limits = Limits { debug_dirs: vec![debug_dir.clone()], ..Limits::default() };
    for build_id in ["-Wl,--build-id=sha1", "-Wl,--build-id=none"] {
        let path = compile(directory.path(), "g++", INLINING, &["-O1", "-g", build_id]);
        let (full, debug) = (directory.path().join("full"), directory.path().join("f.debug"));
        fs::copy(&path, &full).unwrap();
        let run = |program: &str, words: &[&std::ffi::OsStr]| {
            assert!(Command::new(program).args(words).status().unwrap().success(), "{program} {words:?}");
        };
        run("objcopy", &["--only-keep-debug".as_ref(), path.as_ref(), debug.as_ref()]);
        run("strip", &[path.as_ref()]);
        let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
        link.push(&debug);
        run("objcopy", &[&link, path.as_ref()]);
        let stripped = inlined_frames(&path, &full, limits.clone());
        assert!(stripped.is_empty(), "nothing is read from beside the program");
        let place = match &module(&path).build_id {
            Some(id) => debug_dir.join(".build-id").join(&id[..2]).join(format!("{}.debug", &id[2..])),
            None => debug_dir.join(directory.path().strip_prefix("/").unwrap()).join("f.debug"),
        };
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(&debug, &place).unwrap();
        assert!(!inlined_frames(&path, &full, limits.clone()).is_empty(), "{build_id}");
        fs::write(&place, b"something else").unwrap();
        assert!(inlined_frames(&path, &full, limits.clone()).is_empty());
    }
}

#[test]
fn a_stripped_program_gives_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(directory.path(), "gcc", "int main(void) { return 0; }", &["-O1"]);
    let start = address_of(&path, "main");
    assert!(Command::new("strip").arg(&path).status().unwrap().success());
    let frames = Symbolizer::new(Limits::default()).resolve(&module(&path), start);
    assert_eq!(frames[0].reason, Some("the file is stripped"));
}

#[test]
fn names_are_found_after_the_process_and_its_file_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(directory.path(), "gcc", "#include <unistd.h>\nint main(void) { pause(); }", &["-O1"]);
    let mut child = Command::new(&path).spawn().unwrap();
    let mut modules = Modules::default();
    let text = address_of(&path, "main");
    let space = loop {
        let lines = lines_of(child.id());
        if lines.iter().any(|line| line.path.ends_with("/f")) {
            break AddressSpace::capture(child.id(), lines, None, &mut modules);
        }
    };
    let base = lines_of(child.id()).iter().find(|line| line.path.ends_with("/f")).unwrap().start;
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&path).unwrap();
    let frames = Symbolizer::new(Limits::default()).frames(&space, base + text, true);
    assert_eq!(frames[0].function.as_deref(), Some("main"), "{frames:?}");
}

#[test]
fn too_much_debug_information_leaves_the_symbols() {
    let file = File::open("/proc/self/exe").unwrap();
    let module = Arc::new(Module::open("self".to_owned(), file).unwrap());
    let whole = Image::copy(&module.file, module.layout.as_ref().unwrap(), u64::MAX).unwrap();
    let limit = whole.bytes - 1;
    let cut = Image::copy(&module.file, module.layout.as_ref().unwrap(), limit).unwrap();
    assert!(cut.cut && cut.bytes < limit);
    let mut symbolizer = Symbolizer::new(Limits { file_bytes: 1000, ..Limits::default() });
    let address = module.layout.as_ref().unwrap().loads.iter().find(|load| load.executable).unwrap().address;
    assert_eq!(
        symbolizer.resolve(&module, address)[0].reason,
        Some("the file's symbols are larger than the limit")
    );
}

#[test]
fn a_file_that_shrinks_after_it_was_captured_is_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(directory.path(), "gcc", "int main(void) { return 0; }", &["-O1", "-g"]);
    let start = address_of(&path, "main");
    let module = module(&path);
    File::options().write(true).open(&path).unwrap().set_len(500).unwrap();
    let frames = Symbolizer::new(Limits::default()).resolve(&module, start);
    assert_eq!(frames[0].reason, Some("the file's symbols are damaged"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_never_brings_the_symbolizer_down(
        changes in prop::collection::vec((0usize..1_000_000, any::<u8>()), 1..200),
        headers_only in any::<bool>(),
    ) {
        static FIXTURE: std::sync::OnceLock<(Vec<u8>, u64)> = std::sync::OnceLock::new();
        let (whole, start) = FIXTURE.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = compile(directory.path(), "g++", INLINING, &["-O1", "-g"]);
            (fs::read(&path).unwrap(), address_of(&path, OUTER))
        });
        let mut bytes = whole.clone();
        for (at, value) in changes {
            // The section headers lie at the end of the file.
            let at = if headers_only { bytes.len() - 1 - at % 2800 } else { at % bytes.len() };
            bytes[at] = value;
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let module = module(file.path());
        let mut symbolizer = Symbolizer::new(Limits { file_bytes: 8 << 20, ..Limits::default() });
        for address in *start..*start + 8 {
            prop_assert!(!symbolizer.resolve(&module, address).is_empty());
        }
    }
}
