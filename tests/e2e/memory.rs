//! What tracing takes of memory, by the kernel's own account of a control group; and tables that grow with what is
//! recorded, without losing any of it.
#![expect(clippy::print_stdout, reason = "what was measured is worth knowing")]
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    fixture::Fixture,
    leaktrace::Leaktrace,
    proc,
    scenario::Case,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const MIB: u64 = 1 << 20;

/// A control group whose memory is accounted for. Removed when this is dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Makes one, in whichever hierarchy has the memory controller.
    fn new(what: &str) -> Result<MemoryGroup> {
        let old = Path::new("/sys/fs/cgroup/memory");
        let top = if old.join("cgroup.procs").exists() { old } else { Path::new("/sys/fs/cgroup") };
        if top != old {
            fs::write(top.join("cgroup.subtree_control"), "+memory")
                .context("no control group accounts for memory here")?;
        }
        let path = top.join(format!("leaktrace-{what}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(MemoryGroup(path))
    }

    /// Bytes of kernel memory, and bytes in all.
    fn usage(&self) -> Result<(u64, u64)> {
        let number = |name: &str| -> Result<u64> {
            let text = fs::read_to_string(self.0.join(name)).with_context(|| name.to_owned())?;
            Ok(text.trim().parse()?)
        };
        if self.0.join("memory.usage_in_bytes").exists() {
            return Ok((number("memory.kmem.usage_in_bytes")?, number("memory.usage_in_bytes")?));
        }
        let stat = fs::read_to_string(self.0.join("memory.stat"))?;
        let kernel =
            stat.lines().find_map(|line| line.strip_prefix("kernel ")).context("no word of the kernel")?;
        Ok((kernel.trim().parse()?, number("memory.current")?))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What tracing takes.
#[derive(Clone, Copy)]
struct Taken {
    kernel: u64,
    all: u64,
    rss: u64,
}

/// What tracing so many processes takes that do nothing.
fn taken_by(count: usize) -> Result<Taken> {
    let program = compile::fixture("idle.c", Build::Gcc, &[])?;
    let idle: Vec<Fixture> = (0..count).map(|_| Fixture::start(&program, &[], &[])).collect::<Result<_>>()?;
    let group = MemoryGroup::new(&format!("idle{count}"))?;
    let pids: Vec<String> = idle.iter().map(|fixture| fixture.pid().to_string()).collect();
    let list = pids.join(",");
    let most = count.to_string();
    let words = ["attach", "--format", "json", "--interval", "1s", "--max-targets", &most, "-p", &list];
    let mut leaktrace = Leaktrace::spawn_in(&group.0, &words)?;
    leaktrace.until_settled("all processes are traced", |report| {
        let missing = idle.iter().filter(|fixture| report.target(fixture.pid()).is_none()).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are not traced")) }
    })?;
    let (kernel, all) = group.usage()?;
    let taken = Taken { kernel, all, rss: proc::status_bytes(leaktrace.pid(), "VmRSS")? };
    let Taken { kernel, all, rss } = taken;
    println!("{count} idle: {} KiB kernel, {} KiB in all, RSS {} KiB", kernel >> 10, all >> 10, rss >> 10);
    leaktrace.interrupt()?;
    for fixture in idle {
        ensure!(fixture.release()?.success(), "a fixture did not survive");
    }
    Ok(taken)
}

#[test]
fn idle_processes_take_little_memory() -> Result<()> {
    const MANY: usize = 256;
    let one = taken_by(1)?;
    let many = taken_by(MANY)?;
    ensure!(one.rss <= 64 * MIB, "resident with one idle process: {} KiB", one.rss >> 10);
    ensure!(many.all <= 256 * MIB, "{MANY} idle processes take {} MiB", many.all >> 20);
    let each = many.kernel.saturating_sub(one.kernel) / (MANY as u64 - 1);
    println!("each idle process takes {} KiB of kernel memory", each >> 10);
    ensure!(each <= 256 << 10, "each takes {} KiB of kernel memory", each >> 10);
    Ok(())
}

fn outgrow(blocks: &str) -> Result<Case> {
    let case = Case::new(compile::fixture("outgrow.c", Build::Gcc, &[])?).arguments(&[blocks]);
    Ok(case.must_have(&["leak_early", "leak_more", "leak_again"]))
}

/// From one table to two and to three, while blocks of each are freed and resized from four threads.
#[test]
fn nothing_is_lost_when_tables_are_outgrown() -> Result<()> {
    for (blocks, flags) in
        [("300000", &[][..]), ("40000", &["--max-blocks", "70k"]), ("3000", &["--max-blocks", "4096"])]
    {
        outgrow(blocks)?.flags(flags).run().with_context(|| format!("{blocks} blocks, {flags:?}"))?;
    }
    Ok(())
}

/// With bounds in the first, the second and the third table.
#[test]
fn what_no_table_has_room_for_is_counted_to_the_unit() -> Result<()> {
    const BLOCKS: u64 = 120_000;
    for bound in [1000_u64, 5000, 69_632, 80_000] {
        let case = Case::new(compile::fixture("million.c", Build::Gcc, &[])?)
            .arguments(&[&BLOCKS.to_string(), "10"])
            .flags(&["--max-blocks", &bound.to_string()])
            .allow_losses(&["blocks_full"]);
        let mut fixture = case.start(false)?;
        let mut leaktrace = case.attach(&fixture)?;
        fixture.act()?;
        let report = leaktrace.until_settled("recorded and lost blocks are all blocks", |report| {
            let lost = report.losses.get("blocks_full").copied().unwrap_or(0);
            let kept = report.target(fixture.pid()).ok_or("no target")?.outstanding_count;
            if kept + lost == BLOCKS { Ok(()) } else { Err(format!("{kept} kept and {lost} lost")) }
        })?;
        let kept = report.target(fixture.pid()).context("no target")?.outstanding_count;
        ensure!((bound..=bound + bound / 10).contains(&kept), "{kept} blocks kept with a bound of {bound}");
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}
