//! The store in memory, for simulations and tests: the same semantics, nothing durable.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use countersign_audit::{Leaf, TileHash};
use countersign_identity::{
    Entropy, Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp,
};
use imbl::{OrdMap, Vector};
use tokio::sync::watch;

use crate::bounds::{FEED_CHANGES_MAX, HASHES_MAX, TRIM_ROWS_MAX, check, check_name, check_report};
use crate::transact::{Lease, Tables, Upkeep, lease_end, trim, write};
use crate::{
    Batch, Change, CheckpointRow, Commit, Committed, Details, Feed, FlowRow, Head, Issued,
    IssuedRow, KeysOf, Kind, NodeRow, PAGE_MAX, PaperRow, PointKey, PointRow, Record, ReportRow,
    Result, Snapshot, Store, StoredEvent, TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed,
};

/// A store that forgets when it is dropped.
///
/// It answers at once and draws randomness in the order of the batches, so a simulation can be replayed.
pub struct MemoryStore {
    state: Mutex<State>,
    hint: watch::Sender<Revision>,
    entropy: Arc<dyn Entropy>,
}

/// All tables. Persistent maps: a copy costs nothing, so that a batch works on one and puts it in place whole.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) head: Head,
    pub(crate) records: OrdMap<(Kind, String), Arc<[u8]>>,
    pub(crate) commits: OrdMap<u64, Vector<Change>>,
    pub(crate) secrets: OrdMap<String, Arc<[u8]>>,
    pub(crate) tokens: OrdMap<Sha256, TokenRow>,
    pub(crate) nodes: OrdMap<NodeId, NodeRow>,
    pub(crate) keys: OrdMap<Vec<u8>, NodeId>,
    pub(crate) issued: OrdMap<Serial, Issued>,
    pub(crate) points: OrdMap<PointKey, PointRow>,
    pub(crate) flows: OrdMap<String, FlowRow>,
    pub(crate) papers: OrdMap<String, PaperRow>,
    pub(crate) tallies: OrdMap<(TallyOf, Timestamp, String), TallyRow>,
    pub(crate) revoked_keys: OrdMap<KeyId, Timestamp>,
    pub(crate) leases: OrdMap<String, (String, Timestamp)>,
    pub(crate) reports: OrdMap<String, ReportRow>,
    pub(crate) log: Vector<Arc<StoredEvent>>,
    pub(crate) past: OrdMap<Incarnation, Vector<Arc<StoredEvent>>>,
    pub(crate) checkpoints: OrdMap<(Incarnation, u64), String>,
    pub(crate) tile_hashes: OrdMap<(Incarnation, u8, u64), Sha256>,
}

impl State {
    /// No rows at all.
    pub(crate) fn empty(head: Head) -> Self {
        Self {
            head,
            records: OrdMap::new(),
            commits: OrdMap::new(),
            secrets: OrdMap::new(),
            tokens: OrdMap::new(),
            nodes: OrdMap::new(),
            keys: OrdMap::new(),
            issued: OrdMap::new(),
            points: OrdMap::new(),
            flows: OrdMap::new(),
            papers: OrdMap::new(),
            tallies: OrdMap::new(),
            revoked_keys: OrdMap::new(),
            leases: OrdMap::new(),
            reports: OrdMap::new(),
            log: Vector::new(),
            past: OrdMap::new(),
            checkpoints: OrdMap::new(),
            tile_hashes: OrdMap::new(),
        }
    }
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

    async fn lease(&self, name: &str, holder: &str, ttl: Duration, now: Timestamp) -> Result<bool> {
        check_name("bytes of a lease's name", name)?;
        check_name("bytes of a lease's holder", holder)?;
        let lease = Lease { name, holder, until: lease_end(now, ttl), now };
        self.transact(|state| state.take_lease(&lease))
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

/// Inserts unless there is one; says whether it did.
fn insert_new<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, key: K, value: V) -> bool {
    let new = !map.contains_key(&key);
    if new {
        map.insert(key, value);
    }
    new
}

impl Tables for State {
    fn put_record(&mut self, record: &Record) -> Result<()> {
        self.records.insert((record.kind, record.name.clone()), record.value.as_slice().into());
        Ok(())
    }

    fn remove_record(&mut self, kind: Kind, name: &str) -> Result<bool> {
        Ok(self.records.remove(&(kind, name.to_owned())).is_some())
    }

    fn add_commit(&mut self, number: u64) -> Result<()> {
        self.commits.insert(number, Vector::new());
        Ok(())
    }

    fn add_change(&mut self, number: u64, _position: usize, change: &Change) -> Result<()> {
        self.commits.entry(number).or_default().push_back(change.clone());
        Ok(())
    }

    fn trim_feed(&mut self, up_to: u64) -> Result<()> {
        self.commits = self.commits.split(&up_to).1;
        Ok(())
    }

