//! Policies by the principal and the service that their scopes name.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::PolicySet;
use countersign_identity::Name;

use crate::compile::Statement;
use crate::reads::Reads;
use crate::scope::operation_of;
use crate::{Member, Names};

/// Every policy is in exactly one of the buckets.
#[derive(Default)]
pub(crate) struct Index {
    of_any_service: ByPrincipal,
    of_service: HashMap<String, ByPrincipal>,
}

/// The policies for some services, by whom their scopes name.
#[derive(Default)]
struct ByPrincipal {
    any: Option<Bucket>,
    named: HashMap<String, Bucket>,
    in_role: HashMap<String, Bucket>,
}

/// The policies for one kind of question.
#[derive(Default)]
pub(crate) struct Bucket {
    policies: PolicySet,
    /// Those whose scope names an operation, by its name: to any other request they say nothing.
    of_operation: HashMap<String, PolicySet>,
    /// What one of them reads of the context.
    pub(crate) reads: Reads,
    /// Whether one of them asks for roles or labels.
    pub(crate) reads_members: bool,
    /// The workloads that those name, of whom they may ask the same as of the principal.
    pub(crate) members: BTreeSet<String>,
}

/// Those that could bear on a question: at most one for each way in which a scope can be narrow, and one for each role.
pub(crate) struct Buckets<'a> {
    usual: [Option<&'a Bucket>; 4],
    of_roles: Vec<&'a Bucket>, // Empty, and so without memory of its own, for whoever is in no role.
}

impl<'a> Buckets<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a Bucket> {
        self.usual.into_iter().flatten().chain(self.of_roles.iter().copied())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// What one of their policies reads of the context.
    pub(crate) fn reads(&self) -> Reads {
        self.iter().fold(Reads::default(), |all, bucket| all | bucket.reads)
    }
}

impl Index {
    pub(crate) fn of(statements: &[Statement]) -> Self {
        let mut index = Self::default();
        for statement in statements {
            match &statement.scope.resources {
                Names::Only(services) => {
                    for service in services {
                        index.of_service.entry(service.clone()).or_default().insert(statement);
                    }
                }
                // No resource is in a role.
                Names::Any | Names::Role(_) => index.of_any_service.insert(statement),
            }
        }
        index
    }

    /// The buckets that could bear on the question.
    pub(crate) fn buckets(
        &self,
        principal: &str,
        member: Option<&Member>,
        service: &str,
    ) -> Buckets<'_> {
        let (of_any, of_service) = (&self.of_any_service, self.of_service.get(service));
        let roles = member.into_iter().flat_map(|member| &member.roles);
        let of_role = |role: &Name| {
            let both = std::iter::once(of_any).chain(of_service);
            both.filter_map(|it| it.in_role.get(role.as_str())).collect::<Vec<_>>()
        };
        Buckets {
            usual: [
                of_any.any.as_ref(),
                of_any.named.get(principal),
                of_service.and_then(|it| it.any.as_ref()),
                of_service.and_then(|it| it.named.get(principal)),
            ],
            of_roles: roles.flat_map(of_role).collect(),
        }
    }
}

impl ByPrincipal {
    fn insert(&mut self, statement: &Statement) {
        match &statement.scope.principals {
            Names::Any => self.any.get_or_insert_default().add(statement),
            Names::Role(role) => self.in_role.entry(role.clone()).or_default().add(statement),
            Names::Only(names) => {
                for name in names {
                    self.named.entry(name.clone()).or_default().add(statement);
                }
            }
        }
    }
}

impl Bucket {
    fn add(&mut self, Statement { policy, scope, reads, .. }: &Statement) {
        self.reads = self.reads | *reads;
        if scope.labels || !scope.roles.is_empty() {
            self.reads_members = true;
            self.members.extend(scope.workloads.iter().cloned());
        }
        let policies = match operation_of(policy) {
            Some(operation) => self.of_operation.entry(operation).or_default(),
            None => &mut self.policies,
        };
        policies.add(policy.clone()).expect("ids are unique, which compile checks");
    }

    /// Those that could bear on a request for this operation, or on one for none.
    pub(crate) fn bearing_on(&self, operation: Option<&Name>) -> impl Iterator<Item = &PolicySet> {
        let of_it = operation.and_then(|name| self.of_operation.get(name.as_str()));
        std::iter::once(&self.policies).filter(|all| !all.is_empty()).chain(of_it)
    }
}
