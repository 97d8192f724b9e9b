//! The store in memory, for simulations and tests: the same semantics, nothing durable.

mod tables;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{
    Entropy, Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp,
};
use imbl::{OrdMap, Vector};
use tokio::sync::watch;

pub(crate) use self::tables::State;
use crate::bounds::{FEED_CHANGES_MAX, HASHES_MAX, check, check_report};
use crate::queue::WantedLease;
use crate::transact::{Upkeep, trim, write};
use crate::{
    Batch, Change, CheckpointRow, Commit, Committed, Feed, FlowRow, Head, Issued, Lease, NodeRow,
    PAGE_MAX, PaperRow, PointKey, PointRow, Record, ReportRow, Result, Snapshot, Span, Store,
    StoredEvent, TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed,
};

/// A store that forgets when it is dropped.
///
/// It answers at once and draws randomness in the order of the batches, so a simulation can be replayed.
pub struct MemoryStore {
    state: Mutex<State>,
    hint: watch::Sender<Revision>,
    entropy: Arc<dyn Entropy>,
}

impl MemoryStore {
    /// An empty store, at the beginning of its first incarnation.
    pub fn new(entropy: Arc<dyn Entropy>) -> Self {
        let head = Head::of(1);
        let hint = watch::Sender::new(head.revision);
        Self { state: Mutex::new(State::empty(head)), hint, entropy }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot have left a half-written state: it is always replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let mut next = state.clone();
        let outcome = work(&mut next)?;
        let revision = next.head.revision;
        *state = next;
        self.hint.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        Ok(outcome)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore at {}", self.state().head.revision)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn head(&self) -> Result<Head> {
        Ok(self.state().head)
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let state = self.state();
        let records = state.records.iter().map(|((kind, name), value)| Record {
            kind: *kind,
            name: name.clone(),
            value: value.to_vec(),
        });
        Ok(Snapshot { revision: state.head.revision, records: records.collect() })
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed> {
        let state = self.state();
        let first = state.commits.get_min().map(|(number, _)| *number);
        if !state.head.feeds(after, first) {
            return Ok(Feed::SnapshotNeeded);
        }
        let mut before = 0;
        let not_full = |(_, changes): &(&u64, &Vector<Change>)| {
            let go_on = before < FEED_CHANGES_MAX;
            before += changes.len();
            go_on
        };
        let commits = state.commits.range(after.number + 1..).take_while(not_full);
        let commits = commits.take(limit.min(PAGE_MAX));
        let commits = commits.map(|(number, changes)| Commit {
            revision: Revision { number: *number, ..after },
            changes: changes.iter().cloned().collect(),
        });
        Ok(Feed::Changes(commits.collect()))
    }

    async fn span(&self) -> Result<Span> {
        let state = self.state();
        let number = |end: Option<&(u64, Vector<Change>)>| end.map(|(number, _)| *number);
        let (first, last) = (number(state.commits.get_min()), number(state.commits.get_max()));
        let changed = state.commits.iter().filter(|(_, changes)| !changes.is_empty());
        let changed: Vec<u64> = changed.map(|(number, _)| *number).collect();
        Ok(Span {
            head: state.head.revision.number,
            commits: state.commits.len() as u64,
            kept: first.zip(last),
            changed: changed.first().copied().zip(changed.last().copied()),
        })
    }

    fn hint(&self) -> watch::Receiver<Revision> {
        self.hint.subscribe()
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        check(&batch)?;
        let written = self.transact(|state| {
            let mut head = state.head;
            let written = write(state, &mut head, &batch, &*self.entropy)?;
            state.head = head;
            Ok(written)
        })?;
        Ok(written.committed())
    }

    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.state().secrets.get(name).map(|sealed| sealed.to_vec()))
    }

    async fn secrets(&self, after: Option<String>, limit: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let after = after.unwrap_or_default();
        let state = self.state();
        let rows = state.secrets.iter().filter(|(name, _)| after < **name);
        let rows = rows.take(limit.min(PAGE_MAX));
        Ok(rows.map(|(name, sealed)| (name.clone(), sealed.to_vec())).collect())
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        Ok(self.state().nodes.get(&id).cloned())
    }

    async fn nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeRow>> {
        Ok(page(&self.state().nodes, after, limit))
    }

    async fn points(&self, after: Option<PointKey>, limit: usize) -> Result<Vec<PointRow>> {
        Ok(page(&self.state().points, after, limit))
    }

    async fn flows(&self, after: Option<String>, limit: usize) -> Result<Vec<FlowRow>> {
        Ok(page(&self.state().flows, after, limit))
    }

    async fn papers(&self, after: Option<String>, limit: usize) -> Result<Vec<PaperRow>> {
        Ok(page(&self.state().papers, after, limit))
    }

    async fn tallies(
        &self,
        of: TallyOf,
        from: Timestamp,
        before: TallyPlace,
        limit: usize,
    ) -> Result<Vec<TallyRow>> {
        let state = self.state();
        let (from, before) = ((of, from, String::new()), (of, before.at, before.what));
        if before < from {
            return Ok(Vec::new());
        }
        let found = state.tallies.range(from..before).rev().take(limit.min(PAGE_MAX));
        Ok(found.map(|(_, row)| row.clone()).collect())
    }

    async fn tallies_beyond(&self, of: TallyOf, keep: u64) -> Result<Option<Timestamp>> {
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let state = self.state();
        let mut of = state.tallies.iter().rev().filter(|((kept, ..), _)| *kept == of);
        Ok(of.nth(keep).map(|((_, at, _), _)| *at))
    }

    async fn token(&self, hash: Sha256) -> Result<Option<TokenRow>> {
        Ok(self.state().tokens.get(&hash).cloned())
    }

    async fn tokens(&self, after: Option<Sha256>, limit: usize) -> Result<Vec<TokenRow>> {
        Ok(page(&self.state().tokens, after, limit))
    }

    async fn revoked_keys(
        &self,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<(KeyId, Timestamp)>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let keys = state.revoked_keys.range((after.map_or(Unbounded, Excluded), Unbounded));
        Ok(keys.take(limit.min(PAGE_MAX)).map(|(key, since)| (*key, *since)).collect())
    }

    async fn issued(&self, serial: Serial) -> Result<Option<Issued>> {
        Ok(self.state().issued.get(&serial).cloned())
    }

    async fn issued_after(&self, after: Option<Serial>, limit: usize) -> Result<Vec<Issued>> {
        Ok(page(&self.state().issued, after, limit))
    }

    async fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        Ok(self.log(from, limit.min(PAGE_MAX), StoredEvent::clone))
    }

    async fn leaf_hashes(&self, from: u64, limit: usize) -> Result<Vec<Sha256>> {
        Ok(self.log(from, limit.min(HASHES_MAX), |event| event.hash))
    }

    async fn past_events(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        let state = self.state();
        let log = state.past.get(&incarnation).into_iter().flatten();
        let page = log.filter(|event| from <= event.index).take(limit.min(PAGE_MAX));
        Ok(page.map(|event| StoredEvent::clone(event)).collect())
    }

    async fn past_incarnation(&self, after: Incarnation) -> Result<Option<Incarnation>> {
        Ok(self.state().past.range(after + 1..).next().map(|(incarnation, _)| *incarnation))
    }

    async fn checkpoints(
        &self,
        incarnation: Incarnation,
        limit: usize,
    ) -> Result<Vec<CheckpointRow>> {
        let state = self.state();
        let rows = state.checkpoints.range((incarnation, 0)..=(incarnation, u64::MAX)).rev();
        let row = |((incarnation, size), note): (&(Incarnation, u64), &String)| CheckpointRow {
            incarnation: *incarnation,
            size: *size,
            note: note.clone(),
        };
        Ok(rows.take(limit.min(PAGE_MAX)).map(row).collect())
    }

    async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
        limit: usize,
    ) -> Result<Vec<TileHash>> {
        let state = self.state();
        let places = (incarnation, level, from)..=(incarnation, level, u64::MAX);
        let rows = state.tile_hashes.range(places).take(limit.min(PAGE_MAX));
        let row = |((_, level, position), hash): (&(Incarnation, u8, u64), &Sha256)| TileHash {
            level: *level,
            position: *position,
            hash: *hash,
        };
        Ok(rows.map(row).collect())
    }

    async fn lease(&self, name: &str, lease: Lease, over: Option<Lease>) -> Result<bool> {
        let wanted = WantedLease::new(name, lease, over)?;
        self.transact(|state| state.take_lease(&wanted))
    }

    async fn lease_of(&self, name: &str) -> Result<Option<Lease>> {
        Ok(self.state().leases.get(name).cloned())
    }

    async fn report(&self, report: ReportRow) -> Result<bool> {
        check_report(&report)?;
        self.transact(|state| state.put_report(&report))
    }

    async fn report_versions(&self) -> Result<Vec<(String, u64)>> {
        let state = self.state();
        let all = state.reports.iter().map(|(replica, row)| (replica.clone(), row.version));
        Ok(all.take(PAGE_MAX).collect())
    }

    async fn report_of(&self, replica: &str) -> Result<Option<ReportRow>> {
        Ok(self.state().reports.get(replica).cloned())
    }

    async fn trim(&self, now: Timestamp) -> Result<Trimmed> {
        self.transact(|state| trim(state, now))
    }
}

impl MemoryStore {
    fn log<T>(&self, from: u64, limit: usize, each: impl Fn(&StoredEvent) -> T) -> Vec<T> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let state = self.state();
        let page = from.min(state.log.len())..from.saturating_add(limit).min(state.log.len());
        page.map(|index| each(&state.log[index])).collect()
    }
}

fn page<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>, after: Option<K>, limit: usize) -> Vec<V> {
    use std::ops::Bound::{Excluded, Unbounded};
    let start = after.map_or(Unbounded, Excluded);
    let rows = map.range((start, Unbounded)).take(limit.min(PAGE_MAX));
    rows.map(|(_, row)| row.clone()).collect()
}