    fn close_incarnation(&mut self, past: Incarnation) -> Result<()> {
        self.commits = OrdMap::new();
        self.tokens = OrdMap::new();
        self.past.insert(past, std::mem::take(&mut self.log));
        Ok(())
    }

    fn add_leaf(&mut self, index: u64, leaf: Leaf) -> Result<()> {
        let Leaf { bytes, hash, details, salt } = leaf;
        let details = Some(Details { json: details, salt });
        self.log.push_back(Arc::new(StoredEvent { index, leaf: bytes, hash, details }));
        Ok(())
    }

    fn add_issued(&mut self, row: &IssuedRow, index: u64) -> Result<bool> {
        Ok(insert_new(&mut self.issued, row.serial, Issued { row: row.clone(), index }))
    }

    fn put_secret(&mut self, name: &str, sealed: &[u8]) -> Result<()> {
        self.secrets.insert(name.to_owned(), sealed.into());
        Ok(())
    }

    fn add_token(&mut self, row: &TokenRow) -> Result<bool> {
        Ok(insert_new(&mut self.tokens, row.hash, row.clone()))
    }

    fn spend_token(&mut self, hash: Sha256, now: Timestamp) -> Result<bool> {
        let fit = |row: &&mut TokenRow| row.spent.is_none() && now < row.expires;
        let row = self.tokens.get_mut(&hash).filter(fit);
        Ok(row.map(|row| row.spent = Some(now)).is_some())
    }

    fn token(&mut self, hash: Sha256) -> Result<Option<TokenRow>> {
        Ok(self.tokens.get(&hash).cloned())
    }

    fn add_node(&mut self, row: &NodeRow) -> Result<bool> {
        let new = !self.nodes.contains_key(&row.id) && !self.keys.contains_key(&row.key_spki);
        if new {
            self.keys.insert(row.key_spki.clone(), row.id);
            self.nodes.insert(row.id, row.clone());
        }
        Ok(new)
    }

    fn succeed_key(
        &mut self,
        id: NodeId,
        old: u64,
        key: (u64, &[u8]),
        at: Timestamp,
    ) -> Result<bool> {
        let (generation, key) = key;
        let free = self.keys.get(key).is_none_or(|owner| *owner == id);
        let Some(row) = self.nodes.get_mut(&id).filter(|row| free && row.generation == old) else {
            return Ok(false);
        };
        self.keys.remove(&row.key_spki);
        self.keys.insert(key.to_vec(), id);
        row.key_spki = key.to_vec();
        row.generation = generation;
        row.seen_at = row.seen_at.max(at);
        Ok(true)
    }

    fn remove_node(&mut self, id: NodeId) -> Result<bool> {
        let removed = self.nodes.remove(&id);
        if let Some(row) = &removed {
            self.keys.remove(&row.key_spki);
        }
        Ok(removed.is_some())
    }

    fn touch_node(&mut self, id: NodeId, at: Timestamp) -> Result<bool> {
        let row = self.nodes.get_mut(&id);
        Ok(row.map(|row| row.seen_at = row.seen_at.max(at)).is_some())
    }

    fn node(&mut self, id: NodeId) -> Result<Option<NodeRow>> {
        Ok(self.nodes.get(&id).cloned())
    }

    fn add_point(&mut self, row: &PointRow) -> Result<()> {
        insert_new(&mut self.points, row.key.clone(), row.clone());
        Ok(())
    }

    fn remove_point(&mut self, key: &PointKey) -> Result<()> {
        self.points.remove(key);
        Ok(())
    }

    fn remove_points(&mut self, node: NodeId) -> Result<()> {
        let of_node: Vec<PointKey> =
            self.points.keys().filter(|key| key.node == node).cloned().collect();
        for key in &of_node {
            self.points.remove(key);
        }
        Ok(())
    }

    fn add_checkpoint(&mut self, row: &CheckpointRow) -> Result<()> {
        let CheckpointRow { incarnation, size, note } = row.clone();
        insert_new(&mut self.checkpoints, (incarnation, size), note);
        Ok(())
    }

    fn drop_checkpoints(&mut self, incarnation: Incarnation, below: u64) -> Result<()> {
        let old = self.checkpoints.range((incarnation, 0)..(incarnation, below));
        for key in old.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.checkpoints.remove(&key);
        }
        Ok(())
    }

    fn add_tile_hashes(&mut self, incarnation: Incarnation, hashes: &[TileHash]) -> Result<()> {
        for TileHash { level, position, hash } in hashes {
            insert_new(&mut self.tile_hashes, (incarnation, *level, *position), *hash);
        }
        Ok(())
    }

