//! Names in this very program, in fixtures built by the system's compilers, and in damaged files.
use std::{
    fs::{self, File},
    io::Write,
    process::Command,
};

use proptest::prelude::*;

use super::{debuginfod::Options as DebuginfodOptions, finder::Finder, image::Image, *};
use crate::discover::maps;

fn own_space(modules: &mut Modules) -> AddressSpace {
    let pid = std::process::id();
    AddressSpace::capture(pid, &maps::read(pid).unwrap(), None, modules)
}

/// What is found at an address, as soon as it is.
fn frames_of(symbolizer: &mut Symbolizer, space: &AddressSpace, address: u64, exact: bool) -> Vec<Frame> {
    let placed = symbolizer.placed(space, address, exact);
    let Some(module) = space.module(address, exact) else { return vec![placed] };
    if let Some(frames) = symbolizer.names(module, &placed, exact) {
        return frames;
    }
    assert!(symbolizer.wait(&Patience::of(Duration::from_secs(60))));
    symbolizer.names(module, &placed, exact).unwrap()
}

#[inline(never)]
fn some_function_to_find() -> u32 {
    std::hint::black_box(41) + 1
}

#[test]
fn a_function_of_this_program_has_name_module_and_line() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let mut finder = Symbolizer::new(Limits::default());
    let address = some_function_to_find as fn() -> u32 as usize as u64;
    let frames = frames_of(&mut finder, &space, address, true);
    let frame = frames.last().unwrap();
    assert!(frame.function.as_deref().unwrap().ends_with("some_function_to_find"), "{frame:?}");
    assert_eq!((frame.offset, frame.address), (Some(0), address));
    assert!(frame.file.as_deref().unwrap().ends_with("symbolize/tests.rs"), "{frame:?}");
    assert!(frame.line.is_some() && frame.module.is_some());
    let again = frames_of(&mut finder, &space, address + 1, false);
    assert_eq!(again.last().unwrap().offset, Some(1));
    finder.release();
    assert_eq!(frames_of(&mut finder, &space, address, true), frames, "names stay after the copies are gone");
}

#[test]
fn libc_has_names_from_its_dynamic_symbols_and_the_vdso_has_too() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let mut finder = Symbolizer::new(Limits { debug_dirs: Vec::new(), ..Limits::default() });
    let frames = frames_of(&mut finder, &space, libc::getenv as *const () as u64, true);
    assert_eq!(frames[0].function.as_deref(), Some("getenv"), "{frames:?}");
    assert!(frames[0].build_id.as_deref().is_some_and(|id| id.len() == 40));
    let vdso =
        maps::read(std::process::id()).unwrap().into_iter().find(|entry| entry.path == b"[vdso]").unwrap();
    let found = (vdso.start..vdso.end)
        .step_by(16)
        .any(|address| frames_of(&mut finder, &space, address, true)[0].function.is_some());
    assert!(found, "no function in the vdso");
}

#[test]
fn an_address_without_code_says_so() {
    let mut modules = Modules::default();
    let space = own_space(&mut modules);
    let frames = frames_of(&mut Symbolizer::new(Limits::default()), &space, 0x10, false);
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
    let mut finder = Finder::new(limits);
    let module = module(path);
    let start = address_of(nm, OUTER);
    (start..start + 24)
        .map(|address| finder.resolve(&module, address, true).to_vec())
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
    let frames = Finder::new(Limits::default()).resolve(&module(&path), start, true);
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
        let lines = maps::read(child.id()).unwrap();
        if lines.iter().any(|line| line.path.ends_with(b"/f")) {
            break AddressSpace::capture(child.id(), &lines, None, &mut modules);
        }
    };
    let base =
        maps::read(child.id()).unwrap().iter().find(|entry| entry.path.ends_with(b"/f")).unwrap().start;
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&path).unwrap();
    let frames = frames_of(&mut Symbolizer::new(Limits::default()), &space, base + text, true);
    assert_eq!(frames[0].function.as_deref(), Some("main"), "{frames:?}");
}

