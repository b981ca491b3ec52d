//! Gathers what `doctor -p` shows of a process: what would be probed and what a call would pay for that, and for
//! each file whose code it maps the unwind table and where names come from. Nothing is attached to it.
use std::{cell::RefCell, collections::HashSet, path::PathBuf};

use leaktrace_common::hook::Shape;

use super::{attachment::FunctionPlan, bans::Bans, tables::Contents};
use crate::{
    attach::{
        links::LinkKind,
        live_text::LiveText,
        plan::{CostClass, EmulatedClasses},
        selftest::ProbeCosts,
    },
    discover::{
        self, AllocatorInObject, hazard,
        maps::{self, MapEntry},
        moved,
        process::{self, Process, Seccomp},
        scan::FoundFunction,
    },
    model::diagnosis::{AllocatorDiagnosis, FileDiagnosis, HookDiagnosis, ProcessDiagnosis, TableDiagnosis},
    symbolize::{DEFAULT_DEBUG_DIR, Modules},
    unwind::{
        elf::Elf,
        table::{Options, Table},
    },
};

/// Files of one process that are looked into.
const MAX_FILES: usize = 1024;

/// What is known of the host.
pub(super) struct Look<'a> {
    /// Instructions that its kernel emulates.
    pub(super) emulated: EmulatedClasses,
    /// What probes cost, where it could be measured.
    pub(super) costs: Option<&'a ProbeCosts>,
    /// The link type that would be used.
    pub(super) link: LinkKind,
    /// Why processes under a seccomp filter are refused, where they are.
    pub(super) refuse_filtered: Option<String>,
    /// Programs that standing orders pass by.
    pub(super) bans: RefCell<Bans>,
}

/// Looks at a process.
pub(super) fn process(pid: u32, look: &Look<'_>) -> ProcessDiagnosis {
    match process::inspect(pid) {
        Ok(process) => running(&process, look),
        Err(error) => ProcessDiagnosis {
            pid,
            refused: Some(error.to_string()),
            seccomp: "none",
            ..ProcessDiagnosis::default()
        },
    }
}

fn running(process: &Process, look: &Look<'_>) -> ProcessDiagnosis {
    let pid = process.identity.pid;
    let is_filtered = process.seccomp != Seccomp::Disabled;
    let mut diagnosis = ProcessDiagnosis {
        pid,
        refused: hazard::of(pid)
            .map(|hazard| hazard.to_string())
            .or_else(|| look.refuse_filtered.clone().filter(|_| is_filtered)),
        comm: process.comm.clone(),
        cmdline: process.cmdline.clone(),
        executable: process.executable.clone(),
        start_time: process.identity.start_time_wall_ns,
        user_id: process.uid,
        seccomp: match process.seccomp {
            Seccomp::Disabled => "none",
            Seccomp::Strict => "strict",
            Seccomp::Filter => "filter",
        },
        inner_pid: process.namespace_pids.get(1..).and_then(|inner| inner.last()).copied(),
        rss_bytes: process.rss_bytes,
        heap_bytes: process::heap_bytes(pid),
        ..ProcessDiagnosis::default()
    };
    match discover::discover(pid, &discover::options::Options::default()) {
        Ok(found) => {
            let text = LiveText::open(pid).ok();
            diagnosis.allocators =
                found.allocators.iter().map(|one| allocator(one, look, text.as_ref())).collect();
            let unreadable = found.unreadable.iter();
            diagnosis.notes.extend(unreadable.map(|(path, reason)| format!("{path}: {reason}")));
        }
        Err(error) => diagnosis.refused = Some(error.to_string()),
    }
    diagnosis.notes.extend(look.bans.borrow_mut().of_process(pid));
    match maps::read(pid) {
        Ok(entries) => look_into_files(pid, &moved::restored(pid, entries), &mut diagnosis),
        Err(error) => diagnosis.notes.push(format!("its mappings cannot be read: {error}")),
    }
    diagnosis
}

fn allocator(found: &AllocatorInObject, look: &Look<'_>, text: Option<&LiveText>) -> AllocatorDiagnosis {
    let failed = found.failed.iter().map(|failed| (failed.name.clone(), failed.reason.clone()));
    let mut diagnosis = AllocatorDiagnosis {
        name: found.allocator.name().to_owned(),
        file: found.path.clone(),
        deleted: found.deleted,
        hooks: Vec::new(),
        failed: failed.collect(),
        left_out: found.left_out.clone(),
    };
    for function in &found.functions {
        let planned = FunctionPlan::of(&found.file, function, look.emulated)
            .and_then(|plan| plan.found_in(text, found.load_bias, function.address));
        match planned {
            Ok(plan) => diagnosis.hooks.push(hook(function, &plan, look)),
            Err(reason) => diagnosis.failed.push((function.name.clone(), reason)),
        }
    }
    diagnosis
}

