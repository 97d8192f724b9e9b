//! The agents' port: accepts, shakes hands within bounds, and serves until the caller's credential ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::renewal::EXPORTER_LABEL;
use countersign_api::standing;
use countersign_identity::{Clock, Code, TrustDomain};
use countersign_program::seldom::Seldom;
use countersign_tls::{
    Clients, Established, HandshakeFailure, Inbound, Outcome, Permit, Stream, Trust, accept,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::attest::node_of;
use crate::edge::crowd::{Crowd, Entry};
use crate::edge::standing::{Over, Standing};
use crate::edge::{NodeRoutes, Peer};
use crate::publish::SILENCE_LIMIT;
use crate::refusal::Refused;
use crate::watch::Watch;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may stay that is no agent: long enough to join or to renew.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to read a request and to begin to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
/// An agent's stream is told something more often than that, which notices whether anybody is there. The system's probes of ten
/// thousand of them, which all heard of a change at the same moment, would leave in one tick of the kernel's clock,
/// three times in a row, and those that found no room would end connections whose agents live (decision 0028).
const PROBED_AFTER: Duration = SILENCE_LIMIT.saturating_mul(2);
/// How long requests may take to end after a connection was told to go.
const PARTING_GRACE: Duration = Duration::from_secs(5);
/// How long to wait after the system refused to accept, which it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const STREAMS_MAX: u32 = 32;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
const FRAME_BYTES_MAX: u32 = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const SEND_BUFFER_BYTES_MAX: usize = 128 * 1024;
const RESETS_MAX: usize = 32;

/// What ends a connection from outside of it.
enum End {
    /// Its time is over, for this reason. It may end what is under way.
    Over(Code),
    /// Its place is another's already, so that what it still does is beyond all bounds: with a permit it may be told so.
    GaveWay(Option<Permit>),
}

/// The agents' port, listening.
pub(crate) struct Edge {
    pub(crate) listener: TcpListener,
    pub(crate) trust: Arc<Trust>,
    pub(crate) domain: TrustDomain,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) routes: NodeRoutes,
    pub(crate) watch: Arc<Watch>,
    pub(crate) drain: Duration,
}

