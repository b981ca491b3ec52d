//! The code of one process at one time: which file, and which place in it, an address belongs to.
use std::sync::Arc;

use super::module::{Module, Modules};
use crate::discover::maps::MapEntry;

/// What lies at an address.
#[derive(Clone, Debug)]
pub enum Place {
    /// A mapped file.
    File {
        /// The file.
        module: Arc<Module>,
        /// Where in the file.
        file_offset: u64,
    },
    /// A mapped file that could not be opened.
    Unopened {
        /// Its path. Hostile.
        path: String,
        /// Where in the file.
        file_offset: u64,
    },
    /// Code in anonymous memory: made by a just-in-time compiler.
    Generated,
    /// No code.
    Nothing,
}

#[derive(Clone, Debug)]
struct Region {
    start: u64,
    end: u64,
    offset: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    File(Arc<Module>),
    Unopened(String),
    Generated,
}

/// The executable mappings of one process.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// The process.
    pub pid: u32,
    regions: Vec<Region>,
}

impl AddressSpace {
    /// Takes what /proc/PID/maps says and opens the files behind the executable ones. `previous` saves opening
    /// again what has not changed since.
    pub fn capture(
        pid: u32,
        entries: &[MapEntry],
        previous: Option<&AddressSpace>,
        modules: &mut Modules,
    ) -> AddressSpace {
        let mut regions: Vec<Region> = entries
            .iter()
            .filter(|entry| entry.executable && entry.start < entry.end)
            .map(|entry| {
                let known = previous.and_then(|previous| previous.same(entry));
                let content = known.unwrap_or_else(|| content(pid, entry, modules));
                Region { start: entry.start, end: entry.end, offset: entry.offset, content }
            })
            .collect();
        regions.sort_unstable_by_key(|region| region.start);
        AddressSpace { pid, regions }
    }

    /// Whether no code lies in a range.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        let index = self.regions.partition_point(|region| region.end <= start);
        self.regions.get(index).is_none_or(|region| region.start >= end)
    }

    /// Whether the very code of a mapping is known to lie in its place.
    pub fn holds(&self, entry: &MapEntry, modules: &mut Modules) -> bool {
        self.holds_content(entry, &content(self.pid, entry, modules))
    }

    fn holds_content(&self, entry: &MapEntry, content: &Content) -> bool {
        let index = self.regions.partition_point(|region| region.start < entry.start);
        self.regions.get(index).is_some_and(|region| {
            let same_content = match (&region.content, content) {
                (Content::File(old), Content::File(new)) => Arc::ptr_eq(old, new),
                (Content::Generated, Content::Generated) => true,
                _ => false,
            };
            same_content
                && (region.start, region.end, region.offset) == (entry.start, entry.end, entry.offset)
        })
    }

    /// Takes one mapping that was made just now; what it overlaps is gone. `false` where the same code lay there
    /// already.
    pub fn map(&mut self, entry: &MapEntry, modules: &mut Modules) -> bool {
        if !entry.executable || entry.start >= entry.end {
            return false;
        }
        let content = content(self.pid, entry, modules);
        if self.holds_content(entry, &content) {
            return false;
        }
        let (start, end) = (entry.start, entry.end);
        let mut kept = Vec::with_capacity(self.regions.len() + 2);
        for region in self.regions.drain(..) {
            if region.end <= start || region.start >= end {
                kept.push(region);
                continue;
            }
            if region.end > end {
                let offset = region.offset.saturating_add(end - region.start);
                kept.push(Region { start: end, offset, ..region.clone() });
            }
            if region.start < start {
                kept.push(Region { end: start, ..region });
            }
        }
        kept.push(Region { start, end, offset: entry.offset, content });
        kept.sort_unstable_by_key(|region| region.start);
        self.regions = kept;
        true
    }

    /// What lies at an address.
    pub fn place(&self, address: u64) -> Place {
        let Some(region) = self.region(address) else { return Place::Nothing };
        let file_offset = (address - region.start).saturating_add(region.offset);
        match &region.content {
            Content::File(module) => Place::File { module: module.clone(), file_offset },
            Content::Unopened(path) => Place::Unopened { path: path.clone(), file_offset },
            Content::Generated => Place::Generated,
        }
    }

    /// The file that a frame lies in: of a return address, that of the call before it.
    pub fn module(&self, address: u64, exact: bool) -> Option<&Arc<Module>> {
        match &self.region(address - back(address, exact))?.content {
            Content::File(module) => Some(module),
            Content::Unopened(_) | Content::Generated => None,
        }
    }

    /// Whether code of a file lies at an address.
    pub fn is_file(&self, address: u64) -> bool {
        self.region(address).is_some_and(|region| matches!(region.content, Content::File(_)))
    }

    /// The build id of a mapped file, by its path.
    pub fn build_id_of(&self, path: &str) -> Option<String> {
        self.regions.iter().find_map(|region| match &region.content {
            Content::File(module) if module.path == path => module.build_id.clone(),
            _ => None,
        })
    }

    /// Whether code lies at an address; if not, the process has probably mapped more since.
    pub fn contains(&self, address: u64) -> bool {
        self.region(address).is_some()
    }

    fn region(&self, address: u64) -> Option<&Region> {
        let index = self.regions.partition_point(|region| region.end <= address);
        self.regions.get(index).filter(|region| region.start <= address)
    }

    fn same(&self, entry: &MapEntry) -> Option<Content> {
        let index = self.regions.binary_search_by_key(&entry.start, |region| region.start).ok()?;
        let region = self.regions.get(index)?;
        let same = match &region.content {
            Content::File(module) => {
                module.path == entry.path_lossy()
                    && region.offset == entry.offset
                    && (entry.inode == 0 || module.key.is_inode(entry.inode))
            }
            Content::Unopened(_) => false,
            Content::Generated => entry.path.is_empty(),
        };
        (same && region.end == entry.end).then(|| region.content.clone())
    }
}

/// How far before a frame's address the instruction is looked up: a return address lies behind its call, and the call
/// may be the last instruction of its function.
pub(super) fn back(address: u64, exact: bool) -> u64 {
    u64::from(!exact && address > 0)
}

fn content(pid: u32, entry: &MapEntry, modules: &mut Modules) -> Content {
    // `[anon:…]` is anonymous memory that the program gave a name; `//anon` is shared anonymous memory.
    if entry.path.is_empty() || entry.path.starts_with(b"[anon") || entry.path.starts_with(b"//anon") {
        return Content::Generated;
    }
    match modules.capture(pid, entry) {
        Ok(module) => Content::File(module),
        Err(_) => Content::Unopened(entry.path_lossy()),
    }
}
