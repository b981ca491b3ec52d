//! The code of a process over the last moments. News of mappings, stacks and copies of stacks come by ways of their own:
//! a stack may be read after the news of what took the place of its code, and news of a mapping after /proc was read.
//! Each is understood by what was mapped at its time.
use std::{collections::VecDeque, rc::Rc};

use super::tables::Code;
use crate::{
    discover::maps::MapEntry,
    symbolize::{AddressSpace, Modules},
    unwind::mappings::{Region, Regions},
};

/// Versions that are kept at the most.
const MAX_PAST: usize = 64;

/// The code of a process at one time: where the tables of an address are, and what is called what.
#[derive(Clone, Debug, Default)]
pub struct Mapped {
    /// Which file lies where, for the walker.
    pub regions: Rc<Regions<Code>>,
    /// The same for names.
    pub space: Rc<AddressSpace>,
}

impl Mapped {
    /// Whether a mapping is not the very one that is known.
    fn is_news(&self, entry: &MapEntry, modules: &mut Modules) -> bool {
        !self.space.holds(entry, modules)
    }

    /// Whether something lies where a mapping is made.
    fn replaces(&self, entry: &MapEntry) -> bool {
        !self.space.is_free(entry.start, entry.end)
    }

    /// Takes one mapping; what it overlaps is gone.
    fn map(&mut self, entry: &MapEntry, region: Option<&Region<Code>>, modules: &mut Modules) {
        if let Some(region) = region {
            Rc::make_mut(&mut self.regions).insert(region.clone());
        }
        Rc::make_mut(&mut self.space).map(entry, modules);
    }
}

/// A version that is over.
#[derive(Clone, Debug)]
struct Past {
    /// When, in ns of CLOCK_BOOTTIME.
    until_ns: u64,
    mapped: Mapped,
}

/// The present code and what it was before.
#[derive(Clone, Debug, Default)]
pub struct CodeOverTime {
    /// The oldest first.
    past: VecDeque<Past>,
    now: Mapped,
    /// When the process's mappings began to be read from /proc the last time: older news is in them.
    looked_ns: u64,
}

impl CodeOverTime {
    /// The code as far as is known.
    pub fn now(&self) -> &Mapped {
        &self.now
    }

    /// The code at a time, in ns of CLOCK_BOOTTIME; of times too long ago, the oldest that is known.
    pub fn at(&self, time_ns: u64) -> &Mapped {
        self.past.iter().find(|past| time_ns < past.until_ns).map_or(&self.now, |past| &past.mapped)
    }

    /// When all mappings were read last.
    pub fn looked_ns(&self) -> u64 {
        self.looked_ns
    }

    /// All mappings were read from /proc between two times.
    pub fn look(&mut self, began_ns: u64, ended_ns: u64, mapped: Mapped) {
        self.end_version(ended_ns);
        self.now = mapped;
        self.looked_ns = began_ns;
    }

    /// Code was mapped at a time; `region` is what it means for the walker, if anything. `true` when that is news of the
    /// present.
    ///
    /// Where nothing lay before, no version ends: no earlier stack has a frame there. Compilers at run time map much, and
    /// change the protection of what they have mapped all the time.
    pub fn map(
        &mut self,
        time_ns: u64,
        entry: &MapEntry,
        region: Option<&Region<Code>>,
        modules: &mut Modules,
    ) -> bool {
        if let Some(index) = self.past.iter().position(|past| time_ns < past.until_ns)
            && let Some(past) = self.past.get_mut(index)
            && past.mapped.is_news(entry, modules)
        {
            let before = past.mapped.replaces(entry).then(|| past.mapped.clone());
            past.mapped.map(entry, region, modules);
            if let Some(mapped) = before {
                self.past.insert(index, Past { until_ns: time_ns, mapped });
                self.bound();
            }
        }
        let is_news = time_ns >= self.looked_ns;
        if is_news && self.now.is_news(entry, modules) {
            let is_latest = self.past.back().is_none_or(|past| past.until_ns <= time_ns);
            if is_latest && self.now.replaces(entry) {
                self.end_version(time_ns);
            }
            self.now.map(entry, region, modules);
        }
        is_news
    }

