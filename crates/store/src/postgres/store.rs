//! A store in a database: what is written goes to the writing thread, what is read to a few connections.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use countersign_audit::TileHash;
use countersign_identity::{
    Entropy, Incarnation, KeyId, NodeId, Revision, Serial, Sha256, Timestamp,
};
use futures_util::FutureExt as _;
use tokio::sync::{oneshot, watch};
use tokio_postgres::Row;

use super::feed::{feed, snapshot};
use super::readers::Readers;
use super::seen::Seen;
use super::serve::{Opening, Served, serve};
use super::session::{Command, Target, command};
use super::{Password, PostgresUrl, Primary, Reached, rows, text};
use crate::bounds::{HASHES_MAX, check, check_report};
use crate::queue::{Job, Queue, WantedLease, ended};
use crate::{
    Batch, CheckpointRow, Committed, Feed, FlowRow, Head, Issued, Lease, NodeRow, PAGE_MAX,
    PaperRow, PointKey, PointRow, ReportRow, Result, Snapshot, Span, Store, StoreError,
    StoredEvent, TallyOf, TallyPlace, TallyRow, TokenRow, Trimmed, sql,
};

/// A store in a database: durable, for any number of processes at a time.
///
/// Needs a Tokio runtime with time for reading. Dropping it waits until what was queued is written.
pub struct PostgresStore {
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    hint: watch::Receiver<Revision>,
    seen: Arc<Seen>,
    target: Target,
    writer: Option<JoinHandle<()>>,
}

impl PostgresStore {
    /// Makes the tables of a new store in a database that has none, and opens it. A beginning that was cut off before
    /// anything was committed is gone on with.
    ///
    /// # Errors
    /// When there is a store with something in it, or the database cannot be written.
    pub async fn create(
        url: PostgresUrl,
        password: Password,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        Self::start(Target::new(url, password), entropy, Opening::Create).await
    }

    /// Opens the store of a database. It never makes one: an empty store in place of the expected one would be a trust
    /// domain that has forgotten everything.
    ///
    /// # Errors
    /// When there is none, the database does not answer, it is of a newer version, or its log is torn.
    pub async fn open(
        url: PostgresUrl,
        password: Password,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        Self::start(Target::new(url, password), entropy, Opening::Open).await
    }

    /// Opens the store of a database of which so much was seen in an earlier life: of several hosts that take writes, none is
    /// used that is known to be an old primary.
    ///
    /// # Errors
    /// As [`open`](Self::open). A database that is behind is opened all the same: who asks has to compare.
    pub async fn open_after(
        url: PostgresUrl,
        password: Password,
        reached: Option<Reached>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        let target = Target::new(url, password).after(reached);
        Self::start(target, entropy, Opening::Open).await
    }

    pub(super) async fn start(
        target: Target,
        entropy: Arc<dyn Entropy>,
        opening: Opening,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::new());
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().name("store-writer".to_owned());
        let (work, at) = (Arc::clone(&queue), target.clone());
        let thread = thread.spawn(move || serve(&at, work, entropy, opening, tell));
        let thread = thread.map_err(|why| StoreError::Unavailable {
            why: format!("a thread for writing: {why}"),
        })?;
        let Served { runtime, seen, hint } = told.await.map_err(|_dropped| ended())??;
        let readers = Arc::new(Readers::new(target.clone(), Arc::clone(&seen), runtime));
        Ok(Self { queue, readers, hint, seen, target, writer: Some(thread) })
    }

    /// Hands a job to the writer and waits for its answer.
    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.queue.put(job(answer)).await?;
        answered.await.map_err(|_dropped| ended())?
    }

    /// The rows of one statement, which is made anew for each attempt.
    async fn rows(&self, make: impl Fn() -> Command<'static> + Send + Sync) -> Result<Vec<Row>> {
        let make = &make;
        self.readers
            .read(move |session| {
                let command = make();
                async move { Ok(session.rows(&command).await?) }.boxed()
            })
            .await
    }

    async fn one<T>(
        &self,
        make: impl Fn() -> Command<'static> + Send + Sync,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Option<T>> {
        self.rows(make).await?.first().map(read).transpose()
    }

    async fn all<T>(
        &self,
        make: impl Fn() -> Command<'static> + Send + Sync,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.rows(make).await?.iter().map(read).collect()
    }
}

/// Says what a closure is, where the compiler cannot tell.
fn command_of<F: Fn() -> Command<'static> + Send + Sync>(make: F) -> F {
    make
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresStore at {}", *self.hint.borrow())
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.queue.close();
        let writer = self.writer.take().map(JoinHandle::join);
        if let Some(Err(_panic)) = writer {
            tracing::error!("the store's writer had ended by a panic");
        }
    }
}

