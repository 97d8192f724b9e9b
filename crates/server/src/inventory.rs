//! The inventory compared with what is seen: endpoints that nobody declared, declared ones that nobody serves, and plain text where
//! there should be none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use countersign_api::admin::{
    Finding, FindingKind, FlowView, InventoryResponse, OperationView, ServiceView,
};
use countersign_api::resource::{
    Classification, Kind, MutualTls, OperationSpec, Resource, ServiceSpec, Spec,
};
use countersign_identity::{Name, SpiffeId, Timestamp};

use crate::authority::internal;
use crate::control::Control;
use crate::judge::Judge;
use crate::refusal::Refused;
use crate::state::State;
use crate::watch;

/// How far back it is looked for the status.
const STATUS_OF: Duration = Duration::from_secs(24 * 60 * 60);
/// Differences that are told at most.
const FINDINGS_MAX: usize = 1000;
/// Who asked for something undeclared: names that are told.
const SOURCES_MAX: usize = 20;

/// How many differences of each kind there were when it was last looked.
#[derive(Debug, Default)]
pub(crate) struct Differences(Mutex<BTreeMap<FindingKind, usize>>);

impl Differences {
    /// A sentence, when there are any.
    pub(crate) fn warning(&self) -> Option<String> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<_> =
            counts.iter().map(|(kind, count)| format!("{count} {}", kind.as_str())).collect();
        (!told.is_empty()).then(|| {
            format!(
                "the inventory differs from what is seen: {}; look at `countersign inventory`",
                told.join(", ")
            )
        })
    }
}

/// Looks again, for the status, which waits for no store.
pub(crate) async fn look(control: &Control) -> Result<(), Refused> {
    let mut counts = BTreeMap::new();
    for finding in inventory(control, STATUS_OF).await?.findings {
        *counts.entry(finding.kind).or_insert(0) += 1;
    }
    *control.watch.differences.0.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    Ok(())
}

/// What is declared, and in what it differs from what was seen within this time.
pub(crate) async fn inventory(
    control: &Control,
    within: Duration,
) -> Result<InventoryResponse, Refused> {
    let now = control.clock.now();
    let since = now - within;
    let state = control.feed.current();
    // For the names of those who asked, no policy has to be compiled.
    let named: Vec<Resource> = state.resources().filter(|one| one.kind() != Kind::Policy).collect();
    let judge = Judge::of(&named, &state.domain().trust_domain, now).map_err(|problems| {
        internal(problems.first().map(ToString::to_string).unwrap_or_default())
    })?;
    let flows = watch::flows(&*control.store, &judge, Some(since)).await?;
    Ok(compare(&state, &Seen { flows, live: control.roster.live() }, since))
}

/// What is seen.
struct Seen {
    flows: Vec<FlowView>,
    /// The identities whose enforcement points are live.
    live: BTreeSet<SpiffeId>,
}

fn compare(state: &State, seen: &Seen, since: Timestamp) -> InventoryResponse {
    let service = |one: Resource| match one.spec {
        Spec::Service(spec) => Some((one.name, spec)),
        Spec::TrustDomain(_)
        | Spec::Authority(_)
        | Spec::Workload(_)
        | Spec::Policy(_)
        | Spec::Role(_)
        | Spec::TlsProfile(_) => None,
    };
    let services: BTreeMap<Name, ServiceSpec> = state.resources().filter_map(service).collect();
    let views: Vec<ServiceView> =
        services.iter().map(|(name, spec)| view(state, name, spec, seen)).collect();
    let mut findings = undeclared(&services, &seen.flows);
    for (view, spec) in views.iter().zip(services.values()) {
        findings.extend(unserved(view));
        findings.extend(plain(&view.service, spec));
    }
    findings.sort_by(|a, b| (a.kind, &a.service, &a.what).cmp(&(b.kind, &b.service, &b.what)));
    findings.truncate(FINDINGS_MAX);
    InventoryResponse { revision: state.revision, since, services: views, findings }
}