    fn trim_details(&mut self, past: Option<Incarnation>, from: u64, to: u64) -> Result<()> {
        let log = match past {
            None => &mut self.log,
            Some(past) => self.past.entry(past).or_default(),
        };
        for event in log.iter_mut().filter(|event| from <= event.index && event.index < to) {
            *event = Arc::new(StoredEvent { details: None, ..StoredEvent::clone(event) });
        }
        Ok(())
    }

    fn add_flow(&mut self, row: &FlowRow) -> Result<()> {
        let merged = match self.flows.get(&row.flow) {
            Some(before) => FlowRow {
                flow: row.flow.clone(),
                first: before.first.min(row.first),
                last: before.last.max(row.last),
                count: before.count.saturating_add(row.count),
            },
            None => row.clone(),
        };
        self.flows.insert(row.flow.clone(), merged);
        Ok(())
    }

    fn add_tally(&mut self, of: TallyOf, row: &TallyRow) -> Result<()> {
        let key = (of, row.at, row.what.clone());
        let merged = match self.tallies.get(&key) {
            Some(before) => TallyRow {
                first: before.first.min(row.first),
                last: before.last.max(row.last),
                count: before.count.saturating_add(row.count),
                micros: before.micros.saturating_add(row.micros),
                sample: if row.last < before.last { &before.sample } else { &row.sample }.clone(),
                ..row.clone()
            },
            None => row.clone(),
        };
        self.tallies.insert(key, merged);
        Ok(())
    }

    fn trim_tallies(&mut self, of: TallyOf, before: Timestamp) -> Result<()> {
        let old = self.tallies.keys().filter(|(kept, at, _)| *kept == of && *at < before);
        for key in old.take(TRIM_ROWS_MAX).cloned().collect::<Vec<_>>() {
            self.tallies.remove(&key);
        }
        Ok(())
    }

    fn trim_flows(&mut self, before: Timestamp) -> Result<()> {
        let old = self.flows.values().filter(|row| row.last < before);
        let old: Vec<String> = old.map(|row| row.flow.clone()).collect();
        for flow in &old {
            self.flows.remove(flow);
        }
        Ok(())
    }

    fn add_paper(&mut self, row: &PaperRow) -> Result<()> {
        insert_new(&mut self.papers, row.name.clone(), row.clone());
        Ok(())
    }

    fn remove_paper(&mut self, name: &str) -> Result<()> {
        self.papers.remove(name);
        Ok(())
    }

    fn revoke_keys(&mut self, of: &KeysOf, at: Timestamp) -> Result<()> {
        let rows = self.issued.values().map(|issued| &issued.row);
        let keys: Vec<KeyId> = match of {
            KeysOf::Key(key) => vec![*key],
            KeysOf::Serial(serial) => {
                rows.filter(|row| row.serial == *serial).map(|row| row.key).collect()
            }
            KeysOf::Identity(id) => {
                rows.filter(|row| row.spiffe_id == *id).map(|row| row.key).collect()
            }
            KeysOf::Node(node) => {
                rows.filter(|row| row.node == Some(*node)).map(|row| row.key).collect()
            }
        };
        for key in keys {
            insert_new(&mut self.revoked_keys, key, at);
        }
        Ok(())
    }

    fn is_key_revoked(&mut self, key: KeyId) -> Result<bool> {
        Ok(self.revoked_keys.contains_key(&key))
    }
}

impl Upkeep for State {
    fn take_lease(&mut self, lease: &Lease<'_>) -> Result<bool> {
        let free = self
            .leases
            .get(lease.name)
            .is_none_or(|(holder, until)| holder == lease.holder || *until <= lease.now);
        if free {
            self.leases.insert(lease.name.to_owned(), (lease.holder.to_owned(), lease.until));
        }
        Ok(free)
    }

    fn put_report(&mut self, report: &ReportRow) -> Result<bool> {
        let before = self.reports.get(&report.replica);
        let newer = before.is_none_or(|before| before.version < report.version);
        if newer {
            self.reports.insert(report.replica.clone(), report.clone());
        }
        Ok(newer)
    }

    fn trim_issued(&mut self, before: Serial, ended: Timestamp, limit: usize) -> Result<usize> {
        let old = self.issued.range(..before);
        let old = old.filter(|(_, issued)| issued.row.validity.not_after < ended);
        let old: Vec<Serial> = old.map(|(serial, _)| *serial).take(limit).collect();
        for serial in &old {
            self.issued.remove(serial);
        }
        Ok(old.len())
    }

    fn trim_tokens(&mut self, ended: Timestamp, limit: usize) -> Result<usize> {
        let old = self.tokens.iter().filter(|(_, row)| row.expires < ended);
        let old: Vec<Sha256> = old.map(|(hash, _)| *hash).take(limit).collect();
        for hash in &old {
            self.tokens.remove(hash);
        }
        Ok(old.len())
    }
}
