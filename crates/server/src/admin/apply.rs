//! What a set of manifests would change, and whether it may. A pure decision on one snapshot.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use countersign_api::admin::{Action, AppliedChange};
use countersign_api::resource::{
    Kind, Local, PolicyRecord, PolicyScope, PolicySpec, Problem, Resource, RoleRecord, ScopeNames,
    ServiceSpec, Spec, TlsChoiceName, TlsProfileSpec, Tree, check_change, roles,
};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Name, SpiffeId, Timestamp, TrustDomain};
use countersign_policy::Names;
use countersign_store::{Batch, Change, Kind as RecordKind, Record};
use serde_json::Value;

use crate::judge::Judge;
use crate::revoke::retired;
use crate::state::{Key, Parsed, State};

/// A longer SPIFFE ID would not fit into the log's leaves.
const SPIFFE_ID_BYTES_MAX: usize = 512;
/// The longest value that the log keeps beside its leaf.
const VALUE_LOGGED_BYTES_MAX: usize = 8 * 1024;

/// What happens to resources that are not named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unnamed {
    /// They stay.
    Keep,
    /// They are removed. The trust domain's own stays in any case.
    Remove,
}

/// Why a set of manifests is not taken.
#[derive(Clone, Debug)]
pub(crate) struct Invalid {
    /// Whether it is policies alone that are wrong.
    pub(crate) code: Code,
    /// All of it.
    pub(crate) problems: Vec<Problem>,
}

/// What would change.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// For people.
    pub(crate) shown: Vec<AppliedChange>,
    /// For the store.
    pub(crate) changes: Vec<Change>,
    /// Whether it can take a right away.
    pub(crate) narrows: bool,
    /// All that would be declared.
    pub(crate) resources: Vec<Resource>,
    /// Identities that nothing declares any more: what they hold is revoked with the same revision.
    pub(crate) retired: Vec<SpiffeId>,
}

impl Plan {
    /// What commits exactly this plan, if the state is still the one that it was made on.
    ///
    /// `last_end` is the last end of anything that is out.
    pub(crate) fn batch(
        mut self,
        state: &State,
        actor: &str,
        last_end: Option<Timestamp>,
        now: Timestamp,
    ) -> Batch {
        self.changes.extend(retired(state, &self.retired, last_end, now));
        Batch {
            expected: Some(state.revision),
            narrows: self.narrows,
            events: events(&self, actor, now),
            changes: self.changes,
            ..Batch::default()
        }
    }
}

/// Everything that is declared, by kind and name.
type Declaration = BTreeMap<(Kind, Name), Resource>;

