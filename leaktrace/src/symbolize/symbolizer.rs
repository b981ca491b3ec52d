//! Names for those who must not wait: what is asked for is looked up on a thread, by a process that may be ended, and is
//! there later. Whoever shows names waits for them as long as it has patience.
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    AddressSpace, Limits, Module, ModuleKey, Place, costs::Costs, frames_at, nameless, perf_map::PerfMap,
    reason, space,
};
use crate::model::snapshot::Frame;

/// How often the one who waits looks whether to give up.
const LOOK: Duration = Duration::from_millis(20);
/// After this time it is said what is waited for.
const SILENCE: Duration = Duration::from_secs(1);
/// Files that take longer are left to a second thread, so that they hold up nobody but themselves.
const QUICK_CPU: Duration = Duration::from_millis(300);
/// Questions that are open at the most without anybody waiting.
const MAX_ASKED: usize = 4096;

/// An address of a file as linked.
type Key = (ModuleKey, u64);
type Names = HashMap<Key, Arc<[Frame]>>;

/// How long names are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until when.
    pub until: Instant,
    /// Whether not to wait any longer: somebody wants the program to end.
    pub is_over: fn() -> bool,
    /// Whether to say what is waited for.
    pub is_told: bool,
}

impl Patience {
    /// Waits for this time, whatever happens.
    pub fn of(time: Duration) -> Patience {
        Patience { until: Instant::now() + time, is_over: || false, is_told: false }
    }
}

/// What a thread is asked.
pub(super) enum Job {
    Ask { module: Arc<Module>, virtual_offset: u64 },
    Release,
}

/// What a thread has found.
#[derive(Debug)]
enum Answer {
    Names(Key, Arc<[Frame]>),
    /// Names without lines of a file that takes long to read.
    ForNow(Key, Arc<[Frame]>),
}

/// Answers as they are found. The thread ends when nobody asks any more.
fn answer_all(costs: &mut Costs, todo: &Receiver<Job>, done: &Sender<Answer>) {
    for job in todo {
        match job {
            Job::Release => costs.release(),
            Job::Ask { module, virtual_offset } => {
                let key = (module.key, virtual_offset);
                let answer = match costs.names(&module, virtual_offset) {
                    Some(names) => Answer::Names(key, names.into()),
                    None => match costs.take_for_now() {
                        Some(names) => Answer::ForNow(key, names.into()),
                        None => continue,
                    },
                };
                if done.send(answer).is_err() {
                    return;
                }
            }
        }
    }
}

#[derive(Debug)]
struct Thread {
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
}

/// Finds names.
#[derive(Debug)]
pub struct Symbolizer {
    limits: Limits,
    thread: Option<Thread>,
    asked: HashSet<Key>,
    /// Of what is asked, names without lines.
    for_now: Names,
    /// Names in two generations: when the younger is full, the older is dropped.
    young: Names,
    old: Names,
    messages: Arc<Mutex<Vec<String>>>,
    perf_maps: HashMap<u32, PerfMap>,
}

impl Symbolizer {
    /// A symbolizer that knows no file yet.
    pub fn new(limits: Limits) -> Symbolizer {
        Symbolizer {
            limits,
            thread: None,
            asked: HashSet::new(),
            for_now: HashMap::new(),
            young: HashMap::new(),
            old: HashMap::new(),
            messages: Arc::default(),
            perf_maps: HashMap::new(),
        }
    }

    /// What lies at an address, without the names that must be looked up in a file, which take long; other names and
    /// reasons are there. `exact` says that the address is an instruction (interrupted by a signal), not a return address;
    /// a return address is looked up one byte before, inside the call.
    pub fn placed(&mut self, space: &AddressSpace, address: u64, exact: bool) -> Frame {
        let bare = Frame { address, ..Frame::default() };
        let back = space::back(address, exact);
        match space.place(address - back) {
            Place::Nothing => Frame { reason: Some(reason::NOT_MAPPED), ..bare },
            Place::Generated => self.generated(space.pid, bare, back),
            Place::Unopened { path, file_offset } => Frame {
                module: Some(path),
                module_offset: Some(file_offset.saturating_add(back)),
                reason: Some(reason::NOT_OPENED),
                ..bare
            },
            Place::File { module, file_offset } => Frame {
                module: Some(module.path.clone()),
                build_id: module.build_id.clone(),
                module_offset: Some(file_offset.saturating_add(back)),
                ..bare
            },
        }
    }

    /// The frames at an address of which [`Symbolizer::placed`] said where in which file it lies: inlined ones first,
    /// innermost first, then the function itself. `None` where they are not known yet: now they are asked for.
    pub fn names(&mut self, module: &Arc<Module>, placed: &Frame, exact: bool) -> Option<Vec<Frame>> {
        frames_at(module, placed, exact, |virtual_offset| self.known_or_ask(module, virtual_offset))
    }

    /// The same for now, where the whole is not known yet: names without lines, if there are any.
    pub fn names_for_now(&self, module: &Arc<Module>, placed: &Frame, exact: bool) -> Option<Vec<Frame>> {
        frames_at(module, placed, exact, |virtual_offset| {
            self.for_now.get(&(module.key, virtual_offset)).cloned()
        })
    }

