//! Finds names in files by blazesym, in private copies of their symbol tables (`image` says why).
//!
//! Size and nesting of what a file holds are bounded, links in it to other files are not followed by blazesym, and a
//! panic inside blazesym costs that file's debug information only. Time and memory are bounded by whoever started the
//! process that this runs in.
use std::{collections::HashMap, fs::File};

use blazesym::symbolize::{
    Input, Reason, Sym, Symbolized, evict,
    source::{Elf, Source},
};

use super::{
    Limits, Module, ModuleKey, debug_files,
    debuginfod::Debuginfod,
    demangle,
    elf::Layout,
    image::{self, Image, Supplement},
    mini_symbols, nameless, reason,
};
use crate::{guard::guarded, model::snapshot::Frame};

/// Files that are complained of.
const MAX_FAULTS: usize = 5;

/// The copies of one module that names are looked up in, best first.
#[derive(Debug)]
struct Sources {
    images: Vec<Image>,
    /// What the images refer to: they must live as long.
    supplements: Vec<Image>,
    failed: Option<&'static str>,
    last_used: u64,
}

/// Finds names. Not `Send`: it stays on the thread that made it.
#[derive(Debug)]
pub struct Finder {
    limits: Limits,
    blazesym: blazesym::symbolize::Symbolizer,
    debuginfod: Debuginfod,
    /// By file, and whether they are with debug information.
    sources: HashMap<(ModuleKey, bool), Sources>,
    uses: u64,
    /// What went wrong, besides servers.
    faults: Vec<String>,
}

impl Finder {
    /// One that knows no file yet.
    pub fn new(limits: Limits) -> Finder {
        Finder {
            debuginfod: Debuginfod::new(limits.debuginfod.clone()),
            limits,
            blazesym: new_blazesym(),
            sources: HashMap::new(),
            uses: 0,
            faults: Vec::new(),
        }
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
        [self.debuginfod.messages(), self.faults.clone()].concat()
    }

    /// Names at an address as linked, without what depends on the process; with `lines` by debug information, too. Never
    /// empty.
    pub fn resolve(&mut self, module: &Module, virtual_offset: u64, lines: bool) -> Vec<Frame> {
        let lines = lines && self.limits.debug_info;
        match self.look_up(module, virtual_offset, lines) {
            Ok(frames) => frames,
            Err(panic) => {
                // Whatever state it left behind goes with it.
                self.release();
                let what = if lines { "debug information" } else { "symbols" };
                self.complain(format!("{}: its {what} cannot be read ({panic})", module.path));
                let plain = lines.then(|| self.look_up(module, virtual_offset, false).ok()).flatten();
                plain.unwrap_or_else(|| vec![nameless(reason::DAMAGED)])
            }
        }
    }

