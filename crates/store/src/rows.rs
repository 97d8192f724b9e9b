//! What the store answers, as plain data.

use std::fmt;

use countersign_audit::{Event, EventKind, TILE_WIDTH};
use countersign_identity::{
    Incarnation, KeyId, Name, NodeEvidence, NodeId, Revision, Serial, Sha256, SpiffeId, Timestamp,
    Validity,
};

use crate::{Change, Record};

/// The one row at which all writers meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The latest revision.
    pub revision: Revision,
    /// The latest revision that took rights away. What was authorised before it must be authorised again.
    pub fence: Revision,
    /// How many leaves the log has.
    pub log_size: u64,
}

impl Head {
    /// That of an incarnation in which nothing has happened yet.
    pub(crate) fn of(incarnation: Incarnation) -> Self {
        let revision = Revision { incarnation, number: 0 };
        Self { revision, fence: revision, log_size: 0 }
    }

    /// Whether the feed can go on after a revision, given the first commit that is kept.
    pub(crate) fn feeds(&self, after: Revision, first_kept: Option<u64>) -> bool {
        let first = first_kept.unwrap_or(self.revision.number + 1);
        after.incarnation == self.revision.incarnation
            && after <= self.revision
            && first <= after.number + 1
    }
}

/// All records of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of which revision.
    pub revision: Revision,
    /// The records in the order of their kinds and names.
    pub records: Vec<Record>,
}

/// One committed set of changes; empty when rights were taken away beside the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The revision that it made.
    pub revision: Revision,
    /// What it changed, in order.
    pub changes: Vec<Change>,
}

/// What came after a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The next commits, without a gap; empty when there is none yet.
    Changes(Vec<Commit>),
    /// The revision is of another incarnation, no longer kept, or not reached yet: begin with a snapshot.
    SnapshotNeeded,
}

/// Between which revisions the feed is kept, as numbers of one incarnation, all of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The number of the latest revision.
    pub head: u64,
    /// How many commits are kept.
    pub commits: u64,
    /// The first and the last of them.
    pub kept: Option<(u64, u64)>,
    /// The first and the last commit of which changes are kept.
    pub changed: Option<(u64, u64)>,
}

/// The record of a certificate, kept until it has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedRow {
    /// Its serial.
    pub serial: Serial,
    /// The digest of its to-be-signed bytes.
    pub tbs: Sha256,
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// Its public key.
    pub key: KeyId,
    /// The public key that signs it.
    pub issuer: KeyId,
    /// The node through which it was issued, unless it is a server's or an authority's.
    pub node: Option<NodeId>,
    /// From when to when it is valid.
    pub validity: Validity,
    /// The revision under which it was authorised, as the certificate says it.
    pub revision: Revision,
}

impl IssuedRow {
    /// The event that the log needs for this row.
    pub fn event(&self, kind: EventKind, at: Timestamp, actor: impl Into<String>) -> Event {
        let details = serde_json::json!({
            "key": self.key,
            "issuer": self.issuer,
            "node": self.node,
            "notBefore": self.validity.not_before,
            "notAfter": self.validity.not_after,
            "authorisedAt": self.revision,
        });
        Event::new(kind, at, actor, self.spiffe_id.to_string())
            .with_certificate(self.serial, self.tbs)
            .with_details(details)
    }
}

/// An issued row and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The row.
    pub row: IssuedRow,
    /// The index of its leaf.
    pub index: u64,
}

/// A registered machine.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub id: NodeId,
    /// The identity of its agent.
    pub spiffe_id: SpiffeId,
    /// Its registered key, as SubjectPublicKeyInfo.
    pub key_spki: Vec<u8>,
    /// How many keys it has had.
    pub generation: u64,
    /// What its join token said of it.
    pub labels: Vec<Name>,
    /// The host name that it told.
    pub host: String,
    /// When it proved itself.
    pub attested_at: Timestamp,
    /// When it was last seen.
    pub seen_at: Timestamp,
    /// By what it proved itself. Of nodes that older versions have registered nobody knows.
    pub attested_by: Option<NodeEvidence>,
}

impl fmt::Debug for NodeRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, spiffe_id, generation, labels, .. } = self;
        write!(f, "NodeRow {{ {id}, {spiffe_id}, generation: {generation}, labels: {labels:?} }}")
    }
}

