//! What a server is told at its start, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, KeyId, Lifetime, Revision, TrustDomain};
use countersign_pki::{DnsName, KeyVault, NoVault};
use countersign_program::system::plain;
use countersign_program::trace::Tracing;
use countersign_seal::{KekFileRefused, KeyWrap, WrapRefused};
use countersign_store::{Password, PostgresUrl, StoreError};

use crate::attest::NodeAuthorities;

/// Where agents connect when nothing else is said. Loopback, because an address that the world reaches is a
/// decision which an operator should have made.
pub const LISTEN: &str = "127.0.0.1:8443";
/// How long requests in flight may take to end when the server stops.
pub const DRAIN: Duration = Duration::from_secs(10);
/// How long nothing is issued after a new incarnation began, so that agents can hand back what they remember.
pub const HOLD_OFF: Duration = Duration::from_secs(60);
/// How long an issuer lives (design, section 6).
pub const ISSUER_LIFETIME_SECS: u64 = 7 * 86_400;
/// How long a root lives.
pub const ROOT_LIFETIME_SECS: u64 = 365 * 86_400;

/// Where a trust domain's state is kept.
#[derive(Clone, Debug, Default)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub enum StoreAt {
    /// In the data directory, for one server.
    #[default]
    Directory,
    /// In a database, for any number of servers. The data directory then holds only what is this server's own.
    Postgres {
        /// Where it is.
        url: PostgresUrl,
        /// Where the password is, if it asks for one.
        password: Password,
    },
}

/// How to run a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory that [`crate::init`] made.
    pub data: PathBuf,
    /// Where the state is kept.
    pub store: StoreAt,
    /// Where agents connect. Port 0 takes a free one, which [`Ready`] tells.
    pub listen: SocketAddr,
    /// The operators' socket; `DATA/run/admin.sock` when absent.
    pub admin: Option<PathBuf>,
    /// Where metrics are served; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// Where revocation lists and OCSP are served over plain HTTP; nowhere when absent.
    pub views: Option<SocketAddr>,
    /// Where the console is served, and under which names; nowhere when absent.
    pub console: Option<ConsoleConfig>,
    /// The address that agents are told to dial; where the server listens when absent.
    pub advertise: Option<String>,
    /// How long an issuer that this server makes lives.
    pub issuer_lifetime: Lifetime,
    /// How long requests in flight may take to end when the server stops.
    pub drain: Duration,
    /// How long nothing is issued after a new incarnation began.
    pub hold_off: Duration,
    /// A folder in a second place, where every rule is written as well; none when absent.
    pub journal: Option<PathBuf>,
    /// Whose certificates make machines nodes; nobody's when absent.
    pub node_authorities: Option<NodeAuthorities>,
    /// How long the details of events are kept; for ever when absent.
    pub details_kept: Option<Duration>,
    /// Where spans go, if they go anywhere.
    pub tracing: Option<Tracing>,
    /// Where keys are that lie in tokens.
    pub vault: Arc<dyn KeyVault>,
    /// What opens the key file, if it is wrapped.
    pub unlock: Option<Arc<dyn KeyWrap>>,
}

impl Config {
    /// The defaults for a data directory.
    pub fn new(data: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data: data.into(),
            store: StoreAt::Directory,
            listen,
            admin: None,
            metrics: None,
            views: None,
            console: None,
            advertise: None,
            issuer_lifetime: lifetime(ISSUER_LIFETIME_SECS),
            drain: DRAIN,
            hold_off: HOLD_OFF,
            journal: None,
            node_authorities: None,
            details_kept: None,
            tracing: None,
            vault: Arc::new(NoVault),
            unlock: None,
        }
    }

    /// Where the operators' socket is.
    pub fn admin_path(&self) -> PathBuf {
        self.admin.clone().unwrap_or_else(|| admin_path(&self.data))
    }
}