    /// Whether more may be asked while nobody waits.
    pub fn has_room(&self) -> bool {
        self.asked.len() < MAX_ASKED
    }

    /// Waits for what is asked; whether all of it is there.
    pub fn wait(&mut self, patience: &Patience) -> bool {
        let begun = Instant::now();
        let mut is_told = !patience.is_told;
        self.take_answers();
        while !self.asked.is_empty() {
            let now = Instant::now();
            if now >= patience.until || (patience.is_over)() {
                return false;
            }
            if !is_told && now.duration_since(begun) > SILENCE {
                is_told = true;
                tracing::warn!("names of functions are still being looked up; a signal ends the wait");
            }
            let time = LOOK.min(patience.until - now);
            match self.thread.as_ref().map(|thread| thread.answers.recv_timeout(time)) {
                Some(Ok(answer)) => self.answered(answer),
                Some(Err(RecvTimeoutError::Timeout)) => {}
                Some(Err(RecvTimeoutError::Disconnected)) | None => self.give_up(),
            }
        }
        true
    }

    /// Drops what was read of files once what is asked has been answered; names stay. Worth calling after each batch of
    /// new stacks.
    pub fn release(&mut self) {
        if let Some(thread) = &self.thread {
            let _ = thread.jobs.send(Job::Release);
        }
    }

    /// Debug information that should have been had and was not.
    pub fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what belongs to a process alone.
    pub fn forget_process(&mut self, pid: u32) {
        self.perf_maps.remove(&pid);
    }

    fn generated(&mut self, pid: u32, bare: Frame, back: u64) -> Frame {
        let map = self.perf_maps.entry(pid).or_default();
        let looked_up = bare.address - back;
        if map.find(looked_up).is_none() {
            // A map that cannot be read now keeps what was read before.
            let _ = map.refresh(pid);
        }
        match map.find(looked_up) {
            Some((name, offset)) => Frame {
                module: Some("[jit]".to_owned()),
                function: Some(name.to_owned()),
                offset: Some(offset.saturating_add(back)),
                ..bare
            },
            None => Frame { module: Some("[anon]".to_owned()), reason: Some(reason::GENERATED), ..bare },
        }
    }

    fn known_or_ask(&mut self, module: &Arc<Module>, virtual_offset: u64) -> Option<Arc<[Frame]>> {
        let key = (module.key, virtual_offset);
        if let Some(names) = self.young.get(&key) {
            return Some(names.clone());
        }
        if let Some(names) = self.old.remove(&key) {
            self.keep(key, names.clone());
            return Some(names);
        }
        if !self.asked.contains(&key) {
            let job = Job::Ask { module: Arc::clone(module), virtual_offset };
            if let Err(error) = self.ask(job) {
                tracing::debug!(%error, "names are not looked up");
                return Some(Arc::new([nameless(reason::NO_READER)]));
            }
            self.asked.insert(key);
        }
        None
    }

    fn ask(&mut self, job: Job) -> std::io::Result<()> {
        if self.thread.is_none() {
            self.thread = Some(self.start()?);
        }
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.thread.as_ref().ok_or_else(gone)?.jobs.send(job).map_err(|_| gone())
    }

    /// The threads end after what they are doing when this is dropped.
    fn start(&self) -> std::io::Result<Thread> {
        let (jobs, todo) = channel();
        let (slow_jobs, slow_todo) = channel();
        let (done, answers) = channel();
        let quick = Limits { question_cpu: QUICK_CPU.min(self.limits.question_cpu), ..self.limits.clone() };
        let mut quick = Costs::new(quick, Arc::clone(&self.messages), Some(slow_jobs));
        let mut slow = Costs::new(self.limits.clone(), Arc::clone(&self.messages), None);
        let quick_done = done.clone();
        thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || answer_all(&mut quick, &todo, &quick_done))?;
        thread::Builder::new()
            .name("slow-names".to_owned())
            .spawn(move || answer_all(&mut slow, &slow_todo, &done))?;
        Ok(Thread { jobs, answers })
    }

    fn take_answers(&mut self) {
        let answers: Vec<_> = self.thread.iter().flat_map(|thread| thread.answers.try_iter()).collect();
        for answer in answers {
            self.answered(answer);
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Names(key, frames) => {
                self.asked.remove(&key);
                self.for_now.remove(&key);
                self.keep(key, frames);
            }
            // The second thread may have been faster.
            Answer::ForNow(key, frames) if self.asked.contains(&key) => {
                self.for_now.insert(key, frames);
            }
            Answer::ForNow(..) => {}
        }
    }

    fn keep(&mut self, key: Key, frames: Arc<[Frame]>) {
        if self.young.len() >= (self.limits.addresses / 2).max(1) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, frames);
    }

    /// The thread is gone: nothing will be answered.
    fn give_up(&mut self) {
        self.thread = None;
        for key in std::mem::take(&mut self.asked) {
            self.keep(key, Arc::new([nameless(reason::NO_READER)]));
        }
    }
}
