//! The suppressions that a program brings for LeakSanitizer: the text that its function `__lsan_default_suppressions`
//! returns. Nothing of the program is run: where the function does nothing but return the address of a constant, the
//! constant is read from the file; of any other function nothing is known. What is in the text is hostile.
use std::fs::File;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::{
    elf::{
        ElfFile,
        symbols::{NameSet, SymbolKind},
    },
    object::ObjectFile,
    process,
};

const NAME: &[u8] = b"__lsan_default_suppressions";
/// Bytes of a function that returns a constant, at the most.
const MAX_CODE_BYTES: u64 = 64;
/// Bytes of the text.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// The text, where the program of a process has one that can be read.
pub fn default_suppressions(pid: u32) -> Option<String> {
    let file = File::open(format!("/proc/{}/exe", process::shown_as(pid))).ok()?;
    in_file(&ObjectFile::of_file(file).ok()?)
}

fn in_file(file: &ObjectFile) -> Option<String> {
    let elf = ElfFile::parse(file).ok()?;
    let mut names = NameSet::default();
    names.insert(NAME);
    let symbols = elf.symbols(&names).ok()?;
    let symbol = symbols.iter().find(|symbol| symbol.kind == SymbolKind::Function)?;
    let code = elf.code(symbol.address, MAX_CODE_BYTES)?;
    let text = elf.read_address(returned_constant(&code, symbol.address)?, MAX_TEXT_BYTES)?;
    let end = text.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(text.get(..end)?).into_owned())
}

/// The constant that a function returns, if it does nothing else.
fn returned_constant(code: &[u8], address: u64) -> Option<u64> {
    let mut constant = None;
    for instruction in &mut Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::Ret => return constant,
            Mnemonic::Lea | Mnemonic::Mov if constant.is_none() && sets_result(&instruction) => {
                constant = Some(constant_of(&instruction)?);
            }
            _ if is_frame(&instruction) => {}
            _ => return None,
        }
    }
    None
}

fn sets_result(instruction: &Instruction) -> bool {
    matches!(instruction.op0_register(), Register::RAX | Register::EAX)
}

fn constant_of(instruction: &Instruction) -> Option<u64> {
    match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Lea, OpKind::Memory) if instruction.is_ip_rel_memory_operand() => {
            Some(instruction.ip_rel_memory_address())
        }
        (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64) => {
            Some(instruction.immediate(1))
        }
        _ => None,
    }
}

/// Whether the instruction only makes or leaves a frame, or marks where calls may lead.
fn is_frame(instruction: &Instruction) -> bool {
    let moves_frame =
        instruction.op0_register() == Register::RBP && instruction.op1_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Endbr64 | Mnemonic::Leave | Mnemonic::Nop => true,
        Mnemonic::Push | Mnemonic::Pop => instruction.op0_register() == Register::RBP,
        Mnemonic::Mov => instruction.code() != Code::INVALID && moves_frame,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::Path, process::Command};

    const PROGRAM: &str = "char *getenv(const char *); int getpid(void); const char *text = \"leak:a\";\n\
        const char *__lsan_default_suppressions(void) { return BODY; } int main(void) { return 0; }";
    const TEXT: &str = "leak:known\\nleak:other\\n";

    fn read(folder: &Path, body: &str, options: &[&str]) -> Option<String> {
        let (source, program) = (folder.join("p.c"), folder.join("p"));
        std::fs::write(&source, PROGRAM.replace("BODY", body)).unwrap();
        let mut command = Command::new("gcc");
        let compiled = command.args(options).arg("-o").arg(&program).arg(&source).status();
        assert!(compiled.expect("gcc is needed by this test").success());
        in_file(&ObjectFile::of_file(File::open(&program).unwrap()).unwrap())
    }

    #[test]
    fn a_function_that_returns_a_constant_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let body = format!("\"{TEXT}\"");
        for options in [
            &["-O2"][..],
            &["-O0"],
            &["-O2", "-fcf-protection=full"],
            &["-O0", "-fno-pie", "-no-pie"],
            &["-O1", "-static"],
            &["-O1", "-rdynamic", "-s"],
        ] {
            let text = read(folder.path(), &body, options);
            assert_eq!(text.as_deref(), Some("leak:known\nleak:other\n"), "{options:?}");
        }
    }

    #[test]
    fn of_a_function_that_does_more_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        for body in ["getenv(\"A\")", "text", "getpid() ? \"a\" : \"b\""] {
            assert_eq!(read(folder.path(), body, &["-O1"]), None, "{body}");
        }
        assert_eq!(read(folder.path(), "\"leak:a\"", &["-O1", "-s"]), None, "it has no name any more");
        assert_eq!(returned_constant(&[], 0), None);
        assert_eq!(returned_constant(&[0x90; 64], 0), None);
    }
}