fn view(state: &State, name: &Name, spec: &ServiceSpec, seen: &Seen) -> ServiceView {
    let of: Vec<&FlowView> = seen.flows.iter().filter(|flow| flow.service == *name).collect();
    let operation = |one: &OperationSpec| OperationView {
        operation: one.name.clone(),
        what: format!("{} {}", one.method, one.path),
        data_sets: one.data_sets.clone(),
        last_seen: of
            .iter()
            .filter(|flow| flow.operation.as_ref() == Some(&one.name))
            .map(|flow| flow.last_seen)
            .max(),
    };
    let domain = &state.domain().trust_domain;
    let id = state
        .workload(spec.workload.as_str())
        .map(|(_, it)| it.spiffe_id_in(&spec.workload, domain));
    ServiceView {
        service: name.clone(),
        workload: spec.workload.clone(),
        protocol: spec.protocol.to_string(),
        addresses: spec.dial_addresses().iter().map(ToString::to_string).collect(),
        mutual_tls: spec.mutual_tls.to_string(),
        tls_profile: spec.tls_profile.name.to_string(),
        classification: spec
            .data_sets
            .iter()
            .map(|one| one.classification)
            .max()
            .map(|strictest| strictest.to_string()),
        served: id.is_some_and(|id| seen.live.contains(&id)),
        last_seen: of.iter().map(|flow| flow.last_seen).max(),
        operations: spec.operations.iter().map(operation).collect(),
    }
}

/// What was asked for that no manifest declares: a service, or something of one that declares its operations.
fn undeclared(services: &BTreeMap<Name, ServiceSpec>, flows: &[FlowView]) -> Vec<Finding> {
    let mut found: BTreeMap<(Name, Option<String>), Vec<&FlowView>> = BTreeMap::new();
    for flow in flows {
        let what = match services.get(&flow.service) {
            None => None,
            Some(spec) if spec.operations.is_empty() || flow.operation.is_some() => continue,
            Some(_) => match &flow.method {
                Some(method) => Some(method.clone()),
                None => continue,
            },
        };
        found.entry((flow.service.clone(), what)).or_default().push(flow);
    }
    let finding = |((service, method), flows): ((Name, Option<String>), Vec<&FlowView>)| {
        let what = match method {
            None => {
                format!("service `{service}` is asked for, and no manifest declares it any more")
            }
            Some(method) => format!(
                "`{method}` is asked for on paths that no operation declares: declare the operation, or see who asks"
            ),
        };
        let sources: BTreeSet<String> = flows.iter().map(|flow| flow.source.clone()).collect();
        Finding {
            kind: FindingKind::Undeclared,
            service,
            what,
            sources: sources.into_iter().take(SOURCES_MAX).collect(),
            count: flows.iter().fold(0, |sum, flow| sum.saturating_add(flow.count)),
            last_seen: flows.iter().map(|flow| flow.last_seen).max(),
        }
    };
    found.into_iter().map(finding).collect()
}

/// A door that is declared and behind which nobody stands.
fn unserved(view: &ServiceView) -> Option<Finding> {
    if view.served || view.addresses.is_empty() {
        return None;
    }
    let what = match view.last_seen {
        Some(_) => "no live enforcement point of its workload serves it now".to_owned(),
        None => {
            "no live enforcement point of its workload serves it, and nobody has asked for it: remove it, or start it".to_owned()
        }
    };
    let (kind, service) = (FindingKind::Unserved, view.service.clone());
    let (sources, last_seen) = (Vec::new(), view.last_seen);
    Some(Finding { kind, service, what, sources, count: 0, last_seen })
}

/// A program that is reached without a door, and should not be.
fn plain(service: &Name, spec: &ServiceSpec) -> Option<Finding> {
    let what = match (spec.mutual_tls, &spec.listen, &spec.forward) {
        (MutualTls::Required, None, Some(forward)) => format!(
            "its program listens on `{forward}` and has no door for mutual TLS: give it `listen`, or say `mutualTls: none`"
        ),
        (MutualTls::None, _, _) => {
            let guarded =
                spec.data_sets.iter().filter(|one| one.classification != Classification::Public);
            let guarded: Vec<_> =
                guarded.map(|one| format!("`{}` ({})", one.name, one.classification)).collect();
            if guarded.is_empty() {
                return None;
            }
            format!("it is spoken to in plain text, and hands out {}", guarded.join(", "))
        }
        (MutualTls::Required, _, _) => return None,
    };
    let (kind, service) = (FindingKind::Plain, service.clone());
    Some(Finding { kind, service, what, sources: Vec::new(), count: 0, last_seen: None })
}