/// Where the console is.
#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Where browsers connect, over TLS. Port 0 takes a free one, which [`Ready`] tells.
    pub listen: SocketAddr,
    /// The names by which browsers know it; the first is the one in links.
    pub names: Vec<DnsName>,
}

/// How to begin a trust domain.
#[derive(Clone, Debug)]
pub struct InitConfig {
    /// The data directory: missing, or empty.
    pub data: PathBuf,
    /// Where the state is kept.
    pub store: StoreAt,
    /// The key that seals the authorities of a trust domain which the store holds already: one more server of it is made.
    pub kek: Option<PathBuf>,
    /// The name under which identities are issued, for good.
    pub trust_domain: TrustDomain,
    /// How long the root lives.
    pub root_lifetime: Lifetime,
    /// How long the first issuer lives.
    pub issuer_lifetime: Lifetime,
    /// The name of the root's key in a token, made if it is not there; a key of the server's own when absent.
    pub root_key: Option<String>,
    /// Where keys are that lie in tokens.
    pub vault: Arc<dyn KeyVault>,
    /// What wraps the key file that is made, or opens the one that is given; a new one lies open when absent.
    pub unlock: Option<Arc<dyn KeyWrap>>,
}

impl InitConfig {
    /// The defaults for a trust domain.
    pub fn new(data: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        Self {
            data: data.into(),
            store: StoreAt::Directory,
            kek: None,
            trust_domain,
            root_lifetime: lifetime(ROOT_LIFETIME_SECS),
            issuer_lifetime: lifetime(ISSUER_LIFETIME_SECS),
            root_key: None,
            vault: Arc::new(NoVault),
            unlock: None,
        }
    }
}

/// What [`crate::init`] made.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The name of the root's key: what a joining agent is told to trust, `sha256:…`.
    pub trust: KeyId,
}

/// A server that serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where agents connect; absent while the server is sealed.
    pub listen: Option<SocketAddr>,
    /// The operators' socket.
    pub admin: PathBuf,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where revocation lists and OCSP are served.
    pub views: Option<SocketAddr>,
    /// Where the console is served.
    pub console: Option<SocketAddr>,
}

fn lifetime(secs: u64) -> Lifetime {
    Lifetime::from_secs(secs).expect("the constants are within a lifetime's range")
}

/// Where the operators' socket of a data directory is, when nothing else is said.
pub fn admin_path(data: &Path) -> PathBuf {
    data.join("run").join("admin.sock")
}

pub(crate) fn kek_path(data: &Path) -> PathBuf {
    data.join("kek")
}

pub(crate) fn domain_path(data: &Path) -> PathBuf {
    data.join("domain.json")
}

/// What tells of a data directory that waits for a certificate from outside.
pub(crate) fn pending_path(data: &Path) -> PathBuf {
    data.join("request.json")
}

