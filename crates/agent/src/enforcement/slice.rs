//! What one caller's services need of the state, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_api::resource::{Local, PolicyScope, ServiceSpec, Spec};
use countersign_api::v1;
use countersign_identity::Name;

use crate::core::{PolicyEntry, RecordKind, Replica, Workload};

/// Cuts the slice of a caller that is these workloads, the first of them its own name.
pub fn cut(replica: &Replica, workloads: &[Arc<Workload>]) -> v1::Slice {
    let Some(own) = workloads.first() else { return v1::Slice::default() };
    let scope = Interest::of(replica, workloads);
    let policies: Vec<_> = replica
        .policies()
        .iter()
        .filter(|(_, entry)| scope.is_concerned(entry))
        .map(|(name, entry)| (Arc::clone(name), Arc::clone(entry)))
        .collect();
    let data = match scopes(&policies).any(PolicyScope::speaks_of_data) {
        true => Data::Asked,
        false => Data::Unasked,
    };
    v1::Slice {
        revision: Some(replica.revision().into()),
        workload: own.name.to_string(),
        spiffe_id: own.id.to_string(),
        bundles: replica.bundles().values().map(|bundle| bundle_of(bundle)).collect(),
        workloads: named(replica, &scope, &policies),
        revocations: replica.rule_records(),
        services: scope
            .own
            .iter()
            .chain(scope.called.iter().filter(|(name, _)| !scope.own.contains_key(*name)))
            .map(|(name, spec)| service_of(name, spec, &scope, data))
            .collect(),
        roles: roles(replica, &scope, &policies),
        policies: policies
            .iter()
            .map(|(name, entry)| v1::Record {
                kind: RecordKind::Policy.to_string(),
                name: name.to_string(),
                value: entry.value.to_vec().into(),
            })
            .collect(),
    }
}

/// What a point is told whose caller's SVIDs the server withdrew: nothing is allowed, so nothing is let in or out any more,
/// and all that lives ends, for that reason. The rules stay, so that nothing is lifted by it.
pub fn withdrawn(replica: &Replica, own: &Workload) -> v1::Slice {
    v1::Slice {
        revision: Some(replica.revision().into()),
        workload: own.name.to_string(),
        spiffe_id: own.id.to_string(),
        bundles: replica.bundles().values().map(|bundle| bundle_of(bundle)).collect(),
        revocations: replica.rule_records(),
        ..v1::Slice::default()
    }
}

/// Whose services, and which services they call.
struct Interest<'a> {
    replica: &'a Replica,
    workloads: &'a [Arc<Workload>],
    own: BTreeMap<&'a Name, &'a Arc<ServiceSpec>>,
    called: BTreeMap<&'a Name, &'a Arc<ServiceSpec>>,
}

impl<'a> Interest<'a> {
    fn of(replica: &'a Replica, workloads: &'a [Arc<Workload>]) -> Self {
        let mine = |spec: &ServiceSpec| workloads.iter().any(|one| one.name == spec.workload);
        let own: BTreeMap<_, _> =
            replica.services().iter().filter(|(_, spec)| mine(spec)).collect();
        let called = own
            .values()
            .flat_map(|spec| &spec.upstreams)
            .filter_map(|upstream| replica.services().get_key_value(&upstream.service))
            .collect();
        Self { replica, workloads, own, called }
    }

    /// Whether a policy can decide about a connection of the caller's: to its own services, or from it to those it calls.
    fn is_concerned(&self, entry: &PolicyEntry) -> bool {
        let Some(record) = &entry.record else { return true };
        record.scopes.iter().any(|scope| {
            self.is_inbound(scope) || (self.is_principal(scope) && self.calls_one_of(scope))
        })
    }

    fn is_inbound(&self, scope: &PolicyScope) -> bool {
        self.own.iter().any(|(name, spec)| scope.is_about(name.as_str(), spec))
    }

    fn is_principal(&self, scope: &PolicyScope) -> bool {
        self.workloads.iter().any(|one| {
            let words = [one.name.as_str(), one.id.as_str()];
            // Who is in a role that nobody has told of is not known to be in none.
            let is_in = |word: &str, role: &str| {
                self.replica.role(role).is_none_or(|members| members.contains(word))
            };
            words.into_iter().any(|word| scope.admits(word, |role| is_in(word, role)))
        })
    }

    fn calls_one_of(&self, scope: &PolicyScope) -> bool {
        self.called.iter().any(|(name, spec)| scope.is_about(name.as_str(), spec))
    }
}

