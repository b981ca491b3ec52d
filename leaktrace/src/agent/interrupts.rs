//! Whether a signal that ends leaktrace has come, for those who cannot wait for the loop to see it: it is counted in the
//! signal's own handler, beside the one that the loop listens to.
use std::sync::{
    Once,
    atomic::{AtomicU32, Ordering},
};

static COUNT: AtomicU32 = AtomicU32::new(0);
static MARK: AtomicU32 = AtomicU32::new(0);

/// Forgets the signals that have come.
pub(super) fn mark() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(watch);
    MARK.store(COUNT.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Whether one has come since.
pub(super) fn since_mark() -> bool {
    COUNT.load(Ordering::Relaxed) != MARK.load(Ordering::Relaxed)
}

fn watch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the action only adds to an atomic number, which a signal handler may.
        let watched = unsafe {
            signal_hook_registry::register(signal, || {
                COUNT.fetch_add(1, Ordering::Relaxed);
            })
        };
        if let Err(error) = watched {
            tracing::warn!(signal, %error, "a signal is noticed late while names are looked up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_seen_at_once_and_until_the_next_mark() {
        mark();
        assert!(!since_mark());
        // SAFETY: no memory; the signal is caught by now.
        unsafe { libc::raise(libc::SIGHUP) };
        assert!(since_mark());
        mark();
        assert!(!since_mark());
    }
}
