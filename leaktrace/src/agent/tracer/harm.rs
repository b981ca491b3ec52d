//! Targets that die by a signal: whether tracing has probably killed them, what is said of that, and that standing
//! orders do not do it again.
use std::path::Path;

use anyhow::{Result, bail};
use leaktrace_common::event::FatalSignal;

use super::{Tracer, clock};
use crate::{
    agent::{
        bans::{Ban, Bans},
        target::Tracked,
    },
    analyse::harm::{self, Place, Word},
    discover::program,
    model::{
        events::EventKind,
        snapshot::{Exited, Harm},
    },
    symbolize,
};

/// Bytes of an instruction that are looked at.
const INSTRUCTION_BYTES: u64 = 2;

/// The last that the kernel said of a target.
#[derive(Clone, Debug)]
pub struct LastWord {
    signal: i32,
    word: Word,
    module: Option<String>,
    module_offset: Option<u64>,
}

impl Tracer {
    /// Remembers programs that were killed in a file; standing orders pass by what it names.
    pub fn keep_bans(&mut self, path: &Path) {
        match Bans::open(path) {
            Ok(bans) => self.bans = bans,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, %path, "the programs that tracing has killed cannot be read");
            }
        }
    }

    /// Programs that standing orders pass by.
    pub fn bans(&mut self) -> &mut Bans {
        &mut self.bans
    }

    /// Starts tracing a process that a standing order means.
    ///
    /// # Errors
    /// As [`Tracer::add`]; when tracing has killed its program before.
    pub fn add_by_order(&mut self, pid: u32) -> Result<()> {
        if let Some(reason) = self.bans.of_process(pid) {
            bail!("{reason}");
        }
        self.add(pid, None, false)
    }

    /// A signal that ends it is delivered to a target.
    pub(super) fn signalled(&mut self, signal: &FatalSignal) {
        let Some(target) = self.targets.get_mut(&signal.header.tgid) else { return };
        if target.image.generation != signal.header.generation {
            return;
        }
        // A breakpoint is behind the instruction pointer when it has trapped.
        let back = u64::from(signal.signal == libc::SIGTRAP);
        let address = signal.instruction.saturating_sub(back);
        let place = target.code.at(signal.header.time_ns).space.place(address);
        let mut last = LastWord {
            signal: signal.signal,
            word: Word { code: signal.code, place: Place::Unknown },
            module: None,
            module_offset: None,
        };
        match place {
            symbolize::Place::File { module, file_offset } => {
                let bytes = module.read_at(file_offset, INSTRUCTION_BYTES);
                let probe = probe_at(target, &module.path, file_offset);
                last.word.place = Place::File { bytes, probe };
                last.module = Some(module.path.clone());
                last.module_offset = Some(file_offset);
            }
            symbolize::Place::Unopened { path, .. } if path == "[uprobes]" => last.word.place = Place::Probes,
            symbolize::Place::Generated => last.word.place = Place::Anonymous,
            symbolize::Place::Unopened { .. } | symbolize::Place::Nothing => {}
        }
        target.last_word = Some(last);
    }

    /// What is to be said of a target's end, if tracing has probably killed it. It is told here, too.
    pub(super) fn harm(&mut self, target: &Tracked, status: Exited) -> Option<Harm> {
        if !target.was_probed || status.code.is_some() || status.oom_killed {
            return None;
        }
        let last = target.last_word.as_ref();
        let signal = status.signal.or(last.map(|last| last.signal))?;
        let last = last.filter(|last| last.signal == signal);
        let seen = harm::judge(signal, last.map(|last| &last.word))?;
        let function = last.and_then(|last| match &last.word.place {
            Place::File { probe, .. } => probe.clone(),
            _ => None,
        });
        let name = match signal {
            libc::SIGTRAP => "SIGTRAP",
            libc::SIGILL => "SIGILL",
            _ => "SIGSEGV",
        };
        let reason = format!("{name} {seen}");
        let (pid, comm) = (target.pid(), &target.process.comm);
        tracing::warn!(pid, comm, reason, "probably killed by tracing");
        self.note_event(
            pid,
            comm,
            EventKind::KilledByTracing,
            format!("probably killed by tracing: {reason}"),
        );
        self.ban(target, reason.clone());
        self.is_urgent = true;
        Some(Harm {
            reason,
            function,
            module: last.and_then(|last| last.module.clone()),
            module_offset: last.and_then(|last| last.module_offset),
        })
    }

    fn ban(&mut self, target: &Tracked, reason: String) {
        let path = target.process.executable.clone().unwrap_or_default();
        let build_id = target.code.now().space.build_id_of(&path);
        let key = program::key(build_id.as_deref(), &path);
        let ban = Ban { comm: target.process.comm.clone(), time_ns: clock::wall_ns(), reason };
        if let Err(error) = self.bans.add(key, ban) {
            tracing::warn!(%error, "that tracing has killed a program cannot be written down");
        }
    }
}

/// The function whose probe is at a place in a file.
fn probe_at(target: &Tracked, path: &str, file_offset: u64) -> Option<String> {
    let of_file = target
        .attached
        .values()
        .filter(|attached| attached.allocators.iter().any(|allocator| allocator.file == path));
    let mut places = of_file.flat_map(|attached| &attached.places);
    places.find(|(offset, _)| *offset == file_offset).map(|(_, function)| function.clone())
}