/// Why a server does not start, or a trust domain does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `init` on a directory in use.
    #[error(
        "`{path}` already holds trust domain `{domain}`; remove it to begin anew, or choose another directory"
    )]
    DataExists {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        domain: String,
    },
    /// `init` on a directory with other things in it.
    #[error("`{path}` is not empty and holds no trust domain; choose another directory")]
    DataNotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// `run` on something that `init` did not make.
    #[error("`{path}` holds no trust domain; `countersign init` makes one")]
    NoData {
        /// The directory.
        path: PathBuf,
    },
    /// A trust domain that has not begun.
    #[error(
        "`{path}` waits for the certificate of its issuer: have `{path}/request.pem` signed by the authority outside, then \
         `countersign init --data {path} --import CHAIN.pem`"
    )]
    Pending {
        /// The directory.
        path: PathBuf,
    },
    /// A chain for nothing.
    #[error(
        "nothing in `{path}` waits for a certificate; `countersign init --root-key external` makes the request for one"
    )]
    NothingWaits {
        /// The directory.
        path: PathBuf,
    },
    /// A file that is not there.
    #[error("there is no file `{path}`")]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// Made by a later version.
    #[error(
        "`{path}` was made by a newer version (format {found}, this one knows up to {known}); run that version"
    )]
    NewerData {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// The file of authorities whose machines may become nodes.
    #[error("the authorities of machines cannot be used: {0}")]
    NodeAuthorities(String),
    /// The directory says another trust domain than its records.
    #[error("`{path}` holds state of trust domain `{found}`, expected `{expected}`")]
    WrongDomain {
        /// The directory.
        path: PathBuf,
        /// In the records.
        found: String,
        /// In the directory's own description.
        expected: String,
    },
    /// `init` on a database in use.
    #[error(
        "`{place}` already holds a trust domain; give its key with `--kek` to add a server to it, or choose another database"
    )]
    StoreExists {
        /// The database.
        place: String,
    },
    /// A key that does not open what the store holds.
    #[error("`{path}` does not open the keys in the store: {why}")]
    WrongKek {
        /// The key's file.
        path: PathBuf,
        /// What did not fit.
        why: String,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Kek(#[from] KekFileRefused),
    /// One more server, without saying of which store.
    #[error(
        "`--kek` adds a server to a trust domain in a database; name the database with `--store`"
    )]
    KekWithoutStore,
    /// Others may write to the directory.
    #[error("`{path}` has mode {mode:03o}, which lets others change it; run `chmod go-w` on it")]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another user's directory.
    #[error("`{path}` belongs to uid {owner}; run the server as that user")]
    ForeignData {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A file of the directory.
    #[error("could not {action} `{path}`: {}", told(.source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that does not parse.
    #[error("`{path}` is damaged: {why}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// Another process listens there, or it cannot be listened at.
    #[error("could not listen at `{address}`: {}{}", plain(.source), instead(.source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A Unix socket's path over the kernel's limit.
    #[error(
        "socket path `{path}` has {bytes} bytes, over the kernel's limit of 107; choose a shorter one with `--admin-socket`"
    )]
    LongSocketPath {
        /// The path.
        path: PathBuf,
        /// How many.
        bytes: usize,
    },
    /// A living server has the admin socket.
    #[error(
        "a server already answers at `{path}`; stop it, or choose another path with `--admin-socket`"
    )]
    SocketTaken {
        /// The path.
        path: PathBuf,
    },
    /// Something else lies where the socket should be.
    #[error(
        "`{path}` exists and is not a socket; remove it, or choose another path with `--admin-socket`"
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The admin socket could not be made.
    #[error("could not listen at `{path}`: {}", told(.source))]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A restore into a database in use.
    #[error(
        "`{place}` already holds a trust domain, and a restore replaces nothing; choose an empty database"
    )]
    DatabaseInUse {
        /// The database.
        place: String,
    },
    /// A journal that was named, and is none.
    #[error(
        "`{path}` {why}: name the folder that the server's `--journal` named, or leave `--journal` out if no journal was kept"
    )]
    NoJournal {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        why: &'static str,
    },
    /// Something lies where a restore builds, and a restore that was cut off did not leave it so.
    #[error(
        "`{path}` is in the way: a restore makes it, and renames it when all is well. This one is somebody else's, or whole and \
         without its name; if nobody needs it, remove it, and restore again"
    )]
    RestoringExists {
        /// The directory.
        path: PathBuf,
    },
    /// Another restore makes the same place.
    #[error(
        "another restore makes `{path}` at this moment; wait for it, or choose another place with `--data`"
    )]
    RestoreRuns {
        /// The directory.
        path: PathBuf,
    },
    /// Another backup writes the same file.
    #[error("another backup writes `{path}` at this moment; wait for it, or choose another name")]
    BackupRuns {
        /// The file.
        path: PathBuf,
    },
    /// A state that lost something, or all.
    #[error(
        "the state is behind what the server of `{path}` has seen: it holds revision {found} and a log of {entries} entries, and \
         there were revision {seen} and {leaves} (`seen.json`). Restore the latest backup; if this is the state that is meant, start a server \
         on it, which begins a new incarnation"
    )]
    Behind {
        /// The directory.
        path: PathBuf,
        /// The revision that is there.
        found: Revision,
        /// The entries of the log that are there.
        entries: u64,
        /// The revision that was there.
        seen: Revision,
        /// The entries of the log that were there.
        leaves: u64,
    },
    /// A state in which nothing has begun.
    #[error("the state holds no trust domain: if there was one, restore its latest backup")]
    Nothing,
    /// A backup where there is a file already.
    #[error("`{path}` exists already; a backup never replaces a file")]
    BackupExists {
        /// The file.
        path: PathBuf,
    },
    /// A backup that cannot be restored.
    #[error("`{path}` cannot be restored: {why}")]
    BadBackup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store does not open or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first authorities could not be made, or the server's own credential.
    #[error(transparent)]
    Refused(#[from] crate::refusal::Refused),
}

