//! Canaries: credentials by which it is tried out whether an enforcement point refuses what it says it refuses.

use std::time::Duration;

use crate::{Reason, Revision, Revocation, Revoked, SpiffeId, Timestamp, TrustDomain};

/// Under it are the identities of canaries, in every trust domain. No workload has one, no policy names one, and no door
/// lets one in.
const PATH: &str = "/countersign/canary/";
const COVERED: &str = "covered";
const UNCOVERED: &str = "uncovered";
const FORMER: &str = "former";

/// One trial, named by its revision: its own rule covers one of its canaries. Whoever enforces that rule enforces all
/// that came before, since revisions are enforced in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Trial(pub Revision);

/// Which of the canaries of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Canary {
    /// The trial's rule covers it: it must be refused.
    Covered,
    /// No rule covers it: it must be let through the verifier, and be answered.
    Uncovered,
    /// An authority has signed it that is out of service: it must be refused, by its rule or since its root is trusted no
    /// more.
    Former,
}

impl Trial {
    /// For so long after it was asked for, canaries are issued for it.
    pub const TIME: Duration = Duration::from_secs(60);
    /// How long a canary lives.
    pub const CANARY_LIFETIME: Duration = Duration::from_secs(60);

    /// The identity of one of its canaries.
    pub fn id(self, domain: &TrustDomain, canary: Canary) -> SpiffeId {
        let which = match canary {
            Canary::Covered => COVERED,
            Canary::Uncovered => UNCOVERED,
            Canary::Former => FORMER,
        };
        let path = format!("{PATH}{}/{which}", self.0);
        domain.with_path(&path).expect("a revision is a path segment")
    }

    /// The trial that this identity is a canary of.
    pub fn of(id: &SpiffeId) -> Option<(Self, Canary)> {
        let (revision, which) = id.path().strip_prefix(PATH)?.split_once('/')?;
        let canary = match which {
            COVERED => Canary::Covered,
            UNCOVERED => Canary::Uncovered,
            FORMER => Canary::Former,
            _ => return None,
        };
        Some((Self(revision.parse().ok()?), canary))
    }

    /// The rule by which it begins: it covers whatever is issued as the one canary, and nothing else.
    pub fn rule(self, domain: &TrustDomain, at: Timestamp) -> Revocation {
        let id = self.id(domain, Canary::Covered);
        let before = Revision { incarnation: u64::MAX, number: u64::MAX };
        Revocation {
            about: Some(id.clone()),
            target: Revoked::Identity { id, before },
            reason: Reason::Unspecified,
            at,
            until: at + Self::TIME + Self::CANARY_LIFETIME,
        }
    }

    /// The trial that begins by this rule, if it is such a one.
    pub fn begun_by(rule: &Revocation) -> Option<Self> {
        let Revoked::Identity { id, .. } = &rule.target else { return None };
        match Self::of(id)? {
            (trial, Canary::Covered) => Some(trial),
            (_, Canary::Uncovered | Canary::Former) => None,
        }
    }
}

impl SpiffeId {
    /// Whether it lies where only canaries are.
    pub fn is_canary(&self) -> bool {
        self.path().starts_with(PATH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_tell_their_trial_and_nobody_else_is_one() {
        let domain: TrustDomain = "shop.example".parse().unwrap();
        let trial = Trial(Revision { incarnation: 1, number: 7 });
        for canary in [Canary::Covered, Canary::Uncovered, Canary::Former] {
            let id = trial.id(&domain, canary);
            assert!(id.is_canary() && id.is_reserved());
            assert_eq!(Trial::of(&id), Some((trial, canary)));
        }
        for path in ["/web", "/countersign/canary", "/countersign/canaries/1.7/covered"] {
            let id = domain.with_path(path).unwrap();
            assert!(!id.is_canary() && Trial::of(&id).is_none(), "{path}");
        }
        // What is no canary of a trial is let in nowhere, either.
        for path in ["x", "1.7", "1.7/both", "1.7/covered/x", "x/covered"] {
            let id = domain.with_path(&format!("/countersign/canary/{path}")).unwrap();
            assert!(id.is_canary() && Trial::of(&id).is_none(), "{path}");
        }
    }

    #[test]
    fn rule_of_a_trial_covers_the_one_canary_whatever_it_carries() {
        use crate::{KeyId, NodeTag, Presented, Revocations};
        let domain: TrustDomain = "shop.example".parse().unwrap();
        let trial = Trial(Revision { incarnation: 1, number: 7 });
        let at = Timestamp::from_secs(1_000_000);
        let rule = trial.rule(&domain, at);
        assert_eq!(Trial::begun_by(&rule), Some(trial));
        assert!(rule.is_moot(at + Duration::from_secs(600)));
        let rules = Revocations::new([("1.7.0".into(), rule.into())]);
        let covers = |id: &SpiffeId| {
            let provenance =
                Some((Revision { incarnation: 2, number: 900 }, NodeTag::from_bytes([0; 8])));
            let key = KeyId::from_bytes([0; 32]);
            let shown = Presented { id, serial: None, key, authorities: &[], provenance };
            rules.covering(&shown).is_some()
        };
        assert!(covers(&trial.id(&domain, Canary::Covered)));
        assert!(!covers(&trial.id(&domain, Canary::Uncovered)));
        assert!(!covers(&trial.id(&domain, Canary::Former)));
        assert!(!covers(&domain.with_path("/web").unwrap()));
    }
}
