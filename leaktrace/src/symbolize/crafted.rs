//! Debug information that is made to hurt its readers. Used by the tests of this crate and by the end-to-end tests.

/// Sections by name, to be put into a program by objcopy.
pub(super) type Sections = Vec<(&'static str, Vec<u8>)>;

/// Units whose abbreviations are parsed again for each: every unit begins its table at another place in one of
/// `abbreviations` entries.
pub(super) fn many_units(units: u32, abbreviations: u32) -> Sections {
    let mut table = Vec::new();
    for code in 1..=abbreviations {
        uleb(&mut table, code);
        // A compile unit without children or attributes.
        table.extend([0x11, 0, 0, 0]);
    }
    table.push(0);
    let mut info = Vec::new();
    for unit in 0..units {
        let body = [&[4, 0][..], &(unit % 64 * 5).to_le_bytes(), &[8, 1]].concat();
        info.extend((body.len() as u32).to_le_bytes());
        info.extend(body);
    }
    vec![(".debug_abbrev", table), (".debug_info", info), (".debug_aranges", Vec::new())]
}

/// A unit over `bytes` of code from `address` on, whose line program names a file that its table does not have.
pub(super) fn file_that_is_not_there(address: u64, bytes: u64) -> Sections {
    // A compile unit: where its lines are (sec_offset), where its code begins (addr) and how long it is (data8).
    let table = vec![1, 0x11, 0, 0x10, 0x17, 0x11, 0x01, 0x12, 0x07, 0, 0, 0];
    let unit =
        [&[4, 0, 0, 0, 0, 0, 8, 1][..], &0_u32.to_le_bytes(), &address.to_le_bytes(), &bytes.to_le_bytes()]
            .concat();
    let info = [&(unit.len() as u32).to_le_bytes()[..], &unit].concat();
    // Minimum length, most operations, is_stmt, line base, line range, opcode base, lengths; no directory; one file.
    let mut header = vec![1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0];
    header.extend(b"a.c\0\0\0\0\0");
    let mut program = vec![4, 0xc8, 1, 0, 9, 2];
    program.extend(address.to_le_bytes());
    // Copy; then the end of the sequence behind the code.
    program.push(1);
    program.push(2);
    uleb(&mut program, bytes as u32);
    program.extend([0, 1, 1]);
    let mut line = [&[4, 0][..], &(header.len() as u32).to_le_bytes(), &header, &program].concat();
    line.splice(0..0, (line.len() as u32).to_le_bytes());
    vec![
        (".debug_abbrev", table),
        (".debug_info", info),
        (".debug_line", line),
        (".debug_aranges", Vec::new()),
    ]
}

fn uleb(out: &mut Vec<u8>, mut value: u32) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