/// Reads manifests, and tells everything that is wrong with any of them.
pub(crate) fn read(manifests: &[Value]) -> Result<Vec<Resource>, Invalid> {
    let mut resources = Vec::with_capacity(manifests.len());
    let mut problems = Vec::new();
    let mut seen = HashSet::new();
    for manifest in manifests {
        match Resource::read(&Tree::from_value(manifest)) {
            Ok(resource) => {
                if !seen.insert((resource.kind(), resource.name.clone())) {
                    let message = "is declared more than once: keep one of them";
                    problems.push(Problem::about(resource.label(), "metadata.name", message));
                }
                resources.push(resource);
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(resources) } else { Err(invalid(problems)) }
}

fn invalid(problems: Vec<Problem>) -> Invalid {
    Invalid { code: Code::InvalidManifest, problems }
}

/// Decides what putting these resources in force would change.
///
/// # Errors
/// When the whole that would be in force breaks a rule; every broken one is told.
pub(crate) fn put(
    state: &State,
    resources: Vec<Resource>,
    unnamed: Unnamed,
) -> Result<Plan, Invalid> {
    let mut declared: Declaration = match unnamed {
        Unnamed::Keep => in_force(state),
        Unnamed::Remove => in_force(state)
            .into_iter()
            .filter(|((kind, _), _)| *kind == Kind::TrustDomain)
            .collect(),
    };
    for mut resource in resources {
        keep_ports(state, &mut resource);
        let of = resource.kind();
        if matches!(of, Kind::TrustDomain | Kind::Authority) {
            // There is one, whatever it is named.
            declared.retain(|(kind, _), _| *kind != of);
        }
        declared.insert((resource.kind(), resource.name.clone()), resource);
    }
    plan(state, declared)
}

/// A free port is the one that it is: port 0 stands for the port in force, where there is one, so that manifests which
/// `up` was given differ in nothing from what it made of them.
fn keep_ports(state: &State, resource: &mut Resource) {
    let Spec::Service(new) = &mut resource.spec else { return };
    let key = Key::new(RecordKind::Service, resource.name.as_str());
    let Some(Parsed::Service { spec: before, .. }) = state.records.get(&key).map(|at| &at.parsed)
    else {
        return;
    };
    let free = |new: SocketAddr, before: SocketAddr| new.port() == 0 && new.ip() == before.ip();
    let same = |new: &Local, before: &Local| match (new, before) {
        (Local::Tcp(new), Local::Tcp(before)) => free(new.socket_addr(), before.socket_addr()),
        (Local::Tcp(_) | Local::Unix | Local::UnixAt(_), _) => false,
    };
    if let (Some(door), Some(before)) = (&mut new.listen, &before.listen)
        && free(door.0, before.0)
    {
        *door = *before;
    }
    if let (Some(forward), Some(before)) = (&mut new.forward, &before.forward)
        && same(forward, before)
    {
        *forward = before.clone();
    }
    for upstream in &mut new.upstreams {
        let known = before.upstreams.iter().find(|known| known.service == upstream.service);
        if let Some(known) = known.filter(|known| same(&upstream.local, &known.local)) {
            upstream.local = known.local.clone();
        }
    }
}

/// Decides what removing one resource would change; `None` when there is no such resource.
///
/// # Errors
/// When what is left would break a rule.
pub(crate) fn remove(state: &State, kind: Kind, name: &Name) -> Result<Option<Plan>, Invalid> {
    let mut declared = in_force(state);
    if declared.remove(&(kind, name.clone())).is_none() {
        return Ok(None);
    }
    if kind == Kind::TrustDomain {
        let message = "the trust domain's own resource cannot be removed";
        return Err(invalid(vec![Problem::about(format!("{kind}/{name}"), "", message)]));
    }
    plan(state, declared).map(Some)
}

fn in_force(state: &State) -> Declaration {
    state.resources().map(|resource| ((resource.kind(), resource.name.clone()), resource)).collect()
}

fn plan(state: &State, declared: Declaration) -> Result<Plan, Invalid> {
    let resources: Vec<Resource> = declared.into_values().collect();
    let mut problems = long_ids(state, &resources);
    let before = in_force(state);
    let stays = |one: &Resource| before.get(&(one.kind(), one.name.clone())) == Some(one);
    if let Err(found) = check_change(&resources, Some(&state.domain().trust_domain), &stays) {
        problems.extend(found);
    }
    if !problems.is_empty() {
        // Policies are looked at as well, so that all problems are told at once.
        problems.extend(policy_problems(&resources));
        return Err(invalid(problems));
    }
    let policies = policy_problems(&resources);
    if !policies.is_empty() {
        return Err(Invalid { code: Code::InvalidPolicy, problems: policies });
    }
    Ok(Plan { resources: resources.clone(), ..difference(state, &resources) })
}

fn long_ids(state: &State, resources: &[Resource]) -> Vec<Problem> {
    let domain = &state.domain().trust_domain;
    let long = |resource: &Resource| {
        let Spec::Workload(spec) = &resource.spec else { return None };
        let bytes = spec.spiffe_id_in(&resource.name, domain).as_str().len();
        (SPIFFE_ID_BYTES_MAX < bytes).then(|| {
            let message = format!(
                "has {bytes} bytes, over the limit of {SPIFFE_ID_BYTES_MAX}: shorten its path"
            );
            Problem::about(resource.label(), "spec.spiffeId", message)
        })
    };
    resources.iter().filter_map(long).collect()
}

fn policy_problems(resources: &[Resource]) -> Vec<Problem> {
    let Err(problems) = Judge::compile(resources) else { return Vec::new() };
    let problem = |problem: countersign_policy::Problem| {
        let name =
            problem.policy.as_ref().map_or("Policy".to_owned(), |name| format!("Policy/{name}"));
        let message =
            format!("line {}, column {}: {}", problem.line, problem.column, problem.message);
        Problem::about(name, "spec.cedar", message)
    };
    problems.into_iter().map(problem).collect()
}

fn difference(state: &State, resources: &[Resource]) -> Plan {
    let retired = no_longer_declared(state, resources);
    let (shown, changes, narrows) = (Vec::new(), Vec::new(), false);
    let mut plan = Plan { shown, changes, narrows, resources: Vec::new(), retired };
    let mut kept = HashSet::with_capacity(resources.len());
    let beside = Beside::of(resources, &state.domain().trust_domain);
    for resource in resources {
        let kind = record_kind(resource.kind());
        let key = Key::new(kind, resource.name.as_str());
        let before = state.records.get(&key);
        kept.insert(key);
        let value = record_value(resource, &beside);
        if before.is_some_and(|before| before.wire.value == value) {
            continue;
        }
        let action = if before.is_some() { Action::Update } else { Action::Create };
        plan.narrows |= action == Action::Update || !is_harmless_when_new(resource.kind());
        let name = resource.name.clone();
        plan.changes.push(Change::Put(Record { kind, name: name.to_string(), value }));
        plan.shown.push(AppliedChange { action, kind: resource.kind(), name });
    }
    for resource in state.resources() {
        let kind = record_kind(resource.kind());
        if kept.contains(&Key::new(kind, resource.name.as_str())) {
            continue;
        }
        plan.narrows = true;
        plan.changes.push(Change::Remove { kind, name: resource.name.to_string() });
        let (kind, name) = (resource.kind(), resource.name);
        plan.shown.push(AppliedChange { action: Action::Remove, kind, name });
    }
    plan
}

/// The identities in force that none of these resources declares.
fn no_longer_declared(state: &State, resources: &[Resource]) -> Vec<SpiffeId> {
    let domain = &state.domain().trust_domain;
    let declares = |resource: &Resource| match &resource.spec {
        Spec::Workload(spec) => Some(spec.spiffe_id_in(&resource.name, domain)),
        Spec::TrustDomain(_)
        | Spec::Authority(_)
        | Spec::Service(_)
        | Spec::Policy(_)
        | Spec::Role(_)
        | Spec::TlsProfile(_) => None,
    };
    let declared: HashSet<SpiffeId> = resources.iter().filter_map(declares).collect();
    let before = state.workloads().map(|(name, spec)| spec.spiffe_id_in(name, domain));
    before.filter(|id| !declared.contains(id)).collect()
}

/// Whether a new resource of the kind can only add rights. A new policy may forbid, and a role be spoken of by one.
fn is_harmless_when_new(kind: Kind) -> bool {
    match kind {
        Kind::Workload | Kind::Service | Kind::TlsProfile => true,
        Kind::Policy | Kind::Role | Kind::TrustDomain | Kind::Authority => false,
    }
}

pub(crate) fn record_kind(kind: Kind) -> RecordKind {
    match kind {
        Kind::TrustDomain => RecordKind::TrustDomain,
        Kind::Authority => RecordKind::Authority,
        Kind::Workload => RecordKind::Workload,
        Kind::Service => RecordKind::Service,
        Kind::Policy => RecordKind::Policy,
        Kind::Role => RecordKind::Role,
        Kind::TlsProfile => RecordKind::TlsProfile,
    }
}

/// What records of resources say of others.
pub(crate) struct Beside<'a> {
    /// Who is in each role.
    pub(crate) roles: BTreeMap<&'a Name, RoleRecord>,
    profiles: BTreeMap<&'a Name, &'a TlsProfileSpec>,
}

impl<'a> Beside<'a> {
    pub(crate) fn of(resources: &'a [Resource], domain: &TrustDomain) -> Self {
        let profile = |resource: &'a Resource| match &resource.spec {
            Spec::TlsProfile(spec) => Some((&resource.name, spec)),
            Spec::TrustDomain(_)
            | Spec::Authority(_)
            | Spec::Workload(_)
            | Spec::Service(_)
            | Spec::Policy(_)
            | Spec::Role(_) => None,
        };
        let profiles = resources.iter().filter_map(profile).collect();
        Self { roles: roles(resources, domain), profiles }
    }

    /// What the manifest says whose TLS profile the service names; nothing for the profiles that need none.
    pub(crate) fn profile_of(&self, service: &ServiceSpec) -> Option<&'a TlsProfileSpec> {
        match &service.tls_profile.name {
            TlsChoiceName::Known(_) => None,
            TlsChoiceName::Manifest(name) => self.profiles.get(name).copied(),
        }
    }
}

