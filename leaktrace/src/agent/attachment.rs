//! The probes of each file of a process: joins what discovery found with the plan for each function.
use std::{collections::HashMap, ops::Range, sync::Arc};

use leaktrace_common::hook::{Hook, Shape};

use super::functions::{Function, Functions};
use crate::{
    attach::{
        costs::TrapCosts,
        links::{AttachFailure, Probe},
        live_text::LiveText,
        plan::{self, EmulatedClasses, Exits, ProbeSite},
        prologue,
    },
    discover::{
        AllocatorInObject, Found,
        allocators::Allocator,
        object::{FileIdentity, ObjectFile},
        scan::{CodeSource, FoundFunction},
    },
    model::snapshot::{AllocatorView, Frame},
};

/// The probes of one file.
pub struct Attachment {
    /// The file.
    pub file: Arc<ObjectFile>,
    /// What to attach.
    pub probes: Vec<Probe>,
    /// Which function and allocator each probe belongs to.
    owners: Vec<(usize, String)>,
    views: Vec<AllocatorView>,
    /// The allocators' code.
    pub code: Vec<AllocatorCode>,
}

/// Where an allocator's code lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorCode {
    /// The file's path as frames have it.
    file: String,
    /// File offsets of the probed functions; without any, the whole file is the allocator.
    functions: Vec<Range<u64>>,
}

impl AllocatorCode {
    fn of(allocator: &AllocatorInObject) -> AllocatorCode {
        let name = allocator.path.rsplit('/').next().unwrap_or_default();
        let is_library =
            matches!(allocator.allocator, Allocator::Jemalloc | Allocator::Tcmalloc | Allocator::Mimalloc)
                && name.starts_with("lib")
                && name.contains(allocator.allocator.name());
        let bytes = |function: &FoundFunction| function.size_bytes.max(function.code.len() as u64);
        let range = |function: &FoundFunction| {
            function.file_offset..function.file_offset.saturating_add(bytes(function))
        };
        let functions = if is_library { Vec::new() } else { allocator.functions.iter().map(range).collect() };
        AllocatorCode { file: allocator.path.clone(), functions }
    }

    /// Whether a frame's code is the allocator's.
    pub fn contains(&self, frame: &Frame) -> bool {
        frame.module.as_ref() == Some(&self.file)
            && frame.module_offset.is_some_and(|offset| {
                self.functions.is_empty() || self.functions.iter().any(|range| range.contains(&offset))
            })
    }
}

/// What to attach to in a process, by file. `text` is the process's code; functions that it has in another form than
/// their file are not probed.
pub fn plan(
    found: &Found,
    functions: &mut Functions,
    emulated: EmulatedClasses,
    costs: &TrapCosts,
    text: Option<&LiveText>,
) -> Vec<Attachment> {
    let mut order: Vec<FileIdentity> = Vec::new();
    let mut parts: HashMap<FileIdentity, Attachment> = HashMap::new();
    for allocator in &found.allocators {
        let part = part_of(&mut order, &mut parts, &allocator.file);
        add_allocator(part, allocator, functions, emulated, costs, text);
    }
    let throws = parts.values().flat_map(|part| &part.probes).any(|probe| probe.hook.may_throw);
    for thrower in found.throw_functions.iter().filter(|_| throws) {
        let Ok(site) = plan::plan(&thrower.function, emulated, false) else { continue };
        let part = part_of(&mut order, &mut parts, &thrower.file);
        part.probes.push(Probe { file_offset: site.file_offset, hook: site.hook, with_return: false });
        part.owners.push((usize::MAX, thrower.function.name.clone()));
    }
    order.iter().filter_map(|identity| parts.remove(identity)).map(Attachment::without_duplicates).collect()
}

fn part_of<'a>(
    order: &mut Vec<FileIdentity>,
    parts: &'a mut HashMap<FileIdentity, Attachment>,
    file: &Arc<ObjectFile>,
) -> &'a mut Attachment {
    let identity = file.identity();
    parts.entry(identity).or_insert_with(|| {
        order.push(identity);
        Attachment {
            file: Arc::clone(file),
            probes: Vec::new(),
            owners: Vec::new(),
            views: Vec::new(),
            code: Vec::new(),
        }
    })
}

fn add_allocator(
    part: &mut Attachment,
    allocator: &AllocatorInObject,
    functions: &mut Functions,
    emulated: EmulatedClasses,
    costs: &TrapCosts,
    text: Option<&LiveText>,
) {
    let index = part.views.len();
    part.code.push(AllocatorCode::of(allocator));
    let failed = allocator.failed.iter().map(|failed| (failed.name.clone(), failed.reason.clone())).collect();
    part.views.push(AllocatorView {
        name: allocator.allocator.name().to_owned(),
        file: allocator.path.clone(),
        probed: 0,
        failed,
    });
    for function in &allocator.functions {
        let number =
            functions.number(Function { name: function.name.clone(), allocator: allocator.allocator.name() });
        let planned = FunctionPlan::of(&allocator.file, function, emulated)
            .and_then(|plan| plan.found_in(text, allocator.load_bias, function.address));
        match planned {
            Ok(plan) => {
                for mut probe in plan.probes() {
                    probe.hook.cost = match probe.hook.shape {
                        Shape::Exit => costs.exit(),
                        _ => costs.entry(&plan.site, plan.with_return),
                    };
                    probe.hook.function = number;
                    probe.hook.size_model = allocator.allocator.size_model();
                    probe.hook.nests = allocator.allocator.nests(&function.name, function.hook);
                    part.probes.push(probe);
                    part.owners.push((index, function.name.clone()));
                }
            }
            Err(reason) => {
                if let Some(view) = part.views.get_mut(index) {
                    view.failed.push((function.name.clone(), reason));
                }
            }
        }
    }
}

