//! Numbers for rules over all tables, counted by reference: equal rules share a number, and a number is given
//! again once no table has its rule.
use std::collections::{HashMap, hash_map::Entry};

use leaktrace_common::unwind::{Rule, kind};

use crate::unwind::{
    rule::plain,
    table::{NO_CFI_RULE, UNSUPPORTED_RULE},
};

/// The rules in use, each with its number.
#[derive(Clone, Debug)]
pub(super) struct RuleNumbers {
    numbers: HashMap<Rule, u16>,
    /// By number: the rule and how many tables have it.
    slots: Vec<(Rule, u32)>,
    free: Vec<u16>,
    capacity: u16,
    lost: u64,
}

impl RuleNumbers {
    /// At most `capacity` rules. The two that every table begins with have the same numbers here, for good.
    pub(super) fn new(capacity: u16) -> Self {
        let mut rules = RuleNumbers {
            numbers: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            capacity: capacity.max(UNSUPPORTED_RULE + 1),
            lost: 0,
        };
        rules.acquire_all(&[plain(kind::NO_CFI), plain(kind::UNSUPPORTED)]);
        rules
    }

    /// The rules that are always there.
    pub(super) fn fixed(&self) -> Vec<(u16, Rule)> {
        vec![(NO_CFI_RULE, plain(kind::NO_CFI)), (UNSUPPORTED_RULE, plain(kind::UNSUPPORTED))]
    }

    /// Whether all of these have a number or can get one.
    pub(super) fn has_room_for(&self, rules: &[Rule]) -> bool {
        let new = rules.iter().filter(|rule| !self.numbers.contains_key(rule)).count();
        new <= self.free.len() + usize::from(self.capacity).saturating_sub(self.slots.len())
    }

    /// The numbers of a table's rules, each with one more reference, and which of them are new, in ascending
    /// order. A rule without a number becomes unsupported, and counts as lost.
    pub(super) fn acquire_all(&mut self, rules: &[Rule]) -> (Vec<u16>, Vec<(u16, Rule)>) {
        let mut new = Vec::new();
        let numbers = rules.iter().map(|rule| self.acquire(rule, &mut new)).collect();
        new.sort_unstable_by_key(|&(number, _)| number);
        (numbers, new)
    }

    fn acquire(&mut self, rule: &Rule, new: &mut Vec<(u16, Rule)>) -> u16 {
        let number = match self.numbers.entry(*rule) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let next = || u16::try_from(self.slots.len()).ok().filter(|&number| number < self.capacity);
                let Some(number) = self.free.pop().or_else(next) else {
                    self.lost += 1;
                    return UNSUPPORTED_RULE;
                };
                if usize::from(number) == self.slots.len() {
                    self.slots.push((*rule, 0));
                } else if let Some(slot) = self.slots.get_mut(usize::from(number)) {
                    *slot = (*rule, 0);
                }
                new.push((number, *rule));
                *entry.insert(number)
            }
        };
        if let Some((_, references)) = self.slots.get_mut(usize::from(number)) {
            *references += 1;
        }
        number
    }

    /// Drops one reference to a number.
    pub(super) fn release(&mut self, number: u16) {
        let Some((rule, references)) = self.slots.get_mut(usize::from(number)) else { return };
        *references = references.saturating_sub(1);
        if *references == 0 && number > UNSUPPORTED_RULE {
            self.numbers.remove(rule);
            self.free.push(number);
        }
    }

    /// How many rules have a number.
    pub(super) fn used(&self) -> usize {
        self.numbers.len()
    }

    /// How many did not get one, over time.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}
