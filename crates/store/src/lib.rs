//! A trust domain's state: an ordered map with a change feed, and the log beside it.
//!
//! What verifiers enforce and agents serve are records `(kind, name) -> value` under one [`Revision`]. Nodes, join
//! tokens, sealed secrets, leases, replicas' reports and issued certificates are tables beside it, which do not move the
//! revision.
//! Every audit event is written in the transaction of the change that it tells of. All writing goes through
//! [`Store::commit`], one atomic [`Batch`] of plain data at a time, which makes batches fit to be committed together
//! and to be run again.
//!
//! This is the only crate that knows SQL. It refuses to know what a record's value means, how secrets are sealed,
//! and what time it is.

mod backup;
mod batch;
mod bounds;
mod copy;
mod duties;
mod error;
mod memory;
mod postgres;
mod queue;
mod rows;
mod sql;
mod sqlite;
mod transact;
mod verify;
mod version;

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp};
use tokio::sync::watch;

pub use backup::{Dumped, Dumping, Filled, Filling, Page};
pub use batch::{Batch, Begins, Change, Committed, KeysOf, Kind, Op, Record, UnknownKind};
pub use bounds::{
    BATCH_ROWS_MAX, FEED_COMMITS_MAX, FLOW_BYTES_MAX, HOST_BYTES_MAX, KEY_BYTES_MAX, LABELS_MAX,
    NAME_BYTES_MAX, PAGE_MAX, PAPER_BYTES_MAX, REPORT_BYTES_MAX, TALLY_BYTES_MAX, TRIM_ROWS_MAX,
    VALUE_BYTES_MAX,
};
pub use copy::{Copied, PRESENCE, PRESENCE_TTL, Place, copy};
pub use duties::{Duties, Duty};
pub use error::{Result, StoreError};
pub use memory::MemoryStore;
pub use postgres::{BadUrl, Password, PostgresStore, PostgresUrl, Primary, Reached};
pub use rows::{
    CheckpointRow, Commit, Details, Feed, FlowRow, Head, Issued, IssuedRow, Lease, NodeRow,
    PaperRow, PointKey, PointRow, ReportRow, Snapshot, Span, StoredEvent, TallyOf, TallyPlace,
    TallyRow, TokenRow, Trimmed,
};
pub use sqlite::{Observed, SqliteStore};
pub use verify::{Verification, verify_everything, verify_with};

/// The writes that the storage refused, or that did not come back in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What it said last.
    pub last: String,
}

