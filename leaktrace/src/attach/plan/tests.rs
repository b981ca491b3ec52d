//! Real prologues of Debian 12 (x86-64): glibc 2.36-9+deb12u14, musl 1.2.3-1, libjemalloc2 5.3.0-1,
//! libtcmalloc-minimal4 2.10-1, libmimalloc2.0 2.0.9+ds-2. Each fixture is the beginning of a function, or
//! all of it.
use super::*;
use crate::discover::allocators::{Class, HookTable};

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("fixtures/", $name, ".bin"))
    };
}

fn function(symbol: &str, code: &[u8]) -> FoundFunction {
    let table = HookTable::new(&[]);
    let hook = table.entry_of(symbol.as_bytes()).unwrap().hook;
    FoundFunction {
        name: symbol.into(),
        hook,
        class: Class::C,
        address: 0x1_0000,
        file_offset: 0x8000,
        size_bytes: code.len() as u64,
        code: code.to_vec(),
    }
}

fn planned(symbol: &str, code: &[u8]) -> ProbeSite {
    let function = function(symbol, code);
    let need_return = function.hook.shape != Shape::Free && !function.hook.may_throw;
    plan(&function, EmulatedClasses::COMMON, need_return).unwrap()
}

/// Offset, first argument in use, return slot.
fn summary(site: &ProbeSite) -> (u64, CostClass, u8) {
    assert_eq!(site.file_offset, 0x8000 + site.instruction_offset);
    assert_eq!(site.hook.return_slot_words, site.return_slot_words);
    (site.instruction_offset, site.cost_class, site.return_slot_words)
}

#[test]
fn glibc_functions_that_begin_with_push_are_probed_there() {
    for (symbol, code) in [
        ("malloc", &fixture!("glibc_malloc")[..]),
        ("calloc", &fixture!("glibc_calloc")[..]),
        ("realloc", &fixture!("glibc_realloc")[..]),
    ] {
        assert_eq!(summary(&planned(symbol, code)), (0, CostClass::Emulated, 0), "{symbol}");
    }
}

#[test]
fn glibc_free_is_probed_at_the_push_behind_its_test_for_null() {
    let site = planned("free", fixture!("glibc_free"));
    assert_eq!(summary(&site), (9, CostClass::Emulated, 0));
    assert!(site.skips_null);
    assert_eq!(site.bytes, [0x55]);
    assert_eq!(site.instruction_text, "push [55]");
}

#[test]
fn glibc_memalign_is_probed_at_the_branch_behind_its_comparison() {
    assert_eq!(summary(&planned("memalign", fixture!("glibc_memalign"))), (7, CostClass::Emulated, 0));
    assert_eq!(
        summary(&planned("posix_memalign", fixture!("glibc_posix_memalign"))),
        (7, CostClass::Emulated, 0)
    );
}

#[test]
fn musl_functions_are_probed_at_their_first_instruction() {
    assert_eq!(summary(&planned("malloc", fixture!("musl_malloc"))), (0, CostClass::Emulated, 0));
    assert_eq!(summary(&planned("free", fixture!("musl_free"))), (0, CostClass::Emulated, 0));
    assert_eq!(summary(&planned("calloc", fixture!("musl_calloc"))), (0, CostClass::Emulated, 0));
}

#[test]
fn jemalloc_is_probed_at_the_first_branch() {
    assert_eq!(summary(&planned("malloc", fixture!("jemalloc_malloc"))), (7, CostClass::Emulated, 0));
    assert_eq!(summary(&planned("_Znwm", fixture!("jemalloc_new"))), (7, CostClass::Emulated, 0));
    assert_eq!(summary(&planned("free", fixture!("jemalloc_free"))), (48, CostClass::Emulated, 0));
}

#[test]
fn a_free_may_be_probed_below_its_entry_when_the_distance_is_known() {
    // test rdi, rdi; je; sub rsp, 8; call: the call, one word below the return address.
    let site = planned("_ZdlPvm", fixture!("jemalloc_sized_delete"));
    assert_eq!(summary(&site), (9, CostClass::Emulated, 1));
    assert!(site.skips_null);
}

#[test]
fn tcmalloc_is_probed_at_the_test_of_its_hooks() {
    assert_eq!(summary(&planned("malloc", fixture!("tcmalloc_malloc"))), (10, CostClass::Emulated, 0));
    assert_eq!(summary(&planned("free", fixture!("tcmalloc_free"))), (10, CostClass::Emulated, 0));
    let aligned = planned("_ZnwmSt11align_val_t", fixture!("tcmalloc_new_aligned"));
    assert_eq!(summary(&aligned), (13, CostClass::Emulated, 0));
}

