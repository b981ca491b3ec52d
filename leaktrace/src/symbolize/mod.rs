//! Address → function, offset, module, file and line, inlined frames; or the reason why not.
//!
//! Files are captured when an address is first seen ([`AddressSpace`], [`Module`]); names are found by blazesym in
//! private copies of their symbol tables (`image` says why), from separate debug information where the host or a
//! server has it, or in a just-in-time compiler's perf map. Walking stacks is left to `unwind`, remembering them to `model`.
//!
//! A file can hold anything. Its size and nesting are bounded, links in it to other files are not followed by
//! blazesym, and a panic inside blazesym costs that file only. [`Limits::debug_info`] turns debug information off.
use std::{
    collections::HashMap,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use blazesym::symbolize::{
    Input, Reason, Sym, Symbolized, evict,
    source::{Elf, Source},
};

use crate::model::snapshot::Frame;

mod debug_files;
mod debuginfod;
mod demangle;
mod elf;
mod image;
mod mini_symbols;
mod module;
mod nesting;
mod perf_map;
mod sources;
mod space;

pub use debug_files::DEFAULT_DEBUG_DIR;
use debuginfod::Debuginfod;
pub use debuginfod::Options as DebuginfodOptions;
use elf::Layout;
use image::{Image, Supplement};
pub use module::{Module, ModuleKey, Modules};
use perf_map::PerfMap;
pub use sources::NameSources;
pub use space::{AddressSpace, Place};

/// Bounds, and where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of symbols and debug information copied of one file; beyond it the debug information is left out.
    pub file_bytes: u64,
    /// Bytes of copies held at a time.
    pub total_bytes: u64,
    /// Resolved addresses remembered.
    pub addresses: usize,
    /// Whether to read debug information at all.
    pub debug_info: bool,
    /// Directories with separate debug information.
    pub debug_dirs: Vec<PathBuf>,
    /// Servers with debug information.
    pub debuginfod: DebuginfodOptions,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            file_bytes: 256 << 20,
            total_bytes: 512 << 20,
            addresses: 65_536,
            debug_info: true,
            debug_dirs: vec![PathBuf::from(DEFAULT_DEBUG_DIR)],
            debuginfod: DebuginfodOptions::default(),
        }
    }
}

/// Why an address has no name.
pub mod reason {
    macro_rules! reasons {
        ($( $name:ident = $text:literal; )+) => {
            $( pub(in crate::symbolize) const $name: &str = $text; )+
            /// All of them, for readers of files.
            pub const ALL: &[&str] = &[ $( $name, )+ ];
        };
    }

    reasons! {
        NOT_MAPPED = "no code was mapped there";
        NOT_OPENED = "the file could not be opened";
        NOT_ELF = "not an ELF file";
        GENERATED = "generated code without a perf map";
        OUTSIDE = "outside of the file's code";
        NO_SYMBOLS = "the file has no symbols";
        STRIPPED = "the file is stripped";
        NO_SYMBOL = "no symbol covers the address";
        DAMAGED = "the file's symbols are damaged";
        TOO_LARGE = "the file's symbols are larger than the limit";
    }
}

/// The copies of one module that names are looked up in, best first.
#[derive(Debug)]
struct Sources {
    images: Vec<Image>,
    /// What the images refer to: they must live as long.
    supplements: Vec<Image>,
    failed: Option<&'static str>,
    last_used: u64,
}

/// Names of addresses in one module, keyed by module and looked-up address as linked.
type Names = HashMap<(ModuleKey, u64), Arc<[Frame]>>;

/// Finds names. Not `Send`: it stays on the thread that made it.
#[derive(Debug)]
pub struct Symbolizer {
    limits: Limits,
    blazesym: blazesym::symbolize::Symbolizer,
    debuginfod: Debuginfod,
    sources: HashMap<ModuleKey, Sources>,
    uses: u64,
    /// Names in two generations: when the younger is full, the older is dropped.
    young: Names,
    old: Names,
    perf_maps: HashMap<u32, PerfMap>,
}

