//! What becomes of targets: they fork, execute other programs, run out of memory, end. What is shown of those that have
//! ended is kept until the next summary.
use leaktrace_common::event::Life;

use super::{MAX_FINISHED, Tracer};
use crate::{
    agent::target::{OutOfMemory, Tracked},
    analyse,
    discover::process,
    model::{
        snapshot::{Exited, TargetView},
        stacks::ImageKey,
    },
};

/// linux/sched.h: the child shares its parent's memory.
const CLONE_VM: u64 = 0x0000_0100;

impl Tracer {
    pub(super) fn forked(&mut self, life: &Life) {
        let (parent, child) = (life.header.tgid, life.child);
        if life.clone_flags & CLONE_VM != 0 {
            // A vfork child runs in its parent's memory until it execs.
            self.vforked.insert(child, parent);
            return;
        }
        if let Some(settings) = self.maps.target(child).filter(|settings| settings.owner == child) {
            self.adopt(child, parent, settings);
            self.note_late_start(child, life);
        } else {
            self.add_child(child, parent, false);
        }
    }

    /// Traces a child that the kernel had no room for. One that lives on and cannot be traced is a loss.
    fn add_child(&mut self, pid: u32, parent: u32, fresh: bool) {
        let Err(error) = self.add(pid, Some(parent), fresh) else { return };
        tracing::debug!(pid, error = format!("{error:#}"), "a child is not traced");
        if process::inspect(pid).is_ok() {
            self.untraced_children += 1;
            self.why_untraced.get_or_insert_with(|| format!("{error:#}"));
        }
    }

    pub(super) fn execed(&mut self, life: &Life) {
        let pid = life.header.tgid;
        if let Some(parent) = self.vforked.remove(&pid) {
            self.execed_after_vfork(pid, parent, life);
            return;
        }
        self.drain_stacks();
        let Some(mut old) = self.targets.remove(&pid) else { return };
        let generation = life.header.generation;
        if old.image.generation == generation {
            self.targets.insert(pid, old);
            return;
        }
        self.finish_all_copies(Some(old.image));
        let mut view = self.view_of(&mut old);
        view.execed = true;
        self.finish(view);
        self.forget_image(&old);
        let Ok(process) = process::inspect(pid) else {
            self.standing.missed();
            self.drop_target(old);
            return;
        };
        let mut new = self.track(process, ImageKey { tgid: pid, generation }, old.table, old.parent);
        // The slot stays, and so do the links, which the kernel keeps over an exec by the process's first thread: they
        // are that thread's, and it has ended where another one executed the program.
        self.tables.close(std::mem::replace(&mut new.tables, std::mem::take(&mut old.tables)));
        if life.child == 0 {
            new.carried = std::mem::take(&mut old.carried);
            new.carried.extend(std::mem::take(&mut old.attached));
        }
        new.executed_ns = Some(life.header.time_ns);
        new.sample_interval_bytes = old.sample_interval_bytes;
        new.care = old.care.clone().after_exec();
        new.heap_before_bytes = Some(0);
        new.tally_before = self.maps.tally(pid);
        self.look(&mut new);
        self.probe(&mut new);
        self.own_slot(&new);
        self.targets.insert(pid, new);
        self.take_early_stacks(pid);
    }

    /// A vfork child has left its parent's memory: it is a process of its own from here on.
    pub(super) fn execed_after_vfork(&mut self, pid: u32, parent: u32, life: &Life) {
        match self.maps.target(pid).filter(|settings| settings.owner == pid) {
            Some(settings) => {
                self.adopt(pid, parent, settings);
                self.note_late_start(pid, life);
                if let Some(target) = self.targets.get_mut(&pid) {
                    target.heap_before_bytes = Some(0);
                }
                self.take_early_stacks(pid);
            }
            None => self.add_child(pid, parent, true),
        }
    }