#[test]
fn too_much_debug_information_leaves_the_symbols() {
    let file = File::open("/proc/self/exe").unwrap();
    let module = Arc::new(Module::open("self".to_owned(), file).unwrap());
    let whole = Image::copy(&module.file, module.layout.as_ref().unwrap(), None, u64::MAX, true).unwrap();
    let limit = whole.bytes - 1;
    let cut = Image::copy(&module.file, module.layout.as_ref().unwrap(), None, limit, true).unwrap();
    assert!(cut.cut && cut.bytes < limit);
    let mut finder = Finder::new(Limits { file_bytes: 1000, ..Limits::default() });
    let address = module.layout.as_ref().unwrap().loads.iter().find(|load| load.executable).unwrap().address;
    assert_eq!(
        finder.resolve(&module, address, true)[0].reason,
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
    let frames = Finder::new(Limits::default()).resolve(&module, start, true);
    assert_eq!(frames[0].reason, Some("the file's symbols are damaged"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_never_brings_the_finder_down(
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
        let mut finder = Finder::new(Limits { file_bytes: 8 << 20, ..Limits::default() });
        for address in *start..*start + 8 {
            prop_assert!(!finder.resolve(&module, address, true).is_empty());
        }
    }
}

fn run(program: &str, words: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(words).status();
    let status = status.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    assert!(status.success(), "{program} {words:?}");
}

/// A program without debug information, its debug file, and a copy that has both.
fn separated(directory: &std::path::Path) -> (PathBuf, PathBuf, PathBuf) {
    let path = compile(directory, "g++", INLINING, &["-O1", "-g", "-Wl,--build-id=sha1"]);
    let (full, debug) = (directory.join("full"), directory.join("f.debug"));
    fs::copy(&path, &full).unwrap();
    run("objcopy", &["--only-keep-debug".as_ref(), path.as_ref(), debug.as_ref()]);
    run("strip", &[path.as_ref()]);
    (path, debug, full)
}

/// A server that gives `answer` to each request, and the request lines that it got.
fn serve(answer: Vec<u8>, delay: std::time::Duration) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
            let _ = sender.send(line);
            std::thread::sleep(delay);
            let _ = stream.write_all(&answer);
        }
    });
    (url, receiver)
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn from_servers(urls: &[&str], cache: Option<PathBuf>) -> Limits {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    let debuginfod = DebuginfodOptions { urls, cache, ..DebuginfodOptions::default() };
    Limits { debug_dirs: Vec::new(), debuginfod, ..Limits::default() }
}

#[test]
fn debug_information_is_fetched_by_build_id_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (path, debug, full) = separated(directory.path());
    let (missing, asked_first) = serve(response("404 Not Found", b""), std::time::Duration::ZERO);
    let answer = response("200 OK", &fs::read(debug).unwrap());
    let (url, asked) = serve(answer, std::time::Duration::ZERO);
    let cache = directory.path().join("cache");
    let limits = from_servers(&[&missing, &url], Some(cache.clone()));
    let id = module(&path).build_id.clone().unwrap();
    for _ in 0..2 {
        assert!(!inlined_frames(&path, &full, limits.clone()).is_empty());
    }
    let request = format!("GET /buildid/{id}/debuginfo HTTP/1.1\r\n");
    assert_eq!(asked_first.try_iter().collect::<Vec<_>>(), std::slice::from_ref(&request));
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [request], "the second time it was in the cache");
    assert!(cache.join(&id).join("debuginfo").is_file());
    assert_eq!(fs::read_dir(cache.join(&id)).unwrap().count(), 1, "nothing unfinished is left");
    let uncached = from_servers(&[&url], None);
    assert!(!inlined_frames(&path, &full, uncached).is_empty(), "without a cache, too");
}

