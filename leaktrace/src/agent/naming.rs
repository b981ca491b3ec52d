//! Names of stacks are found when there is time, because finding them takes far longer than a stack takes to come. What
//! is kept until then is what lay where when the stack was taken; the files are open already.
use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use leaktrace_common::unwind::{FRAME_ADDRESS, FRAME_EXACT, FRAME_GUESSED};

use crate::{
    model::{
        snapshot::Frame,
        stacks::{ImageKey, Stacks},
    },
    symbolize::{AddressSpace, Symbolizer},
};

/// A stack without names.
pub(super) struct Unnamed {
    /// The process image.
    pub(super) image: ImageKey,
    /// What blocks and sites refer to it by.
    pub(super) hash: u64,
    /// Addresses with their marks.
    pub(super) frames: Vec<u64>,
    /// Why it ends where it does.
    pub(super) end: &'static str,
    /// What lay where at its time.
    pub(super) space: Rc<AddressSpace>,
    /// It takes the place of what is known of the stack, which was cut.
    pub(super) is_completion: bool,
}

/// The stacks that wait for their names: as many as the kernel's table of stacks can hold.
#[derive(Default)]
pub(super) struct Naming {
    queue: VecDeque<Unnamed>,
    /// By what version of its code an image's addresses were named last.
    versions: HashMap<ImageKey, Rc<AddressSpace>>,
}

impl Naming {
    /// Adds a stack.
    pub(super) fn push(&mut self, stack: Unnamed) {
        self.queue.push_back(stack);
    }

    /// Whether every stack has its names.
    pub(super) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Names the first stacks in the queue.
    pub(super) fn name_some(&mut self, count: usize, stacks: &mut Stacks, symbolizer: &mut Symbolizer) {
        for _ in 0..count {
            let Some(stack) = self.queue.pop_front() else { return };
            self.name(&stack, stacks, symbolizer);
        }
    }

    /// Names the stacks of an image, or all.
    pub(super) fn name_all(
        &mut self,
        image: Option<ImageKey>,
        stacks: &mut Stacks,
        symbolizer: &mut Symbolizer,
    ) {
        let is_asked = |stack: &Unnamed| image.is_none_or(|image| stack.image == image);
        let (asked, rest) = std::mem::take(&mut self.queue).into_iter().partition::<Vec<_>, _>(is_asked);
        self.queue = rest.into();
        for stack in asked {
            self.name(&stack, stacks, symbolizer);
        }
    }

    /// Drops what is kept of an image.
    pub(super) fn forget(&mut self, image: ImageKey) {
        self.queue.retain(|stack| stack.image != image);
        self.versions.remove(&image);
    }

    fn name(&mut self, stack: &Unnamed, stacks: &mut Stacks, symbolizer: &mut Symbolizer) {
        let Unnamed { image, hash, frames, end, space, is_completion } = stack;
        let last = self.versions.insert(*image, Rc::clone(space));
        if last.is_none_or(|last| !Rc::ptr_eq(&last, space)) {
            stacks.forget_addresses(*image);
        }
        if *is_completion {
            stacks.drop_stack(*image, *hash);
        }
        stacks.insert(*image, *hash, frames, end, |frame| named_frames(symbolizer, space, frame));
    }
}

/// What lies at a frame of a stack.
fn named_frames(symbolizer: &mut Symbolizer, space: &AddressSpace, frame: u64) -> Vec<Frame> {
    let mut frames = symbolizer.frames(space, frame & FRAME_ADDRESS, frame & FRAME_EXACT != 0);
    for named in &mut frames {
        named.guessed = frame & FRAME_GUESSED != 0;
    }
    frames
}