fn hook(function: &FoundFunction, plan: &FunctionPlan, look: &Look<'_>) -> HookDiagnosis {
    let exits = u32::try_from(plan.exits.sites.len()).unwrap_or(u32::MAX);
    let is_session = look.link == LinkKind::Session && plan.with_return;
    HookDiagnosis {
        function: function.name.clone(),
        action: action(function.hook.shape),
        file_offset: plan.site.file_offset,
        instruction_offset: plan.site.instruction_offset,
        instruction: plan.site.instruction_text.clone(),
        emulated: plan.site.cost_class == CostClass::Emulated,
        skips_null: plan.site.skips_null,
        link: match look.link {
            LinkKind::Session if !is_session => LinkKind::Multi.name(),
            link => link.name(),
        },
        with_return: plan.with_return,
        exits,
        expected_ns: look.costs.map(|costs| {
            // A call passes one exit, which is a `ret` and single-stepped.
            let at_exit = if exits > 0 { costs.single_stepped_ns } else { 0 };
            costs.of_site(&plan.site, plan.with_return) + at_exit
        }),
    }
}

fn action(shape: Shape) -> &'static str {
    match shape {
        Shape::Allocate | Shape::StoreThrough => "allocates",
        Shape::Reallocate => "reallocates",
        Shape::ResizeInPlace => "resizes",
        Shape::Free => "frees",
        Shape::Exit => "ends",
        Shape::Throw => "throws",
    }
}

/// Every file once, by its first executable mapping; generated code in one sum.
fn look_into_files(pid: u32, entries: &[MapEntry], diagnosis: &mut ProcessDiagnosis) {
    let mut modules = Modules::default();
    let mut seen = HashSet::new();
    for entry in entries.iter().filter(|entry| entry.executable) {
        let is_vdso = entry.path == b"[vdso]";
        if !entry.is_file() && !is_vdso {
            if entry.path != b"[vsyscall]" {
                diagnosis.generated_code_bytes += entry.length_bytes();
            }
        } else if seen.insert((entry.device, entry.inode, is_vdso)) {
            if diagnosis.files.len() == MAX_FILES {
                diagnosis.notes.push(format!("it maps more than {MAX_FILES} files: the rest is not shown"));
                return;
            }
            diagnosis.files.push(file(pid, entry, &mut modules));
        }
    }
}

fn file(pid: u32, entry: &MapEntry, modules: &mut Modules) -> FileDiagnosis {
    let mut diagnosis =
        FileDiagnosis { path: entry.path_lossy(), deleted: entry.deleted, ..FileDiagnosis::default() };
    if let Ok(module) = modules.capture(pid, entry) {
        let names = module.name_sources(&[PathBuf::from(DEFAULT_DEBUG_DIR)]);
        diagnosis.build_id = module.build_id.clone();
        diagnosis.symbols = names.symbols;
        diagnosis.debug_info = names.debug_info;
    }
    match Contents::open(pid, entry) {
        None => diagnosis.problem = Some("it cannot be opened".to_owned()),
        Some(contents) => match Elf::read(&contents.source()) {
            Ok(elf) => {
                diagnosis.table = table(&Table::build(contents.source(), &elf, &Options::default()));
            }
            Err(error) => diagnosis.problem = Some(error.to_string()),
        },
    }
    diagnosis
}

fn table(table: &Table) -> TableDiagnosis {
    let facts = &table.facts;
    let mut sources = Vec::new();
    if facts.eh_frame_fdes > 0 {
        sources.push(if facts.is_stripped { "PT_GNU_EH_FRAME" } else { ".eh_frame" });
    }
    if facts.debug_frame_fdes > 0 {
        sources.push(".debug_frame");
    }
    if facts.go_bytes > 0 {
        sources.push("Go's frame pointers");
    }
    if facts.synthesized_bytes > 0 {
        sources.push("the code itself");
    }
    if facts.signal_returns > 0 {
        sources.push("signal return code");
    }
    TableDiagnosis {
        sources,
        functions: facts.eh_frame_fdes + facts.debug_frame_fdes,
        rows: table.rows.len() as u64,
        rules: table.rules.len() as u64,
        bytes: table.size_bytes() as u64,
        took_ns: u64::try_from(facts.took.as_nanos()).unwrap_or(u64::MAX),
        unsupported_rows: facts.unsupported_rows,
        lost: facts.lost_fdes + facts.lost_rows + facts.lost_rules,
        problem: facts.problem.clone(),
    }
}
