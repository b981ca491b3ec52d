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
    plan(&function, EmulatedClasses::COMMON, need_return)
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
    let site = plan(&free, EmulatedClasses::NONE, false);
    assert_eq!(summary(&site), (0, CostClass::SingleStepped, 0));
    assert!(!site.skips_null);
    let branches = EmulatedClasses::NONE.with(InstructionClass::BranchNear);
    assert_eq!(summary(&plan(&free, branches, false)), (3, CostClass::Emulated, 0));
}

#[test]
fn a_return_probe_never_stands_below_the_return_address() {
    // sub rsp, 8; push rbx; ret
    let code = [0x48, 0x83, 0xec, 8, 0x53, 0xc3];
    let malloc = function("malloc", &code);
    assert_eq!(summary(&plan(&malloc, EmulatedClasses::COMMON, true)), (0, CostClass::SingleStepped, 0));
    assert_eq!(summary(&plan(&malloc, EmulatedClasses::COMMON, false)), (4, CostClass::Emulated, 1));
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
    assert_eq!(plan(&function("malloc", &code), emulated, true).instruction_offset, 0);
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
