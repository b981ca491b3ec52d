//! A snapshot as text for a terminal. The caller decides on width and colour and writes the result.
use std::fmt::{self, Write};

use leaktrace_common::counter::{Class, Counter};

mod verdict;
mod watch;

use super::{
    escape::{cut, escape},
    units,
    words::{about, frame_line, held, mode, place, stack_ends, state, sum, verdict, why_it_ends, words},
};
use crate::model::{
    site_id::base_name,
    snapshot::{BlockView, Confidence, Frame, Mode, SiteKind, SiteView, Snapshot, TargetView},
    verdict::{Outcome, Verdict},
};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Characters in a line; longer lines of a stack are cut.
    pub width: usize,
    /// Whether to use ANSI colours.
    pub color: bool,
    /// One line for each process.
    pub combined_only: bool,
}

impl Default for Style {
    fn default() -> Style {
        Style { width: 100, color: false, combined_only: false }
    }
}

/// The whole snapshot.
pub fn snapshot(snapshot: &Snapshot, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = Printer { out: &mut out, style, mode: snapshot.mode }.snapshot(snapshot);
    out
}

/// The frames of a stack, a line each, indented, with the reason why it ends where that is not its outermost
/// function.
pub fn stack(frames: &[Frame], stack_end: &str, indent: usize, style: Style) -> String {
    let mut out = String::new();
    let _ = Printer { out: &mut out, style, mode: Mode::Exact }.stack(frames, stack_end, indent);
    out
}

struct Printer<'a> {
    out: &'a mut String,
    style: Style,
    mode: Mode,
}

/// SGR codes.
#[derive(Clone, Copy)]
enum Paint {
    Bold,
    Red,
    Yellow,
    Dim,
}

