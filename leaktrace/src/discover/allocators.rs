//! The one table of allocation functions: names, what their arguments mean, and how the allocator they belong
//! to is called. A new allocator is a new row here. Where they are in a file is for [`super::scan`].
//!
//! Not in the table: `nallocx`, `malloc_usable_size` and the like allocate nothing; `mi_expand`,
//! `mi_reallocarr`, `mi_strdup`, `mi_new_realloc` and the like reach functions that are in it;
//! `mi_heap_destroy` frees in bulk, without a pointer that a probe could see: its blocks stay outstanding.
use super::elf::symbols::NameSet;
use leaktrace_common::{
    hook::{Argument, Hook, Shape},
    sample::SizeModel,
};

/// What kind of interface a function belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A C function.
    C,
    /// C++ `operator new` in any form.
    CxxNew,
    /// C++ `operator delete` in any form.
    CxxDelete,
    /// `__cxa_throw`: not an allocation, but the end of one whose return cannot be probed.
    Throw,
}

/// A name of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The symbol.
    pub name: String,
    /// What it does, for a probe on its first instruction.
    pub hook: Hook,
    /// Its interface.
    pub class: Class,
    /// The allocator that the name itself tells, as that of `je_malloc`.
    pub allocator: Option<Allocator>,
}

/// An allocator as reports name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Allocator {
    /// The GNU C library's.
    Glibc,
    /// musl's.
    Musl,
    /// jemalloc, under its own or a prefixed name.
    Jemalloc,
    /// gperftools' tcmalloc.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// A file that defines malloc and free and is none of the above: sanitizers, debugging preloads, a
    /// program's own.
    Custom,
}

impl Allocator {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Allocator::Glibc => "glibc",
            Allocator::Musl => "musl",
            Allocator::Jemalloc => "jemalloc",
            Allocator::Tcmalloc => "tcmalloc",
            Allocator::Mimalloc => "mimalloc",
            Allocator::Custom => "custom",
        }
    }

    /// Whether `realloc(p, 0)` frees `p` and returns NULL: measured for glibc 2.36, jemalloc 5.3 and
    /// gperftools 2.10; musl 1.2.3 and mimalloc 2.0.9 return a block of size 0. An unknown one is taken to be
    /// like glibc: it returns NULL only after freeing.
    pub fn realloc_of_zero_frees(self) -> bool {
        !matches!(self, Allocator::Musl | Allocator::Mimalloc)
    }

    /// What it takes for a request.
    pub fn size_model(self) -> SizeModel {
        match self {
            Allocator::Glibc => SizeModel::GlibcChunk,
            Allocator::Musl => SizeModel::MuslSlot,
            Allocator::Tcmalloc => SizeModel::Sixteens,
            Allocator::Jemalloc | Allocator::Mimalloc => SizeModel::Quarters,
            Allocator::Custom => SizeModel::Asked,
        }
    }

    /// Whether a call of the function may reach other probed functions, or map memory where no unwind information
    /// tells that it was this function: see [`Hook::nests`]. When in doubt, yes: it costs a map write for each
    /// call that sampling passes over. glibc's malloc and calloc reach nothing that is probed (its realloc and
    /// memalign reach malloc), nor do jemalloc's and tcmalloc's functions but those that align (tcmalloc's
    /// posix_memalign reaches memalign); musl has no unwind information.
    pub fn nests(self, function: &str, hook: Hook) -> bool {
        if hook.may_throw || matches!(hook.shape, Shape::Free | Shape::Exit | Shape::Throw) {
            return false;
        }
        match self {
            Allocator::Glibc => !(function.ends_with("malloc") || function.ends_with("calloc")),
            Allocator::Jemalloc | Allocator::Tcmalloc => {
                function.contains("align") || function.contains("valloc")
            }
            Allocator::Musl | Allocator::Mimalloc | Allocator::Custom => true,
        }
    }
}

const fn allocate(size: Argument) -> Hook {
    Hook { size, ..Hook::new(Shape::Allocate) }
}

const fn allocate_array(count: Argument, size: Argument) -> Hook {
    Hook { count, size, ..Hook::new(Shape::Allocate) }
}

