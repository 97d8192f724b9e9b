//! The routes that take credentials out of service, and tell who enforces it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Extension, Query, State as Shared};
use countersign_api::admin::{
    CONVERGENCE_WAIT_MILLIS_MAX, Convergence, ProblemDetails, ResumeRequest, RevisionResponse,
    RevocationsResponse, RevokeRequest, RevokeResponse, SuspendRequest, Target,
};
use countersign_identity::Revision;
use serde::Deserialize;

use crate::admin::Admin;
use crate::admin::ask::query;
use crate::admin::change::{Operator, parse};
use crate::admin::problem::Problem;
use crate::control::Control;
use crate::incarnation;
use crate::revoke::{self, Suspending};

/// Takes credentials out of service, as one revision or not at all.
#[utoipa::path(
    post, path = "/v1/revocations", request_body = RevokeRequest,
    responses((status = 200, body = RevokeResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn revoke(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevokeResponse>, Problem> {
    let control = admin.control()?;
    let request: RevokeRequest = parse(body)?;
    let (rotation, working) = (Arc::clone(admin.rotation()?), Arc::clone(control));
    let work = async move {
        // The issuer that signs now has a successor first, or nothing could be issued anew.
        for target in request.targets.iter().filter(|_target| !request.dry_run) {
            if let Target::Authority(key) = target {
                rotation.replace(*key).await?;
            }
        }
        revoke::revoke(working, request, operator.actor()).await
    };
    Ok(Json(control.whole(work).await?))
}

/// What is out of service, the latest first.
#[utoipa::path(get, path = "/v1/revocations", responses((status = 200, body = RevocationsResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn revocations(
    Shared(admin): Shared<Arc<Admin>>,
) -> Result<Json<RevocationsResponse>, Problem> {
    Ok(Json(revoke::in_force(&admin.control()?.feed.current())))
}

/// Stops what would be issued for an identity or a node.
#[utoipa::path(
    post, path = "/v1/suspensions", request_body = SuspendRequest,
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn suspend(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let control = admin.control()?;
    let SuspendRequest { target, reason } = parse(body)?;
    suspending(control, operator, Suspending::Begin(target, reason)).await
}

/// Lifts a suspension. What was revoked stays revoked.
#[utoipa::path(
    post, path = "/v1/resume", request_body = ResumeRequest,
    responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn resume(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevisionResponse>, Problem> {
    let control = admin.control()?;
    let ResumeRequest { target } = parse(body)?;
    suspending(control, operator, Suspending::End(target)).await
}

/// Ends the time after the beginning of an incarnation in which nothing is issued.
#[utoipa::path(post, path = "/v1/resume-issuing", responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn resume_issuing(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<RevisionResponse>, Problem> {
    let control = admin.control()?;
    let work = incarnation::resume_issuing(Arc::clone(control), operator.actor());
    Ok(Json(control.whole(work).await?))
}

/// Takes the server's present time for right although the log has entries of a later one, and issues again.
#[utoipa::path(post, path = "/v1/accept-clock", responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn accept_clock(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<RevisionResponse>, Problem> {
    let control = admin.control()?;
    let work = crate::watch::accept_clock(Arc::clone(control), operator.actor());
    Ok(Json(control.whole(work).await?))
}

async fn suspending(
    control: &Arc<Control>,
    operator: Operator,
    change: Suspending,
) -> Result<Json<RevisionResponse>, Problem> {
    let work = revoke::suspend(Arc::clone(control), change, operator.actor());
    Ok(Json(control.whole(work).await?))
}

/// Which revision, and how long to wait for it.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Which revision; the newest when none is named.
    #[param(value_type = Option<String>)]
    revision: Option<Revision>,
    /// For how many milliseconds to wait until all enforce it.
    wait: Option<u64>,
    /// A trial whose results to tell, and to wait for.
    #[param(value_type = Option<String>)]
    trial: Option<Revision>,
}

/// Begins a trial: agents show canaries at the doors of their enforcement points.
#[utoipa::path(post, path = "/v1/trials", responses((status = 200, body = RevisionResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn try_out(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<RevisionResponse>, Problem> {
    let control = admin.control()?;
    let work = revoke::try_out(Arc::clone(control), operator.actor());
    Ok(Json(control.whole(work).await?))
}

/// Who enforces a revision.
#[utoipa::path(get, path = "/v1/convergence", params(Asked), responses((status = 200, body = Convergence), (status = "default", body = ProblemDetails)))]
pub(crate) async fn convergence(
    Shared(admin): Shared<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Convergence>, Problem> {
    let control = admin.control()?;
    let Asked { revision, wait, trial } = query(asked)?;
    let revision = revision.unwrap_or_else(|| control.feed.current().revision);
    let wait = Duration::from_millis(wait.unwrap_or(0).min(CONVERGENCE_WAIT_MILLIS_MAX));
    Ok(Json(revoke::converged(control, revision, trial, wait).await?))
}
