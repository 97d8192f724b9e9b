//! Which workloads a process is.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign_identity::{Name, SelectorKind};

use super::replica::{Replica, Workload};
use crate::attest::Facts;

/// The workloads that a process may still turn out to be.
#[derive(Clone, Debug)]
pub struct Candidates(Vec<Arc<Workload>>);

/// What is known of a process, once its facts were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is these, the most narrowly described first.
    Is(Vec<Arc<Workload>>),
    /// It is none.
    Nobody,
}

/// The facts that cost nothing and cannot fail. They are read first, and spare most callers the others.
const CHEAP: [SelectorKind; 3] =
    [SelectorKind::UnixUid, SelectorKind::UnixGid, SelectorKind::Launch];

impl Candidates {
    /// Everybody, before anything is known.
    pub fn all(replica: &Replica) -> Self {
        Self(replica.workloads().values().cloned().collect())
    }

    /// The cheap kinds that these candidates ask for.
    pub fn cheap_kinds(&self) -> BTreeSet<SelectorKind> {
        self.kinds().into_iter().filter(|kind| CHEAP.contains(kind)).collect()
    }

    /// All kinds that these candidates ask for.
    pub fn kinds(&self) -> BTreeSet<SelectorKind> {
        self.0.iter().flat_map(|workload| &workload.spec.selectors).map(|s| s.kind()).collect()
    }

    /// Those that facts of the cheap kinds do not rule out.
    #[must_use]
    pub fn narrowed(self, facts: &Facts) -> Self {
        let possible = |workload: &Arc<Workload>| {
            let mut selectors = workload.spec.selectors.iter();
            selectors.all(|selector| !CHEAP.contains(&selector.kind()) || facts.holds(selector))
        };
        Self(self.0.into_iter().filter(possible).collect())
    }

    /// Whether nobody is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some of them are told by their launcher.
    pub fn ask_the_launcher(&self) -> bool {
        self.kinds().contains(&SelectorKind::Launch)
    }
}

/// Which of the candidates a process with these facts is. All selectors of a workload must hold; one without selectors
/// is nobody's.
pub fn answer(candidates: &Candidates, facts: &Facts) -> Answer {
    let mut found: Vec<Arc<Workload>> = candidates
        .0
        .iter()
        .filter(|workload| {
            let selectors = &workload.spec.selectors;
            !selectors.is_empty() && selectors.iter().all(|selector| facts.holds(selector))
        })
        .cloned()
        .collect();
    if found.is_empty() {
        return Answer::Nobody;
    }
    let rank = |workload: &Arc<Workload>| -> (std::cmp::Reverse<usize>, Name) {
        (std::cmp::Reverse(workload.spec.selectors.len()), workload.name.clone())
    };
    found.sort_by_key(rank);
    Answer::Is(found)
}
