//! Targets that come and go: containers under podman and runc, chroots in control groups, names and executables; each is
//! waited for, traced from its start, and reported with what it is in.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compare::{self, Rules},
    compile::{self, Build},
    container::{self, Bundle, Group, Image, Root},
    fixture::Fixture,
    leaktrace::{self, Leaktrace, PATIENCE},
    ledger::Ledger,
    lines,
    report::{Report, Target},
};
use serde_json::Value;

fn calls(build: Build) -> Result<Root> {
    Root::of(&compile::fixture("calls.c", build, &[])?)
}

/// Starts leaktrace with these selectors and returns when it waits for what they mean.
fn waiting(selectors: &[&str]) -> Result<Leaktrace> {
    let mut words = vec!["attach", "--format", "json", "--top", "0", "--interval", "100ms"];
    words.extend(selectors);
    let leaktrace = Leaktrace::spawn(&words)?;
    lines::poll("leaktrace waits", PATIENCE, || Ok(leaktrace.errors().contains("waiting for").then_some(())))
        .with_context(|| leaktrace.errors())?;
    Ok(leaktrace)
}

/// The program in the container; what set the container up before it is another image.
fn app(report: &Report) -> Option<&Target> {
    report.targets.iter().find(|target| target.comm == "app" && !target.execed && target.exited.is_none())
}

fn is_traced(report: &Report) -> Result<(), String> {
    app(report)
        .map(drop)
        .ok_or_else(|| format!("no app among {} targets: {:?}", report.targets.len(), report.notes))
}

/// Waits until the fixture is a target, lets it act, and compares. The target as it was then.
fn equals_its_ledger(leaktrace: &mut Leaktrace, fixture: &mut Fixture) -> Result<Target> {
    fixture.wait_ready()?;
    leaktrace.until("the program in the container is traced", is_traced)?;
    let ledger = fixture.act()?;
    // The fixture knows its id in the container only.
    let of_app: Ledger = ledger.of(fixture.pid());
    ensure!(!of_app.entries.is_empty(), "an empty ledger: {ledger:?}");
    let report = leaktrace.until_settled("the report equals the ledger", |report| {
        let target = app(report).ok_or("the app is no target any more")?;
        let found = compare::differences(&of_app, target, &Rules::default());
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    })?;
    app(&report).cloned().context("no target")
}

fn in_container<'a>(target: &'a Target, field: &str) -> Option<&'a str> {
    target.container.as_ref()?.get(field)?.as_str()
}

/// Ends the fixture, waits for the last word on it, and for leaktrace that goes on waiting.
fn ends(mut leaktrace: Leaktrace, fixture: Fixture, pid: u32) -> Result<Target> {
    fixture.release()?;
    let last = leaktrace.until("the end is reported", |report| {
        let gone = report.targets.iter().any(|target| target.pid == pid && target.exited.is_some());
        if gone { Ok(()) } else { Err(format!("{} targets", report.targets.len())) }
    })?;
    leaktrace.until("leaktrace goes on without targets", |report| match report.targets.len() {
        0 => Ok(()),
        count => Err(format!("{count} targets")),
    })?;
    leaktrace.interrupt()?;
    last.targets.into_iter().find(|target| target.pid == pid).context("no target")
}

fn a_chroot_is_traced(build: Build, own_users: bool) -> Result<()> {
    let (root, group) = (calls(build)?, Group::new("chroot")?);
    let path = group.path().to_string_lossy().into_owned();
    let mut leaktrace = waiting(&["--cgroup", &path])?;
    let mut fixture = group.chroot(&root, own_users)?;
    let target = equals_its_ledger(&mut leaktrace, &mut fixture)?;
    ensure!(target.container.is_none(), "a chroot is no container: {:?}", target.container);
    let last = ends(leaktrace, fixture, target.pid)?;
    ensure!(last.outstanding_bytes == target.outstanding_bytes, "the end differs: {last:?}");
    Ok(())
}

