//! What a draft has written, as few statements of many rows each.

use countersign_audit::TileHash;
use countersign_identity::{Incarnation, NodeEvidence};
use imbl::Vector;
use tokio_postgres::types::ToSql;

use super::draft::{Draft, Unread};
use super::rows::{labels_text, signed};
use super::session::{Command, command};
use super::text;
use crate::bounds::TRIM_ROWS_MAX;
use crate::{
    Change, CheckpointRow, FlowRow, Issued, KeysOf, NodeRow, PaperRow, PointKey, PointRow, Result,
    StoredEvent, TallyRow, TokenRow, sql,
};

/// How many rows one statement writes at most, so that it ends well within its time-out.
const ROWS_MAX: usize = 5000;

type Column<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// Collects one thing of each row.
fn column<'a, R, T: ToSql + Sync + Send + 'a>(
    rows: &'a [R],
    each: impl Fn(&'a R) -> T,
) -> Column<'a> {
    Box::new(rows.iter().map(each).collect::<Vec<T>>())
}

/// Numbers of rows that fit.
fn numbers<'a, R>(rows: &'a [R], each: impl Fn(&'a R) -> u64) -> Result<Column<'a>> {
    let numbers: Result<Vec<i64>> = rows.iter().map(|row| signed(each(row))).collect();
    Ok(Box::new(numbers?))
}

/// The rows of a draft in the order in which they are sent. Borrowed from it, gathered once.
pub(super) struct Rows<'a> {
    put_records: Vec<(&'static str, &'a str, &'a [u8])>,
    removed_records: Vec<(&'static str, &'a str)>,
    commits: Vec<u64>,
    changes: Vec<(u64, u64, &'a Change)>,
    leaves: Vec<&'a StoredEvent>,
    issued: Vec<&'a Issued>,
    secrets: Vec<(&'a str, &'a [u8])>,
    tokens: Vec<(&'a TokenRow, String)>,
    removed_nodes: Vec<&'a [u8]>,
    added_nodes: Vec<(&'a NodeRow, String)>,
    seen_nodes: Vec<&'a NodeRow>,
    feed_trimmed: Option<u64>,
    closed: Option<Incarnation>,
    unread: &'a Vector<Unread>,
}

impl<'a> Rows<'a> {
    /// Gathers what is no longer as it was.
    pub(super) fn of(draft: &'a Draft) -> Result<Self> {
        let (state, touched) = (&draft.state, &draft.touched);
        let mut rows = Self {
            put_records: Vec::new(),
            removed_records: Vec::new(),
            commits: state.commits.keys().copied().collect(),
            changes: Vec::new(),
            leaves: state.log.iter().map(|event| &**event).collect(),
            issued: state.issued.values().collect(),
            secrets: Vec::new(),
            tokens: Vec::new(),
            removed_nodes: Vec::new(),
            added_nodes: Vec::new(),
            seen_nodes: Vec::new(),
            feed_trimmed: touched.feed_trimmed,
            closed: touched.closed,
            unread: &touched.unread,
        };
        for key in &touched.records {
            match state.records.get(key) {
                Some(value) => rows.put_records.push((key.0.as_str(), &key.1, value)),
                None => rows.removed_records.push((key.0.as_str(), &key.1)),
            }
        }
        for (number, changes) in &state.commits {
            rows.changes.extend(changes.iter().zip(0..).map(|(change, at)| (*number, at, change)));
        }
        for name in &touched.secrets {
            rows.secrets.extend(state.secrets.get(name).map(|sealed| (name.as_str(), &**sealed)));
        }
        for token in touched.tokens.iter().filter_map(|hash| state.tokens.get(hash)) {
            rows.tokens.push((token, labels_text(&token.labels)?));
        }
        rows.nodes(draft)?;
        Ok(rows)
    }

    fn nodes(&mut self, draft: &'a Draft) -> Result<()> {
        for id in &draft.touched.nodes {
            match (draft.nodes_before.get(id), draft.state.nodes.get(id)) {
                (None, None) => {}
                (Some(_), None) => self.removed_nodes.push(id.as_bytes()),
                (Some(before), Some(after)) if before == after => {}
                (Some(before), Some(after)) if only_seen(before, after) => {
                    self.seen_nodes.push(after);
                }
                // Taken out and put in again: two nodes that trade keys would meet in the middle of an update.
                (before, Some(after)) => {
                    self.removed_nodes.extend(before.map(|_known| id.as_bytes().as_slice()));
                    self.added_nodes.push((after, labels_text(&after.labels)?));
                }
            }
        }
        Ok(())
    }

    /// The statements, in an order in which no row is in the way of another.
    pub(super) fn commands(&self) -> Result<Vec<Command<'_>>> {
        let mut all = Vec::new();
        if let Some(past) = self.closed {
            all.push(command!(sql::KEEP_LOG, signed(past)?));
            all.extend([command!(sql::EMPTY_LOG), command!(sql::EMPTY_COMMITS)]);
            all.extend([command!(sql::EMPTY_CHANGES), command!(sql::EMPTY_TOKENS)]);
        }
        for rows in self.removed_records.chunks(ROWS_MAX) {
            let columns = [column(rows, |row| row.0), column(rows, |row| row.1)];
            all.push(Command::new(text::REMOVE_RECORDS, columns));
        }
        for rows in self.put_records.chunks(ROWS_MAX) {
            let names = [column(rows, |row| row.0), column(rows, |row| row.1)];
            let values = [column(rows, |row| row.2)];
            all.push(Command::new(text::PUT_RECORDS, names.into_iter().chain(values)));
        }
        for rows in self.commits.chunks(ROWS_MAX) {
            all.push(Command::new(text::ADD_COMMITS, [numbers(rows, |number| *number)?]));
        }
        for rows in self.changes.chunks(ROWS_MAX) {
            all.push(changes(rows)?);
        }
        if let Some(up_to) = self.feed_trimmed {
            all.push(command!(sql::TRIM_CHANGES, signed(up_to)?));
            all.push(command!(sql::TRIM_COMMITS, signed(up_to)?));
        }
        for rows in self.leaves.chunks(ROWS_MAX) {
            all.push(leaves(rows)?);
        }
        for rows in self.issued.chunks(ROWS_MAX) {
            all.push(issued(rows)?);
        }
        self.beside(&mut all)?;
        Ok(all)
    }

    /// Secrets, tokens and nodes.
    fn beside<'b>(&'b self, all: &mut Vec<Command<'b>>) -> Result<()> {
        for rows in self.secrets.chunks(ROWS_MAX) {
            let columns = [column(rows, |row| row.0), column(rows, |row| row.1)];
            all.push(Command::new(text::PUT_SECRETS, columns));
        }
        for rows in self.tokens.chunks(ROWS_MAX) {
            let columns = [
                column(rows, |row| row.0.hash.as_bytes().as_slice()),
                column(rows, |row| row.0.expires.micros()),
                column(rows, |row| row.1.as_str()),
                column(rows, |row| row.0.spent.map(|spent| spent.micros())),
            ];
            all.push(Command::new(text::PUT_TOKENS, columns));
        }
        for rows in self.removed_nodes.chunks(ROWS_MAX) {
            all.push(Command::new(text::REMOVE_NODES, [column(rows, |id| *id)]));
        }
        for rows in self.added_nodes.chunks(ROWS_MAX) {
            all.push(nodes(rows)?);
        }
        for rows in self.seen_nodes.chunks(ROWS_MAX) {
            let columns = [
                column(rows, |row| row.id.as_bytes().as_slice()),
                column(rows, |row| row.seen_at.micros()),
            ];
            all.push(Command::new(text::TOUCH_NODES, columns));
        }
        for change in self.unread {
            all.push(unread(change)?);
        }
        Ok(())
    }
}

fn unread(change: &Unread) -> Result<Command<'_>> {
    Ok(match change {
        Unread::Keys(of, at) => {
            let at = at.micros();
            match of {
                KeysOf::Key(key) => command!(sql::REVOKE_KEY, key.as_bytes().as_slice(), at),
                KeysOf::Serial(serial) => {
                    command!(sql::REVOKE_KEYS_OF_SERIAL, at, serial.as_bytes().as_slice())
                }
                KeysOf::Identity(id) => command!(sql::REVOKE_KEYS_OF_IDENTITY, at, id.as_str()),
                KeysOf::Node(node) => {
                    command!(sql::REVOKE_KEYS_OF_NODE, at, node.as_bytes().as_slice())
                }
            }
        }
        Unread::Point(PointRow { key, registered_at }) => {
            let (node, at) = (key.node.as_bytes().as_slice(), registered_at.micros());
            command!(sql::ADD_POINT, node, key.spiffe_id.as_str(), key.name.as_str(), at)
        }
        Unread::NoPoint(PointKey { node, spiffe_id, name }) => {
            let node = node.as_bytes().as_slice();
            command!(sql::REMOVE_POINT, node, spiffe_id.as_str(), name.as_str())
        }
        Unread::NoPoints(node) => command!(sql::REMOVE_POINTS, node.as_bytes().as_slice()),
        Unread::Checkpoint(CheckpointRow { incarnation, size, note }) => {
            command!(sql::ADD_CHECKPOINT, signed(*incarnation)?, signed(*size)?, note.as_str())
        }
        Unread::NoCheckpoints(incarnation, below) => {
            command!(sql::DROP_CHECKPOINTS, signed(*incarnation)?, signed(*below)?)
        }
        Unread::TileHashes(incarnation, hashes) => tile_hashes(*incarnation, hashes)?,
        Unread::NoDetails { past: None, from, to } => {
            command!(sql::TRIM_DETAILS, signed(*from)?, signed(*to)?)
        }
        Unread::NoDetails { past: Some(past), from, to } => {
            command!(sql::TRIM_PAST_DETAILS, signed(*past)?, signed(*from)?, signed(*to)?)
        }
        Unread::Flow(FlowRow { flow, first, last, count }) => {
            let (first, last, count) = (first.micros(), last.micros(), signed(*count)?);
            command!(sql::ADD_FLOW, flow.as_bytes(), first, last, count)
        }
        Unread::NoFlows(before) => command!(sql::TRIM_FLOWS, before.micros()),
        Unread::Paper(PaperRow { name, value }) => {
            command!(sql::ADD_PAPER, name.as_bytes(), value.as_slice())
        }
        Unread::NoPaper(name) => command!(sql::REMOVE_PAPER, name.as_bytes()),
        Unread::Tally(of, TallyRow { at, what, first, last, count, micros, sample }) => {
            let (at, first, last) = (at.micros(), first.micros(), last.micros());
            let (count, micros) = (signed(*count)?, signed(*micros)?);
            let (of, what, sample) = (of.number(), what.as_bytes(), sample.as_bytes());
            command!(sql::ADD_TALLY, of, at, what, first, last, count, micros, sample)
        }
        Unread::NoTallies(of, before) => {
            let most = signed(TRIM_ROWS_MAX as u64)?;
            command!(sql::TRIM_TALLIES, of.number(), before.micros(), most)
        }
    })
}

fn tile_hashes(incarnation: Incarnation, rows: &[TileHash]) -> Result<Command<'_>> {
    let columns = [
        numbers(rows, |_row| incarnation)?,
        numbers(rows, |row| u64::from(row.level))?,
        numbers(rows, |row| row.position)?,
        column(rows, |row| row.hash.as_bytes().as_slice()),
    ];
    Ok(Command::new(text::ADD_TILE_HASHES, columns))
}

