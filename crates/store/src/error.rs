//! Why the store did not do what it was asked.

use std::path::PathBuf;

use countersign_audit::LeafRefused;
use countersign_identity::{Code, EntropyLost, KeyId, NodeId, Revision, Serial};

use crate::{Head, Kind, PRESENCE_TTL};

/// What the store's methods return.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why the store did not do what it was asked. Nothing of a refused batch is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The state moved on since the changes were made for it.
    #[error("the changes were made for revision {expected}, the current one is {current}")]
    Conflict {
        /// For which they were made.
        expected: Revision,
        /// Which is current.
        current: Revision,
    },
    /// The log grew since its size was taken.
    #[error("the log was to have {expected} leaves, it has {current}")]
    LogMoved {
        /// How many it was to have.
        expected: u64,
        /// How many it has.
        current: u64,
    },
    /// Rights were taken away since this was authorised.
    #[error("authorised at revision {authorised_at}, but rights were taken away at {fence}")]
    Fenced {
        /// The snapshot on which it was authorised.
        authorised_at: Revision,
        /// The latest revision that took rights away.
        fence: Revision,
    },
    /// There is no such record.
    #[error("there is no {kind} `{name}`")]
    RecordUnknown {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// There is no such join token.
    #[error("the join token is not known")]
    TokenUnknown,
    /// The join token was used.
    #[error("the join token was used already")]
    TokenSpent,
    /// The join token is too old.
    #[error("the join token has expired")]
    TokenExpired,
    /// There is no such node.
    #[error("node `{0}` is not registered")]
    NodeUnknown(NodeId),
    /// The node has had another key since, or none of this generation yet.
    #[error(
        "node `{id}` is at generation {current} of its key, the caller showed generation {given}"
    )]
    StaleGeneration {
        /// Which node.
        id: NodeId,
        /// What the caller proved.
        given: u64,
        /// What is registered.
        current: u64,
    },
    /// There is one already.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What, with its name.
        what: String,
    },
    /// A certificate was to be recorded for a key that was revoked.
    #[error("key `{0}` was revoked, and is refused for ever")]
    KeyRevoked(KeyId),
    /// More or longer than the store takes.
    #[error("{what}: {found} is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much it is.
        found: usize,
        /// How much it may be.
        limit: usize,
    },
    /// An event cannot be written into the log.
    #[error(transparent)]
    Leaf(#[from] LeafRefused),
    /// The batch would record a certificate in one place and not, or differently, in the other.
    #[error("the log's event and the issued row of certificate `{}` do not agree", one_serial(.serial))]
    Mismatched {
        /// Which certificate, if the event names one.
        serial: Option<Serial>,
    },
    /// Another process has the store open.
    #[error("`{}` is in use by another server{}", .path.display(), process(.pid))]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Who has it, if it can be told.
        pid: Option<u32>,
    },
    /// Servers work on a state that must not change, or where one is to be put.
    #[error(
        "servers work on `{}`: {} (as their `domain.json` says). Stop them first. One that was killed or hangs counts as gone \
         once it has not renewed its lease for {PRESENCE_TTL:?}",
        .path.display(), listed(.servers)
    )]
    Served {
        /// Which database.
        path: PathBuf,
        /// Their names.
        servers: Vec<String>,
    },
    /// There is no store.
    #[error("there is no store in `{}`; `countersign init` makes one", .path.display())]
    Missing {
        /// The data directory.
        path: PathBuf,
    },
    /// There is no place for a store.
    #[error("there is no folder `{}`; make it first, for its owner only: `mkdir -p -m 700` makes one", .path.display())]
    NoFolder {
        /// The data directory.
        path: PathBuf,
    },
    /// Others may read or change the store's files.
    #[error("`{}` has mode {mode:04o}, which lets others in; run `chmod 600` on it", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is something else.
    #[error("`{}` is not a store of countersign", .path.display())]
    NotAStore {
        /// Which file.
        path: PathBuf,
    },
    /// A later version has had the store in hand.
    #[error(
        "`{}` has schema {found}, which takes a program that knows {needs}; this one knows up to {known}: use a newer one",
        .path.display()
    )]
    NewerSchema {
        /// Which file.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What a program has to know.
        needs: u64,
        /// What is known.
        known: u64,
    },
    /// Somebody has a store of an earlier version open, or it was not opened since for writing.
    #[error(
        "`{}` has schema {found}, this program reads {known}: start a server of this version on it once, which brings it there",
        .path.display()
    )]
    OlderSchema {
        /// Which file.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What is read.
        known: u64,
    },
    /// The next version of the schema changes what others rely on, and they are still there.
    #[error(
        "version {version} of the schema of `{}` changes what programs rely on that know it up to {known}, and {connections} \
         connections of such programs are open: stop them, then start this one again (`pg_stat_activity` shows them, the \
         version behind the name)",
        .path.display()
    )]
    OlderPrograms {
        /// Which database.
        path: PathBuf,
        /// What the schema would become.
        version: u64,
        /// The least that one of them knows.
        known: u64,
        /// How many connections they have.
        connections: u64,
    },
    /// The store's contents contradict each other: damage, tampering or a defect.
    #[error("the store is damaged: {what}")]
    Broken {
        /// What does not fit.
        what: String,
    },
    /// The store is at an older state than one that was seen: a backup was put in its place, or a standby that was behind
    /// took over. To go on as if nothing were lost would give one revision two meanings.
    #[error(
        "the database is at {}, but {} were seen before: it was restored, or a standby that was behind took over",
        told(.found), told(.seen)
    )]
    WentBack {
        /// What is there now.
        found: Head,
        /// What was there.
        seen: Head,
    },
    /// The storage did not answer, or is full.
    #[error("the storage is not available: {why}")]
    Unavailable {
        /// What it said.
        why: String,
    },
    /// There is no randomness for the log's salts.
    #[error(transparent)]
    Entropy(#[from] EntropyLost),
}

