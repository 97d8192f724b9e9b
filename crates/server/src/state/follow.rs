//! The task that keeps the snapshot at the store's head, from its feed of changes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Clock, Revision, Timestamp};
use countersign_store::{Feed, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::refusal::Refused;
use crate::state::State;

/// Commits that are read at once.
const COMMITS_MAX: usize = 256;
/// The store's hints may be lost; this poll is the guarantee.
const POLL: Duration = Duration::from_millis(500);
/// How long the snapshot counts as all there is after the store has said so. What takes longer than so many polls is an outage.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// Snapshots that are remembered, so that an agent which was away for a moment is told only what changed.
const REMEMBERED_MAX: usize = 256;
/// Changed records that remembering them may keep alive.
const REMEMBERED_RECORDS_MAX: usize = 4096;

/// The latest snapshots, oldest first, each with how many records it changed.
type Remembered = Arc<Mutex<VecDeque<(Arc<State>, usize)>>>;

/// The snapshot, as everybody but its feeder sees it.
#[derive(Clone, Debug)]
pub(crate) struct StateFeed {
    current: watch::Receiver<Arc<State>>,
    remembered: Remembered,
    confirmed: Arc<Confirmed>,
}

impl StateFeed {
    /// Whether the store has said a moment ago that it has nothing which the snapshot lacks. What others have written since an
    /// outage began is not in it, so whoever vouches for it asks this first, and for the state after that: it never gets older.
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        let asked = self.confirmed.at();
        // A clock that was set back would make an old word young.
        now.since(asked).max(asked.since(now)) <= FRESH_FOR
    }

    /// The state now.
    pub(crate) fn current(&self) -> Arc<State> {
        Arc::clone(&self.current.borrow())
    }

    /// A watch that sees each change of the state.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.current.clone()
    }

    /// The state at a revision, if it is still remembered.
    pub(crate) fn at(&self, revision: Revision) -> Option<Arc<State>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let found = remembered.iter().rev().find(|(state, _)| state.revision == revision);
        found.map(|(state, _)| Arc::clone(state))
    }

    /// Waits until the snapshot has reached a revision; `None` when the feeder has ended.
    pub(crate) async fn reached(&self, revision: Revision) -> Option<Arc<State>> {
        let mut current = self.current.clone();
        let state = current.wait_for(|state| revision <= state.revision).await.ok()?;
        Some(Arc::clone(&state))
    }
}

/// When the store was asked the last time that it had nothing newer than the snapshot.
#[derive(Debug)]
struct Confirmed(AtomicI64);

impl Confirmed {
    fn at(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::Acquire))
    }

    /// The snapshot is published by then.
    fn set(&self, asked: Timestamp) {
        self.0.store(asked.micros(), Ordering::Release);
    }
}

/// Reads the store's feed into the snapshot.
pub(crate) struct Feeder {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    current: watch::Sender<Arc<State>>,
    remembered: Remembered,
    confirmed: Arc<Confirmed>,
}

impl Feeder {
    /// Reads the first snapshot.
    ///
    /// # Errors
    /// When the store does not answer, or holds what this version does not understand.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, StateFeed), Refused> {
        let confirmed = Arc::new(Confirmed(AtomicI64::new(clock.now().micros())));
        let state = Arc::new(State::from_snapshot(store.snapshot().await?)?);
        let remembered = Arc::new(Mutex::new(VecDeque::from([(Arc::clone(&state), 0)])));
        let (current, receiver) = watch::channel(state);
        let feed = StateFeed {
            current: receiver,
            remembered: Arc::clone(&remembered),
            confirmed: Arc::clone(&confirmed),
        };
        Ok((Self { store, clock, current, remembered, confirmed }, feed))
    }

    /// Follows the feed until stopped.
    ///
    /// # Errors
    /// When the state holds what this version does not understand. What the store cannot answer for now is tried again.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Refused> {
        self.follow(&stop).await
    }

    /// Follows it for as long as something takes that may have to wait for it.
    ///
    /// # Errors
    /// Those of the work, or as [`run`](Self::run).
    pub(crate) async fn beside<T, E: From<Refused>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let never = CancellationToken::new();
        tokio::select! {
            done = work => done,
            Err(refused) = self.follow(&never) => Err(refused.into()),
        }
    }

    async fn follow(&self, stop: &CancellationToken) -> Result<(), Refused> {
        let mut hint = self.store.hint();
        let mut away = false;
        loop {
            let advanced = self.advance().await;
            match &advanced {
                Ok(_) if std::mem::take(&mut away) => {
                    tracing::info!("the store answers again");
                }
                Err(Trouble::Store(error)) if !std::mem::replace(&mut away, true) => {
                    tracing::warn!(error = %error.why, "the store does not answer; going on with what is known");
                }
                Ok(_) | Err(_) => {}
            }
            match advanced {
                Ok(true) => continue,
                Ok(false) | Err(Trouble::Store(_)) => {}
                Err(Trouble::State(refused)) => return Err(refused),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                hinted = hint.changed() => if hinted.is_err() {
                    // The store is gone; only a stop can follow.
                    stop.cancelled().await;
                    return Ok(());
                },
                () = tokio::time::sleep(self.clock.beat(POLL)) => {}
            }
        }
    }

    /// Takes the next changes; says whether there may be more.
    pub(crate) async fn advance(&self) -> Result<bool, Trouble> {
        let current = Arc::clone(&self.current.borrow());
        let asked = self.clock.now();
        let feed = self.store.changes(current.revision, COMMITS_MAX).await;
        let (next, count) = match feed.map_err(|error| Trouble::Store(error.into()))? {
            Feed::SnapshotNeeded => {
                let snapshot = self.store.snapshot().await;
                let snapshot = snapshot.map_err(|error| Trouble::Store(error.into()))?;
                let next = State::from_snapshot(snapshot);
                (next.map_err(|bad| Trouble::State(bad.into()))?, usize::MAX)
            }
            Feed::Changes(commits) => {
                let Some(last) = commits.last() else {
                    self.confirmed.set(asked);
                    return Ok(false);
                };
                let revision = last.revision;
                let changes: Vec<_> =
                    commits.into_iter().flat_map(|commit| commit.changes).collect();
                let count = changes.len();
                let next = current.changed(revision, changes);
                (next.map_err(|bad| Trouble::State(bad.into()))?, count)
            }
        };
        if next.revision <= current.revision
            && next.revision.incarnation == current.revision.incarnation
        {
            return Ok(false);
        }
        self.publish(Arc::new(next), count);
        Ok(true)
    }

    fn publish(&self, state: Arc<State>, changed: usize) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.push_back((Arc::clone(&state), changed));
        while 1 < remembered.len() && !is_small(&remembered) {
            remembered.pop_front();
        }
        drop(remembered);
        tracing::debug!(revision = %state.revision, "state advanced");
        self.current.send_replace(state);
    }
}

/// Whether that much may be remembered. A snapshot keeps alive what the ones after it replaced.
fn is_small(remembered: &VecDeque<(Arc<State>, usize)>) -> bool {
    let replaced = remembered.iter().skip(1).map(|(_, changed)| *changed);
    remembered.len() <= REMEMBERED_MAX
        && replaced.fold(0, usize::saturating_add) <= REMEMBERED_RECORDS_MAX
}

/// What went wrong while following.
pub(crate) enum Trouble {
    /// It may pass.
    Store(Refused),
    /// It will not.
    State(Refused),
}