#[test]
fn a_chroot_in_a_control_group_is_traced_when_it_comes() -> Result<()> {
    a_chroot_is_traced(Build::Gcc, false)
}

#[test]
fn a_chroot_with_musl_is_traced_when_it_comes() -> Result<()> {
    a_chroot_is_traced(Build::Musl, false)
}

#[test]
fn a_chroot_in_a_user_namespace_is_traced_when_it_comes() -> Result<()> {
    a_chroot_is_traced(Build::Gcc, true)
}

#[test]
fn a_process_that_is_moved_into_a_control_group_is_traced_from_then_on() -> Result<()> {
    let group = Group::new("moved")?;
    let mut fixture = Fixture::start(&compile::fixture("calls.c", Build::Gcc, &[])?, &[], &[])?;
    let path = group.path().to_string_lossy().into_owned();
    let mut leaktrace = waiting(&["--cgroup", &path])?;
    std::fs::write(group.path().join("cgroup.procs"), fixture.pid().to_string())?;
    leaktrace.until("it is traced", |report| {
        report.target(fixture.pid()).map(drop).ok_or_else(|| format!("{:?}", report.notes))
    })?;
    let ledger = fixture.act()?;
    leaktrace.until_settled("the report equals the ledger", |report| {
        let target = report.target(fixture.pid()).ok_or("gone")?;
        let found = compare::differences(&ledger.of(fixture.pid()), target, &Rules::default());
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    })?;
    leaktrace.interrupt()?;
    ensure!(fixture.release()?.success(), "the fixture did not end well");
    Ok(())
}

fn a_bundle_is_traced(build: Build, own_users: bool) -> Result<()> {
    let bundle = Bundle::new("bundle", calls(build)?, None, own_users)?;
    let mut leaktrace = waiting(&["--container", bundle.name()])?;
    let mut fixture = bundle.start()?;
    let target = equals_its_ledger(&mut leaktrace, &mut fixture)?;
    ensure!(in_container(&target, "id") == Some(bundle.name()), "{:?}", target.container);
    ensure!(in_container(&target, "runtime") == Some("runc"), "{:?}", target.container);
    ensure!(target.unseen_ns.is_some(), "it is not said what was not seen at its start");
    ends(leaktrace, fixture, target.pid)?;
    Ok(())
}

#[test]
fn a_bare_bundle_under_runc_is_traced_by_its_name() -> Result<()> {
    a_bundle_is_traced(Build::Gcc, false)
}

#[test]
fn a_bare_bundle_with_musl_is_traced_by_its_name() -> Result<()> {
    a_bundle_is_traced(Build::Musl, false)
}

#[test]
fn a_bare_bundle_in_a_user_namespace_is_traced_by_its_name() -> Result<()> {
    a_bundle_is_traced(Build::Gcc, true)
}

