//! When a step may be taken: what its gate waits for, and what that is judged by.

use std::time::Duration;

use countersign_api::admin::{Goal, Step};
use countersign_identity::{Lifetime, Revision, SKEW_ALLOWED, Timestamp, Trial};

use crate::rotate::walk::Walk;
use crate::watch::Moment;

/// How long after the last successor was issued its holders may take to show it instead of the one before.
pub(crate) const SETTLE: Duration = Duration::from_secs(3);
/// How long connections may take to drain that a superseded authority vouches for.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// How long a recovery waits for points that do not answer before it goes on without them.
pub(crate) const REACHABLE: Duration = Duration::from_secs(10);

/// What a gate is judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Enforcement points that are live.
    pub(crate) live: u64,
    /// Those that have acknowledged the revision that the gate is about.
    pub(crate) enforcing: u64,
    /// Those that have not, by name.
    pub(crate) missing: Vec<String>,
    /// Verifiers that cannot acknowledge.
    pub(crate) unaware: u64,
    /// Connections that are being drained.
    pub(crate) draining: u64,
    /// Credentials under the root that has to go whose holder has no other yet.
    pub(crate) left: Vec<Left>,
    /// When the latest successor of one of those was issued.
    pub(crate) settled_from: Option<Timestamp>,
    /// How long SVIDs may live.
    pub(crate) lifetime: Option<Lifetime>,
    /// Points whose doors are still to be tried, by name.
    pub(crate) untried: Vec<String>,
    /// Points whose doors were tried, or cannot be.
    pub(crate) tried: u64,
}

/// Credentials that still need a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Whose.
    pub(crate) holder: String,
    /// Until when.
    pub(crate) until: Timestamp,
}

/// Whether a step may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// Not yet.
    Waits {
        /// For what, as a sentence.
        why: String,
        /// How much of it has happened.
        done: u64,
        /// Of how much.
        of: u64,
        /// Who is missing, by name.
        missing: Vec<String>,
        /// When it opens by itself, at the latest, if that is known.
        until: Option<Timestamp>,
    },
}

impl Gate {
    /// Whether the step may be taken.
    pub(crate) fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

impl Walk {
    /// The revision whose acknowledgement the next step waits for.
    pub(crate) fn awaited(&self, step: Step) -> Option<Revision> {
        let order = self.order.as_ref();
        let from = order.and_then(|order| self.root(order.from));
        match step {
            Step::Activate => self.successor()?.published,
            Step::Retire => from?.superseded,
            Step::Confirm => self.dropped(),
            Step::Prove => order?.trial(),
            Step::Prepare
            | Step::Publish
            | Step::Supersede
            | Step::Condemn
            | Step::Reissue
            | Step::Rollback
            | Step::Taint => None,
        }
    }

    /// The revision that put the order's authority out of all trust.
    pub(crate) fn dropped(&self) -> Option<Revision> {
        let order = self.order.as_ref()?;
        match self.root(order.from) {
            Some(root) => root.dropped,
            None => order.made(Step::Condemn),
        }
    }

    /// Whether a step may be taken now. What an operator forced is open.
    pub(crate) fn gate(&self, step: Step, facts: &Facts, at: Moment) -> Gate {
        let steady = at.steady;
        let order = self.order.as_ref();
        if step == Step::Activate
            && let waits @ Gate::Waits { .. } = self.approval()
        {
            return waits;
        }
        if order.is_some_and(|order| order.forced.contains_key(&step)) {
            return Gate::Open;
        }
        let recovering = order.is_some_and(|order| order.goal == Goal::Recover);
        match step {
            Step::Prepare => self.can_prepare(),
            Step::Publish | Step::Condemn | Step::Rollback | Step::Taint => Gate::Open,
            Step::Activate if order.is_some_and(|order| order.asks) => Gate::Waits {
                why: "an operator has to say `countersign authority activate`".to_owned(),
                done: 0,
                of: 1,
                missing: Vec::new(),
                until: None,
            },
            Step::Activate => self.published_everywhere(facts, recovering, at),
            Step::Supersede | Step::Reissue => reissued(facts, steady),
            Step::Retire => self.drained(facts, steady),
            Step::Confirm => acknowledged(facts),
            Step::Prove => tried(facts, order.and_then(|order| order.at(Step::Confirm)), steady),
        }
    }

