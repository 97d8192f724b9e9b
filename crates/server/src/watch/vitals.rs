//! How the parts stand that the server cannot do without.

use countersign_identity::{Timestamp, Vital, Vitals};
use countersign_pki::Bundle;

use crate::authority::Authorities;
use crate::control::Control;
use crate::state::State;

/// How they stand now. What is served of bundles and policies is what the store holds, for as long as it answers.
pub(super) fn vitals(
    control: &Control,
    state: &State,
    authorities: &Authorities,
    now: Timestamp,
) -> Vitals {
    let mut vitals = control.watch.vitals();
    vitals.ends(Vital::Issuer, Some(authorities.issuer_validity().not_after));
    let bundle = state.bundle(&state.domain().trust_domain);
    let bundle_ends = bundle.and_then(|bundle: &Bundle| bundle.ends(now));
    let policies_end = state.policies().filter_map(|policy| policy.until).filter(|end| now < *end);
    let store = control.signing.progress();
    for (part, ends) in [(Vital::Bundle, bundle_ends), (Vital::Policy, policies_end.min())] {
        store.read.iter().for_each(|read| vitals.good(part, *read, ends));
        store.unread.iter().for_each(|unread| vitals.failed(part, unread));
        vitals.ends(part, ends);
    }
    vitals
}
