//! What an agent is told, and why it may not start.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use countersign_identity::{Code, KeyId, TrustDomain};
use countersign_pki::{Chain, PrivateKey};
use countersign_program::trace::Tracing;
use zeroize::Zeroizing;

use crate::disk::DiskFault;
use crate::server_link::{JoinToken, LinkFault, MachineCredential};
use crate::socket::SocketFault;

/// What an agent is told.
#[derive(Debug)]
pub struct Config {
    /// The data directory, for this agent alone.
    pub data: PathBuf,
    /// Servers as `host:port`, in the order in which they are tried.
    pub servers: Vec<String>,
    /// The trust domain, when it is known beforehand.
    pub trust_domain: Option<TrustDomain>,
    /// For the first start.
    pub join: Option<JoinToken>,
    /// For the first start, in place of a token.
    pub machine: Option<MachineFiles>,
    /// The root to trust at the first start, told together with the token.
    pub trust: Option<KeyId>,
    /// Where to listen for workloads.
    pub socket: PathBuf,
    /// The launcher's socket, when a launcher started this agent.
    pub launcher: Option<OwnedFd>,
    /// Where to listen for scrapers.
    pub metrics: Option<SocketAddr>,
    /// Where spans go, if they go anywhere.
    pub tracing: Option<Tracing>,
    /// How callers are held on to.
    pub pinning: crate::attest::Pinning,
}

/// Where a machine's own certificate is, by which it proves itself.
#[derive(Clone, Debug)]
pub struct MachineFiles {
    /// The certificate, and those above it, in PEM.
    pub certificate: PathBuf,
    /// Its private key, unencrypted PKCS#8 in PEM.
    pub key: PathBuf,
}

impl MachineFiles {
    pub(crate) fn read(&self) -> Result<MachineCredential, StartRefused> {
        let refused =
            |path: &Path, why: String| StartRefused::Machine { path: path.to_owned(), why };
        let chain = std::fs::read_to_string(&self.certificate)
            .map_err(|why| refused(&self.certificate, why.to_string()))?;
        let chain =
            Chain::from_pem(&chain).map_err(|why| refused(&self.certificate, why.to_string()))?;
        let unread = |why: std::io::Error| refused(&self.key, why.to_string());
        let mut file = File::open(&self.key).map_err(unread)?;
        // Asked of the open file: the path may name another by then.
        let mode = file.metadata().map_err(unread)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let why = format!(
                "it has mode {mode:03o}, which lets others read the key; run `chmod 600` on it"
            );
            return Err(refused(&self.key, why));
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(unread)?;
        let key = PrivateKey::from_pem(&text).map_err(|why| {
            refused(
                &self.key,
                format!("{why}; `openssl pkcs8 -topk8 -nodes` makes PKCS#8 of a key"),
            )
        })?;
        if chain.leaf().spki() != key.public().spki() {
            let why = "it is not the key of the first certificate".to_owned();
            return Err(refused(&self.key, why));
        }
        Ok(MachineCredential { chain, key })
    }
}

/// What an agent that has started tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where workloads find it.
    pub socket: PathBuf,
    /// Where scrapers find it.
    pub metrics: Option<SocketAddr>,
    /// Why it goes on with what an earlier life wrote down, when no server can be reached.
    pub degraded: Option<String>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartRefused {
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The socket for workloads.
    #[error(transparent)]
    Socket(#[from] SocketFault),
    /// Nothing to go to.
    #[error("no server is configured: give one with `--server HOST:PORT`")]
    NoServers,
    /// It never joined, and has no token.
    #[error(
        "this agent has not joined a trust domain yet: get a token with `countersign token create`, and give it and the fingerprint with `--join` and `--trust` (or let the machine's own certificate prove it, with `--attest x509`)"
    )]
    NotJoined,
    /// The machine's own certificate or its key.
    #[error("`{path}` cannot be used to prove this machine: {why}")]
    Machine {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A token without the root to trust.
    #[error(
        "the root to trust is missing: give the fingerprint that `countersign token create` printed with `--trust sha256:…`"
    )]
    NoTrust,
    /// The server does not take the node.
    #[error("server `{server}` did not admit this node: {fault}")]
    NotAdmitted {
        /// Which server.
        server: String,
        /// Why.
        fault: LinkFault,
    },
    /// The metrics' address.
    #[error("metrics cannot be served on `{address}`: {why}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        why: std::io::Error,
    },
    /// The launcher's socket.
    #[error("the launcher's socket cannot be used: {0}")]
    Launcher(std::io::Error),
    /// The trust domain that was named is not the one that was joined.
    #[error(
        "this agent is of trust domain `{joined}`, and was told `{told}`: use another data directory"
    )]
    OtherDomain {
        /// Where it is.
        joined: TrustDomain,
        /// Where it was told to be.
        told: TrustDomain,
    },
}

impl StartRefused {
    /// The stable code, from which the exit status follows.
    pub fn code(&self) -> Code {
        match self {
            Self::Disk(DiskFault::Locked(_)) => Code::AlreadyExists,
            Self::Disk(DiskFault::Io { .. } | DiskFault::Unfinished(_) | DiskFault::Key(_)) => {
                Code::Internal
            }
            Self::Disk(
                DiskFault::Open { .. }
                | DiskFault::Foreign { .. }
                | DiskFault::Broken { .. }
                | DiskFault::Newer { .. },
            )
            | Self::NoServers
            | Self::NotJoined
            | Self::NoTrust
            | Self::Machine { .. }
            | Self::OtherDomain { .. }
            | Self::Launcher(_) => Code::NotUnderstood,
            Self::Socket(fault) => fault.code(),
            Self::NotAdmitted { fault, .. } => fault.code,
            Self::Metrics { .. } => Code::AlreadyExists,
        }
    }
}

/// Whether an agent has joined a trust domain from this data directory.
pub fn is_attested(data: &Path) -> bool {
    data.join("node.json").exists()
}
