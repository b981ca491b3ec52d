//! The property that everything rests on: at every call in the libraries that every program has, a step by the
//! tables leads where the call frame information itself leads, evaluated by gimli.
use std::{fs, path::PathBuf, process::Command};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, Encoding, EndianSlice, EvaluationResult, Format, LittleEndian,
    Location, Register, RegisterRule, UnwindContext, UnwindSection, UnwindTableRow, Value,
};
use iced_x86::{Decoder, DecoderOptions};
use leaktrace_common::unwind::{Mapping, Stop, kind};
use object::{Object, ObjectSection};

use super::{
    contents::Contents,
    elf::Elf,
    live,
    source::Source,
    store::{Capacity, Store},
    table::{Options, Table},
    walk,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

const BIAS: u64 = 0x5555_0000_0000;
const RSP: u64 = 0x7ffe_0000_0000;
const RBP: u64 = RSP + 0x10_0000;
const RBX: u64 = RSP + 0x20_0000;

/// Memory in which every word is different, and above the stack.
fn memory(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 0x8000_0000_0000_0000
}

fn register(number: Register, address: u64) -> u64 {
    match number.0 {
        3 => RBX,
        6 => RBP,
        7 => RSP,
        16 => address,
        other => panic!("register {other}"),
    }
}

/// Evaluates an expression on the made-up registers and memory.
fn evaluate(expression: gimli::Expression<Slice<'_>>, address: u64, initial: Option<u64>) -> u64 {
    let encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut state = evaluation.evaluate().unwrap();
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register: number, .. } => {
                evaluation.resume_with_register(Value::Generic(register(number, address))).unwrap()
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                evaluation.resume_with_memory(Value::Generic(memory(address))).unwrap()
            }
            other => panic!("{other:?}"),
        };
    }
    match evaluation.as_result() {
        [piece] => match piece.location {
            Location::Address { address } => address,
            ref other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The caller's registers by the call frame information: return address, rsp, rbp, rbx; `None` at the outermost.
fn by_gimli(row: &UnwindTableRow<usize>, section: &EhFrame<Slice<'_>>, address: u64) -> Option<[u64; 4]> {
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: number, offset } => {
            register(*number, address).wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => evaluate(expression.get(section).unwrap(), address, None),
    };
    let value = |number: u16, unchanged: u64| match row.register(Register(number)) {
        None | Some(RegisterRule::SameValue) => Some(unchanged),
        Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add_signed(offset))),
        Some(RegisterRule::Expression(expression)) => {
            Some(memory(evaluate(expression.get(section).unwrap(), address, Some(cfa))))
        }
        Some(RegisterRule::Undefined) => None,
        Some(other) => panic!("{other:?}"),
    };
    Some([value(16, 0)?, cfa, value(6, RBP)?, value(3, RBX)?])
}

/// The rows at the return addresses of all calls, by linear decoding from the start of each function.
fn for_each_call(data: &[u8], mut check: impl FnMut(u64, &UnwindTableRow<usize>, &EhFrame<Slice<'_>>)) {
    let object = object::File::parse(data).unwrap();
    let address = |name| object.section_by_name(name).map_or(0, |section| section.address());
    let bases = BaseAddresses::default()
        .set_eh_frame(address(".eh_frame"))
        .set_text(address(".text"))
        .set_got(address(".got"));
    let Some(found) = object.section_by_name(".eh_frame") else { return };
    let bytes = found.data().unwrap();
    let mut section = EhFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    let mut context = UnwindContext::new();
    let mut entries = section.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        let code = object
            .sections()
            .filter_map(|section| section.data_range(fde.initial_address(), fde.len()).ok().flatten())
            .next()
            .unwrap_or_default();
        let decoder = Decoder::with_ip(64, code, fde.initial_address(), DecoderOptions::NONE);
        for instruction in decoder {
            if instruction.is_call_near() || instruction.is_call_near_indirect() {
                let address = instruction.next_ip() - 1;
                let row = fde.unwind_info_for_address(&section, &bases, &mut context, address).unwrap();
                check(address, row, &section);
            }
        }
    }
}

/// Compares every call of a file, and gives how many there are and at how many the walk stops as unsupported.
fn compare(path: &PathBuf, options: &Options) -> (usize, usize) {
    let data = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table = Table::read(Source::Bytes(&data), options).unwrap();
    let mut store = Store::new(Capacity::for_bytes(8 << 20));
    let mut contents = Contents::default();
    store.initial_writes().iter().for_each(|write| contents.apply(write));
    let added = store.add((), &table);
    added.writes.iter().for_each(|write| contents.apply(write));
    let placed = added.placed.unwrap();
    let mapping = Mapping {
        start: BIAS,
        end: BIAS + (1 << 32),
        bias: BIAS + placed.base_address,
        first_page: placed.first_page,
        pages: placed.pages as u16,
        salt: 0,
    };
    let (mut calls, mut unsupported) = (0, 0);
    for_each_call(&data, |address, row, section| {
        calls += 1;
        let kind = table.rule_at(address).unwrap().kind;
        assert_ne!(kind, kind::NO_CFI, "{address:#x}");
        if kind == kind::UNSUPPORTED {
            unsupported += 1;
            return;
        }
        let start = walk::Start { ip: BIAS + address + 1, sp: RSP, rbp: RBP, rbx: RBX, is_exact: false };
        let step = walk::one_step(start, &[mapping], &contents, |address| Some(memory(address)));
        match by_gimli(row, section, BIAS + address) {
            Some(expected) => assert_eq!(step, Ok(expected), "{address:#x} {row:?}"),
            None => assert_eq!(step, Err(Stop::Complete), "{address:#x} {row:?}"),
        }
    });
    (calls, unsupported)
}

