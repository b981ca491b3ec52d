//! What a kernel says on its console when it has come to harm. Pure.

/// Each of these is a failure, whatever the scenarios say.
const HARM: &[&str] = &[
    "BUG:",
    "kernel BUG at",
    "Oops",
    "WARNING:",
    "Kernel panic",
    "Call Trace",
    "general protection fault",
    "unable to handle",
    "detected stall",
    "self-detected stall",
    "detected expedited stalls",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "scheduling while atomic",
    "sleeping function called",
    "refcount_t:",
    "double fault",
    "invalid opcode",
    "list_add corruption",
    "list_del corruption",
    "Out of memory:",
];

/// Lines that contain one of the words and are no harm to the kernel.
const HARMLESS: &[&str] = &[
    // A user program's own fault.
    "traps: ",
];

/// How much of the console is shown with a failure.
const TAIL_LINES: usize = 60;

/// The first line that tells of harm.
pub(super) fn harm(console: &str) -> Option<&str> {
    console
        .lines()
        .find(|line| {
            HARM.iter().any(|word| line.contains(word)) && !HARMLESS.iter().any(|word| line.contains(word))
        })
        .map(str::trim)
}

/// The console from shortly before the harm, or its end.
pub(super) fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let first = harm(console).and_then(|harm| lines.iter().position(|line| line.trim() == harm));
    let start = match first {
        Some(first) => first.saturating_sub(3),
        None => lines.len().saturating_sub(TAIL_LINES),
    };
    let shown: Vec<&str> = lines.into_iter().skip(start).take(TAIL_LINES).map(str::trim_end).collect();
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harm_is_found_and_a_programs_own_fault_is_not() {
        assert_eq!(harm("[ 1.0] all is well\n"), None);
        assert_eq!(
            harm("a\n[ 2.0] BUG: kernel NULL pointer dereference\r\n"),
            Some("[ 2.0] BUG: kernel NULL pointer dereference")
        );
        assert_eq!(harm("[ 2.0] traps: x[7] general protection fault ip:1\n"), None);
        assert!(harm("rcu: INFO: rcu_preempt self-detected stall on CPU").is_some());
        assert!(
            harm("clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable")
                .is_none()
        );
    }

    #[test]
    fn the_tail_begins_before_the_harm() {
        let mut text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        text.push_str("Oops: 0002\n");
        text.extend((0..100).map(|n| format!("after {n}\n")));
        let tail = tail(&text);
        assert!(tail.starts_with("line 97\n") && tail.contains("Oops") && tail.lines().count() == TAIL_LINES);
    }
}
