//! Interned call stacks: which frames a stack hash stands for, each address kept once.
//!
//! A stack comes with what lies at its addresses; names may follow when it is to be seen. Finding both is left to
//! `symbolize`.
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use leaktrace_common::heap::{NO_STACK, SiteKey};

use super::{
    site_id::{PlaceId, SiteId, place_id, site_id, unknown_site_id},
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

/// The frames at one address, which the stacks that pass it share: one without its name, or those that were found for
/// it, inlined ones first.
#[derive(Debug)]
struct Spot {
    frames: RefCell<Arc<[Frame]>>,
    is_named: Cell<bool>,
}

impl Spot {
    fn new(placed: Frame) -> Spot {
        Spot { frames: RefCell::new(Arc::new([placed])), is_named: Cell::new(false) }
    }
}

#[derive(Debug)]
struct Stack {
    spots: Box<[Rc<Spot>]>,
    end: &'static str,
    /// As a site of the heap, and of mappings.
    places: (PlaceId, PlaceId),
    /// Its ids as the same, once it has its names.
    ids: Cell<Option<(SiteId, SiteId)>>,
}

impl Stack {
    fn groups(&self) -> Vec<Arc<[Frame]>> {
        self.spots.iter().map(|spot| Arc::clone(&spot.frames.borrow())).collect()
    }

    fn ids(&self) -> (SiteId, SiteId) {
        self.ids.get().unwrap_or_else(|| {
            let groups = self.groups();
            let frames = || groups.iter().flat_map(|group| group.iter());
            (site_id(SiteKind::Heap, frames()), site_id(SiteKind::Mapping, frames()))
        })
    }
}

/// What is known about one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackView {
    /// See [`super::site_id`].
    pub place: PlaceId,
    /// Why it ends where it does; `not_recorded` where its frames never arrived, `none` where none were taken.
    pub end: &'static str,
}

