//! Policies by the principal and the service that their scopes name.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::PolicySet;
use countersign_identity::Name;

use crate::cases::Weighing;
use crate::compile::Statement;
use crate::reads::Reads;
use crate::scope::operation_of;
use crate::{Member, Names};

/// Every policy is in exactly one of the buckets.
#[derive(Default)]
pub(crate) struct Index {
    of_any_service: ByPrincipal,
    of_service: HashMap<String, ByPrincipal>,
    of_dataset: HashMap<String, ByPrincipal>,
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
    /// Whether one of them speaks of data sets, or asks how data is classified.
    pub(crate) reads_data: bool,
    /// Those of them that may say of a part of the data something else than of all of it and of none.
    pub(crate) weighing: Vec<Weighing>,
    /// The workloads that those name, of whom they may ask the same as of the principal.
    pub(crate) members: BTreeSet<String>,
}

/// Those that could bear on a question: at most one for each way in which a scope can be narrow, and some for each role and data set.
pub(crate) struct Buckets<'a> {
    usual: [Option<&'a Bucket>; 4],
    // Both empty, and so without memory of their own, for whoever is in no role, and of what touches no data set.
    of_roles: Vec<&'a Bucket>,
    of_data: Vec<&'a Bucket>,
}

impl<'a> Buckets<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a Bucket> {
        let usual = self.usual.into_iter().flatten();
        usual.chain(self.of_roles.iter().copied()).chain(self.of_data.iter().copied())
    }

    /// The same, of something that touches no data.
    pub(crate) fn without_data(&self) -> Self {
        Self { usual: self.usual, of_roles: self.of_roles.clone(), of_data: Vec::new() }
    }

    /// Whether some are there only because of data that may be touched.
    pub(crate) fn has_data(&self) -> bool {
        !self.of_data.is_empty()
    }

    /// Those that may say of a part of the data something else than of all of it and of none.
    pub(crate) fn weighing(&self) -> impl Iterator<Item = &'a Weighing> {
        self.iter().flat_map(|bucket| &bucket.weighing)
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
                Names::Dataset(name) => {
                    index.of_dataset.entry(name.clone()).or_default().insert(statement);
                }
                // No resource is in a role.
                Names::Any | Names::Role(_) => index.of_any_service.insert(statement),
            }
        }
        index
    }

    /// The buckets that could bear on the question, about a service and what of it is in these data sets.
    pub(crate) fn buckets<'a>(
        &'a self,
        principal: &str,
        member: Option<&Member>,
        (service, data_sets): (&str, impl IntoIterator<Item = &'a Name>),
    ) -> Buckets<'a> {
        let (of_any, of_service) = (&self.of_any_service, self.of_service.get(service));
        let roles = member.into_iter().flat_map(|member| &member.roles);
        let of_role = |role: &Name| {
            let both = std::iter::once(of_any).chain(of_service);
            both.filter_map(|it| it.in_role.get(role.as_str())).collect::<Vec<_>>()
        };
        let of_roles = roles.clone().flat_map(of_role).collect();
        let mut of_data: Vec<&Bucket> = Vec::new();
        for touched in data_sets.into_iter().filter_map(|name| self.of_dataset.get(name.as_str())) {
            of_data.extend(touched.any.as_ref());
            of_data.extend(touched.named.get(principal));
            of_data.extend(roles.clone().filter_map(|role| touched.in_role.get(role.as_str())));
        }
        Buckets {
            usual: [
                of_any.any.as_ref(),
                of_any.named.get(principal),
                of_service.and_then(|it| it.any.as_ref()),
                of_service.and_then(|it| it.named.get(principal)),
            ],
            of_roles,
            of_data,
        }
    }
}

impl ByPrincipal {
    fn insert(&mut self, statement: &Statement) {
        match &statement.scope.principals {
            // No principal is in a data set.
            Names::Any | Names::Dataset(_) => self.any.get_or_insert_default().add(statement),
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
    fn add(&mut self, statement: &Statement) {
        let Statement { policy, scope, reads, .. } = statement;
        self.reads_data |= scope.speaks_of_data();
        self.reads = self.reads | *reads;
        if scope.labels || !scope.roles.is_empty() {
            self.reads_members = true;
            self.members.extend(scope.workloads.iter().cloned());
        }
        let policies = match operation_of(policy) {
            Some(operation) => self.of_operation.entry(operation).or_default(),
            None => {
                // What touches nobody knows what is no operation, and no topic.
                if !statement.one_way && statement.counted {
                    self.weighing.push(Weighing::of(policy.id().as_ref(), scope));
                }
                &mut self.policies
            }
        };
        policies.add(policy.clone()).expect("ids are unique, which compile checks");
    }

    /// Those that could bear on a request for this operation, or on one for none.
    pub(crate) fn bearing_on(&self, operation: Option<&Name>) -> impl Iterator<Item = &PolicySet> {
        let of_it = operation.and_then(|name| self.of_operation.get(name.as_str()));
        std::iter::once(&self.policies).filter(|all| !all.is_empty()).chain(of_it)
    }
}
