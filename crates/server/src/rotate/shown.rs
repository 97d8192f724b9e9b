//! The authorities, for people.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign_api::admin::{
    ApprovalView, ApprovalsView, AuthoritiesResponse, GateView, Goal, IssuerView, OrderView,
    ProofView, REPORT_TYPE, RootState, RootView, Step, StepView,
};
use countersign_identity::{Code, KeyId};
use countersign_pki::Jws;
use countersign_store::IssuedRow;

use crate::authority::internal;
use crate::refusal::Refused;
use crate::rotate::approval::{Approvals, Given};
use crate::rotate::ceremony::ceremony;
use crate::rotate::gate::Gate;
use crate::rotate::order::{Order, Proof};
use crate::rotate::root::Root;
use crate::rotate::walk::Walk;
use crate::rotate::walker::{MISSING_MAX, Walker};
use crate::state::State;

/// Every authority, and what is under way.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn shown(walker: &Walker) -> Result<AuthoritiesResponse, Refused> {
    let control = &walker.control;
    let state = control.feed.current();
    let walk = Arc::clone(state.walk()?);
    let ledger = walker.ledger(&walk).await?;
    let counts = ledger.counts(&state.revocations());
    let count = |key: &KeyId| counts.get(key).copied().unwrap_or_default();
    let under = |root: KeyId| {
        let issuers: BTreeSet<_> = ledger.issuers_of(root).map(|row| row.key).collect();
        issuers.iter().map(count).sum()
    };
    let roots = walk.roots.iter().map(|root| root_view(root, under(root.key)));
    let active = walker.rotation.authorities.load().issuer.key_id();
    let issuers =
        ledger.issuers().iter().map(|row| issuer_view(row, &state, active, count(&row.key)));
    Ok(AuthoritiesResponse {
        revision: state.revision,
        roots: roots.collect::<Result<_, _>>()?,
        issuers: issuers.collect(),
        order: match &walk.order {
            Some(order) => Some(under_way(walker, &state, &walk, order).await?),
            None => None,
        },
        last: walk.last.as_ref().map(|order| order_view(&walk, order, None, None)),
        ceremony: ceremony(&walker.rotation.authorities.load(), &walk, control.clock.now()),
    })
}

/// The last walk that came to its end, signed by the root that is active, or by its issuer if that root is held outside.
///
/// # Errors
/// When none did, or the signer fails.
pub(crate) async fn report(walker: &Walker) -> Result<Jws, Refused> {
    let state = walker.control.feed.current();
    let walk = state.walk()?;
    let ended = walk.last.as_ref().filter(|order| order.ended.is_some()).ok_or_else(|| {
        Refused::new(Code::NotFound, "no rotation and no recovery has come to its end yet")
    })?;
    let report = serde_json::json!({
        "trustDomain": state.domain().trust_domain,
        "revision": state.revision,
        "activeRoot": walk.active()?.key,
        "walk": order_view(walk, ended, None, None),
    });
    let authorities = walker.rotation.authorities.load_full();
    let report = report.to_string();
    // Where the root's key is outside, the issuer signs, and shows who vouches for it.
    let (signing, above) = match authorities.root_signing() {
        Ok(signing) => (signing, &[][..]),
        Err(_outside) => (authorities.issuing(), &*authorities.above),
    };
    let (signer, authority) = (&*signing.signer, signing.issuer.certificate());
    let signed = Jws::sign(report.as_bytes(), REPORT_TYPE, authority, above, signer).await;
    signed.map_err(internal)
}

fn root_view(root: &Root, credentials: u64) -> Result<RootView, Refused> {
    Ok(RootView {
        key: root.key,
        state: root.state,
        since: root.since,
        tainted: root.tainted,
        expires: root.certificate()?.validity().not_after,
        trusted: root.is_trusted(),
        certificate: root.certificate.clone(),
        held: root.held,
        published: root.published,
        credentials,
    })
}

fn issuer_view(row: &IssuedRow, state: &State, active: KeyId, credentials: u64) -> IssuerView {
    IssuerView {
        key: row.key,
        root: row.issuer,
        active: row.key == active,
        revoked: state.revocations().is_authority_revoked(row.key),
        expires: row.validity.not_after,
        credentials,
    }
}

async fn under_way(
    walker: &Walker,
    state: &State,
    walk: &Walk,
    order: &Order,
) -> Result<OrderView, Refused> {
    let Some(step) = walk.next() else { return Ok(order_view(walk, order, None, None)) };
    let gate = walker.gate(state, walk, step).await?;
    let gate = walker.kept_by(step, gate);
    Ok(order_view(walk, order, Some((step, &gate)), revocable_until(walk, order)))
}

/// As long as the old root's word counts, it can sign again.
fn revocable_until(walk: &Walk, order: &Order) -> Option<Step> {
    let from = walk.root(order.from)?;
    let last = match order.goal {
        Goal::Rotate | Goal::Retire => Step::Supersede,
        Goal::Recover => Step::Activate,
    };
    let is_gone = from.superseded.is_some() || from.state == RootState::Retired;
    let is_open = !is_gone && (order.goal != Goal::Recover || walk.successor().is_some());
    is_open.then_some(last)
}

/// An order, with the gate of its next step.
fn order_view(
    walk: &Walk,
    order: &Order,
    next: Option<(Step, &Gate)>,
    revocable_until: Option<Step>,
) -> OrderView {
    let view = |step: &Step| {
        let done = order.done.iter().rfind(|done| done.step == *step);
        let gate = next.filter(|(at, _)| at == step).map(|(_, gate)| gate_view(gate));
        StepView {
            step: *step,
            at: done.map(|done| done.at),
            revision: done.map(|done| done.revision),
            forced: order.forced.get(step).cloned(),
            gate: gate.flatten(),
        }
    };
    OrderView {
        goal: order.goal,
        from: order.from,
        actor: order.actor.clone(),
        reason: order.reason.clone(),
        begun: order.begun,
        ended: order.ended,
        steps: order.steps(walk.is_root(order.from)).iter().map(view).collect(),
        revocable_until,
        approvals: order.approvals.as_ref().map(|approvals| approvals_view(approvals, walk)),
        proof: order.proof.clone().map(|proof| {
            let Proof { revision, live, enforcing, unaware, trial } = proof;
            ProofView { revision, live, enforcing, unaware, trial }
        }),
    }
}

fn approvals_view(approvals: &Approvals, walk: &Walk) -> ApprovalsView {
    let Approvals { needed, among, given } = approvals;
    let view = |Given { actor, root, at }: Given| ApprovalView { actor, authority: root, at };
    // Of one that has come to its end nobody is missing.
    let next = walk.successor().map(|root| root.key);
    let missing = next.map(|root| approvals.missing(Some(root))).unwrap_or_default();
    let given = given.iter().cloned().map(view).collect();
    ApprovalsView { needed: *needed as u64, among: among.clone(), given, missing }
}

fn gate_view(gate: &Gate) -> Option<GateView> {
    match gate.clone() {
        Gate::Open => None,
        Gate::Waits { why, done, of, mut missing, until } => {
            missing.truncate(MISSING_MAX);
            Some(GateView { why, done, of, missing, until })
        }
    }
}
