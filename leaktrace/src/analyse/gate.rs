//! From the summaries of a run to its verdict: which findings count, what was not seen, and the exit code.
//!
//! Processes that ended are in one summary each, so every summary is taken in; the verdict is reached with the last one.
//! What cannot be seen is not clean: each way of not seeing is a reason for "not known".
use std::collections::HashMap;

use leaktrace_common::counter::{Class, Counter};

use super::{suppressions::Suppressions, tools};
use crate::model::{
    snapshot::{Mode, SiteKind, SiteView, Snapshot, TargetView},
    units,
    verdict::{Amount, LEAKED, NOT_KNOWN, Outcome, Verdict},
};

/// Reasons that are listed; of more the number is said.
const MAX_REASONS: usize = 20;
/// What keeps a site from being a finding that the baseline has, too.
const IN_BASELINE: &str = "baseline";

/// What decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// How much may be held; `None` where the exit code does not depend on it.
    pub limit_bytes: Option<u64>,
    /// What is not to be heard of.
    pub suppressions: Suppressions,
    /// What was held before, where only more than that counts.
    pub baseline: Option<Snapshot>,
}

/// How the program ended, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was never started.
    NotStarted,
    /// It still runs.
    Runs,
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Ending {
    /// As shells have it; 0 for a program that still runs.
    fn exit_code(self) -> u8 {
        match self {
            Ending::NotStarted | Ending::Runs => 0,
            Ending::Code(code) => code,
            Ending::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Gate {
    rules: Rules,
    /// Suppressions that programs bring, by process.
    of_programs: HashMap<u32, Suppressions>,
    /// Findings over all processes, by site.
    found: HashMap<String, Amount>,
    suppressed: Amount,
    /// What was held by stacks that were not recorded: whose it is cannot be told.
    nameless: Amount,
    saw_a_target: bool,
    reasons: Vec<String>,
    reasons_left_out: u64,
}

impl Gate {
    /// A gate that nothing has come to yet.
    pub fn new(rules: Rules) -> Gate {
        Gate { rules, ..Gate::default() }
    }

    /// Suppressions that the program of a process brings.
    pub fn suppress(&mut self, pid: u32, suppressions: Suppressions) {
        self.of_programs.insert(pid, suppressions);
    }

    /// Something was not seen.
    pub fn doubt(&mut self, reason: String) {
        if self.reasons.contains(&reason) {
            return;
        }
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push(reason);
        } else {
            self.reasons_left_out += 1;
        }
    }

    /// Takes in a summary. Findings that fall under a suppression are none any more, and say why.
    pub fn take(&mut self, snapshot: &mut Snapshot) {
        let is_last = snapshot.last;
        for target in &mut snapshot.targets {
            self.saw_a_target = true;
            if is_last || target.exited.is_some() || target.execed {
                self.take_target(target);
            }
        }
    }

    fn take_target(&mut self, target: &mut TargetView) {
        let name = format!("process {} ({})", target.pid, target.comm);
        // What an image that was replaced held was never to be freed.
        if !target.execed {
            for reason in &target.unseen {
                self.doubt(format!("{name}: {reason}"));
            }
        }
        if target.harm.is_some() {
            self.doubt(format!("{name} was probably killed by tracing"));
        }
        let was_killed = target.exited.is_some_and(|exited| exited.signal.is_some());
        let mut at_death = Amount::default();
        for site in target.sites.iter_mut().filter(|site| site.totals.outstanding_count > 0) {
            if site.finding.is_some() {
                self.take_finding(target.pid, site);
            } else if was_killed
                && site.kind == SiteKind::Heap
                && !site.is_runtimes
                && self.suppression(target.pid, site).is_none()
            {
                at_death.add(site.totals.outstanding_bytes, site.totals.outstanding_count);
            }
        }
        if self.is_beyond_limit(&at_death) {
            self.doubt(format!("{name} was killed while it held {}", held(&at_death)));
        }
        if target.sites_cut > 0 && target.cut_totals.outstanding_count > 0 {
            let cut = Amount {
                bytes: target.cut_totals.outstanding_bytes,
                count: target.cut_totals.outstanding_count,
                sites: target.sites_cut,
            };
            self.doubt(format!("{name}: {} were not looked at (--top 0 looks at all)", held(&cut)));
        }
    }

    fn take_finding(&mut self, pid: u32, site: &mut SiteView) {
        let (bytes, count) = (site.totals.outstanding_bytes, site.totals.outstanding_count);
        if let Some(suppression) = self.suppression(pid, site) {
            self.suppressed.add(bytes, count);
            site.suppressed = Some(suppression);
            site.finding = None;
        } else if site.frames.is_empty() {
            self.nameless.add(bytes, count);
        } else {
            let found = self.found.entry(site.id.clone()).or_default();
            found.bytes = found.bytes.saturating_add(bytes);
            found.count = found.count.saturating_add(count);
        }
    }

    fn suppression(&self, pid: u32, site: &SiteView) -> Option<String> {
        let of_program = self.of_programs.get(&pid);
        let lists = [Some(&self.rules.suppressions), of_program];
        let given = lists.into_iter().flatten().find_map(|list| list.find(site));
        given.map(str::to_owned).or_else(|| tools::suppression(site))
    }

    fn is_beyond_limit(&self, amount: &Amount) -> bool {
        let limit_bytes = self.rules.limit_bytes.unwrap_or(0);
        amount.bytes > limit_bytes || limit_bytes == 0 && amount.count > 0
    }

    /// What it all comes to; `snapshot` is the last one, which was taken in. A site that the baseline has, too, and that
    /// has not grown, is no finding in it any more.
    pub fn verdict(&mut self, snapshot: &mut Snapshot, ending: Ending) -> Verdict {
        let (leaked, in_baseline) = self.against_baseline(snapshot);
        self.doubt_losses(snapshot, ending);
        let has_leaked = self.is_beyond_limit(&leaked);
        let mut doubts = self.reasons.clone();
        if self.reasons_left_out > 0 {
            doubts.push(format!("and {} more reasons", units::count(self.reasons_left_out)));
        }
        let outcome = match ending.exit_code() {
            0 if has_leaked => Outcome::Leaks,
            0 if !doubts.is_empty() => Outcome::NotKnown,
            0 => Outcome::Clean,
            _ => Outcome::ProgramFailed,
        };
        let exit_code = match outcome {
            Outcome::ProgramFailed => ending.exit_code(),
            Outcome::Leaks if self.rules.limit_bytes.is_some() => LEAKED,
            // Where nothing at all was traced, what was asked for was not done.
            Outcome::NotKnown if self.rules.limit_bytes.is_some() || !self.saw_a_target => NOT_KNOWN,
            _ => 0,
        };
        let mut reasons: Vec<String> = ended(ending).into_iter().collect();
        reasons.extend(self.held_sentence(&leaked, has_leaked));
        reasons.extend(doubts);
        let limit_bytes = self.rules.limit_bytes;
        let suppressed = self.suppressed;
        Verdict { outcome, exit_code, reasons, limit_bytes, leaked, suppressed, in_baseline }
    }

    fn held_sentence(&self, leaked: &Amount, has_leaked: bool) -> Option<String> {
        let more = if self.rules.baseline.is_some() { " more than in the baseline" } else { "" };
        match self.rules.limit_bytes {
            _ if leaked.count == 0 && leaked.bytes == 0 => None,
            Some(limit) if limit > 0 && has_leaked => {
                Some(format!("{} held{more}, and {} are allowed", held(leaked), units::bytes(limit)))
            }
            Some(limit) if !has_leaked => Some(format!(
                "{} held{more}, within the {} that are allowed",
                held(leaked),
                units::bytes(limit)
            )),
            _ => Some(format!("{} held{more}", held(leaked))),
        }
    }

    /// What was found beyond the baseline, and what of it the baseline has.
    fn against_baseline(&self, snapshot: &mut Snapshot) -> (Amount, Amount) {
        let known = self.rules.baseline.as_ref().map_or_else(HashMap::new, sums_by_id);
        let (mut leaked, mut in_baseline) = (Amount::default(), Amount::default());
        for (id, found) in &self.found {
            let before = known.get(id.as_str()).copied().unwrap_or_default();
            let bytes = found.bytes.saturating_sub(before.bytes);
            let count = found.count.saturating_sub(before.count);
            if bytes > 0 || count > 0 {
                leaked.add(bytes, count);
            }
            if before.count > 0 {
                in_baseline.add(found.bytes.min(before.bytes), found.count.min(before.count));
            }
        }
        let is_known = |site: &SiteView| {
            self.found
                .get(&site.id)
                .zip(known.get(site.id.as_str()))
                .is_some_and(|(found, before)| found.bytes <= before.bytes && found.count <= before.count)
        };
        let sites = snapshot.targets.iter_mut().flat_map(|target| &mut target.sites);
        for site in sites.filter(|site| site.finding.is_some()) {
            if is_known(site) {
                site.suppressed = Some(IN_BASELINE.to_owned());
                site.finding = None;
            }
        }
        (leaked, in_baseline)
    }

    /// What the last summary says was not recorded.
    fn doubt_losses(&mut self, snapshot: &Snapshot, ending: Ending) {
        if ending == Ending::Runs {
            self.doubt("the program still ran when tracing ended".to_owned());
        }
        match snapshot.mode {
            Mode::Exact => {}
            Mode::Sampled { interval_bytes } => self.doubt(format!(
                "samples alone were recorded, one in {}: what leaks little may not be among them",
                units::bytes(interval_bytes)
            )),
            Mode::Growth => self.doubt("no allocations were recorded (--mode growth)".to_owned()),
        }
        if !self.saw_a_target && self.reasons.is_empty() {
            self.doubt("no process was traced".to_owned());
        }
        if self.nameless.count > 0 {
            let nameless = held(&self.nameless);
            self.doubt(format!(
                "{nameless} held by call stacks that were not recorded: they may be a runtime's"
            ));
        }
        for (cause, amount) in &snapshot.losses {
            if let Some(what) = loss(cause).filter(|_| *amount > 0) {
                self.doubt(format!("{} {what}", units::count(*amount)));
            }
        }
    }
}

/// What a loss means for what was found, to stand after a number; `None` for what hides no leak.
fn loss(cause: &str) -> Option<String> {
    match cause {
        "children_not_traced" => return Some("children were not traced".to_owned()),
        "ended_processes_not_listed" => return Some("processes ended and are not listed".to_owned()),
        "mappings_dropped" => return Some("mappings were not recorded".to_owned()),
        _ => {}
    }
    let counter = Counter::ALL.iter().find(|counter| counter.name() == cause)?;
    // A free that was missed makes a leak of nothing, and never nothing of a leak.
    if counter.class() != Class::Loss || *counter == Counter::MissedFrees {
        return None;
    }
    let meaning = counter.meaning().trim().trim_end_matches('.');
    let mut letters = meaning.chars();
    let first = letters.next()?.to_lowercase();
    Some(first.chain(letters).collect())
}

fn ended(ending: Ending) -> Option<String> {
    match ending {
        Ending::Code(code) if code > 0 => Some(format!("the program ended with {code}")),
        Ending::Signal(signal) => Some(format!("the program was killed by signal {signal}")),
        Ending::NotStarted => Some("the program was not started".to_owned()),
        Ending::Code(_) | Ending::Runs => None,
    }
}

/// An amount in words.
fn held(amount: &Amount) -> String {
    let blocks = units::counted(amount.count, "block");
    let stacks = units::counted(amount.sites, "call stack");
    format!("{} in {blocks} of {stacks}", units::bytes(amount.bytes))
}

/// What each site holds over all processes.
fn sums_by_id(snapshot: &Snapshot) -> HashMap<&str, Amount> {
    let mut sums: HashMap<&str, Amount> = HashMap::new();
    for site in snapshot.targets.iter().flat_map(|target| &target.sites) {
        let sum = sums.entry(site.id.as_str()).or_default();
        sum.add(site.totals.outstanding_bytes, site.totals.outstanding_count);
    }
    sums
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
