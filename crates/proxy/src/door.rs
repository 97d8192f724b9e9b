//! The inbound side: peers come in over mutual TLS, and go on to the program.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::{Code, Name, SpiffeId};
use countersign_tls::{
    AddressOf, Admitted, Direction, Established, HandshakeFact, Inbound, LastingCall, Leave, Limit,
    Outcome, Permit, REPROOF_ALPN, Source, Stay, Stream,
};
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::service::service_fn;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::body::{Arriving, Body};
use crate::bounds::{HANDSHAKE_TIMEOUT, PROXY_HEADER_TIMEOUT, WAITING_MAX};
use crate::dial::{Dialled, Want, protocols, spoken};
use crate::facts::blank_fact;
use crate::guard::Guard;
use crate::headers::{Told, client_certificate, peer_value};
use crate::listener::{Arrived, Listener};
use crate::metrics::{Meter, Open};
use crate::plan::{Manners, Preface};
use crate::plane::Plane;
use crate::problem::problem;
use crate::proxy_protocol;
use crate::relay::Relay;
use crate::retire::announced;
use crate::route::Route;
use crate::session::{Patience, Session, Spoken, serve};
use crate::shares::{Share, Shares};
use crate::tunnel;
use crate::wire::{Kind, Wire};

/// One service's door.
pub(crate) struct Door {
    plane: Arc<Plane>,
    service: Name,
    route: Arc<ArcSwap<Route>>,
    manners: Arc<ArcSwap<Manners>>,
    meter: Meter,
    places: Limit,
    shares: Shares<SpiffeId>,
    /// Of those that only prove others anew, so that whoever has as many as it may have can keep them.
    proofs: Shares<SpiffeId>,
    stop: CancellationToken,
    inside: mpsc::Sender<Infallible>,
}

/// What lives as long as a connection, upgraded or not.
type Place = (Permit, Open, mpsc::Sender<Infallible>);

impl Door {
    pub(crate) fn new(
        plane: &Arc<Plane>,
        service: Name,
        (route, manners): (Arc<ArcSwap<Route>>, Arc<ArcSwap<Manners>>),
        (stop, inside): (CancellationToken, mpsc::Sender<Infallible>),
    ) -> Arc<Self> {
        Arc::new(Self {
            plane: plane.clone(),
            meter: plane.metrics.meter(service.as_str(), Direction::Inbound),
            service,
            route,
            places: Limit::new(manners.load().connections.all),
            manners,
            shares: Shares::new(),
            proofs: Shares::new(),
            stop,
            inside,
        })
    }

    /// Lets peers in until stopped, those included who had connected by then.
    pub(crate) async fn run(self: Arc<Self>, listeners: Vec<Listener>) {
        // All of them are emptied at once.
        let each = WAITING_MAX.div_ceil(listeners.len().max(1));
        // Ended with this task, should it be cut.
        let mut accepting = JoinSet::new();
        for listener in listeners {
            listener.tune_for_peers();
            let door = self.clone();
            accepting.spawn(async move {
                door.accept(&listener).await;
                listener
            });
        }
        // A door that is open by half would tell nobody: this fails with the first of them that does.
        for listener in accepting.join_all().await {
            for arrived in listener.into_waiting(each) {
                self.admit(arrived);
            }
        }
    }

    async fn accept(self: &Arc<Self>, listener: &Listener) {
        loop {
            let arrived = tokio::select! {
                () = self.stop.cancelled() => return,
                arrived = listener.accept() => arrived,
            };
            self.admit(arrived);
        }
    }

    fn admit(self: &Arc<Self>, arrived: Arrived) {
        let Arrived::Tcp(tcp, from) = arrived else { return };
        let Some(place) = self.places.take() else {
            let why = "the limit on connections of this door is reached";
            return self.turn_away(from, Code::TooManyConnections, why);
        };
        let place = (place, self.meter.open(), self.inside.clone());
        let manners = self.manners.load_full();
        if manners.balancers.is_empty() {
            return self.receive(tcp, (from, AddressOf::Peer), place);
        }
        if !manners.balancers.iter().any(|network| network.contains(from.ip())) {
            let why = "the door is open to its load balancers only, and this is none of them";
            return self.turn_away(from, Code::Forbidden, why);
        }
        let door = self.clone();
        self.plane.tasks.start(async move {
            let mut tcp = tcp;
            match door.introduced(&mut tcp, from).await {
                Ok(comes) => door.receive(tcp, comes, place),
                Err(Some(why)) => door.turn_away(from, Code::NotUnderstood, &why),
                Err(None) => {}
            }
        });
    }

