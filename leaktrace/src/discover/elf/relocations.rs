//! Which symbol a GOT slot holds: needed to see through the PLT and to find what an IFUNC was resolved to.
use super::{ElfFile, Range64, format as elf, u64_at};
use std::collections::HashMap;

const MAX_TABLE_BYTES: u64 = 64 << 20;
const ENTRY_BYTES: usize = 24;

/// A relocation of a slot by a symbol or by a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Address of the slot.
    pub slot: u64,
    /// Index of the dynamic symbol; 0 for IRELATIVE.
    symbol: u32,
    /// For IRELATIVE, the address of the resolver.
    pub resolver: u64,
}

/// What a slot refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSymbol {
    /// The symbol's name.
    pub name: Vec<u8>,
    /// Its address where the same file defines it, else 0.
    pub address: u64,
}

impl ElfFile<'_> {
    /// JUMP_SLOT, GLOB_DAT and IRELATIVE relocations, ascending by slot.
    pub fn relocations(&self) -> &[Relocation] {
        self.relocations.get_or_init(|| {
            let mut all = Vec::new();
            if let Some(dynamic) = self.dynamic {
                self.read_relocations(dynamic.plt_relocations, &mut all);
                self.read_relocations(dynamic.relocations, &mut all);
            } else if let Some((range, _)) = self.section(elf::SHT_RELA) {
                let bytes = self.read(range.start, (range.end - range.start).min(MAX_TABLE_BYTES));
                decode(&bytes.unwrap_or_default(), &mut all);
            }
            all.sort_unstable_by_key(|relocation| relocation.slot);
            all
        })
    }

    fn read_relocations(&self, range: Range64, all: &mut Vec<Relocation>) {
        let bytes = self.read_address(range.start, range.bytes.min(MAX_TABLE_BYTES));
        decode(&bytes.unwrap_or_default(), all);
    }

    /// The symbol whose address the slot holds.
    pub fn slot_symbol(&self, slot: u64) -> Option<SlotSymbol> {
        let all = self.relocations();
        let index = all.binary_search_by_key(&slot, |relocation| relocation.slot).ok()?;
        let relocation = all.get(index).filter(|relocation| relocation.symbol != 0)?;
        let (name, address) = self.dynamic_symbol(u64::from(relocation.symbol))?;
        Some(SlotSymbol { name, address })
    }

    /// Slots that hold the address of the symbol called `name`.
    pub fn slots_of(&self, name: &[u8]) -> Vec<u64> {
        let mut named = HashMap::new();
        let mut is_named = |symbol: u32| {
            *named.entry(symbol).or_insert_with(|| {
                self.dynamic_symbol(u64::from(symbol)).is_some_and(|(found, _)| found == name)
            })
        };
        let with_symbol = self.relocations().iter().filter(|relocation| relocation.symbol != 0);
        with_symbol
            .filter(|relocation| is_named(relocation.symbol))
            .map(|relocation| relocation.slot)
            .collect()
    }
}

fn decode(table: &[u8], all: &mut Vec<Relocation>) {
    for entry in table.chunks_exact(ENTRY_BYTES) {
        let (Some(slot), Some(info), Some(addend)) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16))
        else {
            continue;
        };
        let symbol = (info >> 32) as u32;
        match info as u32 {
            elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT => {
                all.push(Relocation { slot, symbol, resolver: 0 });
            }
            elf::R_X86_64_IRELATIVE => all.push(Relocation { slot, symbol: 0, resolver: addend }),
            _ => {}
        }
    }
}
