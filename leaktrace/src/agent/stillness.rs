//! Whether a target has done anything since it was last looked at. What is shown of one that has not is shown again, a
//! little older: then its sites and blocks, which may be many, need not be read.
//!
//! A probe counts first and records then. So counters are read before anything else: what is recorded after that has
//! counted by the next time. What was counted before and is still being recorded is why counters must have stood still
//! for a while before what was read is kept. Pure; the tracer brings the numbers.
use crate::{
    drain::maps::Tally,
    model::{ranked::Ranked, sites::Selection, stacks::ImageKey},
};

/// A kernel program has ended this long after it counted: it does not sleep.
const CALM_NS: u64 = 500_000_000;
/// What is kept is read again after this long all the same. A thread that was stopped inside of `realloc`, which then
/// gives its old block back, does not count once more.
const LONGEST_NS: u64 = 30_000_000_000;
/// Call stacks that are kept with their sums. Of more, showing them takes longer than reading.
const MOST_SHOWN: usize = 256;

/// What the kernel has counted of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Counters.
    pub tally: Tally,
    /// Probe hits.
    pub hits: u64,
}

/// What else decides what is shown of a target, as far as user space knows of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Which image of the process.
    pub image: ImageKey,
    /// What is shown.
    pub selection: Selection,
    /// [`crate::model::stacks::Stacks::version`].
    pub stacks: u64,
    /// [`crate::model::mappings::Mappings::version`].
    pub mappings: u64,
    /// Blocks found to be gone.
    pub corrections: u64,
    /// The largest mean distance of samples so far.
    pub widest_interval_bytes: u64,
    /// Blocks born before this may have been freed while nobody watched.
    pub unverified_before_ns: u64,
    /// When its history begins.
    pub first_ns: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    ranked: Ranked,
    circumstances: Circumstances,
    /// When the counters were read, before the sites were.
    read_ns: u64,
}

/// What is known of the stillness of one target.
#[derive(Debug, Default)]
pub struct Stillness {
    counts: Option<Counts>,
    /// When they were seen first, and last.
    since_ns: u64,
    seen_ns: u64,
    kept: Option<Kept>,
}

impl Stillness {
    /// Takes in what is counted now, which must have been read before anything else.
    pub fn see(&mut self, counts: Counts, now_ns: u64) {
        if self.counts.as_ref() != Some(&counts) {
            *self = Stillness { counts: Some(counts), since_ns: now_ns, ..Stillness::default() };
        }
        self.seen_ns = now_ns;
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        *self = Stillness::default();
    }

    /// Whether what is kept is still so.
    pub fn holds(&self, circumstances: &Circumstances) -> bool {
        self.kept.as_ref().is_some_and(|kept| {
            kept.circumstances == *circumstances && self.seen_ns.saturating_sub(kept.read_ns) < LONGEST_NS
        })
    }

    /// What is kept, if it is still so.
    pub fn kept(&mut self, circumstances: &Circumstances) -> Option<&mut Ranked> {
        if self.holds(circumstances) { self.kept.as_mut().map(|kept| &mut kept.ranked) } else { None }
    }