#[test]
fn mimalloc_arguments_are_read_from_where_they_were_moved() {
    // mov rsi, rdi; mov rdi, fs:[rax]; cmp rsi, 0x400; ja
    let malloc = planned("malloc", fixture!("mimalloc_malloc"));
    assert_eq!(summary(&malloc), (21, CostClass::Emulated, 0));
    assert_eq!(malloc.hook.size, 1);
    let free = planned("free", fixture!("mimalloc_free"));
    assert_eq!((summary(&free), free.hook.pointer), ((76, CostClass::Emulated, 0), 3));
    assert!(free.skips_null);
}

#[test]
fn a_function_whose_argument_leaves_the_argument_registers_is_probed_at_its_start() {
    // calloc moves the count to rax before its first branch.
    let site = planned("calloc", fixture!("mimalloc_calloc"));
    assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0));
    assert_eq!((site.hook.count, site.hook.size), (0, 1));
}

#[test]
fn nothing_emulated_means_the_first_instruction() {
    let free = function("free", fixture!("glibc_free"));
    let site = plan(&free, EmulatedClasses::NONE, false).unwrap();
    assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0));
    assert!(!site.skips_null);
    let branches = EmulatedClasses::NONE.with(InstructionClass::BranchNear);
    assert_eq!(summary(&plan(&free, branches, false).unwrap()), (3, CostClass::Emulated, 0));
}

#[test]
fn a_return_probe_never_stands_below_the_return_address() {
    // sub rsp, 8; push rbx; ret
    let code = [0x48, 0x83, 0xec, 8, 0x53, 0xc3];
    let malloc = function("malloc", &code);
    assert_eq!(
        summary(&plan(&malloc, EmulatedClasses::COMMON, true).unwrap()),
        (0, CostClass::SingleStepped, 0)
    );
    assert_eq!(summary(&plan(&malloc, EmulatedClasses::COMMON, false).unwrap()), (4, CostClass::Emulated, 1));
}

#[test]
fn an_allocation_is_not_followed_past_a_branch() {
    // test rdi, rdi; je +1; push rbp; ret: malloc(0) does not come to the push.
    let code = [0x48, 0x85, 0xff, 0x74, 1, 0x55, 0xc3];
    assert_eq!(planned("malloc", &code).instruction_offset, 3);
    assert_eq!(planned("free", &code).instruction_offset, 5);
}

#[test]
fn another_test_than_that_of_the_pointer_is_not_passed() {
    // test rsi, rsi; je +1; push rbp; ret
    let code = [0x48, 0x85, 0xf6, 0x74, 1, 0x55, 0xc3];
    assert_eq!(planned("free", &code).instruction_offset, 3);
    // test edi, edi: an address may have a low half of 0.
    let code = [0x85, 0xff, 0x74, 1, 0x55, 0xc3];
    assert_eq!(planned("free", &code).instruction_offset, 2);
}

#[test]
fn an_instruction_that_a_loop_comes_back_to_is_not_taken() {
    // mov rax, rdi; push rbp; jmp back to the push; a second hit for one call.
    let code = [0x48, 0x89, 0xf8, 0x55, 0xeb, 0xfd];
    assert_eq!(summary(&planned("free", &code)), (0, CostClass::SingleStepped, 0));
}

#[test]
fn an_overwritten_argument_ends_the_choice() {
    // xor edi, edi; push rbp
    let code = [0x31, 0xff, 0x55, 0xc3];
    assert_eq!(summary(&planned("free", &code)), (0, CostClass::SingleStepped, 0));
    // mov rbx, rdi; xor edi, edi; mov rsi, rbx; push rbp: rsi has it again.
    let code = [0x48, 0x89, 0xfb, 0x31, 0xff, 0x48, 0x89, 0xde, 0x55, 0xc3];
    let site = planned("free", &code);
    assert_eq!((site.instruction_offset, site.hook.pointer), (8, 1));
}

#[test]
fn an_endbr64_is_passed_where_it_is_single_stepped_and_taken_where_it_is_not() {
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3];
    assert_eq!(planned("malloc", &code).instruction_offset, 4);
    let emulated = EmulatedClasses::COMMON.with(InstructionClass::Endbr64);
    assert_eq!(plan(&function("malloc", &code), emulated, true).unwrap().instruction_offset, 0);
}

#[test]
fn encodings_that_the_kernel_does_not_emulate_are_in_no_class() {
    for bytes in [
        &[0x48, 0x55][..],
        &[0x40, 0x55],
        &[0x41, 0x90],
        &[0x66, 0x2e, 0x0f, 0x1f, 0x44, 0, 0],
        &[0x6a, 1],
        &[0xc3],
    ] {
        assert_eq!(InstructionClass::of(bytes), None, "{bytes:x?}");
    }
    for (class, bytes) in InstructionClass::SAMPLES {
        assert_eq!(InstructionClass::of(bytes), Some(class));
    }
}

