//! How the proxy's own credential, its issuer, its bundle and its policies stand, as the source of them tells.

use std::sync::Arc;

use countersign::{Enforcement, IdentityStatus, Link, Status, Topic};
use countersign_identity::{Timestamp, Vital, Vitals};
use countersign_tls::Trust;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::plane::Plane;

/// What was seen of the source so far.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    vitals: Vitals,
    identity: Option<IdentityStatus>,
    /// The agent says now who may connect.
    pub(crate) subscribed: bool,
}

impl Standing {
    /// Takes what the source says of itself.
    pub(crate) fn saw(&mut self, status: &Status, now: Timestamp) {
        if status.identity != self.identity {
            self.identity.clone_from(&status.identity);
            if status.identity.is_some() {
                self.good(&[Vital::Leaf, Vital::Issuer], now);
            }
        }
        if status.troubles.contains_key(&Topic::Identity) {
            self.failed(&[Vital::Leaf, Vital::Issuer], now);
        }
        if let Link::Lost { since, .. } = &status.link {
            self.failed(&[Vital::Leaf, Vital::Issuer], *since);
        }
        self.subscribed = status.enforcement == Enforcement::Subscribed;
        let troubled = |topic| status.troubles.contains_key(&topic);
        match &status.enforcement {
            Enforcement::Lost { since, .. } => self.failed(&[Vital::Bundle, Vital::Policy], *since),
            Enforcement::Waiting => {}
            Enforcement::Subscribed if troubled(Topic::Slice) => {
                self.subscribed = false;
                self.failed(&[Vital::Bundle, Vital::Policy], now);
            }
            Enforcement::Subscribed | Enforcement::Local | Enforcement::NotOffered => {
                self.good(&[Vital::Bundle, Vital::Policy], now);
            }
        }
        if troubled(Topic::Policy) {
            self.failed(&[Vital::Policy], now);
        }
        if troubled(Topic::Bundle) {
            self.failed(&[Vital::Bundle], now);
        }
    }

    /// How all stands now, with the ends of what is in use.
    pub(crate) fn vitals(&self, trust: &Trust) -> Vitals {
        let (mut vitals, own, slice) = (self.vitals, trust.identity(), trust.slice());
        let now = trust.clock().now();
        let domain = own.as_ref().map(|own| own.id().trust_domain());
        let bundle = domain.and_then(|domain| slice.bundles.get(domain));
        for (part, ends) in [
            (Vital::Leaf, own.as_ref().map(|own| own.leaf().validity().not_after)),
            (Vital::Issuer, own.as_ref().and_then(|own| own.chain().issuers_end())),
            (Vital::Bundle, bundle.and_then(|bundle| bundle.ends())),
            (Vital::Policy, slice.policies.ends()),
        ] {
            vitals.ends(part, ends);
        }
        // The agent says at once what is new, so what it has not taken back stands.
        if self.subscribed {
            for part in [Vital::Bundle, Vital::Policy] {
                let ends = vitals.of(part).ends;
                vitals.good(part, now, ends);
            }
        }
        vitals
    }

    fn good(&mut self, parts: &[Vital], at: Timestamp) {
        parts.iter().for_each(|part| self.vitals.good(*part, at, None));
    }

    fn failed(&mut self, parts: &[Vital], at: Timestamp) {
        parts.iter().for_each(|part| self.vitals.failed(*part, at));
    }
}

/// Follows the source until stopped.
pub(crate) async fn follow(
    mut status: watch::Receiver<Status>,
    plane: Arc<Plane>,
    stop: CancellationToken,
) {
    loop {
        let seen = status.borrow_and_update().clone();
        plane.metrics.saw(&seen, plane.clock.now());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_in_trouble_has_failed_and_what_was_good_stays_known() {
        let at = Timestamp::from_secs;
        let mut standing = Standing::default();
        let fine = Status {
            identity: None,
            link: Link::Connected,
            enforcement: Enforcement::Subscribed,
            revision: None,
            troubles: BTreeMap::new(),
        };
        standing.saw(&fine, at(10));
        assert_eq!(standing.vitals.of(Vital::Policy).good, Some(at(10)));
        assert_eq!(standing.vitals.of(Vital::Leaf).good, None, "none was had yet");
        let trouble = |topic| BTreeMap::from([(topic, "bad".to_owned())]);
        standing.saw(&Status { troubles: trouble(Topic::Identity), ..fine.clone() }, at(20));
        assert_eq!(standing.vitals.of(Vital::Leaf).failed, Some(at(20)));
        let lost = Enforcement::Lost { since: at(25), why: "away".to_owned() };
        standing.saw(&Status { enforcement: lost, ..fine }, at(30));
        let policy = standing.vitals.of(Vital::Policy);
        assert_eq!((policy.good, policy.failed), (Some(at(20)), Some(at(25))));
        assert!(!standing.subscribed);
    }
}