/// Both containers map the same library file of the same layer: a call in one must not count in the other, nor twice.
#[test]
fn two_podman_containers_of_one_image_count_each_call_once() -> Result<()> {
    let image = Image::of("shared", &calls(Build::Gcc)?)?;
    let (one, other) = (container::name("one"), container::name("other"));
    let mut leaktrace = waiting(&["--container", &one, "--container", &other])?;
    let mut fixtures = [image.start(&one, &[])?, image.start(&other, &[])?];
    for fixture in &mut fixtures {
        fixture.wait_ready().with_context(|| fixture.errors())?;
    }
    let of = |report: &Report, name: &str| {
        report.targets.iter().find(|target| in_container(target, "name") == Some(name)).cloned()
    };
    leaktrace.until("both are traced", |report| match (of(report, &one), of(report, &other)) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(format!("{:?} {:?}", report.notes, report.targets.len())),
    })?;
    // One after the other, so that what one does while the other rests would show.
    let mut ledgers = Vec::new();
    for fixture in &mut fixtures {
        ledgers.push(fixture.act()?.of(fixture.pid()));
        let names = [&one, &other];
        leaktrace.until_settled("each equals its own ledger", |report| {
            for (index, name) in names.into_iter().enumerate() {
                let target = of(report, name).ok_or("gone")?;
                match ledgers.get(index) {
                    Some(ledger) => {
                        let found = compare::differences(ledger, &target, &Rules::default());
                        if !found.is_empty() {
                            return Err(found.join("\n"));
                        }
                    }
                    None if target.allocated_count > 0 => {
                        return Err(format!("{name} counts the other's calls"));
                    }
                    None => {}
                }
            }
            Ok(())
        })?;
    }
    let last = leaktrace.interrupt()?;
    let target = of(&last, &one).context("no target")?;
    ensure!(in_container(&target, "runtime") == Some("podman"), "{:?}", target.container);
    ensure!(in_container(&target, "image") == Some(image.tag()), "{:?}", target.container);
    for fixture in fixtures {
        fixture.release()?;
    }
    Ok(())
}

/// Its last summary survives it: in the report, and in the snapshot file while leaktrace still runs.
#[test]
fn a_container_that_runs_out_of_memory_is_told_apart_and_its_snapshot_survives_it() -> Result<()> {
    const LIMIT: u64 = 64 << 20;
    let root = Root::of(&compile::fixture("oom.c", Build::Gcc, &[])?)?;
    let bundle = Bundle::new("oom", root, Some(LIMIT), false)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("oom.pb.gz").to_string_lossy().into_owned();
    let mut leaktrace = waiting(&["--container", bundle.name(), "--snapshot", &file])?;
    let mut fixture = bundle.start()?;
    fixture.wait_ready().with_context(|| fixture.errors())?;
    leaktrace.until("the program in the container is traced", is_traced)?;
    fixture.send("")?;
    let report = leaktrace.until("its death is reported", |report| {
        let dead = report.targets.iter().any(|target| target.exited.is_some_and(|exited| exited.oom_killed));
        if dead {
            Ok(())
        } else {
            Err(format!("{:?}", report.targets.iter().map(|t| t.exited).collect::<Vec<_>>()))
        }
    })?;
    let target = report.targets.iter().find(|target| target.exited.is_some()).context("no target")?;
    ensure!(target.exited.is_some_and(|exited| exited.signal == Some(libc::SIGKILL)), "{:?}", target.exited);
    ensure!(
        (LIMIT / 2..=LIMIT).contains(&target.outstanding_bytes),
        "{} bytes outstanding at a limit of {LIMIT}",
        target.outstanding_bytes
    );
    let site = target.sites.first().context("no site")?;
    ensure!(site.has("takes_all_memory"), "{}", site.stack());
    let kept = lines::poll("the snapshot file is there", PATIENCE, || {
        let said = leaktrace::output(&["report", &file, "--format", "json", "--top", "0"])?;
        Ok(said.status.success().then_some(said.stdout))
    })?;
    let kept = Report::parse(String::from_utf8_lossy(&kept).trim())?;
    let in_file = kept.targets.iter().find(|kept| kept.pid == target.pid).context("not in the file")?;
    ensure!(in_file.exited == target.exited && in_file.outstanding_bytes == target.outstanding_bytes);
    ensure!(in_file.container == target.container, "{:?}", in_file.container);
    leaktrace.interrupt()?;
    Ok(())
}