#[test]
fn any_bytes_give_a_site_on_an_instruction_boundary() {
    let mut seed = 7u64;
    for _ in 0..2000 {
        let code: Vec<u8> = (0..64)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        let site = planned("free", &code);
        let mut decoder = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
        let boundary = std::iter::from_fn(|| Some(decoder.decode().ip()))
            .take(64)
            .any(|ip| ip == site.instruction_offset);
        assert!(boundary, "{site:?} in {code:x?}");
    }
    assert_eq!(planned("free", &[]).instruction_offset, 0);
}

#[test]
fn the_exits_of_a_throwing_new_are_its_returns_and_those_of_the_function_it_jumps_to() {
    let new = FoundFunction { address: 0xade30, ..function("_Znwm", fixture!("jemalloc_new")) };
    let slow = Code { address: 0xaddf0, file_offset: 0x7000, bytes: fixture!("jemalloc_new_slow").to_vec() };
    let found = exits(&new, |target| match target {
        Target::Address(address) => contains(&slow, address).then(|| slow.clone()),
        Target::Slot(_) => None,
    })
    .unwrap();
    let offsets: Vec<u64> = found.sites.iter().map(|site| site.file_offset).collect();
    assert_eq!(offsets, [0x7000 + 15, 0x8000 + 157]);
    assert_eq!(found.unresolved, 1, "the out-of-memory path leads to a function that is not given here");
}

#[test]
fn a_function_without_a_visible_return_has_no_exits() {
    let jumps_away = function("_Znwm", &[0xff, 0xe0]);
    assert!(exits(&jumps_away, |_| None).unwrap_err().contains("no return"));
    let unknown = FoundFunction { size_bytes: 0, ..function("_Znwm", &[0xc3]) };
    assert!(exits(&unknown, |_| None).unwrap_err().contains("end is not known"));
}

#[test]
fn functions_that_jump_on_and_on_are_given_up() {
    let endless = |target| match target {
        Target::Address(address) => Some(Code { address, file_offset: 0, bytes: vec![0xe9, 0, 1, 0, 0] }),
        Target::Slot(_) => None,
    };
    let new = function("_Znwm", &[0xe9, 0, 1, 0, 0]);
    assert!(exits(&new, endless).unwrap_err().contains("more than 64 functions"));
}

/// Every class, as if all of them were cheap.
fn all_cheap() -> EmulatedClasses {
    InstructionClass::SAMPLES.iter().fold(EmulatedClasses::NONE, |all, (class, _)| all.with(*class))
}

const NOP_OF_FIVE: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
const JUMP_TO_NEXT: [u8; 5] = [0xe9, 0, 0, 0, 0];

#[test]
fn what_becomes_a_call_is_not_taken_where_the_red_zone_may_be_in_use() {
    // mov [rsp - 8], rdi; the nop; ret.
    let stores = [0x48, 0x89, 0x7c, 0x24, 0xf8];
    for nop in [NOP_OF_FIVE, JUMP_TO_NEXT] {
        let code = [&stores[..], &nop, &[0xc3]].concat();
        for symbol in ["malloc", "free"] {
            let function = function(symbol, &code);
            let site = plan(&function, all_cheap(), symbol == "malloc").unwrap();
            assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0), "{symbol} {nop:x?}");
        }
    }
    // push rbp; mov rbp, rsp; the nop: rbp - 8 is below the stack pointer, and cheap is the push before it.
    let code = [&[0x55, 0x48, 0x89, 0xe5][..], &NOP_OF_FIVE, &[0x5d, 0xc3]].concat();
    let no_push = EmulatedClasses::NONE.with(InstructionClass::LongNop);
    let site = plan(&function("free", &code), no_push, false).unwrap();
    assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0));
}

#[test]
fn what_becomes_a_call_is_taken_where_a_function_begins() {
    let patchable = [&NOP_OF_FIVE[..], &[0x48, 0x89, 0x7c, 0x24, 0xf8, 0xc3]].concat();
    let site = plan(&function("malloc", &patchable), all_cheap(), true).unwrap();
    assert_eq!(summary(&site), (0, CostClass::Emulated, 0));
    let behind_endbr64 = [&[0xf3, 0x0f, 0x1e, 0xfa][..], &patchable].concat();
    let long_nops = EmulatedClasses::NONE.with(InstructionClass::LongNop);
    let site = plan(&function("malloc", &behind_endbr64), long_nops, true).unwrap();
    assert_eq!(summary(&site), (4, CostClass::Emulated, 0));
}

