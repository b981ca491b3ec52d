//! What one would write by hand instead of leaktrace: a script for bpftrace that keeps the same books.
use anyhow::{Context, Result, bail};
use leaktrace_tests::{compile::library, lines::Lines};
use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running script; it ends with the value.
pub(super) struct Bpftrace(Child);

impl Bpftrace {
    /// The usual way to do it: sizes by thread at entry, blocks by address at return, sums by stack.
    pub(super) fn start(pid: u32) -> Result<Bpftrace> {
        let libc = library("libc.so.6")?;
        let libc = libc.display();
        let script = format!(
            "uprobe:{libc}:malloc /pid == {pid}/ {{ @size[tid] = arg0; }}\n\
             uretprobe:{libc}:malloc /pid == {pid} && @size[tid]/ {{\n\
               @bytes[retval] = @size[tid]; @site[retval] = ustack(); @live[ustack()] = sum(@size[tid]); delete(@size[tid]); }}\n\
             uprobe:{libc}:free /pid == {pid} && @bytes[arg0]/ {{ delete(@bytes[arg0]); delete(@site[arg0]); }}\n\
             BEGIN {{ printf(\"ready\\n\"); }}\n\
             END {{ clear(@size); clear(@bytes); clear(@site); clear(@live); }}\n"
        );
        let mut child = Command::new("bpftrace")
            .args(["-p", &pid.to_string(), "-e", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run bpftrace")?;
        let said = Lines::new("bpftrace", child.stdout.take().context("no standard output")?);
        let started = Bpftrace(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Some(line) = said.next_before(deadline)? {
            if line == "ready" {
                return Ok(started);
            }
        }
        bail!("bpftrace ended before it was ready: try `bpftrace -e` by hand")
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