#[test]
fn processes_are_found_by_name_and_by_executable_and_bounded() -> Result<()> {
    // A copy: other tests run the fixture at the same time.
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("calls");
    std::fs::copy(compile::fixture("calls.c", Build::Gcc, &[])?, &program)?;
    let path = program.to_string_lossy().into_owned();
    let leaktrace = &mut waiting(&["--exe", &path, "--max-targets", "1"])?;
    let first = Fixture::start(&program, &[], &[])?;
    leaktrace.until("the first is traced", |report| {
        report.target(first.pid()).map(drop).ok_or("not yet".into())
    })?;
    let second = Fixture::start(&program, &[], &[])?;
    let turned_away = leaktrace.until("the second is counted and named", |report| {
        let named = |note: &String| {
            note.contains(&format!("{} calls", second.pid())) && note.contains("--max-targets")
        };
        if report.notes.iter().any(named) { Ok(()) } else { Err(format!("{:?}", report.notes)) }
    })?;
    ensure!(turned_away.target(second.pid()).is_none(), "more targets than were asked for");
    let pid = second.pid();
    first.release()?;
    leaktrace.until("the second takes the free place", |report| {
        report.target(pid).map(drop).ok_or("not yet".into())
    })?;
    second.release()?;
    Ok(())
}

#[test]
fn everything_is_traced_with_all_but_leaktrace_and_what_is_excluded() -> Result<()> {
    let program = compile::fixture("calls.c", Build::Gcc, &[])?;
    let (one, other) = (Fixture::start(&program, &[], &[])?, Fixture::start(&program, &[], &[])?);
    let exclude = format!("pid:{}", other.pid());
    // Growth of everything else on this machine is bounded by the number of targets.
    let mut leaktrace = Leaktrace::spawn(&[
        "attach",
        "--format",
        "json",
        "--top",
        "1",
        "--interval",
        "200ms",
        "--all",
        "--exclude",
        &exclude,
        "--max-targets",
        "200",
    ])?;
    let own = leaktrace.pid();
    let report = leaktrace.until("it is traced", |report| {
        report.target(one.pid()).map(drop).ok_or_else(|| format!("{:?}", report.notes))
    })?;
    ensure!(report.target(own).is_none(), "leaktrace traces itself");
    ensure!(report.target(other.pid()).is_none(), "what is excluded is traced");
    leaktrace.interrupt()?;
    Ok(())
}

#[test]
fn ps_lists_a_process_with_its_allocator_memory_and_container() -> Result<()> {
    let bundle = Bundle::new("ps", calls(Build::Gcc)?, None, false)?;
    let mut fixture = bundle.start()?;
    fixture.wait_ready().with_context(|| fixture.errors())?;
    let said =
        leaktrace::output(&["ps", "--container", bundle.name(), "--watch", "200ms", "--format", "json"])?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let listing: Value = serde_json::from_slice(&said.stdout)?;
    ensure!(listing["schema"] == "leaktrace.ps/1", "{listing}");
    let processes = listing["processes"].as_array().context("no processes")?;
    let app =
        processes.iter().find(|process| process["comm"] == "app").with_context(|| listing.to_string())?;
    ensure!(app["allocators"] == serde_json::json!(["glibc"]), "{app}");
    ensure!(app["traceable"] == true && app["problem"].is_null(), "{app}");
    ensure!(app["container"]["id"] == bundle.name() && app["rss_bytes"].as_u64() > Some(0), "{app}");
    ensure!(app["growth_bytes_per_second"].is_number() && app["anonymous_bytes"].as_u64() > Some(0), "{app}");
    let text = leaktrace::output(&["ps", "--container", bundle.name(), "--watch", "1ms"])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.contains("glibc") && text.contains(bundle.name()), "{text}");
    fixture.release()?;
    Ok(())
}

#[test]
fn a_selector_that_selects_nothing_is_an_error_that_says_what_to_write() -> Result<()> {
    for (words, says) in [
        (["attach", "--cgroup", "web"], "/sys/fs/cgroup"),
        (["attach", "--comm", ""], "say which one"),
        (["attach", "--exclude", "web"], "comm:NAME"),
    ] {
        let said = leaktrace::output(&words)?;
        let errors = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(!said.status.success() && errors.contains(says), "{words:?}: {errors}");
    }
    Ok(())
}
