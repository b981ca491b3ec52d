//! Programs that leak fail `--fail-on-leak`, each by the call stack that leaks.
use anyhow::{Result, ensure};
use std::path::Path;

use super::gate::{Judged, c, cxx, each, expect, judge, judge_in, rust};
use leaktrace_tests::compile;

const GATE: &[&str] = &["--fail-on-leak"];

/// It fails, and the function that leaks is in a finding.
fn fails(judged: &Judged, function: &str) -> Result<()> {
    expect(judged, 3, "leaks")?;
    let mut sites = judged.report.targets.iter().flat_map(|target| &target.sites);
    ensure!(
        sites.any(|site| site.finding.is_some()
            && site
                .frames
                .iter()
                .any(|frame| frame.function.as_deref().is_some_and(|name| name.contains(function)))),
        "no finding names {function}"
    );
    ensure!(judged.verdict.leaked.count > 0, "{:?}", judged.verdict);
    Ok(())
}

fn program_fails(program: &Path) -> Result<()> {
    fails(&judge(GATE, &[&program.to_string_lossy()])?, "leak_here")
}

/// A C program that leaks by a call.
fn leaking_c(body: &str) -> String {
    format!(
        "#define _GNU_SOURCE\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <dirent.h>\n\
         #include <pthread.h>\n#include <sys/mman.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
         static void *volatile sink;\n\
         __attribute__((noinline)) void leak_here(void) {{ {body}; __asm__ volatile(\"\"); }}\n\
         static void *thread(void *a) {{ leak_here(); return a; }}\n\
         int main(int argc, char **argv) {{ puts(\"x\"); if (argc < 2) leak_here();\n\
         if (argc == 2) {{ pthread_t t; pthread_create(&t, 0, thread, 0); pthread_join(t, 0); }}\n\
         if (argc == 3) {{ if (fork() == 0) {{ leak_here(); exit(0); }} wait(0); }}\n\
         sink = 0; return 0; }}"
    )
}

const CALLS: &[(&str, &str)] = &[
    ("leak_malloc", "sink = malloc(1)"),
    ("leak_calloc", "sink = calloc(3, 5)"),
    ("leak_realloc", "sink = realloc(malloc(4), 40000)"),
    ("leak_aligned", "posix_memalign((void **)&sink, 64, 100)"),
    ("leak_strdup", "sink = strdup(\"kept\")"),
    ("leak_asprintf", "char *s; sink = asprintf(&s, \"%d\", 7) > 0 ? s : 0"),
    (
        "leak_getline",
        "char *l = 0; size_t n = 0; FILE *f = fopen(\"/proc/self/stat\", \"r\"); getline(&l, &n, f); fclose(f)",
    ),
    ("leak_stream", "FILE *f = fopen(\"/proc/self/stat\", \"r\"); fgetc(f)"),
    ("leak_folder", "sink = opendir(\"/\")"),
    ("leak_mapping", "sink = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)"),
    ("leak_large", "sink = malloc(10 << 20)"),
];

#[test]
fn leaking_c_programs_fail() -> Result<()> {
    each(CALLS, |name, body| program_fails(&c(name, &leaking_c(body))?))
}

#[test]
fn leaks_of_threads_and_of_children_fail() -> Result<()> {
    let program = c("leak_malloc", &leaking_c("sink = malloc(1)"))?;
    let program = program.to_string_lossy();
    fails(&judge(GATE, &[&program, "thread"])?, "leak_here")?;
    fails(&judge(GATE, &[&program, "in", "child"])?, "leak_here")
}

#[test]
fn a_leaking_static_program_with_symbols_fails() -> Result<()> {
    let text = leaking_c("sink = malloc(1)");
    program_fails(&compile::text("leak_static.c", &text, &["gcc", "-O1", "-g", "-static", "-w"])?)?;
    program_fails(&compile::text("leak_musl.c", &text, &["musl-gcc", "-O1", "-g", "-w"])?)
}

const CXX: &[(&str, &str)] = &[
    ("cxx_new", "struct T { int x[9]; }; __attribute__((noinline)) void leak_here() { sink = new T; }"),
    ("cxx_array", "__attribute__((noinline)) void leak_here() { sink = new std::string[5]; }"),
    (
        "cxx_cycle",
        "struct N { std::shared_ptr<N> next; };\n\
         __attribute__((noinline)) void leak_here() { auto a = std::make_shared<N>(); a->next = a; }",
    ),
    (
        "cxx_map",
        "__attribute__((noinline)) void leak_here() { auto m = new std::map<int, std::string>; (*m)[3] = std::string(99, 'x'); }",
    ),
];

#[test]
fn leaking_cxx_programs_fail() -> Result<()> {
    each(CXX, |name, body| {
        let text = format!(
            "#include <iostream>\n#include <map>\n#include <memory>\n#include <string>\nstatic void *volatile sink;\n{body}\n\
             int main() {{ std::cout << 1 << std::endl; leak_here(); sink = nullptr; }}"
        );
        program_fails(&cxx(name, &text)?)
    })
}

const RUST: &[(&str, &str)] = &[
    ("rust_box", "std::hint::black_box(Box::leak(Box::new([n as u8; 33])));"),
    ("rust_forget", "std::mem::forget(std::hint::black_box(vec![1u8; n * 100]));"),
    (
        "rust_cycle",
        "use std::{cell::RefCell, rc::Rc}; struct N(RefCell<Option<Rc<N>>>);\n\
         let a = Rc::new(N(RefCell::new(None))); *a.0.borrow_mut() = Some(a.clone());",
    ),
];

#[test]
fn leaking_rust_programs_fail() -> Result<()> {
    each(RUST, |name, body| {
        let text = format!(
            "#[inline(never)] fn leak_here(n: usize) {{ std::hint::black_box(n); {body} }}\n\
             fn main() {{ println!(\"x\"); leak_here(std::env::args().count()); }}"
        );
        program_fails(&rust(name, &text)?)
    })
}

#[test]
fn what_scripts_run_fails_by_its_own_leaks() -> Result<()> {
    let program = c("leak_malloc", &leaking_c("sink = malloc(1)"))?;
    let program = program.to_string_lossy();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("Makefile"), format!("all:\n\t{program}\n"))?;
    let library = compile::text(
        "leaking_extension.c",
        "#include <stdlib.h>\nstatic void *volatile sink;\nvoid leak_here(void) { sink = malloc(77); sink = 0; }\n",
        &["gcc", "-O1", "-g", "-shared", "-fPIC", "-fno-builtin"],
    )?;
    let script = format!("import ctypes; ctypes.CDLL({:?}).leak_here()", library.to_string_lossy());
    for words in [
        &["sh", "-c", &format!("true; {program}; true")][..],
        &["bash", "-c", &format!("for i in 1 2; do {program}; done")],
        &["make"],
        &["/usr/bin/python3", "-c", &script],
    ] {
        let judged = judge_in(folder.path(), GATE, words)?;
        fails(&judged, "leak_here").map_err(|error| error.context(words.join(" ")))?;
        ensure!(judged.verdict.suppressed.count > 0 || words[0] == "make", "{:?}", judged.verdict);
    }
    Ok(())
}

#[test]
fn a_leak_beyond_the_call_stacks_that_are_shown_fails() -> Result<()> {
    let text = "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\nstatic void *volatile sink;\n\
        #define S(n) __attribute__((noinline)) void *get##n(void) { void *p = malloc(9000); __asm__ volatile(\"\"); return p; }\n\
        S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11)\n\
        __attribute__((noinline)) void leak_here(void) { sink = malloc(1); __asm__ volatile(\"\"); }\n\
        int main(void) { void *(*all[])(void) = {get0, get1, get2, get3, get4, get5, get6, get7, get8, get9, get10, get11};\n\
        for (int i = 0; i < 12; i++) free(all[i]()); leak_here(); sink = 0; return 0; }";
    let program = c("leak_beyond", text)?;
    let judged = judge(&["--fail-on-leak", "--top", "1", "--sort", "count"], &[&program.to_string_lossy()])?;
    expect(&judged, 3, "leaks")?;
    ensure!(
        judged.report.targets.iter().all(|target| target.sites.len() <= 1),
        "more is shown than asked for"
    );
    Ok(())
}
