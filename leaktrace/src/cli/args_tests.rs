use super::*;
use crate::{
    agent::governor::GovernorOptions,
    cli::{choices::ModeArg, trace_args::DEFAULT_SAMPLE_INTERVAL_BYTES},
};

fn attach(words: &[&str]) -> Result<AttachArgs, clap::Error> {
    let all = ["leaktrace", "attach"].iter().chain(words);
    Cli::try_parse_from(all).map(|cli| match cli.command {
        Command::Attach(args) => *args,
        other => panic!("{other:?}"),
    })
}

fn run(words: &[&str]) -> Result<RunArgs, clap::Error> {
    let all = ["leaktrace", "run"].iter().chain(words);
    Cli::try_parse_from(all).map(|cli| match cli.command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    })
}

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}

#[test]
fn pids_may_be_separated_by_commas_or_repeated() {
    assert_eq!(attach(&["-p", "1,2", "--pid", "3"]).unwrap().targets.pids, [1, 2, 3]);
    assert!(attach(&[]).is_err());
    assert!(attach(&["-p", "0"]).is_err());
    assert!(attach(&["-p", "-4"]).is_err());
}

#[test]
fn interval_and_count_may_be_positions_as_in_bcc() {
    let args = attach(&["-p", "1", "5", "10"]).unwrap();
    assert_eq!((args.interval(), args.count()), (Duration::from_secs(5), Some(10)));
    let args = attach(&["-p", "1", "--interval", "500ms", "--count", "2"]).unwrap();
    assert_eq!((args.interval(), args.count()), (Duration::from_millis(500), Some(2)));
    assert_eq!(attach(&["-p", "1"]).unwrap().interval(), DEFAULT_INTERVAL);
    assert!(attach(&["-p", "1", "--interval", "1", "5"]).is_err());
}

#[test]
fn the_program_of_run_keeps_its_own_options_with_and_without_dashes() {
    let args = run(&["--top", "3", "--", "ls", "-l", "--color"]).unwrap();
    assert_eq!((args.trace.top, args.program), (3, vec!["ls".into(), "-l".into(), "--color".into()]));
    assert_eq!(run(&["ls", "-l", "--top", "5"]).unwrap().program.len(), 4);
    assert!(run(&[]).is_err());
}

#[test]
fn fail_on_leak_takes_bytes_only_after_an_equals_sign() {
    assert_eq!(run(&["--fail-on-leak", "true"]).unwrap().fail_on_leak, Some(0));
    assert_eq!(run(&["--fail-on-leak=64K", "true"]).unwrap().fail_on_leak, Some(65536));
    assert_eq!(run(&["true"]).unwrap().fail_on_leak, None);
}

#[test]
fn attach_samples_and_run_does_not_unless_told_to() {
    let of = |args: TraceArgs, default| args.sample_interval_bytes(default);
    let attached = |words: &[&str]| of(attach(words).unwrap().trace, ModeArg::Sampled);
    let ran = |words: &[&str]| of(run(words).unwrap().trace, ModeArg::Exact);
    assert_eq!(attached(&["-p", "1"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
    assert_eq!(attached(&["-p", "1", "--sample-interval", "64k"]), 65536);
    assert_eq!(attached(&["-p", "1", "--mode", "exact"]), 0);
    assert_eq!(attached(&["-p", "1", "--trace"]), 0);
    assert_eq!(attached(&["-p", "1", "--trace", "--mode", "sampled"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
    assert_eq!(ran(&["true"]), 0);
    assert_eq!(ran(&["--mode", "sampled", "true"]), DEFAULT_SAMPLE_INTERVAL_BYTES);
    assert_eq!(ran(&["--sample-interval", "4k", "true"]), 4096);
    for wrong in [&["--mode", "exact", "--sample-interval", "1k"][..], &["--sample-interval", "0"]] {
        let words = ["-p", "1"].iter().chain(wrong).copied().collect::<Vec<_>>();
        assert!(attach(&words).unwrap().trace.check().unwrap_err().contains("--sample-interval"));
    }
}

#[test]
fn what_samples_is_bounded_and_what_records_every_call_is_warned() {
    let attached = |words: &[&str]| attach(words).unwrap().trace.governor(ModeArg::Sampled);
    let ran = |words: &[&str]| run(words).unwrap().trace.governor(ModeArg::Exact);
    let budget =
        |options: Option<GovernorOptions>| options.map(|options| (options.budget_share, options.acts));
    assert_eq!(budget(attached(&["-p", "1"])), Some((0.05, true)));
    assert_eq!(budget(attached(&["-p", "1", "--mode", "exact"])), Some((0.05, false)));
    assert_eq!(budget(attached(&["-p", "1", "--mode", "exact", "--max-overhead", "2%"])), Some((0.02, true)));
    for words in [&["--max-overhead", "off"][..], &["--max-overhead", "0"], &["--mode", "growth"]] {
        assert_eq!(attached(&[&["-p", "1"], words].concat()), None);
    }
    assert_eq!(ran(&["true"]), None);
    assert_eq!(budget(ran(&["--max-overhead", "10%", "true"])), Some((0.1, true)));
}

#[test]
fn growth_mode_refuses_what_needs_allocations() {
    for words in [&["--trace"][..], &["--sample-interval", "1k"], &["--max-overhead", "1%"]] {
        let words = [&["-p", "1", "--mode", "growth"], words].concat();
        assert!(attach(&words).unwrap().trace.check().unwrap_err().contains("--mode growth"));
    }
    assert_eq!(attach(&["-p", "1", "--mode", "growth"]).unwrap().trace.check(), Ok(()));
}

#[test]
fn bounds_take_units_and_are_checked() {
    let args = attach(&["-p", "1", "--max-blocks", "2M", "--min-size", "4k"]).unwrap();
    assert_eq!((args.trace.max_blocks, args.trace.min_size), (Some(2_000_000), Some(4096)));
    assert!(attach(&["-p", "1", "--stack-depth", "128"]).is_err());
    assert!(attach(&["-p", "1", "--stack-depth", "0"]).is_err());
    let args = attach(&["-p", "1", "--min-size", "2", "--max-size", "1"]).unwrap();
    assert!(args.trace.check().unwrap_err().contains("--min-size"));
}
