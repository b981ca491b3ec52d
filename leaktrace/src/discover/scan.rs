//! Finds the allocation functions in one file and chooses those that need a probe: of several names for one
//! address the best, and no function that only passes its caller on to another one of the table. What the
//! process makes of the file (where it is mapped, what IFUNCs were resolved to) is for [`super`].
use super::{
    allocators::{Allocator, Class, Entry, HookTable},
    elf::{
        ElfError, ElfFile,
        symbols::{NameSet, Symbol, SymbolKind},
    },
    object::ObjectFile,
    options::FunctionAt,
    reach::{self, Reach, Target},
};
use leaktrace_common::hook::{Hook, Shape};
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

/// Code is kept and looked at up to here: prologues, wrappers and the loops that lead back into them are
/// shorter.
const MAX_CODE_BYTES: u64 = 16 << 10;
/// Taken where neither a symbol nor unwind information says where a function ends.
const UNKNOWN_SIZE_BYTES: u64 = 4096;

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFunction {
    /// The best of its names.
    pub name: String,
    /// What it does; arguments as they are at its first instruction.
    pub hook: Hook,
    /// Its interface.
    pub class: Class,
    /// Address in the file's address space, without the load bias.
    pub address: u64,
    /// Offset of its first instruction in the file.
    pub file_offset: u64,
    /// Its size by symbol or unwind information; 0 where neither says.
    pub size_bytes: u64,
    /// Its code from the first instruction on, at most 16 KiB.
    pub code: Vec<u8>,
}

/// A function that was found and will not be probed, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedFunction {
    /// Its name.
    pub name: String,
    /// A clause for people.
    pub reason: String,
}

/// A function whose address only the running process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnresolvedIfunc {
    /// Its entry in the table.
    pub entry: Entry,
    /// Address of its resolver.
    pub resolver: u64,
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// GNU build id.
    pub build_id: Option<Vec<u8>>,
    /// Allocators with their functions, by name.
    pub allocators: BTreeMap<Allocator, ScannedAllocator>,
    /// `__cxa_throw` and the like.
    pub throws: Vec<FoundFunction>,
    /// IFUNCs of the table.
    pub ifuncs: Vec<UnresolvedIfunc>,
    /// Whose unprefixed functions they are.
    pub owner: Option<Allocator>,
}

/// One allocator in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScannedAllocator {
    /// Functions to probe.
    pub functions: Vec<FoundFunction>,
    /// Functions without a probe because they reach probed ones on every path.
    pub left_out: Vec<String>,
    /// Functions that could not be used.
    pub failed: Vec<FailedFunction>,
}

/// Scans a file. With `forced` it is taken as an allocator if it has any function of the table.
///
/// # Errors
/// What reading and parsing give.
pub fn scan(
    file: &ObjectFile,
    table: &HookTable,
    forced: bool,
    extra: &[FunctionAt],
) -> Result<Scan, ElfError> {
    let elf = ElfFile::parse(file)?;
    let mut scan = Scan { build_id: elf.build_id(), ..Scan::default() };
    if elf.soname().is_some_and(|name| name.starts_with(b"ld-linux")) {
        // Before 2.31 glibc's loader exported a malloc of its own, used until libc's is there: not the
        // program's heap.
        return Ok(scan);
    }
    let symbols = elf.symbols(&table.names)?;
    let (throws, heap): (Vec<_>, Vec<_>) =
        best_names(&symbols, table).into_iter().partition(|(_, entry)| entry.class == Class::Throw);
    scan.throws = throws.iter().filter_map(|(symbol, entry)| function(&elf, symbol, entry).ok()).collect();
    if forced || is_allocator(&heap, elf.is_static()) {
        let defined: HashSet<usize> = symbols.iter().map(|symbol| symbol.name).collect();
        let owner = table.owner(|name| defined.contains(&name));
        scan.owner = Some(owner);
        choose(&elf, table, &heap, owner, &mut scan);
    }
    if !scan.allocators.is_empty() && moves_itself(&elf) {
        scan.allocators.values_mut().for_each(ScannedAllocator::refuse_to_be_moved);
    }
    for given in extra {
        add_given(&elf, given, &mut scan);
    }
    // What was found by then may be a part of it.
    if elf.is_too_dear() { Err(ElfError::TooDear) } else { Ok(scan) }
}

