//! From a TCP connection to an admitted one.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_pki::Refused;
use rustls::server::Acceptor;
use rustls::{HandshakeKind, ProtocolVersion};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use crate::admission::{NotAdmitted, admit, too_many};
use crate::alert::{code_of_io, sentence};
use crate::canary::{self, CANARY_ALPN};
use crate::config::Agreed;
use crate::register::{Arrival, Standing};
use crate::reproof::REPROOF_ALPN;
use crate::rule::{AddressOf, Clients, Inbound, Outbound, Present, Rule, no_own_identity};
use crate::session::{Session, Socket};
use crate::verifier::{Asked, Shown, Slot};
use crate::{HandshakeFact, HandshakeFailure, Stream, Trust, config};

/// An admitted connection, and what its handshake showed.
#[derive(Debug)]
pub struct Established {
    /// The bytes.
    pub stream: Stream,
    /// For the log of handshakes.
    pub fact: HandshakeFact,
}

/// How long somebody may be connected who has not said who they are, where that is allowed.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);

/// How long a refused peer may take to read why, and how much it may still send meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 * 1024;

/// How long a peer's machine may leave everything unanswered before its connections count as broken. Long enough
/// for a virtual machine to be moved, short enough for callers to find another peer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Makes a mutual TLS connection with somebody who dialled us, and admits it.
///
/// # Errors
/// When it failed or was refused, by either end. The fact says what is known.
pub async fn accept(
    trust: &Arc<Trust>,
    tcp: TcpStream,
    inbound: &Inbound,
) -> Result<Established, HandshakeFailure> {
    let address = inbound.peer_address.or_else(|| tcp.peer_addr().ok());
    let attempt = Attempt::begin(trust, Rule::inbound(inbound), address);
    match inbound.address_of {
        AddressOf::Peer => attempt.slot.comes_from(address.map(|address| address.ip())),
        AddressOf::Relay => {}
    }
    let Some(_permit) = trust.handshakes.take() else {
        return Err(attempt.refuse(&too_many()));
    };
    if let Err(error) = tune_accepted(&tcp) {
        return Err(attempt.broken(&error));
    }
    // What is large is boxed here and below: every step that a future is handed through has a place for it, and copies it there.
    let shaking = Box::pin(shake(trust, tcp, inbound, &attempt.slot));
    match attempt.within(inbound.timeout, shaking).await {
        Ok((session, Asked::Entry)) => {
            attempt.finish(session, inbound.clients != Clients::Required)
        }
        Ok((session, Asked::Trial)) => {
            Err(Box::pin(attempt.try_canary(session, inbound.timeout)).await)
        }
        Err(refused) => Err(attempt.refuse(&refused)),
    }
}

/// The handshake, by what the caller's first message asks for.
///
/// A canary names its protocol and no other. At a door behind which only bytes travel, our own protocols are answered by
/// name and nobody else's: what another client names there is a matter of the programs at both ends (RFC 7301, 3.2,
/// would have us refuse it).
async fn shake(
    trust: &Arc<Trust>,
    tcp: TcpStream,
    inbound: &Inbound,
    slot: &Arc<Slot>,
) -> Result<(Session, Asked), (io::Error, Socket)> {
    let mut hello = pin!(LazyConfigAcceptor::new(Acceptor::default(), Socket(tcp)));
    let start = match hello.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            let tcp = hello.take_io().expect("it was not accepted, and is taken back once");
            return Err((error, tcp));
        }
    };
    let named: Vec<Vec<u8>> = {
        let hello = start.client_hello();
        hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect()
    };
    let asked = if named == [CANARY_ALPN] { Asked::Trial } else { Asked::Entry };
    let mut config = config::server(trust, inbound, Some(slot), asked);
    let bytes_only = inbound.alpn == [REPROOF_ALPN];
    if asked == Asked::Entry && bytes_only && !named.iter().any(|name| name == REPROOF_ALPN) {
        let mut silent = Arc::unwrap_or_clone(config);
        silent.alpn_protocols.clear();
        config = Arc::new(silent);
    }
    let tls = start.into_stream(config).into_fallible().await?;
    Ok((Session::new(tls.into()), asked))
}