impl Symbolizer {
    /// A symbolizer that knows no file yet.
    pub fn new(limits: Limits) -> Symbolizer {
        Symbolizer {
            debuginfod: Debuginfod::new(limits.debuginfod.clone()),
            limits,
            blazesym: new_blazesym(),
            sources: HashMap::new(),
            uses: 0,
            young: HashMap::new(),
            old: HashMap::new(),
            perf_maps: HashMap::new(),
        }
    }

    /// The frames at an address of a process: inlined ones first, innermost first, then the function itself.
    /// `exact` says that the address is an instruction (interrupted by a signal), not a return address; a return
    /// address is looked up one byte before, inside the call. Never empty.
    pub fn frames(&mut self, space: &AddressSpace, address: u64, exact: bool) -> Vec<Frame> {
        let placed = self.placed(space, address, exact);
        match space.module(address, exact) {
            Some(module) => self.names(module, &placed, exact),
            None => vec![placed],
        }
    }

    /// What lies at an address, without the names that must be looked up in a file, which take long; other names and
    /// reasons are there.
    pub fn placed(&mut self, space: &AddressSpace, address: u64, exact: bool) -> Frame {
        let bare = Frame { address, ..Frame::default() };
        let back = space::back(address, exact);
        match space.place(address - back) {
            Place::Nothing => Frame { reason: Some(reason::NOT_MAPPED), ..bare },
            Place::Generated => self.generated(space.pid, bare, back),
            Place::Unopened { path, file_offset } => Frame {
                module: Some(path),
                module_offset: Some(file_offset + back),
                reason: Some(reason::NOT_OPENED),
                ..bare
            },
            Place::File { module, file_offset } => Frame {
                module: Some(module.path.clone()),
                build_id: module.build_id.clone(),
                module_offset: Some(file_offset + back),
                ..bare
            },
        }
    }

    /// The names of a frame of which [`Symbolizer::placed`] said where in which file it lies. Never empty.
    pub fn names(&mut self, module: &Arc<Module>, placed: &Frame, exact: bool) -> Vec<Frame> {
        let back = space::back(placed.address, exact);
        let file_offset = placed.module_offset.unwrap_or(0).saturating_sub(back);
        let Some(virtual_offset) = module.virtual_offset(file_offset) else {
            let reason = if module.layout.is_some() { reason::OUTSIDE } else { reason::NOT_ELF };
            return vec![Frame { reason: Some(reason), ..placed.clone() }];
        };
        let names = self.resolve(module, virtual_offset);
        names
            .iter()
            .map(|name| Frame {
                address: placed.address,
                module: placed.module.clone(),
                build_id: placed.build_id.clone(),
                module_offset: placed.module_offset,
                offset: name.offset.map(|offset| offset + back),
                ..name.clone()
            })
            .collect()
    }

