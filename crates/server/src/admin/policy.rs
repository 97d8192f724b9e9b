//! The routes that tell what policies come to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State as Shared};
use countersign_api::admin::{
    ExplainRequest, ExplainResponse, FlowsResponse, InventoryResponse, ProblemDetails,
};
use countersign_api::resource::Resource;
use countersign_identity::{Code, Timestamp};
use serde::Deserialize;

use crate::admin::Admin;
use crate::admin::ask::query;
use crate::admin::change::{off_thread, parse};
use crate::admin::problem::Problem;
use crate::authority::internal;
use crate::judge::Judge;
use crate::refusal::Refused;
use crate::state::State;
use crate::watch;

/// Whether a workload may use a service, and why.
#[utoipa::path(
    post, path = "/v1/explain", request_body = ExplainRequest,
    responses((status = 200, body = ExplainResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn explain(
    Shared(admin): Shared<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ExplainResponse>, Problem> {
    let control = admin.control()?;
    let request: ExplainRequest = parse(body)?;
    let state = control.feed.current();
    let (revision, now) = (state.revision, control.clock.now());
    let answer =
        off_thread(move || Ok::<_, Refused>(judge(&state, now)?.explain(&request))).await??;
    let answer = answer.map_err(|why| Problem::new(Code::NotUnderstood, why.to_string()))?;
    Ok(Json(ExplainResponse { revision: Some(revision), ..answer }))
}

/// How far back.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Since {
    /// Only flows that were seen within so many seconds; all that are remembered when nothing is said.
    since: Option<u64>,
}

/// Who has talked to whom, and which grants nobody has used.
#[utoipa::path(get, path = "/v1/flows", params(Since), responses((status = 200, body = FlowsResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn flows(
    Shared(admin): Shared<Arc<Admin>>,
    since: Result<Query<Since>, QueryRejection>,
) -> Result<Json<FlowsResponse>, Problem> {
    let control = admin.control()?;
    let now = control.clock.now();
    let since = query(since)?.since.map(|secs| now - Duration::from_secs(secs));
    let state = control.feed.current();
    let kept = state.domain().flow_retention.duration();
    let judge = off_thread(move || judge(&state, now)).await??;
    let flows = watch::flows(&*control.store, &judge, since).await?;
    let rests = flows.iter().flat_map(|flow| &flow.policies);
    let used: BTreeSet<&str> = rests.map(String::as_str).collect();
    let unused = judge.grants_beside(&used);
    let dropped = control.watch.flows.dropped();
    Ok(Json(FlowsResponse { flows, unused, dropped, kept_days: kept.as_secs() / 86_400 }))
}

/// What services are declared, and in what that differs from what is seen.
#[utoipa::path(get, path = "/v1/inventory", params(Since), responses((status = 200, body = InventoryResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn inventory(
    Shared(admin): Shared<Arc<Admin>>,
    since: Result<Query<Since>, QueryRejection>,
) -> Result<Json<InventoryResponse>, Problem> {
    let control = admin.control()?;
    let within = query(since)?.since.map_or(INVENTORY_OF, Duration::from_secs);
    Ok(Json(crate::inventory::inventory(control, within).await?))
}

/// How far back it is looked when nothing else is said: a quarter, as flows are kept.
const INVENTORY_OF: Duration = Duration::from_secs(90 * 86_400);

/// Whoever decides on the state in force, at this moment.
pub(crate) fn judge(state: &State, now: Timestamp) -> Result<Judge, Refused> {
    let resources: Vec<Resource> = state.resources().collect();
    let domain = &state.domain().trust_domain;
    // What is in force has compiled before.
    Judge::of(&resources, domain, now)
        .map_err(|problems| internal(problems.first().map(ToString::to_string).unwrap_or_default()))
}
