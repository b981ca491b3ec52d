//! What a hit on a probe costs the target: measured on this host where that was asked for and works, else what is
//! typical. The self-test measures, this file only answers; the kernel adds the answers up by process.
use leaktrace_common::hook::COST_UNIT_NS;

use super::{
    links::LinkKind,
    plan::{CostClass, ProbeSite},
    selftest::ProbeCosts,
};

/// Typical of Linux 6.18 on a virtual machine.
const EMULATED_NS: u64 = 600;
const SINGLE_STEPPED_NS: u64 = 16_000;
const RETURN_NS: u64 = 350;
/// What the kernel program adds to a hit that records nothing: finding the target, the draw or the look-up.
const PROGRAM_NS: u64 = 100;

/// Costs of the probes of one link type.
#[derive(Clone, Debug)]
pub struct TrapCosts {
    link: LinkKind,
    measured: Option<ProbeCosts>,
}

impl TrapCosts {
    /// What is typical.
    pub fn typical(link: LinkKind) -> TrapCosts {
        TrapCosts { link, measured: None }
    }

    /// Measures, which takes a tenth of a second. What cannot be measured is taken for typical.
    pub fn measure(link: LinkKind) -> TrapCosts {
        let measured = ProbeCosts::measure(link);
        if let Err(error) = &measured {
            tracing::debug!(error = format!("{error:#}"), "probe costs cannot be measured");
        }
        TrapCosts { link, measured: measured.ok() }
    }

    /// Whether they are this host's.
    pub fn are_measured(&self) -> bool {
        self.measured.is_some()
    }

    /// A hit at the entry, as [`leaktrace_common::hook::Hook::cost`]. `with_return` says that there is a
    /// return probe, too; a session's is passed over with what is not recorded.
    pub fn entry(&self, site: &ProbeSite, with_return: bool) -> u8 {
        let always_returns = with_return && self.link != LinkKind::Session;
        let at_return = if always_returns { self.return_ns() } else { 0 };
        let at_entry = match &self.measured {
            Some(costs) => costs.of_site(site, false),
            None if site.cost_class == CostClass::SingleStepped => SINGLE_STEPPED_NS,
            None => EMULATED_NS,
        };
        units(at_entry + at_return + PROGRAM_NS)
    }

    /// A hit at an exit, which is a `ret`.
    pub fn exit(&self) -> u8 {
        units(self.measured.as_ref().map_or(SINGLE_STEPPED_NS, |costs| costs.single_stepped_ns) + PROGRAM_NS)
    }

    /// A return that is seen, in ns on top of the entry.
    pub fn return_ns(&self) -> u64 {
        self.measured.as_ref().and_then(|costs| costs.return_ns).unwrap_or(RETURN_NS)
    }
}

fn units(ns: u64) -> u8 {
    u8::try_from(ns.div_ceil(COST_UNIT_NS)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_the_most_there_is() {
        assert_eq!(units(0), 0);
        assert_eq!(units(1), 1);
        assert_eq!(units(COST_UNIT_NS * 200), 200);
        assert_eq!(units(1 << 40), u8::MAX);
    }
}
