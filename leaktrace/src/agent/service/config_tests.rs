use std::time::Duration;

use super::*;
use crate::agent::service::values::{Count, Size};

fn error(text: &str) -> String {
    match Config::parse(text) {
        Ok(config) => config.check().unwrap_err(),
        Err(error) => error.0,
    }
}

#[test]
fn the_shipped_example_says_the_defaults_and_every_key() {
    let example = include_str!("../../../../packaging/leaktrace.toml");
    assert_eq!(Config::parse(example).unwrap(), Config::default());
    let uncommented: String = example
        .lines()
        .map(|line| {
            let key = line.strip_prefix('#').filter(|rest| {
                rest.split_once(" = ").is_some_and(|(key, _)| !key.is_empty() && !key.contains([' ', '`']))
            });
            format!("{}\n", key.unwrap_or(line))
        })
        .collect();
    let table: toml::Table = uncommented.parse().unwrap();
    for section in [
        "",
        "auto",
        "trace",
        "http",
        "snapshots",
        "snapshots.keep",
        "alerts",
        "alerts.outstanding",
        "log",
        "limits",
    ] {
        let text = if section.is_empty() { "zzz = 1".to_owned() } else { format!("[{section}]\nzzz = 1") };
        let raw = toml::from_str::<Config>(&text).unwrap_err().message().to_owned();
        let mut names = raw.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names.remove(0), "zzz");
        let mut place = &table;
        for part in section.split('.').filter(|part| !part.is_empty()) {
            place = place[part].as_table().unwrap();
        }
        for name in names {
            assert!(place.contains_key(&name), "{section}.{name} is not in the example");
        }
    }
    let config = Config::parse(&uncommented).unwrap();
    config.check().unwrap();
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_a_hint() {
    assert_eq!(
        error("[trace]\n\nintervall = 5"),
        ":3: there is no key \"intervall\" here: did you mean \"interval\"?"
    );
    assert!(error("[htp]\n").contains("did you mean \"http\"?"));
    assert!(error("[log]\nxyzzy = 1").contains("there are format, level"));
}

#[test]
fn wrong_values_are_errors_that_say_what_is_right() {
    for (text, says) in [
        ("targets = [\"nginx\"]", "comm:NAME"),
        ("exclude = [\"pid:0\"]", "no process id"),
        ("[trace]\nmax_overhead = \"-1\"", "5%"),
        ("[trace]\nmode = \"all\"", "exact"),
        ("[trace]\ninterval = \"1ms\"", "at least 100ms"),
        ("[trace]\nsample_interval = \"5X\"", "64K"),
        ("[http]\nlisten = \"localhost\"", "127.0.0.1:9464"),
        ("[http]\nlisten = \"unix:relative\"", "unix:/run"),
        ("[http]\ntoken = \"short\"", "openssl"),
        ("[snapshots]\nevery = \"1h\"", "snapshots.directory"),
        ("[snapshots]\ndirectory = \"relative\"", "absolute"),
        ("[snapshots]\ndirectory = \"/x\"\ncron = [\"61 * * * *\"]", "0 3 * * *"),
        ("[alerts]\nmemory_limit = { warning = 0.9, critical = 0.7 }", "must not be above"),
        ("[alerts]\ntime_to_limit = { warning = \"1h\", critical = \"2h\" }", "shorter"),
        ("[alerts]\nmemory_limit = { warning = 70 }", "0.7"),
        ("[alerts]\nwebhook = \"ftp://x\"", "http://"),
        ("[alerts]\nhysteresis = nan", "0.1"),
        ("[limits]\ncpu = 0", "0.5"),
        ("[log]\nlevel = \"=!\"", "info"),
        ("targets = 5", ":1:"),
        ("x", ":1:"),
    ] {
        let error = error(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn values_have_units() {
    let text = "[trace]\ninterval = 2.5\nmax_blocks = \"2M\"\nsample_interval = \"1MiB\"\n[http]\nlisten = \"unix:/run/x\"";
    let config = Config::parse(text).unwrap();
    assert_eq!(config.trace.interval.0, Duration::from_millis(2500));
    assert_eq!((config.trace.max_blocks, config.trace.sample_interval), (Count(2_000_000), Size(1 << 20)));
    assert_eq!(config.http.listen, Listen::Unix("/run/x".into()));
    assert!(!config.http.listen.is_public());
    assert!(Listen::try_from("0.0.0.0:1".to_owned()).unwrap().is_public());
    assert!(!Listen::try_from("[::1]:1".to_owned()).unwrap().is_public());
}

#[test]
fn a_token_file_is_read_and_a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(&file, format!("[http]\ntoken_file = {token:?}\n")).unwrap();
    assert_eq!(Config::read(&file).unwrap().http.token.as_deref(), Some("0123456789abcdef"));
    std::fs::remove_file(&token).unwrap();
    assert!(Config::read(&file).unwrap_err().0.contains("token_file"));
    assert!(Config::read(folder.path()).unwrap_err().0.contains("cannot read"));
}