    /// Forgets what was over before a time.
    pub fn forget_before(&mut self, time_ns: u64) {
        while self.past.front().is_some_and(|past| past.until_ns < time_ns) {
            self.past.pop_front();
        }
    }

    fn end_version(&mut self, time_ns: u64) {
        // Before the first look nothing was known.
        if self.looked_ns > 0 {
            self.past.push_back(Past { until_ns: time_ns, mapped: self.now.clone() });
            self.bound();
        }
    }

    fn bound(&mut self) {
        if self.past.len() > MAX_PAST {
            self.past.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, offset: u64) -> MapEntry {
        let line = format!("{start:x}-{:x} r-xp {offset:08x} 00:00 0", start + 0x1000);
        crate::discover::maps::parse_line(line.as_bytes()).unwrap()
    }

    fn map(code: &mut CodeOverTime, time_ns: u64, start: u64, offset: u64) -> bool {
        let entry = entry(start, offset);
        let region = Region { start, end: entry.end, file_offset: offset, file: Code::of_no_file(&entry) };
        code.map(time_ns, &entry, Some(&region), &mut Modules::default())
    }

    /// The offset that the code at an address had at a time.
    fn offset(code: &CodeOverTime, time_ns: u64, address: u64) -> Option<u64> {
        code.at(time_ns).regions.at(address).map(|region| region.file_offset)
    }

    fn looked() -> CodeOverTime {
        let mut code = CodeOverTime::default();
        code.look(100, 110, Mapped::default());
        code
    }

    #[test]
    fn what_lay_at_an_address_is_known_by_time() {
        let mut code = looked();
        assert!(map(&mut code, 200, 0x1000, 1));
        assert!(map(&mut code, 300, 0x1000, 2));
        let offsets = [200, 299, 300, 999].map(|time| offset(&code, time, 0x1000));
        assert_eq!(offsets, [Some(1), Some(1), Some(2), Some(2)]);
    }

    #[test]
    fn what_replaces_nothing_and_what_is_there_already_ends_no_version() {
        let mut code = looked();
        for number in 1..100 {
            assert!(map(&mut code, 200 + number, 0x1000 * number, 0));
            assert!(map(&mut code, 201 + number, 0x1000 * number, 0));
        }
        assert!(code.past.is_empty(), "{}", code.past.len());
        assert_eq!(offset(&code, 999, 0x9000), Some(0));
    }

    #[test]
    fn news_from_before_a_look_is_no_news_of_the_present_but_of_its_time() {
        let mut code = looked();
        map(&mut code, 200, 0x1000, 1);
        let present = code.now().clone();
        code.look(500, 510, present);
        assert!(!map(&mut code, 300, 0x1000, 2));
        let offsets = [250, 300, 509, 510].map(|time| offset(&code, time, 0x1000));
        assert_eq!(offsets, [Some(1), Some(2), Some(2), Some(1)]);
    }

    #[test]
    fn news_from_during_a_look_counts_for_both() {
        let mut code = looked();
        code.look(500, 510, Mapped::default());
        assert!(map(&mut code, 505, 0x1000, 3));
        assert_eq!([505, 510].map(|time| offset(&code, time, 0x1000)), [Some(3), Some(3)]);
    }

    #[test]
    fn of_what_was_long_ago_the_oldest_that_is_known_is_told() {
        let mut code = looked();
        for number in 1..=MAX_PAST as u64 + 10 {
            map(&mut code, 200 + number, 0x1000, number);
        }
        assert_eq!(code.past.len(), MAX_PAST);
        assert_eq!(offset(&code, 0, 0x1000), Some(10));
        code.forget_before(u64::MAX);
        assert_eq!(offset(&code, 0, 0x1000), Some(MAX_PAST as u64 + 10));
    }
}
