//! A transaction before it is sent: the rows that it reads, and in memory what becomes of them.
//!
//! What a batch does is decided on rows that were read in one round trip, by the very code that decides in memory;
//! what was written then goes out in another. The head row's guard makes sure that nothing happened in between.

use std::collections::HashSet;

use countersign_audit::{Leaf, TileHash};
use countersign_identity::{Incarnation, KeyId, NodeId, Serial, Sha256, Timestamp};
use imbl::{OrdMap, OrdSet, Vector};
use tokio_postgres::Row;

use super::rows::{self, broken};
use super::session::{Command, command};
use super::text;
use crate::memory::State;
use crate::transact::Tables;
use crate::{
    Batch, Change, CheckpointRow, FlowRow, Head, IssuedRow, KeysOf, Kind, NodeRow, Op, PaperRow,
    PointKey, PointRow, Record, Result, TallyOf, TallyRow, TokenRow,
};

/// The rows on whose contents a group of batches depends.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    kinds: Vec<&'static str>,
    names: Vec<&'a str>,
    tokens: Vec<&'a [u8]>,
    papers: Vec<&'a [u8]>,
    nodes: Vec<&'a [u8]>,
    keys: Vec<&'a [u8]>,
    serials: Vec<&'a [u8]>,
    issued_keys: Vec<&'a [u8]>,
}

impl<'a> Wanted<'a> {
    /// What these batches need to know.
    pub(super) fn of(batches: impl IntoIterator<Item = &'a Batch>) -> Self {
        let mut wanted = Self::default();
        for batch in batches {
            for change in &batch.changes {
                // A put needs to know nothing.
                if let Change::Remove { kind, name } = change {
                    wanted.kinds.push(kind.as_str());
                    wanted.names.push(name);
                }
            }
            batch.ops.iter().for_each(|op| wanted.add(op));
            wanted.serials.extend(batch.issued.iter().map(|row| row.serial.as_bytes().as_slice()));
            wanted.issued_keys.extend(batch.issued.iter().map(|row| row.key.as_bytes().as_slice()));
        }
        wanted
    }

    fn add(&mut self, op: &'a Op) {
        match op {
            // What these need to know is known to the statement that writes them.
            Op::PutSecret { .. }
            | Op::RevokeKeys { .. }
            | Op::PutPoint(_)
            | Op::RemovePoint(_)
            | Op::PutCheckpoint(_)
            | Op::PutTileHashes { .. }
            | Op::TrimDetails { .. }
            | Op::AddFlow(_)
            | Op::TrimFlows { .. }
            | Op::RemovePaper { .. }
            | Op::AddTally(..)
            | Op::TrimTallies { .. } => {}
            Op::CreateToken(TokenRow { hash, .. }) | Op::SpendToken { hash, .. } => {
                self.tokens.push(hash.as_bytes());
            }
            Op::CreatePaper(row) => self.papers.push(row.name.as_bytes()),
            Op::PutNode(row) => {
                self.nodes.push(row.id.as_bytes());
                self.keys.push(&row.key_spki);
            }
            Op::UpdateNode { id, proven, key_spki, .. } => {
                self.nodes.push(id.as_bytes());
                self.keys.push(key_spki);
                self.issued_keys.push(proven.as_bytes());
            }
            Op::ExpectNode { id, .. } | Op::RemoveNode { id } | Op::TouchNode { id, .. } => {
                self.nodes.push(id.as_bytes());
            }
        }
    }