/// What the system said, and what helps where that is known.
fn told(error: &io::Error) -> String {
    let helps = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as the user whose it is, or as root",
        io::ErrorKind::StorageFull => "; make room, or choose another place",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a place that can be written to",
        _ => "",
    };
    plain(error) + helps
}

/// Where else it could be listened.
fn instead(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop the process that has it, or choose another port (0 takes a free one)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has that address: `0.0.0.0` and `[::]` stand for all that it has"
        }
        io::ErrorKind::PermissionDenied => {
            "; a port below 1024 takes root or CAP_NET_BIND_SERVICE: choose a higher one"
        }
        _ => "",
    }
}

impl StartError {
    /// The code, from which the exit status follows.
    pub fn code(&self) -> Code {
        match self {
            Self::DataExists { .. }
            | Self::DataNotEmpty { .. }
            | Self::StoreExists { .. }
            | Self::DatabaseInUse { .. }
            | Self::RestoringExists { .. }
            | Self::RestoreRuns { .. }
            | Self::BackupRuns { .. }
            | Self::BackupExists { .. }
            | Self::SocketTaken { .. } => Code::AlreadyExists,
            Self::NotASocket { .. } => Code::AlreadyExists,
            Self::Pending { .. } => Code::NotReady,
            Self::Behind { .. } | Self::Nothing => Code::Internal,
            Self::NoData { .. }
            | Self::NothingWaits { .. }
            | Self::NoFile { .. }
            | Self::Exposed { .. }
            | Self::ForeignData { .. }
            | Self::NewerData { .. }
            | Self::WrongDomain { .. }
            | Self::WrongKek { .. }
            | Self::BadBackup { .. }
            | Self::NoJournal { .. }
            | Self::KekWithoutStore
            | Self::NodeAuthorities(_)
            | Self::LongSocketPath { .. } => Code::NotUnderstood,
            Self::Listen { source, .. } | Self::Socket { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => Code::AlreadyExists,
                _ => Code::Unavailable,
            },
            Self::Kek(refused) => match refused {
                KekFileRefused::Exists(_) => Code::AlreadyExists,
                KekFileRefused::Missing(_)
                | KekFileRefused::NotPlain(_)
                | KekFileRefused::Exposed { .. }
                | KekFileRefused::Owner { .. }
                | KekFileRefused::Wrapped { .. }
                | KekFileRefused::Length { .. } => Code::NotUnderstood,
                KekFileRefused::Wrap {
                    why: WrapRefused::Token(_) | WrapRefused::Memory { .. },
                    ..
                } => Code::Unavailable,
                KekFileRefused::Wrap { why: WrapRefused::Entropy(_), .. } => Code::Internal,
                KekFileRefused::Wrap { .. } => Code::NotUnderstood,
                KekFileRefused::Entropy(_) | KekFileRefused::Io { .. } => Code::Internal,
            },
            Self::File { .. } | Self::Damaged { .. } => Code::Internal,
            Self::Store(StoreError::Locked { .. } | StoreError::Served { .. }) => {
                Code::AlreadyExists
            }
            Self::Store(error) => error.code(),
            Self::Refused(refused) => refused.code,
        }
    }
}