/// Functions that move the code of the file that they are in to larger pages: of BOLT's `--hugify`, and of Intel's
/// library for that.
const MOVERS: [&str; 4] = [
    "__bolt_hugify_self",
    "MapStaticCodeToLargePages",
    "MapStaticCodeRangeToLargePages",
    "MapDSOToLargePages",
];

/// Whether the file has code that moves its text: breakpoints would be copied with it, and nothing stand behind them.
fn moves_itself(elf: &ElfFile<'_>) -> bool {
    let mut names = NameSet::default();
    for name in MOVERS {
        names.insert(name.as_bytes());
    }
    elf.symbols(&names).is_ok_and(|found| !found.is_empty())
}

impl ScannedAllocator {
    fn refuse_to_be_moved(&mut self) {
        self.failed.extend(self.functions.drain(..).map(|function| FailedFunction {
            name: function.name,
            reason:
                "its file moves its own code to larger pages: breakpoints would be copied with it".to_owned(),
        }));
    }
}

/// One symbol for each address, with the best of its names.
fn best_names<'t>(symbols: &[Symbol], table: &'t HookTable) -> Vec<(Symbol, &'t Entry)> {
    let mut best: BTreeMap<u64, (Symbol, &Entry)> = BTreeMap::new();
    for symbol in symbols {
        let Some(entry) = table.entry(symbol.name) else { continue };
        let place = best.entry(symbol.address).or_insert((*symbol, entry));
        if HookTable::rank(entry) < HookTable::rank(place.1) {
            *place = (*symbol, entry);
        }
        // An alias that may throw makes the address one that may throw.
        if entry.hook.may_throw && !place.1.hook.may_throw && place.1.class != Class::C {
            *place = (*symbol, entry);
        }
    }
    best.into_values().collect()
}

/// C functions that allocate and free: operators alone take their memory from somewhere else. In a static program that
/// never frees, the linker left `free` out.
fn is_allocator(found: &[(Symbol, &Entry)], is_static: bool) -> bool {
    let has =
        |shape: Shape| found.iter().any(|(_, entry)| entry.class == Class::C && entry.hook.shape == shape);
    has(Shape::Allocate) && (is_static || has(Shape::Free))
}

fn choose(
    elf: &ElfFile<'_>,
    table: &HookTable,
    found: &[(Symbol, &Entry)],
    owner: Allocator,
    scan: &mut Scan,
) {
    let by_address: BTreeMap<u64, &Entry> =
        found.iter().map(|(symbol, entry)| (symbol.address, *entry)).collect();
    let probed = |target| probed_shape(elf, table, &by_address, target);
    for (symbol, entry) in found {
        if symbol.kind == SymbolKind::Ifunc {
            scan.ifuncs.push(UnresolvedIfunc { entry: (*entry).clone(), resolver: symbol.address });
            continue;
        }
        let allocator = entry.allocator.unwrap_or(owner);
        let group = scan.allocators.entry(allocator).or_default();
        match function(elf, symbol, entry) {
            Err(reason) => {
                group.failed.push(FailedFunction { name: entry.name.clone(), reason: reason.into() });
            }
            Ok(mut function) => {
                let shape = entry.hook.shape;
                let reached = match reach::reach(&function.code, function.address, shape, probed) {
                    Reach::Jumps => true,
                    // A C function's caller is of more use than the function itself; an operator's own frame
                    // does no harm.
                    Reach::Calls => entry.class != Class::C || shape == Shape::Free,
                    Reach::Own => false,
                };
                if reached {
                    group.left_out.push(entry.name.clone());
                } else {
                    function.hook.zero_frees =
                        shape == Shape::Reallocate && allocator.realloc_of_zero_frees();
                    group.functions.push(function);
                }
            }
        }
    }
}

