//! The one thread that writes: it takes all that waits and makes one transaction of it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use countersign_identity::{Entropy, Revision, Timestamp};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::tables::Open;
use crate::transact::{Lease, Tables as _, Written, trim, write};
use crate::{Batch, Committed, Head, Result, StoreError, Trimmed};

/// How many jobs may wait in each queue; more callers wait for room.
const WAITING_MAX: usize = 1024;
/// How many rows one transaction takes at most (the last job may exceed it), so that nobody waits long behind it.
const GROUP_ROWS_MAX: usize = 10_000;

/// Something to write, and where its answer goes.
pub(super) enum Job {
    Commit { batch: Batch, answer: oneshot::Sender<Result<Committed>> },
    Lease { lease: OwnedLease, answer: oneshot::Sender<Result<bool>> },
    Trim { now: Timestamp, answer: oneshot::Sender<Result<Trimmed>> },
}

/// A lease that is asked for, on its way to the writer.
pub(super) struct OwnedLease {
    pub(super) name: String,
    pub(super) holder: String,
    pub(super) until: Timestamp,
    pub(super) now: Timestamp,
}

/// What waits to be written.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    /// Room for those that take rights away is of its own: they never wait behind a full queue of others.
    narrowing_room: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Waiting {
    narrowing: VecDeque<(Job, OwnedSemaphorePermit)>,
    others: VecDeque<(Job, OwnedSemaphorePermit)>,
    closed: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            narrowing_room: Arc::new(Semaphore::new(WAITING_MAX)),
            room: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Queues are whole between any two statements, so a panic elsewhere leaves them so.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, and puts the job into its queue.
    pub(super) async fn put(&self, job: Job) -> Result<()> {
        let narrows = matches!(&job, Job::Commit { batch, .. } if batch.narrows);
        let room = if narrows { &self.narrowing_room } else { &self.room };
        let permit = Arc::clone(room).acquire_owned().await.map_err(|_closed| ended())?;
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err(ended());
        }
        let queue = if narrows { &mut waiting.narrowing } else { &mut waiting.others };
        queue.push_back((job, permit));
        drop(waiting);
        self.filled.notify_one();
        Ok(())
    }

    /// Lets the writer finish what waits, and then end.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.filled.notify_one();
    }

    /// Waits for jobs and takes as many as go into one transaction; none once closed and empty.
    fn take(&self) -> Vec<Job> {
        let mut waiting = self.waiting();
        loop {
            let mut group = Vec::new();
            let mut rows = 0;
            while rows < GROUP_ROWS_MAX {
                let next = waiting.narrowing.pop_front();
                let Some((job, _permit)) = next.or_else(|| waiting.others.pop_front()) else {
                    break;
                };
                rows += job.rows();
                group.push(job);
            }
            if !group.is_empty() || waiting.closed {
                return group;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a caller hears when the writer is gone.
pub(super) fn ended() -> StoreError {
    StoreError::Unavailable { why: "the store was closed".to_owned() }
}

/// Tells a caller its outcome once the transaction is durable, or that all of it failed.
type Answer = Box<dyn FnOnce(Result<()>)>;

fn answer<T: 'static, U: 'static>(
    caller: oneshot::Sender<Result<U>>,
    outcome: Result<T>,
    durable: impl FnOnce(T) -> U + 'static,
) -> Answer {
    Box::new(move |transaction| {
        let answer = transaction.and_then(|()| outcome.map(durable));
        // A caller that has gone away was told in the contract of `commit` that its batch goes on.
        let _ = caller.send(answer);
    })
}

impl Job {
    /// About how many rows it writes.
    fn rows(&self) -> usize {
        match self {
            Self::Commit { batch, .. } => {
                let beside = batch.issued.len() + batch.ops.len();
                1 + batch.changes.len() + batch.events.len() + beside
            }
            Self::Lease { .. } => 1,
            Self::Trim { .. } => GROUP_ROWS_MAX,
        }
    }

    /// Writes it under a savepoint of its own.
    fn write(self, open: &mut Open<'_>, head: &mut Result<Head>, entropy: &dyn Entropy) -> Answer {
        match self {
            Self::Commit { batch, answer: caller } => {
                let written = isolated(open, head, |open, head| write(open, head, &batch, entropy));
                // Receipts come into being here, after COMMIT, and nowhere else.
                answer(caller, written, Written::committed)
            }
            Self::Lease { lease: OwnedLease { name, holder, until, now }, answer: caller } => {
                let lease = Lease { name: &name, holder: &holder, until, now };
                let taken = isolated(open, head, |open, _head| open.take_lease(&lease));
                answer(caller, taken, |taken| taken)
            }
            Self::Trim { now, answer: caller } => {
                let trimmed = isolated(open, head, |open, _head| trim(open, now));
                answer(caller, trimmed, |trimmed| trimmed)
            }
        }
    }
}

/// Runs one job's writing so that its refusal takes back only its own rows. Once the storage has failed, `head` is
/// that error, the transaction is void, and nothing more is written.
fn isolated<T>(
    open: &mut Open<'_>,
    head: &mut Result<Head>,
    work: impl FnOnce(&mut Open<'_>, &mut Head) -> Result<T>,
) -> Result<T> {
    let mut next = head.clone()?;
    let outcome = open.bracket("SAVEPOINT job").and_then(|()| work(open, &mut next));
    let closing = match &outcome {
        Err(error) if error.is_of_storage() => Err(error.clone()),
        Err(_refused) => open.bracket("ROLLBACK TO job").and_then(|()| open.bracket("RELEASE job")),
        Ok(_) => open.bracket("RELEASE job"),
    };
    match (closing, &outcome) {
        (Ok(()), Ok(_)) => *head = Ok(next),
        (Ok(()), Err(_)) => {}
        (Err(error), _) => *head = Err(error),
    }
    outcome
}

/// The writing thread's own state.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) hint: watch::Sender<Revision>,
    pub(super) entropy: Arc<dyn Entropy>,
}

/// However the thread ends, nobody waits for it any longer.
struct Ending(Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.closed = true;
        waiting.narrowing.clear();
        waiting.others.clear();
    }
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let _ending = Ending(Arc::clone(&self.queue));
        loop {
            let group = self.queue.take();
            if group.is_empty() {
                return;
            }
            self.transact(group);
        }
    }

    fn transact(&mut self, group: Vec<Job>) {
        let mut open = Open(&self.connection);
        let before = open.bracket("BEGIN IMMEDIATE").and_then(|()| open.head());
        let mut after = before.clone();
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            answers.push(job.write(&mut open, &mut after, &*self.entropy));
        }
        let outcome = before.and_then(|before| finish(&open, &before, &after?));
        if let Err(error) = &outcome {
            tracing::error!(%error, "a transaction failed and was rolled back");
            roll_back(&self.connection);
        }
        if let Ok(revision) = outcome {
            // Readers may look before the callers know: what they see is durable.
            self.hint.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        }
        for answer in answers {
            answer(outcome.clone().map(|_revision| ()));
        }
    }
}