    /// Names at an address as linked, without what depends on the process. Never empty.
    pub fn resolve(&mut self, module: &Arc<Module>, virtual_offset: u64) -> Arc<[Frame]> {
        let key = (module.key, virtual_offset);
        if let Some(names) = self.young.get(&key) {
            return names.clone();
        }
        let names = match self.old.remove(&key) {
            Some(names) => names,
            None => self.look_up(module, virtual_offset).into(),
        };
        if self.young.len() >= (self.limits.addresses / 2).max(1) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, names.clone());
        names
    }

    /// Drops the copies of symbol tables; what was resolved stays. Worth calling after each batch of new stacks.
    pub fn release(&mut self) {
        self.sources.clear();
        self.blazesym = new_blazesym();
    }

    /// Bytes of symbol tables that are held now.
    pub fn held_bytes(&self) -> u64 {
        self.sources.values().map(Sources::bytes).sum()
    }

    /// Debug information that should have been had and was not.
    pub fn messages(&self) -> Vec<String> {
        self.debuginfod.messages()
    }

    /// Forgets what belongs to a process alone.
    pub fn forget_process(&mut self, pid: u32) {
        self.perf_maps.remove(&pid);
    }

    fn generated(&mut self, pid: u32, bare: Frame, back: u64) -> Frame {
        let map = self.perf_maps.entry(pid).or_default();
        let looked_up = bare.address - back;
        if map.find(looked_up).is_none() {
            // A map that cannot be read now keeps what was read before.
            let _ = map.refresh(pid);
        }
        match map.find(looked_up) {
            Some((name, offset)) => Frame {
                module: Some("[jit]".to_owned()),
                function: Some(name.to_owned()),
                offset: Some(offset + back),
                ..bare
            },
            None => Frame { module: Some("[anon]".to_owned()), reason: Some(reason::GENERATED), ..bare },
        }
    }

    fn look_up(&mut self, module: &Arc<Module>, virtual_offset: u64) -> Vec<Frame> {
        self.uses += 1;
        let uses = self.uses;
        if !self.sources.contains_key(&module.key) {
            let sources = Sources::open(module, &self.limits, &mut self.debuginfod);
            self.make_room(sources.bytes());
            self.sources.insert(module.key, sources);
        }
        let Some(sources) = self.sources.get_mut(&module.key) else { return vec![nameless(reason::DAMAGED)] };
        sources.last_used = uses;
        let mut why = None;
        for index in 0..sources.images.len() {
            let Some(image) = sources.images.get(index) else { break };
            match ask(&self.blazesym, image, self.limits.debug_info, virtual_offset) {
                Ok(frames) => return frames,
                Err(Miss::Reason(reason)) => why = why.or(Some(reason)),
                Err(Miss::Panicked) => {
                    // Whatever state it left behind goes with it.
                    self.blazesym = new_blazesym();
                    sources.images.remove(index);
                    sources.failed = Some(reason::DAMAGED);
                    return vec![nameless(reason::DAMAGED)];
                }
            }
        }
        vec![nameless(why.or(sources.failed).unwrap_or(reason::NO_SYMBOLS))]
    }

    /// Drops the copies that were used the longest ago until `bytes` more fit.
    fn make_room(&mut self, bytes: u64) {
        while self.held_bytes().saturating_add(bytes) > self.limits.total_bytes {
            let oldest = self
                .sources
                .iter()
                .filter(|(_, sources)| !sources.images.is_empty())
                .min_by_key(|(_, sources)| sources.last_used)
                .map(|(key, _)| *key);
            let Some(sources) = oldest.and_then(|key| self.sources.remove(&key)) else { return };
            for image in sources.images.iter().chain(&sources.supplements) {
                // Descriptor numbers, and with them paths, come back.
                if self.blazesym.evict(&evict::Elf::new(image.path()).into()).is_err() {
                    self.blazesym = new_blazesym();
                }
            }
        }
    }
}

impl Sources {
    fn open(module: &Module, limits: &Limits, debuginfod: &mut Debuginfod) -> Sources {
        let mut sources = Sources { images: Vec::new(), supplements: Vec::new(), failed: None, last_used: 0 };
        let Some(layout) = &module.layout else {
            sources.failed = Some(reason::NOT_ELF);
            return sources;
        };
        if limits.debug_info && layout.section(".debug_info").is_none() {
            let found = debug_files::find(module, &limits.debug_dirs).or_else(|| fetched(module, debuginfod));
            if let Some((file, layout)) = found {
                let _ = sources.add(&file, &layout, limits);
            }
        }
        if sources.images.is_empty()
            && !layout.has_symbol_table()
            && let Some((file, layout)) = mini_symbols::find(&module.file, layout)
        {
            let _ = sources.add(&file, &layout, limits);
        }
        match sources.add(&module.file, layout, limits) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                sources.failed = Some(reason::TOO_LARGE);
            }
            Err(_) => sources.failed = Some(reason::DAMAGED),
        }
        sources
    }

    /// Adds a copy of a file, and of what dwz moved out of it.
    fn add(&mut self, file: &File, layout: &Layout, limits: &Limits) -> std::io::Result<()> {
        let found = debug_files::supplement(file, layout, &limits.debug_dirs);
        let supplement = found.and_then(|(file, layout, build_id)| {
            let image = Image::copy(&file, &layout, None, limits.file_bytes).ok()?;
            Some((image, build_id))
        });
        let link = supplement.as_ref().map(|(image, build_id)| Supplement { image, build_id });
        self.images.push(Image::copy(file, layout, link, limits.file_bytes)?);
        self.supplements.extend(supplement.map(|(image, _)| image));
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.images.iter().chain(&self.supplements).map(|image| image.bytes).sum()
    }
}

