//! Against this process and the libraries of this machine.
use super::*;
use leaktrace_common::hook::Shape;

#[test]
fn this_process_has_an_allocator_with_malloc_and_free() {
    let found = discover(std::process::id(), &Options::default()).unwrap();
    let libc = found.allocators.iter().find(|allocator| allocator.allocator == Allocator::Glibc).unwrap();
    for name in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
        assert!(libc.functions.iter().any(|function| function.name == name), "{name}");
    }
    assert!(libc.failed.is_empty());
    let malloc = libc.functions.iter().find(|function| function.name == "malloc").unwrap();
    let here = libc::malloc as *const () as u64;
    assert_eq!(malloc.address.wrapping_add(libc.load_bias), here);
}

#[test]
fn the_second_look_opens_files_but_scans_none() {
    let mut discovery = Discovery::new(Options::default());
    discovery.find(std::process::id()).unwrap();
    let known = discovery.cache.len();
    let begun = std::time::Instant::now();
    discovery.find(std::process::id()).unwrap();
    assert_eq!(discovery.cache.len(), known);
    assert!(begun.elapsed().as_millis() < 100);
}

#[test]
fn a_process_that_is_not_there_is_gone() {
    assert!(matches!(discover(i32::MAX as u32, &Options::default()), Err(ProcessError::Gone(_))));
}

#[test]
fn a_given_function_whose_offset_is_not_code_is_listed_as_failed() {
    let options =
        Options { functions: vec!["mine=malloc@ffffffffff".parse().unwrap()], ..Options::default() };
    let found = discover(std::process::id(), &options).unwrap();
    let custom = found.allocators.iter().find(|allocator| allocator.allocator == Allocator::Custom).unwrap();
    assert_eq!(custom.failed[0].name, "mine");
}

#[test]
fn a_given_function_is_taken_from_the_executable() {
    let pid = std::process::id();
    let here = a_given_function_is_taken_from_the_executable as *const () as u64;
    let mappings = maps::read(pid).unwrap();
    let text = mappings.iter().find(|entry| entry.contains(here)).unwrap();
    let function = format!("mine=realloc@{:x}", here - text.start + text.offset);
    let options = Options { functions: vec![function.parse().unwrap()], ..Options::default() };
    let found = discover(pid, &options).unwrap();
    let custom = found.allocators.iter().find(|allocator| allocator.allocator == Allocator::Custom).unwrap();
    let mine = &custom.functions[0];
    assert_eq!((mine.name.as_str(), mine.hook.shape), ("mine", Shape::Reallocate));
    assert_eq!(mine.address.wrapping_add(custom.load_bias), here);
    assert!(mine.size_bytes > 0, "unwind information gives the size");
}

#[test]
fn the_bias_comes_from_the_executable_segment_when_segments_overlap_in_the_file() {
    let segments = [
        Segment { offset: 0, address: 0, file_bytes: 0x1800, executable: false },
        Segment { offset: 0x1800, address: 0x2800, file_bytes: 0x1000, executable: true },
    ];
    let entry = maps::parse_line(b"70002000-70004000 r-xp 00001000 08:01 7 /a").unwrap();
    assert_eq!(load_bias(&segments, &entry), Some(0x7000_0000));
}

#[test]
fn glibc_wrappers_are_left_out_and_its_operators_are_not_there() {
    let found = discover(std::process::id(), &Options::default()).unwrap();
    let libc = found.allocators.iter().find(|allocator| allocator.allocator == Allocator::Glibc).unwrap();
    assert!(libc.left_out.iter().any(|name| name == "reallocarray"));
    assert!(
        libc.functions.iter().all(|function| function.hook.shape != Shape::Throw && !function.hook.may_throw)
    );
    let realloc = libc.functions.iter().find(|function| function.name == "realloc").unwrap();
    assert!(realloc.hook.zero_frees);
}

#[test]
fn an_ifunc_is_resolved_to_what_this_process_calls() {
    let pid = std::process::id();
    let mappings = maps::read(pid).unwrap();
    let here = libc::strlen as *const () as u64;
    let defining = mappings.iter().find(|entry| entry.contains(here)).unwrap();
    let exe = mappings
        .iter()
        .find(|entry| entry.executable && entry.is_file() && entry.path.contains(&b'-'))
        .unwrap();
    let open = |entry: &MapEntry| {
        let file = ObjectFile::of_mapping(pid, entry).unwrap();
        let load_bias = load_bias(&ElfFile::parse(&file).unwrap().segments, entry).unwrap();
        (file, load_bias)
    };
    let (own, libc) = (open(exe), open(defining));
    let entry = allocators::Entry {
        name: "strlen".into(),
        hook: leaktrace_common::hook::Hook::new(Shape::Free),
        class: allocators::Class::C,
        allocator: None,
    };
    let mut names = elf::symbols::NameSet::default();
    names.insert(b"strlen");
    let symbol = ElfFile::parse(&libc.0).unwrap().symbols(&names).unwrap()[0];
    assert_eq!(symbol.kind, elf::symbols::SymbolKind::Ifunc);
    let ifunc = scan::UnresolvedIfunc { entry, resolver: symbol.address };
    let defining = Loaded { file: &libc.0, load_bias: libc.1 };
    let loaded = [Loaded { file: &own.0, load_bias: own.1 }, defining];
    assert_eq!(ifunc::resolve(pid, &ifunc, defining, &loaded, &mappings), Ok(here.wrapping_sub(libc.1)));
    let unknown = scan::UnresolvedIfunc {
        entry: allocators::Entry { name: "no_such".into(), ..ifunc.entry.clone() },
        resolver: 1,
    };
    assert!(ifunc::resolve(pid, &unknown, defining, &loaded, &mappings).is_err());
}