fn limited(limit: usize, most: usize) -> i64 {
    i64::try_from(limit.min(most)).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for PostgresStore {
    async fn head(&self) -> Result<Head> {
        let floor = self.seen.floor();
        let tip = self.one(|| command!(text::TIP), rows::tip).await?;
        let tip = tip.ok_or_else(|| rows::broken("there is no head row"))?;
        self.seen.check(&floor, &tip).map(|()| tip.head)
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let floor = self.seen.floor();
        let (tip, found) = self.readers.read(|session| snapshot(session).boxed()).await?;
        self.seen.check(&floor, &tip).map(|()| found)
    }

    async fn changes(&self, after: Revision, limit: usize) -> Result<Feed> {
        let floor = self.seen.floor();
        let read = self.readers.read(move |session| feed(session, after, limit).boxed());
        let (tip, found) = read.await?;
        self.seen.check(&floor, &tip).map(|()| found)
    }

    async fn span(&self) -> Result<Span> {
        let span = self.one(|| command!(sql::SPAN), rows::span).await?;
        span.ok_or_else(|| rows::broken("there is no head row"))
    }

    fn hint(&self) -> watch::Receiver<Revision> {
        self.hint.clone()
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        check(&batch)?;
        self.write(|answer| Job::Commit { batch, answer }).await
    }

    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let name = name.to_owned();
        let read = |row: &Row| rows::column(row, 0);
        self.one(move || command!(sql::SECRET, name.clone()), read).await
    }

    async fn secrets(&self, after: Option<String>, limit: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let (after, limit) = (after.unwrap_or_default(), limited(limit, PAGE_MAX));
        self.all(move || command!(sql::SECRETS, after.clone(), limit), rows::secret).await
    }

    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.one(move || command!(sql::NODE, id.as_bytes().to_vec()), rows::node).await
    }

    async fn nodes(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeRow>> {
        // No bytes are before all bytes.
        let after = after.map_or(Vec::new(), |id| id.as_bytes().to_vec());
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::NODES, after.clone(), limit), rows::node).await
    }

    async fn points(&self, after: Option<PointKey>, limit: usize) -> Result<Vec<PointRow>> {
        // No bytes are before all bytes.
        let after = after.map_or((Vec::new(), String::new(), String::new()), |key| {
            (key.node.as_bytes().to_vec(), key.spiffe_id.to_string(), key.name)
        });
        let limit = limited(limit, PAGE_MAX);
        let page = move || {
            let (node, id, name) = after.clone();
            command!(sql::POINTS, node, id, name, limit)
        };
        self.all(page, rows::point).await
    }

    async fn flows(&self, after: Option<String>, limit: usize) -> Result<Vec<FlowRow>> {
        // No bytes are before all bytes.
        let after = after.unwrap_or_default().into_bytes();
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::FLOWS, after.clone(), limit), rows::flow).await
    }

    async fn papers(&self, after: Option<String>, limit: usize) -> Result<Vec<PaperRow>> {
        // No bytes are before all bytes.
        let after = after.unwrap_or_default().into_bytes();
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::PAPERS, after.clone(), limit), rows::paper).await
    }

    async fn tallies(
        &self,
        of: TallyOf,
        from: Timestamp,
        before: TallyPlace,
        limit: usize,
    ) -> Result<Vec<TallyRow>> {
        let limit = limited(limit, PAGE_MAX);
        let (from, at, what) = (from.micros(), before.at.micros(), before.what.into_bytes());
        let page = move || command!(sql::TALLIES, of.number(), from, at, what.clone(), limit);
        self.all(page, rows::tally).await
    }

    async fn tallies_beyond(&self, of: TallyOf, keep: u64) -> Result<Option<Timestamp>> {
        let keep = rows::signed(keep)?;
        self.one(move || command!(sql::TALLIES_BEYOND, of.number(), keep), rows::began).await
    }

    async fn token(&self, hash: Sha256) -> Result<Option<TokenRow>> {
        self.one(move || command!(sql::TOKEN, hash.as_bytes().to_vec()), rows::token).await
    }

    async fn tokens(&self, after: Option<Sha256>, limit: usize) -> Result<Vec<TokenRow>> {
        let after = after.map_or(Vec::new(), |hash| hash.as_bytes().to_vec());
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::TOKENS, after.clone(), limit), rows::token).await
    }

    async fn revoked_keys(
        &self,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<(KeyId, Timestamp)>> {
        let after = after.map_or(Vec::new(), |key| key.as_bytes().to_vec());
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::REVOKED_KEYS, after.clone(), limit), rows::revoked_key).await
    }

    async fn issued(&self, serial: Serial) -> Result<Option<Issued>> {
        self.one(move || command!(sql::ISSUED, serial.as_bytes().to_vec()), rows::issued).await
    }

    async fn issued_after(&self, after: Option<Serial>, limit: usize) -> Result<Vec<Issued>> {
        let after = after.map_or(Vec::new(), |serial| serial.as_bytes().to_vec());
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::ISSUED_AFTER, after.clone(), limit), rows::issued).await
    }

    async fn events(&self, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::EVENTS, from, limit), rows::event).await
    }

    async fn leaf_hashes(&self, from: u64, limit: usize) -> Result<Vec<Sha256>> {
        let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
        let limit = limited(limit, HASHES_MAX);
        let read = |row: &Row| rows::sha256(row, 1);
        self.all(move || command!(sql::LEAF_HASHES, from, limit), read).await
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
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::PAST_EVENTS, incarnation, from, limit), rows::event).await
    }

    async fn past_incarnation(&self, after: Incarnation) -> Result<Option<Incarnation>> {
        let Ok(after) = i64::try_from(after) else { return Ok(None) };
        let read = |row: &Row| rows::number(row, 0);
        self.one(move || command!(sql::PAST_INCARNATION, after), read).await
    }

    async fn checkpoints(
        &self,
        incarnation: Incarnation,
        limit: usize,
    ) -> Result<Vec<CheckpointRow>> {
        let Ok(incarnation) = i64::try_from(incarnation) else { return Ok(Vec::new()) };
        let limit = limited(limit, PAGE_MAX);
        self.all(move || command!(sql::CHECKPOINTS, incarnation, limit), rows::checkpoint).await
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
        let (level, limit) = (i64::from(level), limited(limit, PAGE_MAX));
        let page = move || command!(sql::TILE_HASHES, incarnation, level, from, limit);
        self.all(page, rows::tile_hash).await
    }

    async fn lease(&self, name: &str, lease: Lease, over: Option<Lease>) -> Result<bool> {
        let wanted = WantedLease::new(name, lease, over)?;
        self.write(|answer| Job::Lease { wanted, answer }).await
    }

    async fn lease_of(&self, name: &str) -> Result<Option<Lease>> {
        let name = name.to_owned();
        self.one(move || command!(sql::LEASE, name.clone()), rows::lease).await
    }

    async fn report(&self, report: ReportRow) -> Result<bool> {
        check_report(&report)?;
        self.write(|answer| Job::Report { report, answer }).await
    }

    async fn report_versions(&self) -> Result<Vec<(String, u64)>> {
        let most = limited(PAGE_MAX, PAGE_MAX);
        self.all(move || command!(sql::REPORT_VERSIONS, most), rows::report_version).await
    }

    async fn report_of(&self, replica: &str) -> Result<Option<ReportRow>> {
        let replica = replica.to_owned();
        self.one(move || command!(sql::REPORT, replica.clone()), rows::report).await
    }

    async fn trim(&self, now: Timestamp) -> Result<Trimmed> {
        self.write(|answer| Job::Trim { now, answer }).await
    }

    fn primary(&self) -> Option<Primary> {
        self.seen.primary()
    }

    async fn caveats(&self) -> Result<Vec<String>> {
        let rows = self.rows(command_of(|| command!(text::PROMISES))).await?;
        let row = rows.first().ok_or_else(|| rows::broken("the database has no settings"))?;
        let setting = |place| rows::column::<String>(row, place);
        let mut caveats = Vec::new();
        if setting(2)? == "off" {
            caveats.push(
                "the database runs with `fsync = off`: a crash of its machine loses acknowledged writes"
                    .to_owned(),
            );
        }
        if setting(3)? == "off" {
            caveats.push(
                "the database runs with `full_page_writes = off`: a crash of its machine may tear pages"
                    .to_owned(),
            );
        }
        if setting(0)?.trim().is_empty() {
            caveats.push(
                "the database has no synchronous standby (`synchronous_standby_names` is empty): when its machine is \
                 lost, or a standby takes over, acknowledged writes may be lost"
                    .to_owned(),
            );
        }
        if self.target.url.is_exposed() {
            caveats.push(
                "the way to the database is not protected (`sslmode=disable`); use `sslmode=verify-full`"
                    .to_owned(),
            );
        }
        Ok(caveats)
    }
}