impl Printer<'_> {
    fn snapshot(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let traced = u64::try_from(snapshot.time.saturating_sub(snapshot.since)).unwrap_or(0);
        let last = if snapshot.last { ", final" } else { "" };
        let line = format!(
            "{}, {} traced{last}, {}",
            units::wall_time(snapshot.time),
            units::duration(traced),
            mode(snapshot.mode)
        );
        self.painted(Paint::Dim, &line)?;
        self.out.write_char('\n')?;
        for target in &snapshot.targets {
            self.target(target)?;
        }
        if snapshot.targets.is_empty() {
            writeln!(self.out, "No process is traced.")?;
        }
        if let Some(watched) = &snapshot.watched {
            self.watched(watched)?;
        }
        self.losses(snapshot)?;
        self.events(&snapshot.events)?;
        for note in &snapshot.notes {
            writeln!(self.out, "Note: {}", escape(note))?;
        }
        snapshot.verdict.iter().try_for_each(|verdict| self.verdict(verdict))
    }

    /// What it all comes to, in the last lines.
    fn verdict(&mut self, verdict: &Verdict) -> fmt::Result {
        for line in verdict::hidden(verdict) {
            writeln!(self.out, "{line}")?;
        }
        let paint = match verdict.outcome {
            Outcome::Clean => Paint::Bold,
            Outcome::NotKnown => Paint::Yellow,
            Outcome::Leaks | Outcome::ProgramFailed => Paint::Red,
        };
        self.painted(paint, &verdict::line(verdict))?;
        self.out.write_char('\n')
    }

    fn target(&mut self, target: &TargetView) -> fmt::Result {
        let grows = target.memory.as_ref().and_then(|memory| memory.finding.as_ref());
        let of_sites =
            target.sites.iter().filter_map(|site| site.finding.as_ref()).map(|f| f.confidence).max();
        let found =
            of_sites.or(grows.filter(|_| !watch::sees_allocations(target, self.mode)).map(|f| f.confidence));
        let place = target.container.as_ref().map(place).unwrap_or_default();
        let mut line = format!("PID {} {}{place}{}: ", target.pid, escape(&target.comm), state(target));
        if let Some(confidence) = found {
            write!(line, "{}, ", verdict(confidence))?;
        }
        match &target.memory {
            Some(memory) if self.mode == Mode::Growth => write!(line, "{}", watch::anonymous(memory))?,
            _ => write!(line, "{} outstanding", held(&target.totals, "block"))?,
        }
        if target.mappings.program_bytes > 0 {
            write!(line, " and {} mapped", units::bytes(target.mappings.program_bytes))?;
        }
        if let Some(growth) = target.growth_bytes_per_second.filter(|_| self.mode != Mode::Growth) {
            write!(line, ", {}", units::rate(growth))?;
        }
        if !self.style.combined_only {
            self.out.write_char('\n')?;
        }
        match found {
            Some(Confidence::High) => self.painted(Paint::Red, &line)?,
            Some(_) => self.painted(Paint::Yellow, &line)?,
            None => self.painted(Paint::Bold, &line)?,
        }
        self.out.write_char('\n')?;
        if self.style.combined_only {
            return Ok(());
        }
        self.background(target)?;
        let width = target.sites.len().to_string().len();
        for (index, site) in target.sites.iter().enumerate() {
            self.site(index + 1, width, site)?;
        }
        if target.sites_cut > 0 {
            let sites = units::counted(target.sites_cut, "more call stack");
            writeln!(self.out, "\n  … {sites}: {} (--top 0 shows all)", held(&target.cut_totals, "block"))?;
        }
        Ok(())
    }

    /// What puts a target's numbers into proportion.
    fn background(&mut self, target: &TargetView) -> fmt::Result {
        if let Some(harm) = &target.harm {
            self.out.write_str("  ")?;
            self.painted(Paint::Red, &format!("probably killed by tracing: {}", escape(&harm.reason)))?;
            self.out.write_char('\n')?;
        }
        let mut words = Vec::new();
        if self.mode != Mode::Growth {
            words.push(format!(
                "allocated {0}{1}, freed {0}{2}",
                about(&target.totals),
                sum(target.totals.allocated_bytes, target.totals.allocated_count),
                sum(target.totals.freed_bytes, target.totals.freed_count)
            ));
        }
        if let Some(unseen_ns) = target.unseen_ns {
            words.push(format!("its first {:.1} ms not seen", unseen_ns as f64 / 1e6));
        }
        if let Some(bytes) = target.heap_before_attach_bytes.filter(|bytes| *bytes > 0) {
            words.push(format!("{} of heap from before tracing", units::bytes(bytes)));
        }
        if let Some(frees) = target.unmatched_frees.filter(|frees| *frees > 0) {
            words.push(format!("{} of blocks from before tracing", units::counted(frees, "free")));
        }
        if let Some(bytes) = target.rss_bytes {
            words.push(format!("RSS {}", units::bytes(bytes)));
        }
        self.items("", &words)?;
        let unseen: Vec<String> = target.unseen.iter().map(|reason| escape(reason)).collect();
        self.items("not seen: ", &unseen)?;
        if let Some(memory) = &target.memory {
            self.items("memory: ", &watch::memory(memory, self.mode))?;
            if let Some(finding) =
                memory.finding.as_ref().filter(|_| !watch::sees_allocations(target, self.mode))
            {
                self.out.write_str("  ")?;
                self.painted(
                    Paint::Yellow,
                    &format!("{}: {}", verdict(finding.confidence), finding.evidence),
                )?;
                self.out.write_char('\n')?;
            }
        }
        if let Some(overhead) = &target.overhead {
            self.items("overhead: ", &watch::overhead(overhead))?;
        }
        let names: Vec<String> = target
            .allocators
            .iter()
            .map(|allocator| format!("{} in {}", escape(&allocator.name), escape(base_name(&allocator.file))))
            .collect();
        self.items("allocators: ", &names)?;
        self.mappings(target)?;
        self.items("call stacks: ", &stack_ends(target))
    }

    /// Items separated by semicolons, broken into lines between items; nothing where there are none.
    fn items(&mut self, title: &str, items: &[String]) -> fmt::Result {
        if items.is_empty() {
            return Ok(());
        }
        let mut line = format!("  {title}");
        for (index, item) in items.iter().enumerate() {
            let separator = if index + 1 < items.len() { "; " } else { "" };
            if index > 0 && line.chars().count() + item.chars().count() + 1 > self.style.width {
                writeln!(self.out, "{}", line.trim_end())?;
                line = "    ".to_owned();
            }
            line.push_str(item);
            line.push_str(separator);
        }
        writeln!(self.out, "{line}")
    }

    fn mappings(&mut self, target: &TargetView) -> fmt::Result {
        let m = &target.mappings;
        let words: Vec<String> = [
            (m.program_bytes, "mapped by the program"),
            (m.allocator_bytes, "by allocators"),
            (m.break_bytes, "program break"),
            (m.stack_bytes, "thread stacks"),
            (m.reserved_bytes, "reserved"),
        ]
        .into_iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", units::bytes(bytes)))
        .collect();
        self.items("mappings: ", &words)
    }

    fn site(&mut self, number: usize, width: usize, site: &SiteView) -> fmt::Result {
        let noun = if site.kind == SiteKind::Mapping { "mapping" } else { "block" };
        let mut line = held(&site.totals, noun);
        if let Some(growth) = site.growth_bytes_per_second {
            write!(line, ", {}", units::rate(growth))?;
        }
        if let Some(age) = site.oldest_age_ns {
            write!(line, ", oldest {}", units::duration(age))?;
        }
        if site.totals.freed_count > 0 {
            let (freed, made) = (site.totals.freed_count, site.totals.allocated_count);
            let about = about(&site.totals);
            write!(line, ", {about}{} of {} freed", units::count(freed), units::count(made))?;
        }
        write!(self.out, "\n  {number:>width$}. ")?;
        self.painted(Paint::Bold, &line)?;
        self.painted(Paint::Dim, &format!("  [{}]", site.id))?;
        self.out.write_char('\n')?;
        let indent = width + 4;
        if site.totals.unverified_count > 0 {
            self.indent(indent)?;
            self.painted(Paint::Dim, &watch::unverified(&site.totals))?;
            self.out.write_char('\n')?;
        }
        if let Some(finding) = &site.finding {
            let paint = if finding.confidence == Confidence::High { Paint::Red } else { Paint::Yellow };
            self.indent(indent)?;
            self.painted(paint, &format!("{}: {}", verdict(finding.confidence), finding.evidence))?;
            self.out.write_char('\n')?;
        }
        if let Some(suppression) = &site.suppressed {
            self.indent(indent)?;
            self.painted(Paint::Dim, &format!("suppressed: {}", escape(suppression)))?;
            self.out.write_char('\n')?;
        }
        self.stack(&site.frames, site.stack_end, indent)?;
        site.blocks.iter().try_for_each(|block| self.block(block, indent))?;
        let listed = site.totals.sampled.map_or(site.totals.outstanding_count, |sampled| sampled.samples);
        let more = listed.saturating_sub(site.blocks.len() as u64);
        if more > 0 && !site.blocks.is_empty() {
            self.indent(indent)?;
            writeln!(self.out, "… {}", units::counted(more, "younger block"))?;
        }
        Ok(())
    }

    fn block(&mut self, block: &BlockView, indent: usize) -> fmt::Result {
        self.indent(indent)?;
        let (size, age) = (units::bytes(block.size_bytes), units::duration(block.age_ns));
        writeln!(self.out, "0x{:012x}  {size:>10}  {age:>7} old", block.address)
    }

    fn stack(&mut self, frames: &[Frame], stack_end: &str, indent: usize) -> fmt::Result {
        for frame in frames {
            self.indent(indent)?;
            let line = frame_line(frame);
            writeln!(self.out, "{}", cut(&line, self.style.width.saturating_sub(indent).max(20)))?;
        }
        if let Some(reason) = why_it_ends(stack_end) {
            self.indent(indent)?;
            self.painted(Paint::Dim, &reason)?;
            self.out.write_char('\n')?;
        }
        Ok(())
    }

    fn losses(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let class =
            |name: &str| Counter::ALL.iter().find(|counter| counter.name() == name).map(|c| c.class());
        let list = |wanted: fn(Option<Class>) -> bool| {
            let items = snapshot.losses.iter().filter(|(name, count)| **count > 0 && wanted(class(name)));
            items.map(|(name, count)| format!("{} {}", units::count(*count), words(name))).collect::<Vec<_>>()
        };
        let lost = list(|class| !matches!(class, Some(Class::Detail | Class::Activity)));
        let approximate = list(|class| class == Some(Class::Detail));
        self.out.write_char('\n')?;
        if lost.is_empty() {
            self.out.write_str("Lost: nothing.")?;
        } else {
            self.painted(Paint::Red, &format!("Lost: {}.", lost.join(", ")))?;
        }
        if !approximate.is_empty() {
            write!(self.out, " Less exact: {}.", approximate.join(", "))?;
        }
        self.out.write_char('\n')
    }

    fn indent(&mut self, columns: usize) -> fmt::Result {
        write!(self.out, "{:columns$}", "")
    }

    fn painted(&mut self, paint: Paint, text: &str) -> fmt::Result {
        if !self.style.color {
            return self.out.write_str(text);
        }
        let code = match paint {
            Paint::Bold => "1",
            Paint::Red => "1;31",
            Paint::Yellow => "1;33",
            Paint::Dim => "2",
        };
        write!(self.out, "\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests;
