//! What the store of a directory answers.

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp};
use rusqlite::Connection;
use tokio::sync::watch;

use super::tables::{Open, all, one};
use super::{SqliteStore, feed, rows};
use crate::bounds::{HASHES_MAX, check, check_report};
use crate::queue::{Job, WantedLease};
use crate::{
    Batch, CheckpointRow, Committed, Failures, Feed, FlowRow, Head, Issued, Lease, NodeRow,
    PAGE_MAX, PaperRow, PointKey, PointRow, ReportRow, Result, Snapshot, Span, Store, StoredEvent,
    TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed, sql,
};

/// Looks at every page and every index; tells of a few things that are wrong, or `ok`.
const INTEGRITY: &str = "PRAGMA integrity_check(5)";

#[async_trait]
impl Store for SqliteStore {
    async fn head(&self) -> Result<Head> {
        self.readers.read(|connection| Open(connection).head()).await
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.readers.read(feed::snapshot).await
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed> {
        self.readers.read(move |connection| feed::feed(connection, after, limit)).await
    }

    async fn span(&self) -> Result<Span> {
        let read = |connection: &Connection| one(connection, sql::SPAN, [], rows::span);
        self.readers.read(read).await?.ok_or_else(|| rows::broken("there is no head row"))
    }

    fn hint(&self) -> watch::Receiver<Revision> {
        self.hint.clone()
    }

    fn failures(&self) -> Option<watch::Receiver<Failures>> {
        Some(self.failures.clone())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        check(&batch)?;
        self.write(|answer| Job::Commit { batch, answer }).await
    }

    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let name = name.to_owned();
        let read = move |connection: &Connection| {
            one(connection, sql::SECRET, [name], |row| rows::column(row, 0))
        };
        self.readers.read(read).await
    }

    async fn secrets(&self, after: Option<String>, limit: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let read = move |connection: &Connection| {
            let values = (after.unwrap_or_default(), limited(limit, PAGE_MAX));
            all(connection, sql::SECRETS, values, rows::secret)
        };
        self.readers.read(read).await
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        let read =
            move |connection: &Connection| one(connection, sql::NODE, [id.as_bytes()], rows::node);
        self.readers.read(read).await
    }

    async fn nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeRow>> {
        let read = move |connection: &Connection| {
            // No bytes are before all bytes.
            let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
            all(connection, sql::NODES, (after, limited(limit, PAGE_MAX)), rows::node)
        };
        self.readers.read(read).await
    }

    async fn points(&self, after: Option<PointKey>, limit: usize) -> Result<Vec<PointRow>> {
        let read = move |connection: &Connection| {
            let limit = limited(limit, PAGE_MAX);
            match &after {
                // No bytes are before all bytes.
                None => all(connection, sql::POINTS, (&[][..], "", "", limit), rows::point),
                Some(PointKey { node, spiffe_id, name }) => {
                    let values = (&node.as_bytes()[..], spiffe_id.as_str(), name, limit);
                    all(connection, sql::POINTS, values, rows::point)
                }
            }
        };
        self.readers.read(read).await
    }

    async fn flows(&self, after: Option<String>, limit: usize) -> Result<Vec<FlowRow>> {
        let read = move |connection: &Connection| {
            // No bytes are before all bytes.
            let after = after.unwrap_or_default();
            let values = (after.as_bytes(), limited(limit, PAGE_MAX));
            all(connection, sql::FLOWS, values, rows::flow)
        };
        self.readers.read(read).await
    }

    async fn papers(&self, after: Option<String>, limit: usize) -> Result<Vec<PaperRow>> {
        let read = move |connection: &Connection| {
            // No bytes are before all bytes.
            let after = after.unwrap_or_default();
            let values = (after.as_bytes(), limited(limit, PAGE_MAX));
            all(connection, sql::PAPERS, values, rows::paper)
        };
        self.readers.read(read).await
    }

    async fn tallies(
        &self,
        of: TallyOf,
        from: Timestamp,
        before: TallyPlace,
        limit: usize,
    ) -> Result<Vec<TallyRow>> {
        let read = move |connection: &Connection| {
            let TallyPlace { at, what } = &before;
            let (from, at, what) = (from.micros(), at.micros(), what.as_bytes());
            let values = (of.number(), from, at, what, limited(limit, PAGE_MAX));
            all(connection, sql::TALLIES, values, rows::tally)
        };
        self.readers.read(read).await
    }

    async fn tallies_beyond(&self, of: TallyOf, keep: u64) -> Result<Option<Timestamp>> {
        let keep = rows::signed(keep)?;
        let read = move |connection: &Connection| {
            one(connection, sql::TALLIES_BEYOND, (of.number(), keep), rows::began)
        };
        self.readers.read(read).await
    }

    async fn token(&self, hash: Sha256) -> Result<Option<TokenRow>> {
        let read = move |connection: &Connection| {
            one(connection, sql::TOKEN, [hash.as_bytes()], rows::token)
        };
        self.readers.read(read).await
    }

    async fn tokens(&self, after: Option<Sha256>, limit: usize) -> Result<Vec<TokenRow>> {
        let read = move |connection: &Connection| {
            let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
            all(connection, sql::TOKENS, (after, limited(limit, PAGE_MAX)), rows::token)
        };
        self.readers.read(read).await
    }

