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
use axum::{
    Router,
    http::{Response, header},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::oneshot,
};

pub mod auth;
mod deadline;
pub mod host;
mod peers;
pub mod problem;
pub mod query;
pub mod routes;
pub mod stream;

use deadline::{Deadline, WRITE_TIMEOUT};
use peers::{Peer, Peers};

use super::service::{
    config::{Http, Listen},
    state::Shared,
    values::Count,
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
    peers: Arc<Peers>,
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
    let number = |count: Count| usize::try_from(count.0).unwrap_or(usize::MAX);
    let peers = Peers::new(number(http.max_connections), number(http.max_connections_per_peer));
    Ok(Some(Listener { socket, peers }))
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
        let peers = self.peers;
        match self.socket {
            Socket::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, address)| {
                        let _ = stream.set_nodelay(true);
                        (stream, Peer::at(address.ip()))
                    });
                    connected(accepted, &router, &peers, shared).await;
                }
            }
            Socket::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| {
                        let user = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                        (stream, Peer::User(user))
                    });
                    connected(accepted, &router, &peers, shared).await;
                }
            }
        }
    }
}

/// Serves a connection in a task of its own, where there is room for one.
async fn connected<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: io::Result<(S, Peer)>,
    router: &Router,
    peers: &Arc<Peers>,
    shared: &Shared,
) {
    let (stream, peer) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            // No descriptors are left, mostly: more attempts at once would only burn the CPU.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(Duration::from_millis(200)).await;
            return;
        }
    };
    let Some((place, made_room)) = peers.enter(peer) else {
        shared.counts.add(Work::HttpConnectionsRefused);
        return;
    };
    if made_room {
        shared.counts.add(Work::HttpConnectionsRefused);
    }
    let (number, seen) = (place.number(), Arc::clone(&place.seen));
    let router = router.clone().layer(axum::middleware::map_response(move |response: Response<_>| {
        if response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream") {
            seen.is_stream();
        }
        std::future::ready(response)
    }));
    let service = TowerToHyperService::new(router);
    let stream = Deadline::new(stream, Arc::clone(&place.seen), WRITE_TIMEOUT);
    let task = tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(place);
    });
    peers.serves(number, task.abort_handle());
}
