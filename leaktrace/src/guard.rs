//! Calls into dependencies that may panic on what a file holds: the panic is an error, and nothing is printed.
use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

/// A message of a panic may quote the file that caused it.
const MAX_MESSAGE_CHARS: usize = 200;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives, or what it said when it panicked. State that it leaves behind is the caller's to drop.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                loud(panic);
            }
        }));
    });
    let before = IS_GUARDED.replace(true);
    let answer = panic::catch_unwind(AssertUnwindSafe(call));
    IS_GUARDED.set(before);
    answer.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic");
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(guarded(|| 7), Ok(7));
        let digit = std::hint::black_box("x");
        let error = guarded(|| digit.parse::<u8>().unwrap()).unwrap_err();
        assert!(error.contains("InvalidDigit"), "{error}");
        let long = guarded(|| -> u8 { panic!("{}", "é".repeat(1000)) }).unwrap_err();
        assert_eq!(long.chars().count(), MAX_MESSAGE_CHARS);
    }

    #[test]
    #[ignore = "it is the other process of the next test"]
    fn panics_of_both_kinds() {
        let _ = guarded(|| -> u8 { panic!("unheard") });
        let _ = guarded(|| guarded(|| 1).map(|_| -> u8 { panic!("unheard, behind a nested call") }));
        let _ = thread::spawn(|| -> u8 { panic!("heard") }).join();
    }

    #[test]
    fn nothing_is_printed_of_a_guarded_call_and_all_of_others() {
        let mut again = Command::new("/proc/self/exe");
        again.args(["--exact", "guard::tests::panics_of_both_kinds", "--ignored", "--nocapture"]);
        let said = again.output().unwrap();
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success() && text.contains("heard"), "{text}");
        assert!(!text.contains("unheard"), "{text}");
    }
}
