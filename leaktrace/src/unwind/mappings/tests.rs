use super::*;
use proptest::prelude::*;

fn region(start: u64, end: u64, file: u32) -> Region<u32> {
    Region { start, end, file_offset: 0, file }
}

fn shape(regions: &Regions<u32>) -> Vec<(u64, u64, u64, u32)> {
    regions.iter().map(|r| (r.start, r.end, r.file_offset, r.file)).collect()
}

fn table(first_page: u32) -> Placement {
    Placement::Table { load_bias: 0x1000, placed: Placed { first_page, pages: 3, base_address: 0x10000 } }
}

#[test]
fn a_region_in_the_middle_splits_the_older_one_and_keeps_its_file_offsets() {
    let mut regions = Regions::default();
    regions.insert(region(0x1000, 0x9000, 1));
    regions.insert(region(0x3000, 0x5000, 2));
    assert_eq!(
        shape(&regions),
        [(0x1000, 0x3000, 0, 1), (0x3000, 0x5000, 0, 2), (0x5000, 0x9000, 0x4000, 1)]
    );
}

#[test]
fn the_newest_region_swallows_all_that_it_covers() {
    let mut regions = Regions::default();
    for file in 0..4 {
        regions.insert(region(0x1000 * u64::from(file), 0x1000 * u64::from(file + 1), file));
    }
    regions.insert(region(0x800, 0x3800, 9));
    assert_eq!(shape(&regions), [(0, 0x800, 0, 0), (0x800, 0x3800, 0, 9), (0x3800, 0x4000, 0x800, 3)]);
}

#[test]
fn an_empty_or_inverted_region_changes_nothing() {
    let mut regions = Regions::default();
    regions.insert(region(0x1000, 0x2000, 1));
    regions.insert(region(0x1800, 0x1800, 2));
    regions.insert(region(0x1900, 0x1100, 2));
    assert_eq!(shape(&regions), [(0x1000, 0x2000, 0, 1)]);
}

#[test]
fn neighbours_with_the_same_table_and_bias_become_one_mapping() {
    let mut regions = Regions::default();
    regions.insert(region(0x1000, 0x2000, 1));
    regions.insert(region(0x2000, 0x3000, 1));
    regions.insert(region(0x3000, 0x4000, 2));
    let layout = regions.layout(|region| (table(region.file), 0));
    let ranges: Vec<_> = layout.mappings.iter().map(|m| (m.start, m.end, m.bias, m.first_page)).collect();
    assert_eq!(ranges, [(0x1000, 0x3000, 0x11000, 1), (0x3000, 0x4000, 0x11000, 2)]);
}

#[test]
fn a_file_without_unwind_information_is_guessed_in() {
    let placed = Placed { first_page: 0, pages: 0, base_address: 0 };
    let mapping = Placement::Table { load_bias: 5, placed }.mapping(1, 2, 0);
    assert_eq!((mapping.first_page, mapping.pages), (GUESS_TABLE, 0));
}

#[test]
fn too_many_mappings_keep_those_with_tables_in_order_and_count_the_rest() {
    let mut regions = Regions::default();
    for number in 0..MAX_MAPPINGS as u64 + 100 {
        regions.insert(region(0x2000 * number, 0x2000 * number + 0x1000, number as u32));
    }
    let layout = regions.layout(|r| (if r.file % 2 == 0 { table(r.file) } else { Placement::Missing }, 0));
    assert_eq!(layout.left_out, 100);
    assert_eq!(layout.mappings.len(), MAX_MAPPINGS);
    assert_eq!(layout.mappings.iter().filter(|m| m.first_page != NO_TABLE).count(), (MAX_MAPPINGS + 100) / 2);
    assert!(layout.mappings.is_sorted_by_key(|m| m.start));
}

proptest! {
    /// Against a model that colours each page.
    #[test]
    fn the_newest_always_wins(changes in prop::collection::vec((0u64..40, 0u64..40, prop::option::of(1u32..9)), 0..60)) {
        let mut regions = Regions::default();
        let mut model = [None; 80];
        for (start, length, file) in changes {
            match file {
                Some(file) => regions.insert(Region { start, end: start + length, file_offset: start, file }),
                None => regions.remove(start, start + length),
            }
            for place in model.iter_mut().skip(start as usize).take(length as usize) {
                *place = file;
            }
        }
        let mut seen = [None; 80];
        for region in regions.iter() {
            prop_assert!(region.start < region.end);
            prop_assert_eq!(region.file_offset, region.start);
            for place in &mut seen[region.start as usize..region.end as usize] {
                prop_assert!(place.replace(region.file).is_none());
            }
        }
        prop_assert_eq!(seen, model);
    }
}
