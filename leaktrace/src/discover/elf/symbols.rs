//! Looks given names up in a file's `.dynsym` and `.symtab`, in one pass over each and with little memory:
//! string tables of large programs hold 100 MB. Which names matter is for the caller.
use super::{ElfError, ElfFile, format as elf, u32_at, u64_at};
use std::{collections::HashMap, ops::Range};

const MAX_SYMBOLS: u64 = 4 << 20;
const MAX_STRING_BYTES: u64 = 512 << 20;
const MAX_MATCHES: usize = 1 << 20;
/// Far more than any allocator has names; a file made to be slow has more.
const MAX_FOUND: usize = 1024;
const CHUNK_BYTES: u64 = 1 << 20;
const ENTRY_BYTES: u64 = 24;

/// What a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// STT_FUNC or STT_NOTYPE.
    Function,
    /// STT_GNU_IFUNC: the address is that of the resolver.
    Ifunc,
}

/// A defined symbol with one of the names looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Index of the name in the [`NameSet`].
    pub name: usize,
    /// Virtual address.
    pub address: u64,
    /// Bytes; 0 where unknown.
    pub size_bytes: u64,
    /// What it is.
    pub kind: SymbolKind,
}

/// Names to look for.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    names: Vec<Box<[u8]>>,
    index: HashMap<Box<[u8]>, usize>,
    by_tail: HashMap<[u8; 2], Vec<usize>>,
    longest: usize,
}

impl NameSet {
    /// Adds a name of at least two bytes and returns its index; a name that is there keeps its index.
    pub fn insert(&mut self, name: &[u8]) -> usize {
        if let Some(index) = self.index.get(name) {
            return *index;
        }
        let index = self.names.len();
        if let Some(tail) = name.last_chunk::<2>() {
            self.by_tail.entry(*tail).or_default().push(index);
        }
        self.longest = self.longest.max(name.len());
        self.names.push(name.into());
        self.index.insert(name.into(), index);
        index
    }

    /// The index of a name.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The name at an index.
    pub fn name(&self, index: usize) -> &[u8] {
        self.names.get(index).map_or(&[], |name| name)
    }

    /// The names that the string ending at the end of `text` ends with, and where each starts. Linkers let a
    /// name share the tail of a longer one, so a name may start inside another string.
    fn endings<'s>(&'s self, text: &'s [u8]) -> impl Iterator<Item = (usize, usize)> + 's {
        // Names are not empty, and a table may be all zeros.
        let tail = text.last_chunk::<2>().filter(|[_, last]| *last != 0);
        let candidates = tail.and_then(|tail| self.by_tail.get(tail));
        candidates.into_iter().flatten().filter_map(|index| {
            let name = self.names.get(*index)?;
            text.ends_with(name).then(|| (*index, text.len() - name.len()))
        })
    }
}

