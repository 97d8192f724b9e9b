//! What manifests say of principals beside their names.

use std::collections::{BTreeSet, HashMap};

use countersign_identity::Name;

use crate::Principal;

/// The roles that a principal is in, and its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Of kind Role.
    pub roles: BTreeSet<Name>,
    /// Those of its manifest.
    pub labels: BTreeSet<Name>,
}

/// Every principal that is in a role or has a label. Who is not among them is in none and has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(HashMap<Box<str>, Member>); // INVARIANT: by the words that policies have for the principal

impl Members {
    /// These; what is said twice of one principal counts together.
    pub fn new(members: impl IntoIterator<Item = (Principal, Member)>) -> Self {
        let mut all: HashMap<Box<str>, Member> = HashMap::new();
        for (principal, Member { roles, labels }) in members {
            let known = all.entry(principal.as_str().into()).or_default();
            known.roles.extend(roles);
            known.labels.extend(labels);
        }
        Self(all)
    }

    /// What is known of the one whom policies name so.
    pub fn of(&self, principal: &str) -> Option<&Member> {
        self.0.get(principal)
    }

    /// Everybody in a role, by the words that policies have for them, sorted.
    pub fn in_role(&self, role: &str) -> BTreeSet<&str> {
        let of = |member: &Member| member.roles.iter().any(|one| one.as_str() == role);
        self.0.iter().filter(|(_, member)| of(member)).map(|(name, _)| &**name).collect()
    }
}