fn only_seen(before: &NodeRow, after: &NodeRow) -> bool {
    *before == NodeRow { seen_at: before.seen_at, ..after.clone() }
}

fn changes<'a>(rows: &'a [(u64, u64, &'a Change)]) -> Result<Command<'a>> {
    let parts = |change: &'a Change| match change {
        Change::Put(record) => (record.kind.as_str(), &record.name, Some(record.value.as_slice())),
        Change::Remove { kind, name } => (kind.as_str(), name, None),
    };
    let columns = [
        numbers(rows, |row| row.0)?,
        numbers(rows, |row| row.1)?,
        column(rows, |row| parts(row.2).0),
        column(rows, |row| parts(row.2).1),
        column(rows, |row| parts(row.2).2),
    ];
    Ok(Command::new(text::ADD_CHANGES, columns))
}

fn leaves<'a>(rows: &'a [&'a StoredEvent]) -> Result<Command<'a>> {
    let columns = [
        numbers(rows, |row| row.index)?,
        column(rows, |row| row.leaf.as_slice()),
        column(rows, |row| row.hash.as_bytes().as_slice()),
        column(rows, |row| row.details.as_ref().map(|details| details.json.as_slice())),
        column(rows, |row| row.details.as_ref().map(|details| details.salt.as_slice())),
    ];
    Ok(Command::new(text::ADD_LEAVES, columns))
}

fn issued<'a>(rows: &'a [&'a Issued]) -> Result<Command<'a>> {
    let columns = [
        column(rows, |one| one.row.serial.as_bytes().as_slice()),
        column(rows, |one| one.row.tbs.as_bytes().as_slice()),
        column(rows, |one| one.row.spiffe_id.as_str()),
        column(rows, |one| one.row.key.as_bytes().as_slice()),
        column(rows, |one| one.row.issuer.as_bytes().as_slice()),
        column(rows, |one| one.row.node.as_ref().map(|node| node.as_bytes().as_slice())),
        column(rows, |one| one.row.validity.not_before.micros()),
        column(rows, |one| one.row.validity.not_after.micros()),
        numbers(rows, |one| one.row.revision.incarnation)?,
        numbers(rows, |one| one.row.revision.number)?,
        numbers(rows, |one| one.index)?,
    ];
    Ok(Command::new(text::ADD_ISSUED, columns))
}

fn nodes<'a>(rows: &'a [(&'a NodeRow, String)]) -> Result<Command<'a>> {
    let columns = [
        column(rows, |row| row.0.id.as_bytes().as_slice()),
        column(rows, |row| row.0.spiffe_id.as_str()),
        column(rows, |row| row.0.key_spki.as_slice()),
        numbers(rows, |row| row.0.generation)?,
        column(rows, |row| row.1.as_str()),
        column(rows, |row| row.0.host.as_str()),
        column(rows, |row| row.0.attested_at.micros()),
        column(rows, |row| row.0.seen_at.micros()),
        column(rows, |row| row.0.attested_by.map(NodeEvidence::as_str)),
    ];
    Ok(Command::new(text::ADD_NODES, columns))
}
