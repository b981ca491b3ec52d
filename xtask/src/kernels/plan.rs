//! What is booted, how, and what runs in each guest. Pure. The scenarios are the guest's (`tests/guest/scenario.rs`).
use super::series::{MATRIX, Preemption, Series};
use std::time::Duration;

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What continuous integration has time for.
    Short,
    /// Everything, in each way that the kernels can be booted.
    Whole,
    /// Load for so long on each kernel.
    Soak(Duration),
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) series: Series,
    /// `None`: the kernel has no choice.
    pub(super) preemption: Option<Preemption>,
    pub(super) has_jit: bool,
    pub(super) scenarios: Vec<String>,
}

impl Boot {
    fn new(series: Series, preemption: Option<Preemption>, scenarios: Vec<String>) -> Boot {
        Boot { series, preemption, has_jit: true, scenarios }
    }

    /// Words for the kernel.
    pub(super) fn command_line(&self) -> String {
        let mode = self.preemption.map(|mode| format!("preempt={}", mode.name())).unwrap_or_default();
        let jit = if self.has_jit { "" } else { " sysctl.net.core.bpf_jit_enable=0" };
        format!("{mode}{jit}")
    }

    /// For messages and files.
    pub(super) fn label(&self) -> String {
        let mode = self.preemption.map(|mode| format!("-{}", mode.name())).unwrap_or_default();
        let jit = if self.has_jit { "" } else { "-nojit" };
        format!("{}{mode}{jit}", self.series)
    }

    /// After this time the guest hangs.
    pub(super) fn time(&self) -> Duration {
        Duration::from_secs(120) + self.scenarios.iter().map(|name| time(name)).sum::<Duration>()
    }
}

/// More than a scenario takes on a machine that does other things as well.
fn time(scenario: &str) -> Duration {
    let words: Vec<&str> = scenario.split(':').collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    Duration::from_secs(match words.first() {
        Some(&"storm") => 600 + 2 * number(3),
        Some(&"cycles") => 300 + 90 * number(1),
        _ => 600,
    })
}

/// The series that are meant where none is named.
pub(super) fn usual(extent: Extent) -> Vec<Series> {
    MATRIX
        .into_iter()
        .filter(|series| match extent {
            Extent::Whole => true,
            Extent::Short => short(*series).is_some(),
            Extent::Soak(_) => !series.is_plain && (series.major, series.minor) >= (6, 12),
        })
        .collect()
}

/// All guests for one kernel.
pub(super) fn boots(series: Series, extent: Extent) -> Vec<Boot> {
    if series.is_refused() {
        return vec![Boot::new(series, None, words(&["refused"]))];
    }
    match extent {
        Extent::Short => {
            let preemption = short(series).or_else(|| series.preemptions().first().copied());
            vec![Boot::new(series, preemption, short_scenarios(series))]
        }
        Extent::Whole => whole(series),
        Extent::Soak(time) => {
            let modes = series
                .preemptions()
                .iter()
                .filter(|mode| matches!(mode, Preemption::Full | Preemption::Lazy));
            modes.map(|mode| Boot::new(series, Some(*mode), soak(series, time))).collect()
        }
    }
}

/// The preemption of the kernels that continuous integration boots.
fn short(series: Series) -> Option<Preemption> {
    match (series.major, series.minor, series.is_plain) {
        (6, 1 | 12, false) => Some(Preemption::Full),
        (7, _, false) => Some(Preemption::Lazy),
        _ => None,
    }
}

/// Few starts of leaktrace, as each costs many seconds under emulation.
fn short_scenarios(series: Series) -> Vec<String> {
    let links = series.links();
    let best = links.first().copied().unwrap_or_default();
    let mut scenarios = vec!["run".to_owned(), format!("attach:{best}")];
    // The first and the last kind are the most different.
    let mut loaded = vec![best];
    loaded.extend(links.last().filter(|link| series.has_private_stacks() && **link != best));
    let seconds = 60 / loaded.len();
    scenarios.extend(loaded.iter().map(|link| format!("storm:{link}:exact:{seconds}")));
    scenarios
}

