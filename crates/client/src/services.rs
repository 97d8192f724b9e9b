//! The services that concern this process.

use std::collections::BTreeMap;

use countersign_api::resource::ServiceSpec;
use countersign_identity::{Name, Revision, SpiffeId};

/// What the agent tells of services: the caller's own, and those that they call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    /// The state that it is of.
    pub revision: Revision,
    /// The caller's own workload.
    pub workload: Name,
    /// The caller's own SPIFFE ID.
    pub id: SpiffeId,
    /// By name.
    pub services: BTreeMap<Name, ServiceSpec>,
    /// The SPIFFE IDs of the workloads that policies or upstreams name.
    pub ids: BTreeMap<Name, SpiffeId>,
}

impl Services {
    /// The services of the caller itself.
    pub fn own(&self) -> impl Iterator<Item = (&Name, &ServiceSpec)> {
        self.services.iter().filter(|(_, spec)| spec.workload == self.workload)
    }

    /// Those that are neither the caller's own nor called by any that is told of here. The agent tells them to a process that
    /// matches several workloads, for one that it is not by default; of such a one it tells also what that calls.
    pub fn of_others(&self) -> impl Iterator<Item = (&Name, &ServiceSpec)> {
        let calls = |service: &Name| {
            // Nobody is told what others call, so that these are all of workloads that the caller matches.
            let mut upstreams = self.services.values().flat_map(|spec| &spec.upstreams);
            upstreams.any(|upstream| upstream.service == *service)
        };
        let others = self.services.iter().filter(|(_, spec)| spec.workload != self.workload);
        others.filter(move |(name, _)| !calls(name))
    }

    /// Who a service is: what the one that answers must prove to be. None when the agent has not told, and
    /// then the service cannot be dialled.
    pub fn id_of(&self, service: &Name) -> Option<&SpiffeId> {
        let workload = &self.services.get(service)?.workload;
        if *workload == self.workload { Some(&self.id) } else { self.ids.get(workload) }
    }
}
