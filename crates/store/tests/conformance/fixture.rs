//! Stores to test, and rows to put into them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_audit::{
    Checkpoint, Edge, Event, EventKind, NoteKey, NoteKeyKind, Origin, TileHash,
};
use countersign_identity::{
    KeyId, NodeEvidence, NodeId, Revision, SeededEntropy, Serial, Sha256, Timestamp, Validity,
};
use countersign_store::{
    Batch, Change, CheckpointRow, Copied, IssuedRow, Kind, Lease, MemoryStore, NodeRow, Op,
    Password, Place, PostgresStore, Record, SqliteStore, Store, StoreError, TokenRow,
};

use crate::server::Cluster;

/// Both isolations that a database may have by default.
pub(crate) const ISOLATIONS: [&str; 2] = ["read committed", "serializable"];

/// A store, and the folder that it lives in, if any.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    _folder: Option<tempfile::TempDir>,
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
}

pub(crate) fn entropy(seed: u64) -> Arc<SeededEntropy> {
    Arc::new(SeededEntropy::new(seed))
}

/// Copies a state whose records may say anything.
pub(crate) async fn copy(from: &Place, to: &Place, seed: u64) -> Result<Copied, StoreError> {
    countersign_store::copy(from, to, entropy(seed), |_records| Ok(())).await
}

pub(crate) fn create(folder: &Path) -> SqliteStore {
    SqliteStore::create(folder, entropy(1)).unwrap()
}

pub(crate) fn open(folder: &Path) -> SqliteStore {
    opened(folder).unwrap()
}

/// Opens a store that nobody else has open.
pub(crate) fn opened(folder: &Path) -> Result<SqliteStore, StoreError> {
    patiently(|| SqliteStore::open(folder, entropy(2)))
}

/// Tries again while the store is locked, as it may be for a moment though nobody has it open: a program that another
/// test is just starting has copies of all open files of this process, and so their locks, until it is really running.
pub(crate) fn patiently(
    open: impl Fn() -> Result<SqliteStore, StoreError>,
) -> Result<SqliteStore, StoreError> {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        match open() {
            Err(StoreError::Locked { .. }) if Instant::now() < patience => std::thread::yield_now(),
            outcome => return outcome,
        }
    }
}

impl Fixture {
    pub(crate) fn memory() -> Self {
        Self { store: Arc::new(MemoryStore::new(entropy(1))), _folder: None }
    }

    pub(crate) fn sqlite() -> Self {
        let folder = folder();
        Self { store: Arc::new(create(folder.path())), _folder: Some(folder) }
    }

    pub(crate) async fn postgres(isolation: &str) -> Self {
        let database = Cluster::shared().database(isolation);
        let store = create_at(Cluster::shared(), &database, 1).await;
        refuse_other_levels(Cluster::shared(), &database, isolation);
        Self { store: Arc::new(store), _folder: None }
    }
}

/// From now on, every transaction of a store that is not isolated like this fails: the database itself asks it.
pub(crate) fn refuse_other_levels(cluster: &Cluster, database: &str, isolation: &str) {
    let level = "current_setting('transaction_isolation')";
    cluster.sql(
        database,
        &format!(
            "CREATE FUNCTION check_level() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
             IF {level} <> '{isolation}' THEN RAISE EXCEPTION 'written at %', {level}; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER check_level BEFORE UPDATE ON head \
             FOR EACH ROW EXECUTE FUNCTION check_level()"
        ),
    );
}

/// A new store in a database.
pub(crate) async fn create_at(cluster: &Cluster, database: &str, seed: u64) -> PostgresStore {
    let url = cluster.url(database).parse().unwrap();
    PostgresStore::create(url, Password::None, entropy(seed)).await.unwrap()
}

/// One more replica on a database.
pub(crate) async fn open_at(cluster: &Cluster, database: &str, seed: u64) -> PostgresStore {
    let url = cluster.url(database).parse().unwrap();
    PostgresStore::open(url, Password::None, entropy(seed)).await.unwrap()
}

/// Noon of the day on which nothing special happens.
pub(crate) fn lease(holder: &str, ends: Timestamp) -> Lease {
    Lease { holder: holder.to_owned(), ends }
}

pub(crate) fn noon() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

