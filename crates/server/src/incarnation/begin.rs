//! The beginning of an incarnation.

use std::time::Duration;

use countersign_audit::{Entry, Event, EventKind, Tree};
use countersign_identity::{Code, Incarnation, Revision, SKEW_ALLOWED, Timestamp};
use countersign_store::{BATCH_ROWS_MAX, Batch, Begins, PAGE_MAX, Store, StoreError};

use super::hand_back::{Handed, taken_back};
use super::life::{Before, Cause, Life, Served, cover_at};
use super::take_in::{RULES_MAX, take_in};
use crate::refusal::Refused;
use crate::revoke::held;
use crate::run::latest;
use crate::state::State;
use crate::watch::{Moment, TimeGuard};

/// How often it is tried again because a replica that does not know yet has written. It may issue all the while, so each
/// attempt takes no longer than what came since the one before.
const ATTEMPTS_MAX: usize = 100;
/// Hashes of leaves that are read at once.
const HASHES_MAX: usize = 16 * PAGE_MAX;

/// What a new incarnation begins with.
pub(crate) struct Beginning<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) cause: Cause,
    pub(crate) now: Timestamp,
    /// How far time has certainly come: rules that have ended by then are not taken in.
    pub(crate) steady: Timestamp,
    pub(crate) hold_off: Duration,
    /// The greatest incarnation that anybody has seen.
    pub(crate) seen: Incarnation,
    /// What the store is said to be behind of; nothing begins when it is not.
    pub(crate) reached: Option<Revision>,
    /// Rules that a journal remembers.
    pub(crate) rules: Vec<Handed>,
    /// Whose journal that is: who goes on when not all of them are taken in.
    pub(crate) by: &'a str,
    /// What is known of the time, beside what the log and the rules say.
    pub(crate) known: Known,
}

/// A time that was written down before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) at: Timestamp,
    /// Who says so, as in `… says TIME`.
    pub(crate) by: &'static str,
    pub(crate) clock: ClockIs,
}

impl Known {
    /// What this server has recorded.
    pub(crate) fn of(time: &TimeGuard) -> Self {
        let at = time.highest(Timestamp::EPOCH);
        Self { at, by: "what this server has recorded", clock: ClockIs::Compared }
    }
}

/// What is thought of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockIs {
    /// It must not be behind what was written down.
    Compared,
    /// An operator vouches for it: what was written down later was written under one that was ahead.
    Right,
}

impl Beginning<'_> {
    /// The latest time that anything has, which the lost span reaches to at least.
    ///
    /// # Errors
    /// `not-ready` when the clock is behind it. By such a clock a suspension that a journal or an agent remembers would be
    /// taken for one that was made since and lifted, and the hold-off would be over before it began.
    fn latest(&self, in_log: Timestamp) -> Result<Timestamp, Refused> {
        let (now, known) = (self.now, self.known);
        let newest = self.rules.iter().map(Handed::at).max();
        let told = [(known.at, known.by), (in_log, "the log's last entry")];
        let told = told.into_iter().chain(newest.map(|at| (at, "the journal's newest rule")));
        let (latest, by) = told.max_by_key(|(at, _)| *at).expect("there are two of them");
        if known.clock == ClockIs::Compared && now + SKEW_ALLOWED < latest {
            let why = format!(
                "the clock says {now}, but {by} says {latest}: a new incarnation that began by this clock would lose \
                 suspensions and issue too early; set the clock right, and try again"
            );
            return Err(Refused::new(Code::NotReady, why));
        }
        Ok(latest.max(now))
    }
}

