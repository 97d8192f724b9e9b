//! The console's address: TLS with a certificate of the trust domain's own issuer, within bounds.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use countersign_tls::{Clients, Inbound, Trust, accept};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::console::guests::{Guest, Guests};
use crate::console::{Console, live, record, routes};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may take to send a request's head, and an idle connection may last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last over which no request of a session came.
const GUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one may last over which one did. A page that watches opens the next by itself.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often the other end of an idle connection is asked whether it is there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
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
        let router = routes::router(Arc::clone(&self.console));
        let guests = Guests::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(live::look(Arc::clone(&self.console), stop.clone()));
        // It ends after all connections: until then sessions begin and end.
        let (mut keeping, last) = (JoinSet::new(), CancellationToken::new());
        keeping.spawn(record::keep(Arc::clone(&self.console), last.clone()));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_ended) = tasks.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, address)) => {
                    let now = self.console.at.entrance.now();
                    let Some(guest) = guests.enter(address.ip(), now) else { continue };
                    let trust = Arc::clone(&self.trust);
                    tasks.spawn(converse(tcp, guest, trust, router.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection for the console");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        while tasks.join_next().await.is_some() {}
        last.cancel();
        while keeping.join_next().await.is_some() {}
    }
}

/// Once this connection has to end, whatever it does: true when it is told to go, false when it is cut.
async fn over(guest: &Guest) -> bool {
    tokio::select! {
        () = guest.gives_way() => return false,
        () = tokio::time::sleep(GUEST_TIMEOUT) => return false,
        () = guest.is_welcome() => {}
    }
    tokio::time::sleep(CONNECTION_TIMEOUT).await;
    true
}

async fn converse(
    tcp: TcpStream,
    guest: Arc<Guest>,
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
        () = guest.gives_way() => return,
        established = accept(&trust, tcp, &inbound) => established,
    };
    let stream = match established {
        Ok(established) => established.stream,
        Err(failure) => {
            tracing::debug!(code = %failure.code, "a handshake with the console failed");
            return;
        }
    };
    let service = of_guest(router, Arc::clone(&guest));
    let builder = builder();
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection with the console ended");
            }
            return;
        }
        () = stop.cancelled() => {}
        stays = over(&guest) => if !stays { return },
    }
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(GOAWAY_GRACE, connection).await.is_err() {
        tracing::debug!("cut a connection with the console");
    }
}

/// Every request tells over which connection it came.
pub(crate) fn of_guest(
    router: axum::Router,
    guest: Arc<Guest>,
) -> impl tower::Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send {
    router.map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&guest));
        request
    })
}

pub(crate) fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    builder
}
