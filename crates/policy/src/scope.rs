//! What a policy can apply to, so that agents send each enforcement point what it needs, without Cedar.

use std::collections::BTreeSet;

use cedar_policy::{EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::compile::parse_alone;
use crate::reads::{Conditions, reads_classifications, reads_labels};
use crate::schema::{DATASET, OPERATION, ROLE, SERVICE, TOPIC, WORKLOAD, service_of};

/// The principals or the resources that a policy's scope admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Names {
    /// All.
    Any,
    /// These.
    Only(Vec<String>),
    /// Those in this role; of principals alone.
    Role(String),
    /// What touches this data set; of resources alone.
    Dataset(String),
}

/// What one policy of a text can apply to, and whom it names.
///
/// A policy whose scope admits neither a workload nor a service that an enforcement point deals with
/// cannot change any of its decisions, and need not be sent there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scope {
    /// The workloads that it can apply to.
    pub principals: Names,
    /// The services that it can apply to, themselves or by one of their operations.
    pub resources: Names,
    /// Every workload that it names, also in conditions. A peer among them must be known by name where
    /// the policy is enforced; else the policy would not recognise it.
    pub workloads: BTreeSet<String>,
    /// Every service that it names, also in conditions.
    pub services: BTreeSet<String>,
    /// Every role that it names, also in conditions. Who is in one of them must be known where the policy is enforced.
    pub roles: BTreeSet<String>,
    /// Whether it reads labels, which then must be known as well.
    pub labels: bool,
    /// Every data set that it names, also in conditions. What touches one of them must be known where the policy is enforced.
    pub data_sets: BTreeSet<String>,
    /// Whether it reads how data is classified, which then must be known as well.
    pub classifications: bool,
}

impl Scope {
    /// Whether what it says can depend on which data is touched.
    pub fn speaks_of_data(&self) -> bool {
        self.classifications || !self.data_sets.is_empty()
    }

    pub(crate) fn of(policy: &Policy, conditions: &Conditions) -> Self {
        let mut scope = Self {
            principals: principals(policy),
            resources: resources(policy),
            workloads: BTreeSet::new(),
            services: BTreeSet::new(),
            roles: BTreeSet::new(),
            labels: reads_labels(conditions),
            data_sets: BTreeSet::new(),
            classifications: reads_classifications(conditions),
        };
        for literal in policy.entity_literals() {
            let id = literal.id().unescaped().to_owned();
            match literal.type_name().to_string().as_str() {
                WORKLOAD => scope.workloads.insert(id),
                ROLE => scope.roles.insert(id),
                SERVICE => scope.services.insert(id),
                OPERATION | TOPIC => scope.services.insert(service_of(&id).to_owned()),
                DATASET => scope.data_sets.insert(id),
                _ => continue,
            };
        }
        scope
    }
}

/// Tells for each policy of the text, in order, what it can apply to.
///
/// The text must compile, apart from the check that its names are declared.
///
/// # Errors
/// Everything that is wrong with it.
pub fn scope(text: &str) -> Result<Vec<Scope>, Vec<Problem>> {
    parse_alone(text)
        .map(|statements| statements.into_iter().map(|statement| statement.scope).collect())
}

fn principals(policy: &Policy) -> Names {
    match policy.principal_constraint() {
        // There is one type of principal, so being of a type restricts nothing.
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => Names::Any,
        // To be in a workload is to be it.
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => only(&uid),
    }
}

fn resources(policy: &Policy) -> Names {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => Names::Any,
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => only(&uid),
    }
}

/// The name of the only operation that a policy's scope admits, where it names one: nothing but itself is in an operation.
pub(crate) fn operation_of(policy: &Policy) -> Option<String> {
    let uid = match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => return None,
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => uid,
    };
    if uid.type_name().to_string() != OPERATION {
        return None;
    }
    let (_service, operation) = uid.id().unescaped().split_once('/')?;
    Some(operation.to_owned())
}

/// An operation stands for its service, and a topic: slices are cut by services.
fn only(uid: &EntityUid) -> Names {
    let id = uid.id().unescaped();
    match uid.type_name().to_string().as_str() {
        ROLE => Names::Role(id.to_owned()),
        DATASET => Names::Dataset(id.to_owned()),
        OPERATION | TOPIC => Names::Only(vec![service_of(id).to_owned()]),
        _ => Names::Only(vec![id.to_owned()]),
    }
}
