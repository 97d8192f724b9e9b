//! What was decided on the latest requests of one connection, so that the same again costs no more than to find it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_identity::{Name, Timestamp, Verb};
use countersign_policy::Called;
use countersign_tls::{Enforced, Grounds};

use crate::flow::{Counter, Flow, Flows};

/// How many decisions a connection keeps at most. One takes about 300 bytes.
const RECENT_MAX: usize = 16;

/// The latest decisions about requests over one connection, each as long as it would be made in the same way.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    decided: Vec<Arc<Decided>>, // INVARIANT: at most RECENT_MAX
    oldest: usize,
}

/// All that a decision depends on, beside its grounds and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    /// The service.
    pub(crate) service: &'a Name,
    /// With which method; `None` when it is none that an operation could have.
    pub(crate) verb: Option<Verb>,
    /// Which operation the path is; all those that none declares are one.
    pub(crate) operation: Option<&'a Name>,
}

/// What was decided, and where it is counted.
#[derive(Debug)]
pub(crate) struct Decided {
    service: Name,
    verb: Option<Verb>,
    /// None of what is decided anew each time.
    grounds: Option<Grounds>,
    /// What was decided.
    pub(crate) called: Called,
    /// Where requests of this kind are counted now.
    counter: Mutex<Option<Counter>>,
}

impl Decided {
    /// A decision that nobody has counted yet.
    pub(crate) fn new(
        service: Name,
        verb: Option<Verb>,
        (called, grounds): (Called, Option<Grounds>),
    ) -> Self {
        Self { service, verb, grounds, called, counter: Mutex::new(None) }
    }

    fn asked(&self) -> Asked<'_> {
        let operation = self.called.operation.as_ref().map(|operation| &operation.name);
        Asked { service: &self.service, verb: self.verb, operation }
    }

    /// Counts one, as the flow that it is.
    pub(crate) fn count(&self, flows: &Flows, at: Timestamp, flow: impl FnOnce() -> Flow) {
        let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        if !counter.as_ref().is_some_and(|counter| counter.count(at)) {
            *counter = flows.begin(flow(), at);
        }
    }

    fn holds(&self, enforced: &Enforced) -> bool {
        self.grounds.as_ref().is_some_and(|grounds| enforced.is_by(grounds))
    }
}

impl Recent {
    /// What was decided on this very question, if it would be decided so now.
    pub(crate) fn recall(&self, asked: Asked<'_>, enforced: &Enforced) -> Option<Arc<Decided>> {
        let kept = self.kept();
        let known = kept.decided.iter().find(|decided| decided.asked() == asked)?;
        known.holds(enforced).then(|| Arc::clone(known))
    }

    /// Keeps a decision, in place of the one on the same question, of the oldest where there are too many.
    pub(crate) fn keep(&self, decided: &Arc<Decided>) {
        if decided.grounds.is_none() {
            return;
        }
        let mut kept = self.kept();
        let Kept { decided: all, oldest } = &mut *kept;
        let decided = Arc::clone(decided);
        if let Some(same) = all.iter_mut().find(|other| other.asked() == decided.asked()) {
            *same = decided;
        } else if all.len() < RECENT_MAX {
            all.push(decided);
        } else {
            all[*oldest] = decided;
            *oldest = (*oldest + 1) % RECENT_MAX;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
