//! `leaktrace run --fail-on-leak`: what the programs of the tables beside this are run by, suppressions and baselines.
use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    compile::{self, Build},
    leaktrace,
    report::{Report, Verdict},
};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

/// What a run under the gate came to.
pub(crate) struct Judged {
    /// The exit code of leaktrace.
    pub(crate) code: Option<i32>,
    /// What the report says.
    pub(crate) verdict: Verdict,
    /// The last summary.
    pub(crate) report: Report,
    /// Standard error.
    pub(crate) errors: String,
}

/// Runs words under the gate, with these flags, in this folder.
pub(crate) fn judge_in(folder: &Path, flags: &[&str], words: &[&str]) -> Result<Judged> {
    let reports = tempfile::tempdir()?;
    let file = reports.path().join("report.json");
    let mut command = leaktrace::command(&["run", "--format", "json", "-o"])?;
    command.arg(&file).args(flags).arg("--").args(words).current_dir(folder).stdin(Stdio::null());
    let said = command.output().context("leaktrace cannot be started")?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    let text = std::fs::read_to_string(&file).with_context(|| format!("no report: {errors}"))?;
    let report = Report::parse(text.lines().last().context("an empty report")?)?;
    let verdict = report.verdict.clone().with_context(|| format!("no verdict: {errors}"))?;
    ensure!(
        said.status.code() == Some(verdict.exit_code),
        "ended with {} and says {}: {errors}",
        said.status,
        verdict.exit_code
    );
    Ok(Judged { code: said.status.code(), verdict, report, errors })
}

/// The same in any folder.
pub(crate) fn judge(flags: &[&str], words: &[&str]) -> Result<Judged> {
    judge_in(Path::new("/"), flags, words)
}

/// Fails unless the run ends with this code and this outcome.
pub(crate) fn expect(judged: &Judged, code: i32, outcome: &str) -> Result<()> {
    let sites = judged.report.targets.iter().flat_map(|target| &target.sites);
    let findings: Vec<String> = sites
        .filter(|site| site.finding.is_some())
        .map(|site| format!("{} B in {}: {}", site.outstanding_bytes, site.outstanding_count, site.stack()))
        .collect();
    ensure!(
        judged.code == Some(code) && judged.verdict.outcome == outcome,
        "{:?} instead of {code} {outcome}: {:?}\n{}\n{}",
        judged.code,
        judged.verdict,
        findings.join("\n"),
        judged.errors
    );
    Ok(())
}

/// A C program.
pub(crate) fn c(name: &str, text: &str) -> Result<PathBuf> {
    compile::text(&format!("{name}.c"), text, &["gcc", "-O1", "-g", "-fno-builtin", "-pthread", "-w"])
}

/// A C++ program.
pub(crate) fn cxx(name: &str, text: &str) -> Result<PathBuf> {
    compile::text(&format!("{name}.cpp"), text, &["g++", "-O1", "-g", "-fno-builtin", "-pthread", "-w"])
}

/// A Rust program.
pub(crate) fn rust(name: &str, text: &str) -> Result<PathBuf> {
    compile::text(&format!("{name}.rs"), text, &["rustc", "--edition", "2024", "-O", "-g"])
}

