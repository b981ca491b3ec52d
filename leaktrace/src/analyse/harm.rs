//! Rule: whether a traced process that a signal ended was probably ended by its probes. Pure: what is known of its last
//! instruction comes in as values.
//!
//! Breakpoints end a program by SIGTRAP where its code is copied with them in it, return probes by SIGILL where the
//! kernel has lost a call that is to return, both by SIGSEGV inside the kernel's own page of instructions. Programs
//! trap by themselves too (`__builtin_trap` is `ud2`, and there is `int3`): the code in the file tells.

/// SI_KERNEL: the kernel itself forced the signal (asm-generic/siginfo.h). What processes send is 0 or below.
const SI_KERNEL: i32 = 0x80;
/// TRAP_HWBKPT and above: hardware breakpoints and perf events.
const FIRST_OTHER_TRAP: i32 = 4;
const INT3: u8 = 0xcc;
/// The instructions that are never valid: ud2, ud1, ud0.
const UNDEFINED: [[u8; 2]; 3] = [[0x0f, 0x0b], [0x0f, 0xb9], [0x0f, 0xff]];

/// Where a process was when the signal came: of SIGTRAP, the breakpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Code of a file.
    File {
        /// What the file has there.
        bytes: Vec<u8>,
        /// The function whose probe is there.
        probe: Option<String>,
    },
    /// Code in anonymous memory.
    Anonymous,
    /// The page where the kernel carries out instructions that have probes, and where calls with return probes return to.
    Probes,
    /// Not known.
    Unknown,
}

/// What the kernel said of the signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// `si_code`.
    pub code: i32,
    /// Where.
    pub place: Place,
}

/// What is seen of a death by `signal` that tracing has probably caused: a clause. `None` for any other death.
pub fn judge(signal: i32, word: Option<&Word>) -> Option<String> {
    let seen = match (signal, word) {
        (libc::SIGTRAP | libc::SIGILL, None) => "nothing is known of where it was",
        (_, None) => return None,
        // Another process, or the program itself by raise(3), has sent it.
        (_, Some(word)) if word.code <= 0 => return None,
        (libc::SIGTRAP, Some(word)) => return trap(word),
        (libc::SIGILL, Some(word)) => illegal(word)?,
        (libc::SIGSEGV, Some(Word { place: Place::Probes, .. })) => {
            "in the kernel's page of probed instructions"
        }
        _ => return None,
    };
    Some(seen.to_owned())
}

fn trap(word: &Word) -> Option<String> {
    if (FIRST_OTHER_TRAP..SI_KERNEL).contains(&word.code) {
        return None;
    }
    match &word.place {
        Place::File { bytes, .. } if bytes.first() == Some(&INT3) => None,
        Place::File { probe: Some(function), .. } => {
            Some(format!("at the breakpoint of {function}, in code that was copied or moved with it"))
        }
        Place::File { .. } => Some("at a breakpoint that its file does not have".to_owned()),
        Place::Anonymous => {
            Some("at a breakpoint in code that lies in no file: it was copied there".to_owned())
        }
        Place::Probes => Some("in the kernel's page of probed instructions".to_owned()),
        Place::Unknown => Some("at a breakpoint; where is not known".to_owned()),
    }
}

fn illegal(word: &Word) -> Option<&'static str> {
    match &word.place {
        Place::File { bytes, .. } if UNDEFINED.iter().any(|undefined| bytes.starts_with(undefined)) => None,
        _ if word.code == SI_KERNEL => {
            Some("a call with a return probe returned where the kernel did not expect it")
        }
        Place::Probes => Some("in the kernel's page of probed instructions"),
        Place::File { probe: Some(_), .. } => Some("at a probed instruction"),
        Place::File { .. } | Place::Anonymous | Place::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8], probe: Option<&str>) -> Place {
        Place::File { bytes: bytes.to_vec(), probe: probe.map(str::to_owned) }
    }

    fn judged(signal: i32, code: i32, place: Place) -> Option<String> {
        judge(signal, Some(&Word { code, place }))
    }

    #[test]
    fn a_breakpoint_where_the_file_has_none_is_tracings() {
        let seen = judged(libc::SIGTRAP, SI_KERNEL, file(&[0x55], Some("malloc"))).unwrap();
        assert!(seen.contains("malloc"), "{seen}");
        assert!(judged(libc::SIGTRAP, SI_KERNEL, file(&[0x55], None)).is_some());
        assert!(judged(libc::SIGTRAP, SI_KERNEL, Place::Anonymous).is_some());
        assert!(judged(libc::SIGTRAP, SI_KERNEL, Place::Unknown).is_some());
    }

    #[test]
    fn what_a_program_does_to_itself_is_not() {
        assert_eq!(judged(libc::SIGTRAP, SI_KERNEL, file(&[INT3], None)), None);
        assert_eq!(judged(libc::SIGILL, 2, file(&[0x0f, 0x0b], None)), None);
        assert_eq!(judged(libc::SIGILL, 2, file(&[0x62, 0xf1], None)), None, "an instruction this CPU lacks");
        for signal in [libc::SIGTRAP, libc::SIGILL, libc::SIGSEGV] {
            for code in [0, -6] {
                assert_eq!(judged(signal, code, Place::Unknown), None, "signal {signal} sent with {code}");
            }
        }
        assert_eq!(judged(libc::SIGTRAP, 4, Place::Unknown), None, "a hardware breakpoint");
        assert_eq!(judged(libc::SIGSEGV, 1, file(&[0x48, 0x8b], Some("free"))), None);
        assert_eq!(judge(libc::SIGSEGV, None), None);
        assert_eq!(judge(libc::SIGKILL, None), None);
    }

    #[test]
    fn the_kernels_own_sigill_is_that_of_a_lost_return() {
        assert!(judged(libc::SIGILL, SI_KERNEL, Place::Unknown).is_some());
        assert!(judged(libc::SIGILL, SI_KERNEL, file(&[0xc3], None)).is_some());
        assert!(judged(libc::SIGILL, 2, Place::Probes).is_some());
    }

    #[test]
    fn where_nothing_was_said_of_the_signal_a_trap_is_suspected() {
        assert!(judge(libc::SIGTRAP, None).is_some());
        assert!(judge(libc::SIGILL, None).is_some());
        assert!(judged(libc::SIGSEGV, 1, Place::Probes).is_some());
    }
}
