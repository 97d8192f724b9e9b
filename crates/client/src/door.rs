//! A door that yields admitted connections.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_pki::Refused;
use countersign_tls::{
    Admitted, Direction, Established, HandshakeFact, Inbound, Outcome, Purpose, REPROOF_ALPN,
    Stream, Trust, accept, answer_reproof, tune_listener,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::server::Connected;

use crate::gate::{Gate, Pass};
use crate::{Announcement, Reporter, Source};

/// How long to wait when the kernel gives no connection, as when files are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections one identity has at most where the program says nothing else: a quarter of the places for those who come.
const EACH_MAX: NonZeroUsize = NonZeroUsize::new(3072).unwrap();

/// Accepts connections for a service: makes the handshakes, many at a time, reports each, and yields what
/// was admitted. A source from which too much came to nothing is turned away unread for a while, and where handshakes are
/// too many, the crowd gives way: all doors of one [`Source`] know the same of those who come. One identity has at most 3072
/// connections at all of them together, a quarter of the places; `Inbound::each_max` says otherwise. Each further one is a handshake
/// that came to nothing, and is counted against the address that it came from: who goes on over its share uses up what that whole
/// address has, so that other identities behind it (of the same machine, or of a network that shows one address) are turned away
/// unread with it for as long.
///
/// With tonic, `Server::builder().add_service(…).serve_with_incoming(door.into_stream())`; the calls find the
/// caller as [`Admitted`] in their extensions. With axum:
///
/// ```no_run
/// struct MutualTls(countersign::Door);
///
/// impl axum::serve::Listener for MutualTls {
///     type Io = countersign::Connection;
///     type Addr = std::net::SocketAddr;
///
///     async fn accept(&mut self) -> (Self::Io, Self::Addr) {
///         let connection = self.0.accept().await;
///         let address = connection.peer_address();
///         (connection, address)
///     }
///
///     fn local_addr(&self) -> std::io::Result<Self::Addr> {
///         self.0.local_address()
///     }
/// }
///
/// # async fn example(source: countersign::Source) -> Result<(), Box<dyn std::error::Error>> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8443").await?;
/// let mut inbound = countersign::Inbound::service("orders".parse()?);
/// inbound.alpn = vec![b"http/1.1".to_vec()];
/// let door = countersign::Door::new(&source, listener, inbound);
/// axum::serve(MutualTls(door), axum::Router::new()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    trust: Arc<Trust>,
    inbound: Arc<Inbound>,
    gate: Arc<Gate>,
    reporter: Reporter,
    handshakes: JoinSet<Option<Connection>>,
    _announced: Option<Announcement>,
}

/// An admitted connection. It ends when the peer loses the right to it.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer_address: SocketAddr,
}

/// What can wake the door.
enum Event {
    Arrived(io::Result<(TcpStream, SocketAddr)>),
    Admitted(Connection),
    Refused,
}

