//! A snapshot without the addresses of its processes, for those who may see what leaks and not where a process has its
//! memory: that would help to attack it. Files keep their order, and places in them what they are.
use std::collections::HashMap;

use super::snapshot::{Frame, Snapshot, TargetView};

/// Each file has as much room as an address space.
const ROOM_BITS: u32 = 47;

impl Snapshot {
    /// Puts each file of a process at an address of its own that depends on nothing but the snapshot.
    pub fn relocate(&mut self) {
        self.targets.iter_mut().for_each(TargetView::relocate);
    }
}

impl TargetView {
    fn relocate(&mut self) {
        let mut files: HashMap<(String, u64), u64> = HashMap::new();
        let mut others: HashMap<u64, u64> = HashMap::new();
        for site in &mut self.sites {
            site.frames = site.frames.iter().map(|frame| relocated(frame, &mut files, &mut others)).collect();
            for (index, block) in site.blocks.iter_mut().enumerate() {
                block.address = index as u64;
            }
        }
    }
}

fn relocated(
    frame: &Frame,
    files: &mut HashMap<(String, u64), u64>,
    others: &mut HashMap<u64, u64>,
) -> Frame {
    let address = match (&frame.module, frame.module_offset) {
        (Some(module), Some(offset)) => {
            // A file that lies there twice stays two.
            let bias = frame.address.wrapping_sub(offset);
            let next = files.len() as u64 + 1;
            let number = *files.entry((module.clone(), bias)).or_insert(next);
            (number << ROOM_BITS).wrapping_add(offset)
        }
        _ => {
            let next = others.len() as u64 + 1;
            *others.entry(frame.address).or_insert(next)
        }
    };
    Frame { address, ..frame.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::{BlockView, SiteView};

    fn frame(address: u64, module: Option<(&str, u64)>) -> Frame {
        Frame {
            address,
            module: module.map(|(module, _)| module.to_owned()),
            module_offset: module.map(|(_, offset)| offset),
            ..Frame::default()
        }
    }

    fn relocated(bias: u64) -> Snapshot {
        let frames: std::sync::Arc<[Frame]> = vec![
            frame(bias + 0x10, Some(("/lib/a", 0x10))),
            frame(bias + 0x20, Some(("/lib/a", 0x20))),
            frame(2 * bias + 0x10, Some(("/lib/b", 0x10))),
            frame(3 * bias + 0x10, Some(("/lib/a", 0x10))),
            frame(4 * bias + 1, None),
            frame(4 * bias + 2, None),
        ]
        .into();
        let blocks = vec![BlockView { address: 7 * bias, size_bytes: 5, age_ns: 1 }];
        let site = SiteView { frames, blocks, ..SiteView::default() };
        let target = TargetView { sites: vec![site], ..TargetView::default() };
        let mut snapshot = Snapshot { targets: vec![target], ..Snapshot::default() };
        snapshot.relocate();
        snapshot
    }

    #[test]
    fn what_is_left_does_not_depend_on_where_the_process_lies() {
        let snapshot = relocated(0x7f12_3456_7000);
        assert_eq!(snapshot, relocated(0x7e00_0000_1000));
        let frames = &snapshot.targets[0].sites[0].frames;
        let addresses: Vec<u64> = frames.iter().map(|frame| frame.address).collect();
        assert_eq!(addresses[1] - addresses[0], 0x10, "places in a file stay what they are");
        let mut different = addresses.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), addresses.len());
        assert!(frames.iter().take(4).all(|frame| frame.address & 0xfff == frame.module_offset.unwrap()));
    }
}
