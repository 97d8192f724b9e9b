//! What a trial has shown of enforcement points, and of which of them it has shown nothing.

use countersign_api::admin::{CanaryView, TrialView, UnverifiedPoint, VerifiedPoint};
use countersign_api::v1;
use countersign_identity::Revision;
use countersign_store::PointKey;

use crate::publish::Standing;
use crate::revoke::replicas::trial_of;

/// What a trial has shown of these points, and of which of them it has shown nothing. A newer trial shows no less: revisions
/// are enforced in order.
pub(super) fn tried_out<'a>(
    trial: Revision,
    points: impl Iterator<Item = &'a Standing>,
) -> TrialView {
    let mut view =
        TrialView { revision: trial, verified: Vec::new(), unverified: Vec::new(), pending: false };
    for Standing { key, revision, tried, .. } in points {
        let PointKey { node, spiffe_id, name } = key.clone();
        let unverified = |why: &str, pending| UnverifiedPoint {
            point: name.clone(),
            spiffe_id: spiffe_id.clone(),
            node,
            why: why.to_owned(),
            pending,
        };
        let latest = tried.as_ref().filter(|tried| Some(trial) <= trial_of(tried));
        match latest.map(|tried| (tried, seen(tried))) {
            None if *revision < Some(trial) => {
                view.unverified
                    .push(unverified("it has not said that it enforces the trial's rule", true));
            }
            None => view.unverified.push(unverified("its agent has not tried it yet", true)),
            Some((tried, Some((covered, uncovered)))) => view.verified.push(VerifiedPoint {
                point: name,
                spiffe_id,
                node,
                door: tried.door.clone(),
                covered,
                uncovered,
                former: outcome(tried.former()),
                why: (!tried.why.is_empty()).then(|| tried.why.clone()),
            }),
            Some((tried, None)) => view.unverified.push(unverified(&tried.why, false)),
        }
    }
    view.pending = view.unverified.iter().any(|point| point.pending);
    view
}

/// What became of the two canaries that every trial has; nothing when that proves neither that the point does what it says
/// nor that it does not.
fn seen(tried: &v1::TrialResult) -> Option<(CanaryView, CanaryView)> {
    let as_former = outcome(tried.former()) == Some(CanaryView::Accepted);
    match (outcome(tried.covered()), outcome(tried.uncovered())) {
        (Some(covered), Some(uncovered)) => Some((covered, uncovered)),
        (Some(CanaryView::Accepted), None) => Some((CanaryView::Accepted, CanaryView::Unclear)),
        (covered, uncovered) if as_former => {
            let or_unclear = |view: Option<_>| view.unwrap_or(CanaryView::Unclear);
            Some((or_unclear(covered), or_unclear(uncovered)))
        }
        (Some(_) | None, _) => None,
    }
}

fn outcome(outcome: v1::CanaryOutcome) -> Option<CanaryView> {
    match outcome {
        v1::CanaryOutcome::Revoked => Some(CanaryView::Refused),
        v1::CanaryOutcome::Untrusted => Some(CanaryView::Untrusted),
        v1::CanaryOutcome::Alive => Some(CanaryView::Accepted),
        v1::CanaryOutcome::Unspecified => None,
    }
}