/// Begins a new incarnation of a store, unless another replica has done it. Says what it is, when it was done here.
///
/// # Errors
/// When the clock is behind what is known, the store does not answer, or others go on writing to it.
pub(crate) async fn begin(beginning: Beginning<'_>) -> Result<Option<Life>, Refused> {
    let Beginning { store, now, seen, .. } = beginning;
    let before = store.head().await?.revision.incarnation;
    let last_end = held(store, now).await?.last_end();
    let mut log = Tree::new();
    for _attempt in 0..ATTEMPTS_MAX {
        let head = store.head().await?;
        if before < head.revision.incarnation && seen < head.revision.incarnation {
            return Ok(None);
        }
        if beginning.reached.is_some_and(|reached| reached <= head.revision) {
            return Ok(None);
        }
        let state = State::from_snapshot(store.snapshot().await?)?;
        let Some(size) = grow(&mut log, store, head.log_size).await? else {
            // Another server may have begun an incarnation since, whose log is shorter.
            if store.head().await?.revision.incarnation == head.revision.incarnation {
                return Err(crate::authority::internal(
                    "the log has fewer leaves than are counted",
                ));
            }
            continue;
        };
        let from = Before {
            incarnation: head.revision.incarnation,
            revision: head.revision,
            log_size: size,
            log_root: log.root(),
            at: latest(store).await.map_err(crate::authority::internal)?,
        };
        let latest = beginning.latest(from.at)?;
        let incarnation = next(head.revision.incarnation.max(seen), now);
        let life = life(&beginning, &state, from, (latest, last_end));
        let (batch, life) = first(&state, life, incarnation, &beginning);
        match store.commit(batch).await {
            Ok(committed) => {
                let (revision, root) = (committed.revision, life.from.log_root);
                tracing::warn!(%revision, before = %life.from.revision, %root, "a new incarnation has begun");
                if life.taking_in.is_none() {
                    return Ok(Some(life));
                }
                let at = Moment { now: life.began, steady: beginning.steady };
                return take_in(store, &beginning.rules, at).await.map(Some);
            }
            Err(StoreError::Conflict { .. } | StoreError::LogMoved { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let why = "others write to the store while a new incarnation is to begin: stop its servers";
    Err(Refused::new(countersign_identity::Code::StaleBase, why))
}

/// Lets the hold-off of a restored store begin with its first server: before, no agent could hand anything back.
///
/// # Errors
/// When the store does not answer, or the clock is behind what it says.
pub(crate) async fn first_start(
    store: &dyn Store,
    time: &TimeGuard,
    now: Timestamp,
) -> Result<(), Refused> {
    for _attempt in 0..ATTEMPTS_MAX {
        let state = State::from_snapshot(store.snapshot().await?)?;
        let Some(life) = state.life().filter(|life| life.cause == Cause::Restored) else {
            return Ok(());
        };
        if life.resumed.is_some() || life.covered || was_served(&life, store).await? {
            return Ok(());
        }
        // Set right later, the clock would be beyond the end of a hold-off that nobody had.
        let trusted = time.trusted(now).map_err(|refused| {
            let why = format!(
                "{}; start the server then: the hold-off of a restored state begins with it",
                refused.why
            );
            Refused::new(refused.code, why)
        });
        let now = trusted?;
        let hold_off = life.hold_until.since(life.began);
        let life = Life {
            served: Served::Since(now),
            hold_until: now + hold_off,
            cover_at: cover_at(now, hold_off, state.longest_svid().duration()),
            until: life.until.max(now + state.profile().lifetime_max.duration()),
            ..Life::clone(&life)
        };
        let changes = vec![life.change()];
        let batch = Batch { expected: Some(state.revision), changes, ..Batch::default() };
        match store.commit(batch).await {
            Ok(_committed) => return Ok(()),
            // Another server of the same store was faster.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Refused::new(Code::StaleBase, "others write to the store meanwhile"))
}

/// Whether a server has served this incarnation before.
async fn was_served(life: &Life, store: &dyn Store) -> Result<bool, Refused> {
    match life.served {
        Served::Never => return Ok(false),
        Served::Since(_) => return Ok(true),
        Served::Unsaid => {}
    }
    // Its start is among the first events of the log, behind the rules of a journal.
    let mut next = 0;
    loop {
        let page = store.events(next, PAGE_MAX).await?;
        for event in &page {
            let entry = Entry::parse(&event.leaf).map_err(crate::authority::internal)?;
            if entry.kind == EventKind::ServerStarted {
                return Ok(true);
            }
        }
        if page.len() < PAGE_MAX {
            return Ok(false);
        }
        next += page.len() as u64;
    }
}

/// A number that no other life of this store has, also when one backup is restored twice: the time, which is greater than
/// any number counted up from one.
fn next(before: Incarnation, now: Timestamp) -> Incarnation {
    (before + 1).max(u64::try_from(now.secs()).unwrap_or(0))
}

fn life(
    beginning: &Beginning<'_>,
    state: &State,
    from: Before,
    (latest, last_end): (Timestamp, Option<Timestamp>),
) -> Life {
    let Beginning { cause, now, hold_off, known, .. } = *beginning;
    // A clock within the allowed skew may lie a little behind: the log, which begins with this, does not forget it.
    let began = if known.clock == ClockIs::Right { now } else { latest };
    let longest = latest + state.profile().lifetime_max.duration();
    Life {
        cause,
        began,
        from,
        lost_until: (began < latest).then_some(latest),
        served: match cause {
            Cause::Restored => Served::Never,
            // By who begins it. It was no question before, so nothing is said that an older replica does not read.
            Cause::Behind => Served::Unsaid,
        },
        hold_until: began + hold_off,
        resumed: None,
        taking_in: None,
        cover_at: cover_at(began, hold_off, state.longest_svid().duration()),
        until: last_end.map_or(longest, |end| end.max(longest)),
        covered: false,
    }
}

/// The batch with which it begins, and what it says of it. Rules that are more than a batch holds follow, and nothing is
/// issued before the last of them: who is cut off meanwhile goes on, or an operator says otherwise.
fn first(
    state: &State,
    life: Life,
    incarnation: Incarnation,
    beginning: &Beginning<'_>,
) -> (Batch, Life) {
    let rules = &beginning.rules;
    let steady = beginning.steady;
    let whole = batch(state, &life, incarnation, (rules, steady));
    let rows = whole.changes.len().max(whole.events.len()).max(whole.ops.len());
    if rows <= BATCH_ROWS_MAX {
        return (whole, life);
    }
    let life = Life { taking_in: Some(beginning.by.to_owned()), ..life };
    let some = &rules[..rules.len().min(RULES_MAX)];
    (batch(state, &life, incarnation, (some, steady)), life)
}

fn batch(
    state: &State,
    life: &Life,
    incarnation: Incarnation,
    (rules, steady): (&[Handed], Timestamp),
) -> Batch {
    let subject = state.domain().trust_domain.id().to_string();
    let details = serde_json::json!({
        "cause": life.cause, "from": life.from, "holdUntil": life.hold_until,
    });
    let event = Event::new(EventKind::IncarnationBegan, life.began, "server", subject);
    let mut batch = Batch {
        expected: Some(state.revision),
        narrows: true,
        begins: Some(Begins { incarnation, log_size: life.from.log_size }),
        changes: vec![life.change()],
        events: vec![event.with_details(details)],
        ..Batch::default()
    };
    let at = Moment { now: life.began, steady };
    let back = taken_back(state, Some(life), rules, "journal", at);
    batch.changes.extend(back.changes);
    batch.events.extend(back.events);
    batch.ops.extend(back.ops);
    batch
}

/// Computes the tree of the log from its leaves, up to a size; tells that. None when there are not as many.
async fn grow(tree: &mut Tree, store: &dyn Store, size: u64) -> Result<Option<u64>, Refused> {
    while tree.size() < size {
        let hashes = store.leaf_hashes(tree.size(), HASHES_MAX).await?;
        if hashes.is_empty() {
            return Ok(None);
        }
        let missing = usize::try_from(size - tree.size()).unwrap_or(usize::MAX);
        hashes.into_iter().take(missing).for_each(|hash| tree.push(hash));
    }
    Ok(Some(tree.size()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use countersign_identity::SeededEntropy;
    use countersign_store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn a_log_that_began_anew_since_it_was_counted_is_no_fault() {
        let store = MemoryStore::new(Arc::new(SeededEntropy::new(1)));
        assert_eq!(grow(&mut Tree::new(), &store, 0).await.unwrap(), Some(0));
        assert_eq!(grow(&mut Tree::new(), &store, 21).await.unwrap(), None);
    }

    #[test]
    fn one_backup_restored_twice_never_lives_the_same_life() {
        let now = Timestamp::from_secs(1_795_262_400);
        assert_eq!(next(1, now), 1_795_262_400);
        assert_eq!(next(1_795_262_400, now), 1_795_262_401);
        assert_eq!(next(7, Timestamp::from_secs(-5)), 8);
    }
}