    fn published_everywhere(&self, facts: &Facts, recovering: bool, at: Moment) -> Gate {
        let since = self.successor().map_or(at.now, |root| root.since);
        // By the clock as it is: for as long as this waits, a key that leaked is trusted.
        if recovering && since + REACHABLE <= at.now {
            return Gate::Open;
        }
        let points = acknowledged(facts);
        if !points.is_open() || recovering {
            return match points {
                Gate::Waits { why, done, of, missing, .. } if recovering => {
                    Gate::Waits { why, done, of, missing, until: Some(since + REACHABLE) }
                }
                points => points,
            };
        }
        // Whoever cannot acknowledge has been told by its next renewal. Those did not happen because a clock went ahead.
        let told = facts.lifetime.map_or(since, |lifetime| since + lifetime.duration() / 2);
        if facts.unaware == 0 || told <= at.steady {
            return Gate::Open;
        }
        let unaware = facts.unaware;
        Gate::Waits {
            why: format!(
                "{unaware} that cannot acknowledge have the new root with their next renewal"
            ),
            done: facts.enforcing,
            of: facts.live + unaware,
            missing: Vec::new(),
            until: Some(told),
        }
    }

    fn drained(&self, facts: &Facts, steady: Timestamp) -> Gate {
        let points = acknowledged(facts);
        if !points.is_open() || facts.draining == 0 {
            return points;
        }
        let since = self.order.as_ref().and_then(|order| order.at(Step::Supersede));
        let until = since.unwrap_or(steady) + DRAIN;
        // The root's end cuts what drains still, so a clock that is ahead does not bring it; they end by themselves.
        if until <= steady {
            return Gate::Open;
        }
        Gate::Waits {
            why: format!("{} connections under the old root are being drained", facts.draining),
            done: 0,
            of: facts.draining,
            missing: Vec::new(),
            until: Some(until),
        }
    }
}

fn acknowledged(facts: &Facts) -> Gate {
    if facts.enforcing == facts.live {
        return Gate::Open;
    }
    Gate::Waits {
        why: format!(
            "{} of {} enforcement points have it{}",
            facts.enforcing,
            facts.live,
            named(&facts.missing)
        ),
        done: facts.enforcing,
        of: facts.live,
        missing: facts.missing.clone(),
        until: None,
    }
}

/// Every door was tried, as far as it can be, or the time for it is over.
fn tried(facts: &Facts, since: Option<Timestamp>, steady: Timestamp) -> Gate {
    let until = since.unwrap_or(steady) + Trial::TIME;
    // Whose time is over only by a clock that is ahead was not tried; what leaked is refused already while this waits.
    if facts.untried.is_empty() || until <= steady {
        return Gate::Open;
    }
    let of = facts.tried + facts.untried.len() as u64;
    Gate::Waits {
        why: format!(
            "{} of {of} enforcement points were tried with canaries{}",
            facts.tried,
            named(&facts.untried)
        ),
        done: facts.tried,
        of,
        missing: facts.untried.clone(),
        until: Some(until),
    }
}

/// The first of those who are missing.
fn named(missing: &[String]) -> String {
    let Some(first) = missing.first() else { return String::new() };
    match missing.len() {
        1 => format!("; missing: {first}"),
        several => format!("; missing: {first} and {} more", several - 1),
    }
}

fn reissued(facts: &Facts, steady: Timestamp) -> Gate {
    // What a clock that is ahead takes for ended lives everywhere else, and its holder would be refused.
    let lives = |left: &&Left| steady <= left.until + SKEW_ALLOWED;
    let left: Vec<_> = facts.left.iter().filter(lives).collect();
    if let Some(last) = left.iter().map(|left| left.until).max() {
        let mut missing: Vec<_> = left.iter().map(|left| left.holder.clone()).collect();
        missing.dedup();
        return Gate::Waits {
            why: format!(
                "{} credentials under the old root have no successor yet{}",
                left.len(),
                named(&missing)
            ),
            done: 0,
            of: left.len() as u64,
            missing,
            until: Some(last + SKEW_ALLOWED),
        };
    }
    match facts.settled_from.map(|latest| latest + SETTLE) {
        Some(settled) if steady < settled => Gate::Waits {
            why: "the latest successors are on their way to who shows them".to_owned(),
            done: 0,
            of: 1,
            missing: Vec::new(),
            until: Some(settled),
        },
        Some(_) | None => Gate::Open,
    }
}
