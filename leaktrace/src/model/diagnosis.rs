//! What `doctor` found, as values: the host's checks, what probes cost, and for each process what would be probed
//! and how its stacks would be walked. Finding it is `agent`'s work, showing it `render`'s and `export`'s.
use super::snapshot::WallNs;
use crate::attach::preflight::{Check, Level};

/// All of it.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// When.
    pub time: WallNs,
    /// Host name.
    pub host: String,
    /// The checks of the host, what is most basic first.
    pub checks: Vec<Check>,
    /// Link types, the best first.
    pub links: Vec<LinkDiagnosis>,
    /// What probes cost, or why that could not be measured.
    pub costs: Result<CostTable, String>,
    /// What is bounded, and by how much unless an option says otherwise.
    pub limits: Vec<Limit>,
    /// The processes that were asked for.
    pub processes: Vec<ProcessDiagnosis>,
}

impl Diagnosis {
    /// Whether leaktrace can work here, and trace each of the processes.
    pub fn works(&self) -> bool {
        self.checks.iter().all(|check| check.level != Level::Missing)
            && self.processes.iter().all(|process| process.refused.is_none())
    }
}

/// A link type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkDiagnosis {
    /// Its name.
    pub name: &'static str,
    /// Whether this kernel has it; none where that could not be tried.
    pub available: Option<bool>,
    /// Whether it is the one that is used.
    pub used: bool,
}

/// What probes cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostTable {
    /// The link type that was measured.
    pub link: &'static str,
    /// How long measuring took, ns.
    pub took_ns: u64,
    /// The rows.
    pub rows: Vec<CostRow>,
}

/// What a probe of one kind costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostRow {
    /// The instruction that it stands on, or what it does.
    pub what: &'static str,
    /// ns for each hit; none where the kernel has no such probe.
    pub ns: Option<u64>,
    /// How the kernel handles it.
    pub how: &'static str,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub value: u64,
    /// The option that changes it.
    pub option: Option<&'static str>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDiagnosis {
    /// Process id.
    pub pid: u32,
    /// Why it cannot be traced.
    pub refused: Option<String>,
    /// Name. Hostile.
    pub comm: String,
    /// Command line. Hostile.
    pub cmdline: String,
    /// Path of the program. Hostile.
    pub executable: Option<String>,
    /// When it started.
    pub start_time: WallNs,
    /// Real user id.
    pub user_id: u32,
    /// `"none"`, `"strict"` or `"filter"`.
    pub seccomp: &'static str,
    /// Its pid in its own namespace, where that is another.
    pub inner_pid: Option<u32>,
    /// Resident set size.
    pub rss_bytes: u64,
    /// What the heap holds already; none where it cannot be read.
    pub heap_bytes: Option<u64>,
    /// What would be probed.
    pub allocators: Vec<AllocatorDiagnosis>,
    /// The files whose code it maps.
    pub files: Vec<FileDiagnosis>,
    /// Code without a file, made at run time; bytes.
    pub generated_code_bytes: u64,
    /// What could not be found out.
    pub notes: Vec<String>,
}

/// An allocator in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocatorDiagnosis {
    /// Its name.
    pub name: String,
    /// The file. Hostile.
    pub file: String,
    /// The file has no name any more.
    pub deleted: bool,
    /// Functions that would be probed.
    pub hooks: Vec<HookDiagnosis>,
    /// Functions that cannot be probed: name and reason. Hostile.
    pub failed: Vec<(String, String)>,
    /// Functions that need no probe, because they reach one that has. Hostile.
    pub left_out: Vec<String>,
}

/// The probes of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookDiagnosis {
    /// Its name. Hostile.
    pub function: String,
    /// `"allocates"`, `"reallocates"`, `"frees"` …
    pub action: &'static str,
    /// Where in the file the probe at the entry stands.
    pub file_offset: u64,
    /// Bytes from the function's first instruction.
    pub instruction_offset: u64,
    /// The instruction there.
    pub instruction: String,
    /// Whether the kernel emulates it; else it is single-stepped.
    pub emulated: bool,
    /// Calls with NULL do not hit it.
    pub skips_null: bool,
    /// The link type of the probe.
    pub link: &'static str,
    /// Whether a return probe sees the end of a call.
    pub with_return: bool,
    /// Probes on exits that see it instead, where an exception may cross the function.
    pub exits: u32,
    /// What a call pays for the probes alone, in ns, by the costs that were measured.
    pub expected_ns: Option<u64>,
}

/// A file whose code is mapped: how stacks through it are walked, and where its names come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileDiagnosis {
    /// Path. Hostile.
    pub path: String,
    /// It has no name any more.
    pub deleted: bool,
    /// Build id in hexadecimal.
    pub build_id: Option<String>,
    /// Why nothing else is known of it.
    pub problem: Option<String>,
    /// The unwind table.
    pub table: TableDiagnosis,
    /// Where function names come from: `.symtab`, `.dynsym` and the like.
    pub symbols: Vec<&'static str>,
    /// `"inside"`, `"separate"` or none.
    pub debug_info: Option<&'static str>,
}

/// The unwind table of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableDiagnosis {
    /// What it was made from.
    pub sources: Vec<&'static str>,
    /// Functions described.
    pub functions: u64,
    /// Rows.
    pub rows: u64,
    /// Distinct rules.
    pub rules: u64,
    /// Bytes in the kernel's maps.
    pub bytes: u64,
    /// ns to make it.
    pub took_ns: u64,
    /// Rows whose rule cannot be expressed: stacks end there.
    pub unsupported_rows: u64,
    /// Entries, rows and rules that were damaged or beyond a limit.
    pub lost: u64,
    /// What is wrong with the information, in words. Hostile.
    pub problem: Option<String>,
}
