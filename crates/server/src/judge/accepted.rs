//! Whose identities the TLS profiles of services take, as far as that is known of somebody who shows no certificate.

use std::collections::{BTreeMap, BTreeSet};

use countersign_api::resource::{Resource, Spec, TlsChoiceName};
use countersign_identity::{Name, SpiffeId, TrustDomain};

/// The trust domains that services take, of those services whose profiles name some.
#[derive(Debug)]
pub(super) struct Accepted(BTreeMap<Name, BTreeSet<TrustDomain>>);

impl Accepted {
    /// What these resources say, which are all that are declared.
    pub(super) fn of(resources: &[Resource]) -> Self {
        let profiles: BTreeMap<&Name, BTreeSet<TrustDomain>> = resources
            .iter()
            .filter_map(|resource| {
                let Spec::TlsProfile(spec) = &resource.spec else { return None };
                let domains: BTreeSet<_> = spec.trust_domains.iter().cloned().collect();
                (!domains.is_empty()).then_some((&resource.name, domains))
            })
            .collect();
        let named = |resource: &Resource| {
            let Spec::Service(spec) = &resource.spec else { return None };
            let TlsChoiceName::Manifest(name) = &spec.tls_profile.name else { return None };
            Some((resource.name.clone(), profiles.get(name)?.clone()))
        };
        Self(resources.iter().filter_map(named).collect())
    }

    /// Whether the service takes identities of the trust domain of this one. Policies come after that.
    pub(super) fn takes(&self, source: &SpiffeId, service: &Name) -> bool {
        self.0.get(service).is_none_or(|domains| domains.contains(source.trust_domain()))
    }
}
