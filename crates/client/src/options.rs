//! What a source is told when it starts.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::{
    Clock, Entropy, Name, SpiffeId, SystemClock, SystemEntropy, TrustDomain,
};

use crate::{Authorization, BadEndpoint, Endpoint};

/// Which SVID to show, when the agent gives several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first one, which the standard calls the default.
    #[default]
    Default,
    /// The first one with this hint.
    Hint(String),
    /// The one with this SPIFFE ID. The agent then tells of the services of that workload alone.
    Id(SpiffeId),
}

impl Choice {
    /// The SPIFFE ID that it must be, where only one can do.
    pub(crate) const fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Id(id) => Some(id),
            Self::Default | Self::Hint(_) => None,
        }
    }
}

/// What kind of program enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// An application with this library in it.
    Library,
    /// A proxy.
    Proxy,
}

impl PointKind {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Proxy => "proxy",
        }
    }
}

/// How this enforcement point is known to its agent, and in `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Unique among the points of the same workload on the same node.
    pub name: Name,
    /// What kind of program it is.
    pub kind: PointKind,
}

impl Point {
    /// A library, named by its process.
    pub fn of_this_process() -> Self {
        let name = format!("library-{}", std::process::id());
        Self { name: name.parse().expect("digits after a label"), kind: PointKind::Library }
    }
}

/// How to live with a Workload API.
#[derive(Clone)]
pub struct WorkloadApiOptions {
    /// Its socket.
    pub endpoint: Endpoint,
    /// Which SVID to show.
    pub choice: Choice,
    /// Who may connect.
    pub authorization: Authorization,
    /// How the agent knows this enforcement point.
    pub point: Point,
    /// For validity and for waiting.
    pub clock: Arc<dyn Clock>,
    /// For the spread of retries.
    pub entropy: Arc<dyn Entropy>,
}

impl WorkloadApiOptions {
    /// This socket; the default SVID; policies from the agent.
    pub fn at(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            choice: Choice::Default,
            authorization: Authorization::FromAgent,
            point: Point::of_this_process(),
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
        }
    }

    /// The socket that `SPIFFE_ENDPOINT_SOCKET` tells.
    ///
    /// # Errors
    /// When it tells none.
    pub fn from_environment() -> Result<Self, BadEndpoint> {
        Endpoint::from_environment().map(Self::at)
    }
}

impl fmt::Debug for WorkloadApiOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApiOptions")
            .field("endpoint", &self.endpoint)
            .field("choice", &self.choice)
            .field("authorization", &self.authorization)
            .field("point", &self.point)
            .finish_non_exhaustive()
    }
}

/// How to live with certificate files that something else renews.
#[derive(Clone)]
pub struct FileOptions {
    /// PEM, leaf first.
    pub chain: PathBuf,
    /// PEM, PKCS#8.
    pub key: PathBuf,
    /// The authorities of the own trust domain: PEM certificates or a SPIFFE bundle in JSON.
    pub bundle: PathBuf,
    /// The own trust domain; absent: that of the leaf.
    pub trust_domain: Option<TrustDomain>,
    /// The authorities of other trust domains.
    pub federated: Vec<(TrustDomain, PathBuf)>,
    /// Who may connect.
    pub authorization: Authorization,
    /// For validity and for waiting.
    pub clock: Arc<dyn Clock>,
}

impl FileOptions {
    /// These files; nobody may connect until `authorization` says who.
    pub fn at(chain: PathBuf, key: PathBuf, bundle: PathBuf) -> Self {
        Self {
            chain,
            key,
            bundle,
            trust_domain: None,
            federated: Vec::new(),
            authorization: Authorization::Nothing,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl fmt::Debug for FileOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileOptions")
            .field("chain", &self.chain)
            .field("key", &self.key)
            .field("bundle", &self.bundle)
            .field("trust_domain", &self.trust_domain)
            .field("federated", &self.federated)
            .field("authorization", &self.authorization)
            .finish_non_exhaustive()
    }
}
