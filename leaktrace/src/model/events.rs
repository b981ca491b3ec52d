//! Decisions of the agent that change what is recorded: each with its time and its reason.
use super::snapshot::WallNs;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Samples are taken further apart.
    Widened,
    /// Samples are taken closer together again.
    Narrowed,
    /// Allocations are not watched any more, for a time.
    Paused,
    /// They are watched again.
    Resumed,
    /// Tracing costs more than its budget, and nothing is done about it.
    OverBudget,
    /// Sampling of a process whose memory grows began.
    AutoStarted,
    /// It ended.
    AutoStopped,
    /// It could not begin.
    AutoFailed,
    /// A process died as breakpoints make programs die.
    KilledByTracing,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 9] = [
        EventKind::Widened,
        EventKind::Narrowed,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::OverBudget,
        EventKind::AutoStarted,
        EventKind::AutoStopped,
        EventKind::AutoFailed,
        EventKind::KilledByTracing,
    ];

    /// The name in JSON and files.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::Widened => "widened",
            EventKind::Narrowed => "narrowed",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::OverBudget => "over_budget",
            EventKind::AutoStarted => "auto_started",
            EventKind::AutoStopped => "auto_stopped",
            EventKind::AutoFailed => "auto_failed",
            EventKind::KilledByTracing => "killed_by_tracing",
        }
    }
}

/// A decision about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventView {
    /// When.
    pub time: WallNs,
    /// About which process.
    pub pid: u32,
    /// Its name. Hostile: escape before printing.
    pub comm: String,
    /// What.
    pub kind: EventKind,
    /// What was decided and why, as a sentence with numbers.
    pub reason: String,
}