/// What names an enforcement point. Two programs of different identities may choose one name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointKey {
    /// Through which node it speaks.
    pub node: NodeId,
    /// For which identity it enforces.
    pub spiffe_id: SpiffeId,
    /// Its own name.
    pub name: String,
}

/// An enforcement point, from when it first subscribed until it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRow {
    /// Which.
    pub key: PointKey,
    /// Since when.
    pub registered_at: Timestamp,
}

/// What one replica tells the others of the enforcement points that it hears.
#[derive(Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// Whose.
    pub replica: String,
    /// Which of its reports: each has a higher number than the one before.
    pub version: u64,
    /// What it says, in the server's own form.
    pub body: Vec<u8>,
}

impl fmt::Debug for ReportRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, version, body } = self;
        write!(f, "ReportRow {{ {replica}, version: {version}, body: {} bytes }}", body.len())
    }
}

/// Who has a duty that only one server does at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The server that has it.
    pub holder: String,
    /// Until when, unless it renews it, by its own clock. To others it says which renewal this is, and nothing else: their
    /// clocks may be apart. (Programs of before judge by it.)
    pub ends: Timestamp,
}

/// A join token, known by its digest only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// SHA-256 of the token.
    pub hash: Sha256,
    /// From when on it is refused.
    pub expires: Timestamp,
    /// What a node that joins with it is labelled.
    pub labels: Vec<Name>,
    /// When it was used.
    pub spent: Option<Timestamp>,
}

/// A leaf of the log with what is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its index.
    pub index: u64,
    /// The bytes that are hashed; [`countersign_audit::Entry::parse`] reads them.
    pub leaf: Vec<u8>,
    /// Their hash in the tree.
    pub hash: Sha256,
    /// The details and their salt, until they are dropped.
    pub details: Option<Details>,
}

/// The details of an event, which its leaf holds only as a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Canonical JSON.
    pub json: Vec<u8>,
    /// What hides them from guessing.
    pub salt: [u8; 16],
}

/// What was signed of a log at one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Of the log of which incarnation.
    pub incarnation: Incarnation,
    /// At which size.
    pub size: u64,
    /// The signed note.
    pub note: String,
}

impl CheckpointRow {
    /// The size from which on earlier checkpoints are kept beside this one: what is before it is in full tiles, whose hashes
    /// narrow a change down as well.
    pub(crate) const fn keeps_from(&self) -> u64 {
        self.size / TILE_WIDTH * TILE_WIDTH
    }
}

/// Things alike that were asked for, counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// What they are; the text means something to others only.
    pub flow: String,
    /// When the first was seen.
    pub first: Timestamp,
    /// When the last was seen.
    pub last: Timestamp,
    /// How many.
    pub count: u64,
}

/// What operators keep beside the state: a review of policies, the word of who approves a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaperRow {
    /// Its name, in which what belongs together begins alike.
    pub name: String,
    /// What it says; the bytes mean something to others only.
    pub value: Vec<u8>,
}

/// Of what a tally is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TallyOf {
    /// Of handshakes.
    Handshakes,
    /// Of requests that were answered.
    Requests,
}

impl TallyOf {
    /// The number under which rows are kept.
    pub(crate) const fn number(self) -> i64 {
        match self {
            Self::Handshakes => 1,
            Self::Requests => 2,
        }
    }
}

/// A tally: things alike that were seen in one span of time, counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyRow {
    /// When the span began.
    pub at: Timestamp,
    /// What they are; the text means something to others only.
    pub what: String,
    /// When the first was seen.
    pub first: Timestamp,
    /// When the last was seen.
    pub last: Timestamp,
    /// How many.
    pub count: u64,
    /// How long they took together, in microseconds.
    pub micros: u64,
    /// One of them, told more closely.
    pub sample: String,
}

/// A place among tallies, which are read from the newest to the oldest: before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TallyPlace {
    /// Its span.
    pub at: Timestamp,
    /// Its text; with an empty one, only spans that began earlier are before it.
    pub what: String,
}

/// What a trim dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Rows of expired certificates.
    pub issued: usize,
    /// Expired or spent tokens.
    pub tokens: usize,
    /// Whether there was more than is dropped at once.
    pub more: bool,
}