fn one_serial(serial: &Option<Serial>) -> String {
    serial.map_or_else(|| "without serial".to_owned(), |serial| serial.to_string())
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn process(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn told(head: &Head) -> String {
    format!("revision {}, {} leaves", head.revision, head.log_size)
}

impl StoreError {
    /// The stable word for it.
    pub const fn code(&self) -> Code {
        match self {
            Self::Conflict { .. } | Self::LogMoved { .. } => Code::StaleBase,
            Self::Fenced { .. } => Code::Fenced,
            Self::RecordUnknown { .. } => Code::NotFound,
            Self::TokenUnknown => Code::UnknownToken,
            Self::TokenSpent => Code::SpentToken,
            Self::TokenExpired => Code::ExpiredToken,
            Self::NodeUnknown(_) => Code::UnknownNode,
            Self::StaleGeneration { .. } => Code::StaleGeneration,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::KeyRevoked(_) => Code::RevokedKey,
            Self::TooLarge { .. } | Self::Leaf(_) => Code::TooLarge,
            Self::Mismatched { .. } | Self::Broken { .. } | Self::WentBack { .. } => Code::Internal,
            Self::Missing { .. } | Self::OlderPrograms { .. } => Code::NotReady,
            Self::Exposed { .. }
            | Self::NoFolder { .. }
            | Self::NotAStore { .. }
            | Self::NewerSchema { .. }
            | Self::OlderSchema { .. } => Code::NotUnderstood,
            Self::Locked { .. }
            | Self::Served { .. }
            | Self::Unavailable { .. }
            | Self::Entropy(_) => Code::Unavailable,
        }
    }

    /// Whether the storage failed, and not the batch: then the whole transaction is void.
    pub(crate) const fn is_of_storage(&self) -> bool {
        match self {
            Self::Broken { .. }
            | Self::WentBack { .. }
            | Self::Unavailable { .. }
            | Self::Entropy(_) => true,
            Self::Conflict { .. }
            | Self::LogMoved { .. }
            | Self::Fenced { .. }
            | Self::RecordUnknown { .. }
            | Self::TokenUnknown
            | Self::TokenSpent
            | Self::TokenExpired
            | Self::NodeUnknown(_)
            | Self::StaleGeneration { .. }
            | Self::AlreadyExists { .. }
            | Self::KeyRevoked(_)
            | Self::TooLarge { .. }
            | Self::Leaf(_)
            | Self::Mismatched { .. }
            | Self::Locked { .. }
            | Self::Served { .. }
            | Self::Missing { .. }
            | Self::NoFolder { .. }
            | Self::Exposed { .. }
            | Self::NotAStore { .. }
            | Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::OlderPrograms { .. } => false,
        }
    }
}
