//! Programs that leak nothing pass `--fail-on-leak`: what their runtimes, their shells and `make` keep is no leak.
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

use super::gate::{c, cxx, each, expect, judge, judge_in, rust};
use leaktrace_tests::compile;

const GATE: &[&str] = &["--fail-on-leak"];

fn passes(program: Result<PathBuf>) -> Result<()> {
    expect(&judge(GATE, &[&program?.to_string_lossy()])?, 0, "clean")
}

const C: &[(&str, &str)] = &[
    (
        "c_stdio",
        "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 7); fputs(\"x\\n\", stderr); return 0; }",
    ),
    (
        "c_input",
        "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { int c = getchar(); printf(\"%d\\n\", c);\n\
         for (int i = 0; i < 100; i++) { FILE *f = fopen(\"/proc/self/stat\", \"r\"); fgetc(f); fclose(f); }\n\
         char *line = 0; size_t n = 0; FILE *f = fopen(\"/proc/self/status\", \"r\");\n\
         while (getline(&line, &n, f) > 0) {} free(line); fclose(f); return 0; }",
    ),
    (
        "c_wide",
        "#include <wchar.h>\n#include <locale.h>\n#include <stdlib.h>\n#include <libintl.h>\n\
         int main(void) { setlocale(LC_ALL, \"C.UTF-8\"); textdomain(\"none\"); bindtextdomain(\"none\", \"/tmp\");\n\
         wprintf(L\"%ls\\n\", L\"caf\\u00e9\"); wchar_t w; mbtowc(&w, \"x\", 1); gettext(\"x\"); return 0; }",
    ),
    (
        "c_environment",
        "#include <stdlib.h>\n#include <time.h>\n#include <stdio.h>\nint main(void) { setenv(\"A_NEW_ONE\", \"1\", 1);\n\
         setenv(\"TZ\", \"Europe/Vienna\", 1); tzset(); time_t t = 0; struct tm *tm = localtime(&t);\n\
         printf(\"%d\\n\", tm->tm_hour); return 0; }",
    ),
    (
        "c_at_exit",
        "#include <stdlib.h>\nstatic void nothing(void) {}\n\
         int main(void) { for (int i = 0; i < 100; i++) atexit(nothing); free(malloc(10)); return 0; }",
    ),
    (
        "c_threads",
        "#include <pthread.h>\n#include <stdlib.h>\n#include <unistd.h>\nstatic __thread int own;\n\
         static void *idle(void *a) { own = 1; for (;;) pause(); return a; }\n\
         static void *work(void *a) { own = 2; free(malloc(100)); return a; }\n\
         int main(void) { pthread_t t; for (int i = 0; i < 12; i++) { pthread_create(&t, 0, idle, 0); pthread_detach(t); }\n\
         for (int i = 0; i < 20; i++) { pthread_create(&t, 0, work, 0); pthread_join(t, 0); } exit(0); }",
    ),
    (
        "c_libraries",
        "#include <dlfcn.h>\n#include <pwd.h>\n#include <unistd.h>\nint main(void) { dlopen(\"libm.so.6\", RTLD_NOW);\n\
         dlopen(\"libgcc_s.so.1\", RTLD_NOW); getpwuid(getuid()); return 0; }",
    ),
    (
        "c_children",
        "#include <stdlib.h>\n#include <unistd.h>\n#include <sys/wait.h>\nint main(void) { void *p = malloc(1000);\n\
         for (int i = 0; i < 5; i++) { if (fork() == 0) { free(malloc(10)); free(p); exit(0); } wait(0); }\n\
         free(p); return system(\"true\"); }",
    ),
];

#[test]
fn clean_c_programs_pass() -> Result<()> {
    each(C, |name, text| passes(c(name, text)))
}

const CXX: &[(&str, &str)] = &[
    ("cxx_streams", "#include <iostream>\nint main() { std::cout << 1.5 << std::endl; std::cerr << 3; }"),
    (
        "cxx_exceptions",
        "#include <stdexcept>\n#include <string>\nint main() { for (int i = 0; i < 9; i++) try {\n\
         throw std::runtime_error(std::string(100, 'x')); } catch (const std::exception &) {} }",
    ),
    (
        "cxx_locale",
        "#include <iostream>\n#include <locale>\nint main() { std::locale::global(std::locale(\"C.UTF-8\"));\n\
         std::cout.imbue(std::locale()); std::cout << 123456 << std::endl; }",
    ),
    (
        "cxx_globals",
        "#include <map>\n#include <memory>\n#include <string>\n#include <thread>\n#include <vector>\n\
         static std::map<int, std::string> names; static std::vector<std::string> list(100, std::string(50, 'a'));\n\
         int main() { for (int i = 0; i < 100; i++) names[i] = std::string(i, 'b');\n\
         std::thread([] { thread_local std::string own(100, 'c'); own += 'd'; }).join();\n\
         auto shared = std::make_shared<int>(3); }",
    ),
];