    /// For whom a load balancer connects; for nobody, without a reason, when it looked whether we live and says no more.
    async fn introduced(
        &self,
        tcp: &mut TcpStream,
        balancer: SocketAddr,
    ) -> Result<(SocketAddr, AddressOf), Option<String>> {
        let read = tokio::time::timeout(PROXY_HEADER_TIMEOUT, proxy_protocol::read(tcp));
        match read.await {
            Ok(Ok(proxy_protocol::Told::From(from))) => Ok((from, AddressOf::Peer)),
            // Policies are not told that the peer were where the load balancer is.
            Ok(Ok(proxy_protocol::Told::Somebody)) => Ok((balancer, AddressOf::Relay)),
            // A check of its own may be a whole handshake, and is answered as one. One that ends here has failed at nothing.
            Ok(Ok(proxy_protocol::Told::Itself)) => {
                let mut first = [0];
                let begins = tcp.peek(&mut first);
                match tokio::time::timeout(PROXY_HEADER_TIMEOUT, begins).await {
                    Ok(Ok(1..)) => Ok((balancer, AddressOf::Relay)),
                    Ok(Ok(0) | Err(_)) | Err(_) => Err(None),
                }
            }
            Ok(Err(fault)) => Err(Some(fault.to_string())),
            Err(_elapsed) => Err(Some(format!("no header came within {PROXY_HEADER_TIMEOUT:?}"))),
        }
    }

    /// Lets a peer try, within what its source may have and what there is room for. Nothing of it is read before.
    fn receive(
        self: &Arc<Self>,
        tcp: TcpStream,
        (from, of): (SocketAddr, AddressOf),
        place: Place,
    ) {
        let (source, now) = (Source::of(from.ip()), self.plane.clock.now());
        let begun = self.plane.standings.begin(source, now);
        let leave = match begun {
            Ok(leave) => leave,
            Err(refused) => return self.turn_away(from, refused.code, &refused.why),
        };
        let Some(stay) = self.plane.under_way.enter(source, leave.rank(), now) else {
            self.ended(leave, Outcome::Nothing);
            let why = "too many handshakes are under way";
            return self.turn_away(from, Code::TooManyConnections, why);
        };
        let door = self.clone();
        self.plane.tasks.start(async move {
            // Boxed, and gone when it is over: a handshake needs several times what a connection does afterwards.
            let shaken = Box::pin(door.shake(tcp, (from, of), (stay, leave))).await;
            if let Some((stream, share)) = shaken {
                door.serve((stream, share), from, place).await;
            }
        });
    }

    /// The handshake, unless it must give way to another; with a place among those of the peer.
    async fn shake(
        &self,
        tcp: TcpStream,
        (from, of): (SocketAddr, AddressOf),
        (stay, leave): (Stay<Source>, Leave),
    ) -> Option<(Stream, Share<SpiffeId>)> {
        let mut inbound = Inbound::service(self.service.clone());
        inbound.timeout = HANDSHAKE_TIMEOUT;
        inbound.peer_address = Some(from);
        inbound.address_of = of;
        inbound.expired = self.manners.load().expired;
        inbound.alpn = match &**self.route.load() {
            Route::Requests(_) => protocols(Want::AnyHttp),
            Route::Bytes(_) => protocols(Want::Raw),
        };
        inbound.alpn.push(REPROOF_ALPN.to_vec());
        let shaken = tokio::select! {
            shaken = countersign_tls::accept(&self.plane.trust, tcp, &inbound) => shaken,
            () = stay.give_way().cancelled() => {
                let why = if stay.is_slow(self.plane.clock.now()) {
                    self.ended(leave, Outcome::Failed);
                    "it gave way to another handshake, being slow"
                } else {
                    // Untold: nothing is held against it, and a crowd that gives way to itself gets nothing back.
                    "it gave way to another handshake, of which there are too many"
                };
                self.turn_away(from, Code::TooManyConnections, why);
                return None;
            }
        };
        let outcome = Outcome::of_handshake(&shaken);
        let Established { stream, fact } = match shaken {
            Ok(established) => established,
            Err(failure) => {
                self.ended(leave, outcome);
                self.plane.facts.report(*failure.fact);
                return None;
            }
        };
        self.plane.facts.report(fact);
        let id = stream.admitted().peer().map(|peer| peer.id.clone())?;
        let proves = stream.alpn() == Some(REPROOF_ALPN);
        let shares = if proves { &self.proofs } else { &self.shares };
        let Some(share) = shares.take(&id, self.manners.load().connections.each) else {
            self.ended(leave, Outcome::OverShare);
            let why = "the limit on connections of this peer is reached";
            self.turn_away(from, Code::TooManyConnections, why);
            return None;
        };
        self.ended(leave, outcome);
        Some((stream, share))
    }

