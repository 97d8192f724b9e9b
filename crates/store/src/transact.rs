//! What a batch does, once for all backends.

use countersign_audit::{Leaf, TileHash};
use countersign_identity::{
    Entropy, EntropyLost, Incarnation, KeyId, NodeId, Revision, SKEW_ALLOWED, Serial, Sha256,
    Timestamp,
};
use countersign_pki::Receipt;

use crate::bounds::{FEED_TRIM_STEP, TRIM_ROWS_MAX, positions};
use crate::queue::WantedLease;
use crate::{
    Batch, Begins, Change, CheckpointRow, Committed, FEED_COMMITS_MAX, FlowRow, Head, IssuedRow,
    KeysOf, Kind, NodeRow, Op, PaperRow, PointKey, PointRow, Record, ReportRow, Result, StoreError,
    TallyOf, TallyRow, TokenRow, Trimmed,
};

/// The rows of one backend, inside a transaction. Each method is one statement.
///
/// Those that return a bool say whether a row was written; they decide and write in one step, so that they hold
/// also where other transactions run at the same time.
pub(crate) trait Tables {
    fn put_record(&mut self, record: &Record) -> Result<()>;
    fn remove_record(&mut self, kind: Kind, name: &str) -> Result<bool>;
    fn add_commit(&mut self, number: u64) -> Result<()>;
    fn add_change(&mut self, number: u64, position: usize, change: &Change) -> Result<()>;
    fn trim_feed(&mut self, up_to: u64) -> Result<()>;
    /// Empties the feed, makes the log that of a past incarnation, and drops the join tokens: which of them were
    /// spent since is not known.
    fn close_incarnation(&mut self, past: Incarnation) -> Result<()>;
    fn add_leaf(&mut self, index: u64, leaf: Leaf) -> Result<()>;
    fn add_issued(&mut self, row: &IssuedRow, index: u64) -> Result<bool>;
    fn put_secret(&mut self, name: &str, sealed: &[u8]) -> Result<()>;
    fn add_token(&mut self, row: &TokenRow) -> Result<bool>;
    fn spend_token(&mut self, hash: Sha256, now: Timestamp) -> Result<bool>;
    fn token(&mut self, hash: Sha256) -> Result<Option<TokenRow>>;
    fn add_node(&mut self, row: &NodeRow) -> Result<bool>;
    fn succeed_key(
        &mut self,
        id: NodeId,
        old: u64,
        key: (u64, &[u8]),
        at: Timestamp,
    ) -> Result<bool>;
    fn remove_node(&mut self, id: NodeId) -> Result<bool>;
    fn touch_node(&mut self, id: NodeId, at: Timestamp) -> Result<bool>;
    fn node(&mut self, id: NodeId) -> Result<Option<NodeRow>>;
    fn add_point(&mut self, row: &PointRow) -> Result<()>;
    fn remove_point(&mut self, key: &PointKey) -> Result<()>;
    fn remove_points(&mut self, node: NodeId) -> Result<()>;
    fn add_checkpoint(&mut self, row: &CheckpointRow) -> Result<()>;
    fn drop_checkpoints(&mut self, incarnation: Incarnation, below: u64) -> Result<()>;
    fn add_tile_hashes(&mut self, incarnation: Incarnation, hashes: &[TileHash]) -> Result<()>;
    /// Of the present log, or of that of a past incarnation.
    fn trim_details(&mut self, past: Option<Incarnation>, from: u64, to: u64) -> Result<()>;
    fn add_flow(&mut self, row: &FlowRow) -> Result<()>;
    fn trim_flows(&mut self, before: Timestamp) -> Result<()>;
    fn add_paper(&mut self, row: &PaperRow) -> Result<bool>;
    fn remove_paper(&mut self, name: &str) -> Result<()>;
    fn add_tally(&mut self, of: TallyOf, row: &TallyRow) -> Result<()>;
    fn trim_tallies(&mut self, of: TallyOf, before: Timestamp) -> Result<()>;
    fn revoke_keys(&mut self, of: &KeysOf, at: Timestamp) -> Result<()>;
    fn is_key_revoked(&mut self, key: KeyId) -> Result<bool>;
}

/// The rows that no batch touches, inside a transaction. Each method is one statement.
pub(crate) trait Upkeep {
    fn take_lease(&mut self, wanted: &WantedLease) -> Result<bool>;
    fn put_report(&mut self, report: &ReportRow) -> Result<bool>;
    fn trim_issued(&mut self, before: Serial, ended: Timestamp, limit: usize) -> Result<usize>;
    fn trim_tokens(&mut self, ended: Timestamp, limit: usize) -> Result<usize>;
}

