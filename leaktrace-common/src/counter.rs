//! The one list of counters: what the kernel programs did and, above all, what they could not record and why.
//! Names and meanings in reports, JSON and metrics are derived from this list.

use crate::unwind::Stop;

macro_rules! counters {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident; )+) => {
        /// One entry of the per-CPU counter map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter { $( $(#[doc = $doc])+ $variant, )+ }

        impl Counter {
            /// Every counter in index order.
            pub const ALL: &'static [Counter] = &[ $( Counter::$variant, )+ ];

            /// The stable name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $( Counter::$variant => $name, )+ }
            }

            /// Whether the counter names a loss, an approximation or plain activity.
            pub const fn class(self) -> Class {
                match self { $( Counter::$variant => Class::$class, )+ }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $( Counter::$variant => concat!($($doc),+), )+ }
            }
        }
    };
}

/// What a counter says about the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something was not recorded: totals are off by it.
    Loss,
    /// Everything was recorded; a detail (a stack, a time) is missing or approximate.
    Detail,
    /// Work done; says nothing about correctness.
    Activity,
}

counters! {
    /// Allocation calls that were recorded.
    Allocations = "allocations", Activity;
    /// Frees of recorded blocks.
    Frees = "frees", Activity;
    /// Probe hits on allocation functions, nested calls included.
    AllocationHits = "allocation_hits", Activity;
    /// Probe hits on free functions, nested calls and NULL included.
    FreeHits = "free_hits", Activity;
    /// Calls reached from inside another allocation call; the outermost one is recorded.
    NestedCalls = "nested_calls", Activity;
    /// Allocation calls that returned NULL or an error.
    FailedCalls = "failed_calls", Activity;
    /// Allocation calls outside the --min-size/--max-size range.
    FilteredBySize = "filtered_by_size", Activity;
    /// Allocation calls that the sampler let pass.
    Unsampled = "unsampled", Activity;
    /// Frees of addresses that were never recorded: the heap from before attaching, mostly.
    UnmatchedFrees = "unmatched_frees", Detail;
    /// Allocations not recorded because the target's block table was full.
    BlocksFull = "blocks_full", Loss;
    /// Allocations not recorded because the site table was full.
    SitesFull = "sites_full", Loss;
    /// Allocations not recorded because no thread entry could be made.
    ThreadsFull = "threads_full", Loss;
    /// Calls whose return was never seen (longjmp, thread killed): not recorded.
    LostReturns = "lost_returns", Loss;
    /// Calls of threads that catch their own system calls, which a return probe would kill: not recorded.
    DispatchedCalls = "dispatched_calls", Loss;
    /// Allocation calls that ended by an exception: nothing was allocated.
    ThrownCalls = "thrown_calls", Activity;
    /// Allocations at an address that was still live: a free was missed, the old block was dropped.
    MissedFrees = "missed_frees", Loss;
    /// Out-parameters or registers that could not be read.
    ReadFailures = "read_failures", Loss;
    /// Events not delivered because the ring buffer was full.
    EventsDropped = "events_dropped", Loss;
    /// Per-call trace lines not delivered because the ring buffer was full.
    TraceDropped = "trace_dropped", Detail;
    /// Stacks whose frames could not be sent yet; they are sent again at the next hit.
    StacksDeferred = "stacks_deferred", Detail;
    /// Stacks not interned because the stack table was full.
    StacksFull = "stacks_full", Detail;
    /// Raw stack copies not sent because the ring buffer was full.
    CopiesDropped = "copies_dropped", Detail;
    /// Stacks whose memory was copied because a table was missing, to be walked later.
    StackCopies = "stack_copies", Activity;
    /// Stacks that were walked.
    Stacks = "stacks", Activity;
    /// Frames in the stacks that were walked.
    Frames = "frames", Activity;
    /// Stacks whose outer part was taken from the thread's previous stack.
    StacksReused = "stacks_reused", Activity;
    /// Stacks that differed between reuse and a full walk (verify mode only; must be 0).
    ReuseMismatches = "reuse_mismatches", Loss;
    /// Complete stacks.
    StopComplete = "stop_complete", Activity;
    /// Stacks cut short: a return address in no known mapping.
    StopNoMapping = "stop_no_mapping", Detail;
    /// Stacks cut short: no unwind information for an address.
    StopNoCfi = "stop_no_cfi", Detail;
    /// Stacks cut short: stack memory could not be read.
    StopReadFault = "stop_read_fault", Detail;
    /// Stacks cut short: an unwind rule that is not supported.
    StopUnsupported = "stop_unsupported", Detail;
    /// Stacks cut short: a zero return address before the outermost frame.
    StopZeroReturn = "stop_zero_return", Detail;
    /// Stacks cut short at --stack-depth.
    StopDepth = "stop_depth", Detail;
    /// Stacks cut short: a frame not above the one before it.
    StopBackwards = "stop_backwards", Detail;
    /// Stacks cut short at another tool's return probe.
    StopTrampoline = "stop_trampoline", Detail;
    /// Stacks that contain a guessed frame.
    StopGuessed = "stop_guessed", Detail;
}

/// How many counters there are.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;

/// Words in a tally: a power of two, so that an index can be masked.
pub const TALLY_WORDS: usize = 64;
const _: () = assert!(COUNTERS as usize <= TALLY_WORDS);

impl Counter {
    /// The index of the counter for a stack that ends with this stop code ([`crate::unwind::Stop`]); `None` for
    /// stacks walked by frame pointers, which have no counter. The two lists are in one order.
    #[inline(always)]
    pub const fn index_of_stop(stop: u32) -> Option<u32> {
        if stop >= Stop::Complete as u32 && stop <= Stop::Guessed as u32 {
            Some(Counter::StopComplete as u32 + stop - Stop::Complete as u32)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stop_has_the_counter_of_its_name() {
        for stop in Stop::ALL {
            if let Some(index) = Counter::index_of_stop(stop as u32) {
                let counter = Counter::ALL[index as usize];
                assert_eq!(counter.name().strip_prefix("stop_"), Some(stop.name()));
            }
        }
    }

    #[test]
    fn an_index_is_the_position_in_the_list() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert!(Counter::ALL.iter().skip(index + 1).all(|other| other.name() != counter.name()));
        }
    }
}