/// Makes a mutual TLS connection with somebody whom we reached, and admits it.
///
/// In TLS 1.3 the peer decides about us after we are done. When it refuses us, this is learnt from the first
/// read ([`code_of_io`]).
///
/// # Errors
/// When it failed or was refused by us. The fact says what is known.
pub async fn connect(
    trust: &Arc<Trust>,
    tcp: TcpStream,
    outbound: &Outbound,
) -> Result<Established, HandshakeFailure> {
    let attempt = Attempt::begin(trust, Rule::outbound(outbound), tcp.peer_addr().ok());
    attempt.connect(tcp, outbound, outbound.timeout).await
}

/// Goes to an address and [`connect`]s there.
///
/// # Errors
/// As [`connect`], and `peer-unreachable`.
pub async fn dial(
    trust: &Arc<Trust>,
    address: SocketAddr,
    outbound: &Outbound,
) -> Result<Established, HandshakeFailure> {
    let attempt = Attempt::begin(trust, Rule::outbound(outbound), Some(address));
    let deadline = attempt.fact.at + outbound.timeout;
    let tcp = tokio::select! {
        biased;
        reached = TcpStream::connect(address) => reached,
        () = trust.clock().sleep_until(deadline) => Err(io::ErrorKind::TimedOut.into()),
    };
    let tcp = match tcp {
        Ok(tcp) => tcp,
        Err(error) => {
            let why = format!("`{address}` could not be reached: {error}");
            return Err(attempt.refuse(&Refused { code: Code::PeerUnreachable, why }));
        }
    };
    let left = deadline.since(trust.now());
    attempt.connect(tcp, outbound, left).await
}

/// One handshake under way.
struct Attempt {
    trust: Arc<Trust>,
    rule: Rule,
    slot: Arc<Slot>,
    fact: HandshakeFact,
}

impl Attempt {
    fn begin(trust: &Arc<Trust>, rule: Rule, peer_address: Option<SocketAddr>) -> Self {
        let fact = HandshakeFact::begin(trust.now(), &rule, peer_address);
        Self { trust: Arc::clone(trust), rule, slot: Arc::default(), fact }
    }

    async fn connect(
        self,
        tcp: TcpStream,
        outbound: &Outbound,
        timeout: Duration,
    ) -> Result<Established, HandshakeFailure> {
        if outbound.present == Present::Required && self.trust.valid_own().is_none() {
            return Err(self.refuse(&no_own_identity()));
        }
        if let Err(error) = tune(&tcp) {
            return Err(self.broken(&error));
        }
        // Whoever dials is us, and this is where the connection goes out.
        self.slot.comes_from(tcp.local_addr().ok().map(|address| address.ip()));
        let config = config::client(&self.trust, outbound, Some(&self.slot));
        let connecting = TlsConnector::from(config).connect(nobody(), Socket(tcp));
        let shaking = Box::pin(connecting.into_fallible());
        match self.within(timeout, shaking).await {
            Ok(_) if outbound.present == Present::Required && self.slot.shown().is_none() => {
                let why = "the peer did not ask for our certificate".to_owned();
                Err(self.refuse(&Refused { code: Code::BadHandshake, why }))
            }
            Ok(tls) => self.finish(Session::new(tls.into()), false),
            Err(refused) => Err(self.refuse(&refused)),
        }
    }

    /// Waits for the handshake, and says why when it does not succeed in time.
    async fn within<S>(
        &self,
        timeout: Duration,
        shaking: impl Future<Output = Result<S, (io::Error, Socket)>>,
    ) -> Result<S, Refused> {
        let clock = self.trust.clock();
        let deadline = clock.now() + timeout;
        let done = tokio::select! {
            biased;
            done = shaking => done,
            () = clock.sleep_until(deadline) => {
                let why = format!("the handshake did not end within {timeout:?}");
                return Err(Refused { code: Code::HandshakeTimeout, why });
            }
        };
        match done {
            Ok(stream) => Ok(stream),
            Err((error, Socket(tcp))) => {
                Box::pin(self.linger(tcp, deadline)).await;
                Err(self.reason(&error))
            }
        }
    }