impl ElfFile<'_> {
    /// Finds the defined symbols that have one of the names, of all versions, from `.dynsym` and `.symtab`.
    ///
    /// # Errors
    /// What reading gives; tables outside the bounds are `Malformed`.
    pub fn symbols(&self, names: &NameSet) -> Result<Vec<Symbol>, ElfError> {
        let mut found = Vec::new();
        if let Some((symbols, strings)) = self.dynamic_tables() {
            self.scan(names, symbols, strings, &mut found)?;
        }
        if let Some((symbols, link)) = self.section(elf::SHT_SYMTAB)
            && let Some(strings) = self.section_at(link)
        {
            self.scan(names, symbols, strings, &mut found)?;
        }
        found.sort_by_key(|symbol: &Symbol| (symbol.address, symbol.name));
        found.dedup_by_key(|symbol| (symbol.address, symbol.name));
        Ok(found)
    }

    fn scan(
        &self,
        names: &NameSet,
        symbols: Range<u64>,
        strings: Range<u64>,
        found: &mut Vec<Symbol>,
    ) -> Result<(), ElfError> {
        if symbols.end - symbols.start > MAX_SYMBOLS * ENTRY_BYTES {
            return Err(ElfError::Malformed("symbol table (more than 4 M symbols)"));
        }
        let matches = self.match_strings(names, strings)?;
        if matches.is_empty() {
            return Ok(());
        }
        self.each_entry(symbols, |entry| {
            if let Some(symbol) = defined_symbol(entry, &matches)
                && self.code_offset(symbol.address).is_some()
            {
                if found.len() >= MAX_FOUND {
                    return Err(ElfError::Malformed("symbol table (too many allocation functions)"));
                }
                found.push(symbol);
            }
            Ok(())
        })
    }

    fn each_entry(
        &self,
        symbols: Range<u64>,
        mut take: impl FnMut(&[u8]) -> Result<(), ElfError>,
    ) -> Result<(), ElfError> {
        let mut at = symbols.start;
        while at < symbols.end {
            let chunk = self.read(at, (symbols.end - at).min(CHUNK_BYTES / ENTRY_BYTES * ENTRY_BYTES))?;
            chunk.chunks_exact(ENTRY_BYTES as usize).try_for_each(&mut take)?;
            if chunk.len() < ENTRY_BYTES as usize {
                break;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Whether a function begins at an address and no other one runs into it from before, by symbols and unwind
    /// information. `false` also where the file says nothing about it.
    pub fn begins_function(&self, address: u64) -> bool {
        let extent = self.function_extent(address);
        if extent.as_ref().is_some_and(|extent| extent.start < address) {
            return false;
        }
        let (mut begins, mut is_inside) = (extent.is_some(), false);
        let section = self.section(elf::SHT_SYMTAB).map(|(symbols, _)| symbols);
        let dynamic = self.dynamic_tables().map(|(symbols, _)| symbols);
        for symbols in section.into_iter().chain(dynamic) {
            let bytes = symbols.end.saturating_sub(symbols.start).min(MAX_SYMBOLS * ENTRY_BYTES);
            let read = self.each_entry(symbols.start..symbols.start.saturating_add(bytes), |entry| {
                if let Some(function) = defined_function(entry) {
                    begins |= function.start == address;
                    is_inside |= function.start < address && address < function.end;
                }
                Ok(())
            });
            if read.is_err() {
                return false;
            }
        }
        begins && !is_inside
    }

    /// Offsets in the string table at which one of the names stands.
    fn match_strings(&self, names: &NameSet, strings: Range<u64>) -> Result<HashMap<u32, usize>, ElfError> {
        if strings.end - strings.start > MAX_STRING_BYTES {
            return Err(ElfError::Malformed("string table (more than 512 MiB)"));
        }
        let mut matches = HashMap::new();
        let keep = names.longest as u64 + 1;
        let mut at = strings.start;
        while at < strings.end {
            let chunk = self.read(at, (strings.end - at).min(CHUNK_BYTES))?;
            let base = at - strings.start;
            for end in memchr::memchr_iter(0, &chunk) {
                for (index, start) in names.endings(chunk.get(..end).unwrap_or(&[])) {
                    if let Ok(offset) = u32::try_from(base + start as u64)
                        && matches.len() < MAX_MATCHES
                    {
                        matches.insert(offset, index);
                    }
                }
            }
            if (chunk.len() as u64) <= keep || at + chunk.len() as u64 >= strings.end {
                break;
            }
            at += chunk.len() as u64 - keep;
        }
        Ok(matches)
    }

    /// File ranges of the dynamic symbols and their strings. Their number is not stored where the loader
    /// looks: it comes from the hash table.
    fn dynamic_tables(&self) -> Option<(Range<u64>, Range<u64>)> {
        let dynamic = self.dynamic?;
        let count = if dynamic.hash != 0 {
            u64::from(u32_at(&self.read_address(dynamic.hash, 8)?, 4)?)
        } else {
            self.gnu_hash_count(dynamic.gnu_hash)?
        };
        let symbols = self.any_offset(dynamic.symbols)?;
        let strings = self.any_offset(dynamic.strings)?;
        let bytes = count.min(MAX_SYMBOLS) * ENTRY_BYTES;
        Some((symbols..symbols.checked_add(bytes)?, strings..strings.checked_add(dynamic.strings_bytes)?))
    }

    /// The number of symbols that a DT_GNU_HASH table implies: one more than the last of the longest chain.
    fn gnu_hash_count(&self, at: u64) -> Option<u64> {
        let header = self.read_address(at, 16)?;
        let (buckets, first) = (u64::from(u32_at(&header, 0)?), u64::from(u32_at(&header, 4)?));
        let filter_words = u64::from(u32_at(&header, 8)?);
        let buckets_at = at.checked_add(16 + filter_words * 8)?;
        let table = self.read_address(buckets_at, buckets * 4)?;
        let last = table.chunks_exact(4).filter_map(|word| u32_at(word, 0)).max()?;
        let mut index = u64::from(last);
        if index < first {
            return Some(first);
        }
        let chains_at = buckets_at.checked_add(buckets * 4)?;
        let chain = self.read_address(chains_at.checked_add((index - first) * 4)?, MAX_SYMBOLS)?;
        for word in chain.chunks_exact(4) {
            index += 1;
            if u32_at(word, 0)? & 1 != 0 {
                return Some(index);
            }
        }
        None
    }

    fn any_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| segment.offset_of(address))
    }

    /// The name and the address (0 where undefined) of a dynamic symbol.
    pub(super) fn dynamic_symbol(&self, index: u64) -> Option<(Vec<u8>, u64)> {
        let dynamic = self.dynamic?;
        let entry =
            self.read_address(dynamic.symbols.checked_add(index.checked_mul(ENTRY_BYTES)?)?, ENTRY_BYTES)?;
        let name_at = dynamic.strings.checked_add(u64::from(u32_at(&entry, 0)?))?;
        let name = self.read_address(name_at, 4096)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        let defined = is_defined(&entry)?;
        Some((name.get(..end)?.to_vec(), if defined { u64_at(&entry, 8)? } else { 0 }))
    }
}