#[test]
fn servers_that_lie_fail_or_hang_cost_only_the_lines() {
    let directory = tempfile::tempdir().unwrap();
    let (path, debug, full) = separated(directory.path());
    let other =
        compile(directory.path(), "gcc", "int main(void) { return 1; }", &["-g", "-Wl,--build-id=sha1"]);
    let foreign = response("200 OK", &fs::read(&other).unwrap());
    fs::rename(&full, directory.path().join("kept")).unwrap();
    let (path_again, _, full) = separated(directory.path());
    assert_eq!(path, path_again);
    let whole = response("200 OK", &fs::read(debug).unwrap());
    let (cut, _) = whole.split_at(whole.len() / 2);
    let brief = std::time::Duration::from_millis(300);
    for (answer, delay, complains) in [
        (foreign, std::time::Duration::ZERO, false),
        (response("500 Broken", b"oh"), std::time::Duration::ZERO, true),
        (cut.to_vec(), std::time::Duration::ZERO, true),
        (b"not HTTP at all".to_vec(), std::time::Duration::ZERO, true),
        (Vec::new(), std::time::Duration::from_secs(60), true),
    ] {
        let (url, _asked) = serve(answer, delay);
        let mut limits = from_servers(&[&url], None);
        limits.debuginfod.patience = std::time::Duration::from_secs(if delay.is_zero() { 20 } else { 1 });
        limits.debuginfod.timeout = if delay.is_zero() { limits.debuginfod.timeout } else { brief };
        let mut finder = Finder::new(limits);
        let frames = finder.resolve(&module(&path), address_of(&full, OUTER), true);
        assert!(frames.iter().all(|frame| frame.line.is_none()), "{frames:?}");
        assert_eq!(!finder.messages().is_empty(), complains, "{:?}", finder.messages());
    }
}

#[test]
fn the_symbols_that_a_distribution_leaves_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let source = "static int __attribute__((noinline, used)) hidden(void) { return 7; }\nint main(void) { return hidden(); }";
    let path = compile(directory.path(), "gcc", source, &["-O1"]);
    let address = address_of(&path, "hidden");
    let mini = directory.path().join("mini");
    run("objcopy", &["--only-keep-debug".as_ref(), path.as_ref(), mini.as_ref()]);
    run("xz", &["-f".as_ref(), mini.as_ref()]);
    run("strip", &[path.as_ref()]);
    let mut section = std::ffi::OsString::from(".gnu_debugdata=");
    section.push(directory.path().join("mini.xz"));
    run("objcopy", &["--add-section".as_ref(), &section, path.as_ref()]);
    let frames = Finder::new(Limits::default()).resolve(&module(&path), address, true);
    assert_eq!(frames[0].function.as_deref(), Some("hidden"), "{frames:?}");
    fs::write(directory.path().join("mini.xz"), b"\xfd7zXZ\0 this is no stream").unwrap();
    section = std::ffi::OsString::from(".gnu_debugdata=");
    section.push(directory.path().join("mini.xz"));
    run("objcopy", &["--update-section".as_ref(), &section, path.as_ref()]);
    let frames = Finder::new(Limits::default()).resolve(&module(&path), address, true);
    assert_eq!(frames[0].reason, Some("the file is stripped"));
}

