//! A connection whose other end must read: one that takes nothing of an answer for a while, or only drops of it, is an
//! error. How long a request may take to come is for hyper and for `http.timeout`.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::peers::Connection;

/// While an answer waits, this many bytes of it at least are taken in each [`WRITE_TIMEOUT`].
const LEAST_BYTES: usize = 16 << 10;
/// See [`LEAST_BYTES`].
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection.
#[derive(Debug)]
pub(super) struct Deadline<S> {
    stream: S,
    seen: Arc<Connection>,
    /// Runs while an answer waits.
    timer: Pin<Box<Sleep>>,
    waits: bool,
    taken_bytes: usize,
    time: Duration,
}

impl<S> Deadline<S> {
    pub(super) fn new(stream: S, seen: Arc<Connection>, time: Duration) -> Deadline<S> {
        let timer = Box::pin(sleep_until(Instant::now() + time));
        Deadline { stream, seen, timer, waits: false, taken_bytes: 0, time }
    }

    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.waits {
            self.waits = true;
            self.taken_bytes = 0;
            self.timer.as_mut().reset(Instant::now() + self.time);
        }
        self.timer.as_mut().poll(context).is_ready()
    }

    fn took(&mut self, bytes: usize, of: usize) {
        self.seen.has_taken();
        self.taken_bytes = self.taken_bytes.saturating_add(bytes);
        if bytes == of {
            self.waits = false;
        } else if self.taken_bytes >= LEAST_BYTES {
            self.taken_bytes = 0;
            self.timer.as_mut().reset(Instant::now() + self.time);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadline<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadline<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            self.took(*count, bytes.len());
        }
        // Also where drops are taken again and again.
        if (written.is_pending() || self.waits) && self.is_late(context) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not read")));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{net::UnixStream, time::sleep};

    use super::*;

    const TIME: Duration = Duration::from_millis(200);
    /// More than the kernel holds of a connection.
    const MANY: usize = 4 << 20;

    /// Writes all to somebody who takes `part` bytes after each `pause`.
    fn write(part: usize, pause: Duration) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut ours = Deadline::new(ours, Arc::default(), TIME);
            let reader = async {
                let mut part = vec![0; part];
                loop {
                    theirs.readable().await.unwrap();
                    let _ = theirs.try_read(&mut part);
                    sleep(pause).await;
                }
            };
            let writer = async {
                let bytes = vec![0; MANY];
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let count = poll_fn(|context| Pin::new(&mut ours).poll_write(context, rest)).await?;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Ok(())
            };
            tokio::select! {
                written = writer => written,
                () = reader => Ok(()),
            }
        })
    }

    #[test]
    fn an_answer_that_nobody_reads_ends_the_connection() {
        let error = write(1, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_that_is_read_by_drops_does_too() {
        let error = write(1, Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_that_is_read_slowly_but_steadily_does_not() {
        write(256 << 10, Duration::from_millis(20)).unwrap();
    }
}
