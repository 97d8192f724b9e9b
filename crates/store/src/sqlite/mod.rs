//! The store on SQLite: one file in the data directory, one thread that writes, a few connections that read.

mod files;
mod patience;
mod readers;
mod rows;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{
    Entropy, Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp,
};
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use self::files::Lock;
use self::patience::{PATIENCE, Stopwatch};
use self::readers::Readers;
use self::tables::{Open, all, one};
pub(crate) use self::transfer::{Reading, Writing};
use self::writer::Writer;
use crate::bounds::{FEED_CHANGES_MAX, HASHES_MAX, check, check_report};
use crate::queue::{Job, Queue, WantedLease, ended};
use crate::{
    Batch, Change, CheckpointRow, Commit, Committed, Failures, Feed, FlowRow, Head, Issued, Lease,
    NodeRow, PAGE_MAX, PaperRow, PointKey, PointRow, Record, ReportRow, Result, Snapshot, Span,
    Store, StoreError, StoredEvent, TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed, sql,
};

/// Looks at every page and every index; tells of a few things that are wrong, or `ok`.
const INTEGRITY: &str = "PRAGMA integrity_check(5)";

/// A store in a directory: durable, for one process at a time.
///
/// Needs a Tokio runtime for reading. Dropping it waits until what was queued is written, then frees the directory.
pub struct SqliteStore {
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    hint: watch::Receiver<Revision>,
    failures: watch::Receiver<Failures>,
    /// The one that writes, and the one that watches it.
    threads: Vec<JoinHandle<()>>,
    // Last, so that it is released after all connections are closed.
    _lock: Option<Lock>,
}

/// A store that is only read.
#[derive(Debug)]
pub struct Observed(SqliteStore);

impl std::ops::Deref for Observed {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl SqliteStore {
    /// Makes a new store in a directory that has none, and opens it.
    ///
    /// # Errors
    /// When there is one, or the directory cannot be written.
    pub fn create(directory: &Path, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let lock = Lock::take(directory)?;
        files::create(directory, &lock)?;
        Self::open_locked(directory, lock, entropy, &thread)
    }

    /// Opens the store of a directory. It never makes one: an empty store in place of the expected one would be a
    /// trust domain that has forgotten everything.
    ///
    /// # Errors
    /// When there is none, another process has it open, others may read it, it is not ours, of a newer version, or
    /// its log is torn.
    pub fn open(directory: &Path, entropy: Arc<dyn Entropy>) -> Result<Self> {
        files::check_modes(directory)?;
        let lock = Lock::take(directory)?;
        files::check_header(directory, &lock)?;
        Self::open_locked(directory, lock, entropy, &thread)
    }

    /// Opens the store of a directory to read it, also while a server runs on it. Every write is refused.
    ///
    /// # Errors
    /// When there is none, others may read it, or it is of another version than this program reads.
    pub fn observe(directory: &Path) -> Result<Observed> {
        files::check_modes(directory)?;
        let path = files::database(directory);
        schema::check_to_read(&files::open_reader(&path)?, &path)?;
        let queue = Arc::new(Queue::new());
        queue.close();
        let (_hint, hint) = watch::channel(Revision::default());
        let (_failures, failures) = watch::channel(Failures::default());
        let readers = Arc::new(Readers::new(path));
        Ok(Observed(Self { queue, readers, hint, failures, threads: Vec::new(), _lock: None }))
    }

    fn open_locked(
        directory: &Path,
        lock: Lock,
        entropy: Arc<dyn Entropy>,
        start: &dyn Fn(&str, Work) -> Result<JoinHandle<()>>,
    ) -> Result<Self> {
        let path = files::database(directory);
        let connection = files::open_writer(&path)?;
        let head = check_log(&connection)?;
        let queue = Arc::new(Queue::new());
        let (hint, hinted) = watch::channel(head.revision);
        let (failures, failed) = watch::channel(Failures::default());
        let stopwatch = Arc::new(Stopwatch::default());
        let (watched, slow, at) = (Arc::clone(&stopwatch), failures.clone(), path.clone());
        let writer =
            Writer { connection, queue: Arc::clone(&queue), hint, failures, stopwatch, entropy };
        let readers = Arc::new(Readers::new(path));
        let (hint, failures, threads) = (hinted, failed, Vec::with_capacity(2));
        let mut store = Self { queue, readers, hint, failures, threads, _lock: Some(lock) };
        // Where the second cannot be started, the first ends with the store, before the directory is free.
        store.threads.push(start("store-writer", Box::new(move || writer.run()))?);
        let watch = move || watched.watch(PATIENCE, || hangs(&slow, &at));
        store.threads.push(start("store-watch", Box::new(watch))?);
        Ok(store)
    }

