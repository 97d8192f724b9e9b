//! The one task that writes: it takes all that waits and makes one transaction of it, in two round trips.
//!
//! The first reads the head row and the rows on which the batches depend, the second sends everything that they write,
//! moves the head row and commits. Where another replica has written in between, the head row's guard takes the
//! transaction back, and it is run again with the row locked from its beginning.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Entropy, Revision, SKEW_ALLOWED, Timestamp};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::draft::{Draft, Wanted};
use super::flush::Rows;
use super::rows::{number, signed};
use super::seen::{Seen, Tip, past, raise};
use super::session::{Command, Fault, Session, Target, command};
use super::text;
use crate::bounds::TRIM_ROWS_MAX;
use crate::queue::{Ending, Job, Queue, WantedLease, ended};
use crate::transact::{Written, first_serial, write};
use crate::{Batch, Committed, ReportRow, Result, StoreError, Trimmed, sql};

/// How long an answer of the database may take; longer than it gives itself for a statement.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer, for each statement that is sent along.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a transaction is run again when it meets others, before its callers hear that they should come again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(4);
/// How long to wait before running it again, at most.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// So many transactions after one that met another replica begin by waiting for the head row, instead of hoping.
const WARY_COUNT: u32 = 32;
/// How many rows are thought about well within the database's patience with an open transaction.
const USUAL_ROWS_MAX: usize = 10_000;
/// The end of an incarnation moves its whole log.
const BEGIN_PATIENTLY: &str = "BEGIN; SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = 5000";
/// How long that may take.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(600);
/// What a replica listens to.
pub(super) const CHANNEL: &str = "countersign";

/// The writing task's own state.
pub(super) struct Writer {
    pub(super) target: Target,
    pub(super) session: Option<Session>,
    pub(super) queue: Arc<Queue>,
    pub(super) hint: watch::Sender<Revision>,
    pub(super) seen: Arc<Seen>,
    pub(super) entropy: Arc<dyn Entropy>,
    /// Above zero after another replica has written: then the head row is locked first.
    pub(super) wary: u32,
}

type Caller = oneshot::Sender<Result<Committed>>;

/// What became of running a transaction once.
enum Run<T> {
    Done(T),
    /// Nothing of it was done, and it may go well another time.
    Again(StoreError),
    Failed(StoreError),
}