const fn reallocate(pointer: Argument, size: Argument) -> Hook {
    Hook { pointer, size, ..Hook::new(Shape::Reallocate) }
}

const fn reallocate_array(pointer: Argument, count: Argument, size: Argument) -> Hook {
    Hook { count, ..reallocate(pointer, size) }
}

const fn reallocate_or_free(pointer: Argument, size: Argument) -> Hook {
    Hook { failure_frees: true, ..reallocate(pointer, size) }
}

const fn store(pointer: Argument, size: Argument) -> Hook {
    Hook { pointer, size, ..Hook::new(Shape::StoreThrough) }
}

const FREE: Hook = Hook { pointer: 0, ..Hook::new(Shape::Free) };
const THROWING: Hook = Hook { may_throw: true, ..allocate(0) };

/// Functions that exist under plain names and under any prefix.
const STANDARD: &[(&str, Hook)] = &[
    ("malloc", allocate(0)),
    ("calloc", allocate_array(0, 1)),
    ("realloc", reallocate(0, 1)),
    ("reallocarray", reallocate_array(0, 1, 2)),
    ("reallocf", reallocate_or_free(0, 1)),
    ("memalign", allocate(1)),
    ("aligned_alloc", allocate(1)),
    ("posix_memalign", store(0, 2)),
    ("valloc", allocate(0)),
    ("pvalloc", allocate(0)),
    ("free", FREE),
    ("cfree", FREE),
    ("free_sized", FREE),
    ("free_aligned_sized", FREE),
    ("mallocx", allocate(0)),
    ("rallocx", reallocate(0, 1)),
    ("xallocx", Hook { pointer: 0, size: 1, ..Hook::new(Shape::ResizeInPlace) }),
    ("dallocx", FREE),
    ("sdallocx", FREE),
];

/// Prefixes of [`STANDARD`] and the allocator that they tell.
const PREFIXES: &[(&str, Option<Allocator>)] = &[
    ("", None),
    ("__libc_", None),
    ("__", None),
    ("je_", Some(Allocator::Jemalloc)),
    ("_rjem_", Some(Allocator::Jemalloc)),
    ("mi_", Some(Allocator::Mimalloc)),
    ("tc_", Some(Allocator::Tcmalloc)),
];

/// Frees only what is mimalloc's, by a jump to `mi_free`: a probe would see frees that are none.
const NOT_HOOKED: &str = "mi_cfree";

/// gperftools' names of the C++ operators, which are other functions than `_Znwm` in its debug library.
const TCMALLOC: &[(&str, Hook, Class)] = &[
    ("tc_malloc_skip_new_handler", allocate(0), Class::C),
    ("tc_new", THROWING, Class::CxxNew),
    ("tc_newarray", THROWING, Class::CxxNew),
    ("tc_new_aligned", THROWING, Class::CxxNew),
    ("tc_newarray_aligned", THROWING, Class::CxxNew),
    ("tc_new_nothrow", allocate(0), Class::CxxNew),
    ("tc_newarray_nothrow", allocate(0), Class::CxxNew),
    ("tc_new_aligned_nothrow", allocate(0), Class::CxxNew),
    ("tc_newarray_aligned_nothrow", allocate(0), Class::CxxNew),
    ("tc_delete", FREE, Class::CxxDelete),
    ("tc_deletearray", FREE, Class::CxxDelete),
    ("tc_delete_sized", FREE, Class::CxxDelete),
    ("tc_deletearray_sized", FREE, Class::CxxDelete),
    ("tc_delete_nothrow", FREE, Class::CxxDelete),
    ("tc_deletearray_nothrow", FREE, Class::CxxDelete),
    ("tc_delete_aligned", FREE, Class::CxxDelete),
    ("tc_deletearray_aligned", FREE, Class::CxxDelete),
    ("tc_delete_sized_aligned", FREE, Class::CxxDelete),
    ("tc_deletearray_sized_aligned", FREE, Class::CxxDelete),
    ("tc_delete_aligned_nothrow", FREE, Class::CxxDelete),
    ("tc_deletearray_aligned_nothrow", FREE, Class::CxxDelete),
];

