//! The routes that only show.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Shared};
use axum::http::header;
use axum::response::IntoResponse;
use countersign_api::admin::{
    EventView, EventsResponse, Handshake, HandshakeBy, HandshakeFilter, HandshakeHistory,
    HandshakesResponse, LIST_MAX, NodeView, NodesResponse, Outcome, ProblemDetails, ResourceView,
    ResourcesResponse, Status,
};
use countersign_audit::{Entry, EventKind, UnknownEventKind};
use countersign_identity::{Code, NodeId, Revision, Serial, Timestamp};
use countersign_store::{PAGE_MAX, StoredEvent, TallyOf};
use serde::Deserialize;

use crate::admin::problem::Problem;
use crate::admin::{Admin, Mode, history};
use crate::authority::internal;
use crate::log::LogReader;
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

/// Whether the server serves agents; when it does not, the problem says why. One whose journal lacks rules says so and stays
/// ready: agents that it turned away would not hear of the rules either.
#[utoipa::path(get, path = "/ready", responses((status = 200), (status = "default", body = ProblemDetails)))]
pub(crate) async fn ready(Shared(admin): Shared<Arc<Admin>>) -> Result<String, Problem> {
    let control = admin.control()?;
    if control.stop.is_cancelled() {
        return Err(Problem::new(Code::NotReady, "the server is stopping"));
    }
    control.desk.now().await?;
    control.pulse.beats()?;
    let warning = control.journal.as_ref().and_then(|journal| journal.warning());
    let warning = warning.map(|warning| format!("warning: {warning}\n"));
    Ok(format!("ready\n{}", warning.unwrap_or_default()))
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

/// Which state.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct At {
    /// The one of this revision; the one in force when nothing is said.
    #[param(value_type = Option<String>)]
    revision: Option<Revision>,
}

/// The resources in force, or those of an earlier revision.
#[utoipa::path(get, path = "/v1/resources", params(At), responses((status = 200, body = ResourcesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn resources(
    Shared(admin): Shared<Arc<Admin>>,
    at: Result<Query<At>, QueryRejection>,
) -> Result<Json<ResourcesResponse>, Problem> {
    let control = admin.control()?;
    let state = control.feed.current();
    let revision = query(at)?.revision.unwrap_or(state.revision);
    let declared = history::declared_at(&*control.store, &state, revision).await?;
    let view = |resource: countersign_api::resource::Resource| ResourceView {
        kind: resource.kind(),
        spec: resource.spec.json(),
        name: resource.name,
    };
    let resources = declared.into_iter().map(view).collect();
    Ok(Json(ResourcesResponse { revision, resources }))
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
            attested_by: row.attested_by,
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

/// Which stored handshakes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryPage {
    /// At most so many.
    limit: Option<usize>,
    /// But for so many of the newest.
    skip: Option<usize>,
    /// Dialled by this one: a workload's name or a SPIFFE ID; with a `*` at the end, any that begins so.
    from: Option<String>,
    /// To this one, likewise.
    to: Option<String>,
    /// At this service's door, dialling it, or seen by this enforcement point.
    at: Option<String>,
    /// With this outcome.
    outcome: Option<Outcome>,
    /// Refused for this reason.
    #[param(value_type = Option<String>)]
    reason: Option<Code>,
    /// With this version of TLS.
    version: Option<String>,
    /// With this group of the key exchange.
    group: Option<String>,
    /// With this cipher suite.
    suite: Option<String>,
    /// At this time or later; an hour ago when nothing is said.
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
    /// Before this time.
    #[param(value_type = Option<String>)]
    until: Option<Timestamp>,
    /// Counted together by what they have in common, as well.
    by: Option<HandshakeBy>,
}

impl HistoryPage {
    fn filter(self) -> HandshakeFilter {
        HandshakeFilter {
            from: self.from,
            to: self.to,
            at: self.at,
            outcome: self.outcome,
            reason: self.reason,
            version: self.version,
            group: self.group,
            suite: self.suite,
            since: self.since,
            until: self.until,
            by: self.by,
        }
    }
}

/// Stored entries that one answer looks through.
const ENTRIES_MAX: usize = 1_000_000;