fn bundle_of(bundle: &countersign_pki::Bundle) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: bundle.domain.to_string(),
        authorities: bundle.authorities.iter().map(|one| one.der().to_vec().into()).collect(),
    }
}

/// The workloads whose names the caller's policies and upstreams speak of, and its own.
fn named(
    replica: &Replica,
    scope: &Interest<'_>,
    policies: &[(Arc<str>, Arc<PolicyEntry>)],
) -> Vec<v1::NamedWorkload> {
    let mut names: BTreeSet<&str> =
        scope.workloads.iter().map(|workload| workload.name.as_str()).collect();
    names.extend(scope.called.values().map(|spec| spec.workload.as_str()));
    let mut labels_read = false;
    for policy in scopes(policies) {
        names.extend(policy.workloads.iter().map(String::as_str));
        labels_read |= policy.labels;
        if scope.is_inbound(policy) {
            let members = policy.roles.iter().filter_map(|role| replica.role(role)).flatten();
            names.extend(members.map(String::as_str));
        }
        // Whoever has a label may be let in, or kept out, by it.
        if scope.is_inbound(policy) && policy.labels {
            let labelled =
                replica.workloads().iter().filter(|(_, workload)| !workload.spec.labels.is_empty());
            names.extend(labelled.map(|(name, _)| name.as_str()));
        }
    }
    let labels = |workload: &Workload| match labels_read {
        true => workload.spec.labels.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    };
    names
        .into_iter()
        .filter_map(|name| replica.workloads().get(&name.parse::<Name>().ok()?))
        .map(|workload| v1::NamedWorkload {
            name: workload.name.to_string(),
            spiffe_id: workload.id.to_string(),
            labels: labels(workload),
        })
        .collect()
}

/// Every role that the policies name, with those of its members whom the caller can meet, or of whom a policy asks by name. One that nobody has told of is
/// left out: whoever enforces then sees that it cannot be decided who is in it.
fn roles(
    replica: &Replica,
    scope: &Interest<'_>,
    policies: &[(Arc<str>, Arc<PolicyEntry>)],
) -> Vec<v1::RoleMembers> {
    let named: BTreeSet<String> =
        named(replica, scope, policies).into_iter().map(|one| one.name).collect();
    let is_inbound = |role: &str| {
        scopes(policies).any(|policy| policy.roles.contains(role) && scope.is_inbound(policy))
    };
    let roles: BTreeSet<&String> = scopes(policies).flat_map(|policy| &policy.roles).collect();
    let told = roles.into_iter().filter_map(|role| {
        let inbound = is_inbound(role);
        let members = replica.role(role)?.iter();
        // Whom no manifest names is not among those who are told by name.
        let mentioned = |member: &String| {
            let is_name = member.parse::<Name>().is_ok();
            !is_name && scopes(policies).any(|policy| policy.workloads.contains(member))
        };
        let members = members
            .filter(|member| inbound || named.contains(*member) || mentioned(member))
            .cloned();
        Some(v1::RoleMembers { role: role.clone(), members: members.collect() })
    });
    told.collect()
}

fn scopes(policies: &[(Arc<str>, Arc<PolicyEntry>)]) -> impl Iterator<Item = &PolicyScope> {
    policies.iter().filter_map(|(_, entry)| entry.record.as_ref()).flat_map(|it| &it.scopes)
}

/// Whether a policy asks which data is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Asked,
    Unasked,
}

/// A service without what only its launcher needs; of others' services also without their insides, and with no more of their data
/// than a policy may ask about who connects.
fn service_of(name: &Name, spec: &ServiceSpec, scope: &Interest<'_>, data: Data) -> v1::Record {
    let mut spec = spec.clone();
    spec.command.clear();
    spec.environment.clear();
    if !scope.own.contains_key(name) {
        spec.data_sets = match data {
            Data::Asked => spec.data_at_the_door().to_vec(),
            Data::Unasked => Vec::new(),
        };
        spec.upstreams.clear();
        spec.operations.clear();
        spec.topics.clear();
        // A door needs a way behind it to be a service at all; where that leads is not told.
        spec.forward = spec.listen.as_ref().map(|_door| Local::Unix);
    }
    v1::Record {
        kind: RecordKind::Service.to_string(),
        name: name.to_string(),
        value: Spec::Service(spec).encode().into(),
    }
}
