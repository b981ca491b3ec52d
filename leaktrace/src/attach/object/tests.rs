use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// Every program, with the attach types that it is loaded with.
const PROGRAMS: [(&str, u32); 24] = [
    ("alloc_session", sys::ATTACH_UPROBE_SESSION),
    ("alloc_entry", sys::ATTACH_UPROBE_MULTI),
    ("alloc_entry", 0),
    ("alloc_return", 0),
    ("alloc_exit", 0),
    ("exception_thrown", 0),
    ("free_entry", 0),
    ("change_exit", 0),
    ("munmap_enter", 0),
    ("munmap_exit", 0),
    ("mremap_enter", 0),
    ("system_call_enter", 0),
    ("system_call_exit", 0),
    ("raw_fork", 0),
    ("raw_exec", 0),
    ("raw_exit", 0),
    ("process_fork", 0),
    ("process_exec", 0),
    ("thread_exit", 0),
    ("oom_victim", 0),
    ("signal_delivered", 0),
    ("order_exec", 0),
    ("order_moved", 0),
    ("order_renamed", 0),
];

/// The object with its functions linked to the programs that call them. Maps are left out.
fn linked() -> aya_obj::Object {
    let mut object = aya_obj::Object::parse(OBJECT).expect("run `cargo xtask setup`, then build again");
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text).unwrap();
    object
}

#[test]
fn the_list_of_programs_is_whole() {
    let built: BTreeSet<String> = linked().programs.into_keys().collect();
    assert_eq!(built, PROGRAMS.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn no_chain_of_calls_is_too_deep_and_each_program_has_a_tail_call() {
    let object = linked();
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        let faults: Vec<String> = lint::faults(code).iter().map(ToString::to_string).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}");
        println!("{name}: {} bytes of stack", lint::stack_bytes(code).unwrap());
    }
}

/// The table has for each program what the verifier may look at: what it did when that was last changed, and a half more,
/// because kernels differ. A kernel refuses a million.
#[test]
fn every_program_passes_the_verifier_within_its_bound() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/verified-instructions.txt");
    let table = fs::read_to_string(&path).unwrap();
    let bounds: HashMap<&str, u32> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(name, bound)| (name, bound.trim().parse().unwrap()))
        .collect();
    let kernel = KernelObject::load(&Sizes { slabs: 1, ..Sizes::default() }, true, false).unwrap();
    for (name, attach_type) in PROGRAMS {
        if let Err(error) = kernel.load_program(name, attach_type) {
            panic!("{error:?}");
        }
    }
    for (name, verified) in kernel.verified_instructions() {
        let bound =
            bounds.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in {}", path.display()));
        println!("{name} {verified}");
        assert!(verified <= *bound, "{name}: {verified} instructions verified, {bound} allowed");
    }
}
