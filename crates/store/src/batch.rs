//! What a caller asks the store to do, as plain data.

use std::fmt;
use std::str::FromStr;

use countersign_audit::{Event, TileHash};
use countersign_identity::{
    Incarnation, KeyId, NodeId, Revision, Serial, Sha256, SpiffeId, Timestamp,
};
use countersign_pki::Receipt;

use crate::{
    CheckpointRow, FlowRow, IssuedRow, NodeRow, PaperRow, PointKey, PointRow, TallyOf, TallyRow,
    TokenRow,
};

/// The kinds of records, in the order of their words. Closed: a kind of a later version is refused, never skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// How authorities are made and succeeded.
    Authority,
    /// The public keys that are trusted for one trust domain.
    Bundle,
    /// The present life of the store, when it followed another.
    Incarnation,
    /// Who may do what to whom.
    Policy,
    /// What was issued and is out of service.
    Revocation,
    /// Who is in a group of workloads.
    Role,
    /// Where a workload listens and whom it calls.
    Service,
    /// What is not issued any more.
    Suspension,
    /// What the doors of services agree to.
    TlsProfile,
    /// A realm's own settings.
    TrustDomain,
    /// How far the authorities have walked, in one record.
    Walk,
    /// One identity and who may be it.
    Workload,
}

/// A text that is none of the kinds of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a kind of record: expected `Authority`, `Bundle`, `Incarnation`, `Policy`, `Revocation`, `Role`, `Service`, `Suspension`, `TlsProfile`, `TrustDomain`, `Walk` or `Workload`"
)]
pub struct UnknownKind(String);

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Authority,
        Self::Bundle,
        Self::Incarnation,
        Self::Policy,
        Self::Revocation,
        Self::Role,
        Self::Service,
        Self::Suspension,
        Self::TlsProfile,
        Self::TrustDomain,
        Self::Walk,
        Self::Workload,
    ];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "Authority",
            Self::TrustDomain => "TrustDomain",
            Self::Walk => "Walk",
            Self::Workload => "Workload",
            Self::Service => "Service",
            Self::Policy => "Policy",
            Self::Role => "Role",
            Self::TlsProfile => "TlsProfile",
            Self::Bundle => "Bundle",
            Self::Incarnation => "Incarnation",
            Self::Revocation => "Revocation",
            Self::Suspension => "Suspension",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| UnknownKind(text.chars().take(80).collect()))
    }
}

/// One entry of the map that verifiers enforce and agents serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of which kind.
    pub kind: Kind,
    /// Its name, unique within the kind.
    pub name: String,
    /// What it says, in the form of its kind.
    pub value: Vec<u8>,
}

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a record, or replaces it.
    Put(Record),
    /// Removes a record, which must exist.
    Remove {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
}

/// What is written beside the map, without a revision of its own.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Keeps a sealed secret under a name, in place of the one before.
    PutSecret {
        /// Its name.
        name: String,
        /// The sealed bytes.
        sealed: Vec<u8>,
    },
    /// Keeps a new join token.
    CreateToken(TokenRow),
    /// Uses up a join token: of any number of callers at once exactly one succeeds.
    SpendToken {
        /// The token's digest.
        hash: Sha256,
        /// The moment, which must be before the token's end.
        now: Timestamp,
    },
    /// Registers a new node, whose id and key must both be new.
    PutNode(NodeRow),
    /// Registers another key of a node, its successor or one that a lost tail knew.
    UpdateNode {
        /// Which node.
        id: NodeId,
        /// The generation on record; any other is refused.
        expect_generation: u64,
        /// The key by which the node has proved itself; refused when it was revoked.
        proven: KeyId,
        /// The generation of the other key.
        generation: u64,
        /// The successor, as SubjectPublicKeyInfo.
        key_spki: Vec<u8>,
        /// When it was seen.
        at: Timestamp,
    },
    /// Goes on only if the node is registered, and under this generation of its key.
    ExpectNode {
        /// Which node.
        id: NodeId,
        /// The generation that the caller proved.
        generation: u64,
    },
    /// Removes a node.
    RemoveNode {
        /// Which node.
        id: NodeId,
    },
    /// Refuses certificates for these keys from now on, for ever.
    RevokeKeys {
        /// Whose keys.
        of: KeysOf,
        /// Since when.
        at: Timestamp,
    },
    /// Registers an enforcement point; one that is there stays as it is.
    PutPoint(PointRow),
    /// Forgets an enforcement point, if it is there.
    RemovePoint(PointKey),
    /// Keeps what the log's key has signed of the log. Those before it that the hashes of full tiles make needless go.
    PutCheckpoint(CheckpointRow),
    /// Keeps hashes of full tiles of a log; those that are there stay as they are.
    PutTileHashes {
        /// Of the log of which incarnation.
        incarnation: Incarnation,
        /// The hashes.
        hashes: Vec<TileHash>,
    },
    /// Drops the details of events, which their leaves go on to bind.
    TrimDetails {
        /// In the log of which incarnation.
        incarnation: Incarnation,
        /// The first of them.
        from: u64,
        /// The first that keeps its details.
        to: u64,
    },
    /// Adds to the count of a flow, and widens the time in which it was seen.
    AddFlow(FlowRow),
    /// Drops flows that were not seen since.
    TrimFlows {
        /// The moment.
        before: Timestamp,
    },
    /// Keeps a paper, whose name must be new: of any number of callers at once exactly one succeeds.
    CreatePaper(PaperRow),
    /// Drops a paper, if it is there.
    RemovePaper {
        /// Its name.
        name: String,
    },
    /// Adds to a tally: to its count and its time, with the newer sample.
    AddTally(TallyOf, TallyRow),
    /// Drops tallies of spans that began earlier, the oldest first, at most [`TRIM_ROWS_MAX`](crate::TRIM_ROWS_MAX).
    TrimTallies {
        /// Of what.
        of: TallyOf,
        /// The moment.
        before: Timestamp,
    },
    /// Notes that a node was seen.
    TouchNode {
        /// Which node.
        id: NodeId,
        /// When; an earlier moment than the one on record changes nothing.
        at: Timestamp,
    },
}

