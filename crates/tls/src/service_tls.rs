//! What the TLS profile of a service asks.

use std::collections::BTreeSet;

use countersign_identity::{Code, KeyId, Name, TlsTerms, TrustDomain};
use countersign_pki::{Refused, Verified};

/// What a service asks of handshakes, at both ends, and of those who come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTls {
    /// On what handshakes may agree.
    pub terms: TlsTerms,
    /// Whose certificates its door takes.
    pub accepted: Accepted,
}

/// Whose certificates are taken, among those that a bundle vouches for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Of these trust domains; `None`: of all.
    pub domains: Option<BTreeSet<TrustDomain>>,
    /// That lead to one of these roots; `None`: to any in the bundle.
    pub roots: Option<BTreeSet<KeyId>>,
}

impl Accepted {
    /// Whether identities of this trust domain are, as far as that alone decides.
    ///
    /// # Errors
    /// When they are not.
    pub fn takes_domain(&self, domain: &TrustDomain, service: &Name) -> Result<(), Refused> {
        if self.domains.as_ref().is_some_and(|domains| !domains.contains(domain)) {
            let why = format!(
                "the TLS profile of `{service}` takes no identities of trust domain `{domain}`"
            );
            return Err(Refused { code: Code::UnknownTrustDomain, why });
        }
        Ok(())
    }

    /// Whether this one is.
    pub(crate) fn takes(&self, peer: &Verified, service: &Name) -> Result<(), Refused> {
        self.takes_domain(peer.id.trust_domain(), service)?;
        if self.roots.as_ref().is_some_and(|roots| !roots.contains(&peer.anchor)) {
            let why =
                format!("the TLS profile of `{service}` does not take root `{}`", peer.anchor);
            return Err(Refused { code: Code::UnknownIssuer, why });
        }
        Ok(())
    }
}
