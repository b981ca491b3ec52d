//! Address → function, offset, module, file and line, inlined frames; or the reason why not.
//!
//! Files are captured when an address is first seen ([`AddressSpace`], [`Module`]); names are found when they are asked
//! for, in separate debug information where the host or a server has it, or in a just-in-time compiler's perf map.
//! Walking stacks is left to `unwind`, remembering them to `model`.
//!
//! A file can hold anything, and what reads debug information takes as long as a file makes it take. So it is read by a
//! process of its own (`reader` starts it, `serve` is what runs in it, `finder` finds the names there, from private
//! copies that `image` makes): a question costs no more than [`Limits::question_cpu`], a file that is too dear or brings
//! the process down costs its own names, and nothing that it prints is seen. Whoever asks goes on meanwhile
//! (`symbolizer`). [`Limits::debug_info`] turns debug information off.
use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::snapshot::Frame;

mod costs;
#[cfg(test)]
mod crafted;
mod debug_files;
mod debuginfod;
mod demangle;
mod elf;
pub mod finder;
mod image;
mod mini_symbols;
mod module;
mod nesting;
mod perf_map;
mod reader;
mod serve;
mod sources;
mod space;
mod symbolizer;
mod wire;

pub use debug_files::DEFAULT_DEBUG_DIR;
pub use debuginfod::Options as DebuginfodOptions;
pub use module::{Module, ModuleKey, Modules};
pub use reader::{SERVE, serve_if_asked};
pub use sources::NameSources;
pub use space::{AddressSpace, Place};
pub use symbolizer::{Patience, Symbolizer};

/// Bounds, and where to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Processor time that one question may take, with reading the file for it.
    pub question_cpu: Duration,
    /// Memory that reading files may take.
    pub memory_bytes: u64,
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
            question_cpu: Duration::from_secs(3),
            memory_bytes: 3 << 30,
        }
    }
}

/// Why an address has no name.
pub mod reason {
    macro_rules! reasons {
        ($( $name:ident = $text:literal; )+) => {
            $( pub(crate) const $name: &str = $text; )+
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
        TOO_DEAR = "the file's symbols take too long to read";
        CRASHED = "reading the file's symbols failed";
        NO_READER = "the process that reads symbols could not be started";
        PENDING = "the name was not found in time";
    }
}

/// The frames of an address of which [`Symbolizer::placed`] said where in which file it lies. `resolve` gives the names
/// at an address as linked; without them there are no frames yet. Never empty.
fn frames_at(
    module: &Arc<Module>,
    placed: &Frame,
    exact: bool,
    resolve: impl FnOnce(u64) -> Option<Arc<[Frame]>>,
) -> Option<Vec<Frame>> {
    let back = space::back(placed.address, exact);
    let file_offset = placed.module_offset.unwrap_or(0).saturating_sub(back);
    let Some(virtual_offset) = module.virtual_offset(file_offset) else {
        let reason = if module.layout.is_some() { reason::OUTSIDE } else { reason::NOT_ELF };
        return Some(vec![Frame { reason: Some(reason), ..placed.clone() }]);
    };
    let names = resolve(virtual_offset)?;
    let frames = names.iter().map(|name| Frame {
        address: placed.address,
        module: placed.module.clone(),
        build_id: placed.build_id.clone(),
        module_offset: placed.module_offset,
        offset: name.offset.map(|offset| offset.saturating_add(back)),
        ..name.clone()
    });
    Some(frames.collect())
}

/// An anonymous file, for fuzzers.
pub(crate) fn anonymous_file() -> std::io::Result<std::fs::File> {
    image::memfd()
}

/// Reads a perf map in two parts, for fuzzers.
pub(crate) fn read_perf_map(bytes: &[u8]) {
    let mut map = perf_map::PerfMap::default();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for part in [first, second] {
        map.add(&String::from_utf8_lossy(part));
    }
    for address in [0, 0x1000, 0x7fff_ffff_ffff, u64::MAX] {
        assert!(map.find(address).is_none_or(|(_, offset)| offset <= address));
    }
}

fn nameless(reason: &'static str) -> Frame {
    Frame { reason: Some(reason), ..Frame::default() }
}

#[cfg(test)]
mod tests;
