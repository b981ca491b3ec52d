//! Stacks against the truth: a fixture prints what libgcc's unwinder finds next to allocations, and every frame that
//! leaktrace reports for them must be the same. What to print is the fixtures' business (`fixtures/oracle.h`).
use crate::{
    fixture::{Fixture, PATIENCE},
    leaktrace::{self, Leaktrace},
    ledger::{Said, Truth},
    lines,
    report::{Report, Site, Target},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Frames that leaktrace keeps.
const MAX_FRAMES: usize = 127;
/// How long to wait for blocks that may never come.
const PATIENCE_FOR_BLOCKS: Duration = Duration::from_secs(5);
/// Differences shown of one run.
const SHOWN: usize = 8;
/// Always: every site with its blocks.
const FLAGS: &[&str] = &["--format", "json", "--top", "0", "--show-allocs", "--interval", "200ms"];

/// Where summaries come from.
trait Summaries {
    /// Those that are there already.
    fn waiting(&mut self) -> Result<Vec<Report>>;
    /// The next one.
    fn next(&mut self) -> Result<Report>;
}

impl Summaries for Leaktrace {
    fn waiting(&mut self) -> Result<Vec<Report>> {
        Leaktrace::waiting(self)
    }

    fn next(&mut self) -> Result<Report> {
        self.next_report()?.context("leaktrace ended early")
    }
}

/// A file that `leaktrace run` appends to.
struct Appended {
    file: BufReader<File>,
    /// The beginning of a line that is not all there.
    partial: String,
    lines: VecDeque<String>,
}

impl Appended {
    fn open(path: &Path) -> Result<Appended> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Appended { file: BufReader::new(file), partial: String::new(), lines: VecDeque::new() })
    }

    fn read(&mut self) -> Result<()> {
        while self.file.read_line(&mut self.partial)? > 0 && self.partial.ends_with('\n') {
            self.lines.push_back(std::mem::take(&mut self.partial));
        }
        Ok(())
    }
}

impl Summaries for Appended {
    fn waiting(&mut self) -> Result<Vec<Report>> {
        self.read()?;
        self.lines.drain(..).map(|line| Report::parse(&line)).collect()
    }

    fn next(&mut self) -> Result<Report> {
        let line = lines::poll("a summary in the file", crate::patience(PATIENCE), || {
            self.read()?;
            Ok(self.lines.pop_front())
        })?;
        Report::parse(&line)
    }
}

/// What was found and what should have been.
#[derive(Default)]
pub struct Verdict {
    truths: Vec<Truth>,
    blocks: HashMap<(u32, u64), Site>,
    sites: HashMap<(u32, String), Site>,
    /// What was lost, by process: of its last summary.
    pub losses: HashMap<u32, BTreeMap<String, u64>>,
}

impl Verdict {
    fn add(&mut self, target: &Target) {
        self.losses.insert(target.pid, target.losses.clone());
        for site in &target.sites {
            self.sites.insert((target.pid, site.id.clone()), site.clone());
            for block in &site.blocks {
                self.blocks.insert((target.pid, block.size_bytes), site.clone());
            }
        }
    }

    fn is_missing(&self, truth: &Truth) -> bool {
        !truth.tail && !self.blocks.contains_key(&(truth.pid, truth.bytes))
    }

    /// How many stacks were equal.
    ///
    /// # Errors
    /// With the first differences.
    pub fn judge(&self) -> Result<usize> {
        ensure!(!self.truths.is_empty(), "the fixture printed no stacks");
        let wrong: Vec<String> = self.truths.iter().filter_map(|truth| self.wrong(truth)).collect();
        if wrong.is_empty() {
            return Ok(self.truths.len());
        }
        let shown: Vec<&str> = wrong.iter().take(SHOWN).map(String::as_str).collect();
        bail!("{} of {} stacks are wrong:\n{}", wrong.len(), self.truths.len(), shown.join("\n"))
    }

