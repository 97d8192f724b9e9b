//! The tables of a transaction on SQLite.

use countersign_audit::{Leaf, TileHash};
use countersign_identity::{Incarnation, KeyId, NodeEvidence, NodeId, Serial, Sha256, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Params, Row};

use super::rows::{self, broken, failed, labels_text, signed};
use crate::bounds::TRIM_ROWS_MAX;
use crate::queue::WantedLease;
use crate::transact::{Tables, Upkeep};
use crate::{
    Change, CheckpointRow, FlowRow, Head, IssuedRow, KeysOf, Kind, NodeRow, PaperRow, PointKey,
    PointRow, Record, ReportRow, Result, TallyOf, TallyRow, TokenRow, sql,
};

/// The writer's connection inside a transaction.
pub(super) struct Open<'a>(pub(super) &'a Connection);

impl Open<'_> {
    /// Runs a statement; says how many rows it wrote.
    fn run(&self, text: &str, values: impl Params) -> Result<usize> {
        let mut statement = self.0.prepare_cached(text).map_err(failed)?;
        statement.execute(values).map_err(failed)
    }

    /// Begins or ends something.
    pub(super) fn bracket(&self, text: &str) -> Result<()> {
        self.run(text, []).map(|_none| ())
    }

    /// Reads the head row.
    pub(super) fn head(&self) -> Result<Head> {
        one(self.0, sql::HEAD, [], rows::head)?.ok_or_else(|| broken("there is no head row"))
    }

    /// Moves the head row from where it was read.
    pub(super) fn move_head(&self, from: &Head, to: &Head) -> Result<()> {
        let moved = self.run(
            sql::MOVE_HEAD,
            (
                signed(to.revision.incarnation)?,
                signed(to.revision.number)?,
                signed(to.fence.number)?,
                signed(to.log_size)?,
                signed(from.revision.incarnation)?,
                signed(from.revision.number)?,
                signed(from.log_size)?,
            ),
        )?;
        if moved == 1 { Ok(()) } else { Err(broken("the head row was changed by somebody else")) }
    }
}

/// Reads at most one row.
pub(super) fn one<T>(
    connection: &Connection,
    text: &str,
    values: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(text).map_err(failed)?;
    // The reading may fail in our terms, which SQLite's closure cannot say.
    let row = statement.query_row(values, |row| Ok(read(row))).optional().map_err(failed)?;
    row.transpose()
}

/// Reads all rows.
pub(super) fn all<T>(
    connection: &Connection,
    text: &str,
    values: impl Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(text).map_err(failed)?;
    let mut rows = statement.query(values).map_err(failed)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        found.push(read(row)?);
    }
    Ok(found)
}