/// Whose keys are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysOf {
    /// This one.
    Key(KeyId),
    /// Those in the rows of this certificate.
    Serial(Serial),
    /// Those in all kept rows of this identity.
    Identity(SpiffeId),
    /// Those in all kept rows that were issued through this node.
    Node(NodeId),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Sealed or not, a secret is not for a log.
            Self::PutSecret { name, sealed } => {
                write!(f, "PutSecret {{ name: {name:?}, sealed: {} bytes }}", sealed.len())
            }
            Self::CreateToken(row) => write!(f, "CreateToken({row:?})"),
            Self::SpendToken { hash, now } => write!(f, "SpendToken {{ {hash}, now: {now} }}"),
            Self::PutNode(row) => write!(f, "PutNode({row:?})"),
            Self::UpdateNode { id, expect_generation, .. } => {
                write!(f, "UpdateNode {{ {id}, expect_generation: {expect_generation} }}")
            }
            Self::ExpectNode { id, generation } => {
                write!(f, "ExpectNode {{ {id}, generation: {generation} }}")
            }
            Self::RemoveNode { id } => write!(f, "RemoveNode {{ {id} }}"),
            Self::RevokeKeys { of, at } => write!(f, "RevokeKeys {{ {of:?}, at: {at} }}"),
            Self::PutPoint(row) => write!(f, "PutPoint({row:?})"),
            Self::RemovePoint(key) => write!(f, "RemovePoint({key:?})"),
            Self::PutCheckpoint(row) => write!(f, "PutCheckpoint({row:?})"),
            Self::PutTileHashes { incarnation, hashes } => {
                write!(f, "PutTileHashes {{ of {incarnation}, {} hashes }}", hashes.len())
            }
            Self::TrimDetails { incarnation, from, to } => {
                write!(f, "TrimDetails {{ of {incarnation}, {from} to {to} }}")
            }
            Self::AddFlow(row) => write!(f, "AddFlow({row:?})"),
            Self::TrimFlows { before } => write!(f, "TrimFlows {{ before: {before} }}"),
            Self::CreatePaper(row) => write!(f, "CreatePaper({})", row.name),
            Self::RemovePaper { name } => write!(f, "RemovePaper({name})"),
            Self::AddTally(of, row) => write!(f, "AddTally({of:?}, {row:?})"),
            Self::TrimTallies { of, before } => {
                write!(f, "TrimTallies {{ of: {of:?}, before: {before} }}")
            }
            Self::TouchNode { id, at } => write!(f, "TouchNode {{ {id}, at: {at} }}"),
        }
    }
}

/// The beginning of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begins {
    /// Which, greater than the one before.
    pub incarnation: Incarnation,
    /// How many leaves the log before it has; with others it is a conflict, since its first leaf names them.
    pub log_size: u64,
}

/// One atomic piece of writing.
///
/// It moves the revision when it holds changes, narrows or begins an incarnation, and only then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The revision that the changes were made for; at any other they are a conflict.
    pub expected: Option<Revision>,
    /// The revision of the snapshot on which this was authorised; refused when rights were taken away since.
    pub authorised_at: Option<Revision>,
    /// Whether this takes rights away: it then goes before what waits, and moves the fence.
    pub narrows: bool,
    /// The incarnation that this begins: revisions and the log start anew with it, and what the log held is kept as a
    /// past one.
    pub begins: Option<Begins>,
    /// Changes of the map, in order.
    pub changes: Vec<Change>,
    /// What the log says of it, in order.
    pub events: Vec<Event>,
    /// Certificates that are about to be signed. Each needs its event in `events`, with its serial and digest.
    pub issued: Vec<IssuedRow>,
    /// What is written beside the map, in order.
    pub ops: Vec<Op>,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Committed {
    /// The revision that is current now that it happened.
    pub revision: Revision,
    /// The log's index of the first of its events.
    pub first_index: u64,
    /// One receipt for each issued row, in order: with it, that certificate can be signed.
    pub receipts: Vec<Receipt>,
}