/// What the store keeps of a resource: its canonical JSON; of a policy also whom it speaks of, of a role who is in it, of a
/// service what its TLS profile says.
fn record_value(resource: &Resource, beside: &Beside<'_>) -> Vec<u8> {
    if let (Spec::Role(_), Some(record)) = (&resource.spec, beside.roles.get(&resource.name)) {
        return record.encode();
    }
    if let Spec::Service(spec) = &resource.spec {
        let mut spec = spec.clone();
        spec.tls_profile.spec = beside.profile_of(&spec).cloned().map(Box::new);
        return Spec::Service(spec).encode();
    }
    let Spec::Policy(spec) = &resource.spec else { return resource.spec.encode() };
    let scopes = countersign_policy::scope(spec.cedar.as_str()).unwrap_or_default();
    let names = |names: Names| match names {
        Names::Any => ScopeNames::Any,
        Names::Only(names) => ScopeNames::Only(names.into_iter().collect()),
        Names::Role(role) => ScopeNames::Role(role),
        Names::Dataset(name) => ScopeNames::Dataset(name),
    };
    let scopes = scopes.into_iter().map(|scope| PolicyScope {
        principals: names(scope.principals),
        resources: names(scope.resources),
        workloads: scope.workloads,
        services: scope.services,
        roles: scope.roles,
        labels: scope.labels,
        data_sets: scope.data_sets,
        classifications: scope.classifications,
    });
    let PolicySpec { cedar, mode, until, reason } = spec.clone();
    PolicyRecord { cedar, mode, until, reason, scopes: scopes.collect() }.encode()
}

/// What the log says of a plan: one event for each record.
fn events(plan: &Plan, actor: &str, now: Timestamp) -> Vec<Event> {
    let event = |change: &Change| match change {
        Change::Put(record) => {
            let subject = format!("{}/{}", record.kind, record.name);
            let digest = crate::digest::sha256(&record.value);
            let mut details = serde_json::json!({ "sha256": digest });
            if record.value.len() <= VALUE_LOGGED_BYTES_MAX {
                details["value"] = without_secrets(&record.value);
            }
            Event::new(EventKind::RecordPut, now, actor, subject).with_details(details)
        }
        Change::Remove { kind, name } => {
            Event::new(EventKind::RecordRemoved, now, actor, format!("{kind}/{name}"))
        }
    };
    plan.changes.iter().map(event).collect()
}

/// What a record says, for the log: variables of programs may hold secrets, which do not belong there.
fn without_secrets(value: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(value).unwrap_or_default();
    if let Some(environment) = value.get_mut("environment").and_then(Value::as_object_mut) {
        environment.values_mut().for_each(|value| *value = "(not logged)".into());
    }
    value
}
