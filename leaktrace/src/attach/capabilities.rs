//! Capabilities (capabilities(7)): which of them leaktrace uses and what for. Who has them is read from a
//! process's status; what follows from that is for [`super::preflight`].
use std::fmt;

/// A capability that leaktrace uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Opens files whatever their permissions say.
    DacOverride = 1,
    /// Reads files and enters directories whatever their permissions say: tracefs is root's.
    DacReadSearch = 2,
    /// Reads memory maps and files of other users' processes.
    SysPtrace = 19,
    /// Includes CAP_BPF, CAP_PERFMON and CAP_CHECKPOINT_RESTORE; mounts tracefs.
    SysAdmin = 21,
    /// Attaches programs to probes and lets them read memory (Linux 5.8).
    Perfmon = 38,
    /// Makes maps and loads programs (Linux 5.8).
    Bpf = 39,
    /// Opens the very files that a process maps, also deleted ones (Linux 5.9).
    CheckpointRestore = 40,
}

impl Capability {
    /// Its name, as in capabilities(7).
    pub fn name(self) -> &'static str {
        match self {
            Capability::DacOverride => "CAP_DAC_OVERRIDE",
            Capability::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Capability::SysPtrace => "CAP_SYS_PTRACE",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::Perfmon => "CAP_PERFMON",
            Capability::Bpf => "CAP_BPF",
            Capability::CheckpointRestore => "CAP_CHECKPOINT_RESTORE",
        }
    }

    /// The one that includes it, where there is one.
    fn wider(self) -> Option<Capability> {
        match self {
            Capability::Bpf | Capability::Perfmon | Capability::CheckpointRestore => {
                Some(Capability::SysAdmin)
            }
            Capability::DacReadSearch => Some(Capability::DacOverride),
            _ => None,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The effective set in the text of `/proc/PID/status`; none where it has no such line.
    pub fn of_status(status: &str) -> Capabilities {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Capabilities(line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0))
    }

    /// These and one more.
    pub const fn with(self, capability: Capability) -> Capabilities {
        Capabilities(self.0 | 1 << capability as u8)
    }

    /// Whether it is there, by itself or in one that includes it.
    pub fn allow(self, capability: Capability) -> bool {
        let has = |one: Capability| self.0 & 1 << one as u8 != 0;
        has(capability) || capability.wider().is_some_and(has)
    }

    /// Those of `needed` that are missing.
    pub fn missing(self, needed: &[Capability]) -> Vec<Capability> {
        needed.iter().copied().filter(|capability| !self.allow(*capability)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_by_bits() {
        let set = Capabilities::of_status("CapPrm:\tffffffffffffffff\nCapEff:\t000000c000000000\n");
        assert!(set.allow(Capability::Bpf) && set.allow(Capability::Perfmon));
        assert!(!set.allow(Capability::SysPtrace) && !set.allow(Capability::CheckpointRestore));
        assert_eq!(Capabilities::of_status("CapEff:\tnonsense\n"), Capabilities::default());
    }

    #[test]
    fn sys_admin_includes_what_was_split_off_it_and_no_more() {
        let set = Capabilities::default().with(Capability::SysAdmin);
        let needed = [Capability::Bpf, Capability::Perfmon, Capability::SysPtrace, Capability::DacReadSearch];
        assert_eq!(set.missing(&needed), [Capability::SysPtrace, Capability::DacReadSearch]);
    }
}
