//! A store in a directory: how it is made, opened and closed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use countersign_identity::{Entropy, Revision};
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::files::{self, Lock};
use super::patience::{PATIENCE, Stopwatch};
use super::readers::Readers;
use super::tables::{Open, one};
use super::writer::Writer;
use super::{rows, schema};
use crate::queue::{Job, Queue, ended};
use crate::{Failures, Head, Result, Store, StoreError, sql};

/// A store in a directory: durable, for one process at a time.
///
/// Needs a Tokio runtime for reading. Dropping it waits until what was queued is written, then frees the directory.
pub struct SqliteStore {
    queue: Arc<Queue>,
    pub(super) readers: Arc<Readers>,
    pub(super) hint: watch::Receiver<Revision>,
    pub(super) failures: watch::Receiver<Failures>,
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
    pub(super) async fn write<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job,
    ) -> Result<T> {
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

#[cfg(test)]
mod tests {
    //! What a store that cannot be opened leaves behind.

    use std::sync::mpsc;

    use countersign_identity::SystemEntropy;

    use super::*;

    #[test]
    fn store_that_nobody_can_watch_is_not_opened_and_leaves_no_writer_behind() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        drop(SqliteStore::create(directory, Arc::clone(&entropy)).unwrap());

        let (tell, ended) = mpsc::channel();
        let start = |name: &str, work: Work| {
            if name == "store-watch" {
                return Err(StoreError::Unavailable {
                    why: "there are no more threads".to_owned(),
                });
            }
            let tell = tell.clone();
            thread(
                name,
                Box::new(move || {
                    work();
                    tell.send(()).unwrap();
                }),
            )
        };
        let lock = Lock::take(directory).unwrap();
        let refused = SqliteStore::open_locked(directory, lock, Arc::clone(&entropy), &start);
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
        // It has ended before the directory was free for another.
        assert_eq!(ended.try_recv(), Ok(()));
        SqliteStore::open(directory, entropy).unwrap();
    }
}