/// Where a trust domain's state is kept.
///
/// Every answer is of one committed state: no reader sees half of a batch, and nobody sees revision n+1 before n.
/// Pages hold at most [`PAGE_MAX`] rows, whatever was asked for.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The one row at which all writers meet.
    async fn head(&self) -> Result<Head>;

    /// All records, in the order of their kinds and names, and the revision that they are of.
    async fn snapshot(&self) -> Result<Snapshot>;

    /// The commits after a revision, in order, at most `limit` of them, fewer when they are large, at least one when
    /// there is one; or word that a snapshot is needed.
    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed>;

    /// Tells that the revision moved. A hint: what holds is what [`Store::changes`] says.
    fn hint(&self) -> watch::Receiver<Revision>;

    /// Does all that the batch says, durably, or nothing of it.
    ///
    /// Once this was polled, the batch may be committed even when the future is dropped. After
    /// [`StoreError::Unavailable`] nobody knows whether it was.
    async fn commit(&self, batch: Batch) -> Result<Committed>;

    /// Between which revisions the feed is kept, counted.
    async fn span(&self) -> Result<Span>;

    /// The sealed secret of this name.
    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// The sealed secrets after this one in the order of their names, each with its name.
    async fn secrets(&self, after: Option<String>, limit: usize) -> Result<Vec<(String, Vec<u8>)>>;

    /// The node of this id.
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>>;

    /// The nodes after this one in the order of their ids.
    async fn nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeRow>>;

    /// The registered enforcement points after this one, in the order of their nodes, identities and names.
    async fn points(&self, after: Option<PointKey>, limit: usize) -> Result<Vec<PointRow>>;

    /// The flows after this one, in the order of their texts' bytes.
    async fn flows(&self, after: Option<String>, limit: usize) -> Result<Vec<FlowRow>>;

    /// The papers after this one, in the order of their names' bytes.
    async fn papers(&self, after: Option<String>, limit: usize) -> Result<Vec<PaperRow>>;
    /// The tallies of spans that began at this moment or later, and before this place, newest first.
    async fn tallies(
        &self,
        of: TallyOf,
        from: Timestamp,
        before: TallyPlace,
        limit: usize,
    ) -> Result<Vec<TallyRow>>;

    /// The span of the newest tally beyond the newest so many; nothing when there are not more.
    async fn tallies_beyond(&self, of: TallyOf, keep: u64) -> Result<Option<Timestamp>>;

    /// The join token with this digest.
    async fn token(&self, hash: Sha256) -> Result<Option<TokenRow>>;

    /// The join tokens after this one in the order of their digests.
    async fn tokens(&self, after: Option<Sha256>, limit: usize) -> Result<Vec<TokenRow>>;

    /// The keys after this one that are refused for ever, in their order, each with the moment since when.
    async fn revoked_keys(
        &self,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<(KeyId, Timestamp)>>;

    /// The certificate with this serial, until it was trimmed.
    async fn issued(&self, serial: Serial) -> Result<Option<Issued>>;

    /// The certificates after this serial in the order of their serials, which is that of their issue.
    async fn issued_after(&self, after: Option<Serial>, limit: usize) -> Result<Vec<Issued>>;

    /// The log from this index on.
    async fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>>;

    /// The hashes of the log's leaves from this index on; up to 16 pages of them at once.
    async fn leaf_hashes(&self, from: u64, limit: usize) -> Result<Vec<Sha256>>;

    /// The log of a past incarnation from this index on.
    async fn past_events(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>>;

    /// The first past incarnation after this one whose log is kept.
    async fn past_incarnation(&self, after: Incarnation) -> Result<Option<Incarnation>>;

    /// What was signed of the log of an incarnation, the largest size first.
    async fn checkpoints(
        &self,
        incarnation: Incarnation,
        limit: usize,
    ) -> Result<Vec<CheckpointRow>>;

    /// The hashes of full tiles of the log of an incarnation, of one level, from this place on.
    async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
        limit: usize,
    ) -> Result<Vec<TileHash>>;

    /// Puts a lease in place of the one of this name if there is none, if that is of the same holder, or if it is exactly
    /// `over`; true when it was put. Ends are compared with no clock: [`Duties`] knows when to take over whose.
    async fn lease(&self, name: &str, lease: Lease, over: Option<Lease>) -> Result<bool>;

    /// The lease of this name.
    async fn lease_of(&self, name: &str) -> Result<Option<Lease>>;

    /// Puts a replica's report in place of its one before; true when it is on record now, false when one of the same or
    /// a later version is.
    async fn report(&self, report: ReportRow) -> Result<bool>;

    /// The version of every replica's report, in the order of the replicas' names.
    async fn report_versions(&self) -> Result<Vec<(String, u64)>>;

    /// The report of this replica.
    async fn report_of(&self, replica: &str) -> Result<Option<ReportRow>>;

    /// Drops what nobody can need any more: rows of certificates and tokens that ended more than the allowed skew
    /// ago. At most a bounded count at once; call again while [`Trimmed::more`] is true. The log is not touched.
    async fn trim(&self, now: Timestamp) -> Result<Trimmed>;

    /// The writes that the storage refused since it was opened, or that hang; nothing where it is shared: there, who has not asked of late
    /// does not know.
    fn failures(&self) -> Option<watch::Receiver<Failures>> {
        None
    }

    /// What is wrong with the files of the storage, as far as it can look at them itself; at most a few of many.
    async fn damage(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Which server of a database is used, where there may be several.
    fn primary(&self) -> Option<Primary> {
        None
    }

    /// What an operator should know of what the store does not promise; nothing when every acknowledged write is
    /// durable against all that this kind of store is meant to survive.
    async fn caveats(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
