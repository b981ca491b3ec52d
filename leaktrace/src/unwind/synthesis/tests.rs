use super::*;
use leaktrace_common::unwind::saved;

const START: u64 = 0x1000;
const NOWHERE: u64 = 0;

/// The rules in force in a piece of code that begins with a function.
fn of(code: &[u8]) -> impl Fn(u64) -> Rule {
    of_program(code, &[START], NOWHERE)
}

fn of_program(code: &[u8], entries: &[u64], start: u64) -> impl Fn(u64) -> Rule {
    let region = Region { start: START, code: code.to_vec() };
    let rows = rows(&[region], &entries.iter().copied().collect(), start).remove(0);
    assert!(rows.is_sorted_by_key(|row| row.0));
    move |offset| rows[rows.partition_point(|row| row.0 <= START + offset) - 1].1
}

fn height(rule: Rule) -> Option<i32> {
    (rule.kind == kind::REGISTER && rule.cfa_register == 7).then_some(rule.cfa_offset)
}

#[test]
fn pushes_and_pops_move_the_stack_and_save_registers() {
    // push %rbp; push %rbx; sub $24,%rsp; xor %ebp,%ebp; add $24,%rsp; pop %rbx; pop %rbp; ret
    let at = of(&[0x55, 0x53, 0x48, 0x83, 0xec, 0x18, 0x31, 0xed, 0x48, 0x83, 0xc4, 0x18, 0x5b, 0x5d, 0xc3]);
    let heights: Vec<_> = [0, 1, 2, 6, 12, 13, 14].map(|offset| height(at(offset)).unwrap()).to_vec();
    assert_eq!(heights, [8, 16, 24, 48, 24, 16, 8]);
    let inner = at(8);
    assert_eq!((inner.saved, inner.rbp_offset, inner.rbx_offset), (saved::RBP | saved::RBX, -16, -24));
    assert_eq!((at(13).saved, at(14).saved), (saved::RBP, 0));
}

#[test]
fn a_frame_pointer_takes_over_where_the_height_is_lost() {
    // push %rbp; mov %rsp,%rbp; and $-32,%rsp; nop; leave; ret
    let at = of(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xe0, 0x90, 0xc9, 0xc3]);
    assert_eq!((at(8).cfa_register, at(8).cfa_offset), (6, 16));
    assert_eq!(height(at(10)), Some(8));
}

#[test]
fn code_behind_a_return_is_known_from_the_jump_to_it() {
    // push %rbx; test %edi,%edi; jne +2; pop %rbx; ret; xor %eax,%eax; pop %rbx; ret
    let at = of(&[0x53, 0x85, 0xff, 0x75, 0x02, 0x5b, 0xc3, 0x31, 0xc0, 0x5b, 0xc3]);
    assert_eq!(height(at(7)), Some(16));
}

#[test]
fn what_is_not_reached_has_no_rule() {
    // ret; push %rbx; ret
    let at = of(&[0xc3, 0x53, 0xc3]);
    assert_eq!((at(0).kind, at(1).kind, at(2).kind), (kind::REGISTER, kind::NO_CFI, kind::NO_CFI));
}

#[test]
fn nothing_is_known_where_two_ways_disagree() {
    // test %edi,%edi; jne +1; push %rax; nop; ret
    let at = of(&[0x85, 0xff, 0x75, 0x01, 0x50, 0x90, 0xc3]);
    assert_eq!((height(at(4)), at(5).kind), (Some(8), kind::NO_CFI));
}

#[test]
fn a_call_to_a_function_that_never_returns_is_not_followed() {
    // push %rbx; call f; nop; f: jmp f. With f: ret, it is.
    let forever = of(&[0x53, 0xe8, 1, 0, 0, 0, 0x90, 0xeb, 0xfe]);
    assert_eq!((height(forever(1)), forever(6).kind), (Some(16), kind::NO_CFI));
    let returns = of(&[0x53, 0xe8, 1, 0, 0, 0, 0x90, 0xc3]);
    assert_eq!((height(returns(6)), returns(7).kind), (Some(16), kind::NO_CFI), "it runs into f");
    let returns = of(&[0x53, 0xe8, 2, 0, 0, 0, 0x5b, 0xc3, 0xc3]);
    assert_eq!(height(returns(6)), Some(16));
}

#[test]
fn a_call_before_padding_is_taken_as_the_last_of_its_function() {
    // sub $8,%rsp; call *%rax; nop up to 16; ret
    let mut code = vec![0x48, 0x83, 0xec, 0x08, 0xff, 0xd0];
    code.resize(16, 0x90);
    code.push(0xc3);
    let at = of(&code);
    assert_eq!((height(at(4)), at(6).kind, at(16).kind), (Some(16), kind::NO_CFI, kind::NO_CFI));
}

#[test]
fn the_cases_of_a_jump_table_have_the_frame_of_the_jump() {
    // push %rbx; jmp *%rax; pop %rbx; ret
    let at = of(&[0x53, 0xff, 0xe0, 0x5b, 0xc3]);
    assert_eq!((height(at(3)), height(at(4))), (Some(16), Some(8)));
}

#[test]
fn where_a_program_begins_and_where_rbp_is_cleared_a_stack_ends() {
    // call *%rax; hlt
    let at = of_program(&[0xff, 0xd0, 0xf4], &[], START);
    assert_eq!(at(1).kind, kind::OUTERMOST);
    // xor %ebp,%ebp; call *%rax; hlt
    let at = of(&[0x31, 0xed, 0xff, 0xd0, 0xf4]);
    assert_eq!((height(at(0)), at(3).kind), (Some(8), kind::OUTERMOST));
}

#[test]
fn a_register_that_is_overwritten_unsaved_ends_what_is_known() {
    // mov %edi,%ebx; nop; ret
    let at = of(&[0x89, 0xfb, 0x90, 0xc3]);
    assert_eq!(at(2).kind, kind::NO_CFI);
}

#[test]
fn a_function_whose_address_is_taken_is_an_entry() {
    // lea 1(%rip),%rax; ret; ret
    let at = of(&[0x48, 0x8d, 0x05, 1, 0, 0, 0, 0xc3, 0xc3]);
    assert_eq!(height(at(8)), Some(8));
}
