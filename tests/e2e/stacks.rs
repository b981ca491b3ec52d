//! Stacks are right: for compilers and options as distributions use them, every frame that leaktrace reports equals what
//! libgcc's unwinder finds in the program itself. And in real programs: they are whole, and reuse of a thread's previous
//! stack makes no difference.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build, library},
    fixture::Fixture,
    leaktrace::{self, Leaktrace},
    oracle,
    report::{Frame, Site},
};
use std::path::PathBuf;

/// How stacks are taken and checked: reuse is verified against a full walk on the way.
const FLAGS: &[&str] = &["--verify-unwind"];

fn program(compiler: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut all = vec!["-g", "-std=gnu++17", "-Wall", "-Wextra", "-Werror", "-pthread"];
    all.extend(flags);
    compile::plain(compiler, "oracle.cpp", &all, "oracle")
}

/// The folder of the libraries that the program loads.
fn libraries(cxx: &str, flags: &[&str]) -> Result<PathBuf> {
    let compiler = if cxx == "clang++" { "clang" } else { "gcc" };
    let extra: Vec<&str> = flags.iter().filter(|flag| flag.starts_with("-fcf")).copied().collect();
    let folder = tempfile::Builder::new().prefix("oracle-").tempdir()?.keep();
    for (source, output, frame) in [
        ("oracle_library.c", "libsmall.so", "-DFRAME=32"),
        ("oracle_library.c", "liblarge.so", "-DFRAME=1900"),
        ("oracle_other.c", "libother.so", "-DFRAME=0"),
    ] {
        let mut all = vec!["-O2", "-g", "-shared", "-fPIC", "-Wl,-z,lazy", "-Wl,--build-id", frame];
        all.extend(&extra);
        let file = compile::plain(compiler, source, &all, output)?;
        std::fs::copy(file, folder.join(output)).context("a library cannot be copied")?;
    }
    Ok(folder)
}

fn judge(what: &str, verdict: &oracle::Verdict) -> Result<()> {
    verdict.judge().context(what.to_owned())?;
    for (pid, losses) in &verdict.losses {
        ensure!(!losses.contains_key("reuse_mismatches"), "{what}, process {pid}: {losses:?}");
    }
    Ok(())
}

/// Attached to, and run: with libraries, fork and exec.
fn equal(compiler: &str, flags: &[&str]) -> Result<()> {
    let program = program(compiler, flags)?;
    let folder = libraries(compiler, flags)?;
    let environment = [("ORACLE_LIBRARIES", folder.to_str().context("a path that is no text")?)];
    let attached = oracle::attached(&program, &["exec"], &environment, FLAGS)?;
    judge("attach", &attached)?;
    let run = oracle::run(&program, &["exec"], &environment, FLAGS)?;
    judge("run", &run)?;
    std::fs::remove_dir_all(folder).context("a folder cannot be removed")
}

/// One test for each way to compile.
macro_rules! equal_tests {
    ($( $name:ident: $compiler:literal, $flags:tt; )+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                equal($compiler, &$flags)
            }
        )+
    };
}

equal_tests! {
    stacks_of_gcc_o2_are_right: "g++", ["-O2"];
    stacks_of_gcc_o3_are_right: "g++", ["-O3"];
    stacks_of_gcc_with_frame_pointers_are_right: "g++", ["-O2", "-fno-omit-frame-pointer"];
    stacks_of_gcc_static_are_right: "g++", ["-O2", "-static", "-DSTATIC"];
    stacks_of_gcc_static_pie_are_right: "g++", ["-O2", "-static-pie", "-fPIE", "-DSTATIC"];
    stacks_of_gcc_no_pie_are_right: "g++", ["-O2", "-no-pie", "-fno-pie"];
    stacks_of_gcc_with_lld_are_right: "g++", ["-O2", "-fuse-ld=lld"];
    stacks_of_gcc_with_control_flow_protection_are_right: "g++", ["-O2", "-fcf-protection"];
    stacks_of_clang_o2_are_right: "clang++", ["-O2"];
    stacks_of_clang_o3_are_right: "clang++", ["-O3"];
    stacks_of_clang_with_frame_pointers_are_right: "clang++", ["-O2", "-fno-omit-frame-pointer"];
    stacks_of_clang_static_are_right: "clang++", ["-O2", "-static", "-DSTATIC"];
    stacks_of_clang_static_pie_are_right: "clang++", ["-O2", "-static-pie", "-fPIE", "-DSTATIC"];
    stacks_of_clang_no_pie_are_right: "clang++", ["-O2", "-no-pie", "-fno-pie"];
    stacks_of_clang_with_lld_are_right: "clang++", ["-O2", "-fuse-ld=lld"];
    stacks_of_clang_with_control_flow_protection_are_right: "clang++", ["-O2", "-fcf-protection"];
}