    /// Lets the peer read the alert. Closing while something of the peer's is unread would reset the connection, and
    /// take the alert away before the peer has seen it.
    async fn linger(&self, mut tcp: TcpStream, deadline: Timestamp) {
        let clock = self.trust.clock();
        let until = deadline.min(clock.now() + LINGER);
        let drain = async {
            if tcp.shutdown().await.is_err() {
                return;
            }
            let mut left = LINGER_BYTES_MAX;
            let mut sink = [0; 2048];
            while let Ok(read @ 1..) = tcp.read(&mut sink).await {
                left = left.saturating_sub(read);
                if left == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            () = drain => {}
            () = clock.sleep_until(until) => {}
        }
    }

    /// Our own verifier's words, if it refused; what TLS says otherwise.
    fn reason(&self, error: &io::Error) -> Refused {
        let refused = self.slot.refused().cloned();
        refused.unwrap_or_else(|| Refused { code: code_of_io(error), why: sentence(error) })
    }

    fn broken(self, error: &io::Error) -> HandshakeFailure {
        let refused = self.reason(error);
        self.refuse(&refused)
    }

    fn refuse(mut self, refused: &Refused) -> HandshakeFailure {
        if let Some(peer) = self.slot.peer() {
            self.fact.proven(peer);
        }
        self.fact.local = self.slot.shown().map(|own| own.identity.id().clone());
        let now = self.trust.now();
        self.fact.failed(refused, now)
    }

    fn finish(
        mut self,
        session: Session,
        anonymous: bool,
    ) -> Result<Established, HandshakeFailure> {
        self.observe(&session.tls());
        let arrival = match self.arrival(&session, anonymous) {
            Ok(arrival) => arrival,
            Err(refused) => return Err(self.refuse(&refused)),
        };
        let place = match admit(&self.trust, arrival) {
            Ok(place) => place,
            Err(NotAdmitted { refused, outcome }) => {
                return Err(HandshakeFailure { outcome, ..self.refuse(&refused) });
            }
        };
        if let Some(peer) = place.admitted.peer() {
            self.fact.proven(peer);
        }
        self.fact.local = self.slot.shown().map(|own| own.identity.id().clone());
        self.fact.took = self.trust.now().since(self.fact.at);
        Ok(Established { stream: Stream::new(session, place), fact: self.fact })
    }

    /// Answers a canary that got through the verifier, on the slice that is current now, and lets it go.
    async fn try_canary(mut self, session: Session, timeout: Duration) -> HandshakeFailure {
        self.observe(&session.tls());
        let slice = self.trust.slice();
        let peer = self.slot.peer().filter(|_peer| !self.fact.resumed);
        let alive = peer.ok_or_else(|| Refused {
            code: Code::NoCertificate,
            why: "the peer showed no certificate".to_owned(),
        });
        if let Err(refused) = alive.and_then(|peer| canary::alive(peer, &slice)) {
            return self.refuse(&refused);
        }
        let clock = Arc::clone(self.trust.clock());
        let said = tokio::select! {
            said = canary::answer(session, slice.revision) => said,
            () = clock.sleep_until(clock.now() + timeout) => {
                let why = "the canary did not take its answer in time".to_owned();
                Refused { code: Code::HandshakeTimeout, why }
            }
        };
        self.refuse(&said)
    }

    /// What the two ends agreed on.
    fn observe(&mut self, tls: &TlsStream<Socket>) {
        let common = tls.get_ref().1;
        self.fact.version = match common.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            Some(other) => other.as_str().unwrap_or_default(),
            None => "",
        };
        let group = common.negotiated_key_exchange_group();
        self.fact.group = group.and_then(|group| group.name().as_str()).unwrap_or_default();
        let suite = common.negotiated_cipher_suite();
        self.fact.suite = suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default();
        self.fact.resumed = match common.handshake_kind() {
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => false,
            Some(HandshakeKind::Resumed) | None => true,
        };
    }

