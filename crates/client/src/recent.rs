//! What was decided on the latest requests of one connection, so that the same again costs no more than to find it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_identity::{Name, Timestamp, Verb};
use countersign_policy::Called;
use countersign_tls::{Enforced, Grounds};

use crate::flow::{Counter, Flow, Flows};

/// How many decisions a connection keeps at most. One takes about 350 bytes.
const RECENT_MAX: usize = 16;

/// The latest decisions about requests over one connection, each as long as it would be made in the same way.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// What each was asked lies beside the others, so that looking through them touches none of the decisions but the one that is
    /// looked for.
    asked: Vec<Asked>, // INVARIANT: as many as decided, each in its decision's place
    decided: Vec<Arc<Decided>>, // INVARIANT: at most RECENT_MAX
    oldest: usize,
}

/// All that a decision depends on, beside its grounds and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked<N = Name> {
    /// The service.
    pub(crate) service: N,
    /// With which method; `None` when it is none that an operation could have.
    pub(crate) verb: Option<Verb>,
    /// Which operation the path is; all those that none declares are one.
    pub(crate) operation: Option<N>,
}

impl Asked<&Name> {
    /// With names that stay.
    pub(crate) fn owned(&self) -> Asked {
        let Self { service, verb, operation } = *self;
        Asked { service: service.clone(), verb, operation: operation.cloned() }
    }
}

impl Asked {
    /// Whether that asks the same by the same copies of its names. What asks it by others is decided anew, and is as right.
    fn is(&self, asked: Asked<&Name>) -> bool {
        let operation = match (&self.operation, asked.operation) {
            (Some(one), Some(other)) => one.shares(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        operation && self.verb == asked.verb && self.service.shares(asked.service)
    }
}

/// What was decided, and where it is counted.
#[derive(Debug)]
pub(crate) struct Decided {
    /// None of what is decided anew each time.
    grounds: Option<Grounds>,
    /// What was decided.
    pub(crate) called: Called,
    /// Where requests of this kind are counted now.
    counter: Mutex<Option<Counter>>,
}

impl Decided {
    /// A decision that nobody has counted yet.
    pub(crate) fn new((called, grounds): (Called, Option<Grounds>)) -> Self {
        Self { grounds, called, counter: Mutex::new(None) }
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
    pub(crate) fn recall(&self, asked: Asked<&Name>, enforced: &Enforced) -> Option<Arc<Decided>> {
        let kept = self.kept();
        let place = kept.asked.iter().position(|other| other.is(asked))?;
        let known = &kept.decided[place];
        known.holds(enforced).then(|| Arc::clone(known))
    }

    /// Keeps a decision, in place of the one on the same question, of the oldest where there are too many.
    pub(crate) fn keep(&self, asked: Asked, decided: &Arc<Decided>) {
        if decided.grounds.is_none() {
            return;
        }
        let mut kept = self.kept();
        let Kept { asked: questions, decided: all, oldest } = &mut *kept;
        let decided = Arc::clone(decided);
        let place = match questions.iter().position(|other| *other == asked) {
            Some(same) => same,
            None if all.len() < RECENT_MAX => {
                questions.push(asked);
                all.push(decided);
                return;
            }
            None => {
                let place = *oldest;
                *oldest = (place + 1) % RECENT_MAX;
                place
            }
        };
        (questions[place], all[place]) = (asked, decided);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