/// mimalloc's own functions (mimalloc.h of 2.0 to 2.2). Those with `heap` take it as their first argument.
const MIMALLOC: &[(&str, Hook, Class)] = &[
    ("mi_zalloc", allocate(0), Class::C),
    ("mi_malloc_small", allocate(0), Class::C),
    ("mi_zalloc_small", allocate(0), Class::C),
    ("mi_mallocn", allocate_array(0, 1), Class::C),
    ("mi_reallocn", reallocate_array(0, 1, 2), Class::C),
    ("mi_rezalloc", reallocate(0, 1), Class::C),
    ("mi_recalloc", reallocate_array(0, 1, 2), Class::C),
    ("mi_malloc_aligned", allocate(0), Class::C),
    ("mi_malloc_aligned_at", allocate(0), Class::C),
    ("mi_zalloc_aligned", allocate(0), Class::C),
    ("mi_zalloc_aligned_at", allocate(0), Class::C),
    ("mi_calloc_aligned", allocate_array(0, 1), Class::C),
    ("mi_calloc_aligned_at", allocate_array(0, 1), Class::C),
    ("mi_realloc_aligned", reallocate(0, 1), Class::C),
    ("mi_realloc_aligned_at", reallocate(0, 1), Class::C),
    ("mi_rezalloc_aligned", reallocate(0, 1), Class::C),
    ("mi_rezalloc_aligned_at", reallocate(0, 1), Class::C),
    ("mi_recalloc_aligned", reallocate_array(0, 1, 2), Class::C),
    ("mi_recalloc_aligned_at", reallocate_array(0, 1, 2), Class::C),
    ("mi_heap_malloc", allocate(1), Class::C),
    ("mi_heap_zalloc", allocate(1), Class::C),
    ("mi_heap_malloc_small", allocate(1), Class::C),
    ("mi_heap_zalloc_small", allocate(1), Class::C),
    ("mi_heap_calloc", allocate_array(1, 2), Class::C),
    ("mi_heap_mallocn", allocate_array(1, 2), Class::C),
    ("mi_heap_realloc", reallocate(1, 2), Class::C),
    ("mi_heap_reallocn", reallocate_array(1, 2, 3), Class::C),
    ("mi_heap_reallocf", reallocate_or_free(1, 2), Class::C),
    ("mi_heap_rezalloc", reallocate(1, 2), Class::C),
    ("mi_heap_recalloc", reallocate_array(1, 2, 3), Class::C),
    ("mi_heap_malloc_aligned", allocate(1), Class::C),
    ("mi_heap_malloc_aligned_at", allocate(1), Class::C),
    ("mi_heap_zalloc_aligned", allocate(1), Class::C),
    ("mi_heap_zalloc_aligned_at", allocate(1), Class::C),
    ("mi_heap_calloc_aligned", allocate_array(1, 2), Class::C),
    ("mi_heap_calloc_aligned_at", allocate_array(1, 2), Class::C),
    ("mi_heap_realloc_aligned", reallocate(1, 2), Class::C),
    ("mi_heap_realloc_aligned_at", reallocate(1, 2), Class::C),
    ("mi_heap_rezalloc_aligned", reallocate(1, 2), Class::C),
    ("mi_heap_rezalloc_aligned_at", reallocate(1, 2), Class::C),
    ("mi_heap_recalloc_aligned", reallocate_array(1, 2, 3), Class::C),
    ("mi_heap_recalloc_aligned_at", reallocate_array(1, 2, 3), Class::C),
    ("mi_free_size", FREE, Class::C),
    ("mi_free_size_aligned", FREE, Class::C),
    ("mi_free_aligned", FREE, Class::C),
    ("mi_new", THROWING, Class::CxxNew),
    ("mi_new_aligned", THROWING, Class::CxxNew),
    ("mi_new_n", Hook { may_throw: true, ..allocate_array(0, 1) }, Class::CxxNew),
    ("mi_new_nothrow", allocate(0), Class::CxxNew),
    ("mi_new_aligned_nothrow", allocate(0), Class::CxxNew),
    ("mi_heap_alloc_new", Hook { may_throw: true, ..allocate(1) }, Class::CxxNew),
    ("mi_heap_alloc_new_n", Hook { may_throw: true, ..allocate_array(1, 2) }, Class::CxxNew),
    ("_aligned_malloc", allocate(0), Class::C),
    ("vfree", FREE, Class::C),
];

