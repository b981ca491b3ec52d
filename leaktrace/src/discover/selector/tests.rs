//! Selectors against candidates.
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::discover::container::{Names, Runtime, cgroup};

fn candidate() -> Candidate {
    Candidate {
        pid: 7,
        comm: "nginx".to_owned(),
        executable: Some("/usr/sbin/nginx".to_owned()),
        groups: cgroup::parse("4:memory:/mem/web\n2:cpu,cpuacct:/\n0::/system.slice/web.service/sub\n"),
        container: Some(Arc::new(Container {
            id: "3858919f60641ae85a47c4c211529e6392052b4b13eff9cdf7a4d705fba9a4ed".to_owned(),
            runtime: Runtime::Docker,
            pod_uid: None,
            names: Names { name: Some("web".to_owned()), ..Names::default() },
        })),
        in_exec: false,
    }
}

fn matches(text: &str) -> bool {
    text.parse::<Selector>().unwrap().matches(&candidate())
}

#[test]
fn each_kind_matches_what_it_names_and_nothing_else() {
    for yes in [
        "pid:7",
        "container:web",
        "container:/web",
        "container:3858",
        "container:3858919f60641ae85a47c4c211529e6392052b4b13eff9cdf7a4d705fba9a4ed",
        "cgroup:/system.slice/web.service",
        "cgroup:/system.slice/",
        "cgroup:/sys/fs/cgroup/system.slice/web.service",
        "cgroup:/sys/fs/cgroup/unified/system.slice",
        "cgroup:/sys/fs/cgroup/memory/mem/web",
        "cgroup:/mem",
        "cgroup:/",
        "comm:nginx",
        "comm:ng*x",
        "exe:/usr/sbin/nginx",
        "exe:/usr/*",
        "exe:nginx",
        "exe:sbin/ngin?",
        "exe:*/nginx",
        "all",
    ] {
        assert!(matches(yes), "{yes}");
    }
    for no in [
        "pid:8",
        "container:we",
        "container:385",
        "container:3859",
        "cgroup:/system.slice/web",
        "cgroup:/sys/fs/cgroup/cpu/mem",
        "cgroup:/sys/fs/cgroup/unified/mem",
        "comm:ngin",
        "comm:NGINX",
        "exe:bin/nginx",
        "exe:inx",
        "exe:/sbin/nginx",
    ] {
        assert!(!matches(no), "{no}");
    }
}

#[test]
fn a_name_longer_than_the_kernel_keeps_is_found_all_the_same() {
    let cut = Candidate { comm: "a-name-of-fiftee".get(..15).unwrap().to_owned(), ..candidate() };
    assert!("comm:a-name-of-fifteen-and-more".parse::<Selector>().unwrap().matches(&cut));
}

#[test]
fn a_process_without_facts_is_only_meant_by_its_pid_or_by_all() {
    let bare = Candidate { pid: 7, ..Candidate::default() };
    for (text, expected) in [("pid:7", true), ("all", true), ("container:web", false), ("exe:*", false)] {
        assert_eq!(text.parse::<Selector>().unwrap().matches(&bare), expected, "{text}");
    }
}

#[test]
fn what_selects_nothing_says_what_to_write() {
    for (text, says) in [
        ("", "pid:N"),
        ("nginx", "comm:NAME"),
        ("name:nginx", "comm:NAME"),
        ("pid:0", "from 1 to"),
        ("pid:x", "from 1 to"),
        ("comm:", "say which one"),
        ("cgroup:web", "/sys/fs/cgroup"),
    ] {
        let error = text.parse::<Selector>().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    assert!(format!("comm:{}", "a".repeat(5000)).parse::<Selector>().is_err());
}

#[test]
fn it_is_written_in_files_as_it_is_read() {
    for text in
        ["pid:7", "container:web", "cgroup:/sys/fs/cgroup/memory/a", "cgroup:/a", "comm:a*", "exe:/b", "all"]
    {
        let selector: Selector = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(serde_json::to_string(&selector).unwrap(), format!("\"{text}\""));
    }
    assert!(serde_json::from_str::<Selector>("\"x\"").is_err());
}

proptest! {
    #[test]
    fn a_pattern_without_stars_fits_itself_alone(text in "[a-z/]{0,12}", other in "[a-z/]{0,12}") {
        prop_assert!(Pattern(text.clone()).fits(&text));
        prop_assert_eq!(Pattern(text.clone()).fits(&other), text == other);
    }

    #[test]
    fn stars_take_any_text(before in "[a-c]{0,4}", middle in "[a-c]{0,8}", after in "[a-c]{0,4}") {
        let pattern = Pattern(format!("{before}*{after}"));
        let whole = format!("{before}{middle}{after}");
        prop_assert!(pattern.fits(&whole));
    }

    #[test]
    fn many_stars_end_soon(text in "a{0,200}") {
        prop_assert!(!Pattern("*a".repeat(50) + "b").fits(&text));
    }
}