impl Door {
    /// Opens the door of a service. Connections are reported through the source, and enforce what it enforces. The listener is told
    /// how connections are to be ([`tune_listener`](countersign_tls::tune_listener)).
    pub fn new(source: &Source, listener: TcpListener, mut inbound: Inbound) -> Self {
        // With a protocol of our own, callers that offer some other one would not be let in any more where none is asked for.
        if !inbound.alpn.is_empty() {
            inbound.alpn.push(REPROOF_ALPN.to_vec());
        }
        if let Err(error) = tune_listener(&listener) {
            tracing::debug!(%error, "connections are told one by one how they are to be");
        }
        inbound.each_max.get_or_insert(EACH_MAX);
        let announced = listener.local_addr().ok().map(|address| source.announce(address));
        Self {
            _announced: announced,
            listener,
            trust: source.trust(),
            inbound: Arc::new(inbound),
            gate: Arc::clone(source.gate()),
            reporter: source.reporter(),
            handshakes: JoinSet::new(),
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next admitted connection. May be dropped while it waits; nothing is lost by it.
    pub async fn accept(&mut self) -> Connection {
        loop {
            match self.next_event().await {
                Event::Admitted(connection) => return connection,
                Event::Refused => {}
                Event::Arrived(Ok((tcp, address))) => self.admit(tcp, address),
                Event::Arrived(Err(error)) => {
                    tracing::warn!(%error, "could not accept a connection");
                    let clock = self.trust.clock();
                    clock.sleep_until(clock.now() + ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets a caller try, within what its source may have and what there is room for.
    fn admit(&mut self, tcp: TcpStream, peer_address: SocketAddr) {
        let caller = Caller {
            trust: Arc::clone(&self.trust),
            inbound: Arc::clone(&self.inbound),
            gate: Arc::clone(&self.gate),
            reporter: self.reporter.clone(),
            peer_address,
        };
        match self.gate.begin(peer_address.ip(), self.trust.clock().now()) {
            Ok(pass) => {
                self.handshakes.spawn(caller.shake(tcp, pass));
            }
            Err(refused) => caller.turn_away(&refused),
        }
    }

    async fn next_event(&mut self) -> Event {
        tokio::select! {
            Some(done) = self.handshakes.join_next() => match done {
                Ok(Some(connection)) => Event::Admitted(connection),
                Ok(None) => Event::Refused,
                Err(error) => {
                    tracing::error!(%error, "a handshake failed by a defect");
                    Event::Refused
                }
            },
            arrived = self.listener.accept() => Event::Arrived(arrived),
        }
    }

    /// The same as an endless stream, for tonic's `serve_with_incoming`.
    pub fn into_stream(
        self,
    ) -> impl futures_util::Stream<Item = io::Result<Connection>> + Send + 'static {
        futures_util::stream::unfold(self, |mut door| async move {
            let connection = door.accept().await;
            Some((Ok(connection), door))
        })
    }
}

/// One who came, and what the handshake with it needs.
struct Caller {
    trust: Arc<Trust>,
    inbound: Arc<Inbound>,
    gate: Arc<Gate>,
    reporter: Reporter,
    peer_address: SocketAddr,
}

impl Caller {
    async fn shake(self, tcp: TcpStream, pass: Pass) -> Option<Connection> {
        let peer_address = self.peer_address;
        let shaken = tokio::select! {
            shaken = accept(&self.trust, tcp, &self.inbound) => shaken,
            () = pass.gives_way() => {
                let refused = self.gate.gave_way(pass, self.now());
                self.turn_away(&refused);
                return None;
            }
        };
        // Its place is free from here on, also for as long as a re-proof takes.
        self.gate.ended(pass, Outcome::of_handshake(&shaken), self.now());
        match shaken {
            Ok(Established { stream, fact }) => {
                self.reporter.report(fact);
                if stream.alpn() == Some(REPROOF_ALPN) {
                    if let Err(fault) = answer_reproof(&self.trust, stream).await {
                        tracing::info!(%fault, %peer_address, "a re-proof came to nothing");
                    }
                    return None;
                }
                Some(Connection { stream, peer_address })
            }
            Err(failure) => {
                tracing::debug!(%failure, %peer_address, "connection refused");
                self.reporter.report(*failure.fact);
                None
            }
        }
    }

    fn turn_away(&self, refused: &Refused) {
        let (code, peer_address) = (refused.code, self.peer_address);
        tracing::debug!(%code, why = refused.why, %peer_address, "connection turned away");
        let service = match &self.inbound.purpose {
            Purpose::Service(service) => Some(service.clone()),
            Purpose::Control => None,
        };
        self.reporter.report(HandshakeFact {
            at: self.now(),
            direction: Direction::Inbound,
            service,
            local: None,
            peer: None,
            peer_address: Some(peer_address),
            peer_serial: Vec::new(),
            version: "",
            group: "",
            suite: "",
            resumed: false,
            took: Duration::ZERO,
            code: Some(code),
            detail: refused.why.clone(),
        });
    }

    fn now(&self) -> Timestamp {
        self.trust.clock().now()
    }
}

impl Connection {
    /// Who is at the other end, until when, and by which policies.
    pub fn admitted(&self) -> &Admitted {
        self.stream.admitted()
    }

    /// The application protocol that was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.alpn()
    }

    /// Where the peer is. Says nothing about who it is.
    pub const fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// The connection without its address.
    pub fn into_stream(self) -> Stream {
        self.stream
    }
}

impl Connected for Connection {
    type ConnectInfo = Admitted;

    fn connect_info(&self) -> Admitted {
        self.admitted().clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