/// The operators by their names in the Itanium C++ ABI.
const OPERATORS: &[(&str, Hook, Class)] = &[
    ("_Znwm", THROWING, Class::CxxNew),
    ("_Znam", THROWING, Class::CxxNew),
    ("_ZnwmSt11align_val_t", THROWING, Class::CxxNew),
    ("_ZnamSt11align_val_t", THROWING, Class::CxxNew),
    ("_ZnwmRKSt9nothrow_t", allocate(0), Class::CxxNew),
    ("_ZnamRKSt9nothrow_t", allocate(0), Class::CxxNew),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", allocate(0), Class::CxxNew),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", allocate(0), Class::CxxNew),
    ("_ZdlPv", FREE, Class::CxxDelete),
    ("_ZdaPv", FREE, Class::CxxDelete),
    ("_ZdlPvm", FREE, Class::CxxDelete),
    ("_ZdaPvm", FREE, Class::CxxDelete),
    ("_ZdlPvRKSt9nothrow_t", FREE, Class::CxxDelete),
    ("_ZdaPvRKSt9nothrow_t", FREE, Class::CxxDelete),
    ("_ZdlPvSt11align_val_t", FREE, Class::CxxDelete),
    ("_ZdaPvSt11align_val_t", FREE, Class::CxxDelete),
    ("_ZdlPvmSt11align_val_t", FREE, Class::CxxDelete),
    ("_ZdaPvmSt11align_val_t", FREE, Class::CxxDelete),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", FREE, Class::CxxDelete),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", FREE, Class::CxxDelete),
];

/// Where an exception that crosses a throwing `operator new` begins.
const THROWS: &[&str] = &["__cxa_throw", "__cxa_rethrow"];

/// Symbols that tell whose plain `malloc` a file defines, the surest first.
const MARKERS: &[(&str, Allocator)] = &[
    ("mallocx", Allocator::Jemalloc),
    ("_int_malloc", Allocator::Glibc),
    ("__libc_mallopt", Allocator::Glibc),
    ("__libc_malloc_impl", Allocator::Musl),
    ("tc_malloc", Allocator::Tcmalloc),
    ("mi_malloc", Allocator::Mimalloc),
    ("gnu_get_libc_version", Allocator::Glibc),
    ("__libc_freeres", Allocator::Glibc),
    ("__dls3", Allocator::Musl),
    ("__libc_start_main", Allocator::Musl),
];

/// The hook of a standard function by its plain name.
pub fn hook_of(name: &str) -> Option<Hook> {
    STANDARD.iter().find(|(known, _)| *known == name).map(|(_, hook)| *hook)
}

/// The table as names to look for.
#[derive(Clone, Debug)]
pub struct HookTable {
    /// Every name of interest: entries and markers.
    pub names: NameSet,
    entries: Vec<Option<Entry>>,
}

impl HookTable {
    /// The table with the user's prefixes added.
    pub fn new(prefixes: &[String]) -> HookTable {
        let mut table = HookTable { names: NameSet::default(), entries: Vec::new() };
        for (prefix, allocator) in PREFIXES {
            table.add_standard(prefix, *allocator);
        }
        for prefix in prefixes {
            table.add_standard(prefix, None);
        }
        for (rows, allocator) in
            [(TCMALLOC, Some(Allocator::Tcmalloc)), (MIMALLOC, Some(Allocator::Mimalloc)), (OPERATORS, None)]
        {
            for (name, hook, class) in rows {
                table.add(Entry { name: (*name).into(), hook: *hook, class: *class, allocator });
            }
        }
        for name in THROWS {
            let (hook, class) = (Hook::new(Shape::Throw), Class::Throw);
            table.add(Entry { name: (*name).into(), hook, class, allocator: None });
        }
        for (name, _) in MARKERS {
            table.names.insert(name.as_bytes());
        }
        table
    }

    fn add_standard(&mut self, prefix: &str, allocator: Option<Allocator>) {
        let names = STANDARD.iter().map(|(base, hook)| (format!("{prefix}{base}"), hook));
        for (name, hook) in names.filter(|(name, _)| name != NOT_HOOKED) {
            self.add(Entry { name, hook: *hook, class: Class::C, allocator });
        }
    }