/// A library of this host, wherever its distribution puts it.
fn library(name: &str) -> PathBuf {
    let folders = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"];
    let paths = folders.map(|folder| PathBuf::from(folder).join(name));
    paths.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{name} is not installed"))
}

#[test]
fn at_every_call_in_the_c_and_cpp_libraries_a_step_leads_where_the_cfi_leads() {
    for (name, least) in [("libc.so.6", 10_000), ("libstdc++.so.6", 10_000), ("ld-linux-x86-64.so.2", 500)] {
        for prune in [false, true] {
            let (calls, unsupported) = compare(&library(name), &Options { prune, ..Options::default() });
            println!("{name}, pruned {prune}: {calls} calls, {unsupported} unsupported");
            assert!(calls > least, "{name}: only {calls} calls");
            assert_eq!(unsupported, 0, "{name}");
        }
    }
}

/// How synthesized rules compare with the CFI at the calls of a file.
#[derive(Debug, Default)]
struct Agreement {
    equal: usize,
    /// No rule, or an unsupported one.
    missing: usize,
    /// Synthesized by rsp where the CFI goes by rbp.
    other_register: usize,
    different: usize,
}

fn agreement(path: &PathBuf) -> Agreement {
    let data = fs::read(path).unwrap();
    let source = Source::Bytes(&data);
    let mut elf = Elf::read(&source).unwrap();
    let by_cfi = Table::build(source, &elf, &Options::default());
    (elf.eh_frame, elf.eh_frame_header) = (None, None);
    let by_code = Table::build(source, &elf, &Options::default());
    let mut agreement = Agreement::default();
    for_each_call(&data, |address, _, _| {
        let cfi = *by_cfi.rule_at(address).unwrap();
        let count = match by_code.rule_at(address) {
            Some(rule) if *rule == cfi => &mut agreement.equal,
            None => &mut agreement.missing,
            Some(rule) if matches!(rule.kind, kind::NO_CFI | kind::UNSUPPORTED) => &mut agreement.missing,
            Some(rule) if cfi.kind == kind::REGISTER && rule.cfa_register != cfi.cfa_register => {
                &mut agreement.other_register
            }
            Some(rule) => {
                println!("{address:#x}: {rule:?}, by CFI {cfi:?}");
                &mut agreement.different
            }
        };
        *count += 1;
    });
    agreement
}

#[test]
fn rows_synthesized_from_code_agree_with_the_cfi_where_there_is_one() {
    for name in ["libc.so.6", "ld-linux-x86-64.so.2"] {
        let agreement = agreement(&library(name));
        println!("{name}: {agreement:?}");
        assert_eq!(agreement.different, 0, "{name}");
        assert!(agreement.missing < agreement.equal / 2, "{name}: {agreement:?}");
    }
}

#[test]
#[ignore = "takes long: name files in LEAKTRACE_UNWIND_FILES, separated by colons"]
fn at_every_call_in_other_files_a_step_leads_where_the_cfi_leads() {
    for path in std::env::var("LEAKTRACE_UNWIND_FILES").unwrap().split(':') {
        let (calls, unsupported) = compare(&path.into(), &Options::default());
        println!("{path}: {calls} calls, {unsupported} unsupported");
    }
}

/// Needs musl-gcc, and the right to trace.
#[test]
fn a_program_of_musl_is_walked_through_its_c_library_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("program.c"), folder.path().join("program"));
    let text = "#include <stdlib.h>\n#include <unistd.h>\n\
        static int compare(const void *a, const void *b) { for (;;) pause(); }\n\
        int main(void) { int a[] = {3, 1, 2}; qsort(a, 3, sizeof *a, compare); return a[0]; }\n";
    fs::write(&source, text).unwrap();
    for link in ["-pie", "-static"] {
        let mut compiler = Command::new("musl-gcc");
        compiler.args(["-O2", "-fomit-frame-pointer", link, "-o"]).arg(&program).arg(&source);
        assert!(compiler.status().expect("musl-gcc, of the package musl-tools").success());
        let mut child = Command::new(&program).spawn().unwrap();
        let stack = live::stack_of_sleeping(&child);
        child.kill().unwrap();
        child.wait().unwrap();
        println!("{link}: {stack:x?}");
        assert_eq!(stack.stop, Stop::Complete, "{link}");
        assert!(stack.frames.len() >= 7, "{link}");
    }
}