#[test]
fn clean_cxx_programs_pass() -> Result<()> {
    each(CXX, |name, text| passes(cxx(name, text)))?;
    // With the C++ runtime in the program, with and without its names.
    let (name, text) = CXX[1];
    for options in [&["-g"][..], &["-s"]] {
        let command = [&["g++", "-O1", "-static-libstdc++", "-static-libgcc"][..], options].concat();
        passes(compile::text(&format!("{name}.cpp"), text, &command))
            .with_context(|| format!("{options:?}"))?;
    }
    Ok(())
}

const RUST: &[(&str, &str)] = &[
    ("rust_hello", "fn main() { println!(\"hello {}\", 5); eprintln!(\"x\"); }"),
    (
        "rust_threads",
        "use std::{cell::RefCell, thread};\nthread_local!(static OWN: RefCell<Vec<u8>> = RefCell::new(vec![1; 100]));\n\
         fn main() { let t: Vec<_> = (0..8).map(|i| thread::spawn(move || OWN.with(|o| o.borrow_mut().push(i)))).collect();\n\
         for t in t { t.join().unwrap(); } println!(\"{:?}\", thread::current().name()); }",
    ),
    (
        "rust_collections",
        "use std::{collections::HashMap, io::{self, Read as _}};\nfn main() { let mut map = HashMap::new();\n\
         for i in 0..100 { map.insert(i, i.to_string()); } let mut text = String::new();\n\
         io::stdin().read_to_string(&mut text).unwrap(); println!(\"{} {:?}\", map.len(), std::env::args().next()); }",
    ),
];

#[test]
fn clean_rust_programs_pass() -> Result<()> {
    each(RUST, |name, text| passes(rust(name, text)))
}

const MUSL: &[(&str, &str)] = &[
    ("musl_stdio", "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 7); return 0; }"),
    (
        "musl_threads",
        "#include <pthread.h>\n#include <stdlib.h>\nstatic void *work(void *a) { free(malloc(100)); return a; }\n\
         int main(void) { pthread_t t; for (int i = 0; i < 9; i++) { pthread_create(&t, 0, work, 0); pthread_join(t, 0); }\n\
         return 0; }",
    ),
];

#[test]
fn clean_programs_of_musl_pass() -> Result<()> {
    each(MUSL, |name, text| {
        passes(compile::text(&format!("{name}.c"), text, &["musl-gcc", "-O1", "-g", "-w"]))
    })
}

const SCRIPTS: &[(&str, &[&str])] = &[
    ("sh", &["sh", "-c", "true"]),
    (
        "sh with tools",
        &[
            "sh",
            "-c",
            "x=$(ls / | grep t | sort | wc -l); y=$(printf '%s' \"$x\" | sed s/1/2/); test -n \"$y\"",
        ],
    ),
    (
        "bash",
        &[
            "bash",
            "-c",
            "a=(1 2 3); f() { local v=$1; echo \"$v\"; }; for i in ${a[@]}; do f $i; done | cat; declare -A m=([x]=1)",
        ],
    ),
    (
        "python",
        &["/usr/bin/python3", "-c", "import json, re; print(json.dumps({'a': re.findall('x', 'xyx')}))"],
    ),
    (
        "perl",
        &["/usr/bin/perl", "-e", "my %h = (a => [1, 2]); print join(',', map { $_ * 2 } @{$h{a}}), \"\\n\""],
    ),
];

#[test]
fn clean_scripts_pass() -> Result<()> {
    each(SCRIPTS, |_, words| expect(&judge(GATE, words)?, 0, "clean"))
}

#[test]
fn a_clean_build_passes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(
        folder.path().join("a.c"),
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 0; }\n",
    )?;
    std::fs::write(
        folder.path().join("Makefile"),
        "all: a\n\t./a | tr a-z A-Z > out\n\tcat out\na: a.o\n\tgcc -o $@ $<\na.o: a.c\n\tgcc -O1 -c -o $@ $<\n",
    )?;
    let judged = judge_in(folder.path(), GATE, &["make"])?;
    expect(&judged, 0, "clean")?;
    ensure!(judged.verdict.suppressed.count > 0, "compilers free everything: {:?}", judged.verdict);
    ensure!(std::fs::read_to_string(folder.path().join("out"))? == "BUILT\n", "it was not built");
    Ok(())
}