    fn wrong(&self, truth: &Truth) -> Option<String> {
        let what = format!("{} ({} bytes, process {})", truth.scene, truth.bytes, truth.pid);
        if truth.tail {
            let ends_so = |site: &Site| {
                let found = addresses(site);
                found.len() >= truth.frames.len() + 2 && found.ends_with(&truth.frames)
            };
            let mut sites = self.sites.iter().filter(|((pid, _), _)| *pid == truth.pid);
            return (!sites.any(|(_, site)| ends_so(site) && site.stack_end == "complete"))
                .then(|| format!("{what}: no complete stack ends like {:x?}", truth.frames));
        }
        let Some(site) = self.blocks.get(&(truth.pid, truth.bytes)) else {
            return Some(format!("{what}: no such block"));
        };
        // The first frame is the allocating function's own, which the truth leaves out.
        let found = addresses(site);
        let found = found.get(1..).unwrap_or_default();
        let is_cut = truth.frames.len() + 1 > MAX_FRAMES;
        let expected = truth.frames.get(..truth.frames.len().min(MAX_FRAMES - 1)).unwrap_or_default();
        let end = if is_cut { "depth" } else { "complete" };
        (found != expected || site.stack_end != end).then(|| {
            let common = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
            let mut text = format!(
                "{what}: {} frames ending {:?} instead of {} ending {end:?}, {common} in common; then {:x?} instead of {:x?}",
                found.len(),
                site.stack_end,
                expected.len(),
                found.get(common..(common + 3).min(found.len())).unwrap_or_default(),
                expected.get(common..(common + 3).min(expected.len())).unwrap_or_default(),
            );
            let _ = write!(text, "\n    found: {}", site.stack());
            text
        })
    }
}

/// The return addresses of a stack. An inlined frame shares that of the one it is inlined into.
fn addresses(site: &Site) -> Vec<u64> {
    let outer = site.frames.iter().filter(|frame| !frame.inlined);
    outer.map(|frame| frame.address.as_str().and_then(hexadecimal).unwrap_or_default()).collect()
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Attaches to the fixture, lets it act and end.
pub fn attached(
    program: &Path,
    words: &[&str],
    environment: &[(&str, &str)],
    flags: &[&str],
) -> Result<Verdict> {
    let mut fixture = Fixture::start(program, words, environment)?;
    let flags: Vec<&str> = FLAGS.get(2..).unwrap_or_default().iter().chain(flags).copied().collect();
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
    fixture.send("")?;
    let verdict = listen(&mut fixture, &mut leaktrace)?;
    let status = fixture.release()?;
    ensure!(status.success(), "the fixture ended with {status}");
    Ok(verdict)
}

/// Runs the fixture under `leaktrace run`.
pub fn run(program: &Path, words: &[&str], environment: &[(&str, &str)], flags: &[&str]) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let mut command: Command = leaktrace::command(&["run"])?;
    command.args(FLAGS).args(flags).arg("-o").arg(&file);
    command.arg("--").arg(program).args(words).envs(environment.iter().copied());
    let mut fixture = Fixture::spawn(command)?;
    fixture.wait_ready()?;
    fixture.send("")?;
    let verdict = listen(&mut fixture, &mut Appended::open(&file)?)?;
    let status = fixture.release()?;
    ensure!(status.success(), "the fixture ended with {status}");
    Ok(verdict)
}

/// Collects what both sides say, up to the fixture's end of work.
fn listen(fixture: &mut Fixture, summaries: &mut impl Summaries) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    loop {
        let said = fixture.hear()?;
        match said {
            Said::Stack(truth) => verdict.truths.push(truth),
            Said::Pause { pid } => {
                catch_up(&mut verdict, summaries, Some(pid))?;
                fixture.send("")?;
            }
            Said::Done => {
                catch_up(&mut verdict, summaries, None)?;
                return Ok(verdict);
            }
            other => bail!("the fixture said {other:?} among its stacks"),
        }
    }
}

/// Takes in summaries until one was begun after now that knows the process and has all blocks of the truth.
fn catch_up(verdict: &mut Verdict, summaries: &mut impl Summaries, pid: Option<u32>) -> Result<()> {
    let began = Instant::now();
    summaries.waiting()?.iter().flat_map(|report| &report.targets).for_each(|target| verdict.add(target));
    // The first one may have been begun before.
    let mut fresh = 0;
    while fresh < 2 {
        let report = summaries.next()?;
        report.targets.iter().for_each(|target| verdict.add(target));
        let is_known = pid.is_none_or(|pid| {
            report.targets.iter().any(|target| target.pid == pid && target.exited.is_none() && !target.execed)
        });
        let is_whole = !verdict.truths.iter().any(|truth| verdict.is_missing(truth));
        let is_late = began.elapsed() > crate::patience(PATIENCE_FOR_BLOCKS);
        fresh += usize::from(is_known && (is_whole || is_late));
    }
    Ok(())
}
