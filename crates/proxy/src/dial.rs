//! Ways out: to a peer over mutual TLS, or to the program behind the door.

use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::{Code, Name, SpiffeId};
use countersign_tls::{Admitted, Established, Expected, Expired, Outbound};
use rustls::AlertDescription;
use tokio::net::{TcpStream, UnixStream};

use crate::bounds::{CONNECT_TIMEOUT, RESOLVED_MAX};
use crate::plane::Plane;
use crate::session::Spoken;
use crate::wire::{Heard, Kind, Wire};

/// Where a program of our own side listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `host:port`, on this machine as a rule.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dialer {
    /// To the one peer that is meant, at an address.
    Mutual { service: Name, peer: SpiffeId, address: String, expired: Expired },
    /// To the program, in clear.
    Program(Target),
    /// To the program, in clear, with HTTP/2 from the first byte.
    ProgramHttp2(Target),
}

impl std::fmt::Display for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mutual { peer, address, .. } => write!(f, "`{peer}` at `{address}`"),
            Self::Program(target) | Self::ProgramHttp2(target) => write!(f, "`{target}`"),
        }
    }
}

/// What is to be spoken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// HTTP, whichever version the other end prefers.
    AnyHttp,
    /// HTTP/1.1, because the connection is to become something else.
    Http1,
    /// Bytes.
    Raw,
}

/// A connection that stands.
pub(crate) struct Dialled {
    pub(crate) wire: Wire,
    pub(crate) spoken: Spoken,
    /// Under what it was admitted; none when it leads to the program of our own side.
    pub(crate) admitted: Option<Admitted>,
    /// What the peer says of us, if anything.
    pub(crate) heard: Arc<Heard>,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct DialFailure {
    pub(crate) code: Code,
    pub(crate) detail: String,
}

impl DialFailure {
    fn unreachable(place: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self {
            code: Code::PeerUnreachable,
            detail: format!("`{place}` cannot be connected to: {why}"),
        }
    }
}

impl DialFailure {
    /// The peer does not take us for somebody whom it lets in.
    pub(crate) fn refused(peer: &Dialer, alert: AlertDescription) -> Self {
        let alert = alert.as_str().unwrap_or("unknown alert");
        let detail = format!("{peer} refused us: {alert}");
        Self { code: Code::PeerRefused, detail }
    }
}

impl Dialer {
    /// Where gRPC goes, if it goes another way: a program in clear cannot say by ALPN that it speaks HTTP/2.
    pub(crate) fn for_grpc(&self) -> Option<Self> {
        match self {
            Self::Mutual { .. } => None,
            Self::Program(target) | Self::ProgramHttp2(target) => {
                Some(Self::ProgramHttp2(target.clone()))
            }
        }
    }

    pub(crate) async fn dial(&self, plane: &Plane, want: Want) -> Result<Dialled, DialFailure> {
        match self {
            Self::Mutual { service, peer, address, expired } => {
                let expected = Expected::Id(peer.clone());
                let mut outbound = Outbound::service(service.clone(), expected);
                outbound.timeout = CONNECT_TIMEOUT;
                outbound.alpn = protocols(want);
                outbound.expired = *expired;
                mutual(plane, address, &outbound).await
            }
            Self::Program(target) => program(target, Spoken::Http1).await,
            Self::ProgramHttp2(target) => program(target, Spoken::Http2).await,
        }
    }
}

/// What is offered or accepted by ALPN, best first.
pub(crate) fn protocols(want: Want) -> Vec<Vec<u8>> {
    match want {
        Want::AnyHttp => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Want::Http1 => vec![b"http/1.1".to_vec()],
        Want::Raw => Vec::new(),
    }
}

/// What was agreed on by ALPN.
pub(crate) fn spoken(alpn: Option<&[u8]>) -> Spoken {
    if alpn == Some(b"h2") { Spoken::Http2 } else { Spoken::Http1 }
}

async fn mutual(plane: &Plane, address: &str, outbound: &Outbound) -> Result<Dialled, DialFailure> {
    let resolved = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address)).await;
    let resolved = match resolved {
        Ok(Ok(resolved)) => resolved.take(RESOLVED_MAX),
        Ok(Err(error)) => return Err(DialFailure::unreachable(address, error)),
        Err(_elapsed) => {
            return Err(DialFailure::unreachable(address, "its name was not resolved in time"));
        }
    };
    let mut failure = DialFailure::unreachable(address, "its name has no address");
    for place in resolved {
        match countersign_tls::dial(&plane.trust, place, outbound).await {
            Ok(Established { stream, fact }) => {
                plane.facts.report(fact);
                let spoken = spoken(stream.alpn());
                let heard = Arc::new(Heard::default());
                let admitted = Some(stream.admitted().clone());
                let wire = Wire::listening(Kind::Mutual(stream), (), heard.clone());
                return Ok(Dialled { wire, spoken, admitted, heard });
            }
            Err(refused) => {
                failure = DialFailure { code: refused.code, detail: refused.detail };
                plane.facts.report(*refused.fact);
            }
        }
    }
    Err(failure)
}

async fn program(target: &Target, spoken: Spoken) -> Result<Dialled, DialFailure> {
    let connecting = async {
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Kind::Tcp(stream))
            }
            Target::Unix(path) => UnixStream::connect(path).await.map(Kind::Unix),
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(kind)) => {
            let wire = Wire::new(kind, ());
            Ok(Dialled { wire, spoken, admitted: None, heard: Arc::default() })
        }
        Ok(Err::<_, std::io::Error>(error)) => Err(DialFailure::unreachable(target, error)),
        Err(_elapsed) => Err(DialFailure::unreachable(target, "it did not answer in time")),
    }
}
