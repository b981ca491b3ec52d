//! The embedded kernel object: maps created by aya, programs relocated by aya-obj and loaded here, because aya
//! cannot load a program as a multi or session uprobe.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};
use aya_obj::{ProgramSection, generated::bpf_prog_type};
use leaktrace_common::{hook::SLOTS, near};

use super::{btf::Btf, hidden::Feature, private_stacks, private_stacks::PrivateStacks, sys};

/// The object that build.rs embeds; empty when the kernel toolchain was missing at build time.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/leaktrace.bpf.o"));

/// Tables of live blocks that are kept for children of targets; an empty one takes 64 KiB.
pub const SPARE_TABLES: u32 = 16;
/// Room for bigger tables of live blocks that no process has yet.
const READY_TABLES: u32 = 16;

/// Sizes of the maps that depend on options.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Targets at once.
    pub targets: u32,
    /// Sites.
    pub sites: u32,
    /// Stacks.
    pub stacks: u32,
    /// Threads.
    pub threads: u32,
    /// Slabs of 1 MiB for unwind rows.
    pub slabs: u32,
    /// MiB for the memory of stacks whose tables are missing: a power of two.
    pub copies: u32,
    /// Bytes for the records of single calls: a power of two, a page at least.
    pub calls_bytes: u32,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            targets: 256,
            sites: 64_000,
            stacks: 262_144,
            threads: 16_384,
            slabs: 64,
            copies: 8,
            calls_bytes: 4096,
        }
    }
}

/// The kernel object with its maps; programs are loaded on demand.
pub struct KernelObject {
    ebpf: Ebpf,
    object: aya_obj::Object,
    btf: Option<OwnedFd>,
    knows_exit_status: bool,
    private_stacks: PrivateStacks,
    /// The templates of maps in maps, by the name of the outer one.
    inner_maps: HashMap<String, aya_obj::Map>,
    verified: Mutex<BTreeMap<String, u32>>,
}

impl KernelObject {
    /// Creates the maps and relocates the programs. `samples` says that processes will be sampled; `debug` lets the
    /// programs log.
    ///
    /// # Errors
    /// When the binary has no kernel object, or the kernel refuses the maps.
    pub fn load(sizes: &Sizes, samples: bool, debug: bool) -> Result<KernelObject> {
        if OBJECT.is_empty() {
            bail!(
                "this leaktrace was built without its kernel side: run `cargo xtask setup`, then build again"
            );
        }
        let offsets = ExitOffsets::of_kernel();
        let syscall_work = syscall_work_offset();
        let log_level: u8 = if debug { 0xff } else { 0 };
        let samples = u8::from(samples);
        // One more for what is nobody's, and those that are kept for children.
        let slots = sizes.targets.saturating_add(1 + SPARE_TABLES).min(SLOTS);
        let (near_sites, sites) = near::split(sizes.sites, near::SITES);
        let (near_threads, threads) = near::split(sizes.threads, near::THREADS);
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("TARGETS", slots)
            .map_max_entries("PROCESSES", sizes.targets)
            .map_max_entries("TALLIES", slots)
            .map_max_entries("HITS", slots)
            // A process may have two bigger tables besides the one at its slot, and a few are kept ready.
            .map_max_entries("LIVE", 3 * slots + READY_TABLES)
            .map_max_entries("SITES", sites)
            .map_max_entries("NEAR_SITES", near_sites)
            .map_max_entries("STACK_IDS", sizes.stacks)
            .map_max_entries("THREADS", threads)
            .map_max_entries("NEAR_THREADS", near_threads)
            .map_max_entries("UNWIND_ROWS", sizes.slabs)
            .map_max_entries("PROCESS_MAPS", sizes.targets)
            .map_max_entries("COPIES", sizes.copies << 20)
            .map_max_entries("CALLS", sizes.calls_bytes)
            .override_global("TASK_EXIT_CODE", &offsets.task_exit_code, true)
            .override_global("TASK_PID", &offsets.task_pid, true)
            .override_global("TASK_SIGNAL", &offsets.task_signal, true)
            .override_global("TASK_SYSCALL_WORK", &syscall_work, true)
            .override_global("SIGNAL_LIVE", &offsets.signal_live, true)
            .override_global("SIGNAL_GROUP_EXIT_CODE", &offsets.signal_group_exit_code, true)
            .override_global("SIGNAL_FLAGS", &offsets.signal_flags, true)
            .override_global("SAMPLES", &samples, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false);
        let ebpf = loader.load(OBJECT).context("the kernel refuses the maps")?;
        let mut object = aya_obj::Object::parse(OBJECT).context("the kernel object cannot be parsed")?;
        let btf = load_type_information(&mut object)?;
        let inner = |(name, map): (&String, &aya_obj::Map)| Some((name.clone(), map.inner()?));
        let inner_maps = object.maps.iter().filter_map(inner).collect();
        relocate(&mut object, &ebpf)?;
        let private_stacks = PrivateStacks::of_kernel();
        private_stacks.demand()?;
        let knows_exit_status = offsets.task_exit_code != 0;
        Ok(KernelObject {
            ebpf,
            object,
            btf,
            knows_exit_status,
            private_stacks,
            inner_maps,
            verified: Mutex::default(),
        })
    }

