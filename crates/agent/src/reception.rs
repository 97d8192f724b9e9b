//! Who somebody on our socket is.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::wire::refusal_status;
use countersign_identity::{Clock, Code};
use tokio::sync::watch;
use tonic::Status;

use crate::attest::{AttestRefused, Caller, Desk, Peer};
use crate::core::{Answer, Candidates, Knowledge, Replica, Workload, answer};
use crate::launcher::Launches;
use crate::places::{KnownUsers, Place, User};
use crate::view::View;

/// One accepted connection: its process, and its place among the counted ones. Requests find it in their extensions.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) caller: Arc<dyn Caller>,
    /// Whose place it has: of it, a process is known once it was a workload. Reckoned once, since that blocks.
    pub(crate) user: User,
    pub(crate) _place: Arc<Place>,
}

/// Tells callers who they are, by what is in force now.
#[derive(Clone)]
pub(crate) struct Reception {
    pub(crate) views: watch::Receiver<Option<Arc<View>>>,
    pub(crate) launches: Launches,
    pub(crate) desk: Desk,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) streams: Counter<u32>,
    pub(crate) known: KnownUsers,
}

/// Why there is no workload.
#[derive(Debug)]
pub(crate) enum Unknown {
    /// The server's word: the process matches none.
    Nobody,
    /// The agent cannot know.
    CannotKnow(Code, String),
}

/// A launcher tells of a process a moment after starting it; a process may be quicker than that word.
const LAUNCH_GRACE: Duration = Duration::from_millis(500);
/// How many streams one process may have.
const STREAMS_MAX: usize = 64;

impl Reception {
    /// The workloads that the visitor is now, the most narrowly described first.
    pub(crate) async fn who(
        &self,
        visitor: &Visitor,
        view: &View,
    ) -> Result<Vec<Arc<Workload>>, Unknown> {
        match view.knowledge {
            Knowledge::Nothing => {
                let why = view.link.trouble.clone();
                let why =
                    why.unwrap_or_else(|| "this agent has not reached a server yet".to_owned());
                return Err(Unknown::CannotKnow(Code::NotReady, why));
            }
            Knowledge::Remembered | Knowledge::Synced => {}
        }
        let caller = &visitor.caller;
        let mut launches = self.launches.clone();
        launches.seen();
        let mut found = self.look(caller, &view.replica).await;
        let launched = Candidates::all(&view.replica).ask_the_launcher() && launches.goes_on();
        if matches!(found, Ok(Answer::Nobody)) && launched {
            let told = tokio::time::timeout(LAUNCH_GRACE, launches.changed()).await;
            if told.is_ok() {
                found = self.look(caller, &view.replica).await;
            }
        }
        match (found, view.knowledge) {
            (Ok(Answer::Is(workloads)), _) => {
                self.known.remember(visitor.user);
                Ok(workloads)
            }
            (Ok(Answer::Nobody), Knowledge::Synced) => Err(Unknown::Nobody),
            (Ok(Answer::Nobody), Knowledge::Nothing | Knowledge::Remembered) => {
                let why = "no server was reached since this agent started, so it cannot know";
                Err(Unknown::CannotKnow(Code::NotReady, why.to_owned()))
            }
            (Err(refused), _) => {
                let why = format!("attestation failed: {refused}");
                Err(Unknown::CannotKnow(refused.code(), why))
            }
        }
    }

    async fn look(
        &self,
        caller: &Arc<dyn Caller>,
        replica: &Replica,
    ) -> Result<Answer, AttestRefused> {
        let candidates = Candidates::all(replica);
        let cheap = self.desk.facts(caller, candidates.cheap_kinds()).await?;
        let candidates = candidates.narrowed(&cheap);
        if candidates.is_empty() {
            return Ok(Answer::Nobody);
        }
        // All facts anew and together, so that they are of one moment.
        let facts = self.desk.facts(caller, candidates.kinds()).await?;
        Ok(answer(&candidates, &facts))
    }

    /// A place for one more stream of this process.
    pub(crate) fn stream_place(&self, peer: Peer) -> Result<Counted<u32>, Status> {
        self.streams.take(peer.pid, STREAMS_MAX).ok_or_else(|| {
            let message = format!(
                "process `{}` has {STREAMS_MAX} streams open, the most that one may",
                peer.pid
            );
            refusal_status(tonic::Code::ResourceExhausted, Code::RateLimited, &message)
        })
    }
}

impl Unknown {
    /// As the Workload API says it. `PermissionDenied` makes clients give up what they hold, so it is the server's word only.
    pub(crate) fn status(&self, peer: Peer) -> Status {
        match self {
            Self::Nobody => {
                let message = format!(
                    "no identity issued: process `{}` (uid {}) matches the selectors of no workload",
                    peer.pid, peer.uid
                );
                refusal_status(tonic::Code::PermissionDenied, Code::NoMatch, &message)
            }
            Self::CannotKnow(code, why) => refusal_status(tonic::Code::Unavailable, *code, why),
        }
    }
}

/// The caller of a request on our socket.
pub(crate) fn visitor<T>(request: &tonic::Request<T>) -> Result<Visitor, Status> {
    request.extensions().get::<Visitor>().cloned().ok_or_else(|| {
        refusal_status(tonic::Code::Internal, Code::Internal, "the connection has no caller")
    })
}

/// Counts what each key has, up to a bound.
#[derive(Debug)]
pub(crate) struct Counter<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Clone for Counter<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Counter<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted<K: Eq + Hash> {
    counter: Counter<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Counter<K> {
    /// Counts one more, unless there are `max` already.
    pub(crate) fn take(&self, key: K, max: usize) -> Option<Counted<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if max <= *count {
            return None;
        }
        *count += 1;
        Some(Counted { counter: self.clone(), key })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counter.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
