//! Needs root, as every test that attaches to the kernel does.
use super::*;

fn costs(classes: &[(InstructionClass, Option<u64>)]) -> ProbeCosts {
    ProbeCosts {
        link: LinkKind::Multi,
        classes: classes.to_vec(),
        single_stepped_ns: 10_000,
        nop_of_five_ns: Some(250),
        return_ns: Some(300),
        session_skip_ns: None,
        took: Duration::ZERO,
    }
}

fn site(cost_class: CostClass, bytes: &[u8]) -> ProbeSite {
    ProbeSite {
        file_offset: 0,
        instruction_offset: 0,
        cost_class,
        hook: leaktrace_common::hook::Hook::new(leaktrace_common::hook::Shape::Allocate),
        return_slot_words: 0,
        skips_null: false,
        bytes: bytes.to_vec(),
        instruction_text: String::new(),
    }
}

#[test]
fn every_function_is_in_its_slot_and_returns() {
    let (code, functions) = (code(), functions());
    assert_eq!((code.len(), functions.len()), (CODE_BYTES, InstructionClass::SAMPLES.len() + 5));
    for (index, function) in functions.iter().enumerate() {
        let slot = &code[index * SLOT_BYTES..(index + 1) * SLOT_BYTES];
        let length = function.instruction.len() + function.rest.len();
        assert!(slot.starts_with(function.instruction) && slot[length] == RETURN, "{index}");
    }
}

#[test]
fn what_costs_less_than_three_quarters_of_a_single_step_is_emulated() {
    let measured = costs(&[
        (InstructionClass::Push, Some(600)),
        (InstructionClass::Endbr64, Some(9_800)),
        (InstructionClass::Nop, Some(7_500)),
        (InstructionClass::Call, None),
    ]);
    assert_eq!(measured.emulated(), EmulatedClasses::NONE.with(InstructionClass::Push));
}

#[test]
fn the_cost_of_a_site_is_that_of_its_instruction_and_its_return() {
    let measured = costs(&[(InstructionClass::Push, Some(600)), (InstructionClass::LongNop, Some(550))]);
    let push = site(CostClass::Emulated, &[0x55]);
    assert_eq!((measured.of_site(&push, false), measured.of_site(&push, true)), (600, 900));
    assert_eq!(measured.of_site(&site(CostClass::Emulated, NOP_OF_FIVE.instruction), false), 250);
    assert_eq!(measured.of_site(&site(CostClass::Emulated, &[0x0f, 0x1f, 0x40, 0]), false), 550);
    assert_eq!(measured.of_site(&site(CostClass::SingleStepped, &[0x48]), true), 10_300);
}

#[test]
fn the_child_runs_every_function_unharmed_without_probes() {
    let bench = Bench::start().unwrap();
    for index in 0..functions().len() {
        assert!(bench.child.run(index, 1000).is_ok(), "function {index}");
    }
}

#[test]
fn a_push_is_cheaper_than_a_single_step_by_every_link_type() {
    for link in LinkKind::ALL.into_iter().filter(|link| link.is_available()) {
        let measured = ProbeCosts::measure(link).unwrap();
        assert!(measured.emulated().contains(InstructionClass::Push), "{measured:?}");
        assert!(measured.return_ns.is_some(), "{measured:?}");
        assert_eq!(measured.session_skip_ns.is_some(), link == LinkKind::Session, "{measured:?}");
    }
}

#[test]
fn this_kernel_lets_return_probes_pass_a_filter() {
    for link in LinkKind::ALL.into_iter().filter(|link| link.is_available()) {
        assert!(!return_probe_kills_filtered(link).unwrap(), "{link:?}");
    }
}

#[test]
fn the_filter_kills_at_the_forbidden_system_call() {
    let mut bench = Bench::start().unwrap();
    assert!(bench.child.run(0, 1).is_ok());
    // The answer to this request is the first write under the filter.
    assert!(bench.child.forbid(libc::SYS_write as u32).is_err());
}
