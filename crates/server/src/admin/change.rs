//! The routes that change something.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use countersign_api::admin::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, CreateTokenResponse, ProblemDetails,
    RevisionResponse, TrustFingerprint,
};
use countersign_api::resource::Kind;
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Name, NodeId, Revision, Sha256, Timestamp};
use countersign_store::{Batch, LABELS_MAX, Op, StoreError, TokenRow};
use serde::de::DeserializeOwned;

use crate::admin::Admin;
use crate::admin::apply::{self, Invalid, Plan, Unnamed};
use crate::admin::approval;
use crate::admin::problem::Problem;
use crate::attest::JoinToken;
use crate::authority::internal;
use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::{held, removed, shown, unjournaled};
use crate::state::State;

/// How often a change is planned again because the state moved on, when no base was given.
const ATTEMPTS_MAX: usize = 5;
/// The longest life of a join token.
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Who administers: the uid at the other end of the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator(pub(crate) u32);

impl Operator {
    /// As the log says it.
    pub(crate) fn actor(self) -> String {
        format!("operator:uid:{}", self.0)
    }
}

pub(crate) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    let body = body.map_err(|rejected| match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            Code::TooLarge,
            format!("the body is over the limit of {} bytes", super::serve::BODY_BYTES_MAX),
        ),
        _ => Problem::new(Code::NotUnderstood, "the body could not be read"),
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(Code::NotUnderstood, format!("the body does not parse: {error}"))
    })
}

