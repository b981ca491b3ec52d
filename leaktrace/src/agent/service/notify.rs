//! Tells systemd how the service is: ready, reloading, stopping, alive. Without systemd nothing happens.
//! See sd_notify(3).
use std::{
    cell::RefCell,
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// How long a manager that does not read is waited for; nothing may hold up tracing for longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket of the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// What it was told last of the state.
    status: RefCell<String>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// By the environment.
    pub fn new() -> Notifier {
        let address = env::var("NOTIFY_SOCKET").ok().and_then(|name| address(&name));
        let socket = address.and_then(|address| Some((socket().ok()?, address)));
        let is_ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid.parse() == Ok(std::process::id()));
        let watchdog = env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|usec: &u64| is_ours && *usec > 0)
            .map(Duration::from_micros);
        Notifier { socket, watchdog, ..Notifier::default() }
    }

    /// How often [`Notifier::alive`] is due, where a watchdog waits for it.
    pub fn period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The service works.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The loop is alive.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.mention("WATCHDOG=1");
        }
    }

    /// A new configuration is being read; [`Notifier::ready`] follows.
    pub fn reloading(&self) {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for a time; the clock always exists.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        let usec = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`, where it is news.
    pub fn status(&self, text: &str) {
        if self.status.replace(text.to_owned()) != text {
            self.mention(&format!("STATUS={}", text.replace(['\n', '\0'], " ")));
        }
    }

    /// What is said again soon is not waited for.
    fn mention(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && socket.set_nonblocking(true).is_ok()
        {
            let _ = socket.send_to_addr(text.as_bytes(), address);
            let _ = socket.set_nonblocking(false);
        }
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // The manager may be restarting; the next message reaches it.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

fn socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn address(name: &str) -> Option<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).ok(),
        None => SocketAddr::from_pathname(name).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_the_manager() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier {
            socket: Some((socket().unwrap(), address(path.to_str().unwrap()).unwrap())),
            watchdog: Some(Duration::from_secs(10)),
            ..Notifier::default()
        };
        assert_eq!(notifier.period(), Some(Duration::from_secs(5)));
        let hear = || {
            let mut bytes = [0; 200];
            let length = manager.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        notifier.ready();
        assert_eq!(hear(), "READY=1");
        notifier.reloading();
        assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        notifier.status("two\nlines");
        notifier.status("two\nlines");
        notifier.alive();
        assert_eq!(hear(), "STATUS=two lines");
        assert_eq!(hear(), "WATCHDOG=1");
        Notifier::default().ready();
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let (socket, address) = (socket().unwrap(), address(path.to_str().unwrap()).unwrap());
        let notifier = Notifier {
            socket: Some((socket, address)),
            watchdog: Some(Duration::from_secs(1)),
            ..Notifier::default()
        };
        (0..10_000).for_each(|_| notifier.alive());
        notifier.stopping();
    }
}