    /// Loads program `name` with `attach_type` (0 for none).
    ///
    /// # Errors
    /// When there is no such program, or the verifier refuses it: then with the end of its log.
    pub fn load_program(&self, name: &str, attach_type: u32) -> Result<OwnedFd> {
        if Feature::Programs.is_hidden() {
            bail!("kernel program {name}: hidden");
        }
        let program =
            self.object.programs.get(name).with_context(|| format!("no kernel program named {name}"))?;
        let function = self
            .object
            .functions
            .get(&program.function_key())
            .with_context(|| format!("kernel program {name} has no code"))?;
        let kind = match program.section {
            ProgramSection::TracePoint => bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT,
            ProgramSection::RawTracePoint => bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
            _ => bpf_prog_type::BPF_PROG_TYPE_KPROBE,
        };
        let functions = function.func_info.func_info_bytes();
        let lines = function.line_info.line_info_bytes();
        let mut instructions = function.instructions.clone();
        self.private_stacks.prepare(&mut instructions);
        let source = sys::ProgramSource {
            name,
            kind: kind as u32,
            attach_type,
            instructions: &instructions,
            license: &program.license,
            btf: self.btf.as_ref().map(|fd| fd.as_fd()),
            functions: (&functions, function.func_info.len() as u32, function.func_info_rec_size as u32),
            lines: (&lines, function.line_info.len() as u32, function.line_info_rec_size as u32),
        };
        let loaded = sys::load_program(&source, &mut []).or_else(|error| {
            let mut log = vec![0; 4 << 20];
            sys::load_program(&source, &mut log)
                .map_err(|_| anyhow!(error).context(format!("kernel program {name}: {}", tail(&log))))
        })?;
        private_stacks::demand_none(loaded.as_fd()).with_context(|| format!("kernel program {name}"))?;
        if let Ok(info) = sys::program_info(loaded.as_fd()) {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.insert(name.to_owned(), info.verified_insns);
        }
        Ok(loaded)
    }

    /// The programs that were loaded, and how many instructions the verifier has looked at for each: kernels refuse
    /// programs for which it is a million. 0 where the kernel does not say (before Linux 5.16).
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.iter().map(|(name, count)| (name.clone(), *count)).collect()
    }

    /// Makes a map that the map of maps `outer` can hold: see [`InnerMaps::make`].
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn make_inner(&self, outer: &str, max_entries: Option<u32>) -> Result<OwnedFd> {
        self.inner_maps(outer)?.make(max_entries)
    }

    /// What makes maps for the map of maps `outer`.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn inner_maps(&self, outer: &str) -> Result<InnerMaps> {
        let template = self.inner_maps.get(outer);
        let template =
            template.with_context(|| format!("the kernel object says nothing of maps in {outer}"))?;
        let btf = self.btf.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(InnerMaps { name: outer.to_lowercase(), template: template.clone(), btf })
    }

    /// What this kernel does about private stacks.
    pub fn private_stacks(&self) -> PrivateStacks {
        self.private_stacks
    }

    /// A map of the object.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn map(&self, name: &str) -> Result<&MapData> {
        self.ebpf.map(name).and_then(map_data).with_context(|| format!("no kernel map named {name}"))
    }

    /// A descriptor of a map.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.map(name)?.fd().as_fd())
    }

    /// Whether the programs can read how a process ended; without the kernel's type information they cannot.
    pub fn knows_exit_status(&self) -> bool {
        self.knows_exit_status
    }

    /// aya's view, to take maps from.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Makes maps for a map of maps.
