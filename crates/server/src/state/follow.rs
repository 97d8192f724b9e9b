//! The task that keeps the snapshot at the store's head, from its feed of changes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Revision;
use countersign_store::{Feed, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::refusal::Refused;
use crate::state::State;

/// Commits that are read at once.
const COMMITS_MAX: usize = 256;
/// The store's hints may be lost; this poll is the guarantee.
const POLL: Duration = Duration::from_millis(500);
/// Snapshots that are remembered, so that an agent which was away for a moment is told only what changed.
const REMEMBERED_MAX: usize = 256;

/// The snapshot, as everybody but its feeder sees it.
#[derive(Clone, Debug)]
pub(crate) struct StateFeed {
    current: watch::Receiver<Arc<State>>,
    remembered: Arc<Mutex<VecDeque<Arc<State>>>>,
}

impl StateFeed {
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
        remembered.iter().rev().find(|state| state.revision == revision).cloned()
    }

    /// Waits until the snapshot has reached a revision; `None` when the feeder has ended.
    pub(crate) async fn reached(&self, revision: Revision) -> Option<Arc<State>> {
        let mut current = self.current.clone();
        let state = current.wait_for(|state| revision <= state.revision).await.ok()?;
        Some(Arc::clone(&state))
    }
}

/// Reads the store's feed into the snapshot.
pub(crate) struct Feeder {
    store: Arc<dyn Store>,
    current: watch::Sender<Arc<State>>,
    remembered: Arc<Mutex<VecDeque<Arc<State>>>>,
}

impl Feeder {
    /// Reads the first snapshot.
    ///
    /// # Errors
    /// When the store does not answer, or holds what this version does not understand.
    pub(crate) async fn start(store: Arc<dyn Store>) -> Result<(Self, StateFeed), Refused> {
        let state = Arc::new(State::from_snapshot(store.snapshot().await?)?);
        let remembered = Arc::new(Mutex::new(VecDeque::from([Arc::clone(&state)])));
        let (current, receiver) = watch::channel(state);
        let feed = StateFeed { current: receiver, remembered: Arc::clone(&remembered) };
        Ok((Self { store, current, remembered }, feed))
    }

    /// Follows the feed until stopped.
    ///
    /// # Errors
    /// When the state holds what this version does not understand. What the store cannot answer for now is tried again.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Refused> {
        let mut hint = self.store.hint();
        loop {
            match self.advance().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(Trouble::Store(error)) => {
                    tracing::warn!(error = %error.why, "the store does not answer; going on with what is known");
                }
                Err(Trouble::State(refused)) => return Err(refused),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                hinted = hint.changed() => if hinted.is_err() {
                    // The store is gone; only a stop can follow.
                    stop.cancelled().await;
                    return Ok(());
                },
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Takes the next changes; says whether there may be more.
    pub(crate) async fn advance(&self) -> Result<bool, Trouble> {
        let current = Arc::clone(&self.current.borrow());
        let feed = self.store.changes(current.revision, COMMITS_MAX).await;
        let next = match feed.map_err(|error| Trouble::Store(error.into()))? {
            Feed::SnapshotNeeded => {
                let snapshot = self.store.snapshot().await;
                let snapshot = snapshot.map_err(|error| Trouble::Store(error.into()))?;
                State::from_snapshot(snapshot).map_err(|bad| Trouble::State(bad.into()))?
            }
            Feed::Changes(commits) => {
                let Some(last) = commits.last() else { return Ok(false) };
                let revision = last.revision;
                let changes = commits.into_iter().flat_map(|commit| commit.changes).collect();
                current.changed(revision, changes).map_err(|bad| Trouble::State(bad.into()))?
            }
        };
        if next.revision <= current.revision
            && next.revision.incarnation == current.revision.incarnation
        {
            return Ok(false);
        }
        self.publish(Arc::new(next));
        Ok(true)
    }

    fn publish(&self, state: Arc<State>) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() == REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back(Arc::clone(&state));
        drop(remembered);
        tracing::debug!(revision = %state.revision, "state advanced");
        self.current.send_replace(state);
    }
}

/// What went wrong while following.
pub(crate) enum Trouble {
    /// It may pass.
    Store(Refused),
    /// It will not.
    State(Refused),
}
