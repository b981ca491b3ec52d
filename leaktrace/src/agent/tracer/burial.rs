//! What the kernel's word never came of: targets that ended while there was no room for notices or before their probes
//! were set, stacks of processes that were never known, vfork children that ended in their parent's memory. Looked for
//! at every summary, so that nothing is kept of them for ever.
use super::{EARLY_NS, Tracer, clock};
use crate::{
    discover::process::{self, ProcessIdentity},
    model::snapshot::Exited,
};

/// Whether the process is not there any more. A process whose first thread has ended lives as long as others do.
fn is_gone(identity: &ProcessIdentity) -> bool {
    match process::stat(identity.pid) {
        None => true,
        Some(stat) if stat.start_ticks != identity.start_ticks => true,
        Some(stat) => stat.has_ended,
    }
}

impl Tracer {
    /// Forgets what is gone. A target must have been gone at the last summary already: word of its end may be under way.
    pub(super) fn bury(&mut self) {
        let now_ns = clock::boot_ns();
        self.early_stacks.retain(|record| now_ns.saturating_sub(record.header.time_ns) < EARLY_NS);
        self.early_copies.retain(|record| now_ns.saturating_sub(record.header.time_ns) < EARLY_NS);
        self.vforked.retain(|child, _| process::stat(*child).is_some_and(|stat| !stat.has_ended));
        let mut gone = Vec::new();
        for (pid, target) in &mut self.targets {
            let seemed_gone = target.seems_gone;
            target.seems_gone = is_gone(&target.process.identity);
            if seemed_gone && target.seems_gone {
                gone.push(*pid);
            }
        }
        for pid in gone {
            tracing::debug!(pid, "gone without a word");
            self.finish_target(pid, Exited::default());
            if self.waits() {
                // Its number may be another's by now.
                self.consider(pid, None);
            }
        }
    }
}
