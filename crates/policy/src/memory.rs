//! What was decided before.
//!
//! A compiled set of policies never changes, and its memory lives and dies with it: a new revision of policies begins with an
//! empty one, so nothing has ever to be taken out because it has become wrong.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use countersign_identity::{Attested, Name, Verb};

use crate::{Decision, Principal};

/// How many decisions are remembered at most.
const DECISIONS_MAX: usize = 4096;
/// In how many places one decision can stand. A question looks at all of them.
const WAYS: usize = 4;
/// A decision that rests on more policies than this is not remembered, so that what is remembered stays small.
const POLICIES_MAX: usize = 32;

/// All that the answer to a question depends on, apart from the time and from the age of the peer's certificate. What reads those
/// is never remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question<'a> {
    pub(crate) principal: &'a Principal,
    pub(crate) service: &'a str,
    /// None for the service itself.
    pub(crate) operation: Option<&'a Name>,
    /// None for a connection.
    pub(crate) verb: Option<Verb>,
    pub(crate) tls_version: &'a str,
    pub(crate) group: &'a str,
    /// None also where no policy that bears on it asks, so that callers from everywhere take up one place.
    pub(crate) source: Option<IpAddr>,
    /// Empty likewise.
    pub(crate) attested: Attested,
}

/// Decisions by question, in a table of one size, where a newcomer takes the place of another. So whoever asks for much is
/// answered more slowly, never makes it grow, and cannot know whose place is taken.
#[derive(Default)]
pub(crate) struct Memory {
    places: OnceLock<Box<[ArcSwapOption<Remembered>]>>,
    /// Keyed by chance, so that nobody can choose names that meet in one place.
    hasher: RandomState,
    turn: AtomicUsize,
}

struct Remembered {
    principal: Principal,
    service: String,
    operation: Option<Name>,
    verb: Option<Verb>,
    tls_version: String,
    group: String,
    source: Option<IpAddr>,
    attested: Attested,
    decision: Decision,
}

impl Memory {
    /// What was decided on this very question.
    pub(crate) fn recall(&self, question: &Question<'_>) -> Option<Decision> {
        let places = self.places.get()?;
        self.ways(places, question).iter().find_map(|place| {
            let place = place.load();
            let remembered = place.as_ref().filter(|it| it.question() == *question)?;
            Some(remembered.decision.clone())
        })
    }

    /// Keeps a decision that depends on nothing but the question.
    pub(crate) fn remember(&self, question: &Question<'_>, decision: &Decision) {
        if POLICIES_MAX < decision.policies.len() {
            return;
        }
        let empty = || (0..DECISIONS_MAX).map(|_| ArcSwapOption::empty()).collect();
        let ways = self.ways(self.places.get_or_init(empty), question);
        let free = ways.iter().find(|place| place.load().is_none());
        let place = free.unwrap_or_else(|| {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            &ways[turn % WAYS]
        });
        place.store(Some(Remembered::of(question, decision).into()));
    }

    /// The places in which a question can be.
    fn ways<'a, T>(&self, places: &'a [T], question: &Question<'_>) -> &'a [T] {
        let sets = u64::try_from(DECISIONS_MAX / WAYS).unwrap_or(u64::MAX);
        let set = usize::try_from(self.hasher.hash_one(question) % sets).unwrap_or(0);
        &places[set * WAYS..][..WAYS]
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let places = self.places.get().map_or(&[][..], |places| places);
        places.iter().filter(|place| place.load().is_some()).count()
    }
}

impl Remembered {
    fn of(question: &Question<'_>, decision: &Decision) -> Self {
        Self {
            principal: question.principal.clone(),
            service: question.service.to_owned(),
            operation: question.operation.cloned(),
            verb: question.verb,
            tls_version: question.tls_version.to_owned(),
            group: question.group.to_owned(),
            source: question.source,
            attested: question.attested,
            decision: decision.clone(),
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            principal: &self.principal,
            service: &self.service,
            operation: self.operation.as_ref(),
            verb: self.verb,
            tls_version: &self.tls_version,
            group: &self.group,
            source: self.source,
            attested: self.attested,
        }
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::{Mode, SelectorKind};

    use super::*;
    use crate::Verdict;

    fn decision(policies: usize) -> Decision {
        let policies = (0..policies).map(|number| format!("p{number}")).collect();
        Decision { verdict: Verdict::Allow, mode: Mode::Enforce, policies }
    }

    fn question<'a>(principal: &'a Principal, service: &'a str) -> Question<'a> {
        Question {
            principal,
            service,
            operation: None,
            verb: None,
            tls_version: "1.3",
            group: "X25519",
            source: None,
            attested: Attested::default(),
        }
    }

    #[test]
    fn only_the_very_question_is_recalled() {
        let (memory, name) = (Memory::default(), "charge".parse().unwrap());
        let web = Principal::Named("web".parse().unwrap());
        let asked = question(&web, "payments");
        assert_eq!(memory.recall(&asked), None);
        memory.remember(&asked, &decision(2));
        assert_eq!(memory.recall(&asked), Some(decision(2)));
        let orders = Principal::Named("orders".parse().unwrap());
        let foreign = Principal::Id("spiffe://other.example/web".parse().unwrap());
        for other in [
            Question { principal: &orders, ..asked },
            Question { principal: &foreign, ..asked },
            Question { service: "payment", ..asked },
            Question { operation: Some(&name), ..asked },
            Question { verb: Some(Verb::Get), ..asked },
            Question { tls_version: "1.2", ..asked },
            Question { group: "X25519MLKEM768", ..asked },
            Question { source: Some(IpAddr::from([192, 0, 2, 7])), ..asked },
            Question { attested: Attested::default().and(SelectorKind::Launch), ..asked },
        ] {
            assert_eq!(memory.recall(&other), None, "{other:?}");
        }
    }

    #[test]
    fn it_does_not_grow_whoever_asks_for_however_much() {
        let memory = Memory::default();
        for number in 0..3 * DECISIONS_MAX {
            let id = format!("spiffe://other.example/{number}");
            let peer = Principal::Id(id.parse().unwrap());
            memory.remember(&question(&peer, "payments"), &decision(1));
            assert_eq!(memory.recall(&question(&peer, "payments")), Some(decision(1)));
        }
        assert!(memory.len() <= DECISIONS_MAX);
        let web = Principal::Named("web".parse().unwrap());
        memory.remember(&question(&web, "orders"), &decision(POLICIES_MAX + 1));
        assert_eq!(memory.recall(&question(&web, "orders")), None, "it would hold much");
    }
}
