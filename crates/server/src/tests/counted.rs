//! A store that counts how often all that is out is read from its beginning, and that can be away for who does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{
    Incarnation, KeyId, NodeId, Revision, SeededEntropy, Serial, Sha256, Timestamp,
};
use countersign_store::{
    Batch, CheckpointRow, Committed, Feed, FlowRow, Head, Issued, Lease, MemoryStore, NodeRow,
    PaperRow, PointKey, PointRow, ReportRow, Result, Snapshot, Span, Store, StoreError,
    StoredEvent, TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed,
};
use tokio::sync::watch;

pub(super) struct Counted {
    store: MemoryStore,
    reads: AtomicUsize,
    is_away: AtomicBool,
}

impl Counted {
    pub(super) fn new() -> Self {
        let store = MemoryStore::new(Arc::new(SeededEntropy::new(8)));
        Self { store, reads: AtomicUsize::new(0), is_away: AtomicBool::new(false) }
    }

    /// How often it was read since this was asked last.
    pub(super) fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }

    pub(super) fn go_away(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for Counted {
    async fn head(&self) -> Result<Head> {
        self.store.head().await
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.store.snapshot().await
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed> {
        self.store.changes(after, limit).await
    }

    fn hint(&self) -> watch::Receiver<Revision> {
        self.store.hint()
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        self.store.commit(batch).await
    }

    async fn span(&self) -> Result<Span> {
        self.store.span().await
    }

    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.store.secret(name).await
    }

    async fn secrets(&self, after: Option<String>, limit: usize) -> Result<Vec<(String, Vec<u8>)>> {
        self.store.secrets(after, limit).await
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.store.node(id).await
    }

    async fn nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeRow>> {
        self.store.nodes(after, limit).await
    }

    async fn points(&self, after: Option<PointKey>, limit: usize) -> Result<Vec<PointRow>> {
        self.store.points(after, limit).await
    }

    async fn flows(&self, after: Option<String>, limit: usize) -> Result<Vec<FlowRow>> {
        self.store.flows(after, limit).await
    }

    async fn papers(&self, after: Option<String>, limit: usize) -> Result<Vec<PaperRow>> {
        self.store.papers(after, limit).await
    }

    async fn tallies(
        &self,
        of: TallyOf,
        from: Timestamp,
        before: TallyPlace,
        limit: usize,
    ) -> Result<Vec<TallyRow>> {
        self.store.tallies(of, from, before, limit).await
    }

    async fn tallies_beyond(&self, of: TallyOf, keep: u64) -> Result<Option<Timestamp>> {
        self.store.tallies_beyond(of, keep).await
    }

    async fn token(&self, hash: Sha256) -> Result<Option<TokenRow>> {
        self.store.token(hash).await
    }

    async fn tokens(&self, after: Option<Sha256>, limit: usize) -> Result<Vec<TokenRow>> {
        self.store.tokens(after, limit).await
    }

    async fn revoked_keys(
        &self,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<(KeyId, Timestamp)>> {
        self.store.revoked_keys(after, limit).await
    }

    async fn issued(&self, serial: Serial) -> Result<Option<Issued>> {
        self.store.issued(serial).await
    }

    async fn issued_after(&self, after: Option<Serial>, limit: usize) -> Result<Vec<Issued>> {
        if after.is_none() {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable { why: "it is away".to_owned() });
        }
        self.store.issued_after(after, limit).await
    }

    async fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        self.store.events(from, limit).await
    }

    async fn leaf_hashes(&self, from: u64, limit: usize) -> Result<Vec<Sha256>> {
        self.store.leaf_hashes(from, limit).await
    }

    async fn past_events(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        self.store.past_events(incarnation, from, limit).await
    }

    async fn past_incarnation(&self, after: Incarnation) -> Result<Option<Incarnation>> {
        self.store.past_incarnation(after).await
    }

    async fn checkpoints(
        &self,
        incarnation: Incarnation,
        limit: usize,
    ) -> Result<Vec<CheckpointRow>> {
        self.store.checkpoints(incarnation, limit).await
    }

    async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
        limit: usize,
    ) -> Result<Vec<TileHash>> {
        self.store.tile_hashes(incarnation, level, from, limit).await
    }

    async fn lease(&self, name: &str, lease: Lease, over: Option<Lease>) -> Result<bool> {
        self.store.lease(name, lease, over).await
    }

    async fn lease_of(&self, name: &str) -> Result<Option<Lease>> {
        self.store.lease_of(name).await
    }

    async fn report(&self, report: ReportRow) -> Result<bool> {
        self.store.report(report).await
    }

    async fn report_versions(&self) -> Result<Vec<(String, u64)>> {
        self.store.report_versions().await
    }

    async fn report_of(&self, replica: &str) -> Result<Option<ReportRow>> {
        self.store.report_of(replica).await
    }

    async fn trim(&self, now: Timestamp) -> Result<Trimmed> {
        self.store.trim(now).await
    }
}
