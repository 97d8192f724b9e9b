//! The one thread that writes: it takes all that waits and makes one transaction of it.

use std::sync::Arc;

use countersign_identity::{Entropy, Revision};
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::patience::{self, Stopwatch, UnderWay};
use super::tables::Open;
use crate::queue::{Ending, Job, Queue};
use crate::transact::{Upkeep as _, Written, trim, write};
use crate::{Failures, Head, Result};

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
    /// Writes it under a savepoint of its own.
    fn write(self, open: &mut Open<'_>, head: &mut Result<Head>, entropy: &dyn Entropy) -> Answer {
        match self {
            Self::Commit { batch, answer: caller } => {
                let written = isolated(open, head, |open, head| write(open, head, &batch, entropy));
                // Receipts come into being here, after COMMIT, and nowhere else.
                answer(caller, written, Written::committed)
            }
            Self::Lease { wanted, answer: caller } => {
                let taken = isolated(open, head, |open, _head| open.take_lease(&wanted));
                answer(caller, taken, |taken| taken)
            }
            Self::Report { report, answer: caller } => {
                let put = isolated(open, head, |open, _head| open.put_report(&report));
                answer(caller, put, |put| put)
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

/// Says whether somebody who reads or writes stood in the way.
const SETTLE: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// The writing thread's own state.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) hint: watch::Sender<Revision>,
    pub(super) failures: watch::Sender<Failures>,
    pub(super) stopwatch: Arc<Stopwatch>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let _ending = Ending(Arc::clone(&self.queue));
        let _unwatched = patience::Ending(Arc::clone(&self.stopwatch));
        loop {
            let group = self.queue.take();
            if group.is_empty() {
                return self.settle();
            }
            self.transact(group);
        }
    }

    /// Brings what is in the write-ahead log into the file of the state, so that who copies that file alone, while nobody has it
    /// open, has all of it. SQLite does so itself only where no connection that reads is closed last.
    fn settle(&self) {
        let settled = self.connection.query_row(SETTLE, [], |row| row.get(0));
        match settled.map(|busy: i64| busy != 0) {
            Ok(false) => {}
            Ok(true) => tracing::info!("the write-ahead log stays, since somebody reads the state"),
            Err(why) => tracing::warn!(%why, "the write-ahead log stays"),
        }
    }

    fn transact(&mut self, group: Vec<Job>) {
        let under_way = self.stopwatch.begin();
        let mut open = Open(&self.connection);
        let before = open.bracket("BEGIN IMMEDIATE").and_then(|()| open.head());
        let mut after = before.clone();
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            answers.push(job.write(&mut open, &mut after, &*self.entropy));
        }
        let outcome = before.and_then(|before| finish(&open, &before, &after?));
        if let Err(error) = &outcome {
            tracing::error!(%error, "a transaction failed and is rolled back");
            roll_back(&self.connection, &under_way);
        }
        drop(under_way);
        if let Err(error) = &outcome {
            // Before the callers know, so that nobody who was refused finds that all is well.
            self.failures.send_modify(|failures| {
                failures.count += 1;
                failures.last = error.to_string();
            });
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

/// Takes back what was written. It is a write like any other, and may hang on the same disk: it is watched, too.
fn roll_back(connection: &Connection, _watched: &UnderWay<'_>) {
    // After some failures SQLite has rolled back by itself.
    if connection.is_autocommit() {
        return;
    }
    if let Err(error) = connection.execute_batch("ROLLBACK") {
        tracing::error!(%error, "rolling back failed; the next transaction will say so too");
    }
}
