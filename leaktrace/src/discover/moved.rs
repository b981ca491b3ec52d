//! Code that a program has moved to anonymous memory, mostly for larger pages: it lies where its file had put it, so
//! what it is called and how its stacks are walked is known from the file. Where that was follows from the file's
//! other segments, which are still mapped beside it.
use std::collections::HashMap;

use super::{
    elf::{ElfFile, Segment},
    maps::MapEntry,
    memory::page_bytes,
    object::ObjectFile,
};

/// Files that are opened for this, for each look at a process.
const MAX_FILES: usize = 16;

/// The mappings, with code in anonymous memory that takes the place of a file's text as that file's.
pub fn restored(pid: u32, mut entries: Vec<MapEntry>) -> Vec<MapEntry> {
    let page_bytes = page_bytes();
    let mut known: HashMap<(u64, Vec<u8>), Vec<Segment>> = HashMap::new();
    for index in 0..entries.len() {
        let Some((entry, neighbour)) = beside_file(&entries, index) else { continue };
        let key = (neighbour.inode, neighbour.path.clone());
        if !known.contains_key(&key) && known.len() >= MAX_FILES {
            break;
        }
        let segments = known.entry(key).or_insert_with(|| segments(pid, neighbour));
        let Some(offset) = text_offset(segments, neighbour, entry, page_bytes) else { continue };
        let MapEntry { start, end, readable, writable, .. } = *entry;
        let moved =
            MapEntry { start, end, readable, writable, executable: true, offset, ..neighbour.clone() };
        if let Some(place) = entries.get_mut(index) {
            *place = moved;
        }
    }
    entries
}

/// An anonymous executable mapping, and the mapping of a file right before it.
fn beside_file(entries: &[MapEntry], index: usize) -> Option<(&MapEntry, &MapEntry)> {
    let entry = entries.get(index)?;
    let before = entries.get(index.checked_sub(1)?)?;
    let is_anonymous =
        entry.executable && entry.inode == 0 && (entry.path.is_empty() || entry.path.starts_with(b"[anon"));
    (is_anonymous && before.is_file() && before.end == entry.start).then_some((entry, before))
}

fn segments(pid: u32, entry: &MapEntry) -> Vec<Segment> {
    let Ok(file) = ObjectFile::of_mapping(pid, entry) else { return Vec::new() };
    ElfFile::parse(&file).map(|elf| elf.segments).unwrap_or_default()
}

/// Where in the file a mapping's bytes were, if all of it lies where the file's code belongs. `neighbour` is another
/// mapping of the file and says where the file lies.
fn text_offset(segments: &[Segment], neighbour: &MapEntry, entry: &MapEntry, page_bytes: u64) -> Option<u64> {
    let page = |address: u64| address & !(page_bytes - 1);
    let holds = |segment: &&Segment| {
        segment.executable == neighbour.executable
            && page(segment.offset) <= neighbour.offset
            && neighbour.offset < segment.offset.saturating_add(segment.file_bytes)
    };
    let beside = segments.iter().find(holds)?;
    let linked = beside.address.wrapping_add(neighbour.offset.wrapping_sub(beside.offset));
    let bias = neighbour.start.wrapping_sub(linked);
    let is_text = |segment: &&Segment| {
        let start = segment.address.wrapping_add(bias);
        let end = start.saturating_add(segment.file_bytes);
        segment.executable
            && page(start) <= entry.start
            && entry.end <= page(end.saturating_add(page_bytes - 1))
    };
    let text = segments.iter().find(is_text)?;
    Some(text.offset.wrapping_add(entry.start.wrapping_sub(text.address.wrapping_add(bias))))
}

#[cfg(test)]
mod tests {
    use super::{super::maps::parse, *};

    fn segment(offset: u64, address: u64, file_bytes: u64, executable: bool) -> Segment {
        Segment { offset, address, file_bytes, executable }
    }

    fn offset(segments: &[Segment], text: &str) -> Option<u64> {
        let entries = parse(text.as_bytes());
        let (entry, neighbour) = beside_file(&entries, 1)?;
        text_offset(segments, neighbour, entry, 4096)
    }

    const GNU: [Segment; 3] = [
        Segment { offset: 0, address: 0, file_bytes: 0x7f0, executable: false },
        Segment { offset: 0x1000, address: 0x1000, file_bytes: 0x2345, executable: true },
        Segment { offset: 0x4000, address: 0x4000, file_bytes: 0x100, executable: false },
    ];

    #[test]
    fn code_where_the_text_of_a_file_was_is_that_text() {
        let moved = "5000-6000 r--p 00000000 08:01 7 /bin/shop\n6000-9000 r-xp 00000000 00:00 0\n";
        assert_eq!(offset(&GNU, moved), Some(0x1000));
        // LLD links text at other addresses than its offsets, and not at the start of a page.
        let lld = [segment(0, 0, 0x6b0, false), segment(0x6b0, 0x16b0, 0x500, true)];
        let moved = "5000-6000 r--p 00000000 08:01 7 /bin/shop\n6000-7000 r-xp 00000000 00:00 0\n";
        assert_eq!(offset(&lld, moved), Some(0));
        // The part of it that fills large pages.
        let part = "6000-7000 r-xp 00001000 08:01 7 /bin/shop\n7000-8000 rwxp 00000000 00:00 0 [anon:huge]\n";
        assert_eq!(offset(&GNU, part), Some(0x2000));
    }

    #[test]
    fn other_code_is_not() {
        for text in [
            // Larger than the text; behind the data; not right behind; a file.
            "5000-6000 r--p 00000000 08:01 7 /bin/shop\n6000-a000 r-xp 00000000 00:00 0\n",
            "9000-a000 rw-p 00004000 08:01 7 /bin/shop\na000-b000 r-xp 00000000 00:00 0\n",
            "5000-5800 r--p 00000000 08:01 7 /bin/shop\n6000-7000 r-xp 00000000 00:00 0\n",
            "5000-6000 r--p 00000000 08:01 7 /bin/shop\n6000-7000 r-xp 00001000 08:01 7 /bin/shop\n",
            "5000-6000 r--p 00000000 08:01 7 /bin/shop\n6000-7000 rw-p 00000000 00:00 0\n",
        ] {
            assert_eq!(offset(&GNU, text), None, "{text}");
        }
        assert_eq!(offset(&[], "5000-6000 r--p 0 08:01 7 /bin/shop\n6000-7000 r-xp 0 00:00 0\n"), None);
    }

    #[test]
    fn mappings_without_moved_code_stay_as_they_are() {
        let entries = super::super::maps::read(std::process::id()).unwrap();
        assert_eq!(restored(std::process::id(), entries.clone()), entries);
    }
}
