//! Recovery from an authority's leaked key: first the plan, then the walk that carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{
    Cause, Convergence, Goal, PlannedStep, RecoverRequest, RecoverResponse, RootState, Step,
    StepRequest,
};
use countersign_identity::{Code, KeyId, Trial};

use crate::refusal::Refused;
use crate::revoke::look;
use crate::rotate::gate::REACHABLE;
use crate::rotate::ledger::Ledger;
use crate::rotate::walk::Walk;
use crate::rotate::walker::Walker;

/// Says what a recovery comes to, and begins it unless that is all that was asked.
///
/// Not to be torn: callers run it in a task of its own.
///
/// # Errors
/// When the key is no authority's that could be trusted still, or another walk is under way.
pub(crate) async fn recover(
    walker: &Walker,
    request: RecoverRequest,
    actor: &str,
) -> Result<RecoverResponse, Refused> {
    let RecoverRequest { compromised, dry_run, reason, root_key } = request;
    let control = &walker.control;
    let state = control.feed.current();
    let walk = Arc::clone(state.walk()?);
    let ledger = walker.ledger(&walk).await?;
    let (is_root, plan) = plan(walker, &walk, &ledger, compromised)?;
    let issuers: BTreeSet<KeyId> = match is_root {
        true => ledger.issuers_of(compromised).map(|row| row.key).collect(),
        false => BTreeSet::from([compromised]),
    };
    let affected = ledger.signed_by(&issuers, &state.revocations());
    let identities: BTreeSet<_> = affected.iter().map(|row| row.spiffe_id.to_string()).collect();
    let Convergence { live: points, unaware, .. } = look(control, state.revision, None).await?;
    let mut response = RecoverResponse {
        compromised,
        is_root,
        plan,
        credentials: affected.len() as u64,
        identities: identities.into_iter().collect(),
        points,
        unaware,
        revision: None,
    };
    if dry_run {
        return Ok(response);
    }
    response.revision = Some(if is_root {
        let (authority, cause) = (Some(compromised), Some(Cause::Compromised));
        let taint = StepRequest { authority, cause, force: reason, root_key };
        walker.asked(Step::Taint, taint, actor).await?
    } else {
        let reason = reason.or_else(|| Some("its key leaked".to_owned()));
        walker.order(Goal::Recover, compromised, actor, reason, None).await?
    });
    Ok(response)
}

fn plan(
    walker: &Walker,
    walk: &Walk,
    ledger: &Ledger,
    compromised: KeyId,
) -> Result<(bool, Vec<PlannedStep>), Refused> {
    if let Some(root) = walk.root(compromised) {
        if root.state == RootState::Retired {
            let why = format!(
                "root `{compromised}` is retired: no verifier trusts it, and nothing is to be done"
            );
            return Err(Refused::new(Code::NotFound, why));
        }
        let successor = walk.successor().map(|root| root.state);
        return Ok((true, root_plan(root.state == RootState::Active, successor)));
    }
    if ledger.issuer(compromised).is_none() {
        let why = format!(
            "no authority of this trust domain has key `{compromised}`; `countersign authority list` shows them"
        );
        return Err(Refused::new(Code::NotFound, why));
    }
    let signs = walker.rotation.authorities.load().issuer.key_id() == compromised;
    let mut plan = Vec::new();
    if signs {
        let what = "another issuer takes its place, under the same root";
        plan.push(planned(Step::Activate, what, false, None));
    }
    plan.extend(aftermath("everything that it signed is refused, and its connections are cut"));
    Ok((false, plan))
}

fn root_plan(signs: bool, successor: Option<RootState>) -> Vec<PlannedStep> {
    let mut plan = Vec::new();
    if signs && successor.is_none() {
        let what = "a new root is made, cross-certified, and sealed";
        plan.push(planned(Step::Prepare, what, true, None));
    }
    if signs && successor != Some(RootState::Published) {
        plan.push(planned(Step::Publish, "it goes into every bundle", true, None));
    }
    if signs {
        let what = "once the points that answer have the bundle, it signs a new issuer";
        plan.push(planned(Step::Activate, what, false, Some(REACHABLE)));
    }
    let what = "at once: everything under the old root is refused, its connections are cut, and it leaves every bundle; \
                who has nothing new yet is out of service until the next step";
    plan.extend(aftermath(what));
    plan
}

fn aftermath(condemned: &str) -> [PlannedStep; 4] {
    let proof = "canaries are shown at their doors, one of them newly signed by what has leaked: it must be refused";
    [
        planned(Step::Condemn, condemned, false, None),
        planned(Step::Reissue, "everybody gets a new credential with a new key", false, None),
        planned(Step::Confirm, "every enforcement point says that it has done so", false, None),
        planned(Step::Prove, proof, false, Some(Trial::TIME)),
    ]
}

fn planned(step: Step, what: &str, revocable: bool, at_most: Option<Duration>) -> PlannedStep {
    let at_most_millis = at_most.and_then(|span| u64::try_from(span.as_millis()).ok());
    PlannedStep { step, what: what.to_owned(), revocable, at_most_millis }
}
