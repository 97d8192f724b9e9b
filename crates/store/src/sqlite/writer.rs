//! The one thread that writes: it takes all that waits and makes one transaction of it.

use std::sync::Arc;

use countersign_identity::{Entropy, Revision, Timestamp};
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::rows::broken;
use super::tables::Open;
use crate::queue::{Ending, Job, OwnedLease, Queue, ended};
use crate::transact::{Lease, Upkeep as _, Written, trim, write};
use crate::{Batch, Committed, Head, ReportRow, Result, StoreError, Trimmed};

/// A caller who waits, and what it will hear once the transaction is durable.
struct Caller<T, U = T> {
    answer: oneshot::Sender<Result<U>>,
    outcome: Result<T>,
    durable: fn(T) -> U,
}

impl<T, U> Caller<T, U> {
    fn new(answer: oneshot::Sender<Result<U>>, durable: fn(T) -> U) -> Self {
        Self { answer, outcome: Err(ended()), durable }
    }

    /// Keeps the outcome; gives the refusal, if it is one.
    fn keep(&mut self, outcome: Result<T>) -> Result<()> {
        self.outcome = outcome;
        self.outcome.as_ref().map(|_written| ()).map_err(Clone::clone)
    }

    /// Tells the outcome, or that all of the transaction failed.
    fn tell(self, transaction: Result<()>) {
        let answer = transaction.and_then(|()| self.outcome.map(self.durable));
        // A caller that has gone away was told in the contract of `commit` that its batch goes on.
        let _ = self.answer.send(answer);
    }
}

/// A job on its way through a transaction. It can be written again when the transaction was taken back.
enum Task {
    Commit(Batch, Caller<Written, Committed>),
    Lease(OwnedLease, Caller<bool>),
    Report(ReportRow, Caller<bool>),
    Trim(Timestamp, Caller<Trimmed>),
}

impl From<Job> for Task {
    fn from(job: Job) -> Self {
        match job {
            // Receipts come into being after COMMIT, and nowhere else.
            Job::Commit { batch, answer } => {
                Self::Commit(batch, Caller::new(answer, Written::committed))
            }
            Job::Lease { lease, answer } => Self::Lease(lease, Caller::new(answer, |taken| taken)),
            Job::Report { report, answer } => Self::Report(report, Caller::new(answer, |put| put)),
            Job::Trim { now, answer } => Self::Trim(now, Caller::new(answer, |trimmed| trimmed)),
        }
    }
}

impl Task {
    /// Writes its rows; says why not, when it is refused.
    fn write(&mut self, open: &mut Open<'_>, head: &mut Head, entropy: &dyn Entropy) -> Result<()> {
        match self {
            Self::Commit(batch, caller) => caller.keep(write(open, head, batch, entropy)),
            Self::Lease(OwnedLease { name, holder, until, now }, caller) => {
                let lease = Lease { name, holder, until: *until, now: *now };
                caller.keep(open.take_lease(&lease))
            }
            Self::Report(report, caller) => caller.keep(open.put_report(report)),
            Self::Trim(now, caller) => caller.keep(trim(open, *now)),
        }
    }

    /// Tells its caller, once it is known what became of the transaction.
    fn tell(self, transaction: Result<()>) {
        match self {
            Self::Commit(_, caller) => caller.tell(transaction),
            Self::Lease(_, caller) | Self::Report(_, caller) => caller.tell(transaction),
            Self::Trim(_, caller) => caller.tell(transaction),
        }
    }
}

/// How the rows of one job are told from those of the others, so that its refusal takes back only its own.
#[derive(Clone, Copy)]
enum Care {
    /// Not at all: nearly nothing is refused once it has written a row.
    Hopeful,
    /// By a savepoint each. SQLite then copies, for each of them, every page that it writes to.
    Careful,
}

/// Why a transaction did not come to its end.
enum Undone {
    /// One job that was refused left rows among those of the others.
    Mixed,
    /// The storage failed.
    Failed(StoreError),
}

