//! Until when a revocation matters to who does not know of it.

use countersign_api::admin::Leaked;
use countersign_identity::{Revocations, Revoked, SKEW_ALLOWED, Timestamp};

use crate::revoke::holdings::Holdings;
use crate::revoke::plan::leaked;
use crate::state::State;

/// The last moment at which anything that these rules cover could be accepted by who does not know of them, when that is out
/// which is on record, and things may be valid until `lost` that are not.
pub(super) fn exposure_ends(
    rules: &Revocations,
    covered: &Holdings,
    lost: Option<Timestamp>,
) -> Option<Timestamp> {
    let unrecorded = rules.iter().filter_map(|(_name, rule)| match rule.target {
        // Who has its key makes certificates that end when it does, and no record holds those.
        Revoked::Authority(_) if leaked(rule.reason) != Leaked::Nothing => Some(rule.until),
        Revoked::Earlier { .. } => Some(rule.until),
        Revoked::Identity { .. } | Revoked::Key(_) | Revoked::Node { .. } => lost,
        Revoked::Serial(_) | Revoked::Authority(_) => None,
    });
    unrecorded.chain(covered.last_end()).max().map(|end| end + SKEW_ALLOWED)
}

/// The last moment at which something could be valid that was issued in a span which the store has lost.
pub(super) fn lost_until(state: &State, now: Timestamp) -> Option<Timestamp> {
    let until = state.life()?.until;
    (now <= until + SKEW_ALLOWED).then_some(until)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use countersign_identity::{KeyId, Reason, Revision, Revocation};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);
    const LOST: Timestamp = Timestamp::from_secs(1_000_300);
    const UNTIL: Timestamp = Timestamp::from_secs(1_000_500);
    const BEFORE: Revision = Revision { incarnation: 1, number: 5 };

    /// When nothing is on record that the rule covers.
    #[track_caller]
    fn ends(target: Revoked, reason: Reason, lost: Option<Timestamp>, expected: Option<Timestamp>) {
        let rule = Revocation { target, about: None, reason, at: NOW, until: UNTIL };
        let rules = Revocations::new([("1.5.0".into(), rule.into())]);
        let found = exposure_ends(&rules, &Holdings::default(), lost);
        assert_eq!(found, expected.map(|end| end + Duration::from_secs(60)));
    }

    #[test]
    fn exposure_goes_on_while_what_no_record_holds_may_be_valid() {
        let authority = Revoked::Authority(KeyId::from_bytes([1; 32]));
        ends(authority.clone(), Reason::AuthorityCompromise, None, Some(UNTIL));
        ends(authority.clone(), Reason::KeyCompromise, None, Some(UNTIL));
        ends(authority.clone(), Reason::Unspecified, None, Some(UNTIL));
        ends(authority, Reason::Superseded, None, None);
        let (domain, before) = ("shop.example".parse().unwrap(), BEFORE);
        ends(Revoked::Earlier { domain, before }, Reason::Unspecified, None, Some(UNTIL));
        let id = "spiffe://shop.example/web".parse().unwrap();
        let identity = Revoked::Identity { id, before: BEFORE };
        ends(identity.clone(), Reason::KeyCompromise, None, None);
        ends(identity, Reason::KeyCompromise, Some(LOST), Some(LOST));
    }
}