/// The last statements: the head row, and COMMIT.
fn finish(open: &Open<'_>, before: &Head, after: &Head) -> Result<Revision> {
    if before != after {
        open.move_head(before, after)?;
    }
    open.bracket("COMMIT")?;
    Ok(after.revision)
}

fn roll_back(connection: &Connection) {
    // After some failures SQLite has rolled back by itself.
    if connection.is_autocommit() {
        return;
    }
    if let Err(error) = connection.execute_batch("ROLLBACK") {
        tracing::error!(%error, "rolling back failed; the next transaction will say so too");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn job(narrows: bool, rows: usize) -> Job {
        let op = Op::PutSecret { name: "a".to_owned(), sealed: vec![] };
        let batch = Batch { narrows, ops: vec![op; rows], ..Batch::default() };
        Job::Commit { batch, answer: oneshot::channel().0 }
    }

    fn narrows(job: &Job) -> bool {
        matches!(job, Job::Commit { batch, .. } if batch.narrows)
    }

    #[tokio::test]
    async fn what_takes_rights_away_goes_before_all_that_waits() {
        let queue = Queue::new();
        for narrows in [false, false, true, false, true] {
            queue.put(job(narrows, 1)).await.unwrap();
        }
        let order: Vec<bool> = queue.take().iter().map(narrows).collect();
        assert_eq!(order, [true, true, false, false, false]);
    }

    #[tokio::test]
    async fn what_takes_rights_away_finds_room_in_a_full_store() {
        let queue = Queue::new();
        for _ in 0..WAITING_MAX {
            queue.put(job(false, 1)).await.unwrap();
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(Box::pin(queue.put(job(false, 1))).as_mut().poll(&mut context).is_pending());
        queue.put(job(true, 1)).await.unwrap();
        assert!(narrows(&queue.take()[0]));
        queue.put(job(false, 1)).await.unwrap();
    }

    #[tokio::test]
    async fn one_transaction_is_bounded() {
        let queue = Queue::new();
        for _ in 0..4 {
            queue.put(job(false, GROUP_ROWS_MAX / 2)).await.unwrap();
        }
        assert_eq!(queue.take().len(), 2);
        queue.close();
        assert_eq!(queue.take().len(), 2, "what waited is written after the close too");
        assert!(queue.take().is_empty());
        assert_eq!(queue.put(job(false, 1)).await.unwrap_err(), ended());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_ended() {
        let queue = Arc::new(Queue::new());
        let (answer, answered) = oneshot::channel();
        queue.put(Job::Trim { now: Timestamp::EPOCH, answer }).await.unwrap();
        drop(Ending(Arc::clone(&queue)));
        assert!(answered.await.is_err());
        assert_eq!(queue.put(job(true, 1)).await.unwrap_err(), ended());
    }
}