/// What a batch wrote; not durable yet, hence no receipts.
#[derive(Debug)]
pub(crate) struct Written {
    revision: Revision,
    first_index: u64,
    issued: Vec<(Sha256, u64)>,
}

impl Written {
    /// Only after the transaction is durable.
    pub(crate) fn committed(self) -> Committed {
        let receipts =
            self.issued.into_iter().map(|(tbs, index)| Receipt::assertion(tbs, index)).collect();
        Committed { revision: self.revision, first_index: self.first_index, receipts }
    }
}

/// Writes a batch whose bounds were checked. On an error the caller takes back what was written.
pub(crate) fn write(
    tables: &mut impl Tables,
    head: &mut Head,
    batch: &Batch,
    entropy: &dyn Entropy,
) -> Result<Written> {
    let next = moved(head, batch)?;
    if batch.begins.is_some() {
        tables.close_incarnation(head.revision.incarnation)?;
    }
    let first_index = next.log_size - batch.events.len() as u64;
    for op in &batch.ops {
        apply(tables, op, head.revision.incarnation)?;
    }
    if head.revision != next.revision {
        change(tables, next.revision.number, &batch.changes)?;
    }
    for (event, index) in batch.events.iter().zip(first_index..) {
        let mut salt = [0; 16];
        entropy.fill(&mut salt)?;
        tables.add_leaf(index, Leaf::new(event, next.revision, salt)?)?;
    }
    let mut issued = Vec::with_capacity(batch.issued.len());
    for (row, position) in batch.issued.iter().zip(positions(batch)?) {
        if tables.is_key_revoked(row.key)? {
            return Err(StoreError::KeyRevoked(row.key));
        }
        let index = first_index + position as u64;
        if !tables.add_issued(row, index)? {
            return Err(exists(format!("a certificate with serial `{}`", row.serial)));
        }
        issued.push((row.tbs, index));
    }
    *head = next;
    Ok(Written { revision: next.revision, first_index, issued })
}

/// Where the head moves to, unless the batch comes too late for it.
fn moved(head: &Head, batch: &Batch) -> Result<Head> {
    let current = head.revision;
    if let Some(expected) = batch.expected.filter(|expected| *expected != current) {
        return Err(StoreError::Conflict { expected, current });
    }
    let mut next = *head;
    if let Some(Begins { incarnation, log_size }) = batch.begins {
        if log_size != head.log_size {
            return Err(StoreError::LogMoved { expected: log_size, current: head.log_size });
        }
        if incarnation <= current.incarnation {
            let expected = Revision { incarnation, number: 0 };
            return Err(StoreError::Conflict { expected, current });
        }
        next = Head::of(incarnation);
    }
    if batch.begins.is_some() || batch.narrows || !batch.changes.is_empty() {
        next.revision.number += 1;
    }
    // What was authorised in an earlier incarnation is authorised again.
    if batch.begins.is_some() || batch.narrows {
        next.fence = next.revision;
    }
    next.log_size += batch.events.len() as u64;
    // A certificate says the revision that it was authorised at, so that is fenced too, asked for or not.
    let rows = batch.issued.iter().map(|row| (row.revision, next.revision));
    for (authorised_at, latest) in
        batch.authorised_at.map(|at| (at, current)).into_iter().chain(rows)
    {
        if authorised_at < head.fence {
            return Err(StoreError::Fenced { authorised_at, fence: head.fence });
        }
        // From the future: it would escape the revocations until then.
        if latest < authorised_at {
            return Err(StoreError::Conflict { expected: authorised_at, current });
        }
    }
    Ok(next)
}

fn change(tables: &mut impl Tables, number: u64, changes: &[Change]) -> Result<()> {
    tables.add_commit(number)?;
    for (position, change) in changes.iter().enumerate() {
        match change {
            Change::Put(record) => tables.put_record(record)?,
            Change::Remove { kind, name } => {
                if !tables.remove_record(*kind, name)? {
                    return Err(StoreError::RecordUnknown { kind: *kind, name: name.clone() });
                }
            }
        }
        tables.add_change(number, position, change)?;
    }
    if number.is_multiple_of(FEED_TRIM_STEP) && FEED_COMMITS_MAX < number {
        tables.trim_feed(number - FEED_COMMITS_MAX)?;
    }
    Ok(())
}