    fn complain(&mut self, fault: String) {
        if self.faults.len() < MAX_FAULTS && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// An error is what a dependency said when it panicked.
    fn look_up(&mut self, module: &Module, virtual_offset: u64, lines: bool) -> Result<Vec<Frame>, String> {
        self.uses += 1;
        let (uses, key) = (self.uses, (module.key, lines));
        if !self.sources.contains_key(&key) {
            let (limits, debuginfod) = (&self.limits, &mut self.debuginfod);
            let sources = guarded(|| Sources::open(module, limits, lines, debuginfod))?;
            self.make_room(sources.bytes());
            self.sources.insert(key, sources);
        }
        let Some(sources) = self.sources.get_mut(&key) else { return Ok(vec![nameless(reason::DAMAGED)]) };
        sources.last_used = uses;
        let mut why = None;
        let mut is_damaged = false;
        for image in &sources.images {
            let mut answer = guarded(|| ask(&self.blazesym, image, lines, virtual_offset))?;
            if lines && answer == Err(reason::DAMAGED) {
                // The symbol table may be whole.
                is_damaged = true;
                answer = guarded(|| ask(&self.blazesym, image, false, virtual_offset))?;
            }
            match answer {
                Ok(frames) => {
                    if is_damaged {
                        self.complain(format!("{}: its debug information is damaged", module.path));
                    }
                    return Ok(frames);
                }
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        Ok(vec![nameless(why.or(sources.failed).unwrap_or(reason::NO_SYMBOLS))])
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
    fn open(module: &Module, limits: &Limits, lines: bool, debuginfod: &mut Debuginfod) -> Sources {
        let mut sources = Sources { images: Vec::new(), supplements: Vec::new(), failed: None, last_used: 0 };
        let Some(layout) = &module.layout else {
            sources.failed = Some(reason::NOT_ELF);
            return sources;
        };
        if lines && layout.section(".debug_info").is_none() {
            let found = debug_files::find(module, &limits.debug_dirs).or_else(|| fetched(module, debuginfod));
            if let Some((file, layout)) = found {
                let _ = sources.add(&file, &layout, limits, lines);
            }
        }
        if sources.images.is_empty()
            && !layout.has_symbol_table()
            && let Some((file, layout)) = mini_symbols::find(&module.file, layout)
        {
            let _ = sources.add(&file, &layout, limits, lines);
        }
        match sources.add(&module.file, layout, limits, lines) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                sources.failed = Some(reason::TOO_LARGE);
            }
            Err(_) => sources.failed = Some(reason::DAMAGED),
        }
        sources
    }

    /// Adds a copy of a file, and of what dwz moved out of it.
    fn add(&mut self, file: &File, layout: &Layout, limits: &Limits, lines: bool) -> std::io::Result<()> {
        let found = lines.then(|| debug_files::supplement(file, layout, &limits.debug_dirs)).flatten();
        let supplement = found.and_then(|(file, layout, build_id)| {
            let image = Image::copy(&file, &layout, None, limits.file_bytes, true).ok()?;
            Some((image, build_id))
        });
        let link = supplement.as_ref().map(|(image, build_id)| Supplement { image, build_id });
        self.images.push(Image::copy(file, layout, link, limits.file_bytes, lines)?);
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

/// An error is the reason why there is no name.
fn ask(
    blazesym: &blazesym::symbolize::Symbolizer,
    image: &Image,
    lines: bool,
    virtual_offset: u64,
) -> Result<Vec<Frame>, &'static str> {
    let source = |debug_syms| {
        let mut elf = Elf::new(image.path());
        elf.debug_syms = debug_syms;
        Source::Elf(elf)
    };
    let single = |lines| blazesym.symbolize_single(&source(lines), Input::VirtOffset(virtual_offset));
    let why = match single(lines) {
        Ok(Symbolized::Sym(symbol)) if !symbol.name.is_empty() => return Ok(frames_of(&symbol)),
        Ok(Symbolized::Sym(mut symbol)) => {
            // The name lies in another file (dwz) than the line: the symbol table has it, too.
            if let Ok(Symbolized::Sym(plain)) = single(false) {
                symbol.name = plain.name.into_owned().into();
                return Ok(frames_of(&symbol));
            }
            Reason::UnknownAddr
        }
        Ok(Symbolized::Unknown(why)) => why,
        Err(_) => return Err(reason::DAMAGED),
    };
    Err(match why {
        _ if !image.complete => reason::STRIPPED,
        Reason::MissingSyms => reason::NO_SYMBOLS,
        _ => reason::NO_SYMBOL,
    })
}

/// Innermost first: blazesym lists inlined functions from the outermost.
fn frames_of(symbol: &Sym<'_>) -> Vec<Frame> {
    let place = |code: Option<&blazesym::symbolize::CodeInfo<'_>>| match code {
        Some(code) => (Some(bounded(&code.to_path().to_string_lossy())), code.line),
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

fn new_blazesym() -> blazesym::symbolize::Symbolizer {
    blazesym::symbolize::Symbolizer::builder()
        .enable_auto_reload(false)
        // It would take any short name of C for the code of a C++ type.
        .enable_demangling(false)
        .set_debug_dirs(Some([image::DIRECTORY]))
        .build()
}
