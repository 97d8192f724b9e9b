//! The inbound side: peers come in over mutual TLS, and go on to the program.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use countersign_identity::{Code, Name, SpiffeId};
use countersign_tls::{
    Admitted, Direction, Established, Expired, HandshakeFact, Inbound, REPROOF_ALPN, Stream,
};
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::bounds::{CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, HANDSHAKE_TIMEOUT};
use crate::dial::{Want, protocols, spoken};
use crate::facts::blank_fact;
use crate::handshakes::{Entry, Handshakes};
use crate::headers::peer_value;
use crate::listener::{Arrived, Listener};
use crate::metrics::{Meter, Open};
use crate::plane::Plane;
use crate::problem::problem;
use crate::relay::Relay;
use crate::retire::announced;
use crate::route::Route;
use crate::session::{Patience, Session, Spoken, serve};
use crate::shares::Shares;
use crate::tunnel;
use crate::wire::{Kind, Wire};

/// One service's door.
pub(crate) struct Door {
    plane: Arc<Plane>,
    service: Name,
    route: Arc<ArcSwap<Route>>,
    expired: Arc<ArcSwap<Expired>>,
    meter: Meter,
    places: Arc<Semaphore>,
    shares: Shares<SpiffeId>,
    under_way: Mutex<UnderWay>,
    stop: CancellationToken,
    inside: mpsc::Sender<Infallible>,
}

#[derive(Default)]
struct UnderWay {
    handshakes: Handshakes,
    /// How to end each of them.
    ends: HashMap<u64, CancellationToken>,
}

/// What lives as long as a connection, upgraded or not.
type Place = (OwnedSemaphorePermit, Open, mpsc::Sender<Infallible>);

impl Door {
    pub(crate) fn new(
        plane: &Arc<Plane>,
        service: Name,
        (route, expired): (Arc<ArcSwap<Route>>, Arc<ArcSwap<Expired>>),
        (stop, inside): (CancellationToken, mpsc::Sender<Infallible>),
    ) -> Arc<Self> {
        Arc::new(Self {
            plane: plane.clone(),
            meter: plane.metrics.meter(service.as_str(), Direction::Inbound),
            service,
            route,
            expired,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            shares: Shares::new(),
            under_way: Mutex::default(),
            stop,
            inside,
        })
    }

    /// Lets peers in until stopped, those included who had connected by then.
    pub(crate) async fn run(self: Arc<Self>, listener: Listener) {
        loop {
            let arrived = tokio::select! {
                () = self.stop.cancelled() => break,
                arrived = listener.accept() => arrived,
            };
            self.admit(arrived);
        }
        for arrived in listener.into_waiting() {
            self.admit(arrived);
        }
    }

