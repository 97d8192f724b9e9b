//! The routes about authorities.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State as Shared};
use countersign_api::admin::{
    ApproveRequest, AuthoritiesResponse, CeremonyRequest, Goal, ImportRequest, ImportResponse,
    ProblemDetails, RecoverRequest, RecoverResponse, RequestView, RevisionResponse, RotateRequest,
    Step, StepRequest,
};
use countersign_identity::Code;
use countersign_pki::Jws;

use crate::admin::Admin;
use crate::admin::change::{Operator, parse};
use crate::admin::problem::Problem;
use crate::rotate::{self, NextKey};

/// Every authority, where it is on its walk, and what is under way.
#[utoipa::path(get, path = "/v1/authorities", responses((status = 200, body = AuthoritiesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn authorities(
    Shared(admin): Shared<Arc<Admin>>,
) -> Result<Json<AuthoritiesResponse>, Problem> {
    Ok(Json(rotate::shown(admin.walker()?).await?))
}

/// The last rotation or recovery that came to its end, as a JSON Web Signature of the active root.
#[utoipa::path(get, path = "/v1/authorities/report", responses((status = 200, description = "A JSON Web Signature in the flattened JSON form (RFC 7515, 7.2.2)"), (status = "default", body = ProblemDetails)))]
pub(crate) async fn report(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Jws>, Problem> {
    Ok(Json(rotate::report(admin.walker()?).await?))
}

/// The request that an authority outside is to sign: the one that waits, or a new one.
#[utoipa::path(
    post, path = "/v1/authorities/request", request_body = CeremonyRequest,
    responses((status = 200, body = RequestView), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn request(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RequestView>, Problem> {
    let (walker, control) = (Arc::clone(admin.walker()?), admin.control()?);
    let CeremonyRequest { anew } = parse(body)?;
    let work = async move { rotate::request(&walker, anew, &operator.actor()).await };
    Ok(Json(control.whole(work).await?))
}

/// Takes what an authority outside has signed.
#[utoipa::path(
    post, path = "/v1/authorities/import", request_body = ImportRequest,
    responses((status = 200, body = ImportResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn import(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ImportResponse>, Problem> {
    let (walker, control) = (Arc::clone(admin.walker()?), admin.control()?);
    let ImportRequest { chain } = parse(body)?;
    let work = async move { rotate::import(&walker, &chain, &operator.actor()).await };
    Ok(Json(control.whole(work).await?))
}

/// Says that a new root may sign, as one of those who are named to approve it.
#[utoipa::path(
    post, path = "/v1/authorities/approve", request_body = ApproveRequest,
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn approve(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let (walker, control) = (Arc::clone(admin.walker()?), admin.control()?);
    let ApproveRequest { authority } = parse(body)?;
    let work = async move { walker.approved(authority, &operator.actor()).await };
    Ok(Json(RevisionResponse::at(control.whole(work).await?)))
}

/// Takes one step of the roots' walk: `prepare`, `publish`, `activate`, `retire`, `taint` or `rollback`.
#[utoipa::path(
    post, path = "/v1/authorities/{step}", request_body = StepRequest,
    params(("step" = String, Path, description = "The step")),
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn step(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    Path(step): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let walker = Arc::clone(admin.walker()?);
    let step: Step = serde_json::from_value(step.clone().into()).map_err(|_bad| {
        let why = format!("`{step}` is not a step of an authority's walk");
        Problem::new(Code::NotUnderstood, why)
    })?;
    let request: StepRequest = parse(body)?;
    let work = async move { walker.asked(step, request, &operator.actor()).await };
    let revision = admin.control()?.whole(work).await?;
    Ok(Json(RevisionResponse::at(revision)))
}

/// Orders the whole rotation of the root: each step is taken when its gate opens.
#[utoipa::path(
    post, path = "/v1/rotations/root", request_body = RotateRequest,
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn rotate_root(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let (walker, control) = (Arc::clone(admin.walker()?), admin.control()?);
    let RotateRequest { reason, root_key } = parse(body)?;
    let root_key = NextKey::read(root_key.as_deref(), &*admin.rotation()?.vault)?;
    let from = control.feed.current().walk()?.active()?.key;
    let work =
        async move { walker.order(Goal::Rotate, from, &operator.actor(), reason, root_key).await };
    Ok(Json(RevisionResponse::at(control.whole(work).await?)))
}

/// Puts a new issuer in the place of the one that signs now.
#[utoipa::path(
    post, path = "/v1/rotations/issuer", request_body = RotateRequest,
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn rotate_issuer(
    Shared(admin): Shared<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let (rotation, control) = (Arc::clone(admin.rotation()?), admin.control()?);
    let RotateRequest { reason: _recorded_nowhere, root_key } = parse(body)?;
    if root_key.is_some() {
        let why = "the key of an issuer is made in the store: `rootKey` is about a root";
        return Err(Problem::new(Code::NotUnderstood, why));
    }
    let work = async move {
        let issuer = rotation.authorities.load().issuer.key_id();
        rotation.replace(issuer).await
    };
    control.whole(work).await?;
    Ok(Json(RevisionResponse::at(control.feed.current().revision)))
}

/// Recovers from an authority's leaked key, or says what that comes to.
#[utoipa::path(
    post, path = "/v1/recoveries", request_body = RecoverRequest,
    responses((status = 200, body = RecoverResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn recover(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RecoverResponse>, Problem> {
    let (walker, control) = (Arc::clone(admin.walker()?), admin.control()?);
    let request: RecoverRequest = parse(body)?;
    let work = async move { rotate::recover(&walker, request, &operator.actor()).await };
    Ok(Json(control.whole(work).await?))
}
