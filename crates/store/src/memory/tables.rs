//! The tables in memory, and what a batch does to them.

use std::sync::Arc;

use countersign_audit::{Leaf, TileHash};
use countersign_identity::{Incarnation, KeyId, NodeId, Serial, Sha256, Timestamp};
use imbl::{OrdMap, Vector};

use crate::bounds::TRIM_ROWS_MAX;
use crate::queue::WantedLease;
use crate::transact::{Tables, Upkeep};
use crate::{
    Change, CheckpointRow, Details, FlowRow, Head, Issued, IssuedRow, KeysOf, Kind, Lease, NodeRow,
    PaperRow, PointKey, PointRow, Record, ReportRow, Result, StoredEvent, TallyOf, TallyRow,
    TokenRow,
};

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
    pub(crate) leases: OrdMap<String, Lease>,
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

    fn add_paper(&mut self, row: &PaperRow) -> Result<bool> {
        Ok(insert_new(&mut self.papers, row.name.clone(), row.clone()))
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
    fn take_lease(&mut self, wanted: &WantedLease) -> Result<bool> {
        let WantedLease { name, lease, over } = wanted;
        let found = self.leases.get(name);
        let gives_way = found.is_none_or(|found| found.holder == lease.holder || found == over);
        if gives_way {
            self.leases.insert(name.clone(), lease.clone());
        }
        Ok(gives_way)
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

/// Inserts unless there is one; says whether it did.
fn insert_new<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, key: K, value: V) -> bool {
    let new = !map.contains_key(&key);
    if new {
        map.insert(key, value);
    }
    new
}