impl Edge {
    /// Serves until stopped; then lets requests in flight end, for as long as the drain lasts.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let crowd = Crowd::new(self.clock.now());
        let mut connections = JoinSet::new();
        if let Err(error) = countersign_tls::tune_listener(&self.listener) {
            tracing::debug!(%error, "connections are told one by one how they are to be");
        }
        let shared = Arc::new(self);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = shared.listener.accept() => match accepted {
                    Ok((tcp, address)) => match crowd.enter(address.ip(), shared.clock.now()) {
                        Ok(entry) => {
                            let connection = Arc::clone(&shared).serve(tcp, address, entry, stop.clone());
                            connections.spawn(connection);
                        }
                        Err(refused) => shared.watch.turned_away(refused.code),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(shared.drain, drained).await.is_err() {
            tracing::warn!("cut connections whose requests did not end in time");
        }
    }

    async fn serve(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        entry: Entry,
        stop: CancellationToken,
    ) {
        // Each phase in a place of its own, so that a connection which stands does not hold room for its handshake.
        let established = tokio::select! {
            () = stop.cancelled() => return,
            () = entry.gives_way() => {
                entry.gave_way(self.clock.now());
                return;
            }
            established = Box::pin(self.shake_hands(tcp)) => established,
        };
        let (mut place, conduct) =
            entry.handshake(Outcome::of_handshake(&established), self.clock.now());
        let stream = match established {
            Ok(established) => {
                self.watch.handshake(&established.fact);
                established.stream
            }
            Err(failure) => {
                tracing::debug!(peer = %address, code = %failure.code, "handshake refused");
                self.watch.handshake(&failure.fact);
                return;
            }
        };
        let admitted = stream.admitted().clone();
        let Ok(exporter) = stream.export(EXPORTER_LABEL) else { return };
        let verified = admitted.peer().cloned();
        let agent = verified.as_ref().and_then(|verified| node_of(&verified.id, &self.domain));
        if let Some(agent) = agent
            && let Err(refused) = place.known(agent, self.clock.now())
        {
            self.watch.turned_away(refused.code);
            return;
        }
        let peer = Arc::new(Peer { address: address.ip(), verified, exporter, conduct });
        let _connected = self.watch.connected();
        // The register ends the connection with the caller's certificate and with its authority.
        let (ended, gives_way, partings) = (admitted.ended(), place.gives_way(), place.partings());
        let standing = stream.alpn() == Some(standing::ALPN);
        let ends = async {
            tokio::select! {
                code = ended => End::Over(code),
                () = gives_way => End::GaveWay(partings.take()),
                () = tokio::time::sleep(STRANGER_TIMEOUT), if !standing || agent.is_none() => {
                    End::Over(Code::TimedOut)
                }
            }
        };
        if !standing {
            Box::pin(self.speak(TokioIo::new(stream), peer, ends, &stop)).await;
        } else if agent.is_some() {
            Box::pin(self.stand(stream, peer, ends, &stop)).await;
        } else {
            let code = peer.verified.as_ref().map_or(Code::Unauthenticated, |_| Code::Forbidden);
            let refused = Refused::new(code, "a standing connection is for agents alone");
            let standing = Standing::new(stream, self.routes.known(), peer);
            tokio::select! {
                _end = ends => {}
                () = self.part(standing, &refused) => {}
            }
        }
        place.left(self.clock.now());
    }

    async fn shake_hands(&self, tcp: TcpStream) -> Result<Established, HandshakeFailure> {
        let inbound = Inbound {
            clients: Clients::Optional,
            alpn: vec![standing::ALPN.to_vec(), b"h2".to_vec()],
            timeout: HANDSHAKE_TIMEOUT,
            ..Inbound::control()
        };
        accept(&self.trust, tcp, &inbound).await
    }

    /// An agent's standing connection, until either side ends it or `ends` resolves.
    async fn stand(
        &self,
        stream: Stream,
        peer: Arc<Peer>,
        ends: impl Future<Output = End>,
        stop: &CancellationToken,
    ) {
        if let Err(error) = stream.probe_after(PROBED_AFTER) {
            tracing::debug!(%error, "an agent's connection broke at its beginning");
            return;
        }
        let mut standing = Standing::new(stream, self.routes.known(), peer);
        // Asked with each sign of life otherwise.
        let mut ends = Seldom::new(Box::pin(async {
            tokio::select! {
                end = ends => Some(end),
                () = stop.cancelled() => None,
            }
        }));
        let mut _parting = None;
        let over = tokio::select! {
            biased;
            ended = &mut ends => match ended {
                Some(End::Over(code)) => {
                    standing.give_up();
                    Over::Refused(Refused::new(code, code.meaning()))
                }
                Some(End::GaveWay(None)) => return,
                Some(End::GaveWay(permit)) => {
                    standing.give_up();
                    _parting = permit;
                    let code = Code::TooManyConnections;
                    Over::Refused(Refused::new(code, code.meaning()))
                }
                None => Over::Refused(Refused::new(Code::Unavailable, "the server is stopping")),
            },
            over = standing.run() => over,
        };
        if let Over::Refused(refused) = over {
            self.part(standing, &refused).await;
        }
    }

    async fn part(&self, standing: Standing<Stream>, refused: &Refused) {
        let grace = PARTING_GRACE.min(self.drain);
        match tokio::time::timeout(grace, standing.end(refused)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => tracing::debug!("cut a connection that did not end by itself"),
        }
    }

    /// HTTP/2 with one caller, until either side ends it or `ends` resolves.
    async fn speak<S>(
        &self,
        io: TokioIo<S>,
        peer: Arc<Peer>,
        ends: impl Future<Output = End>,
        stop: &CancellationToken,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let routes = self.routes.strangers();
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&peer));
            // Reading the request counts, too, so that a body which never ends does not hold its stream for ever.
            let answer = routes.clone().oneshot(request);
            async {
                tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map(|Ok(response)| response)
            }
        });
        let connection = builder().serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            end = ends => match end {
                End::Over(code) => tracing::debug!(%code, "the caller's time on this connection is over"),
                End::GaveWay(_) => {
                    tracing::debug!("cut a connection whose place somebody else needs");
                    return;
                }
            },
            () = stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        if tokio::time::timeout(PARTING_GRACE.min(self.drain), connection).await.is_err() {
            tracing::debug!("cut a connection whose requests did not end");
        }
    }
}

/// Without pings: a caller that vanished is noticed by the system's probes, and costs nothing until then.
fn builder() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX);
    builder
}
