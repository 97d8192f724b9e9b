//! Changes that others have to approve: which plan, by whom, and whether enough have.
//!
//! An approval is of a plan by its digest: of the manifests, of the revision that they are for, and of whether the rest is removed.
//! On that revision they come to one change and no other, so what was approved is what is applied, and once it was, the
//! revision is another one.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State as Shared};
use countersign_api::admin::{
    ApplyRequest, ApprovalGiven, PlanApproval, PlanResponse, ProblemDetails,
};
use countersign_api::resource::{Approver, Changes, canonical};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Revision, Sha256, Timestamp};
use countersign_store::{Batch, Op, PaperRow, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::admin::Admin;
use crate::admin::change::{Asked, Operator, parse};
use crate::admin::plan::planned;
use crate::admin::problem::Problem;
use crate::control::Control;
use crate::papers::{beginning, paper, says};
use crate::refusal::Refused;
use crate::state::State;

/// What the names of all approvals begin with.
const PLANS: &str = "plan/";
/// How many wait at once. Those for a revision that is no longer in force make room by themselves.
const APPROVALS_MAX: usize = 500;
/// Changes that the log lists of an approved plan.
const LISTED_MAX: usize = 50;

/// One operator's word, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Word {
    actor: String,
    base: Revision,
    at: Timestamp,
}

/// The plan that a request is; `None` when it is for no certain revision, so that nobody could know what it comes to.
pub(crate) fn digest(request: &ApplyRequest) -> Option<Sha256> {
    let ApplyRequest { resources, base, prune, dry_run: _ } = request;
    let value = serde_json::json!({ "base": (*base)?, "prune": prune, "resources": resources });
    Some(crate::digest::sha256(&canonical(&value)))
}

fn actor(approver: &Approver) -> String {
    Operator(approver.0).actor()
}

/// The words that count for this plan on this state: of those who are named now, for the revision in force.
async fn given(
    store: &dyn Store,
    state: &State,
    changes: &Changes,
    digest: Sha256,
) -> Result<Vec<Word>, Refused> {
    let rows = beginning(store, &format!("{PLANS}{digest}/")).await?;
    let words = rows.iter().map(says).collect::<Result<Vec<Word>, _>>()?;
    let counts = |word: &Word| {
        word.base == state.revision && changes.approvers.iter().any(|it| actor(it) == word.actor)
    };
    Ok(words.into_iter().filter(counts).collect())
}

/// Goes on only if enough of those who have to approve a change have, besides who asks for it.
///
/// # Errors
/// When they have not, or the change is none that could be approved.
pub(crate) async fn demanded(
    control: &Control,
    state: &State,
    asked: Asked,
) -> Result<(), Refused> {
    let Some(changes) = &state.domain().changes else { return Ok(()) };
    let needed = changes.needed();
    let Some(digest) = asked.digest else {
        let why = format!(
            "what is declared here changes only by a plan that {needed} others have approved: write one with `countersign plan DIR \
             --out FILE` (to go back, of what `countersign export --revision REVISION DIR` writes, with `--prune`), have it approved \
             with `countersign plan approve FILE`, and apply it with `countersign apply --plan FILE`"
        );
        return Err(Refused::new(Code::Forbidden, why));
    };
    let own = asked.operator.actor();
    let words = given(&*control.store, state, changes, digest).await?;
    let others = words.iter().filter(|word| word.actor != own).count();
    if needed <= others {
        return Ok(());
    }
    let has = |actor: &String| words.iter().any(|word| word.actor == *actor);
    let missing = changes.approvers.iter().map(actor);
    let missing: Vec<_> = missing.filter(|it| *it != own && !has(it)).collect();
    let why = format!(
        "{others} of {needed} operators have approved plan `{digest}`, besides who applies it; who may is `{}`, by `countersign plan approve FILE`",
        missing.join("`, `")
    );
    Err(Refused::new(Code::Forbidden, why))
}

/// Where a plan stands; `None` where nobody has to approve it.
pub(crate) async fn standing(
    control: &Control,
    state: &State,
    request: &ApplyRequest,
) -> Result<Option<PlanApproval>, Refused> {
    let (Some(changes), Some(digest)) = (&state.domain().changes, digest(request)) else {
        return Ok(None);
    };
    let words = given(&*control.store, state, changes, digest).await?;
    let given = words.into_iter().map(|Word { actor, at, .. }| ApprovalGiven { actor, at });
    let (needed, among) = (changes.needed(), changes.approvers.iter().map(actor).collect());
    Ok(Some(PlanApproval { digest, needed, among, given: given.collect() }))
}

