//! Which workloads a process is.

use std::cmp::Reverse;
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
    found.sort_by_key(rank);
    Answer::Is(found)
}

/// Its place among several that one process is: first the one that says most of it. A program that its launcher vouches
/// for stays what it is when somebody declares a workload for every process of its user.
fn rank(workload: &Arc<Workload>) -> (Reverse<u8>, Reverse<usize>, Name) {
    let selectors = &workload.spec.selectors;
    let strongest = selectors.iter().map(|selector| strength(selector.kind())).max().unwrap_or(0);
    (Reverse(strongest), Reverse(selectors.len()), workload.name.clone())
}

/// How much a fact says: of whom the process is, of what it runs now, of who started it.
fn strength(kind: SelectorKind) -> u8 {
    match kind {
        SelectorKind::UnixUid
        | SelectorKind::UnixGid
        | SelectorKind::UnixUser
        | SelectorKind::UnixGroup => 0,
        SelectorKind::UnixPath | SelectorKind::UnixSha256 => 1,
        SelectorKind::Launch | SelectorKind::SystemdUnit | SelectorKind::ContainerId => 2,
    }
}

#[cfg(test)]
mod tests {
    use countersign_api::resource::{Kind, Spec};

    use super::*;

    fn workload(name: &str, selectors: &str) -> Arc<Workload> {
        let value = format!(r#"{{"selectors":{selectors}}}"#);
        let Ok(Spec::Workload(spec)) = Spec::decode(Kind::Workload, value.as_bytes()) else {
            panic!("{value} is not a workload");
        };
        let id = format!("spiffe://shop.example/{name}").parse().unwrap();
        Arc::new(Workload { name: name.parse().unwrap(), id, spec })
    }

    #[test]
    fn launchers_word_comes_before_the_user_whatever_the_names_are() {
        let mut found = [
            workload("anybody", r#"["unix:uid:0"]"#),
            workload("everybody", r#"["unix:uid:0","unix:gid:0"]"#),
            workload("by-path", r#"["unix:path:/bin/orders"]"#),
            workload("orders", r#"["launch:orders"]"#),
        ];
        found.sort_by_key(rank);
        let names: Vec<_> = found.iter().map(|workload| workload.name.as_str()).collect();
        assert_eq!(names, ["orders", "by-path", "everybody", "anybody"]);
    }
}
