//! The routes of reviews.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State as Shared};
use countersign_api::admin::{
    ProblemDetails, ReviewReport, ReviewView, ReviewsResponse, SignReviewRequest,
    StartReviewRequest,
};
use countersign_identity::{Code, Name};

use crate::admin::Admin;
use crate::admin::change::{Operator, parse};
use crate::admin::problem::Problem;
use crate::review;

/// The reviews of policies, those that wait first.
#[utoipa::path(get, path = "/v1/reviews", responses((status = 200, body = ReviewsResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn reviews(
    Shared(admin): Shared<Arc<Admin>>,
) -> Result<Json<ReviewsResponse>, Problem> {
    let reviews = review::reviews(admin.control()?).await?;
    Ok(Json(ReviewsResponse { reviews }))
}

/// Opens a review of policies.
#[utoipa::path(
    post, path = "/v1/reviews", operation_id = "start_review", request_body = StartReviewRequest,
    responses((status = 200, body = ReviewView), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn start(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ReviewView>, Problem> {
    let control = Arc::clone(admin.control()?);
    let (request, on) = (parse(body)?, Arc::clone(&control));
    let work = async move { review::start(&on, request, operator.actor()).await };
    Ok(Json(control.whole(work).await?))
}

/// What a review finds: who could, who did, and what would be enough.
#[utoipa::path(
    get, path = "/v1/reviews/{id}", operation_id = "review_report", params(("id" = String, Path, description = "The review's name")),
    responses((status = 200, body = ReviewReport), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn report(
    Shared(admin): Shared<Arc<Admin>>,
    Path(id): Path<String>,
) -> Result<Json<ReviewReport>, Problem> {
    Ok(Json(review::report(admin.control()?, &named(&id)?).await?))
}

/// Signs a review.
#[utoipa::path(
    post, path = "/v1/reviews/{id}/signature", operation_id = "sign_review", request_body = SignReviewRequest,
    params(("id" = String, Path, description = "The review's name")),
    responses((status = 200, body = ReviewView), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn sign(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ReviewView>, Problem> {
    let control = Arc::clone(admin.control()?);
    let (id, request, on) = (named(&id)?, parse(body)?, Arc::clone(&control));
    let work = async move { review::sign(&on, id, request, operator.actor()).await };
    Ok(Json(control.whole(work).await?))
}

fn named(text: &str) -> Result<Name, Problem> {
    text.parse().map_err(|bad| Problem::new(Code::NotUnderstood, format!("a review's name: {bad}")))
}