/// Why a round trip gave nothing.
enum Trouble {
    /// Nothing was done; the same may go well another time.
    Race(StoreError),
    /// Nothing was done.
    Refused(StoreError),
    /// It is not known what was done.
    Lost(StoreError),
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        let _ending = Ending(Arc::clone(&self.queue));
        loop {
            let group = self.queue.next().await;
            if group.is_empty() {
                return;
            }
            let mut batches: Vec<(Batch, Caller)> = Vec::with_capacity(group.len());
            let mut others = Vec::new();
            for job in group {
                match job {
                    // Its leaves are numbered anew, so nothing is drafted together with it.
                    Job::Commit { ref batch, .. } if batch.begins.is_some() => others.push(job),
                    Job::Commit { batch, answer } => batches.push((batch, answer)),
                    Job::Lease { .. } | Job::Report { .. } | Job::Trim { .. } => others.push(job),
                }
            }
            if !batches.is_empty() {
                self.commit(batches).await;
            }
            for job in others {
                self.other(job).await;
            }
        }
    }

    async fn other(&mut self, job: Job) {
        // A caller that has gone away was told in the contract of the store that its job goes on.
        match job {
            Job::Lease { wanted, answer } => {
                let outcome = self.lease(&wanted).await;
                let _ = answer.send(outcome);
            }
            Job::Report { report, answer } => {
                let outcome = self.report(&report).await;
                let _ = answer.send(outcome);
            }
            Job::Trim { now, answer } => {
                let outcome = self.trim(now).await;
                let _ = answer.send(outcome);
            }
            Job::Commit { batch, answer } => self.commit(vec![(batch, answer)]).await,
        }
    }

    /// Commits all of them together, and tells each what became of it.
    async fn commit(&mut self, group: Vec<(Batch, Caller)>) {
        let (batches, callers): (Vec<Batch>, Vec<Caller>) = group.into_iter().unzip();
        let deadline = Instant::now() + RETRY_TIMEOUT;
        let mut attempt = 0;
        let outcome = loop {
            match self.attempt(&batches, attempt).await {
                Run::Done(outcomes) => break Ok(outcomes),
                Run::Failed(error) => break Err(error),
                Run::Again(error) if deadline <= Instant::now() => break Err(error),
                Run::Again(error) => {
                    tracing::debug!(%error, attempt, "running a transaction again");
                    attempt += 1;
                    self.pause(attempt).await;
                }
            }
        };
        match outcome {
            Ok((outcomes, moved)) => {
                for (outcome, caller) in outcomes.into_iter().zip(callers) {
                    // As above.
                    let _ = caller.send(outcome.map(Written::committed));
                }
                if moved {
                    self.notify().await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "a transaction failed");
                for caller in callers {
                    let _ = caller.send(Err(error.clone()));
                }
            }
        }
    }

    /// Runs the transaction once. Says, too, whether the revision moved.
    async fn attempt(
        &mut self,
        batches: &[Batch],
        attempt: u32,
    ) -> Run<(Vec<Result<Written>>, bool)> {
        // 1. What the batches depend on. Inside a transaction that has the head row where another replica is known to
        // write; otherwise outside of any, so that none is open while this thinks.
        let plan = if 0 < attempt || 0 < self.wary { Plan::Locked } else { Plan::Hopeful };
        let wanted = Wanted::of(batches);
        let careful = 0 < attempt;
        let floor = self.seen.floor();
        let commands = wanted.commands(plan.head(), careful);
        let read = self.round(plan.begin(batches), &commands, None, plan.open_after_reading());
        let answers = match read.await {
            Ok(answers) => answers,
            // Nothing was written yet.
            Err(Trouble::Race(error) | Trouble::Lost(error)) => return Run::Again(error),
            Err(Trouble::Refused(error)) => return Run::Failed(error),
        };
        if self.is_past() {
            self.session = None;
            return Run::Again(past());
        }
        // 2. What becomes of them.
        let drafted = Draft::load(&wanted, answers, careful).and_then(|draft| {
            let Draft { head_before: head, needs, .. } = draft;
            self.seen.check(&floor, &Tip { head, leaf: None, needs })?;
            self.decide(draft, batches)
        });
        let (draft, outcomes) = match drafted {
            Ok(drafted) => drafted,
            Err(error) => {
                self.roll_back(plan.open_after_reading()).await;
                return Run::Failed(error);
            }
        };
        // 3. All of it, with the head row's guard first and COMMIT last.
        match self.send(&draft, plan).await {
            Ok(()) => {}
            Err(Trouble::Race(error)) => {
                self.wary = WARY_COUNT;
                return Run::Again(error);
            }
            Err(Trouble::Refused(error) | Trouble::Lost(error)) => return Run::Failed(error),
        }
        // What became durable there is not, where it counts.
        if self.is_past() {
            self.session = None;
            return Run::Failed(past());
        }
        self.wary = self.wary.saturating_sub(1);
        let (before, after) = (draft.head_before, draft.state.head);
        let leaf = draft.state.log.last().map(|event| event.hash);
        let tip = Tip { head: after, leaf, needs: draft.needs };
        if let Err(error) = self.seen.check(&before, &tip) {
            return Run::Failed(error);
        }
        // Readers may look before the callers know: what they see is durable.
        raise(&self.hint, after.revision);
        Run::Done((outcomes, before.revision != after.revision))
    }

    /// Whether the connection leads to a primary after which another was used.
    fn is_past(&self) -> bool {
        self.session.as_ref().is_some_and(|session| self.seen.is_past(session))
    }

    /// Applies each batch to the draft; what is refused leaves nothing in it.
    fn decide(&self, mut draft: Draft, batches: &[Batch]) -> Result<(Draft, Vec<Result<Written>>)> {
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            let before = draft.clone();
            let mut head = draft.state.head;
            let outcome = write(&mut draft, &mut head, batch, &*self.entropy);
            match &outcome {
                Ok(_) => draft.state.head = head,
                Err(error) if error.is_of_storage() => return Err(error.clone()),
                Err(_refused) => draft = before,
            }
            outcomes.push(outcome);
        }
        Ok((draft, outcomes))
    }

    async fn send(&mut self, draft: &Draft, plan: Plan) -> std::result::Result<(), Trouble> {
        let gathered = Rows::of(draft);
        let rows = match &gathered {
            Ok(rows) => rows.commands(),
            Err(error) => Err(error.clone()),
        };
        let (before, after) = (draft.head_before, draft.state.head);
        let commands = rows.and_then(|rows| {
            if rows.is_empty() && before == after {
                return Ok(Vec::new());
            }
            let mut commands = vec![command!(
                text::MOVE_HEAD,
                signed(after.revision.incarnation)?,
                signed(after.revision.number)?,
                signed(after.fence.number)?,
                signed(after.log_size)?,
                signed(before.revision.incarnation)?,
                signed(draft.writes)?,
            )];
            commands.extend(rows);
            Ok(commands)
        });
        match commands {
            Err(error) => {
                self.roll_back(plan.open_after_reading()).await;
                Err(Trouble::Refused(error))
            }
            Ok(commands) if commands.is_empty() => {
                self.roll_back(plan.open_after_reading()).await;
                Ok(())
            }
            // What was read at one place is written to no other.
            Ok(_) if self.session.as_ref().is_none_or(Session::is_closed) || self.is_past() => {
                self.session = None;
                Err(Trouble::Race(ended()))
            }
            Ok(commands) => {
                let begin = match plan {
                    Plan::Hopeful if draft.touched.closed.is_some() => Some(BEGIN_PATIENTLY),
                    Plan::Hopeful => Some("BEGIN"),
                    Plan::Locked => None,
                };
                self.round(begin, &commands, Some("COMMIT"), Open::No).await.map(drop)
            }
        }
    }

    async fn lease(&mut self, wanted: &WantedLease) -> Result<bool> {
        self.seen.is_whole()?;
        let WantedLease { name, lease, over } = wanted;
        let ends = (lease.ends.micros(), over.ends.micros());
        let commands =
            [command!(text::TAKE_LEASE, name, &lease.holder, ends.0, &over.holder, ends.1)];
        let rows = self.again(None, &commands, None).await?;
        Ok(rows.first().is_some_and(|rows| !rows.is_empty()))
    }

    async fn report(&mut self, report: &ReportRow) -> Result<bool> {
        self.seen.is_whole()?;
        let ReportRow { replica, version, body } = report;
        let commands = [command!(text::PUT_REPORT, replica, signed(*version)?, body)];
        let rows = self.again(None, &commands, None).await?;
        Ok(rows.first().is_some_and(|rows| !rows.is_empty()))
    }

    async fn trim(&mut self, now: Timestamp) -> Result<Trimmed> {
        self.seen.is_whole()?;
        let ended = now - SKEW_ALLOWED;
        let limit = signed(TRIM_ROWS_MAX as u64)?;
        let first = first_serial(ended)?;
        let commands = [
            command!(text::COUNT_WRITE),
            command!(text::TRIM_ISSUED, first.as_bytes().as_slice(), ended.micros(), limit),
            command!(text::TRIM_TOKENS, ended.micros(), limit),
        ];
        let answers = self.again(Some("BEGIN"), &commands, Some("COMMIT")).await?;
        let count = |answer: usize| match answers.get(answer).and_then(|rows| rows.first()) {
            Some(row) => number(row, 0).map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            None => Ok(0),
        };
        let (issued, tokens) = (count(1)?, count(2)?);
        let more = issued == TRIM_ROWS_MAX || tokens == TRIM_ROWS_MAX;
        Ok(Trimmed { issued, tokens, more })
    }

    /// Runs something that decides in the database, until it meets nobody.
    async fn again(
        &mut self,
        begin: Option<&str>,
        commands: &[Command<'_>],
        end: Option<&str>,
    ) -> Result<Vec<Vec<tokio_postgres::Row>>> {
        let deadline = Instant::now() + RETRY_TIMEOUT;
        let mut attempt = 0;
        loop {
            match self.round(begin, commands, end, Open::No).await {
                Ok(rows) => return Ok(rows),
                Err(Trouble::Race(_)) if Instant::now() < deadline => {}
                Err(Trouble::Race(error) | Trouble::Refused(error) | Trouble::Lost(error)) => {
                    return Err(error);
                }
            }
            attempt += 1;
            self.pause(attempt).await;
        }
    }

    /// Sends all of it at once and waits for the answers, on the connection that there is or a new one.
    async fn round(
        &mut self,
        begin: Option<&str>,
        commands: &[Command<'_>],
        end: Option<&str>,
        open: Open,
    ) -> std::result::Result<Vec<Vec<tokio_postgres::Row>>, Trouble> {
        // In the middle of a transaction a new connection would be outside of it.
        let fresh = begin.is_some() || end.is_none();
        let unfit = |session: &Session| session.is_closed() || self.seen.is_past(session);
        if fresh && self.session.as_ref().is_none_or(unfit) {
            self.session = None;
            let connecting = self.seen.connect(&self.target, Arc::new(Notify::new())).await;
            self.session = Some(connecting.map_err(Trouble::Refused)?);
        }
        let Some(session) = &self.session else { return Err(Trouble::Lost(ended())) };
        // What it warned of before is not about this.
        session.was_warned();
        let count = u32::try_from(commands.len()).unwrap_or(u32::MAX);
        let closing = commands.iter().any(|command| command.text == sql::KEEP_LOG);
        let usual = ANSWER_TIMEOUT.saturating_add(STATEMENT_TIMEOUT.saturating_mul(count));
        let patience = if closing { CLOSING_TIMEOUT } else { usual };
        let sent = timeout(patience, session.together(begin, commands, end)).await;
        let sent = sent
            .unwrap_or_else(|_late| Err(Fault::Lost { why: format!("no answer in {patience:?}") }));
        // A COMMIT that did not wait for its standbys to the end says so by a warning only.
        let warned = end.is_some() && session.was_warned();
        match sent {
            Ok(_) if warned => {
                let why = "the database committed with a warning".to_owned();
                Err(Trouble::Lost(StoreError::Unavailable { why }))
            }
            Ok(rows) => Ok(rows),
            Err(fault @ Fault::Lost { .. }) => {
                self.session = None;
                Err(Trouble::Lost(fault.error()))
            }
            Err(fault) => {
                self.roll_back(open).await;
                if fault.is_of_a_race() {
                    let why = format!("others write, too: {}", fault.clone().error());
                    return Err(Trouble::Race(StoreError::Unavailable { why }));
                }
                Err(Trouble::Refused(fault.error()))
            }
        }
    }

    async fn roll_back(&mut self, open: Open) {
        let (Open::Yes, Some(session)) = (open, &self.session) else { return };
        let rolled_back = timeout(ANSWER_TIMEOUT, session.run("ROLLBACK")).await;
        if !matches!(rolled_back, Ok(Ok(()))) {
            // Closing the connection does it as well.
            self.session = None;
        }
    }

    /// Tells the other replicas. They poll as well, so nothing depends on it.
    async fn notify(&self) {
        let Some(session) = &self.session else { return };
        let told = timeout(ANSWER_TIMEOUT, session.run(&format!("NOTIFY {CHANNEL}"))).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!("could not notify the other replicas");
        }
    }

    /// Waits a little, by chance, so that those who met do not meet again.
    async fn pause(&self, attempt: u32) {
        let mut chance = [0];
        // Without chance they meet again, and go on all the same.
        let _ = self.entropy.fill(&mut chance);
        let most = PAUSE_MAX.min(Duration::from_millis(1 << attempt.min(5)));
        tokio::time::sleep(most * u32::from(chance[0]) / 256).await;
    }
}

