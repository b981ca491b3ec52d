//! What `doctor` found, as text: a checklist, tables of costs and limits, and a section for each process. Whether
//! it works comes first. JSON is `export`'s.
use std::fmt::{self, Write};

use super::{escape::escape, text::Style, units};
use crate::{
    attach::preflight::{Check, Level},
    model::diagnosis::{
        AllocatorDiagnosis, CostTable, Diagnosis, FileDiagnosis, HookDiagnosis, Limit, LinkDiagnosis,
        ProcessDiagnosis,
    },
};

/// The whole of it.
pub fn diagnosis(diagnosis: &Diagnosis, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = Printer { out: &mut out, color: style.color }.diagnosis(diagnosis);
    out
}

/// SGR codes.
const BOLD: &str = "1";
const RED: &str = "1;31";
const GREEN: &str = "32";
const YELLOW: &str = "1;33";
const DIM: &str = "2";

struct Printer<'a> {
    out: &'a mut String,
    color: bool,
}

impl Printer<'_> {
    fn diagnosis(&mut self, diagnosis: &Diagnosis) -> fmt::Result {
        let missing = diagnosis.checks.iter().filter(|check| check.level == Level::Missing).count();
        let host = escape(&diagnosis.host);
        let (color, verdict) = match missing {
            0 => (GREEN, format!("leaktrace can work on {host}.")),
            1 => (RED, format!("leaktrace cannot work on {host}: one thing is missing.")),
            _ => (RED, format!("leaktrace cannot work on {host}: {missing} things are missing.")),
        };
        self.painted(color, &verdict)?;
        writeln!(self.out, "\n")?;
        for check in &diagnosis.checks {
            self.check(check)?;
        }
        self.links(&diagnosis.links)?;
        match &diagnosis.costs {
            Ok(costs) => self.costs(costs)?,
            Err(reason) => writeln!(self.out, "\nCosts of probes were not measured: {}", escape(reason))?,
        }
        self.limits(&diagnosis.limits)?;
        for process in &diagnosis.processes {
            self.process(process)?;
        }
        Ok(())
    }

    fn check(&mut self, check: &Check) -> fmt::Result {
        let (word, color) = match check.level {
            Level::Ok => ("ok", GREEN),
            Level::Unknown => ("unknown", YELLOW),
            Level::Warning => ("warning", YELLOW),
            Level::Missing => ("MISSING", RED),
        };
        self.painted(color, &format!("{word:<7}"))?;
        writeln!(self.out, "  {:<15}  {}", check.topic, escape(&check.finding))?;
        if let Some(remedy) = &check.remedy {
            writeln!(self.out, "{:<26}→ {}", "", escape(remedy))?;
        }
        Ok(())
    }

    fn links(&mut self, links: &[LinkDiagnosis]) -> fmt::Result {
        let words: Vec<String> = links
            .iter()
            .map(|link| {
                let state = match (link.available, link.used) {
                    (None, _) => "not tried",
                    (Some(_), true) => "used",
                    (Some(true), false) => "available",
                    (Some(false), false) => "not in this kernel",
                };
                format!("{} ({state})", link.name)
            })
            .collect();
        writeln!(self.out, "\nLink types: {}", words.join(", "))
    }

    fn costs(&mut self, costs: &CostTable) -> fmt::Result {
        self.heading("What a probe costs a call")?;
        let took = units::duration(costs.took_ns);
        writeln!(self.out, " ({} links, measured in {took}, with programs that do nothing)", costs.link)?;
        for row in &costs.rows {
            let ns = row.ns.map_or_else(|| "-".to_owned(), nanoseconds);
            writeln!(self.out, "  {:<23} {ns:>10}  {}", row.what, row.how)?;
        }
        Ok(())
    }

    fn limits(&mut self, limits: &[Limit]) -> fmt::Result {
        self.heading("Limits")?;
        self.out.write_char('\n')?;
        for limit in limits {
            let option = limit.option.map(|option| format!("  ({option})")).unwrap_or_default();
            writeln!(self.out, "  {:<39} {:>10}{option}", limit.what, units::count(limit.value))?;
        }
        Ok(())
    }

    fn process(&mut self, process: &ProcessDiagnosis) -> fmt::Result {
        let name = if process.comm.is_empty() {
            format!("PID {}", process.pid)
        } else {
            format!("PID {} {}", process.pid, escape(&process.comm))
        };
        self.out.write_char('\n')?;
        if let Some(reason) = &process.refused {
            self.painted(RED, &format!("{name}: cannot be traced"))?;
            writeln!(self.out, "\n  {}", escape(reason))?;
        } else {
            self.painted(BOLD, &format!("{name}: can be traced"))?;
            self.out.write_char('\n')?;
        }
        if !process.comm.is_empty() {
            self.facts(process)?;
        }
        for note in &process.notes {
            writeln!(self.out, "  Note: {}", escape(note))?;
        }
        if process.refused.is_none() && process.allocators.iter().all(|one| one.hooks.is_empty()) {
            writeln!(
                self.out,
                "  No allocation function was found: name one with --function or --symbols-prefix"
            )?;
        }
        for allocator in &process.allocators {
            self.allocator(allocator)?;
        }
        self.files(process)
    }

    fn facts(&mut self, process: &ProcessDiagnosis) -> fmt::Result {
        let program = process.executable.as_deref().unwrap_or("program unknown");
        write!(
            self.out,
            "  {}, user {}, RSS {}",
            escape(program),
            process.user_id,
            units::bytes(process.rss_bytes)
        )?;
        if let Some(heap) = process.heap_bytes {
            write!(self.out, ", heap so far {}", units::bytes(heap))?;
        }
        if let Some(inner) = process.inner_pid {
            write!(self.out, ", pid {inner} in its container")?;
        }
        write!(self.out, ", started {}", units::wall_time(process.start_time))?;
        match process.seccomp {
            "none" => self.out.write_str(", no seccomp filter\n"),
            kind => writeln!(self.out, ", seccomp: {kind}"),
        }
    }

    fn allocator(&mut self, allocator: &AllocatorDiagnosis) -> fmt::Result {
        let deleted = if allocator.deleted { " (deleted)" } else { "" };
        writeln!(self.out, "\n  {} in {}{deleted}", allocator.name, escape(&allocator.file))?;
        let width =
            allocator.hooks.iter().map(|hook| escape(&hook.function).chars().count()).max().unwrap_or(0);
        let instructions =
            allocator.hooks.iter().map(|hook| hook.instruction.chars().count()).max().unwrap_or(0);
        for hook in &allocator.hooks {
            self.hook(hook, width.min(40), instructions.min(40))?;
        }
        if !allocator.left_out.is_empty() {
            let names: Vec<String> = allocator.left_out.iter().map(|name| escape(name)).collect();
            writeln!(self.out, "    need no probe, they call the others: {}", names.join(", "))?;
        }
        for (function, reason) in &allocator.failed {
            self.out.write_str("    ")?;
            self.painted(YELLOW, &format!("{} cannot be probed: {}", escape(function), escape(reason)))?;
            self.out.write_char('\n')?;
        }
        Ok(())
    }

    fn hook(&mut self, hook: &HookDiagnosis, width: usize, instructions: usize) -> fmt::Result {
        let place = format!("+{}", hook.instruction_offset);
        let how = if hook.emulated { "emulated" } else { "single-stepped" };
        let end = match (hook.with_return, hook.exits) {
            (true, _) => "with return".to_owned(),
            (false, 0) => String::new(),
            (false, exits) => format!("{exits} exits"),
        };
        let cost = hook.expected_ns.map(nanoseconds).unwrap_or_default();
        let skips = if hook.skips_null { "  not for NULL" } else { "" };
        let line = format!(
            "    {:<width$}  {:<11}  {place:<4} {:<instructions$}  {how:<14}  {:<7} {end:<11}  {cost:>10}{skips}",
            escape(&hook.function),
            hook.action,
            hook.instruction,
            hook.link,
        );
        writeln!(self.out, "{}", line.trim_end())
    }

    fn files(&mut self, process: &ProcessDiagnosis) -> fmt::Result {
        if process.files.is_empty() {
            return Ok(());
        }
        self.out.write_str("\n  Call stacks and names, by file\n")?;
        for file in &process.files {
            self.file(file)?;
        }
        if process.generated_code_bytes > 0 {
            let size = units::bytes(process.generated_code_bytes);
            writeln!(
                self.out,
                "    {size} of code without a file: its frames are guessed by frame pointers"
            )?;
        }
        Ok(())
    }

    fn file(&mut self, file: &FileDiagnosis) -> fmt::Result {
        let deleted = if file.deleted { " (deleted)" } else { "" };
        write!(self.out, "    {}{deleted}", escape(&file.path))?;
        if let Some(id) = &file.build_id {
            self.out.write_char(' ')?;
            self.painted(DIM, &format!("[{id}]"))?;
        }
        self.out.write_char('\n')?;
        if let Some(problem) = &file.problem {
            return writeln!(self.out, "      {}", escape(problem));
        }
        let table = &file.table;
        if table.rows == 0 {
            self.out.write_str("      ")?;
            self.painted(YELLOW, "no unwind information: stacks end here")?;
        } else {
            write!(
                self.out,
                "      {} rows and {} rules for {} functions from {}, {}, built in {}",
                units::count(table.rows),
                units::count(table.rules),
                units::count(table.functions),
                table.sources.join(" and "),
                units::bytes(table.bytes),
                units::duration(table.took_ns)
            )?;
        }
        self.out.write_char('\n')?;
        self.shortcomings(file)?;
        let symbols = if file.symbols.is_empty() { "none".to_owned() } else { file.symbols.join(", ") };
        let lines = match file.debug_info {
            None => "no debug information".to_owned(),
            Some(place) => format!("debug information {place}"),
        };
        writeln!(self.out, "      symbols: {symbols}; {lines}")
    }

    fn shortcomings(&mut self, file: &FileDiagnosis) -> fmt::Result {
        let table = &file.table;
        let mut words = Vec::new();
        if table.unsupported_rows > 0 {
            words.push(format!("{} that cannot be followed", units::counted(table.unsupported_rows, "row")));
        }
        if table.lost > 0 {
            words.push(format!("{} damaged or beyond a limit", units::count(table.lost)));
        }
        words.extend(table.problem.as_deref().map(escape));
        if words.is_empty() {
            return Ok(());
        }
        self.out.write_str("      ")?;
        self.painted(YELLOW, &words.join("; "))?;
        self.out.write_char('\n')
    }

    fn heading(&mut self, text: &str) -> fmt::Result {
        self.out.write_char('\n')?;
        self.painted(BOLD, text)
    }

    fn painted(&mut self, code: &str, text: &str) -> fmt::Result {
        if self.color { write!(self.out, "\u{1b}[{code}m{text}\u{1b}[0m") } else { self.out.write_str(text) }
    }
}

fn nanoseconds(ns: u64) -> String {
    format!("{} ns", units::count(ns))
}