/// Stored handshakes, newest first: those alike and of one minute together.
#[utoipa::path(get, path = "/v1/handshakes/history", params(HistoryPage), responses((status = 200, body = HandshakeHistory), (status = "default", body = ProblemDetails)))]
pub(crate) async fn handshake_history(
    Shared(admin): Shared<Arc<Admin>>,
    page: Result<Query<HistoryPage>, QueryRejection>,
) -> Result<Json<HandshakeHistory>, Problem> {
    let control = admin.control()?;
    let page = query(page)?;
    let (limit, skip) = (page.limit.unwrap_or(LIMIT), page.skip.unwrap_or(0));
    let filter = page.filter();
    let sought = watch::Sought::of(&filter, &control.feed.current(), control.clock.now());
    let wanted =
        watch::Wanted { skip, limit: limit.clamp(1, LIST_MAX), looked_at_max: ENTRIES_MAX };
    let found = watch::search(&*control.store, &sought, wanted).await?;
    Ok(Json(HandshakeHistory {
        since: found.since,
        until: found.until,
        whole: found.whole,
        handshakes: found.entries,
        entries: found.total,
        groups: found.groups,
        dropped: control.watch.tallies.dropped(TallyOf::Handshakes),
    }))
}

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsPage {
    /// At most so many.
    limit: Option<usize>,
    /// Only those after this index.
    after: Option<u64>,
    /// Of this kind.
    kind: Option<String>,
    /// About this subject, or with a `*` at the end about any that begins so.
    subject: Option<String>,
    /// By this actor, or with a `*` at the end by any that begins so.
    actor: Option<String>,
    /// About the certificate with this serial.
    #[param(value_type = Option<String>)]
    serial: Option<Serial>,
    /// At this time or later.
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
    /// Before this time.
    #[param(value_type = Option<String>)]
    until: Option<Timestamp>,
    /// In the log of this incarnation; the present one when none is named.
    incarnation: Option<u64>,
}

/// Events that one answer looks through. When there are more, the answer says where to go on.
const LOOKED_THROUGH_MAX: u64 = 20_000;
/// How far apart the clocks of servers may be that append to one log.
const APART: Duration = Duration::from_secs(60);

/// What is looked for.
struct Sought {
    kind: Option<EventKind>,
    page: EventsPage,
}

impl Sought {
    fn of(page: EventsPage) -> Result<Self, Problem> {
        let bad = |bad: UnknownEventKind| Problem::new(Code::NotUnderstood, bad.to_string());
        let kind = page.kind.as_deref().map(str::parse).transpose().map_err(bad)?;
        Ok(Self { kind, page })
    }

    fn fits(&self, entry: &Entry) -> bool {
        let Self { kind, page } = self;
        kind.is_none_or(|kind| entry.kind == kind)
            && page.subject.as_ref().is_none_or(|sought| is_like(&entry.subject, sought))
            && page.actor.as_ref().is_none_or(|sought| is_like(&entry.actor, sought))
            && page.serial.is_none_or(|serial| entry.serial == Some(serial))
            && page.since.is_none_or(|since| since <= entry.at)
            && page.until.is_none_or(|until| entry.at < until)
    }
}

/// Whether a text is the one that is sought, or begins with it.
fn is_like(text: &str, sought: &str) -> bool {
    match sought.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => text == sought,
    }
}

/// The audit log, oldest first.
#[utoipa::path(get, path = "/v1/events", params(EventsPage), responses((status = 200, body = EventsResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn events(
    Shared(admin): Shared<Arc<Admin>>,
    page: Result<Query<EventsPage>, QueryRejection>,
) -> Result<Json<EventsResponse>, Problem> {
    let control = admin.control()?;
    let sought = Sought::of(query(page)?)?;
    let EventsPage { limit, after, since, incarnation, .. } = sought.page;
    let limit = limit.unwrap_or(LIMIT).clamp(1, LIST_MAX);
    let (log, head) = LogReader::of(&*control.store, incarnation).await?;
    let mut from = after.map_or(0, |after| after.saturating_add(1));
    if let Some(since) = since {
        from = from.max(log.first_since(log.size(&head).await?, since - APART).await?);
    }
    let end = from.saturating_add(LOOKED_THROUGH_MAX);
    let mut events = Vec::new();
    while from < end {
        let page = log.events(from, PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        for event in page {
            from = event.index.saturating_add(1);
            let entry = Entry::parse(&event.leaf).map_err(internal)?;
            if sought.fits(&entry) {
                events.push(view(event, entry));
            }
            if limit <= events.len() {
                return Ok(Json(EventsResponse { events, next: Some(from - 1) }));
            }
        }
        if last {
            return Ok(Json(EventsResponse { events, next: None }));
        }
    }
    Ok(Json(EventsResponse { events, next: Some(from - 1) }))
}

fn view(event: StoredEvent, entry: Entry) -> EventView {
    let details = event.details.and_then(|details| serde_json::from_slice(&details.json).ok());
    EventView {
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
    }
}
