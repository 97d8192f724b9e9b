//! What waits to be written: by one writer, in groups, those first that take rights away.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use countersign_identity::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::bounds::check_name;
use crate::{Batch, Committed, Lease, ReportRow, Result, StoreError, Trimmed};

/// How many jobs may wait in each queue; more callers wait for room.
const WAITING_MAX: usize = 1024;
/// How many rows one transaction takes at most (the last job may exceed it), so that nobody waits long behind it.
const GROUP_ROWS_MAX: usize = 10_000;

/// Something to write, and where its answer goes.
pub(crate) enum Job {
    Commit { batch: Batch, answer: oneshot::Sender<Result<Committed>> },
    Lease { wanted: WantedLease, answer: oneshot::Sender<Result<bool>> },
    Report { report: ReportRow, answer: oneshot::Sender<Result<bool>> },
    Trim { now: Timestamp, answer: oneshot::Sender<Result<Trimmed>> },
}

/// A lease that is asked for.
pub(crate) struct WantedLease {
    pub(crate) name: String,
    pub(crate) lease: Lease,
    /// The one whose place it may take, besides any of its holder.
    pub(crate) over: Lease,
}

impl WantedLease {
    /// # Errors
    /// `TooLarge`, for a name that is too long.
    pub(crate) fn new(name: &str, lease: Lease, over: Option<Lease>) -> Result<Self> {
        check_name("bytes of a lease's name", name)?;
        check_name("bytes of a lease's holder", &lease.holder)?;
        let over = over.unwrap_or_else(|| lease.clone());
        Ok(Self { name: name.to_owned(), lease, over })
    }
}

/// What waits to be written.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    /// The same for a writer that does not block its thread.
    awaited: Notify,
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
    pub(crate) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            awaited: Notify::new(),
            narrowing_room: Arc::new(Semaphore::new(WAITING_MAX)),
            room: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Queues are whole between any two statements, so a panic elsewhere leaves them so.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, and puts the job into its queue.
    pub(crate) async fn put(&self, job: Job) -> Result<()> {
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
        self.wake();
        Ok(())
    }

    /// Lets the writer finish what waits, and then end.
    pub(crate) fn close(&self) {
        self.waiting().closed = true;
        self.wake();
    }

    fn wake(&self) {
        self.filled.notify_one();
        // Kept for the writer when it is just not waiting.
        self.awaited.notify_one();
    }

    /// Waits for jobs and takes as many as go into one transaction; none once closed and empty.
    pub(crate) fn take(&self) -> Vec<Job> {
        let mut waiting = self.waiting();
        loop {
            let group = waiting.group();
            if !group.is_empty() || waiting.closed {
                return group;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same for a writer that does not block its thread.
    pub(crate) async fn next(&self) -> Vec<Job> {
        loop {
            {
                let mut waiting = self.waiting();
                let group = waiting.group();
                if !group.is_empty() || waiting.closed {
                    return group;
                }
            }
            self.awaited.notified().await;
        }
    }
}

impl Waiting {
    /// What goes into one transaction.
    fn group(&mut self) -> Vec<Job> {
        let mut group = Vec::new();
        let mut rows = 0;
        while rows < GROUP_ROWS_MAX {
            let next = self.narrowing.pop_front();
            let Some((job, _permit)) = next.or_else(|| self.others.pop_front()) else {
                break;
            };
            rows += job.rows();
            group.push(job);
        }
        group
    }
}

/// What a caller hears when the writer is gone.
pub(crate) fn ended() -> StoreError {
    StoreError::Unavailable { why: "the store was closed".to_owned() }
}

impl Job {
    /// About how many rows it writes.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Commit { batch, .. } => {
                let beside = batch.issued.len() + batch.ops.len();
                1 + batch.changes.len() + batch.events.len() + beside
            }
            Self::Lease { .. } | Self::Report { .. } => 1,
            Self::Trim { .. } => GROUP_ROWS_MAX,
        }
    }
}

/// However the writer ends, nobody waits for it any longer.
pub(crate) struct Ending(pub(crate) Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.closed = true;
        waiting.narrowing.clear();
        waiting.others.clear();
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