fn is_defined(entry: &[u8]) -> Option<bool> {
    let section = super::u16_at(entry, 6)?;
    Some(section != elf::SHN_UNDEF && section != elf::SHN_ABS)
}

/// The addresses of a symbol that is a function.
fn defined_function(entry: &[u8]) -> Option<Range<u64>> {
    let is_function = matches!(entry.get(4)? & 0xf, elf::STT_FUNC | elf::STT_GNU_IFUNC);
    (is_function && is_defined(entry)?).then_some(())?;
    let start = u64_at(entry, 8)?;
    Some(start..start.saturating_add(u64_at(entry, 16)?))
}

fn defined_symbol(entry: &[u8], matches: &HashMap<u32, usize>) -> Option<Symbol> {
    let kind = match entry.get(4)? & 0xf {
        elf::STT_FUNC | elf::STT_NOTYPE => SymbolKind::Function,
        elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
        _ => return None,
    };
    let name = *matches.get(&u32_at(entry, 0)?)?;
    is_defined(entry)?.then_some(())?;
    Some(Symbol { name, address: u64_at(entry, 8)?, size_bytes: u64_at(entry, 16)?, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_at_the_end_of_a_longer_string() {
        let mut names = NameSet::default();
        let (free, xfree) = (names.insert(b"free"), names.insert(b"_rjem_free"));
        let found: Vec<_> = names.endings(b"my_rjem_free").collect();
        assert_eq!(found, [(free, 8), (xfree, 2)]);
        assert_eq!(names.endings(b"freed").count(), 0);
        assert_eq!(names.endings(b"e").count(), 0);
    }
}