/// The module's debug file from a server.
fn fetched(module: &Module, debuginfod: &mut Debuginfod) -> Option<(File, Layout)> {
    let file = debuginfod.get(module.build_id.as_deref()?)?.try_clone().ok()?;
    let layout = Layout::read(&file).ok()?;
    debug_files::same_build_id(module, &layout).then_some((file, layout))
}

enum Miss {
    Reason(&'static str),
    Panicked,
}

fn ask(
    blazesym: &blazesym::symbolize::Symbolizer,
    image: &Image,
    debug_info: bool,
    virtual_offset: u64,
) -> Result<Vec<Frame>, Miss> {
    let source = |debug_syms| {
        let mut elf = Elf::new(image.path());
        elf.debug_syms = debug_syms;
        Source::Elf(elf)
    };
    let input = Input::VirtOffset(virtual_offset);
    let answer =
        catch_unwind(AssertUnwindSafe(|| match blazesym.symbolize_single(&source(debug_info), input) {
            Ok(Symbolized::Sym(mut symbol)) => {
                if symbol.name.is_empty() {
                    // The name lies in another file (dwz) than the line: the symbol table has it, too.
                    match blazesym.symbolize_single(&source(false), Input::VirtOffset(virtual_offset)) {
                        Ok(Symbolized::Sym(plain)) => symbol.name = plain.name.into_owned().into(),
                        _ => return Err(Some(Reason::UnknownAddr)),
                    }
                }
                Ok(frames_of(&symbol))
            }
            Ok(Symbolized::Unknown(why)) => Err(Some(why)),
            Err(_) => Err(None),
        }));
    match answer {
        Err(_) => Err(Miss::Panicked),
        Ok(Ok(frames)) => Ok(frames),
        Ok(Err(Some(Reason::MissingSyms))) if image.complete => Err(Miss::Reason(reason::NO_SYMBOLS)),
        Ok(Err(Some(_))) if image.complete => Err(Miss::Reason(reason::NO_SYMBOL)),
        Ok(Err(Some(_))) => Err(Miss::Reason(reason::STRIPPED)),
        Ok(Err(None)) => Err(Miss::Reason(reason::DAMAGED)),
    }
}

/// Innermost first: blazesym lists inlined functions from the outermost.
fn frames_of(symbol: &Sym<'_>) -> Vec<Frame> {
    let place = |code: Option<&blazesym::symbolize::CodeInfo<'_>>| match code {
        Some(code) => (Some(code.to_path().to_string_lossy().into_owned()), code.line),
        None => (None, None),
    };
    let named = symbol.inlined.iter().rev().filter(|function| !function.name.is_empty());
    let inlined = named.map(|function| {
        let (file, line) = place(function.code_info.as_ref());
        Frame {
            function: Some(bounded(&demangle::demangle(&function.name))),
            file,
            line,
            inlined: true,
            ..Frame::default()
        }
    });
    let (file, line) = place(symbol.code_info.as_deref());
    let outer = Frame {
        function: Some(bounded(&demangle::demangle(&symbol.name))),
        offset: Some(symbol.offset as u64),
        file,
        line,
        ..Frame::default()
    };
    inlined.chain([outer]).collect()
}

/// A name of at most 4096 characters: C++ templates can make megabytes.
fn bounded(name: &str) -> String {
    match name.char_indices().nth(4096) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

fn nameless(reason: &'static str) -> Frame {
    Frame { reason: Some(reason), ..Frame::default() }
}

fn new_blazesym() -> blazesym::symbolize::Symbolizer {
    blazesym::symbolize::Symbolizer::builder()
        .enable_auto_reload(false)
        // It would take any short name of C for the code of a C++ type.
        .enable_demangling(false)
        .set_debug_dirs(Some([image::DIRECTORY]))
        .build()
}

#[cfg(test)]
mod tests;