#[test]
fn stacks_of_cxx_on_jemalloc_are_right() -> Result<()> {
    let program = program("g++", &["-O2"])?;
    let folder = libraries("g++", &[])?;
    let jemalloc = library("libjemalloc.so.2")?;
    let environment = [
        ("ORACLE_LIBRARIES", folder.to_str().context("a path that is no text")?),
        ("LD_PRELOAD", jemalloc.to_str().context("a path that is no text")?),
    ];
    for words in [&["exec"][..], &["new"]] {
        judge("attach", &oracle::attached(&program, words, &environment, FLAGS)?)?;
    }
    std::fs::remove_dir_all(folder).context("a folder cannot be removed")
}

#[test]
fn stacks_of_rust_are_right() -> Result<()> {
    let program = compile::rust_fixture("oracle.rs")?;
    judge("attach", &oracle::attached(&program, &[], &[], FLAGS)?)?;
    judge("run", &oracle::run(&program, &[], &[], FLAGS)?)
}

/// Go's code calls C on another stack; its frames follow all the same, with symbols and without.
#[test]
fn stacks_of_go_reach_from_c_to_the_goroutine() -> Result<()> {
    for flags in [&[] as &[&str], &["-ldflags=-s -w"]] {
        let mut fixture = Fixture::start(&compile::go_fixture("cgo.go", flags)?, &[], &[])?;
        let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &["--mode", "exact", "--interval", "1s"])?;
        fixture.act()?;
        leaktrace.until("every block of C is there with its goroutine", |report| {
            let target = report.target(fixture.pid()).ok_or("no target")?;
            let bytes = |site: &&Site| site.frames.len() > 4 && site.stack_end == "complete";
            let whole: u64 = target.sites.iter().filter(bytes).map(|site| site.outstanding_bytes).sum();
            let named =
                flags.is_empty().then_some(["leak_in_c", "main.goInner", "main.goOuter", "main.main.func"]);
            let is_named = |site: &Site| named.iter().flatten().all(|name| site.stack().contains(name));
            let is_right =
                target.sites.iter().filter(|site| site.outstanding_bytes % 1000 == 0).any(is_named);
            (whole >= 200_000 && is_right)
                .then_some(())
                .ok_or_else(|| target.sites.iter().map(Site::stack).collect::<Vec<_>>().join("\n\n"))
        })?;
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

/// musl's C library says nothing of its frames, and neither do programs that were built without tables or stripped: their
/// rows are made from their code.
#[test]
fn stacks_of_musl_are_whole_through_its_c_library() -> Result<()> {
    const WITHOUT_TABLES: &[&str] = &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    const WITHOUT_ANYTHING: &[&str] = &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-s"];
    for (link, code) in [
        ("-pie", &[] as &[&str]),
        ("-static", &[]),
        ("-pie", WITHOUT_TABLES),
        ("-static", WITHOUT_TABLES),
        ("-pie", WITHOUT_ANYTHING),
    ] {
        let mut flags = vec!["-O2", "-fPIE", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", link];
        flags.extend(code);
        let program = compile::plain("musl-gcc", "callback.c", &flags, "callback")?;
        let mut fixture = Fixture::start(&program, &[], &[])?;
        let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &[FLAGS, &["--mode", "exact"]].concat())?;
        fixture.act()?;
        let named = ["leak_in_callback", "compare", "sort_numbers", "main"];
        let named = if code.contains(&"-s") { &[] } else { named.as_slice() };
        leaktrace.until_settled(&format!("all blocks are there with whole stacks: {flags:?}"), |report| {
            let target = report.target(fixture.pid()).ok_or("no target")?;
            let is_whole = |site: &&Site| {
                // The four, qsort itself at least once, and what calls main.
                site.stack_end == "complete"
                    && site.frames.len() >= 6
                    && named.iter().all(|name| site.has(name))
            };
            let whole: u64 = target.sites.iter().filter(is_whole).map(|site| site.outstanding_bytes).sum();
            (whole == 100_000)
                .then_some(())
                .ok_or_else(|| target.sites.iter().map(Site::stack).collect::<Vec<_>>().join("\n\n"))
        })?;
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

/// Through code that nothing describes, one step by the frame pointer is a guess and marked as one; `--unwind cfi` makes none.
#[test]
fn stacks_through_code_without_tables_go_on_by_a_marked_guess() -> Result<()> {
    let flags = ["-O2", "-g", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"];
    let program = compile::plain("gcc", "no_tables.c", &flags, "no_tables")?;
    for (mode, end, through) in [("auto", "complete", true), ("cfi", "no_cfi", false)] {
        let mut fixture = Fixture::start(&program, &[], &[])?;
        let words = [FLAGS, &["--mode", "exact", "--unwind", mode]].concat();
        let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &words)?;
        fixture.act()?;
        leaktrace.until_settled(&format!("the stack ends with {end}"), |report| {
            let target = report.target(fixture.pid()).ok_or("no target")?;
            let site = target.sites.iter().find(|site| site.has("leak_beneath")).ok_or("no site")?;
            let guessed =
                |frame: &Frame| frame.guessed && frame.function.as_deref() == Some("calls_assembly");
            let is_right = site.outstanding_bytes == 50_000
                && site.stack_end == end
                && site.has("without_tables")
                && site.has("main") == through
                && site.frames.iter().any(guessed) == through;
            is_right.then_some(()).ok_or_else(|| format!("{} {}", site.stack(), site.stack_end))
        })?;
        leaktrace.interrupt()?;
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

/// What the last debug line on standard error says of all stacks.
#[derive(Debug, Default)]
struct Taken {
    stacks: u64,
    reused: u64,
    mismatches: u64,
    complete: u64,
    cut_at_limit: u64,
    named: u64,
}

impl Taken {
    fn read(errors: &str) -> Result<Taken> {
        let line = errors
            .lines()
            .rfind(|line| line.contains("stacks were taken"))
            .with_context(|| format!("leaktrace does not say what stacks it took: {errors}"))?;
        let number = |name: &str| -> Result<u64> {
            let field = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok(field.with_context(|| format!("no {name} in {line:?}"))?.parse()?)
        };
        Ok(Taken {
            stacks: number("stacks")?,
            reused: number("reused")?,
            mismatches: number("mismatches")?,
            complete: number("complete")?,
            cut_at_limit: number("cut_at_limit")?,
            named: number("named")?,
        })
    }

    /// No difference between reuse and a full walk, reuse happened, and at least `per_mille` of stacks are whole: complete,
    /// or as long as stacks are kept.
    fn check(&self, least: u64, least_reused_percent: u64, per_mille: u64) -> Result<()> {
        ensure!(self.stacks >= least, "only {} stacks", self.stacks);
        ensure!(self.mismatches == 0, "{self:?}");
        ensure!(self.reused * 100 >= self.stacks * least_reused_percent, "too few reused: {self:?}");
        let whole = self.complete + self.cut_at_limit;
        ensure!(whole * 1000 >= self.stacks * per_mille, "too few complete: {self:?}");
        Ok(())
    }
}

/// Attaches to a fixture, lets it act to its end of work, and returns what was said of its stacks.
fn taken_of(program: &std::path::Path, words: &[&str], environment: &[(&str, &str)]) -> Result<Taken> {
    let mut fixture = Fixture::start(program, words, environment)?;
    let flags = ["--verify-unwind", "-v", "--interval", "1s"];
    let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
    fixture.act()?;
    leaktrace.signal(libc::SIGINT)?;
    let (_, status) = leaktrace.finish()?;
    ensure!(status.success(), "leaktrace ended with {status}");
    fixture.release()?;
    Taken::read(&leaktrace.errors())
}

#[test]
fn names_are_looked_for_where_a_call_stack_is_shown() -> Result<()> {
    let program = compile::fixture("million.c", Build::Gcc, &[])?;
    for (top, least, most) in [("3", 3, 100), ("0", 512, u64::MAX)] {
        let mut fixture = Fixture::start(&program, &["5120", "512"], &[])?;
        let flags = ["--mode", "exact", "-v", "--interval", "1s", "--top", top];
        let mut leaktrace = Leaktrace::attach(&[fixture.pid()], &flags)?;
        fixture.act()?;
        leaktrace.signal(libc::SIGINT)?;
        let (reports, status) = leaktrace.finish()?;
        ensure!(status.success(), "leaktrace ended with {status}");
        let report = reports.last().context("no report")?;
        let target = report.target(fixture.pid()).context("no target")?;
        ensure!(target.sites.iter().all(|site| site.has("leak_block") && site.has("main")), "{report:?}");
        ensure!(top == "0" || target.sites.len() == 3, "{} sites", target.sites.len());
        let taken = Taken::read(&leaktrace.errors())?;
        ensure!(taken.stacks >= 5120, "{taken:?}");
        ensure!(
            (least..=most).contains(&taken.named),
            "of 512 call stacks --top {top} named {}",
            taken.named
        );
        ensure!(fixture.release()?.success(), "the fixture did not survive");
    }
    Ok(())
}

#[test]
fn reuse_makes_no_difference_in_a_rust_server() -> Result<()> {
    taken_of(&compile::rust_fixture("oracle_server.rs")?, &[], &[])?.check(50_000, 20, 999)
}

#[test]
fn reuse_makes_no_difference_in_64_threads_on_one_processor() -> Result<()> {
    taken_of(&compile::rust_fixture("oracle_server.rs")?, &["pinned", "64"], &[])?.check(90_000, 20, 999)
}

const PYTHON: &str = r#"
import json, os, random, sys
def leaf(n):
    return json.dumps([{'k%d' % i: [i, str(i) * 3]} for i in range(n)])
def deep(d, n):
    return leaf(n) if d == 0 else deep(d - 1, n)
class Item:
    def __init__(self, x): self.x = [x] * 3
    def __lt__(self, other): return self.x < other.x
json.dumps([1]); random.random()
print('{"ready":true,"pid":%d}' % os.getpid(), flush=True)
sys.stdin.readline()
for r in range(60):
    deep(r % 9, 40)
    sorted(Item(random.random()) for _ in range(50))
print('{"done":true}', flush=True)
sys.stdin.readline()
"#;

#[test]
fn reuse_makes_no_difference_in_python() -> Result<()> {
    let python = std::path::Path::new("/usr/bin/python3");
    taken_of(python, &["-c", PYTHON], &[("PYTHONMALLOC", "malloc")])?.check(50_000, 40, 999)
}

/// gdb reads its own symbols: C++ with many libraries. The libraries that it loads at its start are known before it runs.
#[test]
fn reuse_makes_no_difference_in_gdb() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = leaktrace::command(&["run", "--verify-unwind", "-v", "--max-blocks", "4M", "-o"])?;
    command.arg(folder.path().join("report")).args([
        "--",
        "/usr/bin/gdb",
        "-batch",
        "-nx",
        "-ex",
        "info functions mall",
    ]);
    let said = command.arg("/usr/bin/gdb").stdin(std::process::Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "ended with {}: {errors}", said.status);
    Taken::read(&errors)?.check(20_000, 40, 999)
}