/// How one function is probed: usually by one probe; a function that an exception may cross has one at its entry
/// and one at each of its exits.
pub struct FunctionPlan {
    /// The entry.
    pub site: ProbeSite,
    /// A return probe at the same place sees the end of a call.
    pub with_return: bool,
    /// Probes on exits see it.
    pub exits: Exits,
}

impl FunctionPlan {
    /// Plans the probes of a function.
    ///
    /// # Errors
    /// A clause that says why it cannot be probed.
    pub fn of(
        file: &ObjectFile,
        function: &FoundFunction,
        emulated: EmulatedClasses,
    ) -> Result<FunctionPlan, String> {
        let with_return =
            !matches!(function.hook.shape, Shape::Free | Shape::Throw) && !function.hook.may_throw;
        let site = plan::plan(function, emulated, with_return)?;
        if prologue::becomes_call(&site.bytes) && !begins_function(file, function) {
            return Err("its first instruction is a nop that Linux replaces by a call, and the file does not say that a \
                        function begins there: what one that runs into it keeps below the stack pointer would be \
                        overwritten"
                .to_owned());
        }
        let mut exits = Exits::default();
        if function.hook.may_throw {
            let source = CodeSource::new(file).map_err(|error| error.to_string())?;
            exits = plan::exits(function, |target| source.function(target))?;
        }
        Ok(FunctionPlan { site, with_return, exits })
    }

    /// The same, if a process that has the file at this bias has the probed instruction there.
    ///
    /// # Errors
    /// A clause that says why the function cannot be probed in that process.
    pub fn found_in(
        self,
        text: Option<&LiveText>,
        load_bias: u64,
        address: u64,
    ) -> Result<FunctionPlan, String> {
        let address = address.wrapping_add(load_bias).wrapping_add(self.site.instruction_offset);
        match text {
            Some(text) => text.check(address, &self.site.bytes).map(|()| self),
            None => Ok(self),
        }
    }

    /// The probes.
    pub fn probes(&self) -> Vec<Probe> {
        let ProbeSite { file_offset, hook, .. } = self.site;
        let mut probes = vec![Probe { file_offset, hook, with_return: self.with_return }];
        probes.extend(self.exits.sites.iter().map(|exit| Probe {
            file_offset: exit.file_offset,
            hook: Hook { return_slot_words: exit.return_slot_words, ..Hook::new(Shape::Exit) },
            with_return: false,
        }));
        probes
    }
}

/// Whether the file says that a function begins there, which an offset given by hand need not be true of.
fn begins_function(file: &ObjectFile, function: &FoundFunction) -> bool {
    CodeSource::new(file).is_ok_and(|source| source.begins_function(function.address))
}

impl Attachment {
    /// What is reported of the file's allocators, given which probes could not be attached. Two operators may
    /// share an exit; it is probed once.
    pub fn views(mut self, failures: &[AttachFailure]) -> Vec<AllocatorView> {
        let mut failed_names: Vec<(usize, String)> = Vec::new();
        for failure in failures {
            let Some((allocator, name)) = self.owners.get(failure.probe) else { continue };
            if let Some(view) = self.views.get_mut(*allocator) {
                view.failed.push((name.clone(), failure.error.to_string()));
            }
            failed_names.push((*allocator, name.clone()));
        }
        let mut counted: Vec<&(usize, String)> = Vec::new();
        for owner in &self.owners {
            if failed_names.contains(owner) || counted.contains(&owner) {
                continue;
            }
            counted.push(owner);
            if let Some(view) = self.views.get_mut(owner.0) {
                view.probed += 1;
            }
        }
        self.views
    }

    /// Offsets of the probes in the file, and the functions that they belong to.
    pub fn places(&self) -> Vec<(u64, String)> {
        let offsets = self.probes.iter().map(|probe| probe.file_offset);
        offsets.zip(self.owners.iter().map(|(_, function)| function.clone())).collect()
    }

    /// Drops probes at a place that has one already: two operators may end at the same exit.
    pub fn without_duplicates(mut self) -> Attachment {
        let mut seen = std::collections::HashSet::new();
        let keep: Vec<bool> = self
            .probes
            .iter()
            .map(|probe| seen.insert((probe.file_offset, probe.hook.shape == Shape::Exit)))
            .collect();
        let mut kept = keep.iter();
        self.probes.retain(|_| kept.next().copied().unwrap_or(true));
        let mut kept = keep.iter();
        self.owners.retain(|_| kept.next().copied().unwrap_or(true));
        self
    }
}
