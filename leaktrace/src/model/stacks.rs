//! Interned call stacks: which frames a stack hash stands for, each address kept once.
//!
//! Finding the frames of an address is left to `symbolize`; it happens once, when an address is first seen,
//! because the process may be gone later.
use std::{collections::HashMap, sync::Arc};

use leaktrace_common::heap::{NO_STACK, SiteKey};

use super::{
    site_id::{SiteId, site_id, unknown_site_id},
    snapshot::{Frame, SiteKind},
};

/// A process image: a pid and how often it has exec'ed since tracing began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    /// The process.
    pub tgid: u32,
    /// Which of its images.
    pub generation: u32,
}

impl From<SiteKey> for ImageKey {
    fn from(key: SiteKey) -> ImageKey {
        ImageKey { tgid: key.tgid, generation: key.generation }
    }
}

#[derive(Debug)]
struct Stack {
    frames: Box<[Arc<[Frame]>]>,
    end: &'static str,
    heap_id: SiteId,
    mapping_id: SiteId,
}

/// What is known about one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackView {
    /// See [`super::site_id`].
    pub id: SiteId,
    /// Why it ends where it does; `not_recorded` where its frames never arrived, `none` where none were taken.
    pub end: &'static str,
}

#[derive(Debug, Default)]
struct Image {
    version: u64,
    addresses: HashMap<u64, Arc<[Frame]>>,
    stacks: HashMap<u64, Stack>,
}

/// The stacks of all traced process images.
#[derive(Debug, Default)]
pub struct Stacks {
    images: HashMap<ImageKey, Image>,
}

impl Stacks {
    /// Whether the frames of a stack are known.
    pub fn contains(&self, image: ImageKey, stack: u64) -> bool {
        self.images.get(&image).is_some_and(|image| image.stacks.contains_key(&stack))
    }

    /// Interns a stack. `addresses` run from the innermost frame outwards; `resolve` is asked for each address of
    /// this image that was not seen before and gives its frames, inlined ones first. `end` is
    /// [`leaktrace_common::unwind::Stop::name`]. A hash that is known already keeps its frames.
    pub fn insert(
        &mut self,
        image: ImageKey,
        stack: u64,
        addresses: &[u64],
        end: &'static str,
        mut resolve: impl FnMut(u64) -> Vec<Frame>,
    ) {
        let image = self.images.entry(image).or_default();
        if image.stacks.contains_key(&stack) {
            return;
        }
        let known = &mut image.addresses;
        let frames: Box<[Arc<[Frame]>]> = addresses
            .iter()
            .map(|address| known.entry(*address).or_insert_with(|| resolve(*address).into()).clone())
            .collect();
        let all = || frames.iter().flat_map(|group| group.iter());
        let heap_id = site_id(SiteKind::Heap, all());
        let mapping_id = site_id(SiteKind::Mapping, all());
        image.stacks.insert(stack, Stack { frames, end, heap_id, mapping_id });
        image.version += 1;
    }

    /// Drops a stack that was known only in part, for a longer one under the same hash.
    pub fn drop_stack(&mut self, image: ImageKey, stack: u64) {
        if let Some(known) = self.images.get_mut(&image) {
            known.stacks.remove(&stack);
            known.version += 1;
        }
    }

    /// Forgets what a process image's addresses mean but keeps its stacks: after a library was unloaded, its
    /// addresses may come to mean something else.
    pub fn forget_addresses(&mut self, image: ImageKey) {
        if let Some(image) = self.images.get_mut(&image) {
            image.addresses.clear();
        }
    }

    /// Drops a process image.
    pub fn forget(&mut self, image: ImageKey) {
        self.images.remove(&image);
    }

    /// A number that changes with the stacks that are known of a process image.
    pub fn version(&self, image: ImageKey) -> u64 {
        self.images.get(&image).map_or(0, |image| image.version)
    }

    /// Id and end of a stack.
    pub fn view(&self, image: ImageKey, stack: u64, kind: SiteKind) -> StackView {
        match self.images.get(&image).and_then(|image| image.stacks.get(&stack)) {
            Some(known) => StackView {
                id: if kind == SiteKind::Heap { known.heap_id } else { known.mapping_id },
                end: known.end,
            },
            None => StackView {
                id: unknown_site_id(kind, stack),
                end: if stack == NO_STACK || stack == 0 { "none" } else { "not_recorded" },
            },
        }
    }

    /// The frames of a stack, innermost first; none where it is not known.
    pub fn frames(&self, image: ImageKey, stack: u64) -> Vec<Frame> {
        let known = self.images.get(&image).and_then(|image| image.stacks.get(&stack));
        known.map_or_else(Vec::new, |known| {
            known.frames.iter().flat_map(|group| group.iter().cloned()).collect()
        })
    }

    /// How many stacks are known.
    pub fn len(&self) -> usize {
        self.images.values().map(|image| image.stacks.len()).sum()
    }

    /// Whether no stack is known.
    pub fn is_empty(&self) -> bool {
        self.images.values().all(|image| image.stacks.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageKey = ImageKey { tgid: 1, generation: 0 };

    fn named(address: u64) -> Vec<Frame> {
        vec![Frame { address, function: Some(format!("f{address:x}")), offset: Some(4), ..Frame::default() }]
    }

    #[test]
    fn an_address_is_resolved_once() {
        let mut stacks = Stacks::default();
        let mut asked = Vec::new();
        for (hash, addresses) in [(7, [1, 2]), (8, [3, 2]), (7, [9, 9])] {
            stacks.insert(IMAGE, hash, &addresses, "complete", |address| {
                asked.push(address);
                named(address)
            });
        }
        assert_eq!(asked, [1, 2, 3]);
        assert_eq!(stacks.version(IMAGE), 2, "what was known is not news");
        assert_eq!(stacks.frames(IMAGE, 8)[0].function.as_deref(), Some("f3"));
        assert_eq!(stacks.len(), 2);
    }

    #[test]
    fn a_stack_is_completed_under_its_hash() {
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1, 2], "no_mapping", named);
        let version = stacks.version(IMAGE);
        stacks.drop_stack(IMAGE, 7);
        assert_ne!(stacks.version(IMAGE), version);
        stacks.insert(IMAGE, 7, &[1, 2, 3], "complete", named);
        assert_eq!(stacks.frames(IMAGE, 7).len(), 3);
        assert_eq!(stacks.view(IMAGE, 7, SiteKind::Heap).end, "complete");
    }

    #[test]
    fn two_processes_with_one_hash_do_not_mix() {
        let other = ImageKey { tgid: 2, generation: 0 };
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1], "complete", named);
        stacks.insert(other, 7, &[2], "depth", named);
        assert_eq!(stacks.view(other, 7, SiteKind::Heap).end, "depth");
        stacks.forget(other);
        assert!(stacks.frames(other, 7).is_empty());
        assert_eq!(stacks.frames(IMAGE, 7).len(), 1);
    }

    #[test]
    fn an_unknown_stack_still_has_an_id_and_a_reason() {
        let stacks = Stacks::default();
        assert_eq!(stacks.view(IMAGE, 99, SiteKind::Heap).end, "not_recorded");
        assert_eq!(stacks.view(IMAGE, NO_STACK, SiteKind::Heap).end, "none");
    }
}
