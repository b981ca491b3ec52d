//! Features of the kernel that leaktrace is to do without, as if this kernel lacked them: for tests of what older kernels
//! get. Named in the environment variable `LEAKTRACE_HIDE`, separated by commas.
use std::env;

/// A feature that can be hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Session uprobes (Linux 6.13).
    Session,
    /// Multi-uprobes (Linux 6.6).
    Multi,
    /// The kernel's type information (CONFIG_DEBUG_INFO_BTF).
    Btf,
    /// Attach cookies (Linux 5.15), without which nothing works.
    Cookies,
    /// Loading the kernel programs: every one is refused.
    Programs,
}

impl Feature {
    const fn name(self) -> &'static str {
        match self {
            Feature::Session => "session",
            Feature::Multi => "multi",
            Feature::Btf => "btf",
            Feature::Cookies => "cookies",
            Feature::Programs => "programs",
        }
    }

    /// Whether it is hidden.
    pub fn is_hidden(self) -> bool {
        env::var("LEAKTRACE_HIDE").is_ok_and(|names| self.is_among(&names))
    }

    fn is_among(self, names: &str) -> bool {
        names.split(',').any(|name| name.trim() == self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_hidden_by_name() {
        assert!(Feature::Multi.is_among("session, multi"));
        assert!(!Feature::Btf.is_among("session,multi"));
        assert!(!Feature::Session.is_among(""));
    }
}
