//! Names of stacks are found when somebody is to see them: finding them takes far longer than a stack takes to come, and
//! most call stacks of a process are never shown. What is kept until then is which file lay where when the stack was
//! taken; the files are open already, so that it can wait until the process has ended.
use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use leaktrace_common::unwind::{FRAME_ADDRESS, FRAME_EXACT, FRAME_GUESSED};

use crate::{
    model::{
        snapshot::Frame,
        stacks::{ImageKey, Stacks},
    },
    symbolize::{AddressSpace, Module, Patience, Symbolizer, reason},
};

/// Files of one process image that are kept open for names that nobody has asked for. One that loads more has unloaded
/// most of them: then the names are found after all.
const MAX_MODULES: usize = 256;
/// How long names are waited for where nobody has said.
const PATIENCE: Duration = Duration::from_secs(3);
/// No file: what can be said of the frame was said when it came.
const NO_MODULE: u32 = u32::MAX;

/// A stack as it comes.
pub(super) struct Arrived<'a> {
    /// The process image.
    pub(super) image: ImageKey,
    /// What blocks and sites refer to it by.
    pub(super) hash: u64,
    /// Addresses with their marks.
    pub(super) frames: &'a [u64],
    /// Why it ends where it does.
    pub(super) end: &'static str,
    /// What lay where at its time.
    pub(super) space: &'a Rc<AddressSpace>,
    /// It takes the place of what is known of the stack, which was cut.
    pub(super) is_completion: bool,
}

/// A frame whose name nobody has asked for.
struct Unnamed {
    is_exact: bool,
    /// Index of its file, or [`NO_MODULE`].
    module: u32,
}

/// The stacks of a process image that have no names.
#[derive(Default)]
struct Waiting {
    /// By what version of the process's code addresses were understood last.
    space: Option<Rc<AddressSpace>>,
    modules: Vec<Arc<Module>>,
    stacks: HashMap<u64, Box<[Unnamed]>>,
}

/// The stacks that have no names yet: as many as the kernel's table of stacks can hold.
pub(super) struct Naming {
    images: HashMap<ImageKey, Waiting>,
    /// Those that will be seen in any case, in the order in which they came.
    ahead: VecDeque<(ImageKey, u64)>,
    /// Those whose names were asked for and are not there yet, in the order of asking.
    asked: VecDeque<(ImageKey, u64)>,
    is_ahead: bool,
    named: u64,
    patience: Patience,
}

impl Naming {
    /// Nothing yet; see [`Naming::set_ahead`].
    pub(super) fn new(is_ahead: bool) -> Naming {
        Naming {
            images: HashMap::new(),
            ahead: VecDeque::new(),
            asked: VecDeque::new(),
            is_ahead,
            named: 0,
            patience: Patience::of(PATIENCE),
        }
    }