/// Makes a set of resources the desired state, as one revision or not at all.
#[utoipa::path(
    post, path = "/v1/apply", request_body = ApplyRequest,
    responses((status = 200, body = ApplyResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn apply(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ApplyResponse>, Problem> {
    let control = Arc::clone(admin.control()?);
    let request: ApplyRequest = parse(body)?;
    let digest = approval::digest(&request);
    let ApplyRequest { resources, base, prune, dry_run } = request;
    let unnamed = if prune { Unnamed::Remove } else { Unnamed::Keep };
    let resources = off_thread(move || apply::read(&resources)).await?.map_err(problem)?;
    let resources = Arc::new(resources);
    let decide = move |state: &State| apply::put(state, resources.to_vec(), unnamed).map(Some);
    change(&control, Asked { operator, base, dry_run, digest }, decide).await
}

/// Removes one resource.
#[utoipa::path(
    delete, path = "/v1/resources/{kind}/{name}",
    params(("kind" = String, Path, description = "The kind"), ("name" = String, Path, description = "The name")),
    responses((status = 200, body = ApplyResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn remove_resource(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<ApplyResponse>, Problem> {
    let control = Arc::clone(admin.control()?);
    let kind: Kind = kind.parse().map_err(not_understood)?;
    let name: Name = name.parse().map_err(not_understood)?;
    let decide = move |state: &State| apply::remove(state, kind, &name);
    change(&control, Asked { operator, base: None, dry_run: false, digest: None }, decide).await
}

fn not_understood(why: impl std::fmt::Display) -> Problem {
    Problem::new(Code::NotUnderstood, why.to_string())
}

pub(crate) fn problem(invalid: Invalid) -> Problem {
    let count = invalid.problems.len();
    let plural = if count == 1 { "problem" } else { "problems" };
    let first = invalid.problems.first().map(ToString::to_string).unwrap_or_default();
    let detail = format!("{count} {plural}, nothing was changed; the first: {first}");
    Problem::new(invalid.code, detail).with_problems(invalid.problems)
}

/// Long computation, away from the threads that serve.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(internal)
}

/// Who asks for a change, and under which conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) operator: Operator,
    /// The revision that it was made for.
    pub(crate) base: Option<Revision>,
    pub(crate) dry_run: bool,
    /// The plan that it is, where it is one that could be approved.
    pub(crate) digest: Option<Sha256>,
}

fn missing() -> Problem {
    let why = "there is no such resource: `countersign resource list` shows what there is";
    Problem::new(Code::NotFound, why)
}

/// Plans on the current state and commits exactly that plan; plans again when the state moved on meanwhile.
///
/// Every change of what is declared comes through here, so it is here that it is asked whether others have approved it.
pub(crate) async fn change(
    control: &Arc<Control>,
    asked: Asked,
    decide: impl Fn(&State) -> Result<Option<Plan>, Invalid> + Clone + Send + 'static,
) -> Result<Json<ApplyResponse>, Problem> {
    let Asked { operator, base, dry_run, digest: _ } = asked;
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        if let Some(base) = base
            && base != state.revision
        {
            return Err(stale(base, state.revision));
        }
        let (planned, on) = (decide.clone(), Arc::clone(&state));
        let plan = off_thread(move || planned(&on)).await?.map_err(problem)?;
        let plan = plan.ok_or_else(missing)?;
        if dry_run || plan.changes.is_empty() {
            let (revision, changes) = (state.revision, plan.shown);
            return Ok(Json(ApplyResponse { revision, changes, not_in_journal: None }));
        }
        // By the state that the plan is committed on: what would lift the requirement needs it as well.
        approval::demanded(control, &state, asked).await?;
        match commit(control, operator, &state, plan).await {
            Ok(answer) => return Ok(Json(answer)),
            Err(refused) if refused.code == Code::StaleBase => {
                let current = control.store.head().await?.revision;
                if let Some(base) = base {
                    return Err(stale(base, current));
                }
                shown(control, current).await;
            }
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Problem::new(
        Code::StaleBase,
        "the state moved on again and again while the change was planned",
    ))
}

pub(crate) fn stale(base: Revision, current: Revision) -> Problem {
    let why = format!(
        "the change was made for revision {base}, the current one is {current}: look at it anew with `countersign plan`"
    );
    Problem::new(Code::StaleBase, why).with_revision(current)
}

async fn commit(
    control: &Arc<Control>,
    operator: Operator,
    state: &State,
    plan: Plan,
) -> Result<ApplyResponse, Refused> {
    let now = control.clock.now();
    let shown_changes = plan.shown.clone();
    // What else is declared is not written to a journal.
    let rules = !plan.retired.is_empty();
    let last_end = match plan.retired.is_empty() {
        true => None,
        false => held(&*control.store, now).await?.last_end(),
    };
    let batch = plan.batch(state, &operator.actor(), last_end, now);
    let store = Arc::clone(&control.store);
    let committed = control.whole(async move { Ok(store.commit(batch).await?) }).await?;
    control.desk.time.recorded(now);
    let revision = committed.revision;
    shown(control, revision).await;
    let not_in_journal = if rules { unjournaled(control, revision).await } else { None };
    Ok(ApplyResponse { revision, changes: shown_changes, not_in_journal })
}

/// Makes a join token, which is shown this once.
#[utoipa::path(
    post, path = "/v1/join-tokens", request_body = CreateTokenRequest,
    responses((status = 200, body = CreateTokenResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn create_token(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<CreateTokenResponse>, Problem> {
    let control = admin.control()?;
    let request: CreateTokenRequest = parse(body)?;
    if TOKEN_LIFETIME_MAX < request.ttl.duration() {
        return Err(Problem::new(
            Code::LongLifetime,
            format!("a join token's life of {} is over the limit of 30d", request.ttl),
        ));
    }
    if LABELS_MAX < request.labels.len() {
        return Err(Problem::new(
            Code::TooLarge,
            format!("at most {LABELS_MAX} labels are allowed"),
        ));
    }
    let trust = TrustFingerprint(admin.authorities()?.load().trust());
    let now = control.desk.now().await?;
    let token = JoinToken::draw(&*control.entropy).map_err(internal)?;
    let expires = now + request.ttl.duration();
    let hash = token.digest();
    let event = Event::new(EventKind::TokenCreated, now, operator.actor(), hash.to_string())
        .with_details(serde_json::json!({ "expires": expires, "labels": request.labels }));
    let row = TokenRow { hash, expires, labels: request.labels, spent: None };
    let batch = Batch { ops: vec![Op::CreateToken(row)], events: vec![event], ..Batch::default() };
    control.store.commit(batch).await?;
    Ok(Json(CreateTokenResponse { token: token.reveal().to_owned(), expires, trust }))
}

/// Removes a node: its stream ends, and it can neither renew nor get certificates any more.
#[utoipa::path(
    delete, path = "/v1/nodes/{id}", params(("id" = String, Path, description = "The node's id")),
    responses(
        (status = 204),
        (status = 200, body = RevisionResponse, description = "It is removed, and the journal does not have the rule"),
        (status = "default", body = ProblemDetails),
    )
)]
pub(crate) async fn remove_node(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let control = admin.control()?;
    let id: NodeId = id.parse().map_err(not_understood)?;
    let (control, removing) = (Arc::clone(control), Arc::clone(control));
    let removed = control.whole(async move {
        for _attempt in 0..ATTEMPTS_MAX {
            let state = removing.feed.current();
            let now = removing.clock.now();
            let last_end = held(&*removing.store, now).await?.last_end();
            let batch = removal(&state, id, &operator.actor(), last_end, now);
            match removing.store.commit(batch).await {
                Ok(committed) => {
                    removing.roster.remove(id);
                    shown(&removing, committed.revision).await;
                    let revision = committed.revision;
                    let not_in_journal = unjournaled(&removing, revision).await;
                    return Ok(RevisionResponse { revision, not_in_journal });
                }
                Err(StoreError::Conflict { current, .. }) => shown(&removing, current).await,
                Err(error @ StoreError::NodeUnknown(_)) => {
                    let why = format!("{error}; `countersign node list` shows them");
                    return Err(Refused::new(error.code(), why));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
    });
    let removed = removed.await.map_err(|refused| match refused.code {
        Code::UnknownNode => Problem::new(Code::NotFound, refused.why),
        _ => refused.into(),
    })?;
    tracing::info!(node = %id, "node removed");
    Ok(match removed.not_in_journal {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(_) => Json(removed).into_response(),
    })
}

/// What removes a node.
pub(crate) fn removal(
    state: &State,
    id: NodeId,
    actor: &str,
    last_end: Option<Timestamp>,
    now: Timestamp,
) -> Batch {
    let event = Event::new(EventKind::NodeRemoved, now, actor, id.to_string());
    // It takes rights away: what was authorised for the node before is authorised again, and what it holds is revoked.
    Batch {
        expected: Some(state.revision),
        narrows: true,
        changes: removed(state, id, last_end, now),
        ops: vec![Op::RemoveNode { id }],
        events: vec![event],
        ..Batch::default()
    }
}