/// Whether a transaction is still open after a round trip, also when one of its statements was refused.
#[derive(Clone, Copy)]
enum Open {
    Yes,
    No,
}

/// How a transaction goes about the head row.
#[derive(Clone, Copy)]
enum Plan {
    /// Reads it, and finds out at the end whether it was still so.
    Hopeful,
    /// Has it from the beginning.
    Locked,
}

impl Plan {
    fn head(self) -> &'static str {
        match self {
            Self::Hopeful => text::HEAD,
            Self::Locked => text::HEAD_LOCKED,
        }
    }

    /// With what the first round trip begins.
    fn begin(self, batches: &[Batch]) -> Option<&'static str> {
        let rows = batches.iter().map(|batch| batch.changes.len() + batch.events.len());
        match self {
            Self::Hopeful => None,
            Self::Locked if batches.iter().any(|batch| batch.begins.is_some()) => {
                Some(BEGIN_PATIENTLY)
            }
            Self::Locked if rows.sum::<usize>() <= USUAL_ROWS_MAX => Some("BEGIN"),
            // Thinking about so many takes longer than the database usually waits.
            Self::Locked => Some("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 5000"),
        }
    }

    fn open_after_reading(self) -> Open {
        match self {
            Self::Hopeful => Open::No,
            Self::Locked => Open::Yes,
        }
    }
}