    fn add(&mut self, entry: Entry) {
        let index = self.names.insert(entry.name.as_bytes());
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        if let Some(place @ None) = self.entries.get_mut(index) {
            *place = Some(entry);
        }
    }

    /// The entry of a name of [`HookTable::names`]; `None` for a mere marker.
    pub fn entry(&self, name: usize) -> Option<&Entry> {
        self.entries.get(name)?.as_ref()
    }

    /// The entry of a symbol.
    pub fn entry_of(&self, symbol: &[u8]) -> Option<&Entry> {
        self.entry(self.names.find(symbol)?)
    }

    /// Whose plain `malloc` it is, given which names of the table the file defines.
    pub fn owner(&self, defines: impl Fn(usize) -> bool) -> Allocator {
        let has = |name: &str| self.names.find(name.as_bytes()).is_some_and(&defines);
        MARKERS.iter().find(|(name, _)| has(name)).map_or(Allocator::Custom, |(_, allocator)| *allocator)
    }

    /// How good a name is as the label of an address that several name: plain C names first, operators last.
    pub fn rank(entry: &Entry) -> (u8, usize) {
        let plain = STANDARD.iter().any(|(name, _)| *name == entry.name);
        let rank = match entry.class {
            _ if plain => 0,
            Class::CxxNew | Class::CxxDelete if entry.name.starts_with("_Z") => 1,
            Class::C if entry.name.starts_with('_') => 3,
            _ => 2,
        };
        (rank, entry.name.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_in_the_table_twice_with_different_hooks() {
        let table = HookTable::new(&[]);
        let all: Vec<(String, Hook)> = PREFIXES
            .iter()
            .flat_map(|(prefix, _)| {
                STANDARD.iter().map(move |(base, hook)| (format!("{prefix}{base}"), *hook))
            })
            .filter(|(name, _)| name != NOT_HOOKED)
            .chain(
                [TCMALLOC, MIMALLOC, OPERATORS]
                    .concat()
                    .into_iter()
                    .map(|(name, hook, _)| (name.to_owned(), hook)),
            )
            .collect();
        for (name, hook) in all {
            assert_eq!(table.entry_of(name.as_bytes()).unwrap().hook, hook, "{name}");
        }
    }

    #[test]
    fn every_new_that_is_not_nothrow_may_throw() {
        for (name, hook, class) in [TCMALLOC, MIMALLOC, OPERATORS].concat() {
            let throws = class == Class::CxxNew && !name.contains("nothrow");
            assert_eq!(hook.may_throw, throws, "{name}");
        }
    }

    #[test]
    fn a_prefix_of_the_user_is_looked_for() {
        let table = HookTable::new(&["my_".into()]);
        assert_eq!(table.entry_of(b"my_calloc").unwrap().hook.count, 0);
        assert!(HookTable::new(&[]).entry_of(b"my_calloc").is_none());
    }

    #[test]
    fn functions_that_allocate_nothing_are_not_hooked() {
        let table = HookTable::new(&[]);
        for name in
            ["nallocx", "malloc_usable_size", "mi_usable_size", "tc_nallocx", "sallocx", "mi_heap_destroy"]
        {
            assert!(table.entry_of(name.as_bytes()).is_none(), "{name}");
        }
    }

    #[test]
    fn the_owner_follows_the_surest_marker() {
        let table = HookTable::new(&[]);
        let owner = |names: &[&str]| {
            let indices: Vec<usize> =
                names.iter().filter_map(|name| table.names.find(name.as_bytes())).collect();
            table.owner(|index| indices.contains(&index))
        };
        assert_eq!(owner(&["malloc", "mallocx"]), Allocator::Jemalloc);
        assert_eq!(owner(&["malloc", "__libc_start_main", "gnu_get_libc_version"]), Allocator::Glibc);
        assert_eq!(owner(&["malloc", "__libc_start_main"]), Allocator::Musl);
        assert_eq!(owner(&["malloc", "tc_malloc"]), Allocator::Tcmalloc);
        assert_eq!(owner(&["malloc", "free"]), Allocator::Custom);
    }
}