    fn admit(self: &Arc<Self>, arrived: Arrived) {
        let Arrived::Tcp(tcp, from) = arrived else { return };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return self.turn_away(from, "the limit on connections of this door is reached");
        };
        let end = CancellationToken::new();
        let Some(id) = self.enter(from, &end) else {
            return self.turn_away(from, "too many handshakes are under way");
        };
        let place = (place, self.meter.open(), self.inside.clone());
        let door = self.clone();
        self.plane.tasks.start(async move {
            if let Some(stream) = door.shake(tcp, from, (id, end)).await {
                door.serve(stream, from, place).await;
            }
        });
    }

    /// The handshake, unless it must give way to another.
    async fn shake(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
        (id, end): (u64, CancellationToken),
    ) -> Option<Stream> {
        let mut inbound = Inbound::service(self.service.clone());
        inbound.timeout = HANDSHAKE_TIMEOUT;
        inbound.expired = **self.expired.load();
        inbound.alpn = match &**self.route.load() {
            Route::Requests(_) => protocols(Want::AnyHttp),
            Route::Bytes(_) => protocols(Want::Raw),
        };
        inbound.alpn.push(REPROOF_ALPN.to_vec());
        keep_alive(&tcp);
        let _leaves = Leaves { door: self, id };
        let shaken = tokio::select! {
            shaken = countersign_tls::accept(&self.plane.trust, tcp, &inbound) => shaken,
            () = end.cancelled() => {
                self.turn_away(from, "it gave way to another handshake, being slow");
                return None;
            }
        };
        match shaken {
            Ok(Established { stream, fact }) => {
                self.plane.facts.report(fact);
                Some(stream)
            }
            Err(failure) => {
                self.plane.facts.report(*failure.fact);
                None
            }
        }
    }

    async fn serve(&self, stream: Stream, from: SocketAddr, place: Place) {
        let admitted = stream.admitted().clone();
        let Some(id) = admitted.peer().map(|peer| peer.id.clone()) else { return };
        if stream.alpn() == Some(REPROOF_ALPN) {
            match countersign_tls::answer_reproof(&self.plane.trust, stream).await {
                Ok(proven) => tracing::debug!(peer = %id, proven, "connections were re-proven"),
                Err(fault) => tracing::info!(peer = %id, %fault, "a re-proof came to nothing"),
            }
            return;
        }
        let Some(share) = self.shares.take(&id, CONNECTIONS_PER_PEER_MAX) else {
            return self.turn_away(from, "the limit on connections of this peer is reached");
        };
        let Some(peer) = peer_value(&id) else { return };
        let ends = admitted.expires().min(admitted.presented_ends());
        let alarm = self.plane.alarms.at(announced(admitted.opened(), ends));
        let spoken = spoken(stream.alpn());
        let wire = Wire::new(Kind::Mutual(Box::new(stream)), (place, share));
        let route = self.route.load_full();
        match &*route {
            Route::Requests(_) => {
                let relay = Relay {
                    plane: self.plane.clone(),
                    route: self.route.clone(),
                    meter: self.meter.clone(),
                    peer: Some(peer),
                };
                let retires = admitted.retires();
                let announce = async {
                    tokio::select! {
                        () = alarm => {}
                        () = self.stop.cancelled() => {}
                        _revoked = retires => {}
                    }
                };
                drop(route);
                let how = (spoken, Patience::Peer);
                answer(wire, how, (relay, Some(admitted)), announce).await;
            }
            Route::Bytes(upstream) => {
                let upstream = upstream.clone();
                drop(route);
                join(wire, &upstream, &self.meter).await;
            }
        }
    }

    fn enter(&self, from: SocketAddr, end: &CancellationToken) -> Option<u64> {
        let now = self.plane.clock.now();
        let mut under_way = self.under_way();
        let id = match under_way.handshakes.enter(from.ip(), now) {
            Entry::Place(id) => id,
            Entry::InPlaceOf(id, other) => {
                if let Some(end) = under_way.ends.remove(&other) {
                    end.cancel();
                }
                id
            }
            Entry::Full => return None,
        };
        under_way.ends.insert(id, end.clone());
        Some(id)
    }

    fn turn_away(&self, from: SocketAddr, why: &str) {
        let fact = HandshakeFact {
            code: Some(Code::TooManyConnections),
            detail: why.to_owned(),
            ..self.fact(from)
        };
        self.plane.metrics.refused(self.service.as_str(), Code::TooManyConnections.as_str());
        self.plane.facts.report(fact);
    }

    fn fact(&self, from: SocketAddr) -> HandshakeFact {
        blank_fact(&self.plane, Direction::Inbound, &self.service, Some(from))
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake that is over, however it ended.
struct Leaves<'a> {
    door: &'a Door,
    id: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let mut under_way = self.door.under_way();
        under_way.handshakes.leave(self.id);
        under_way.ends.remove(&self.id);
    }
}

/// Answers the requests of one connection, for as long as new ones may begin on it: always, when it is of the program
/// of our own side.
pub(crate) async fn answer<K: Unpin + Send + 'static>(
    wire: Wire<K>,
    how: (Spoken, Patience),
    (relay, admitted): (Relay, Option<Admitted>),
    announce: impl Future<Output = ()>,
) {
    let session = Session::new();
    let tasks = relay.plane.tasks.clone();
    let shared = Arc::new((relay, admitted, session.clone()));
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let (relay, admitted, session) = &*shared;
            if admitted.as_ref().is_some_and(|admitted| !admitted.takes_more()) {
                return unread(request.version());
            }
            let response: Response<Body> = relay.answer(request, session).await;
            Ok(response)
        }
    });
    serve(wire, how, service, session, (announce, &tasks)).await;
}

/// A request that came after its connection retired. The peer is told in a way that lets it send the request again over
/// another connection, whatever it asks for: nobody has read it (RFC 9113, 8.7; RFC 9110, 15.5.20).
fn unread(version: Version) -> Result<Response<Body>, h2::Error> {
    if version == Version::HTTP_2 {
        return Err(h2::Reason::REFUSED_STREAM.into());
    }
    let mut response = problem(Code::Revoked, "the connection takes no requests any more");
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

/// Joins a connection with one to `upstream`, for as long as both live.
pub(crate) async fn join<K: Unpin>(
    wire: Wire<K>,
    upstream: &crate::upstream::Upstream,
    meter: &Meter,
) {
    match upstream.connect().await {
        Ok(far) => {
            meter.tunnel();
            if let Err(error) = tunnel::join(wire, far).await {
                tracing::debug!(%error, "a joined connection broke");
            }
        }
        // There is no way to say why on a plain byte stream: it ends.
        Err(failed) => {
            tracing::info!(code = %failed.code, detail = %failed.detail, "nothing to join with");
        }
    }
}

/// So that the kernel notices a peer that vanished without a word.
fn keep_alive(tcp: &TcpStream) {
    let socket = socket2::SockRef::from(tcp);
    let probes = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(30))
        .with_interval(std::time::Duration::from_secs(10))
        .with_retries(3);
    if let Err(error) = socket.set_tcp_keepalive(&probes) {
        tracing::debug!(%error, "no keep-alive probes on this connection");
    }
}
