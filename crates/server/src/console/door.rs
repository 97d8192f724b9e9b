//! The console's address: TLS with a certificate of the trust domain's own issuer, within bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_tls::{Clients, Inbound, Source, Trust, accept};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::console::{Console, routes};
use crate::views::Sources;

/// Connections at once. More wait in the kernel.
const CONNECTIONS_MAX: usize = 256;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may take to send a request's head, and an idle connection may last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last. A page that watches opens the next by itself.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long requests may take to end after a connection was told to go.
const GOAWAY_GRACE: Duration = Duration::from_secs(2);
/// The most bytes of a request's head.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 32;
/// How long to wait after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The console's address, listening.
pub(crate) struct ConsoleDoor {
    pub(crate) listener: TcpListener,
    pub(crate) trust: Arc<Trust>,
    pub(crate) console: Arc<Console>,
}

impl ConsoleDoor {
    /// Serves until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let router = routes::router(self.console);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let sources = Arc::new(Sources::default());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = enter(&self.listener, &room) => accepted,
            };
            match accepted {
                Ok((tcp, address, place)) => {
                    let Some(counted) = sources.enter(Source::of(address.ip())) else { continue };
                    let connection =
                        converse(tcp, Arc::clone(&self.trust), router.clone(), stop.clone());
                    connections.spawn(async move {
                        let _held = (place, counted);
                        connection.await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection for the console");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn enter(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    // The place first: who finds none waits in the kernel, and costs nothing.
    let place = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
    let (tcp, address) = listener.accept().await?;
    Ok((tcp, address, place))
}

async fn converse(
    tcp: TcpStream,
    trust: Arc<Trust>,
    router: axum::Router,
    stop: CancellationToken,
) {
    let inbound = Inbound {
        // A browser that is asked for a certificate asks its user.
        clients: Clients::Unasked,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        timeout: HANDSHAKE_TIMEOUT,
        ..Inbound::control()
    };
    let established = tokio::select! {
        () = stop.cancelled() => return,
        established = accept(&trust, tcp, &inbound) => established,
    };
    let stream = match established {
        Ok(established) => established.stream,
        Err(failure) => {
            tracing::debug!(code = %failure.code, "a handshake with the console failed");
            return;
        }
    };
    let builder = builder();
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection with the console ended");
            }
            return;
        }
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
    }
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(GOAWAY_GRACE, connection).await.is_err() {
        tracing::debug!("cut a connection with the console");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    builder
}
