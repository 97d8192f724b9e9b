//! The routes that only show.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Shared};
use axum::http::header;
use axum::response::IntoResponse;
use countersign_api::admin::{
    EventView, EventsResponse, Handshake, HandshakesResponse, LIST_MAX, NodeView, NodesResponse,
    ProblemDetails, ResourceView, ResourcesResponse, Status,
};
use countersign_audit::Entry;
use countersign_identity::{Code, NodeId};
use countersign_store::StoredEvent;
use serde::Deserialize;

use crate::admin::problem::Problem;
use crate::admin::{Admin, Mode};
use crate::authority::internal;
use crate::publish::Presence;
use crate::watch;

/// What is shown when no limit is given.
const LIMIT: usize = 100;

/// A page of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// At most so many.
    limit: Option<usize>,
    /// Only what comes after this one.
    after: Option<u64>,
}

impl Page {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT).clamp(1, LIST_MAX)
    }
}

/// A page of the nodes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct NodesPage {
    /// At most so many.
    limit: Option<usize>,
    /// Only those after this id.
    #[param(value_type = Option<String>)]
    after: Option<NodeId>,
}

pub(crate) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    let query =
        query.map_err(|rejected| Problem::new(Code::NotUnderstood, rejected.body_text()))?;
    Ok(query.0)
}

/// Whether the process lives.
#[utoipa::path(get, path = "/live", responses((status = 200)))]
pub(crate) async fn live() -> &'static str {
    "live\n"
}

/// Whether the server serves agents; when it does not, the problem says why.
#[utoipa::path(get, path = "/ready", responses((status = 200), (status = "default", body = ProblemDetails)))]
pub(crate) async fn ready(Shared(admin): Shared<Arc<Admin>>) -> Result<&'static str, Problem> {
    let control = admin.control()?;
    if control.stop.is_cancelled() {
        return Err(Problem::new(Code::NotReady, "the server is stopping"));
    }
    control.desk.time.trusted(control.clock.now())?;
    control.pulse.beats()?;
    Ok("ready\n")
}

/// Who is alive, with which identity, until when.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = "default", body = ProblemDetails)))]
pub(crate) async fn status(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Status>, Problem> {
    let status = match &admin.mode {
        Mode::Sealed { why } => {
            watch::sealed_status(&admin.about, &*admin.store, &admin.log, why).await?
        }
        Mode::Serving { control, authorities, .. } => {
            watch::status(&admin.about, control, &admin.log, authorities).await?
        }
    };
    Ok(Json(status))
}

/// The resources in force.
#[utoipa::path(get, path = "/v1/resources", responses((status = 200, body = ResourcesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn resources(
    Shared(admin): Shared<Arc<Admin>>,
) -> Result<Json<ResourcesResponse>, Problem> {
    let state = admin.control()?.feed.current();
    let view = |resource: countersign_api::resource::Resource| ResourceView {
        kind: resource.kind(),
        spec: resource.spec.json(),
        name: resource.name,
    };
    let resources = state.resources().map(view).collect();
    Ok(Json(ResourcesResponse { revision: state.revision, resources }))
}

/// The trust bundle, as SPIFFE writes it.
#[utoipa::path(get, path = "/v1/bundle", responses((status = 200, description = "A SPIFFE bundle"), (status = "default", body = ProblemDetails)))]
pub(crate) async fn bundle(
    Shared(admin): Shared<Arc<Admin>>,
) -> Result<impl IntoResponse, Problem> {
    let state = admin.control()?.feed.current();
    let bundle = state.bundle(&state.domain().trust_domain);
    let bundle = bundle.ok_or_else(|| internal("the state holds no bundle"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bundle.to_json()))
}

/// The registered nodes.
#[utoipa::path(get, path = "/v1/nodes", params(NodesPage), responses((status = 200, body = NodesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn nodes(
    Shared(admin): Shared<Arc<Admin>>,
    page: Result<Query<NodesPage>, QueryRejection>,
) -> Result<Json<NodesResponse>, Problem> {
    let control = admin.control()?;
    let page = query(page)?;
    let limit = page.limit.unwrap_or(LIMIT).clamp(1, LIST_MAX);
    let presences = control.roster.snapshot();
    let rows = control.store.nodes(page.after, limit).await?;
    let next = if rows.len() < limit { None } else { rows.last().map(|row| row.id) };
    let view = |row: countersign_store::NodeRow| {
        let presence = presences.get(&row.id);
        let seen = presence.and_then(|presence| presence.seen);
        NodeView {
            id: row.id,
            spiffe_id: row.spiffe_id,
            host: row.host,
            labels: row.labels,
            generation: row.generation,
            attested_at: row.attested_at,
            seen_at: seen.map_or(row.seen_at, |seen| seen.max(row.seen_at)),
            connected: presence.is_some_and(Presence::connected),
        }
    };
    Ok(Json(NodesResponse { nodes: rows.into_iter().map(view).collect(), next }))
}

/// The latest handshakes that enforcement points reported, and the server's own, newest first.
#[utoipa::path(get, path = "/v1/handshakes", params(Page), responses((status = 200, body = HandshakesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn handshakes(
    Shared(admin): Shared<Arc<Admin>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<HandshakesResponse>, Problem> {
    let control = admin.control()?;
    let page = query(page)?;
    let facts = &control.watch.facts;
    let found = match page.after {
        Some(after) => facts.after(after, page.limit()),
        None => facts.latest(page.limit()),
    };
    let next = found.last().map(|fact| fact.index).or(page.after).unwrap_or(0);
    let view = |fact: watch::Fact| Handshake::from_wire(fact.index, fact.handshake).ok();
    let handshakes = found.into_iter().rev().filter_map(view).collect();
    Ok(Json(HandshakesResponse { handshakes, dropped: facts.totals().1, next }))
}

/// The audit log, oldest first.
#[utoipa::path(get, path = "/v1/events", params(Page), responses((status = 200, body = EventsResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn events(
    Shared(admin): Shared<Arc<Admin>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<EventsResponse>, Problem> {
    let control = admin.control()?;
    let page = query(page)?;
    let from = page.after.map_or(0, |after| after.saturating_add(1));
    let limit = page.limit();
    let stored = control.store.events(from, limit).await?;
    let next = if stored.len() < limit { None } else { stored.last().map(|event| event.index) };
    let events = stored.into_iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(EventsResponse { events, next }))
}

fn view(event: StoredEvent) -> Result<EventView, Problem> {
    let entry = Entry::parse(&event.leaf).map_err(internal)?;
    let details = event.details.and_then(|details| serde_json::from_slice(&details.json).ok());
    Ok(EventView {
        index: event.index,
        kind: entry.kind.as_str().to_owned(),
        at: entry.at,
        revision: entry.revision,
        actor: entry.actor,
        subject: entry.subject,
        serial: entry.serial,
        leaf: event.hash,
        // Trimmed details are nothing.
        details: details.unwrap_or_default(),
    })
}
