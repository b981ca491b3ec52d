//! What reading each file has cost so far, and what is done about one that costs too much or brings the reader down: its
//! debug information is left alone, and after that its symbols, too.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{
    Limits, Module, ModuleKey, nameless,
    reader::{Failure, Reader},
    reason,
    symbolizer::Job,
};
use crate::model::snapshot::Frame;

/// A file may take the time of two questions at once, and this share of the time that passes.
const SHARE: f64 = 0.02;
/// Files whose costs are remembered.
const MAX_FILES: usize = 65_536;
/// Messages kept.
const MAX_MESSAGES: usize = 8;

/// What is still read of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Debug information and symbols.
    Lines,
    Symbols,
    Nothing(&'static str),
    /// By somebody who has more time.
    Elsewhere,
}

#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: Duration,
    since: Instant,
    read: Read,
}

impl Cost {
    fn allowed(&self, question: Duration) -> Duration {
        question.saturating_mul(2).saturating_add(self.since.elapsed().mul_f64(SHARE))
    }
}

/// Finds names, and keeps the costs.
pub(super) struct Costs {
    limits: Limits,
    reader: Option<Reader>,
    costs: HashMap<ModuleKey, Cost>,
    messages: Arc<Mutex<Vec<String>>>,
    /// Who takes the files that are too dear here.
    slow: Option<Sender<Job>>,
    /// Names without lines of such files, for the time being.
    for_now: Option<Vec<Frame>>,
}

impl Costs {
    pub(super) fn new(limits: Limits, messages: Arc<Mutex<Vec<String>>>, slow: Option<Sender<Job>>) -> Costs {
        Costs { limits, reader: None, costs: HashMap::new(), messages, slow, for_now: None }
    }

    /// Ends the process that reads: what it holds of files goes with it.
    pub(super) fn release(&mut self) {
        self.reader = None;
        if let Some(slow) = &self.slow {
            let _ = slow.send(Job::Release);
        }
    }

    /// What to show of the last question until somebody else has found its names.
    pub(super) fn take_for_now(&mut self) -> Option<Vec<Frame>> {
        self.for_now.take()
    }

    /// The names at an address of a file as linked, never none; nothing where somebody else will find them.
    pub(super) fn names(&mut self, module: &Arc<Module>, virtual_offset: u64) -> Option<Vec<Frame>> {
        if module.layout.is_none() {
            return Some(vec![nameless(reason::NOT_ELF)]);
        }
        let new = Cost { cpu: Duration::ZERO, since: Instant::now(), read: self.first() };
        let mut cost = self.costs.get(&module.key).copied().unwrap_or(new);
        let frames = loop {
            let lines = match cost.read {
                Read::Elsewhere => {
                    let job = Job::Ask { module: Arc::clone(module), virtual_offset };
                    let is_taken = self.slow.as_ref().is_some_and(|slow| slow.send(job).is_ok());
                    self.keep(module.key, cost);
                    self.for_now = self.ask(module, virtual_offset, false).1.ok();
                    return (!is_taken).then(|| vec![nameless(reason::NO_READER)]);
                }
                Read::Nothing(reason) => break vec![nameless(reason)],
                read => read == Read::Lines,
            };
            let (took, answer) = self.ask(module, virtual_offset, lines);
            cost.cpu = cost.cpu.saturating_add(took);
            match answer {
                Ok(frames) => {
                    if cost.cpu > cost.allowed(self.limits.question_cpu) && self.slow.is_some() {
                        cost.read = Read::Elsewhere;
                    } else if cost.cpu > cost.allowed(self.limits.question_cpu) {
                        self.leave(module, &mut cost, reason::TOO_DEAR);
                    }
                    break frames;
                }
                Err(Failure::Start(error)) => {
                    self.complain(format!("names are not looked up: {} ({error})", reason::NO_READER));
                    return Some(vec![nameless(reason::NO_READER)]);
                }
                Err(Failure::TooDear | Failure::Crashed) if self.slow.is_some() => {
                    cost.read = Read::Elsewhere;
                }
                Err(Failure::TooDear) => self.leave(module, &mut cost, reason::TOO_DEAR),
                Err(Failure::Crashed) => self.leave(module, &mut cost, reason::CRASHED),
            }
        };
        self.keep(module.key, cost);
        Some(frames)
    }

    fn keep(&mut self, key: ModuleKey, cost: Cost) {
        if self.costs.len() >= MAX_FILES {
            self.costs.clear();
        }
        self.costs.insert(key, cost);
    }

    fn first(&self) -> Read {
        if self.limits.debug_info { Read::Lines } else { Read::Symbols }
    }

    /// Also gives the processor time that the question took.
    fn ask(
        &mut self,
        module: &Module,
        virtual_offset: u64,
        lines: bool,
    ) -> (Duration, Result<Vec<Frame>, Failure>) {
        let mut reader = match self.reader.take().filter(Reader::has_room) {
            Some(reader) => reader,
            None => match Reader::start(&self.limits) {
                Ok(reader) => reader,
                Err(error) => return (Duration::ZERO, Err(Failure::Start(error))),
            },
        };
        let before = reader.cpu();
        let answer = reader.ask(module, virtual_offset, lines);
        let took = reader.cpu().saturating_sub(before);
        match answer {
            Ok(answer) => {
                self.reader = Some(reader);
                answer.messages.into_iter().for_each(|message| self.complain(message));
                let frames: Vec<Frame> = answer.frames.into_iter().map(Into::into).collect();
                let frames = if frames.is_empty() { vec![nameless(reason::DAMAGED)] } else { frames };
                (took, Ok(frames))
            }
            Err(failure) => (took, Err(failure)),
        }
    }

    fn leave(&self, module: &Module, cost: &mut Cost, reason: &'static str) {
        cost.cpu = Duration::ZERO;
        let (next, what) = match cost.read {
            Read::Lines => (Read::Symbols, "its debug information is left out, functions have no lines"),
            Read::Symbols | Read::Nothing(_) | Read::Elsewhere => {
                (Read::Nothing(reason), "its functions have no names")
            }
        };
        cost.read = next;
        self.complain(format!("{}: {reason}; {what}", module.path));
    }

    fn complain(&self, message: String) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() < MAX_MESSAGES && !messages.contains(&message) {
            messages.push(message);
        }
    }
}