fn apply(tables: &mut impl Tables, op: &Op, present: Incarnation) -> Result<()> {
    match op {
        Op::PutSecret { name, sealed } => tables.put_secret(name, sealed),
        Op::CreateToken(row) => {
            tables.add_token(row)?.then_some(()).ok_or_else(|| exists("the join token".to_owned()))
        }
        Op::SpendToken { hash, now } => {
            if tables.spend_token(*hash, *now)? {
                return Ok(());
            }
            Err(match tables.token(*hash)? {
                None => StoreError::TokenUnknown,
                Some(TokenRow { spent: Some(_), .. }) => StoreError::TokenSpent,
                Some(TokenRow { spent: None, .. }) => StoreError::TokenExpired,
            })
        }
        Op::PutNode(row) => {
            let written = tables.add_node(row)?;
            written.then_some(()).ok_or_else(|| exists(format!("node `{}` or its key", row.id)))
        }
        Op::UpdateNode { id, expect_generation, proven, generation, key_spki, at } => {
            if tables.is_key_revoked(*proven)? {
                return Err(StoreError::KeyRevoked(*proven));
            }
            if tables.succeed_key(*id, *expect_generation, (*generation, key_spki), *at)? {
                return Ok(());
            }
            expect(tables, *id, *expect_generation)?;
            Err(exists("a node with this key".to_owned()))
        }
        Op::ExpectNode { id, generation } => expect(tables, *id, *generation),
        Op::RemoveNode { id } => {
            tables.remove_points(*id)?;
            known(*id, tables.remove_node(*id)?)
        }
        Op::RevokeKeys { of, at } => tables.revoke_keys(of, *at),
        Op::PutPoint(row) => tables.add_point(row),
        Op::RemovePoint(key) => tables.remove_point(key),
        Op::PutCheckpoint(row) => {
            tables.add_checkpoint(row)?;
            tables.drop_checkpoints(row.incarnation, row.keeps_from())
        }
        Op::PutTileHashes { incarnation, hashes } => tables.add_tile_hashes(*incarnation, hashes),
        Op::TrimDetails { incarnation, from, to } => {
            let past = Some(*incarnation).filter(|incarnation| *incarnation != present);
            tables.trim_details(past, *from, *to)
        }
        Op::AddFlow(row) => tables.add_flow(row),
        Op::TrimFlows { before } => tables.trim_flows(*before),
        Op::CreatePaper(row) => {
            let written = tables.add_paper(row)?;
            written.then_some(()).ok_or_else(|| exists(format!("paper `{}`", row.name)))
        }
        Op::RemovePaper { name } => tables.remove_paper(name),
        Op::AddTally(of, row) => tables.add_tally(*of, row),
        Op::TrimTallies { of, before } => tables.trim_tallies(*of, *before),
        Op::TouchNode { id, at } => known(*id, tables.touch_node(*id, *at)?),
    }
}

fn expect(tables: &mut impl Tables, id: NodeId, given: u64) -> Result<()> {
    let current = tables.node(id)?.ok_or(StoreError::NodeUnknown(id))?.generation;
    if current == given { Ok(()) } else { Err(StoreError::StaleGeneration { id, given, current }) }
}

fn known(id: NodeId, written: bool) -> Result<()> {
    written.then_some(()).ok_or(StoreError::NodeUnknown(id))
}

fn exists(what: String) -> StoreError {
    StoreError::AlreadyExists { what }
}

/// Drops what ended more than the allowed skew before `now`.
pub(crate) fn trim(tables: &mut impl Upkeep, now: Timestamp) -> Result<Trimmed> {
    let ended = now - SKEW_ALLOWED;
    let issued = tables.trim_issued(first_serial(ended)?, ended, TRIM_ROWS_MAX)?;
    let tokens = tables.trim_tokens(ended, TRIM_ROWS_MAX)?;
    let more = issued == TRIM_ROWS_MAX || tokens == TRIM_ROWS_MAX;
    Ok(Trimmed { issued, tokens, more })
}

/// The first serial that a certificate issued at this moment can have. None issued since can have ended before it, so
/// that a trim reads only the older part of the table and needs no index on the end.
pub(crate) fn first_serial(at: Timestamp) -> Result<Serial> {
    Ok(Serial::draw(at, &Zeros)?)
}

/// The lowest of all that could be drawn.
struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) -> std::result::Result<(), EntropyLost> {
        bytes.fill(0);
        Ok(())
    }
}