pub struct InnerMaps {
    name: String,
    template: aya_obj::Map,
    btf: Option<OwnedFd>,
}

impl InnerMaps {
    /// Makes one with room for `max_entries`, or for as many as the template. It has the type information of the
    /// template: kernels up to 6.1 take only maps that agree with it in that (`bpf_map_meta_equal`).
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn make(&self, max_entries: Option<u32>) -> Result<OwnedFd> {
        let mut definition = self.template.clone();
        if let Some(max_entries) = max_entries {
            definition.set_max_entries(max_entries);
        }
        let btf = self.btf.as_ref().map(|fd| fd.as_fd());
        let map = MapData::create(definition, &self.name, btf)
            .with_context(|| format!("making a map for {}", self.name))?;
        Ok(map.fd().as_fd().try_clone_to_owned()?)
    }
}

/// Offsets for the exit status, 0 where the kernel's type information lacks them.
#[derive(Default)]
struct ExitOffsets {
    task_exit_code: u32,
    task_pid: u32,
    task_signal: u32,
    signal_live: u32,
    signal_group_exit_code: u32,
    signal_flags: u32,
}

impl ExitOffsets {
    fn of_kernel() -> ExitOffsets {
        let Ok(btf) = Btf::of_kernel() else { return ExitOffsets::default() };
        let task = btf.member_offsets("task_struct", ["exit_code", "pid", "signal"]);
        let signal = btf.member_offsets("signal_struct", ["live", "group_exit_code", "flags"]);
        let (
            Some([task_exit_code, task_pid, task_signal]),
            Some([signal_live, signal_group_exit_code, signal_flags]),
        ) = (task, signal)
        else {
            return ExitOffsets::default();
        };
        ExitOffsets {
            task_exit_code,
            task_pid,
            task_signal,
            signal_live,
            signal_group_exit_code,
            signal_flags,
        }
    }
}

/// Offset in a task of what its system calls are to be stopped for; 0 where the kernel's type information lacks it.
fn syscall_work_offset() -> u32 {
    let Ok(btf) = Btf::of_kernel() else { return 0 };
    let thread = btf.member_offsets("task_struct", ["thread_info"]);
    let work = btf.member_offsets("thread_info", ["syscall_work"]);
    thread.zip(work).map_or(0, |([thread], [work])| thread.saturating_add(work))
}

fn load_type_information(object: &mut aya_obj::Object) -> Result<Option<OwnedFd>> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let Some(btf) =
        object.fixup_and_sanitize_btf(features).context("the kernel object's type information")?
    else {
        return Ok(None);
    };
    sys::load_btf(&btf.to_bytes()).map(Some).context("the kernel refuses the object's type information")
}

fn relocate(object: &mut aya_obj::Object, ebpf: &Ebpf) -> Result<()> {
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps: HashMap<String, aya_obj::Map> = object.maps.drain().collect();
    let mut descriptors = Vec::new();
    for (name, definition) in &maps {
        let map = ebpf.map(name).and_then(map_data).with_context(|| format!("map {name} was not created"))?;
        descriptors.push((name.as_str(), map.fd().as_fd().as_raw_fd(), definition));
    }
    object
        .relocate_maps(descriptors.into_iter(), &text)
        .map_err(|error| anyhow!("relocating maps: {error}"))?;
    object.relocate_calls(&text).map_err(|error| anyhow!("relocating calls: {error}"))?;
    Ok(())
}

/// The data behind any of the map kinds that the object has.
fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The last lines of a verifier log, as one: it is shown within a sentence.
fn tail(log: &[u8]) -> String {
    const LINES: usize = 8;
    let end = memchr::memchr(0, log).unwrap_or(log.len());
    let text = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join(" | ")
}

#[cfg(test)]
mod lint;
#[cfg(test)]
mod tests;