#[test]
fn parts_that_dwz_moved_out_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let debug_dir = directory.path().join("debug");
    let common = debug_dir.join(".dwz").join("common.debug");
    fs::create_dir_all(common.parent().unwrap()).unwrap();
    let (path, debug, full) = separated(directory.path());
    let id = module(&path).build_id.clone().unwrap();
    let place = debug_dir.join(".build-id").join(&id[..2]).join(format!("{}.debug", &id[2..]));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::rename(debug, &place).unwrap();
    // What two programs have in common is moved.
    let other = directory.path().join("other.debug");
    fs::copy(&place, &other).unwrap();
    let mut option = std::ffi::OsString::from("--multifile=");
    option.push(&common);
    run("dwz", &[&option, place.as_ref(), other.as_ref()]);
    assert!(common.is_file());
    let limits = Limits { debug_dirs: vec![debug_dir], ..Limits::default() };
    let named = Some("shop::Cart<int>::outer(int)");
    for is_there in [true, false] {
        let frames = Finder::new(limits.clone()).resolve(&module(&path), address_of(&full, OUTER), true);
        let outer = frames.last().unwrap();
        assert_eq!((outer.function.as_deref(), outer.line), (named, Some(5)), "{is_there}: {frames:?}");
        assert!(frames.iter().all(|frame| frame.function.as_deref() != Some("")), "{frames:?}");
        let _ = fs::remove_file(&common);
    }
}

/// Puts sections into a program; those without content go.
fn put_sections(path: &std::path::Path, sections: &crafted::Sections) {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in sections {
        let file = directory.path().join("section");
        fs::write(&file, content).unwrap();
        let mut option = std::ffi::OsString::from(if content.is_empty() {
            "--remove-section="
        } else {
            "--update-section="
        });
        option.push(name);
        if !content.is_empty() {
            option.push("=");
            option.push(&file);
        }
        run("objcopy", &[&option, path.as_ref()]);
    }
}

fn names_at(symbolizer: &mut Symbolizer, module: &Arc<Module>, start: u64) -> Vec<Frame> {
    let load = module.layout.as_ref().unwrap().loads.iter().find(|load| load.executable).unwrap();
    let module_offset = Some(start - load.address + load.file_offset);
    let placed = Frame { address: start, module_offset, ..Frame::default() };
    assert!(symbolizer.names(module, &placed, true).is_none(), "nobody waits");
    assert!(symbolizer.wait(&Patience::of(Duration::from_secs(60))));
    symbolizer.names(module, &placed, true).unwrap()
}

const PLAIN: &str = "int work(void) { return 7; }\nint main(void) { return work(); }";

#[test]
fn debug_information_that_takes_for_ever_costs_the_lines_of_its_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(directory.path(), "gcc", PLAIN, &["-O0", "-g"]);
    let start = address_of(&path, "work");
    put_sections(&path, &crafted::many_units(20_000, 200_000));
    let limits = Limits { question_cpu: Duration::from_millis(500), ..Limits::default() };
    let mut symbolizer = Symbolizer::new(limits);
    let begun = std::time::Instant::now();
    let frames = names_at(&mut symbolizer, &module(&path), start);
    assert_eq!((frames[0].function.as_deref(), frames[0].line), (Some("work"), None), "{frames:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let said = symbolizer.messages().join("\n");
    assert!(said.contains("takes too long") || said.contains("take too long"), "{said}");
    // Others are named as ever.
    let other = tempfile::tempdir().unwrap();
    let path = compile(other.path(), "gcc", PLAIN, &["-O0", "-g"]);
    let frames = names_at(&mut symbolizer, &module(&path), start);
    assert_eq!((frames[0].function.as_deref(), frames[0].line), (Some("work"), Some(1)));
}

#[test]
fn debug_information_that_makes_its_reader_panic_costs_the_lines_of_its_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(directory.path(), "gcc", PLAIN, &["-O0", "-g", "-gdwarf-4"]);
    let start = address_of(&path, "work");
    put_sections(&path, &crafted::file_that_is_not_there(start, 16));
    let mut finder = Finder::new(Limits::default());
    let frames = finder.resolve(&module(&path), start, true);
    assert_eq!((frames[0].function.as_deref(), frames[0].line), (Some("work"), None), "{frames:?}");
    let said = finder.messages().join("\n");
    assert!(said.contains("debug information cannot be read"), "{said}");
    let frames = names_at(&mut Symbolizer::new(Limits::default()), &module(&path), start);
    assert_eq!(frames[0].function.as_deref(), Some("work"));
}