    /// Hands a job to the writer and waits for its answer.
    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.queue.put(job(answer)).await?;
        answered.await.map_err(|_dropped| ended())?
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteStore at {}", *self.hint.borrow())
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if let Err(_panic) = thread.join() {
                tracing::error!(name, "a thread of the store had ended by a panic");
            }
        }
    }
}

/// What a thread does until it ends.
type Work = Box<dyn FnOnce() + Send>;

fn thread(name: &str, work: Work) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|why| StoreError::Unavailable { why: format!("a thread for writing: {why}") })
}

/// Counts a write that does not come back as one that the storage does not take.
fn hangs(failures: &watch::Sender<Failures>, path: &Path) {
    let path = path.display();
    let why = format!("a write to `{path}` has not come back for {PATIENCE:?}; look at its disk");
    tracing::error!(why, "a transaction hangs");
    failures.send_modify(|failures| {
        failures.count += 1;
        failures.last = why;
    });
}

/// Checks that the log has exactly the leaves that the head row counts. More is tampering, fewer a torn file.
fn check_log(connection: &Connection) -> Result<Head> {
    let head = Open(connection).head()?;
    let last = one(connection, sql::LAST_LEAF, [], |row| rows::number(row, 0))?;
    let leaves = last.map_or(0, |last| last + 1);
    if leaves != head.log_size {
        let size = head.log_size;
        let what = format!("the log has {leaves} leaves, the head row counts {size}");
        return Err(StoreError::Broken { what });
    }
    Ok(head)
}

fn limited(limit: usize, most: usize) -> i64 {
    i64::try_from(limit.min(most)).unwrap_or(i64::MAX)
}

fn change((kind, name, value): (crate::Kind, String, Option<Vec<u8>>)) -> Change {
    match value {
        Some(value) => Change::Put(Record { kind, name, value }),
        None => Change::Remove { kind, name },
    }
}

/// The commits after a revision, inside one read transaction.
fn feed(connection: &Connection, after: Revision, limit: usize) -> Result<Feed> {
    let head = Open(connection).head()?;
    let first = one(connection, sql::FIRST_COMMIT, [], |row| rows::number(row, 0))?;
    if !head.feeds(after, first) {
        return Ok(Feed::SnapshotNeeded);
    }
    let limit = u64::try_from(limit.min(PAGE_MAX)).unwrap_or(u64::MAX);
    let last = head.revision.number.min(after.number + limit);
    let most = rows::signed(FEED_CHANGES_MAX as u64 - 1)?;
    let bounds = (rows::signed(after.number)?, rows::signed(last)?, most);
    let full = one(connection, sql::CHANGES_END, bounds, |row| rows::number(row, 0))?;
    let last = full.unwrap_or(last);
    // Numbers have no gaps, so a commit without changes is one whose number has no rows.
    let commit = |number| Commit { revision: Revision { number, ..after }, changes: Vec::new() };
    let mut commits: Vec<Commit> = (after.number + 1..=last).map(commit).collect();
    let bounds = (rows::signed(after.number)?, rows::signed(last)?);
    let changes = all(connection, sql::CHANGES, bounds, |row| {
        let parts = (rows::parsed(row, 1)?, rows::column(row, 2)?, rows::column(row, 3)?);
        Ok((rows::number(row, 0)?, change(parts)))
    })?;
    for (number, change) in changes {
        let place = usize::try_from(number - after.number - 1).unwrap_or(usize::MAX);
        let commit = commits.get_mut(place).ok_or_else(|| rows::broken("a change out of order"))?;
        commit.changes.push(change);
    }
    Ok(Feed::Changes(commits))
}

#[async_trait]
impl Store for SqliteStore {
    async fn head(&self) -> Result<Head> {
        self.readers.read(|connection| Open(connection).head()).await
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let read = |connection: &Connection| {
            let revision = Open(connection).head()?.revision;
            let records = all(connection, sql::RECORDS, [], |row| {
                let (kind, name) = (rows::parsed(row, 0)?, rows::column(row, 1)?);
                Ok(Record { kind, name, value: rows::column(row, 2)? })
            })?;
            Ok(Snapshot { revision, records })
        };
        self.readers.read(read).await
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed> {
        self.readers.read(move |connection| feed(connection, after, limit)).await
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
