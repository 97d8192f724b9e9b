//! How the parts stand that a node cannot do without.

use countersign_identity::{Failed, Timestamp, Vital, Vitals};

use crate::core::{Knowledge, Standing, Term};
use crate::view::View;

/// How they stand now. An issuer comes with the leaf that it signed; bundles and policies are confirmed for as long as the
/// stream from a server stands.
pub(crate) fn vitals(view: &View, now: Timestamp) -> Vitals {
    let mut vitals = Vitals::default();
    let standings = view.standings.values().chain([&view.node.standing]);
    let first_end = standings.clone().filter_map(|standing| Some(standing.term?.expires)).min();
    let issuers_end = view.svids.values().filter_map(|svid| svid.chain.issuers_end()).min();
    for Standing { term, failed, .. } in standings {
        let unasked = term.as_ref().and_then(|term| unasked(term, view, now));
        for (part, ends) in [(Vital::Leaf, first_end), (Vital::Issuer, issuers_end)] {
            term.iter().for_each(|term| vitals.good(part, term.issued, ends));
            failed.iter().chain(&unasked).for_each(|failed| vitals.failed(part, failed));
        }
    }
    let policies = view.replica.policies().values();
    let policies_end =
        policies.filter_map(|policy| policy.record.as_ref()?.until).filter(|end| now < *end);
    let bundle_ends = view.replica.own_bundle().and_then(|bundle| bundle.ends(now));
    for (part, ends) in [(Vital::Bundle, bundle_ends), (Vital::Policy, policies_end.min())] {
        vitals.ends(part, ends);
        if view.knowledge == Knowledge::Synced {
            vitals.good(part, view.link.disconnected.unwrap_or(now), ends);
        }
        view.link.failed.iter().for_each(|failed| vitals.failed(part, failed));
    }
    vitals
}

/// A successor that is due, and that nobody can be asked for, since no server is there.
fn unasked(term: &Term, view: &View, now: Timestamp) -> Option<Failed> {
    let away = view.link.failed.as_ref().filter(|_| view.link.disconnected.is_some())?;
    let due = term.due();
    (due <= now).then(|| Failed { at: away.at.max(due), why: away.why.clone() })
}
