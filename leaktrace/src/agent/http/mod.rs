//! The HTTP server: a thread and an event loop of its own, so that nothing that a client does can hold up tracing.
//! Connections, requests, their sizes and their times are bounded. What is answered is `routes`' work.
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, oneshot},
};

pub mod auth;
pub mod problem;
pub mod query;
pub mod routes;
pub mod stream;

use super::service::{
    config::{Http, Listen},
    state::Shared,
};
use crate::model::service::Work;

/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// A bound address, before anything is answered.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    max_connections: usize,
}

#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener, SocketFile),
}

/// Removes its file when it is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes the address, so that a wrong one is an error at the start; nothing where HTTP is off.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(http: &Http) -> Result<Option<Listener>> {
    if !http.enabled {
        return Ok(None);
    }
    let socket = match &http.listen {
        Listen::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address).with_context(|| {
                format!("http.listen: cannot listen on {address}: is another leaktrace agent running?")
            })?;
            listener.set_nonblocking(true)?;
            Socket::Tcp(listener)
        }
        Listen::Unix(path) => {
            let listener = listen_unix(path)
                .with_context(|| format!("http.listen: cannot listen on {}", path.display()))?;
            Socket::Unix(listener, SocketFile(path.clone()))
        }
    };
    if http.listen.is_public() {
        tracing::warn!(
            "http.listen is reachable from other hosts: everyone there can read names of programs and functions"
        );
    }
    let max_connections = usize::try_from(http.max_connections.0).unwrap_or(usize::MAX);
    Ok(Some(Listener { socket, max_connections }))
}

/// A socket that nobody answers on is left over and replaced; any other file stays.
fn listen_unix(path: &Path) -> Result<StdUnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("a file that is no socket is there");
        }
        if StdUnixStream::connect(path).is_ok() {
            bail!("another process answers there");
        }
        fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Listener {
    /// Where it listens: the port that was chosen for port 0, say.
    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".to_owned(), |address| format!("http://{address}"))
            }
            Socket::Unix(_, file) => format!("unix:{}", file.0.display()),
        }
    }

    /// Starts to answer.
    ///
    /// # Errors
    /// When there can be no thread or event loop.
    pub fn start(self, shared: Arc<Shared>) -> Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .context("starting the event loop of HTTP")?;
        let (stop, stopped) = oneshot::channel();
        tracing::info!("answering on {}", self.address());
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                let router = routes::router(shared.clone());
                let served = runtime.block_on(async {
                    tokio::select! {
                        result = self.serve(router, &shared) => result,
                        _ = stopped => Ok(()),
                    }
                });
                if let Err(error) = served {
                    tracing::error!(%error, "HTTP has ended");
                }
                // Streams that are open are cut.
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .context("starting the thread of HTTP")?;
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }

    async fn serve(self, router: Router, shared: &Shared) -> io::Result<()> {
        let permits = Arc::new(Semaphore::new(self.max_connections));
        match self.socket {
            Socket::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| {
                        let _ = stream.set_nodelay(true);
                        stream
                    });
                    connected(accepted, &router, &permits, shared).await;
                }
            }
            Socket::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    connected(accepted, &router, &permits, shared).await;
                }
            }
        }
    }
}

/// Serves a connection in a task of its own, where there is room for one.
async fn connected<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: io::Result<S>,
    router: &Router,
    permits: &Arc<Semaphore>,
    shared: &Shared,
) {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            // No descriptors are left, mostly: more attempts at once would only burn the CPU.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(Duration::from_millis(200)).await;
            return;
        }
    };
    let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
        shared.counts.add(Work::HttpConnectionsRefused);
        return;
    };
    let service = TowerToHyperService::new(router.clone());
    tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(permit);
    });
}
