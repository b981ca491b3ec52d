//! The machine that is emulated: names and command lines that differ between architectures, and nothing else.
use clap::ValueEnum;

/// An architecture that a guest can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
}

impl Arch {
    /// Debian's name.
    pub(super) fn debian(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
        }
    }

    /// The emulator.
    pub(super) fn qemu(self) -> &'static str {
        match self {
            Arch::Amd64 => "qemu-system-x86_64",
        }
    }

    /// Machine and processor. Features that cost much under emulation and matter to no probe are off: the kernel's
    /// string functions would be emulated byte by byte, and each page-table access checked twice.
    pub(super) fn machine(self) -> &'static [&'static str] {
        match self {
            Arch::Amd64 => {
                &["-M", "q35", "-cpu", "max,erms=off,fsrm=off,smap=off,smep=off,la57=off,migratable=off"]
            }
        }
    }

    /// Words for the kernel: its console, and no protection against attacks that cost time under emulation.
    pub(super) fn command_line(self) -> &'static str {
        match self {
            Arch::Amd64 => "console=ttyS0 mitigations=off nopti clearcpuid=112",
        }
    }

    /// The device of the guest that carries results.
    pub(super) fn results(self) -> &'static str {
        match self {
            Arch::Amd64 => "/dev/ttyS1",
        }
    }
}
