//! Policies by the principal and the service that their scopes name.

use std::collections::HashMap;

use cedar_policy::PolicySet;

use crate::Names;
use crate::compile::Statement;

/// Every policy is in exactly one of the buckets.
#[derive(Default)]
pub(crate) struct Index {
    for_any: Bucket,
    by_principal: HashMap<String, Bucket>,
    by_service: HashMap<String, Bucket>,
    by_service_and_principal: HashMap<String, HashMap<String, Bucket>>,
}

/// The policies for one kind of question.
#[derive(Default)]
pub(crate) struct Bucket {
    pub(crate) policies: PolicySet,
    /// Whether one of them reads the age of the peer's certificate.
    pub(crate) reads_age: bool,
}

/// At most one for each way in which a scope can be narrow.
pub(crate) type Buckets<'a> = [Option<&'a Bucket>; 4];

impl Index {
    pub(crate) fn of(statements: Vec<Statement>) -> Self {
        let mut index = Self::default();
        for Statement { policy, scope, reads_age, .. } in statements {
            let services = match scope.resources {
                Names::Any => vec![None],
                Names::Only(names) => names.into_iter().map(Some).collect(),
            };
            let principals = match scope.principals {
                Names::Any => vec![None],
                Names::Only(names) => names.into_iter().map(Some).collect(),
            };
            for service in &services {
                for principal in &principals {
                    let bucket = index.bucket_for(service.clone(), principal.clone());
                    bucket.reads_age |= reads_age;
                    bucket
                        .policies
                        .add(policy.clone())
                        .expect("ids are unique, which compile checks");
                }
            }
        }
        index
    }

    fn bucket_for(&mut self, service: Option<String>, principal: Option<String>) -> &mut Bucket {
        match (service, principal) {
            (None, None) => &mut self.for_any,
            (None, Some(principal)) => self.by_principal.entry(principal).or_default(),
            (Some(service), None) => self.by_service.entry(service).or_default(),
            (Some(service), Some(principal)) => self
                .by_service_and_principal
                .entry(service)
                .or_default()
                .entry(principal)
                .or_default(),
        }
    }

    /// The buckets that could bear on the question.
    pub(crate) fn buckets(&self, principal: &str, service: &str) -> Buckets<'_> {
        let both = self.by_service_and_principal.get(service);
        [
            (!self.for_any.policies.is_empty()).then_some(&self.for_any),
            self.by_principal.get(principal),
            self.by_service.get(service),
            both.and_then(|by_principal| by_principal.get(principal)),
        ]
    }
}
