//! Asks docker and podman at their sockets for a container's name and labels: on a thread of its own, because a daemon
//! that starts a container answers only after it. Each question has a deadline and a bound; one that is not answered
//! is not asked again.
use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{
    cgroup::Runtime,
    files,
    names::{self, Names},
};

/// Questions that wait at the most; what does not fit is not asked.
const MAX_WAITING: usize = 1024;
/// How long one daemon may take for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// Sockets beneath a root.
const SOCKETS: [(Runtime, &str); 2] =
    [(Runtime::Docker, "run/docker.sock"), (Runtime::Podman, "run/podman/podman.sock")];

/// What a daemon answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// Which one.
    pub(super) runtime: Runtime,
    /// What it knows.
    pub(super) names: Names,
}

/// The thread that asks.
#[derive(Debug)]
pub(super) struct Asker {
    questions: SyncSender<(String, Runtime)>,
    answers: Receiver<(String, Answer)>,
    bell: Arc<OwnedFd>,
    /// Questions that were put and are not done with.
    open: Arc<AtomicUsize>,
}

impl Asker {
    /// Starts the thread, which ends when this is dropped; none where the system has no more.
    pub(super) fn start() -> Option<Asker> {
        // SAFETY: no memory.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return None;
        }
        // SAFETY: the descriptor was made just now, for this owner.
        let bell = Arc::new(unsafe { OwnedFd::from_raw_fd(raw) });
        let (questions, asked) = sync_channel::<(String, Runtime)>(MAX_WAITING);
        let (answered, answers) = sync_channel(MAX_WAITING);
        let ringer = Arc::clone(&bell);
        let open = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&open);
        let body = move || {
            for (id, runtime) in asked {
                if let Some(answer) = ask_daemons(&id, runtime) {
                    if answered.send((id, answer)).is_err() {
                        return;
                    }
                    ring(&ringer);
                }
                done.fetch_sub(1, Ordering::Release);
            }
        };
        std::thread::Builder::new().name("container-names".to_owned()).spawn(body).ok()?;
        Some(Asker { questions, answers, bell, open })
    }

    /// Asks, unless too many questions wait.
    pub(super) fn ask(&self, id: &str, runtime: Runtime) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.questions.try_send((id.to_owned(), runtime)).is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether there are questions that may still be answered.
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// What came in.
    pub(super) fn answers(&self) -> Vec<(String, Answer)> {
        let mut counter = [0u8; 8];
        // SAFETY: reads the counter of 8 bytes, which makes the descriptor unreadable again.
        unsafe { libc::read(self.bell.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len()) };
        self.answers.try_iter().take(MAX_WAITING).collect()
    }

    /// Readable when something came in.
    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }
}

fn ring(bell: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: writes 8 bytes to add to the counter.
    unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

fn ask_daemons(id: &str, runtime: Runtime) -> Option<Answer> {
    let path = format!("/containers/{id}/json");
    for root in files::roots() {
        for (of, socket) in SOCKETS.iter().filter(|(of, _)| runtime == *of || runtime == Runtime::Unknown) {
            let answer = ask(&root.join(socket), &path);
            if let Some(names) = answer.ok().and_then(|body| names::of_docker(&body)) {
                return Some(Answer { runtime: *of, names });
            }
        }
    }
    None
}

/// One request; the body of a good answer. HTTP 1.0, so that the answer ends with the connection and has no chunks.
fn ask(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() as u64 > MAX_ANSWER_BYTES {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            count => answer.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
    body(&answer).map(<[u8]>::to_vec).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The body of an answer with status 200.
fn body(answer: &[u8]) -> Option<&[u8]> {
    let line_end = memchr::memchr(b'\n', answer)?;
    let status = std::str::from_utf8(answer.get(..line_end)?).ok()?;
    let mut words = status.split_ascii_whitespace();
    let is_good = words.next()?.starts_with("HTTP/1.") && words.next() == Some("200");
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    is_good.then(|| answer.get(end + 4..)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn answered(bytes: &'static [u8]) -> io::Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(bytes).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let answer = ask(&path, "/containers/a/json");
        assert!(server.join().unwrap().starts_with("GET /containers/a/json HTTP/1.0\r\n"));
        answer
    }

    #[test]
    fn the_body_of_a_good_answer_is_taken() {
        assert_eq!(answered(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{}").unwrap(), b"{}");
    }

    #[test]
    fn any_other_answer_is_an_error() {
        for bytes in [
            b"HTTP/1.0 404 Not Found\r\n\r\n{}".as_slice(),
            b"HTTP/1.0 200 OK\r\n",
            b"",
            b"garbage\n\r\n\r\n",
        ] {
            assert!(answered(bytes).is_err());
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(ask(Path::new("/nonexistent/socket"), "/").is_err());
    }
}
