//! What is looked up in a state by something else than its name: found once, and kept for as long as nothing moves that it is
//! about. A change of one policy in a large trust domain then costs what it concerns, for each part of the state that is told of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use countersign_api::resource::{ScopeNames, ServiceSpec};
use countersign_identity::{Name, SpiffeId};
use countersign_store::Kind;

use super::entry::{Entry, Key, Parsed};
use super::snapshot::State;
use crate::issue::open_to;

/// Each part is made when it is first asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    workloads: OnceLock<Arc<ByLabels>>,
    identities: OnceLock<Arc<HashMap<SpiffeId, Name>>>,
    services: OnceLock<Arc<ByWorkload>>,
    policies: OnceLock<Arc<ByService>>,
}

/// Workloads by the labels that they ask of a node.
type ByLabels = HashMap<Vec<Name>, Vec<Name>>;

/// Services by the workload that serves them.
type ByWorkload = HashMap<String, Vec<Name>>;

/// Policies by the services that they can be about.
#[derive(Debug, Default)]
struct ByService {
    named: HashMap<String, Vec<Key>>,
    /// Those that do not say it by name: they can be about any.
    unnamed: Vec<Key>,
}

impl Index {
    /// What of it holds after records of these kinds have moved.
    pub(super) fn after(&self, moved: &BTreeSet<Kind>) -> Self {
        let Self { workloads, identities, services, policies } = self;
        Self {
            workloads: kept(workloads, &[Kind::Workload], moved),
            identities: kept(identities, &[Kind::Workload, Kind::TrustDomain], moved),
            services: kept(services, &[Kind::Service], moved),
            policies: kept(policies, &[Kind::Policy], moved),
        }
    }
}

fn kept<T>(part: &OnceLock<Arc<T>>, about: &[Kind], moved: &BTreeSet<Kind>) -> OnceLock<Arc<T>> {
    match about.iter().any(|kind| moved.contains(kind)) {
        true => OnceLock::new(),
        false => part.clone(),
    }
}

impl State {
    /// The workloads that a node with these labels may run.
    pub(crate) fn workloads_on<'a>(
        &'a self,
        labels: &BTreeSet<Name>,
    ) -> impl Iterator<Item = &'a Name> {
        let by_labels = self.index.workloads.get_or_init(|| Arc::new(self.by_labels()));
        let open = by_labels.iter().filter(|(asked, _)| open_to(asked, labels));
        open.flat_map(|(_, names)| names)
    }

    /// The name of the workload with this identity.
    pub(crate) fn workload_of(&self, id: &SpiffeId) -> Option<&Name> {
        let identities = self.index.identities.get_or_init(|| {
            let domain = &self.domain().trust_domain;
            let of = self
                .workloads()
                .map(|(name, spec)| (spec.spiffe_id_in(name, domain), name.clone()));
            Arc::new(of.collect())
        });
        identities.get(id)
    }

    /// The service of this name.
    pub(crate) fn service(&self, name: &str) -> Option<&ServiceSpec> {
        let entry = self.records.get(&Key::new(Kind::Service, name))?;
        if let Parsed::Service { spec, .. } = &entry.parsed { Some(spec) } else { None }
    }

    /// The services of a workload, by name.
    pub(crate) fn services_of(&self, workload: &str) -> &[Name] {
        let services = self.index.services.get_or_init(|| Arc::new(self.by_workload()));
        services.get(workload).map_or(&[], Vec::as_slice)
    }

    /// The policies that can be about a service: all that are, and maybe some that are not.
    pub(crate) fn policies_near(&self, service: &str) -> impl Iterator<Item = (&Key, &Arc<Entry>)> {
        let policies = self.index.policies.get_or_init(|| Arc::new(self.by_service()));
        let named = policies.named.get(service).into_iter().flatten();
        named.chain(&policies.unnamed).filter_map(|key| self.records.get_key_value(key))
    }

    fn by_labels(&self) -> ByLabels {
        let mut found = ByLabels::new();
        for (name, spec) in self.workloads() {
            found.entry(spec.nodes.clone()).or_default().push(name.clone());
        }
        found
    }

    fn by_workload(&self) -> ByWorkload {
        let mut found = ByWorkload::new();
        for (_, entry) in self.of_kind(Kind::Service) {
            if let Parsed::Service { name, spec } = &entry.parsed {
                found.entry(spec.workload.to_string()).or_default().push(name.clone());
            }
        }
        found
    }

    fn by_service(&self) -> ByService {
        let mut found = ByService::default();
        for (key, entry) in self.of_kind(Kind::Policy) {
            let Parsed::Policy { record, .. } = &entry.parsed else { continue };
            let mut services = BTreeSet::new();
            let mut unnamed = false;
            for scope in &record.scopes {
                match &scope.resources {
                    ScopeNames::Only(names) => services.extend(names),
                    // Of a kind that is no service's name: whatever it is, it must not be left out. Which services have a data set
                    // changes with them, and not with the policies.
                    ScopeNames::Any | ScopeNames::Role(_) | ScopeNames::Dataset(_) => {
                        unnamed = true;
                    }
                }
            }
            if unnamed {
                found.unnamed.push(key.clone());
                continue;
            }
            for service in services {
                found.named.entry(service.clone()).or_default().push(key.clone());
            }
        }
        found
    }

    /// The records of one kind, by name.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Arc<Entry>)> {
        let from = self.records.range(Key::new(kind, "")..);
        from.take_while(move |(key, _)| key.kind == kind)
    }
}