    /// The commands that read it, after the head row's.
    ///
    /// A serial is random: whether it is taken is looked up only `carefully`, when a first attempt has met one.
    pub(super) fn commands(&self, head: &'static str, careful: bool) -> Vec<Command<'_>> {
        let mut commands = vec![command!(head)];
        if !self.names.is_empty() {
            commands.push(command!(text::KNOWN_RECORDS, &self.kinds, &self.names));
        }
        if !self.tokens.is_empty() {
            commands.push(command!(text::KNOWN_TOKENS, &self.tokens));
        }
        if !self.papers.is_empty() {
            commands.push(command!(text::KNOWN_PAPERS, &self.papers));
        }
        if !self.nodes.is_empty() {
            commands.push(command!(text::KNOWN_NODES, &self.nodes, &self.keys));
        }
        if !self.issued_keys.is_empty() {
            commands.push(command!(text::KNOWN_REVOKED, &self.issued_keys));
        }
        if careful && !self.serials.is_empty() {
            commands.push(command!(text::KNOWN_SERIALS, &self.serials));
        }
        commands
    }
}

/// A group of batches on its way.
#[derive(Clone)]
pub(super) struct Draft {
    /// The rows as they will be.
    pub(super) state: State,
    /// The nodes as they are.
    pub(super) nodes_before: OrdMap<NodeId, NodeRow>,
    pub(super) head_before: Head,
    pub(super) writes: u64,
    /// Which version of the schema a program has to know.
    pub(super) needs: u64,
    pub(super) touched: Touched,
    taken: std::sync::Arc<HashSet<Serial>>,
}

/// Which rows are no longer as they were read. Persistent sets: a copy to go back to costs nothing.
#[derive(Clone, Default)]
pub(super) struct Touched {
    pub(super) records: OrdSet<(Kind, String)>,
    pub(super) secrets: OrdSet<String>,
    pub(super) tokens: OrdSet<Sha256>,
    pub(super) nodes: OrdSet<NodeId>,
    pub(super) feed_trimmed: Option<u64>,
    /// The incarnation that is over with this.
    pub(super) closed: Option<Incarnation>,
    /// What is written without having been read, in order.
    pub(super) unread: Vector<Unread>,
}

/// A change that one statement decides and writes.
#[derive(Clone)]
pub(super) enum Unread {
    /// Keys are refused from now on.
    Keys(KeysOf, Timestamp),
    /// A point is registered, unless it is.
    Point(PointRow),
    /// A point is gone.
    NoPoint(PointKey),
    /// A node's points are gone.
    NoPoints(NodeId),
    /// Something was signed of a log.
    Checkpoint(CheckpointRow),
    /// What was signed before, below a size, is needless.
    NoCheckpoints(Incarnation, u64),
    /// Tiles of a log are full.
    TileHashes(Incarnation, Vec<TileHash>),
    /// Details are dropped, of the present log or of a past one.
    NoDetails { past: Option<Incarnation>, from: u64, to: u64 },
    /// Something was seen again.
    Flow(FlowRow),
    /// What was not seen since is forgotten.
    NoFlows(Timestamp),
    /// A paper is kept.
    Paper(PaperRow),
    /// A paper is dropped.
    NoPaper(String),
    /// Something is added to a tally.
    Tally(TallyOf, TallyRow),
    /// Tallies of earlier spans are forgotten.
    NoTallies(TallyOf, Timestamp),
}

impl Draft {
    /// What was read, by the commands of [`Wanted::commands`].
    pub(super) fn load(wanted: &Wanted<'_>, answers: Vec<Vec<Row>>, careful: bool) -> Result<Self> {
        let mut answers = answers.into_iter();
        let mut next = move || answers.next().unwrap_or_default();
        let head = next();
        let row = head.first().ok_or_else(|| broken("there is no head row"))?;
        let (head, writes) = (rows::head(row)?, rows::number(row, 4)?);
        let needs = rows::number(row, 5)?;
        let mut state = State::empty(head);
        let mut taken = HashSet::new();
        if !wanted.names.is_empty() {
            for row in next() {
                let key = (rows::parsed(&row, 0)?, rows::column(&row, 1)?);
                // Only that it is there matters to a removal.
                state.records.insert(key, std::sync::Arc::new([]));
            }
        }
        if !wanted.tokens.is_empty() {
            for row in next() {
                let token = rows::token(&row)?;
                state.tokens.insert(token.hash, token);
            }
        }
        if !wanted.papers.is_empty() {
            for row in next() {
                let paper = rows::paper(&row)?;
                state.papers.insert(paper.name.clone(), paper);
            }
        }
        if !wanted.nodes.is_empty() {
            for row in next() {
                let node = rows::node(&row)?;
                state.keys.insert(node.key_spki.clone(), node.id);
                state.nodes.insert(node.id, node);
            }
        }
        if !wanted.issued_keys.is_empty() {
            for row in next() {
                // That it is there is what matters.
                state.revoked_keys.insert(rows::key(&row, 0)?, Timestamp::EPOCH);
            }
        }
        if careful && !wanted.serials.is_empty() {
            for row in next() {
                taken.insert(rows::serial(&row, 0)?);
            }
        }
        let (touched, taken) = (Touched::default(), std::sync::Arc::new(taken));
        let nodes_before = state.nodes.clone();
        Ok(Self { state, nodes_before, head_before: head, writes, needs, touched, taken })
    }
}

impl Tables for Draft {
    fn put_record(&mut self, record: &Record) -> Result<()> {
        self.touched.records.insert((record.kind, record.name.clone()));
        self.state.put_record(record)
    }

    fn remove_record(&mut self, kind: Kind, name: &str) -> Result<bool> {
        let written = self.state.remove_record(kind, name)?;
        if written {
            self.touched.records.insert((kind, name.to_owned()));
        }
        Ok(written)
    }

    fn add_commit(&mut self, number: u64) -> Result<()> {
        self.state.add_commit(number)
    }

    fn add_change(&mut self, number: u64, position: usize, change: &Change) -> Result<()> {
        self.state.add_change(number, position, change)
    }

    fn trim_feed(&mut self, up_to: u64) -> Result<()> {
        self.touched.feed_trimmed = Some(up_to);
        Ok(())
    }

    fn close_incarnation(&mut self, past: Incarnation) -> Result<()> {
        // The rows of it are in the database, and nothing of it is in this draft: such a batch goes alone.
        self.touched.closed = Some(past);
        Ok(())
    }

    fn add_leaf(&mut self, index: u64, leaf: Leaf) -> Result<()> {
        self.state.add_leaf(index, leaf)
    }