/// Approves a plan, as one of those who are named to. What it comes to is planned anew, and is in the answer.
#[utoipa::path(
    post, path = "/v1/plans/approve", operation_id = "approve_plan", request_body = ApplyRequest,
    responses((status = 200, body = PlanResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn approve(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PlanResponse>, Problem> {
    let control = Arc::clone(admin.control()?);
    let request: ApplyRequest = parse(body)?;
    let state = control.feed.current();
    let Some(digest) = digest(&request) else {
        let why = "a plan names the revision that it is for: write it with `countersign plan DIR --out FILE`";
        return Err(Problem::new(Code::NotUnderstood, why));
    };
    let changes = may_approve(&state, operator)?;
    let plan = planned(&control, &state, &request).await?;
    if plan.changes.is_empty() {
        return Err(Problem::new(
            Code::NotFound,
            "it would change nothing: there is nothing to approve",
        ));
    }
    let words = given(&*control.store, &state, &changes, digest).await?;
    if words.iter().any(|word| word.actor == operator.actor()) {
        return Err(already(operator).into());
    }
    let now = control.desk.now().await?;
    let word = Word { actor: operator.actor(), base: state.revision, at: now };
    let mut ops = room(&*control.store, &state).await?;
    let name = format!("{PLANS}{digest}/{}", operator.actor());
    ops.push(Op::CreatePaper(paper(name, &word)?));
    let events = vec![approved(&plan, digest, &word)];
    // On the revision that it was planned for, so that a word is never for one that has passed.
    let batch = Batch { expected: Some(state.revision), ops, events, ..Batch::default() };
    let store = Arc::clone(&control.store);
    let commit = async move {
        match store.commit(batch).await {
            // Of two at once of one person, at any two servers, the store takes one.
            Err(StoreError::AlreadyExists { .. }) => Err(already(operator)),
            committed => Ok(committed?),
        }
    };
    control.whole(commit).await?;
    let approval = standing(&control, &state, &request).await?;
    Ok(Json(PlanResponse { approval, ..plan }))
}

fn already(operator: Operator) -> Refused {
    let why = format!("`{}` has approved it already, and counts once", operator.actor());
    Refused::new(Code::AlreadyExists, why)
}

fn may_approve(state: &State, operator: Operator) -> Result<Changes, Problem> {
    let Some(changes) = &state.domain().changes else {
        let why =
            "nothing here has to be approved: `changes` of the TrustDomain says who would have to";
        return Err(Problem::new(Code::NotFound, why));
    };
    if !changes.approvers.contains(&Approver(operator.0)) {
        let why = format!("`{}` is not among those who were named to approve", operator.actor());
        return Err(Problem::new(Code::Forbidden, why));
    }
    Ok(changes.clone())
}

fn approved(plan: &PlanResponse, digest: Sha256, word: &Word) -> Event {
    let listed = plan.changes.iter().take(LISTED_MAX);
    let listed: Vec<_> =
        listed.map(|it| format!("{} {}/{}", it.action, it.kind, it.name)).collect();
    let details = serde_json::json!({
        "base": word.base, "changes": listed, "count": plan.changes.len(),
    });
    Event::new(EventKind::ChangeApproved, word.at, word.actor.clone(), digest.to_string())
        .with_details(details)
}

/// What makes room: words for a revision that is no longer in force count for nothing.
async fn room(store: &dyn Store, state: &State) -> Result<Vec<Op>, Refused> {
    let rows = beginning(store, PLANS).await?;
    let (mut gone, mut waiting) = (Vec::new(), 0);
    for row in rows {
        let word: Word = says(&row)?;
        let PaperRow { name, .. } = row;
        match word.base == state.revision {
            true => waiting += 1,
            false => gone.push(Op::RemovePaper { name }),
        }
    }
    if APPROVALS_MAX <= waiting {
        let why = format!("{APPROVALS_MAX} approvals wait already: apply one of the plans first");
        return Err(Refused::new(Code::TooLarge, why));
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn digest_is_of_all_that_decides_what_a_plan_comes_to() {
        let base: Revision = "1.7".parse().unwrap();
        let resources = vec![json!({ "kind": "Policy", "spec": { "a": 1, "b": 2 } })];
        let plan = ApplyRequest { resources, base: Some(base), prune: false, dry_run: false };
        let same = ApplyRequest {
            resources: vec![json!({ "spec": { "b": 2, "a": 1 }, "kind": "Policy" })],
            dry_run: true,
            ..plan
        };
        assert_eq!(digest(&plan), digest(&same), "the order of members says nothing");
        for other in [
            ApplyRequest { prune: true, ..plan.clone() },
            ApplyRequest { base: Some("2.7".parse().unwrap()), ..plan.clone() },
            ApplyRequest { resources: Vec::new(), ..plan },
        ] {
            assert_ne!(digest(&plan), digest(&other), "{other:?}");
        }
        assert_eq!(digest(&ApplyRequest { base: None, ..plan }), None);
    }
}