/// Runs each of a table and names all that are wrong.
pub(crate) fn each<T>(table: &[(&str, T)], mut run: impl FnMut(&str, &T) -> Result<()>) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, row) in table {
        if let Err(error) = run(name, row) {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} are wrong\n{}", wrong.len(), table.len(), wrong.join("\n"));
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

const TWO_LEAKS: &str = "#include <stdlib.h>
static void *volatile sink;
__attribute__((noinline)) void keep_known(size_t n) { sink = malloc(n); __asm__ volatile(\"\"); }
__attribute__((noinline)) void keep_other(size_t n) { sink = malloc(n); __asm__ volatile(\"\"); }
int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 1;
  for (int i = 0; i < rounds; i++) keep_known(100);
  if (argc > 2) keep_other(11);
  sink = 0;
  return argc > 3 ? 7 : 0;
}";

#[test]
fn suppressions_hide_what_is_known_and_are_counted() -> Result<()> {
    let program = text(&c("two_leaks", TWO_LEAKS)?);
    let folder = tempfile::tempdir()?;
    let list = folder.path().join("known.txt");
    let list_name = text(&list);
    let flags = ["--fail-on-leak", "--suppressions", &list_name];
    for (line, others, code) in [
        ("leak:keep_known", false, 0),
        ("leak:^keep_*wn$", false, 0),
        ("leak:two_leaks.c", true, 0),
        ("leak:/two_leaks$", true, 0),
        ("leak:keep_known", true, 3),
        ("leak:^known", false, 3),
    ] {
        std::fs::write(&list, format!("# a comment\n\n{line}\n"))?;
        let words = if others { vec![program.as_str(), "1", "x"] } else { vec![program.as_str()] };
        let judged = judge(&flags, &words)?;
        expect(&judged, code, if code == 0 { "clean" } else { "leaks" }).context(line)?;
        let hidden = judged.verdict.suppressed;
        ensure!((hidden.count > 0) == (line != "leak:^known"), "{line}: {hidden:?}");
    }
    std::fs::write(&list, "leak:a\nrace:b\n")?;
    let said = leaktrace::output(&["run", "--suppressions", &list_name, "--", "/bin/true"])?;
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.code() == Some(1) && errors.contains("line 2"), "{errors}");
    Ok(())
}

#[test]
fn suppressions_that_a_program_brings_are_heeded() -> Result<()> {
    let own = format!(
        "const char *__lsan_default_suppressions(void) {{ return \"leak:keep_known\\n\"; }}\n{TWO_LEAKS}"
    );
    let program = text(&c("own_suppressions", &own)?);
    expect(&judge(&["--fail-on-leak"], &[&program])?, 0, "clean")?;
    expect(&judge(&["--fail-on-leak"], &[&program, "1", "x"])?, 3, "leaks")?;
    // They are for its own process.
    let other = text(&c("two_leaks", TWO_LEAKS)?);
    expect(&judge(&["--fail-on-leak"], &["sh", "-c", &format!("{program}; {other}")])?, 3, "leaks")
}

#[test]
fn against_a_baseline_only_what_is_new_or_grew_fails() -> Result<()> {
    let program = text(&c("two_leaks", TWO_LEAKS)?);
    let folder = tempfile::tempdir()?;
    let file = text(&folder.path().join("before.pb.gz"));
    expect(&judge(&["--fail-on-leak", "--snapshot", &file], &[&program, "2"])?, 3, "leaks")?;
    let flags = ["--fail-on-leak", "--baseline", &file];
    for (words, code, outcome) in
        [(&["1"][..], 0, "clean"), (&["2"], 0, "clean"), (&["3"], 3, "leaks"), (&["1", "x"], 3, "leaks")]
    {
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        let judged = judge(&flags, &words)?;
        expect(&judged, code, outcome).with_context(|| words.join(" "))?;
        ensure!(judged.verdict.in_baseline.count > 0, "{:?}", judged.verdict);
        let leaked = judged.verdict.leaked.bytes;
        let expected = match words.len() {
            3 => 11,
            _ if code == 3 => 100,
            _ => 0,
        };
        ensure!(leaked == expected, "{leaked} bytes more than before instead of {expected}");
    }
    Ok(())
}

#[test]
fn the_last_line_of_the_report_says_which() -> Result<()> {
    let program = text(&c("two_leaks", TWO_LEAKS)?);
    let stripped = text(&compile::fixture(
        "early.c",
        Build::Gcc,
        &[&compile::fixture("early_library.c", Build::Library, &[])?],
    )?);
    for (flags, words, last) in [
        (&["--fail-on-leak"][..], &[program.as_str(), "0"][..], "Verdict: clean. Exit code 0."),
        (
            &["--fail-on-leak"],
            &[&program],
            "Verdict: leaks: 100 B in 1 block of 1 call stack held. Exit code 3.",
        ),
        (&[], &[&program], "Verdict: leaks: 100 B in 1 block of 1 call stack held. Exit code 0."),
        (&[], &[&program, "0", "x", "x"], "Verdict: the program failed: the program ended with 7; "),
        (&["--fail-on-leak", "--mode", "growth"], &[&stripped, "clean"], "Verdict: not known: "),
    ] {
        let words: Vec<&str> = ["run"].iter().chain(flags).chain(&["--"]).chain(words).copied().collect();
        let said = leaktrace::output(&words)?;
        let errors = String::from_utf8_lossy(&said.stderr).into_owned();
        let line = errors.lines().last().context("no report")?;
        ensure!(line.starts_with(last), "{words:?}: {line:?} instead of {last:?}");
    }
    Ok(())
}