    fn add_issued(&mut self, row: &IssuedRow, index: u64) -> Result<bool> {
        if self.taken.contains(&row.serial) {
            return Ok(false);
        }
        self.state.add_issued(row, index)
    }

    fn put_secret(&mut self, name: &str, sealed: &[u8]) -> Result<()> {
        self.touched.secrets.insert(name.to_owned());
        self.state.put_secret(name, sealed)
    }

    fn add_token(&mut self, row: &TokenRow) -> Result<bool> {
        let written = self.state.add_token(row)?;
        if written {
            self.touched.tokens.insert(row.hash);
        }
        Ok(written)
    }

    fn spend_token(&mut self, hash: Sha256, now: Timestamp) -> Result<bool> {
        let written = self.state.spend_token(hash, now)?;
        if written {
            self.touched.tokens.insert(hash);
        }
        Ok(written)
    }

    fn token(&mut self, hash: Sha256) -> Result<Option<TokenRow>> {
        self.state.token(hash)
    }

    fn add_node(&mut self, row: &NodeRow) -> Result<bool> {
        let written = self.state.add_node(row)?;
        if written {
            self.touched.nodes.insert(row.id);
        }
        Ok(written)
    }

    fn succeed_key(
        &mut self,
        id: NodeId,
        old: u64,
        key: (u64, &[u8]),
        at: Timestamp,
    ) -> Result<bool> {
        let written = self.state.succeed_key(id, old, key, at)?;
        if written {
            self.touched.nodes.insert(id);
        }
        Ok(written)
    }

    fn remove_node(&mut self, id: NodeId) -> Result<bool> {
        let written = self.state.remove_node(id)?;
        if written {
            self.touched.nodes.insert(id);
        }
        Ok(written)
    }

    fn touch_node(&mut self, id: NodeId, at: Timestamp) -> Result<bool> {
        let written = self.state.touch_node(id, at)?;
        if written {
            self.touched.nodes.insert(id);
        }
        Ok(written)
    }

    fn node(&mut self, id: NodeId) -> Result<Option<NodeRow>> {
        self.state.node(id)
    }

    fn add_point(&mut self, row: &PointRow) -> Result<()> {
        self.touched.unread.push_back(Unread::Point(row.clone()));
        Ok(())
    }

    fn remove_point(&mut self, key: &PointKey) -> Result<()> {
        self.touched.unread.push_back(Unread::NoPoint(key.clone()));
        Ok(())
    }

    fn remove_points(&mut self, node: NodeId) -> Result<()> {
        self.touched.unread.push_back(Unread::NoPoints(node));
        Ok(())
    }

    fn add_checkpoint(&mut self, row: &CheckpointRow) -> Result<()> {
        self.touched.unread.push_back(Unread::Checkpoint(row.clone()));
        Ok(())
    }

    fn drop_checkpoints(&mut self, incarnation: Incarnation, below: u64) -> Result<()> {
        self.touched.unread.push_back(Unread::NoCheckpoints(incarnation, below));
        Ok(())
    }

    fn add_tile_hashes(&mut self, incarnation: Incarnation, hashes: &[TileHash]) -> Result<()> {
        self.touched.unread.push_back(Unread::TileHashes(incarnation, hashes.to_vec()));
        Ok(())
    }

    fn trim_details(&mut self, past: Option<Incarnation>, from: u64, to: u64) -> Result<()> {
        self.touched.unread.push_back(Unread::NoDetails { past, from, to });
        Ok(())
    }

    fn add_flow(&mut self, row: &FlowRow) -> Result<()> {
        self.touched.unread.push_back(Unread::Flow(row.clone()));
        Ok(())
    }

    fn add_tally(&mut self, of: TallyOf, row: &TallyRow) -> Result<()> {
        self.touched.unread.push_back(Unread::Tally(of, row.clone()));
        Ok(())
    }

    fn trim_tallies(&mut self, of: TallyOf, before: Timestamp) -> Result<()> {
        self.touched.unread.push_back(Unread::NoTallies(of, before));
        Ok(())
    }

    fn trim_flows(&mut self, before: Timestamp) -> Result<()> {
        self.touched.unread.push_back(Unread::NoFlows(before));
        Ok(())
    }

    fn add_paper(&mut self, row: &PaperRow) -> Result<bool> {
        let written = self.state.add_paper(row)?;
        if written {
            // In order with those that are dropped.
            self.touched.unread.push_back(Unread::Paper(row.clone()));
        }
        Ok(written)
    }

    fn remove_paper(&mut self, name: &str) -> Result<()> {
        self.touched.unread.push_back(Unread::NoPaper(name.to_owned()));
        self.state.remove_paper(name)
    }

    fn revoke_keys(&mut self, of: &KeysOf, at: Timestamp) -> Result<()> {
        self.touched.unread.push_back(Unread::Keys(of.clone(), at));
        // Of what the same transaction issues. Of what was issued before, nothing of it can be recorded in this
        // transaction: taking rights away moves the fence.
        self.state.revoke_keys(of, at)
    }

    fn is_key_revoked(&mut self, key: KeyId) -> Result<bool> {
        self.state.is_key_revoked(key)
    }
}