#[test]
fn a_nop_that_is_jumped_back_to_is_not_where_a_function_begins() {
    // nop; mov [rsp - 8], rdi; jmp to the nop.
    let code = [&NOP_OF_FIVE[..], &[0x48, 0x89, 0x7c, 0x24, 0xf8, 0xeb, 0xf4, 0xc3]].concat();
    let long_nops = EmulatedClasses::NONE.with(InstructionClass::LongNop);
    let refused = plan(&function("malloc", &code), long_nops, true).unwrap_err();
    assert!(refused.contains("below the stack pointer"), "{refused}");
    // endbr64; nop; mov [rsp - 8], rdi; jmp to the endbr64: that one can have a probe.
    let code =
        [&[0xf3, 0x0f, 0x1e, 0xfa][..], &NOP_OF_FIVE, &[0x48, 0x89, 0x7c, 0x24, 0xf8, 0xeb, 0xf0]].concat();
    let site = plan(&function("malloc", &code), long_nops, true).unwrap();
    assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0));
}

#[test]
fn everything_of_five_bytes_that_does_nothing_may_become_a_call() {
    for bytes in [
        &NOP_OF_FIVE[..],
        &JUMP_TO_NEXT,
        // nop with four prefixes; nop [rax + 0] with one; data16 mov rsp, rsp with two.
        &[0x66, 0x66, 0x66, 0x66, 0x90],
        &[0x66, 0x0f, 0x1f, 0x40, 0],
        &[0x3e, 0x3e, 0x48, 0x89, 0xe4],
        // lea rsp, [rsp + 0]; ds lea rax, [rax + 0]
        &[0x48, 0x8d, 0x64, 0x24, 0],
        &[0x3e, 0x48, 0x8d, 0x40, 0],
    ] {
        assert!(prologue::becomes_call(bytes), "{bytes:x?}");
    }
    for bytes in [
        &[0x0f, 0x1f, 0x40, 0][..],
        &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
        // jmp +1; call +0; mov [rsp - 8], rdi; lea rax, [rax + 8]
        &[0xe9, 1, 0, 0, 0],
        &[0xe8, 0, 0, 0, 0],
        &[0x48, 0x89, 0x7c, 0x24, 0xf8],
        &[0x3e, 0x48, 0x8d, 0x40, 8],
    ] {
        assert!(!prologue::becomes_call(bytes), "{bytes:x?}");
    }
}

/// Libraries of this machine in which an allocator may be.
fn installed_libraries() -> Vec<std::path::PathBuf> {
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib", "/usr/lib/x86_64-linux-musl"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")))
        .filter(|path| path.is_file())
        .collect()
}

#[test]
fn no_planned_site_of_an_installed_allocator_writes_into_a_red_zone() {
    use crate::discover::{object::ObjectFile, scan};
    let table = HookTable::new(&[]);
    let mut allocators = std::collections::BTreeSet::new();
    let mut sites = 0;
    for path in installed_libraries() {
        let Ok(file) = std::fs::File::open(&path).and_then(ObjectFile::of_file) else { continue };
        let Ok(scan) = scan::scan(&file, &table, false, &[]) else { continue };
        let found = scan.allocators.iter().flat_map(|(name, group)| {
            allocators.insert(name.name());
            &group.functions
        });
        for function in found.chain(&scan.throws) {
            for need_return in [false, true] {
                for emulated in [EmulatedClasses::NONE, EmulatedClasses::COMMON, all_cheap()] {
                    let Ok(site) = plan(function, emulated, need_return) else { continue };
                    sites += 1;
                    assert_harmless(
                        &function.code,
                        &site,
                        &format!("{} in {}", function.name, path.display()),
                    );
                }
            }
        }
    }
    assert!(allocators.contains("glibc"), "{allocators:?}");
    assert!(sites > 100, "{sites} sites in {allocators:?}");
    println!("{sites} sites in {allocators:?}");
}

/// Decodes from the function's start again: the site is an instruction, and one of five bytes that does nothing has
/// no instruction before it that writes memory or moves the stack pointer.
fn assert_harmless(code: &[u8], site: &ProbeSite, what: &str) {
    use iced_x86::{InstructionInfoFactory, OpAccess};
    let mut factory = InstructionInfoFactory::new();
    let mut writes = false;
    for instruction in &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE) {
        if instruction.ip() == site.instruction_offset {
            let harmless = instruction.len() != 5 || !prologue::becomes_call(&site.bytes) || !writes;
            return assert!(harmless, "{what}: {site:?}");
        }
        let info = factory.info(&instruction);
        let is_write = |access| !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        writes |= info.used_memory().iter().any(|used| is_write(used.access()));
        writes |= instruction.stack_pointer_increment() != 0;
    }
    panic!("{what}: {site:?} is on no instruction");
}
