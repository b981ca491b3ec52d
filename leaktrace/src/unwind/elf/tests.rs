use super::*;
use crate::unwind::fixture::{Cfi, Fixture, TEXT};
use std::{fs::File, io::Write};

fn segment(address: u64, file_offset: u64, file_bytes: u64, executable: bool) -> Segment {
    Segment { address, file_bytes, file_offset, executable }
}

fn with(segments: Vec<Segment>) -> Elf {
    Elf { segments, ..Elf::default() }
}

#[test]
fn the_bias_of_a_file_as_gnu_ld_lays_it_out() {
    let elf = with(vec![segment(0, 0, 0x25388, false), segment(0x26000, 0x26000, 0x155_0fc, true)]);
    assert_eq!(elf.bias(0x7f00_0002_6000, 0x26000), Some(0x7f00_0000_0000));
    assert_eq!(elf.bias(0x7f00_0002_8000, 0x28000), Some(0x7f00_0000_0000), "split by mprotect");
}

#[test]
fn the_bias_of_a_file_as_lld_lays_it_out_is_that_of_the_executable_segment() {
    // The page at 0x1000 of the file belongs to both; each is mapped at its own address.
    let elf = with(vec![segment(0, 0, 0x1c00, false), segment(0x2c00, 0x1c00, 0x800, true)]);
    assert_eq!(elf.bias(0x5555_5555_6000, 0x1000), Some(0x5555_5555_6000 - 0x2000));
}

#[test]
fn the_bias_of_a_program_that_is_not_relocated_is_zero() {
    let elf = with(vec![segment(0x40_0000, 0, 0x800, false), segment(0x40_1000, 0x1000, 0x500, true)]);
    assert_eq!(elf.bias(0x40_1000, 0x1000), Some(0));
}

#[test]
fn a_mapping_that_belongs_to_no_segment_has_no_bias() {
    let elf = with(vec![segment(0, 0, 0x1000, true)]);
    assert_eq!(elf.bias(0x7000, 0x9000), None);
}

#[test]
fn only_x86_64_files_are_read() {
    let file = Fixture::new(&Cfi::new(false)).bytes();
    assert!(Elf::read(&Source::Bytes(&file)).is_ok());
    let read = |bytes: &[u8]| Elf::read(&Source::Bytes(bytes)).map(|_| ());
    assert!(matches!(read(b"#!/bin/sh"), Err(ElfError::NotElf)));
    assert!(matches!(read(&[0; 64]), Err(ElfError::NotElf)));
    let mut arm = file.clone();
    arm[18] = 183;
    assert!(matches!(read(&arm), Err(ElfError::OtherMachine)));
    let mut narrow = file;
    narrow[4] = 1;
    assert!(matches!(read(&narrow), Err(ElfError::OtherMachine)));
}

#[test]
fn bytes_in_memory_and_in_a_file_read_alike() {
    let bytes = Fixture::new(&Cfi::new(false)).bytes();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let from_file = Elf::read(&Source::File(&file)).unwrap();
    let from_bytes = Elf::read(&Source::Bytes(&bytes)).unwrap();
    assert_eq!(from_file.eh_frame, from_bytes.eh_frame);
    assert_eq!(from_file.segments, from_bytes.segments);
    assert_eq!(from_bytes.segments[0].address, TEXT);
}

#[test]
fn a_length_beyond_the_file_is_refused_before_memory_is_taken() {
    let file = File::open("/proc/self/exe").unwrap();
    for source in [Source::File(&file), Source::Bytes(&[1, 2, 3])] {
        assert!(source.read(0, u64::MAX).is_err());
        assert!(source.read(u64::MAX, 2).is_err());
        assert!(source.read(1 << 40, 1).is_err());
    }
}

#[test]
fn the_build_id_is_found_behind_other_notes() {
    let note = |kind: u32, name: &[u8], id: &[u8]| {
        let mut note = [name.len() as u32, id.len() as u32, kind].map(u32::to_le_bytes).concat();
        for part in [name, id] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    };
    let notes =
        [note(5, b"GNU\0", &[9; 16]), note(3, b"Go\0", &[8; 3]), note(3, b"GNU\0", &[7; 20])].concat();
    let read = |notes: &[u8]| {
        let mut elf = Elf::default();
        elf.add_notes(notes);
        (elf.build_id, elf.is_go)
    };
    assert_eq!(read(&notes), (vec![7; 20], false));
    assert_eq!(read(&notes[..notes.len() - 1]), (Vec::new(), false));
    assert_eq!(read(&[0xff; 40]), (Vec::new(), false));
    assert_eq!(read(&[note(4, b"Go\0", &[8; 83]), notes].concat()), (vec![7; 20], true));
}