pub(crate) fn after(secs: i64) -> Timestamp {
    Timestamp::from_micros(noon().micros() + secs * 1_000_000)
}

pub(crate) fn digest(seed: u64) -> Sha256 {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    Sha256::from_bytes(bytes)
}

pub(crate) fn node_id(seed: u8) -> NodeId {
    NodeId::from_bytes([seed; 16])
}

pub(crate) fn put(name: &str, value: &str) -> Change {
    let (name, value) = (name.to_owned(), value.as_bytes().to_vec());
    Change::Put(Record { kind: Kind::Workload, name, value })
}

pub(crate) fn remove(name: &str) -> Change {
    Change::Remove { kind: Kind::Workload, name: name.to_owned() }
}

/// A batch that puts one record.
pub(crate) fn putting(name: &str, value: &str) -> Batch {
    let event = Event::new(EventKind::RecordPut, noon(), "operator:uid:0", name);
    Batch { changes: vec![put(name, value)], events: vec![event], ..Batch::default() }
}

/// A batch of operations beside the map.
pub(crate) fn doing(ops: impl Into<Vec<Op>>) -> Batch {
    Batch { ops: ops.into(), ..Batch::default() }
}

/// A row for a certificate issued so many seconds after noon, for an hour.
pub(crate) fn row(seed: u64, issued: i64, revision: Revision) -> IssuedRow {
    IssuedRow {
        serial: Serial::draw(after(issued), &SeededEntropy::new(seed)).unwrap(),
        tbs: digest(seed),
        spiffe_id: "spiffe://shop.example/web".parse().unwrap(),
        key: KeyId::from_bytes([1; 32]),
        issuer: KeyId::from_bytes([2; 32]),
        node: Some(node_id(3)),
        validity: Validity { not_before: after(issued - 30), not_after: after(issued + 3600) },
        revision,
    }
}

/// A batch that records certificates, each with its event.
pub(crate) fn issuing(rows: impl Into<Vec<IssuedRow>>) -> Batch {
    let issued = rows.into();
    let events = issued.iter().map(|row| row.event(EventKind::SvidIssued, noon(), "server"));
    Batch { events: events.collect(), issued, ..Batch::default() }
}

/// What a server signs of the present log, which is of this incarnation, at this size; and the hashes of its full tiles.
pub(crate) async fn signed(
    store: &dyn Store,
    incarnation: u64,
    size: u64,
) -> (CheckpointRow, Vec<TileHash>) {
    let (mut edge, mut tiles) = (Edge::default(), Vec::new());
    let leaves = store.leaf_hashes(0, usize::try_from(size).unwrap()).await.unwrap();
    leaves.into_iter().for_each(|leaf| edge.push(leaf, |tile| tiles.push(tile)));
    (checkpoint(incarnation, size, edge.root()), tiles)
}

/// A checkpoint that says so.
pub(crate) fn checkpoint(incarnation: u64, size: u64, root: Sha256) -> CheckpointRow {
    let key = NoteKey::new("é.example/log", NoteKeyKind::Log, [7; 32]).unwrap();
    let origin = Origin::of(&key, incarnation);
    let note = Checkpoint { origin, size, root }.note().with_signature(&key, &[9; 64]);
    CheckpointRow { incarnation, size, note: note.to_string() }
}

pub(crate) fn node(seed: u8) -> NodeRow {
    NodeRow {
        id: node_id(seed),
        spiffe_id: format!("spiffe://shop.example/countersign/agent/{}", node_id(seed))
            .parse()
            .unwrap(),
        key_spki: vec![seed; 91],
        generation: 1,
        labels: vec!["edge".parse().unwrap()],
        host: format!("host-{seed}"),
        attested_at: noon(),
        seen_at: noon(),
        // Each that there is, and none.
        attested_by: [None, Some(NodeEvidence::JoinToken), Some(NodeEvidence::X509)]
            [usize::from(seed % 3)],
    }
}

pub(crate) fn token(seed: u64) -> TokenRow {
    TokenRow {
        hash: digest(seed),
        expires: after(600),
        labels: vec!["edge".parse().unwrap()],
        spent: None,
    }
}

pub(crate) fn at(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

pub(crate) async fn number(store: &Arc<dyn Store>) -> u64 {
    store.head().await.unwrap().revision.number
}
