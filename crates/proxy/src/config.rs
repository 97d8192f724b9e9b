//! What the proxy is told when it starts, and what it tells once it works.

use std::net::SocketAddr;
use std::path::PathBuf;

use countersign::{Authorization, Choice, Endpoint};
use countersign_identity::{Name, SpiffeId, TrustDomain};
use countersign_program::trace::Tracing;

use crate::dial::Target;

/// All that one proxy needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name among the enforcement points of its workload.
    pub name: Name,
    /// Who it is.
    pub identity: IdentitySource,
    /// Who may connect.
    pub authorization: Authorization,
    /// Where it listens.
    pub listeners: Listeners,
    /// Where metrics are served over plain HTTP, if they are.
    pub metrics: Option<SocketAddr>,
    /// Where spans go, if they go anywhere.
    pub tracing: Option<Tracing>,
}

/// Where the proxy's own identity comes from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// A Workload API: ours, or that of any SPIFFE agent.
    WorkloadApi {
        /// Its socket.
        endpoint: Endpoint,
        /// Which of the identities that it gives.
        choice: Choice,
    },
    /// Files that something else renews.
    Files {
        /// PEM, leaf first.
        chain: PathBuf,
        /// PEM, PKCS#8.
        key: PathBuf,
        /// PEM certificates or a SPIFFE bundle in JSON.
        bundle: PathBuf,
        /// Whose bundle that is; absent: the leaf's own trust domain.
        trust_domain: Option<TrustDomain>,
        /// Bundles of other trust domains.
        federated: Vec<(TrustDomain, PathBuf)>,
    },
}

/// Where the proxy listens.
#[derive(Clone, Debug)]
pub enum Listeners {
    /// As the `Service` manifests of its own workload say, followed as they change.
    FromAgent {
        /// Where Unix sockets are made: `<service>.<upstream>.sock`, and `<service>.sock` for the program's own.
        run_dir: PathBuf,
    },
    /// As its own command says.
    Fixed {
        /// Doors for peers.
        inbound: Vec<FixedInbound>,
        /// Ways to peers.
        outbound: Vec<FixedOutbound>,
    },
}

/// What is spoken inside of the mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2, WebSocket and other upgrades: requests are seen one by one.
    #[default]
    Http,
    /// Bytes.
    Tcp,
}

/// A door for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedInbound {
    /// The name of the service, for policies, facts and metrics.
    pub service: Name,
    /// Where peers dial; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the program listens.
    pub forward: Target,
    /// What is spoken.
    pub protocol: Protocol,
}

/// A way to peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedOutbound {
    /// The name of the service, for policies, facts and metrics.
    pub service: Name,
    /// Where our own program dials.
    pub local: LocalPlace,
    /// Where peers listen, in order of priority: `host:port`.
    pub addresses: Vec<String>,
    /// Who must be there.
    pub peer: SpiffeId,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Where a program of our own side connects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalPlace {
    /// A Unix socket, open to its owner only.
    Unix(PathBuf),
    /// A loopback address: every process of the machine can try it.
    Tcp(SocketAddr),
}

impl std::fmt::Display for LocalPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// What really came of it: told once everything listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The name of the enforcement point.
    pub point: Name,
    /// Who the proxy is.
    pub id: SpiffeId,
    /// The doors, with their real ports.
    pub inbound: Vec<BoundInbound>,
    /// The local listeners, with their real ports.
    pub outbound: Vec<BoundOutbound>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// A door that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundInbound {
    /// Whose.
    pub service: Name,
    /// Where.
    pub listen: SocketAddr,
}

/// A local listener that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundOutbound {
    /// The service whose program it is for; the upstream itself where listeners are fixed.
    pub service: Name,
    /// What it leads to.
    pub upstream: Name,
    /// Where.
    pub local: LocalPlace,
}