impl From<StoreError> for Undone {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// The writing thread's own state.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) hint: watch::Sender<Revision>,
    pub(super) entropy: Arc<dyn Entropy>,
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
            self.transact(group.into_iter().map(Task::from).collect());
        }
    }

    fn transact(&mut self, mut tasks: Vec<Task>) {
        let outcome = match self.attempt(&mut tasks, Care::Hopeful) {
            // With one that was alone, nothing else was taken back.
            Err(Undone::Mixed) if tasks.len() == 1 => Ok(None),
            Err(Undone::Mixed) => self.attempt(&mut tasks, Care::Careful).map(Some),
            outcome => outcome.map(Some),
        };
        let outcome = outcome.map_err(|undone| match undone {
            Undone::Failed(error) => error,
            Undone::Mixed => broken("a savepoint did not take back what was refused"),
        });
        if let Err(error) = &outcome {
            tracing::error!(%error, "a transaction failed and was rolled back");
        }
        if let Ok(Some(revision)) = outcome {
            // Readers may look before the callers know: what they see is durable.
            self.hint.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        }
        for task in tasks {
            task.tell(outcome.clone().map(|_revision| ()));
        }
    }

    /// Writes all of it and commits, or leaves nothing of it.
    fn attempt(&self, tasks: &mut [Task], care: Care) -> std::result::Result<Revision, Undone> {
        let outcome = self.write_all(tasks, care);
        if outcome.is_err() {
            roll_back(&self.connection);
        }
        outcome
    }

    fn write_all(&self, tasks: &mut [Task], care: Care) -> std::result::Result<Revision, Undone> {
        let mut open = Open(&self.connection);
        open.bracket("BEGIN IMMEDIATE")?;
        let before = open.head()?;
        let mut after = before;
        for task in tasks {
            let write = |open: &mut Open<'_>| task.write(open, &mut after, &*self.entropy);
            match care {
                Care::Hopeful => unmixed(&mut open, write)?,
                Care::Careful => isolated(&mut open, write)?,
            }
        }
        if before != after {
            open.move_head(&before, &after)?;
        }
        open.bracket("COMMIT")?;
        Ok(after.revision)
    }
}

/// Runs one job's writing among the others. A refusal that left no rows has nothing to take back.
fn unmixed(
    open: &mut Open<'_>,
    write: impl FnOnce(&mut Open<'_>) -> Result<()>,
) -> std::result::Result<(), Undone> {
    let before = open.0.total_changes();
    match write(open) {
        Err(error) if error.is_of_storage() => Err(error.into()),
        Err(_refused) if open.0.total_changes() != before => Err(Undone::Mixed),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs one job's writing so that its refusal takes back only its own rows.
fn isolated(
    open: &mut Open<'_>,
    write: impl FnOnce(&mut Open<'_>) -> Result<()>,
) -> std::result::Result<(), Undone> {
    open.bracket("SAVEPOINT job")?;
    match write(open) {
        Err(error) if error.is_of_storage() => return Err(error.into()),
        Err(_refused) => open.bracket("ROLLBACK TO job")?,
        Ok(()) => {}
    }
    Ok(open.bracket("RELEASE job")?)
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
    use countersign_audit::{Event, EventKind};
    use countersign_identity::{Sha256, SystemEntropy};

    use super::*;
    use crate::Op;
    use crate::sqlite::files::{self, Lock};
    use crate::sqlite::{check_log, rows, tables};

    type Told = oneshot::Receiver<Result<Committed>>;

    fn job(ops: Vec<Op>) -> (Task, Told) {
        let event = Event::new(EventKind::Summary, Timestamp::EPOCH, "server", "facts");
        let batch = Batch { events: vec![event], ops, ..Batch::default() };
        let (answer, told) = oneshot::channel();
        (Job::Commit { batch, answer }.into(), told)
    }

    fn secret(name: &str) -> Op {
        Op::PutSecret { name: name.to_owned(), sealed: vec![1] }
    }

    /// Writes three jobs together, of which the second does this, and is refused; gives the names of the secrets that are kept.
    #[track_caller]
    fn kept(refused: Vec<Op>) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        files::create(directory.path(), &lock).unwrap();
        let connection = files::open_writer(&files::database(directory.path())).unwrap();
        let (hint, _hinted) = watch::channel(Revision::default());
        let (queue, entropy) = (Arc::new(Queue::new()), Arc::new(SystemEntropy));
        let mut writer = Writer { connection, queue, hint, entropy };
        let jobs = [job(vec![secret("first")]), job(refused), job(vec![secret("third")])];
        let (tasks, told): (Vec<Task>, Vec<Told>) = jobs.into_iter().unzip();
        writer.transact(tasks);
        let told: Vec<_> = told.into_iter().map(|told| told.blocking_recv().unwrap()).collect();
        let places: Vec<_> = told.iter().flatten().map(|committed| committed.first_index).collect();
        assert_eq!(places, [0, 1], "{told:?}");
        assert!(matches!(told[1], Err(StoreError::TokenUnknown)), "{told:?}");
        assert_eq!(check_log(&writer.connection).unwrap().log_size, 2);
        let names = "SELECT name FROM secrets ORDER BY name";
        tables::all(&writer.connection, names, [], |row| rows::column(row, 0)).unwrap()
    }

    #[test]
    fn a_job_that_is_refused_leaves_nothing_and_takes_nothing_from_the_others() {
        let unknown =
            || Op::SpendToken { hash: Sha256::from_bytes([7; 32]), now: Timestamp::EPOCH };
        assert_eq!(kept(vec![unknown()]), ["first", "third"], "before it has written a row");
        assert_eq!(kept(vec![secret("second"), unknown()]), ["first", "third"], "after");
    }
}
