//! Lays the rows of a table into pages as they come, in ascending order of address: drops what repeats the row
//! before, drops what pruning drops, begins each page with a copy of the rule in force.
use std::collections::HashMap;

use leaktrace_common::unwind::{PAGE_SHIFT, Rule, kind, row};

use crate::unwind::{
    code::Code,
    rule::plain,
    table::{Limits, NO_CFI_RULE, Table, TableFacts, TablePage, UNSUPPORTED_RULE},
};

/// A page counts its rows in 16 bits.
const MAX_PAGE_ROWS: u16 = u16::MAX;

/// A table under construction.
pub(super) struct Builder<'c, 'a, 'e> {
    table: Table,
    numbers: HashMap<Rule, u16>,
    limits: Limits,
    /// Set where rows of code without a call are to be left out.
    prune: Option<&'c mut Code<'a, 'e>>,
    /// The last row pushed: it is kept or dropped when its end is known.
    pending: Option<(u64, u16)>,
    /// The rule that holds at the end of what was laid out.
    in_force: u16,
}

impl<'c, 'a, 'e> Builder<'c, 'a, 'e> {
    pub(super) fn new(
        base_address: u64,
        limits: &Limits,
        prune: Option<&'c mut Code<'a, 'e>>,
        facts: TableFacts,
    ) -> Self {
        let table = Table { base_address, facts, ..Table::default() };
        let mut builder = Builder {
            table,
            numbers: HashMap::new(),
            limits: *limits,
            prune,
            pending: None,
            in_force: NO_CFI_RULE,
        };
        for (number, kind) in [(NO_CFI_RULE, kind::NO_CFI), (UNSUPPORTED_RULE, kind::UNSUPPORTED)] {
            builder.table.rules.push(plain(kind));
            builder.numbers.insert(plain(kind), number);
        }
        builder
    }

    /// Adds a row: from `address` on, `rule` holds. A row at the address of the one before replaces it.
    pub(super) fn push(&mut self, address: u64, rule: &Rule) {
        let number = self.number(rule);
        match &mut self.pending {
            Some((at, pending)) if *at == address => *pending = number,
            Some((_, pending)) if *pending == number => {}
            _ => {
                self.settle(address);
                self.pending = Some((address, number));
            }
        }
    }

    /// The table, complete.
    pub(super) fn finish(mut self) -> Table {
        self.settle(u64::MAX);
        self.table
    }

    fn number(&mut self, rule: &Rule) -> u16 {
        if let Some(&number) = self.numbers.get(rule) {
            return number;
        }
        let next = u16::try_from(self.table.rules.len()).ok().filter(|&n| usize::from(n) < self.limits.rules);
        let Some(number) = next else {
            self.table.facts.lost_rules += 1;
            return UNSUPPORTED_RULE;
        };
        self.table.rules.push(*rule);
        self.numbers.insert(*rule, number);
        number
    }

    /// Lays out the pending row, which holds up to `end`.
    fn settle(&mut self, end: u64) {
        let Some((address, number)) = self.pending.take() else { return };
        if number == self.in_force {
            return;
        }
        let is_ordinary = |rule: &Rule| rule.kind == kind::REGISTER;
        if self.table.rules.get(usize::from(number)).is_some_and(is_ordinary)
            && self.prune.as_mut().is_some_and(|code| !code.may_call(address, end))
        {
            return;
        }
        self.lay(address, number);
    }

    /// Lays out a row, with the pages up to it.
    fn lay(&mut self, address: u64, number: u16) {
        let offset = address.saturating_sub(self.table.base_address);
        let low = (offset & ((1 << PAGE_SHIFT) - 1)) as u16;
        let page = usize::try_from(offset >> PAGE_SHIFT).unwrap_or(usize::MAX);
        if page >= self.limits.pages {
            self.table.facts.lost_rows += 1;
            return;
        }
        while self.table.pages.len() < page {
            self.open_page();
            if self.in_force != NO_CFI_RULE {
                self.add_row(0, self.in_force);
            }
        }
        if self.table.pages.len() == page && (low, number) != (0, NO_CFI_RULE) {
            self.open_page();
            if low != 0 {
                self.add_row(0, self.in_force);
            }
        }
        self.in_force = number;
        if self.table.pages.len() > page {
            self.add_row(low, number);
        }
    }

    fn open_page(&mut self) {
        let first = u32::try_from(self.table.rows.len()).unwrap_or(u32::MAX);
        self.table.pages.push(TablePage { first, rows: 0 });
    }

    /// Adds a row to the last page. Where a limit forbids it, the row before becomes unsupported: its rule does
    /// not hold any further.
    fn add_row(&mut self, low: u16, number: u16) {
        let Some(page) = self.table.pages.last_mut() else { return };
        if page.rows == MAX_PAGE_ROWS || self.table.rows.len() >= self.limits.rows {
            self.table.facts.lost_rows += 1;
            self.in_force = UNSUPPORTED_RULE;
            if let Some(last) = self.table.rows.last_mut().filter(|_| page.rows > 0) {
                *last = row(*last as u16, UNSUPPORTED_RULE);
            }
            return;
        }
        page.rows += 1;
        self.table.rows.push(row(low, number));
        self.table.facts.unsupported_rows += u64::from(number == UNSUPPORTED_RULE);
    }
}