/// What a call or jump target does if it is a function of the table, in this file or behind the PLT.
fn probed_shape(
    elf: &ElfFile<'_>,
    table: &HookTable,
    by_address: &BTreeMap<u64, &Entry>,
    target: Target,
) -> Option<Shape> {
    let slot = match target {
        Target::Address(address) => match by_address.get(&address) {
            Some(entry) => return Some(entry.hook.shape),
            None => reach::plt_slot(&elf.code(address, 16)?, address)?,
        },
        Target::Slot(slot) => slot,
    };
    let symbol = elf.slot_symbol(slot)?;
    table.entry_of(&symbol.name).map(|entry| entry.hook.shape)
}

fn function(elf: &ElfFile<'_>, symbol: &Symbol, entry: &Entry) -> Result<FoundFunction, &'static str> {
    at_address(elf, &entry.name, entry.hook, entry.class, symbol.address, symbol.size_bytes)
}

/// The function at an address, its code cut at its end.
pub(super) fn at_address(
    elf: &ElfFile<'_>,
    name: &str,
    hook: Hook,
    class: Class,
    address: u64,
    symbol_bytes: u64,
) -> Result<FoundFunction, &'static str> {
    let file_offset = elf.code_offset(address).ok_or("its address is not in the file's code")?;
    let size_bytes = match symbol_bytes {
        0 => elf.function_extent(address).map_or(0, |extent| extent.end - address),
        known => known,
    };
    let length = if size_bytes == 0 { UNKNOWN_SIZE_BYTES } else { size_bytes.min(MAX_CODE_BYTES) };
    let code = elf.code(address, length).ok_or("its code cannot be read from the file")?;
    Ok(FoundFunction { name: name.to_owned(), hook, class, address, file_offset, size_bytes, code })
}

fn add_given(elf: &ElfFile<'_>, given: &FunctionAt, scan: &mut Scan) {
    let found = elf
        .code_address(given.file_offset)
        .ok_or("the offset is not in the file's code")
        .and_then(|address| at_address(elf, &given.name, given.hook, Class::C, address, 0));
    let group = scan.allocators.entry(Allocator::Custom).or_default();
    match found {
        Ok(function) => group.functions.push(function),
        Err(reason) => group.failed.push(FailedFunction { name: given.name.clone(), reason: reason.into() }),
    }
}

/// A function's code for following jumps out of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Address of the first byte.
    pub address: u64,
    /// Offset of the first byte in the file.
    pub file_offset: u64,
    /// All of it, if the function is at most 64 KiB.
    pub bytes: Vec<u8>,
}

/// Gives the functions of a file by where a jump leads.
#[derive(Debug)]
pub struct CodeSource<'f> {
    elf: ElfFile<'f>,
}

impl<'f> CodeSource<'f> {
    /// Reads the file's headers.
    ///
    /// # Errors
    /// What parsing gives.
    pub fn new(file: &'f ObjectFile) -> Result<CodeSource<'f>, ElfError> {
        ElfFile::parse(file).map(|elf| CodeSource { elf })
    }

    /// The whole function that a target lies in, also through the PLT if this file defines the symbol. `None`
    /// where its end is not known.
    pub fn function(&self, target: Target) -> Option<Code> {
        let address = match target {
            Target::Address(address) => match reach::plt_slot(&self.elf.code(address, 16)?, address) {
                Some(slot) => self.defined_behind(slot)?,
                None => address,
            },
            Target::Slot(slot) => self.defined_behind(slot)?,
        };
        let extent: Range<u64> = self.elf.function_extent(address)?;
        let length = extent.end - extent.start;
        let bytes = self.elf.code(extent.start, length).filter(|_| length <= 64 << 10)?;
        Some(Code { address: extent.start, file_offset: self.elf.code_offset(extent.start)?, bytes })
    }

    /// Whether a function begins at an address, as far as the file says, and no other runs into it.
    pub fn begins_function(&self, address: u64) -> bool {
        self.elf.begins_function(address)
    }

    fn defined_behind(&self, slot: u64) -> Option<u64> {
        self.elf.slot_symbol(slot).map(|symbol| symbol.address).filter(|address| *address != 0)
    }
}
