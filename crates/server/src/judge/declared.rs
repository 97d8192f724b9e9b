//! What resources declare, as the policies' compiler takes it.

use std::collections::BTreeSet;

use countersign_api::resource::{Resource, Spec, roles};
use countersign_identity::{Name, TrustDomain};
use countersign_policy::{
    Declared, Holdings, Inventory, Member, Members, Operation, Operations, PolicySource, Principal,
};

use super::Judge;

impl Judge {
    /// The texts of the policies among these.
    pub fn sources(resources: &[Resource]) -> Vec<PolicySource> {
        let source = |resource: &Resource| match &resource.spec {
            Spec::Policy(spec) => Some(PolicySource {
                name: resource.name.clone(),
                text: spec.cedar.as_str().to_owned(),
                mode: spec.mode,
                until: spec.until,
            }),
            Spec::TrustDomain(_)
            | Spec::Authority(_)
            | Spec::Workload(_)
            | Spec::Service(_)
            | Spec::Role(_)
            | Spec::TlsProfile(_) => None,
        };
        resources.iter().filter_map(source).collect()
    }

    /// The names that these declare, for policies to speak of.
    pub fn declared(resources: &[Resource]) -> Declared {
        let mut declared = Declared::default();
        for resource in resources {
            let name = &resource.name;
            match &resource.spec {
                Spec::Workload(_) => drop(declared.workloads.insert(name.clone())),
                Spec::Role(_) => drop(declared.roles.insert(name.clone())),
                Spec::Service(spec) => {
                    declared.services.insert(name.clone());
                    let full = spec.operations.iter().map(|one| format!("{name}/{}", one.name));
                    declared.operations.extend(full);
                    declared
                        .data_sets
                        .extend(spec.data_sets.iter().map(|one| one.name.to_string()));
                    let topics = spec.topics.iter().map(|one| format!("{name}/{}", one.name));
                    declared.topics.extend(topics);
                }
                Spec::TrustDomain(_)
                | Spec::Authority(_)
                | Spec::Policy(_)
                | Spec::TlsProfile(_) => {}
            }
        }
        declared
    }
}

/// Who is in which role and has which labels, for policies.
pub(super) fn members(resources: &[Resource], domain: &TrustDomain) -> Members {
    let principal = |text: &str| match text.parse::<Name>() {
        Ok(name) => Some(Principal::Named(name)),
        Err(_) => text.parse().ok().map(Principal::Id),
    };
    let in_roles = roles(resources, domain).into_iter().flat_map(|(role, record)| {
        let member = move |_| Member { roles: BTreeSet::from([role.clone()]), ..Member::default() };
        let named = record.members.into_iter().filter_map(move |text| principal(&text));
        named.map(move |principal| (principal.clone(), member(principal))).collect::<Vec<_>>()
    });
    let labelled = resources.iter().filter_map(|resource| {
        let Spec::Workload(spec) = &resource.spec else { return None };
        let labels: BTreeSet<Name> = spec.labels.iter().cloned().collect();
        let labelled = (!labels.is_empty()).then(|| Principal::Named(resource.name.clone()));
        Some((labelled?, Member { labels, ..Member::default() }))
    });
    Members::new(in_roles.chain(labelled))
}

/// What services keep, hand out and carry, for policies.
pub(super) fn inventory(resources: &[Resource]) -> Inventory {
    let of = |resource: &Resource| {
        let Spec::Service(spec) = &resource.spec else { return None };
        let set = |names: &[Name]| names.iter().cloned().collect();
        let data_sets = spec.data_sets.iter();
        let operations = spec.operations.iter();
        let holdings = Holdings {
            data_sets: data_sets
                .map(|one| (one.name.clone(), one.classification.as_str().to_owned()))
                .collect(),
            operations: operations.map(|one| (one.name.clone(), set(&one.data_sets))).collect(),
            topics: spec.topics.iter().map(|one| (one.name.clone(), set(&one.data_sets))).collect(),
        };
        Some((resource.name.clone(), holdings))
    };
    Inventory::new(resources.iter().filter_map(of))
}

/// The operations of services, for policies.
pub(super) fn operations(resources: &[Resource]) -> Operations {
    let of = |resource: &Resource| {
        let Spec::Service(spec) = &resource.spec else { return None };
        let operation = |one: &countersign_api::resource::OperationSpec| Operation {
            name: one.name.clone(),
            verb: one.method,
            template: one.path.clone(),
        };
        Some((resource.name.clone(), spec.operations.iter().map(operation).collect()))
    };
    Operations::new(resources.iter().filter_map(of))
}