#[derive(Debug, Default)]
struct Image {
    version: u64,
    addresses: HashMap<u64, Rc<Spot>>,
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
        self.stack(image, stack).is_some()
    }

    /// Interns a stack. `addresses` run from the innermost frame outwards; `place` is asked for each address of
    /// this image that was not seen before and gives what lies there. `end` is
    /// [`leaktrace_common::unwind::Stop::name`]. A hash that is known already keeps its frames.
    pub fn insert(
        &mut self,
        image: ImageKey,
        stack: u64,
        addresses: &[u64],
        end: &'static str,
        mut place: impl FnMut(u64) -> Frame,
    ) {
        let image = self.images.entry(image).or_default();
        if image.stacks.contains_key(&stack) {
            return;
        }
        let known = &mut image.addresses;
        let spot = |address: &u64| {
            let new = || Rc::new(Spot::new(place(*address)));
            Rc::clone(known.entry(*address).or_insert_with(new))
        };
        let spots: Box<[Rc<Spot>]> = addresses.iter().map(spot).collect();
        let known = Stack { spots, end, places: (PlaceId(0), PlaceId(0)), ids: Cell::new(None) };
        let groups = known.groups();
        let frames = || groups.iter().flat_map(|group| group.iter());
        let places = (place_id(SiteKind::Heap, frames()), place_id(SiteKind::Mapping, frames()));
        image.stacks.insert(stack, Stack { places, ..known });
        image.version += 1;
    }

    /// Gives a stack its names. `names` is asked for each frame that has none, by its index in the stack and what lies
    /// there, and gives its frames, inlined ones first; `None` leaves it as it is.
    pub fn name(
        &self,
        image: ImageKey,
        stack: u64,
        mut names: impl FnMut(usize, &Frame) -> Option<Vec<Frame>>,
    ) {
        let Some(known) = self.stack(image, stack) else { return };
        for (index, spot) in known.spots.iter().enumerate() {
            if spot.is_named.replace(true) {
                continue;
            }
            let placed = Arc::clone(&spot.frames.borrow());
            if let Some(frames) = placed.first().and_then(|placed| names(index, placed)) {
                *spot.frames.borrow_mut() = frames.into();
            }
        }
        known.ids.set(None);
        known.ids.set(Some(known.ids()));
    }

    /// Calls `look` with each frame of a stack that has no names, by its index in the stack and what lies there.
    pub fn for_each_unnamed(&self, image: ImageKey, stack: u64, mut look: impl FnMut(usize, &Frame)) {
        let Some(known) = self.stack(image, stack) else { return };
        for (index, spot) in known.spots.iter().enumerate().filter(|(_, spot)| !spot.is_named.get()) {
            let placed = Arc::clone(&spot.frames.borrow());
            if let Some(placed) = placed.first() {
                look(index, placed);
            }
        }
    }

    /// Gives names to those frames of a stack of which they are known, and says whether they are all that can be known of
    /// a frame; the others can get theirs later.
    pub fn name_in_part(
        &self,
        image: ImageKey,
        stack: u64,
        mut names: impl FnMut(usize, &Frame) -> Option<(Vec<Frame>, bool)>,
    ) {
        let Some(known) = self.stack(image, stack) else { return };
        for (index, spot) in known.spots.iter().enumerate().filter(|(_, spot)| !spot.is_named.get()) {
            let placed = Arc::clone(&spot.frames.borrow());
            if let Some((frames, is_whole)) = placed.first().and_then(|placed| names(index, placed)) {
                *spot.frames.borrow_mut() = frames.into();
                spot.is_named.set(is_whole);
            }
        }
    }

    /// Says why the frames of a stack have no names yet.
    pub fn remark(&self, image: ImageKey, stack: u64, reason: &'static str) {
        let Some(known) = self.stack(image, stack) else { return };
        for spot in known.spots.iter().filter(|spot| !spot.is_named.get()) {
            let placed = spot.frames.borrow().first().cloned();
            if let Some(placed) = placed.filter(|placed| placed.function.is_none() && placed.reason.is_none())
            {
                *spot.frames.borrow_mut() = Arc::new([Frame { reason: Some(reason), ..placed }]);
            }
        }
    }

    /// What is shown of an image is not what was shown before: names have come.
    pub fn mark_changed(&mut self, image: ImageKey) {
        if let Some(known) = self.images.get_mut(&image) {
            known.version += 1;
        }
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

    /// Place and end of a stack.
    pub fn view(&self, image: ImageKey, stack: u64, kind: SiteKind) -> StackView {
        match self.stack(image, stack) {
            Some(known) => StackView {
                place: if kind == SiteKind::Heap { known.places.0 } else { known.places.1 },
                end: known.end,
            },
            None => StackView {
                place: PlaceId(unknown_site_id(kind, stack).0),
                end: if stack == NO_STACK || stack == 0 { "none" } else { "not_recorded" },
            },
        }
    }

    /// The id of a stack. It rests on names: of a stack that has none it is what it would be if none could be found.
    pub fn id(&self, image: ImageKey, stack: u64, kind: SiteKind) -> SiteId {
        match (self.stack(image, stack), kind) {
            (Some(known), SiteKind::Heap) => known.ids().0,
            (Some(known), SiteKind::Mapping) => known.ids().1,
            (None, _) => unknown_site_id(kind, stack),
        }
    }

    /// The frames of a stack, innermost first; none where it is not known.
    pub fn frames(&self, image: ImageKey, stack: u64) -> Vec<Frame> {
        let groups = self.stack(image, stack).map_or_else(Vec::new, Stack::groups);
        groups.iter().flat_map(|group| group.iter().cloned()).collect()
    }

    /// The innermost frame of a stack.
    pub fn innermost(&self, image: ImageKey, stack: u64) -> Option<Frame> {
        self.stack(image, stack)?.spots.first()?.frames.borrow().first().cloned()
    }

    /// How many stacks are known.
    pub fn len(&self) -> usize {
        self.images.values().map(|image| image.stacks.len()).sum()
    }

    /// Whether no stack is known.
    pub fn is_empty(&self) -> bool {
        self.images.values().all(|image| image.stacks.is_empty())
    }

    fn stack(&self, image: ImageKey, stack: u64) -> Option<&Stack> {
        self.images.get(&image)?.stacks.get(&stack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageKey = ImageKey { tgid: 1, generation: 0 };

    fn placed(address: u64) -> Frame {
        Frame { address, module_offset: Some(address), ..Frame::default() }
    }

    fn named(placed: &Frame) -> Vec<Frame> {
        let name = |inlined| Frame {
            function: Some(format!("f{:x}", placed.address)),
            offset: Some(4),
            inlined,
            ..placed.clone()
        };
        vec![name(true), name(false)]
    }

    #[test]
    fn an_address_is_asked_for_once_and_named_when_a_stack_is() {
        let mut stacks = Stacks::default();
        let mut asked = Vec::new();
        for (hash, addresses) in [(7, [1, 2]), (8, [3, 2]), (7, [9, 9])] {
            stacks.insert(IMAGE, hash, &addresses, "complete", |address| {
                asked.push(address);
                placed(address)
            });
        }
        assert_eq!(asked, [1, 2, 3]);
        assert_eq!(stacks.version(IMAGE), 2, "what was known is not news");
        assert_eq!(stacks.len(), 2);
        let place = stacks.view(IMAGE, 8, SiteKind::Heap).place;
        let id = stacks.id(IMAGE, 8, SiteKind::Heap);
        let mut asked = Vec::new();
        for hash in [7, 8, 8, 99] {
            stacks.name(IMAGE, hash, |index, placed| {
                asked.push((index, placed.address));
                Some(named(placed))
            });
        }
        assert_eq!(asked, [(0, 1), (1, 2), (0, 3)]);
        let frames = stacks.frames(IMAGE, 8);
        assert_eq!(frames.len(), 4, "with inlined ones");
        assert_eq!(frames[0].function.as_deref(), Some("f3"));
        assert_eq!(
            stacks.view(IMAGE, 8, SiteKind::Heap).place,
            place,
            "names do not change what it is known by"
        );
        assert_ne!(stacks.id(IMAGE, 8, SiteKind::Heap), id);
        assert_eq!(stacks.id(IMAGE, 8, SiteKind::Heap), site_id(SiteKind::Heap, &frames));
        assert_eq!(stacks.id(IMAGE, 8, SiteKind::Mapping), site_id(SiteKind::Mapping, &frames));
        assert_eq!(stacks.version(IMAGE), 2);
    }

    #[test]
    fn a_frame_whose_name_nobody_knows_stays_as_it_is() {
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1], "complete", placed);
        stacks.name(IMAGE, 7, |_, _| None);
        assert_eq!(stacks.frames(IMAGE, 7), [placed(1)]);
    }

    #[test]
    fn frames_get_their_names_one_after_the_other() {
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1, 2], "complete", placed);
        stacks.name_in_part(IMAGE, 7, |_, placed| (placed.address == 2).then(|| (named(placed), true)));
        stacks.remark(IMAGE, 7, "later");
        let frames = stacks.frames(IMAGE, 7);
        assert_eq!((frames.len(), frames[0].reason, frames[1].reason), (3, Some("later"), None));
        let mut left = Vec::new();
        stacks.for_each_unnamed(IMAGE, 7, |index, _| left.push(index));
        assert_eq!(left, [0]);
        stacks.name(IMAGE, 7, |_, placed| Some(named(&Frame { reason: None, ..placed.clone() })));
        assert_eq!(stacks.frames(IMAGE, 7).len(), 4);
    }

    #[test]
    fn a_stack_is_completed_under_its_hash() {
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1, 2], "no_mapping", placed);
        let version = stacks.version(IMAGE);
        stacks.drop_stack(IMAGE, 7);
        assert_ne!(stacks.version(IMAGE), version);
        stacks.insert(IMAGE, 7, &[1, 2, 3], "complete", placed);
        assert_eq!(stacks.frames(IMAGE, 7).len(), 3);
        assert_eq!(stacks.view(IMAGE, 7, SiteKind::Heap).end, "complete");
    }

    #[test]
    fn two_processes_with_one_hash_do_not_mix() {
        let other = ImageKey { tgid: 2, generation: 0 };
        let mut stacks = Stacks::default();
        stacks.insert(IMAGE, 7, &[1], "complete", placed);
        stacks.insert(other, 7, &[2], "depth", placed);
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