fn whole(series: Series) -> Vec<Boot> {
    let links = series.links();
    let best = links.first().copied().unwrap_or_default();
    let each =
        |what: &str, end: &str| links.iter().map(|link| format!("{what}:{link}{end}")).collect::<Vec<_>>();
    let exact = [words(&["run"]), each("attach", "")].concat();
    let load = [each("storm", ":exact:60"), vec![format!("storm:{best}:sampled:60")]].concat();
    let modes = series.preemptions();
    let first = modes.first().copied();
    if series.is_plain {
        return vec![Boot::new(series, first, exact)];
    }
    let everything = [
        words(&["doctor"]),
        exact.clone(),
        words(&["run-sampled"]),
        each("attach-sampled", ""),
        words(&["stacks", "cgroup", "fail-on-leak", "agent", "kill"]),
        vec![format!("cycles:20:{}", links.join(","))],
        load.clone(),
    ];
    let mut boots = vec![Boot::new(series, first, everything.concat())];
    let others = modes.iter().skip(1);
    boots.extend(others.map(|mode| Boot::new(series, Some(*mode), [exact.clone(), load.clone()].concat())));
    let interpreted =
        [words(&["run"]), vec![format!("attach:{best}"), format!("storm:{best}:exact:60")]].concat();
    boots.push(Boot { has_jit: false, ..Boot::new(series, first, interpreted) });
    boots
}

/// Each kind of links in turn, exact and sampled, with the time divided among them.
fn soak(series: Series, time: Duration) -> Vec<String> {
    let links = series.links();
    let parts = 2 * links.len().max(1) as u64;
    let seconds = (time.as_secs() / parts).max(10);
    let of = |link: &&str| ["exact", "sampled"].map(|mode| format!("storm:{link}:{mode}:{seconds}"));
    links.iter().flat_map(of).collect()
}

fn words(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str) -> Series {
        name.parse().unwrap()
    }

    #[test]
    fn continuous_integration_boots_three_kernels_once() {
        let names: Vec<String> = usual(Extent::Short).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["6.1", "6.12", "7.3"]);
        let boots = boots(series("7.3"), Extent::Short);
        assert_eq!(boots.len(), 1);
        assert_eq!(boots[0].command_line(), "preempt=lazy");
        assert_eq!(
            boots[0].scenarios,
            ["run", "attach:session", "storm:session:exact:30", "storm:perf:exact:30"]
        );
    }

    #[test]
    fn the_whole_matrix_has_each_preemption_and_one_guest_without_jit() {
        let labels: Vec<String> = boots(series("6.16"), Extent::Whole).iter().map(Boot::label).collect();
        assert_eq!(labels, ["6.16-full", "6.16-lazy", "6.16-voluntary", "6.16-none", "6.16-full-nojit"]);
        let first = &boots(series("6.12"), Extent::Whole)[0];
        assert!(first.scenarios.contains(&"cycles:20:multi,perf".to_owned()));
        assert!(first.scenarios.contains(&"storm:multi:sampled:60".to_owned()));
    }

    #[test]
    fn a_kernel_that_is_refused_is_booted_for_that_alone() {
        let boots = boots(series("5.10"), Extent::Whole);
        assert_eq!(boots.len(), 1);
        assert_eq!(boots[0].scenarios, ["refused"]);
    }

    #[test]
    fn a_soak_divides_its_time_among_links_and_modes() {
        let extent = Extent::Soak(Duration::from_secs(3600));
        assert!(usual(extent).iter().all(|series| !series.is_plain && !series.is_refused()));
        let boots = boots(series("7.3"), extent);
        assert_eq!(boots.len(), 2);
        assert_eq!(boots[1].scenarios.len(), 6);
        assert_eq!(boots[1].scenarios[0], "storm:session:exact:600");
        assert!(boots[1].time() > Duration::from_secs(3600));
    }
}
