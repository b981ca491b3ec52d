//! What an IFUNC symbol was resolved to in a running process: the loader ran the resolver and left its answer
//! in the GOT slots that refer to the symbol. Nothing is executed; a value that does not lie in the file's
//! own code is not believed.
use super::{elf::ElfFile, maps::MapEntry, object::ObjectFile, process, scan::UnresolvedIfunc};
use std::{fs::File, os::unix::fs::FileExt};

const MAX_FILES: usize = 512;
const MAX_SLOTS: usize = 64;

/// A file of the process and where it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'f> {
    /// The file.
    pub file: &'f ObjectFile,
    /// Added to an address of the file.
    pub load_bias: u64,
}

/// The address, in the file's address space, of the implementation that the process uses.
///
/// # Errors
/// A clause that says why it is not known.
pub fn resolve(
    pid: u32,
    ifunc: &UnresolvedIfunc,
    defining: Loaded<'_>,
    loaded: &[Loaded<'_>],
    mappings: &[MapEntry],
) -> Result<u64, &'static str> {
    let memory = File::open(format!("/proc/{}/mem", process::shown_as(pid)))
        .map_err(|_| "its IFUNC target: /proc/PID/mem cannot be opened")?;
    let own = ElfFile::parse(defining.file).map_err(|_| "its file cannot be parsed")?;
    let resolvers = own.relocations().iter().filter(|relocation| relocation.resolver == ifunc.resolver);
    let mut slots: Vec<u64> = resolvers
        .map(|relocation| relocation.slot.wrapping_add(defining.load_bias))
        .take(MAX_SLOTS)
        .collect();
    for other in loaded.iter().take(MAX_FILES) {
        if let Ok(elf) = ElfFile::parse(other.file) {
            let named = elf.slots_of(ifunc.entry.name.as_bytes());
            slots.extend(named.into_iter().take(MAX_SLOTS).map(|slot| slot.wrapping_add(other.load_bias)));
        }
    }
    let executable = |address: u64| mappings.iter().any(|entry| entry.executable && entry.contains(address));
    slots
        .into_iter()
        .filter_map(|slot| {
            let mut word = [0; 8];
            memory.read_exact_at(&mut word, slot).ok()?;
            Some(u64::from_le_bytes(word))
        })
        .filter(|value| executable(*value))
        .map(|value| value.wrapping_sub(defining.load_bias))
        // An unbound slot leads into the PLT of the file that holds it; the resolver is no implementation.
        .find(|address| own.code_offset(*address).is_some() && *address != ifunc.resolver)
        .ok_or("it is an IFUNC that no mapped file refers to yet, so its implementation is not known")
}
