//! What a run comes to: clean, leaks, not known or failed, with the exit code that says the same to a script. How it is
//! reached is left to `analyse::gate`.

/// Exit code for a leak.
pub const LEAKED: u8 = 3;
/// Exit code where it is not known whether something leaked.
pub const NOT_KNOWN: u8 = 4;

/// In one word, the most telling first: a program that failed may not have got as far as to leak, a leak is one whatever
/// else was not seen, and what was not seen is not clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program ended with another code than 0, or was killed.
    ProgramFailed,
    /// More is held than is allowed.
    Leaks,
    /// Nothing was found, and something was not seen.
    NotKnown,
    /// Everything was seen, and nothing was found.
    Clean,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 4] = [Outcome::ProgramFailed, Outcome::Leaks, Outcome::NotKnown, Outcome::Clean];

    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::ProgramFailed => "program-failed",
            Outcome::Leaks => "leaks",
            Outcome::NotKnown => "not-known",
            Outcome::Clean => "clean",
        }
    }
}

/// Bytes and blocks of some call stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub count: u64,
    /// Call stacks.
    pub sites: u64,
}

impl Amount {
    /// Adds a call stack that holds this much.
    pub fn add(&mut self, bytes: u64, count: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.count = self.count.saturating_add(count);
        self.sites = self.sites.saturating_add(1);
    }
}

/// What a run comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In one word.
    pub outcome: Outcome,
    /// The exit code of `leaktrace run`.
    pub exit_code: u8,
    /// Why, in sentences without a full stop; none where it is clean.
    pub reasons: Vec<String>,
    /// How much may be held without being a leak; `None` where the exit code does not depend on leaks.
    pub limit_bytes: Option<u64>,
    /// What was found, above the baseline where there is one.
    pub leaked: Amount,
    /// What suppressions hid.
    pub suppressed: Amount,
    /// What the baseline held already.
    pub in_baseline: Amount,
}
