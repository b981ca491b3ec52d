//! The maps SLABS, PAGES and RULES in ordinary memory: what the twin of the kernel walker looks rules up in.
use leaktrace_common::unwind::{Mapping, PAGE_SHIFT, Page, Row, Rule, SLAB_ROWS};

use crate::unwind::{store::Write, walk::Rules};

/// What the kernel's maps hold after some [`Write`]s. Grows as they come.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    slabs: Vec<Vec<Row>>,
    pages: Vec<Page>,
    rules: Vec<Rule>,
}

impl Contents {
    /// Carries a change out.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Rules { first, rules } => {
                let empty = crate::unwind::rule::plain(leaktrace_common::unwind::kind::NO_CFI);
                copy_to(&mut self.rules, *first as usize, rules, empty);
            }
            Write::Slab { slab, first_row, rows } => {
                let slab = usize::from(*slab);
                if self.slabs.len() <= slab {
                    self.slabs.resize(slab + 1, Vec::new());
                }
                if let Some(slab) = self.slabs.get_mut(slab) {
                    slab.resize(SLAB_ROWS, 0);
                    copy_to(slab, *first_row as usize, rows, 0);
                }
            }
            Write::Pages { first, pages } => {
                copy_to(&mut self.pages, *first as usize, pages, Page { first: 0, rows: 0, slab: 0 });
            }
        }
    }
}

impl Rules for Contents {
    fn rule_at(&self, mapping: &Mapping, address: u64) -> Option<Rule> {
        let offset = address.wrapping_sub(mapping.bias);
        let page =
            u32::try_from(offset >> PAGE_SHIFT).ok().filter(|&page| page < u32::from(mapping.pages))?;
        let page = self.pages.get(mapping.first_page.checked_add(page)? as usize)?;
        let slab = self.slabs.get(usize::from(page.slab))?;
        let rows = slab.get(page.first as usize..)?.get(..usize::from(page.rows))?;
        let low = (offset & ((1 << PAGE_SHIFT) - 1)) as u32;
        let last = rows.partition_point(|row| row & 0xffff <= low).checked_sub(1)?;
        self.rules.get((rows.get(last)? >> 16) as usize).copied()
    }
}

/// Copies values to a place, growing the vector up to there.
fn copy_to<T: Copy>(to: &mut Vec<T>, first: usize, values: &[T], empty: T) {
    let end = first + values.len();
    if to.len() < end {
        to.resize(end, empty);
    }
    if let Some(place) = to.get_mut(first..end) {
        place.copy_from_slice(values);
    }
}