    fn arrival(&self, session: &Session, anonymous: bool) -> Result<Arrival, Refused> {
        if self.fact.resumed {
            // Cannot happen with our configurations. If it ever does, nobody was verified.
            let why = "the session was resumed".to_owned();
            return Err(Refused { code: Code::BadHandshake, why });
        }
        if let Some(refused) = self.slot.refused() {
            return Err(refused.clone());
        }
        let Some(agreed) = Agreed::of(session.tls().get_ref().1) else {
            // Likewise: ours agree on nothing else.
            let why = "the handshake agreed on something that is unknown here".to_owned();
            return Err(Refused { code: Code::BadHandshake, why });
        };
        let opened = self.trust.now();
        let peer = self.slot.peer().cloned();
        if peer.is_none() && !anonymous {
            let why = "the peer showed no certificate".to_owned();
            return Err(Refused { code: Code::NoCertificate, why });
        }
        let expires = peer.as_ref().map_or(opened + ANONYMOUS_LIFE, |peer| peer.expires);
        let shown = self.slot.shown().cloned();
        let standing = peer.map(|peer| {
            let shown = Shown {
                peer: &peer,
                local: shown.as_ref().map(|own| &*own.identity),
                source: self.slot.source(),
                version: self.fact.version,
                group: self.fact.group,
            };
            let context = shown.context(self.rule.direction, &self.trust);
            Standing { context, peer }
        });
        let (rule, address) = (self.rule.clone(), self.fact.peer_address);
        let is_proof = session.tls().get_ref().1.alpn_protocol() == Some(REPROOF_ALPN);
        let session = Some(session.clone());
        Ok(Arrival { rule, agreed, standing, shown, opened, expires, address, is_proof, session })
    }
}

/// Has what this listener accepts be from the beginning as [`accept`] wants a connection to be. It is no more than a saving: the
/// system hands the options of a listener on to its connections (Linux), which then need not be told one by one. They hold for
/// whoever else accepts from the same socket, too.
///
/// # Errors
/// When the system does not take an option.
pub fn tune_listener(listener: &TcpListener) -> io::Result<()> {
    tune_socket(&SockRef::from(listener))
}

/// As [`tune`], where that was not done with its listener.
fn tune_accepted(tcp: &TcpStream) -> io::Result<()> {
    // Which of them is set last is for `probe_socket` to say.
    if SockRef::from(tcp).tcp_user_timeout()? == Some(SILENCE_MAX) && tcp.nodelay()? {
        return Ok(());
    }
    tune(tcp)
}

/// Small messages go at once, and a peer that vanished without a word is noticed within about [`SILENCE_MAX`], also while
/// nothing is sent.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tune_socket(&SockRef::from(tcp))
}

fn tune_socket(socket: &SockRef<'_>) -> io::Result<()> {
    // Without it, a fresh connection's first request waits 40 ms for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    probe_socket(socket, SILENCE_MAX)
}

/// Has the system ask whether the peer is there still, so that one that vanished is noticed within about this time.
pub(crate) fn probe(tcp: &TcpStream, silence: Duration) -> io::Result<()> {
    probe_socket(&SockRef::from(tcp), silence)
}

fn probe_socket(socket: &SockRef<'_>, silence: Duration) -> io::Result<()> {
    let probes =
        TcpKeepalive::new().with_time(silence / 2).with_interval(silence / 6).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(silence))
}

/// Has the system ask only after so long a silence. What is said and not taken ends the connection as soon as before.
pub(crate) fn probe_after(tcp: &TcpStream, quiet: Duration) -> io::Result<()> {
    SockRef::from(tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(quiet))
}

/// rustls wants the name of a host. Ours are not known by one, and it is not sent.
pub(crate) fn nobody() -> ServerName<'static> {
    ServerName::try_from("peer.invalid").expect("it is a DNS name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_tuned_listener_accepts_is_as_if_it_had_been_told_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = |tcp: &TcpStream| {
            let socket = SockRef::from(tcp);
            (
                (socket.tcp_nodelay().unwrap(), socket.keepalive().unwrap()),
                (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
                (socket.tcp_keepalive_retries().unwrap(), socket.tcp_user_timeout().unwrap()),
            )
        };
        let accepted = async || {
            let _caller = TcpStream::connect(address).await.unwrap();
            listener.accept().await.unwrap().0
        };
        let told = accepted().await;
        let before = options(&told);
        tune_accepted(&told).unwrap();
        assert_ne!(options(&told), before);
        tune_listener(&listener).unwrap();
        assert_eq!(options(&accepted().await), options(&told));
    }

    #[tokio::test]
    async fn probes_that_come_late_leave_the_end_of_what_is_not_taken_where_it_was() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&tcp).unwrap();
        let quiet = Duration::from_secs(180);
        probe_after(&tcp, quiet).unwrap();
        let socket = SockRef::from(&tcp);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), quiet);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(SILENCE_MAX));
    }
}