    async fn revoked_keys(
        &self,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<(KeyId, Timestamp)>> {
        let read = move |connection: &Connection| {
            let after = after.as_ref().map_or(&[][..], |key| key.as_bytes());
            all(connection, sql::REVOKED_KEYS, (after, limited(limit, PAGE_MAX)), rows::revoked_key)
        };
        self.readers.read(read).await
    }

    async fn issued(&self, serial: Serial) -> Result<Option<Issued>> {
        let read = move |connection: &Connection| {
            one(connection, sql::ISSUED, [serial.as_bytes()], rows::issued)
        };
        self.readers.read(read).await
    }

    async fn issued_after(&self, after: Option<Serial>, limit: usize) -> Result<Vec<Issued>> {
        let read = move |connection: &Connection| {
            let after = after.as_ref().map_or(&[][..], |serial| serial.as_bytes());
            all(connection, sql::ISSUED_AFTER, (after, limited(limit, PAGE_MAX)), rows::issued)
        };
        self.readers.read(read).await
    }

    async fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
        let read = move |connection: &Connection| {
            all(connection, sql::EVENTS, (from, limited(limit, PAGE_MAX)), rows::event)
        };
        self.readers.read(read).await
    }

    async fn leaf_hashes(&self, from: u64, limit: usize) -> Result<Vec<Sha256>> {
        let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
        let read = move |connection: &Connection| {
            let page = (from, limited(limit, HASHES_MAX));
            all(connection, sql::LEAF_HASHES, page, |row| rows::sha256(row, 1))
        };
        self.readers.read(read).await
    }

    async fn past_events(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        let (Ok(incarnation), Ok(from)) = (i64::try_from(incarnation), i64::try_from(from)) else {
            return Ok(Vec::new());
        };
        let read = move |connection: &Connection| {
            let page = (incarnation, from, limited(limit, PAGE_MAX));
            all(connection, sql::PAST_EVENTS, page, rows::event)
        };
        self.readers.read(read).await
    }

    async fn past_incarnation(&self, after: Incarnation) -> Result<Option<Incarnation>> {
        let Ok(after) = i64::try_from(after) else { return Ok(None) };
        let read = move |connection: &Connection| {
            one(connection, sql::PAST_INCARNATION, [after], |row| rows::number(row, 0))
        };
        self.readers.read(read).await
    }

    async fn checkpoints(
        &self,
        incarnation: Incarnation,
        limit: usize,
    ) -> Result<Vec<CheckpointRow>> {
        let Ok(incarnation) = i64::try_from(incarnation) else { return Ok(Vec::new()) };
        let read = move |connection: &Connection| {
            let page = (incarnation, limited(limit, PAGE_MAX));
            all(connection, sql::CHECKPOINTS, page, rows::checkpoint)
        };
        self.readers.read(read).await
    }

    async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
        limit: usize,
    ) -> Result<Vec<TileHash>> {
        let (Ok(incarnation), Ok(from)) = (i64::try_from(incarnation), i64::try_from(from)) else {
            return Ok(Vec::new());
        };
        let read = move |connection: &Connection| {
            let page = (incarnation, i64::from(level), from, limited(limit, PAGE_MAX));
            all(connection, sql::TILE_HASHES, page, rows::tile_hash)
        };
        self.readers.read(read).await
    }

    async fn lease(&self, name: &str, lease: Lease, over: Option<Lease>) -> Result<bool> {
        let wanted = WantedLease::new(name, lease, over)?;
        self.write(|answer| Job::Lease { wanted, answer }).await
    }

    async fn lease_of(&self, name: &str) -> Result<Option<Lease>> {
        let name = name.to_owned();
        let read = move |connection: &Connection| one(connection, sql::LEASE, [name], rows::lease);
        self.readers.read(read).await
    }

    async fn report(&self, report: ReportRow) -> Result<bool> {
        check_report(&report)?;
        self.write(|answer| Job::Report { report, answer }).await
    }

    async fn report_versions(&self) -> Result<Vec<(String, u64)>> {
        let read = |connection: &Connection| {
            let most = [limited(PAGE_MAX, PAGE_MAX)];
            all(connection, sql::REPORT_VERSIONS, most, rows::report_version)
        };
        self.readers.read(read).await
    }

    async fn report_of(&self, replica: &str) -> Result<Option<ReportRow>> {
        let replica = replica.to_owned();
        let read =
            move |connection: &Connection| one(connection, sql::REPORT, [replica], rows::report);
        self.readers.read(read).await
    }

    async fn damage(&self) -> Result<Vec<String>> {
        let read = |connection: &Connection| {
            let found = all(connection, INTEGRITY, [], |row| rows::column::<String>(row, 0))?;
            Ok(if found == ["ok"] { Vec::new() } else { found })
        };
        self.readers.read(read).await
    }

    async fn trim(&self, now: Timestamp) -> Result<Trimmed> {
        self.write(|answer| Job::Trim { now, answer }).await
    }
}

fn limited(limit: usize, most: usize) -> i64 {
    i64::try_from(limit.min(most)).unwrap_or(i64::MAX)
}