    /// How long [`Naming::name`] waits from now on, for all names together.
    pub(super) fn be_patient(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Whether all stacks will be seen, so that their names are worth finding when there is time.
    pub(super) fn set_ahead(&mut self, is_ahead: bool) {
        self.is_ahead = is_ahead;
        let waiting = self.images.iter().filter(|_| is_ahead);
        self.ahead =
            waiting.flat_map(|(image, waiting)| waiting.stacks.keys().map(|hash| (*image, *hash))).collect();
    }

    /// Adds a stack, so far without names.
    pub(super) fn add(&mut self, stack: &Arrived<'_>, stacks: &mut Stacks, symbolizer: &mut Symbolizer) {
        let Arrived { image, hash, frames, end, space, is_completion } = *stack;
        let waiting = self.images.entry(image).or_default();
        let last = waiting.space.replace(Rc::clone(space));
        if last.is_none_or(|last| !Rc::ptr_eq(&last, space)) {
            stacks.forget_addresses(image);
        }
        if is_completion {
            stacks.drop_stack(image, hash);
        }
        if stacks.contains(image, hash) {
            return;
        }
        stacks.insert(image, hash, frames, end, |frame| placed(symbolizer, space, frame));
        let unnamed = frames
            .iter()
            .map(|frame| Unnamed { is_exact: is_exact(*frame), module: waiting.module_at(space, *frame) });
        let unnamed = unnamed.collect();
        waiting.stacks.insert(hash, unnamed);
        if self.is_ahead {
            self.ahead.push_back((image, hash));
        }
        if waiting.modules.len() > MAX_MODULES {
            self.name_image(image, stacks, symbolizer);
        }
    }

    /// Whether there are stacks whose names are worth asking for now.
    pub(super) fn has_work(&self, symbolizer: &Symbolizer) -> bool {
        !self.ahead.is_empty() && symbolizer.has_room()
    }

    /// Asks for the names of some of the stacks that will be seen, and takes those that have come.
    pub(super) fn name_some(&mut self, count: usize, stacks: &mut Stacks, symbolizer: &mut Symbolizer) {
        let now = Patience::of(Duration::ZERO);
        symbolizer.wait(&now);
        while let Some((image, hash)) = self.asked.front().copied() {
            if !self.try_name(image, hash, stacks, symbolizer) {
                break;
            }
            // What was shown of it without names is shown again.
            stacks.mark_changed(image);
            self.asked.pop_front();
        }
        for _ in 0..count {
            if !symbolizer.has_room() {
                return;
            }
            let Some((image, hash)) = self.ahead.pop_front() else { return };
            if !self.try_name(image, hash, stacks, symbolizer) {
                self.asked.push_back((image, hash));
            }
        }
    }

    /// Names a stack, unless it has its names; where they do not come in time, it gets them later.
    pub(super) fn name(&mut self, image: ImageKey, hash: u64, stacks: &Stacks, symbolizer: &mut Symbolizer) {
        if self.try_name(image, hash, stacks, symbolizer) {
            return;
        }
        symbolizer.wait(&self.patience);
        if !self.try_name(image, hash, stacks, symbolizer) {
            self.name_in_part(image, hash, stacks, symbolizer);
            stacks.remark(image, hash, reason::PENDING);
            self.asked.push_back((image, hash));
        }
    }

    /// Names those frames of a stack whose files were quick to read.
    fn name_in_part(&self, image: ImageKey, hash: u64, stacks: &Stacks, symbolizer: &mut Symbolizer) {
        let Some(waiting) = self.images.get(&image) else { return };
        let Some(unnamed) = waiting.stacks.get(&hash) else { return };
        stacks.name_in_part(image, hash, |index, placed| {
            let unnamed = unnamed.get(index)?;
            let module = waiting.modules.get(unnamed.module as usize)?;
            let names = symbolizer.names(module, placed, unnamed.is_exact);
            let is_whole = names.is_some();
            let mut frames = names.or_else(|| symbolizer.names_for_now(module, placed, unnamed.is_exact))?;
            frames.iter_mut().for_each(|frame| frame.guessed = placed.guessed);
            Some((frames, is_whole))
        });
    }

    /// Names a stack if its names are there, and asks for them if not; whether nothing is left to do.
    fn try_name(&mut self, image: ImageKey, hash: u64, stacks: &Stacks, symbolizer: &mut Symbolizer) -> bool {
        let Some(waiting) = self.images.get_mut(&image) else { return true };
        let Some(unnamed) = waiting.stacks.get(&hash) else { return true };
        let modules = &waiting.modules;
        let mut names = |index: usize, placed: &Frame| {
            let unnamed: &Unnamed = unnamed.get(index)?;
            let module = modules.get(unnamed.module as usize)?;
            Some(symbolizer.names(module, placed, unnamed.is_exact))
        };
        let mut is_known = true;
        stacks.for_each_unnamed(image, hash, |index, placed| {
            is_known &= names(index, placed).is_none_or(|frames| frames.is_some());
        });
        if !is_known {
            return false;
        }
        stacks.name(image, hash, |index, placed| {
            let mut frames = names(index, placed)??;
            frames.iter_mut().for_each(|frame| frame.guessed = placed.guessed);
            Some(frames)
        });
        self.named += 1;
        waiting.stacks.remove(&hash);
        if waiting.stacks.is_empty() {
            waiting.modules.clear();
        }
        true
    }

    /// How many stacks were named so far.
    pub(super) fn named(&self) -> u64 {
        self.named
    }

    /// Drops what is kept of an image.
    pub(super) fn forget(&mut self, image: ImageKey) {
        self.images.remove(&image);
        self.ahead.retain(|(queued, _)| *queued != image);
        self.asked.retain(|(queued, _)| *queued != image);
    }

    fn name_image(&mut self, image: ImageKey, stacks: &Stacks, symbolizer: &mut Symbolizer) {
        let waiting = self.images.get(&image);
        let hashes: Vec<u64> =
            waiting.map_or_else(Vec::new, |waiting| waiting.stacks.keys().copied().collect());
        for hash in hashes {
            self.name(image, hash, stacks, symbolizer);
        }
    }
}

impl Waiting {
    /// The index of the file that a frame lies in.
    fn module_at(&mut self, space: &AddressSpace, frame: u64) -> u32 {
        let Some(module) = space.module(frame & FRAME_ADDRESS, is_exact(frame)) else { return NO_MODULE };
        // Frames lie in few files, and in the same ones again and again.
        let known = self.modules.iter().position(|known| Arc::ptr_eq(known, module));
        let index = known.unwrap_or_else(|| {
            self.modules.push(Arc::clone(module));
            self.modules.len() - 1
        });
        u32::try_from(index).unwrap_or(NO_MODULE)
    }
}

fn is_exact(frame: u64) -> bool {
    frame & FRAME_EXACT != 0
}

/// What lies at a frame of a stack, without names that take long to find.
fn placed(symbolizer: &mut Symbolizer, space: &AddressSpace, frame: u64) -> Frame {
    let placed = symbolizer.placed(space, frame & FRAME_ADDRESS, is_exact(frame));
    Frame { guessed: frame & FRAME_GUESSED != 0, ..placed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discover::maps,
        symbolize::{Limits, Modules},
    };

    const IMAGE: ImageKey = ImageKey { tgid: 1, generation: 0 };

    struct Bench {
        naming: Naming,
        stacks: Stacks,
        symbolizer: Symbolizer,
        space: Rc<AddressSpace>,
    }

    impl Bench {
        fn new(is_ahead: bool) -> Bench {
            let pid = std::process::id();
            let space = AddressSpace::capture(pid, &maps::read(pid).unwrap(), None, &mut Modules::default());
            Bench {
                naming: Naming { patience: Patience::of(Duration::from_secs(60)), ..Naming::new(is_ahead) },
                stacks: Stacks::default(),
                symbolizer: Symbolizer::new(Limits::default()),
                space: Rc::new(space),
            }
        }

        fn add(&mut self, hash: u64, frames: &[u64], is_completion: bool) {
            let arrived =
                Arrived { image: IMAGE, hash, frames, end: "complete", space: &self.space, is_completion };
            self.naming.add(&arrived, &mut self.stacks, &mut self.symbolizer);
        }

        fn name(&mut self, hash: u64) {
            self.naming.name(IMAGE, hash, &self.stacks, &mut self.symbolizer);
        }

        fn functions(&self, hash: u64) -> Vec<Option<String>> {
            self.stacks.frames(IMAGE, hash).into_iter().map(|frame| frame.function).collect()
        }
    }

    fn address_of(function: *const ()) -> u64 {
        function as u64 | FRAME_EXACT
    }

    #[test]
    fn a_stack_has_a_place_at_once_and_names_when_they_are_asked_for() {
        let mut bench = Bench::new(false);
        let (first, second) = (address_of(libc::getenv as *const ()), address_of(libc::atoi as *const ()));
        bench.add(1, &[first, second | FRAME_GUESSED], false);
        bench.add(2, &[second], false);
        assert!(!bench.naming.has_work(&bench.symbolizer), "nobody has asked");
        assert_eq!(bench.functions(1), [None, None]);
        assert!(bench.stacks.frames(IMAGE, 1).iter().all(|frame| frame.module_offset.is_some()));
        bench.name(1);
        bench.name(1);
        let named = bench.functions(1);
        // Where libc's debug information is installed, these are the names of its own aliases.
        let ends = |name: &Option<String>, end| name.as_deref().is_some_and(|name| name.ends_with(end));
        assert!(ends(&named[0], "getenv") && ends(&named[1], "atoi"), "{named:?}");
        assert!(bench.stacks.frames(IMAGE, 1)[1].guessed);
        assert_eq!((bench.functions(2), bench.naming.named()), (vec![None], 1));
        bench.add(2, &[second, first], true);
        bench.name(2);
        assert_eq!(bench.functions(2), [named[1].clone(), named[0].clone()], "what completed it is named");
        bench.naming.forget(IMAGE);
        assert!(bench.naming.images.is_empty());
    }

    #[test]
    fn where_all_will_be_seen_names_are_found_when_there_is_time() {
        let mut bench = Bench::new(true);
        for hash in 1..=3 {
            bench.add(hash, &[address_of(libc::getenv as *const ())], false);
        }
        bench.naming.name_some(2, &mut bench.stacks, &mut bench.symbolizer);
        assert!(bench.naming.has_work(&bench.symbolizer));
        bench.naming.name_some(2, &mut bench.stacks, &mut bench.symbolizer);
        assert!(!bench.naming.has_work(&bench.symbolizer), "all were asked for");
        let version = bench.stacks.version(IMAGE);
        assert!(bench.symbolizer.wait(&Patience::of(Duration::from_secs(60))));
        bench.naming.name_some(2, &mut bench.stacks, &mut bench.symbolizer);
        assert_eq!(bench.naming.named(), 3);
        assert_ne!(bench.stacks.version(IMAGE), version, "what was shown before is shown again");
        let mut bench = Bench::new(false);
        bench.add(1, &[address_of(libc::getenv as *const ())], false);
        bench.naming.set_ahead(true);
        assert!(bench.naming.has_work(&bench.symbolizer), "also those that came before");
    }

    #[test]
    fn names_that_do_not_come_in_time_come_later() {
        let mut bench = Bench::new(false);
        bench.naming.be_patient(Patience::of(Duration::ZERO));
        bench.add(1, &[address_of(libc::getenv as *const ())], false);
        bench.name(1);
        assert_eq!(bench.stacks.frames(IMAGE, 1)[0].reason, Some(reason::PENDING));
        assert!(bench.symbolizer.wait(&Patience::of(Duration::from_secs(60))));
        bench.naming.name_some(1, &mut bench.stacks, &mut bench.symbolizer);
        let frame = bench.stacks.frames(IMAGE, 1).remove(0);
        assert!(frame.function.is_some() && frame.reason.is_none(), "{frame:?}");
    }
}