impl Tables for Open<'_> {
    fn put_record(&mut self, record: &Record) -> Result<()> {
        let Record { kind, name, value } = record;
        self.run(sql::PUT_RECORD, (kind.as_str(), name, value)).map(|_one| ())
    }

    fn remove_record(&mut self, kind: Kind, name: &str) -> Result<bool> {
        Ok(self.run(sql::REMOVE_RECORD, (kind.as_str(), name))? == 1)
    }

    fn add_commit(&mut self, number: u64) -> Result<()> {
        self.run(sql::ADD_COMMIT, [signed(number)?]).map(|_one| ())
    }

    fn add_change(&mut self, number: u64, position: usize, change: &Change) -> Result<()> {
        let (kind, name, value) = match change {
            Change::Put(record) => (record.kind, &record.name, Some(&record.value)),
            Change::Remove { kind, name } => (*kind, name, None),
        };
        let place = (signed(number)?, signed(position as u64)?);
        self.run(sql::ADD_CHANGE, (place.0, place.1, kind.as_str(), name, value)).map(|_one| ())
    }

    fn trim_feed(&mut self, up_to: u64) -> Result<()> {
        let up_to = signed(up_to)?;
        self.run(sql::TRIM_COMMITS, [up_to])?;
        self.run(sql::TRIM_CHANGES, [up_to]).map(|_some| ())
    }

    fn close_incarnation(&mut self, past: Incarnation) -> Result<()> {
        self.run(sql::KEEP_LOG, [signed(past)?])?;
        let tables = [sql::EMPTY_LOG, sql::EMPTY_COMMITS, sql::EMPTY_CHANGES, sql::EMPTY_TOKENS];
        for text in tables {
            self.run(text, [])?;
        }
        Ok(())
    }

    fn add_leaf(&mut self, index: u64, leaf: Leaf) -> Result<()> {
        let Leaf { bytes, hash, details, salt } = leaf;
        self.run(sql::ADD_LEAF, (signed(index)?, bytes, hash.as_bytes(), details, salt))
            .map(|_one| ())
    }

    fn add_issued(&mut self, row: &IssuedRow, index: u64) -> Result<bool> {
        let node = row.node.as_ref().map(NodeId::as_bytes);
        let written = self.run(
            sql::ADD_ISSUED,
            (
                row.serial.as_bytes(),
                row.tbs.as_bytes(),
                row.spiffe_id.as_str(),
                row.key.as_bytes(),
                row.issuer.as_bytes(),
                node,
                row.validity.not_before.micros(),
                row.validity.not_after.micros(),
                signed(row.revision.incarnation)?,
                signed(row.revision.number)?,
                signed(index)?,
            ),
        )?;
        Ok(written == 1)
    }

    fn put_secret(&mut self, name: &str, sealed: &[u8]) -> Result<()> {
        self.run(sql::PUT_SECRET, (name, sealed)).map(|_one| ())
    }

    fn add_token(&mut self, row: &TokenRow) -> Result<bool> {
        let labels = labels_text(&row.labels)?;
        let spent = row.spent.map(Timestamp::micros);
        let values = (row.hash.as_bytes(), row.expires.micros(), labels, spent);
        Ok(self.run(sql::ADD_TOKEN, values)? == 1)
    }

    fn spend_token(&mut self, hash: Sha256, now: Timestamp) -> Result<bool> {
        Ok(self.run(sql::SPEND_TOKEN, (now.micros(), hash.as_bytes()))? == 1)
    }

    fn token(&mut self, hash: Sha256) -> Result<Option<TokenRow>> {
        one(self.0, sql::TOKEN, [hash.as_bytes()], rows::token)
    }

    fn add_node(&mut self, row: &NodeRow) -> Result<bool> {
        let written = self.run(
            sql::ADD_NODE,
            (
                row.id.as_bytes(),
                row.spiffe_id.as_str(),
                &row.key_spki,
                signed(row.generation)?,
                labels_text(&row.labels)?,
                &row.host,
                row.attested_at.micros(),
                row.seen_at.micros(),
                row.attested_by.map(NodeEvidence::as_str),
            ),
        )?;
        Ok(written == 1)
    }

    fn succeed_key(
        &mut self,
        id: NodeId,
        old: u64,
        key: (u64, &[u8]),
        at: Timestamp,
    ) -> Result<bool> {
        // No row has a generation that does not fit.
        let Ok(old) = i64::try_from(old) else { return Ok(false) };
        let values = (key.1, signed(key.0)?, at.micros(), id.as_bytes(), old);
        Ok(self.run(sql::SUCCEED_KEY, values)? == 1)
    }

    fn remove_node(&mut self, id: NodeId) -> Result<bool> {
        Ok(self.run(sql::REMOVE_NODE, [id.as_bytes()])? == 1)
    }

    fn touch_node(&mut self, id: NodeId, at: Timestamp) -> Result<bool> {
        Ok(self.run(sql::TOUCH_NODE, (at.micros(), id.as_bytes()))? == 1)
    }

    fn node(&mut self, id: NodeId) -> Result<Option<NodeRow>> {
        one(self.0, sql::NODE, [id.as_bytes()], rows::node)
    }

    fn add_point(&mut self, row: &PointRow) -> Result<()> {
        let PointRow { key, registered_at } = row;
        let values =
            (key.node.as_bytes(), key.spiffe_id.as_str(), &key.name, registered_at.micros());
        self.run(sql::ADD_POINT, values).map(|_one| ())
    }

    fn remove_point(&mut self, key: &PointKey) -> Result<()> {
        let values = (key.node.as_bytes(), key.spiffe_id.as_str(), &key.name);
        self.run(sql::REMOVE_POINT, values).map(|_one| ())
    }

    fn remove_points(&mut self, node: NodeId) -> Result<()> {
        self.run(sql::REMOVE_POINTS, [node.as_bytes()]).map(|_some| ())
    }

    fn add_checkpoint(&mut self, row: &CheckpointRow) -> Result<()> {
        let CheckpointRow { incarnation, size, note } = row;
        self.run(sql::ADD_CHECKPOINT, (signed(*incarnation)?, signed(*size)?, note)).map(|_one| ())
    }

    fn drop_checkpoints(&mut self, incarnation: Incarnation, below: u64) -> Result<()> {
        self.run(sql::DROP_CHECKPOINTS, (signed(incarnation)?, signed(below)?)).map(|_some| ())
    }

    fn add_tile_hashes(&mut self, incarnation: Incarnation, hashes: &[TileHash]) -> Result<()> {
        let incarnation = signed(incarnation)?;
        for TileHash { level, position, hash } in hashes {
            let values = (incarnation, i64::from(*level), signed(*position)?, hash.as_bytes());
            self.run(sql::ADD_TILE_HASH, values)?;
        }
        Ok(())
    }

    fn trim_details(&mut self, past: Option<Incarnation>, from: u64, to: u64) -> Result<()> {
        let (from, to) = (signed(from)?, signed(to)?);
        let trimmed = match past {
            None => self.run(sql::TRIM_DETAILS, (from, to)),
            Some(past) => self.run(sql::TRIM_PAST_DETAILS, (signed(past)?, from, to)),
        };
        trimmed.map(|_some| ())
    }

    fn add_flow(&mut self, row: &FlowRow) -> Result<()> {
        let FlowRow { flow, first, last, count } = row;
        let values = (flow.as_bytes(), first.micros(), last.micros(), signed(*count)?);
        self.run(sql::ADD_FLOW, values).map(|_one| ())
    }

    fn trim_flows(&mut self, before: Timestamp) -> Result<()> {
        self.run(sql::TRIM_FLOWS, [before.micros()]).map(|_some| ())
    }

    fn add_paper(&mut self, row: &PaperRow) -> Result<bool> {
        Ok(self.run(sql::ADD_PAPER, (row.name.as_bytes(), &row.value))? == 1)
    }

    fn remove_paper(&mut self, name: &str) -> Result<()> {
        self.run(sql::REMOVE_PAPER, [name.as_bytes()]).map(|_one| ())
    }

    fn add_tally(&mut self, of: TallyOf, row: &TallyRow) -> Result<()> {
        let TallyRow { at, what, first, last, count, micros, sample } = row;
        let (first, last) = (first.micros(), last.micros());
        let counted = (signed(*count)?, signed(*micros)?, sample.as_bytes());
        let (count, micros, sample) = counted;
        let values =
            (of.number(), at.micros(), what.as_bytes(), first, last, count, micros, sample);
        self.run(sql::ADD_TALLY, values).map(|_one| ())
    }

    fn trim_tallies(&mut self, of: TallyOf, before: Timestamp) -> Result<()> {
        let most = signed(TRIM_ROWS_MAX as u64)?;
        self.run(sql::TRIM_TALLIES, (of.number(), before.micros(), most)).map(|_some| ())
    }

    fn revoke_keys(&mut self, of: &KeysOf, at: Timestamp) -> Result<()> {
        let at = at.micros();
        let written = match of {
            KeysOf::Key(key) => self.run(sql::REVOKE_KEY, (key.as_bytes(), at)),
            KeysOf::Serial(serial) => self.run(sql::REVOKE_KEYS_OF_SERIAL, (at, serial.as_bytes())),
            KeysOf::Identity(id) => self.run(sql::REVOKE_KEYS_OF_IDENTITY, (at, id.as_str())),
            KeysOf::Node(node) => self.run(sql::REVOKE_KEYS_OF_NODE, (at, node.as_bytes())),
        };
        written.map(|_some| ())
    }

    fn is_key_revoked(&mut self, key: KeyId) -> Result<bool> {
        Ok(one(self.0, sql::IS_KEY_REVOKED, [key.as_bytes()], |_row| Ok(()))?.is_some())
    }
}

impl Upkeep for Open<'_> {
    fn take_lease(&mut self, wanted: &WantedLease) -> Result<bool> {
        let WantedLease { name, lease, over } = wanted;
        let ends = (lease.ends.micros(), over.ends.micros());
        Ok(self.run(sql::TAKE_LEASE, (name, &lease.holder, ends.0, &over.holder, ends.1))? == 1)
    }

    fn put_report(&mut self, report: &ReportRow) -> Result<bool> {
        let ReportRow { replica, version, body } = report;
        Ok(self.run(sql::PUT_REPORT, (replica, signed(*version)?, body))? == 1)
    }

    fn trim_issued(&mut self, before: Serial, ended: Timestamp, limit: usize) -> Result<usize> {
        let limit = signed(limit as u64)?;
        self.run(sql::TRIM_ISSUED, (before.as_bytes(), ended.micros(), limit))
    }

    fn trim_tokens(&mut self, ended: Timestamp, limit: usize) -> Result<usize> {
        self.run(sql::TRIM_TOKENS, (ended.micros(), signed(limit as u64)?))
    }
}