    /// Goes on with an admitted peer. Each way is boxed: every step has a place for whatever it is given, and an idle connection
    /// keeps all of them.
    async fn serve(
        &self,
        (stream, share): (Stream, Share<SpiffeId>),
        from: SocketAddr,
        place: Place,
    ) {
        let admitted = stream.admitted().clone();
        let Some(id) = admitted.peer().map(|peer| peer.id.clone()) else { return };
        if stream.alpn() == Some(REPROOF_ALPN) {
            let answering = countersign_tls::answer_reproof(&self.plane.trust, stream);
            match Box::pin(answering).await {
                Ok(proven) => tracing::debug!(peer = %id, proven, "connections were re-proven"),
                Err(fault) => tracing::info!(peer = %id, %fault, "a re-proof came to nothing"),
            }
            return;
        }
        let route = self.route.load_full();
        match &*route {
            Route::Requests(_) => {
                drop(route);
                let Some(relay) = self.relay(&stream, share.requests().clone()) else { return };
                let ends = admitted.expires().min(admitted.presented_ends());
                let alarm = self.plane.alarms.at(announced(admitted.opened(), ends));
                let retires = admitted.retires();
                let announce = async {
                    tokio::select! {
                        () = alarm => {}
                        () = self.stop.cancelled() => {}
                        _revoked = retires => {}
                    }
                };
                let how = (spoken(stream.alpn()), Patience::Peer);
                let wire = Wire::new(Kind::Mutual(stream), (place, share));
                let came = admitted.clone();
                let answered = answer(wire, how, (relay, Some(admitted)), announce);
                tunnel::until_cut(Some(&came), answered).await;
            }
            Route::Bytes(upstream) => {
                let upstream = upstream.clone();
                drop(route);
                let preface = match self.manners.load().preface {
                    Preface::Nothing => Vec::new(),
                    Preface::Address => {
                        // Without it, what the caller sends first would be taken for it.
                        let Ok(door) = stream.local_address() else { return };
                        proxy_protocol::header(from, door, id.as_str())
                    }
                };
                // Should the service come to decide on requests: this is none.
                let bytes = LastingCall { service: self.service.clone(), verb: None, path: None };
                if !self.plane.trust.is_now(&admitted, &bytes) {
                    return;
                }
                let wire = Wire::new(Kind::Mutual(stream), (place, share));
                let joined = Box::pin(join(wire, &upstream, (&self.meter, preface)));
                tunnel::until_cut(Some(&admitted), joined).await;
            }
        }
    }

    /// What answers the requests that come over a connection.
    fn relay(&self, stream: &Stream, requests: Limit) -> Option<Relay> {
        let admitted = stream.admitted().clone();
        let peer = peer_value(&admitted.peer()?.id)?;
        let told = self.manners.load().told;
        let chain = if told == Told::Chain { stream.peer_chain() } else { String::new() };
        let certificate = client_certificate(told, &admitted, &chain);
        Some(Relay {
            plane: self.plane.clone(),
            route: self.route.clone(),
            meter: self.meter.clone(),
            peer: Some(peer),
            certificate,
            requests: Some(requests),
            guard: Some(Guard { service: self.service.clone(), admitted }),
            service: self.service.clone(),
        })
    }

    fn ended(&self, leave: Leave, outcome: Outcome) {
        self.plane.standings.ended(leave, outcome, self.plane.clock.now());
    }

    fn turn_away(&self, from: SocketAddr, code: Code, why: &str) {
        let fact = HandshakeFact { code: Some(code), detail: why.to_owned(), ..self.fact(from) };
        self.plane.metrics.refused(self.service.as_str(), code.as_str());
        self.plane.facts.report(fact);
    }

    fn fact(&self, from: SocketAddr) -> HandshakeFact {
        blank_fact(&self.plane, Direction::Inbound, &self.service, Some(from))
    }
}

/// Answers the requests of one connection, for as long as new ones may begin on it: always, when it is of the program
/// of our own side.
pub(crate) fn answer<'a, K: Unpin + Send + 'static>(
    wire: Wire<K>,
    how: (Spoken, Patience),
    (relay, admitted): (Relay, Option<Admitted>),
    announce: impl Future<Output = ()> + Send + 'a,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    let session = Session::new();
    let tasks = relay.plane.tasks.clone();
    let shared = Arc::new((relay, admitted, session.clone()));
    let service = service_fn(move |request: Request<Arriving>| {
        let shared = shared.clone();
        let (relay, admitted, session) = &*shared;
        let version = request.version();
        let taken = admitted.as_ref().is_none_or(Admitted::takes_more);
        let begun = taken.then(|| relay.begin(request, session));
        // Boxed, since hyper keeps room for one of them on each connection, also while that is idle.
        Box::pin(async move {
            let (relay, _, session) = &*shared;
            match begun {
                Some(begun) => Ok(relay.finish(begun, session).await),
                None => unread(version),
            }
        })
    });
    serve(wire, how, service, session, (announce, &tasks))
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

/// Joins a connection with one to `upstream`, for as long as both live. The other one begins with the preface, if there is one.
pub(crate) async fn join<K: Unpin>(
    wire: Wire<K>,
    upstream: &crate::upstream::Upstream,
    (meter, preface): (&Meter, Vec<u8>),
) {
    // Boxed, and gone when there is a connection: what is joined lives long.
    match Box::pin(upstream.connect()).await {
        Ok(Dialled { wire: mut far, admitted, .. }) => {
            meter.tunnel();
            let joined = async {
                far.write_all(&preface).await?;
                // Joining flushes only what it wrote itself.
                far.flush().await?;
                tunnel::join(wire, far).await
            };
            let told = async {
                if let Err(error) = joined.await {
                    tracing::debug!(%error, "a joined connection broke");
                }
            };
            tunnel::until_cut(admitted.as_ref(), told).await;
        }
        // There is no way to say why on a plain byte stream: it ends.
        Err(failed) => {
            tracing::info!(code = %failed.code, detail = %failed.detail, "nothing to join with");
        }
    }
}