    /// Stacks of a new image that arrived before the news of its exec.
    pub(super) fn take_early_stacks(&mut self, pid: u32) {
        let (early, later) = std::mem::take(&mut self.early_stacks)
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.header.tgid == pid);
        self.early_stacks = later;
        for record in early {
            self.stack_seen(&record);
        }
        let (early, later) = std::mem::take(&mut self.early_copies)
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.header.tgid == pid);
        self.early_copies = later;
        for record in early {
            self.copy_seen(&record);
        }
    }

    pub(super) fn ended(&mut self, life: &Life) {
        let pid = life.header.tgid;
        let knows = self.kernel.knows_exit_status();
        if !knows && self.waited_for == Some(pid) {
            // Who waits for it knows how it ended, and says so in a moment.
            return;
        }
        let status = if knows { exited(life.status) } else { Exited::default() };
        self.vforked.remove(&pid);
        self.finish_target(pid, status);
    }

    /// The process has ended: what is known of it is in the next snapshot.
    pub(super) fn finish_target(&mut self, pid: u32, status: Exited) {
        self.drain_stacks();
        let Some(mut target) = self.targets.remove(&pid) else { return };
        self.finish_all_copies(Some(target.image));
        let oom_killed = target.oom.is_some();
        let status = Exited { oom_killed, ..status };
        target.exited = Some(status);
        target.harm = self.harm(&target, status);
        self.is_urgent |= oom_killed;
        let view = self.view_of(&mut target);
        tracing::info!(pid, comm = view.comm, held_bytes = view.totals.outstanding_bytes, "ended");
        self.finish(view);
        self.forget_image(&target);
        self.drop_target(target);
    }

    /// The wait status of this process will be noted.
    pub fn wait_for(&mut self, pid: u32) {
        self.waited_for = Some(pid);
    }

    /// Takes the wait status of a process that leaktrace itself waited for.
    pub fn note_exit(&mut self, pid: u32, status: u32) {
        self.drain();
        self.vforked.remove(&pid);
        self.finish_target(pid, exited(status));
    }

    /// The process is about to be killed: what can only be read while it lives is read now.
    pub(super) fn out_of_memory(&mut self, life: &Life) {
        let pid = life.header.tgid;
        let rss_bytes = process::inspect(pid).ok().map(|facts| facts.rss_bytes).filter(|bytes| *bytes > 0);
        if let Some(target) = self.targets.get_mut(&pid) {
            target.oom = Some(OutOfMemory { rss_bytes });
        }
    }

    pub(super) fn finish(&mut self, view: TargetView) {
        self.finished.push(view);
        if self.finished.len() > 2 * MAX_FINISHED {
            self.finished.sort_by_key(|view| std::cmp::Reverse(weight(view)));
            let left_out = self.finished.drain(MAX_FINISHED..);
            for view in left_out {
                self.finished_unlisted += 1;
                self.finished_unjudged += u64::from(weight(&view).0);
            }
        }
    }

    pub(super) fn forget_image(&mut self, target: &Tracked) {
        let mut keys = Vec::new();
        let image = target.image;
        let _ = self.maps.for_each_site(|key, _| {
            if ImageKey::from(key) == image {
                keys.push(key);
            }
        });
        self.maps.delete_sites(&keys);
        self.stacks.forget(image);
        self.deferred.forget(image);
        self.naming.forget(image);
    }

    pub(super) fn drop_target(&mut self, mut target: Tracked) {
        let pid = target.pid();
        self.tally_of_gone.merge(&self.maps.tally(pid));
        let table = self.maps.forget(pid);
        // Many may end at once, and the next ones wait to be probed.
        self.detach_aside(&mut target, table);
        self.symbolizer.forget_process(pid);
        self.tables.close(target.tables);
    }
}

/// What of an ended process matters most: that there is something to be said of it, then how much it holds.
fn weight(view: &TargetView) -> (bool, u64) {
    let mut findings = view.sites.iter().filter(|site| site.finding.is_some());
    let is_remarkable = !view.unseen.is_empty() || findings.any(|site| !analyse::is_of_a_tool(site));
    (is_remarkable, view.totals.outstanding_bytes)
}

fn exited(status: u32) -> Exited {
    let signal = (status & 0x7f) as i32;
    if signal == 0 {
        Exited { code: Some((status >> 8 & 0xff) as i32), ..Exited::default() }
    } else {
        Exited { signal: Some(signal), ..Exited::default() }
    }
}
