//! What tracing costs a target, and what was decided about it.

/// How the governor stands to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GovernorState {
    /// Nothing bounds what tracing costs.
    #[default]
    Off,
    /// Within the budget, as it was asked for.
    Within,
    /// Over the budget, for a moment or because only warnings were asked for.
    Over,
    /// Samples are further apart than was asked for.
    Widened,
    /// Allocations are not watched.
    Paused,
}

impl GovernorState {
    /// Every state.
    pub const ALL: [GovernorState; 5] = [
        GovernorState::Off,
        GovernorState::Within,
        GovernorState::Over,
        GovernorState::Widened,
        GovernorState::Paused,
    ];

    /// The name in JSON and files.
    pub const fn name(self) -> &'static str {
        match self {
            GovernorState::Off => "off",
            GovernorState::Within => "within_budget",
            GovernorState::Over => "over_budget",
            GovernorState::Widened => "widened",
            GovernorState::Paused => "paused",
        }
    }
}

/// What tracing costs one target. Shares are of one core.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct OverheadView {
    /// What its probes cost it lately, by the number of hits and what a hit costs on this host.
    pub estimated_share: f64,
    /// What they may cost; `None` where nothing bounds them.
    pub budget_share: Option<f64>,
    /// The processor time that it used itself lately, probes included.
    pub target_cpu_share: Option<f64>,
    /// Where the governor stands.
    pub state: GovernorState,
    /// Mean bytes between samples now; 0 where every call is recorded.
    pub sample_interval_bytes: u64,
    /// How long its allocations were not watched, in all.
    pub paused_ns: u64,
    /// When it will be tried again, while it is paused.
    pub retry_in_ns: Option<u64>,
}
