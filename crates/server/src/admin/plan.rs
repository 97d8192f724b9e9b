//! The route that tells what a change would do, and whom it would hit, before anything is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use countersign_api::admin::{
    Action, AppliedChange, ApplyRequest, FlowView, PlanResponse, PlannedChange, ProblemDetails,
    differences,
};
use countersign_api::resource::{Kind, Resource, Spec};
use countersign_identity::Name;
use serde_json::json;

use crate::admin::apply::{self, Beside, Plan, Unnamed, record_kind};
use crate::admin::approval;
use crate::admin::change::{off_thread, parse, problem, stale};
use crate::admin::history::last_touched;
use crate::admin::problem::Problem;
use crate::admin::{Admin, policy};
use crate::authority::internal;
use crate::control::Control;
use crate::judge::{Judge, of_flows};
use crate::refusal::Refused;
use crate::state::{Key, State};
use crate::watch;

/// How far back flows are looked at.
const FLOWS_OF: Duration = Duration::from_secs(24 * 60 * 60);

/// What a set of resources would change, and which of the flows of the last 24 hours that would newly deny or allow.
#[utoipa::path(
    post, path = "/v1/plan", request_body = ApplyRequest,
    responses((status = 200, body = PlanResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn plan(
    Shared(admin): Shared<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PlanResponse>, Problem> {
    let control = admin.control()?;
    let request: ApplyRequest = parse(body)?;
    let state = control.feed.current();
    Ok(Json(planned(control, &state, &request).await?))
}

/// What a request would change on this state, whom that would hit, and who has approved it.
pub(crate) async fn planned(
    control: &Arc<Control>,
    state: &Arc<State>,
    request: &ApplyRequest,
) -> Result<PlanResponse, Problem> {
    let ApplyRequest { resources, base, prune, dry_run: _ } = request.clone();
    if let Some(base) = base
        && base != state.revision
    {
        return Err(stale(base, state.revision));
    }
    let unnamed = if prune { Unnamed::Remove } else { Unnamed::Keep };
    let on = Arc::clone(state);
    let planned = off_thread(move || {
        let resources = apply::read(&resources)?;
        let named = resources.iter().map(|one| (one.kind(), one.name.clone())).collect();
        apply::put(&on, resources, unnamed).map(|plan| (plan, named))
    });
    let (plan, named): (Plan, BTreeSet<(Kind, Name)>) = planned.await?.map_err(problem)?;

    // The very code that decides about requests is asked about each flow, now and as it would be.
    let (on, would_be) = (Arc::clone(state), plan.resources.clone());
    let moment = control.clock.now();
    let judges = off_thread(move || {
        let domain = &on.domain().trust_domain;
        let then = Judge::of(&would_be, domain, moment).map_err(|problems| {
            internal(problems.first().map(ToString::to_string).unwrap_or_default())
        });
        Ok::<_, Refused>((policy::judge(&on, moment)?, then?))
    });
    let (now, then) = judges.await??;
    let since = moment - FLOWS_OF;
    let flows = watch::flows(&*control.store, &now, Some(since)).await?;
    let (mut newly_denied, mut newly_allowed) = (Vec::new(), Vec::new());
    for flow in merged(&flows) {
        match (now.lets_pass(&flow), then.lets_pass(&flow)) {
            (true, false) => newly_denied.push(flow),
            (false, true) => newly_allowed.push(flow),
            (true, true) | (false, false) => {}
        }
    }
    let keys = plan.shown.iter().map(key).collect();
    let last = last_touched(&*control.store, &keys).await?;
    let before: BTreeMap<Key, Resource> =
        state.resources().map(|one| (key_of(&one), one)).collect();
    let after: BTreeMap<Key, Resource> =
        plan.resources.iter().map(|one| (key_of(one), one.clone())).collect();
    let domain = &state.domain().trust_domain;
    let declared: Vec<Resource> = before.values().cloned().collect();
    let beside_before = Beside::of(&declared, domain);
    let beside_after = Beside::of(&plan.resources, domain);
    let changes = plan.shown.iter().map(|change| {
        let key = key(change);
        let fields = match (before.get(&key), after.get(&key)) {
            (Some(before), Some(after)) => differences(
                &with_others(before, &beside_before),
                &with_others(after, &beside_after),
            ),
            (_, _) => Vec::new(),
        };
        let AppliedChange { action, kind, name } = change.clone();
        PlannedChange { action, kind, name, fields, last: last.get(&key).cloned() }
    });
    let changes = changes.collect();
    let for_this = ApplyRequest { base: Some(state.revision), ..request.clone() };
    Ok(PlanResponse {
        base: Some(state.revision),
        changes,
        kept: kept(state, &plan, &named),
        newly_denied,
        newly_allowed,
        assumed: if flows.is_empty() { Vec::new() } else { of_flows(now.reads() | then.reads()) },
        consequences: consequences(&plan, &flows),
        approval: approval::standing(control, state, &for_this).await?,
    })
}

/// What a resource says; of a role also who is in it, which changes with the workloads as well, and of a service what its
/// TLS profile says.
fn with_others(resource: &Resource, beside: &Beside<'_>) -> serde_json::Value {
    let mut said = resource.spec.json();
    if let (Kind::Role, Some(record)) = (resource.kind(), beside.roles.get(&resource.name)) {
        said["members"] = record.members.iter().cloned().collect();
    }
    if let Spec::Service(service) = &resource.spec
        && let Some(profile) = beside.profile_of(service)
    {
        said["tlsProfile"] =
            json!({ "name": service.tls_profile.name.to_string(), "spec": profile });
    }
    said
}

/// One flow for all that differ only in what was decided about them.
fn merged(flows: &[FlowView]) -> Vec<FlowView> {
    let mut merged: BTreeMap<_, FlowView> = BTreeMap::new();
    for flow in flows {
        let asked = (flow.operation.clone(), flow.method.clone(), flow.path.clone());
        let key = (flow.source_id.clone(), flow.service.clone(), asked);
        let Some(known) = merged.get_mut(&key) else {
            merged.insert(key, flow.clone());
            continue;
        };
        let count = known.count.saturating_add(flow.count);
        let first_seen = known.first_seen.min(flow.first_seen);
        if known.last_seen < flow.last_seen {
            *known = flow.clone();
        }
        known.count = count;
        known.first_seen = first_seen;
    }
    merged.into_values().collect()
}

/// What is declared, not named by the manifests, and stays.
fn kept(state: &State, plan: &Plan, named: &BTreeSet<(Kind, Name)>) -> Vec<String> {
    let after: BTreeSet<Key> = plan.resources.iter().map(key_of).collect();
    let only = |one: &Resource| match one.kind() {
        // There is one, whatever it is named.
        Kind::TrustDomain | Kind::Authority => false,
        Kind::Workload | Kind::Service | Kind::Policy | Kind::Role | Kind::TlsProfile => {
            after.contains(&key_of(one)) && !named.contains(&(one.kind(), one.name.clone()))
        }
    };
    state.resources().filter(only).map(|one| one.label()).collect()
}

/// What goes with what is removed.
fn consequences(plan: &Plan, flows: &[FlowView]) -> Vec<String> {
    let mut said = Vec::new();
    for id in &plan.retired {
        let used =
            flows.iter().filter(|flow| flow.source_id == *id).map(|flow| flow.count).sum::<u64>();
        said.push(format!(
            "`{id}` is declared no more: what it holds is revoked with the same revision; it asked {used} times in the last 24 h"
        ));
    }
    let removed = plan.shown.iter().filter(|change| change.action == Action::Remove);
    for change in removed.filter(|change| change.kind == Kind::Service) {
        let asked = flows
            .iter()
            .filter(|flow| flow.service == change.name)
            .map(|flow| flow.count)
            .sum::<u64>();
        said.push(format!(
            "service `{}` closes its door; it was asked {asked} times in the last 24 h",
            change.name
        ));
    }
    said
}

fn key(change: &AppliedChange) -> Key {
    Key::new(record_kind(change.kind), change.name.as_str())
}

fn key_of(resource: &Resource) -> Key {
    Key::new(record_kind(resource.kind()), resource.name.as_str())
}