    /// Keeps what was read after the counts were seen, if nothing can be missing in it.
    pub fn keep(&mut self, ranked: Ranked, circumstances: Circumstances) {
        let is_calm = self.counts.is_some() && self.seen_ns.saturating_sub(self.since_ns) >= CALM_NS;
        // Blocks of some age alone become more by themselves, and single ones are not kept.
        let selection = circumstances.selection;
        let is_plain = selection.older_ns.is_none() && selection.blocks == 0;
        if is_calm && is_plain && ranked.is_still() && ranked.len() <= MOST_SHOWN {
            self.kept = Some(Kept { ranked, circumstances, read_ns: self.seen_ns });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        sites::{Corrections, Input},
        stacks::Stacks,
    };
    use leaktrace_common::counter::Counter;

    const SECOND: u64 = 1_000_000_000;

    fn counts(allocations: u64, hits: u64) -> Counts {
        let mut tally = Tally::ZERO;
        tally.add(Counter::AllocationHits, allocations);
        Counts { tally, hits }
    }

    fn circumstances() -> Circumstances {
        Circumstances {
            image: ImageKey { tgid: 1, generation: 0 },
            selection: Selection::default(),
            stacks: 3,
            mappings: 4,
            corrections: 0,
            widest_interval_bytes: 0,
            unverified_before_ns: 0,
            first_ns: Some(1),
        }
    }

    /// A ranking without sites: nothing in it has changed.
    fn still() -> Ranked {
        let (stacks, corrections) = (Stacks::default(), Corrections::default());
        let input = Input {
            image: circumstances().image,
            now_ns: SECOND,
            heap: &[],
            corrections: &corrections,
            blocks: None,
            unverified_before_ns: 0,
            mappings: None,
            stacks: &stacks,
        };
        Ranked::of(Vec::new(), 0, &input, &Selection::default(), &mut |_| {})
    }

    fn at_rest() -> Stillness {
        let mut stillness = Stillness::default();
        stillness.see(counts(1, 1), SECOND);
        stillness.see(counts(1, 1), 2 * SECOND);
        stillness.keep(still(), circumstances());
        stillness
    }

    #[test]
    fn what_was_read_is_kept_once_the_counters_have_stood_still_for_a_while() {
        let mut stillness = Stillness::default();
        stillness.keep(still(), circumstances());
        assert!(!stillness.holds(&circumstances()), "nothing was seen");
        stillness.see(counts(1, 1), SECOND);
        stillness.keep(still(), circumstances());
        assert!(!stillness.holds(&circumstances()), "what was counted may not be recorded yet");
        stillness.see(counts(1, 1), SECOND + CALM_NS - 1);
        stillness.keep(still(), circumstances());
        assert!(!stillness.holds(&circumstances()));
        stillness.see(counts(1, 1), SECOND + CALM_NS);
        stillness.keep(still(), circumstances());
        assert!(stillness.holds(&circumstances()));
    }

    #[test]
    fn any_count_ends_it() {
        for other in [counts(2, 1), counts(1, 2)] {
            let mut stillness = at_rest();
            assert!(stillness.kept(&circumstances()).is_some());
            stillness.see(other, 3 * SECOND);
            assert!(stillness.kept(&circumstances()).is_none());
            stillness.see(counts(1, 1), 4 * SECOND);
            assert!(stillness.kept(&circumstances()).is_none());
        }
        let mut stillness = at_rest();
        stillness.forget();
        stillness.keep(still(), circumstances());
        assert!(!stillness.holds(&circumstances()));
    }

    #[test]
    fn other_circumstances_end_it() {
        let base = circumstances();
        let selection = Selection { top: 5, ..Selection::default() };
        let others = [
            Circumstances { image: ImageKey { tgid: 1, generation: 1 }, ..base.clone() },
            Circumstances { selection, ..base.clone() },
            Circumstances { stacks: 4, ..base.clone() },
            Circumstances { mappings: 5, ..base.clone() },
            Circumstances { corrections: 1, ..base.clone() },
            Circumstances { widest_interval_bytes: 1, ..base.clone() },
            Circumstances { unverified_before_ns: 1, ..base.clone() },
            Circumstances { first_ns: None, ..base.clone() },
        ];
        let stillness = at_rest();
        assert!(stillness.holds(&base));
        assert!(others.iter().all(|other| !stillness.holds(other)));
    }

    #[test]
    fn it_is_read_again_now_and_then() {
        let mut stillness = at_rest();
        stillness.see(counts(1, 1), 2 * SECOND + LONGEST_NS - 1);
        assert!(stillness.holds(&circumstances()));
        stillness.see(counts(1, 1), 2 * SECOND + LONGEST_NS);
        assert!(!stillness.holds(&circumstances()));
        stillness.keep(still(), circumstances());
        assert!(stillness.holds(&circumstances()));
    }

    #[test]
    fn what_depends_on_age_is_not_kept() {
        for selection in [
            Selection { older_ns: Some(1), ..Selection::default() },
            Selection { blocks: 1, ..Selection::default() },
        ] {
            let mut stillness = at_rest();
            stillness.forget();
            stillness.see(counts(1, 1), SECOND);
            stillness.see(counts(1, 1), 2 * SECOND);
            let circumstances = Circumstances { selection, ..circumstances() };
            stillness.keep(still(), circumstances.clone());
            assert!(!stillness.holds(&circumstances));
        }
    }
}
