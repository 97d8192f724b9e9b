//! An authority's certificate as the one that signs.

use countersign_identity::{KeyId, Timestamp, TrustDomain};

use crate::{Certificate, PublicKey, Refusal};

/// An authority that may sign: its certificate, whose key and trust domain are known to be ours.
#[derive(Clone, Debug)]
pub struct Issuer {
    certificate: Certificate,
    key: PublicKey,
    domain: TrustDomain,
}

impl Issuer {
    /// Takes an authority's certificate as [`AuthorityDraft`](crate::AuthorityDraft) makes it.
    ///
    /// # Errors
    /// When it is not an authority, its key is none of ours, or it names no trust domain.
    pub fn from_certificate(certificate: Certificate) -> Result<Self, Refusal> {
        let bad = |why: &str| Refusal::Issuer(why.to_owned());
        if !certificate.is_authority() {
            return Err(bad("is not an authority's"));
        }
        let key = certificate.public_key().map_err(|_| bad("has a key that is none of ours"))?;
        let [name] = certificate.uri_names() else {
            return Err(bad("does not name one trust domain"));
        };
        let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        let domain = name
            .filter(countersign_identity::SpiffeId::is_root)
            .map(|id| id.trust_domain().clone())
            .ok_or_else(|| bad("does not name a trust domain"))?;
        Ok(Self { certificate, key, domain })
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The id of its public key.
    pub fn key_id(&self) -> KeyId {
        self.key.id()
    }

    /// Whether it signs other authorities: a root does, an issuer does not.
    pub fn signs_authorities(&self) -> bool {
        self.certificate.path_length() != Some(0)
    }

    /// The trust domain that it signs for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether it may sign an SVID of the domain at this moment.
    pub(crate) fn check(&self, domain: &TrustDomain, issued: Timestamp) -> Result<(), Refusal> {
        if self.domain != *domain {
            let why = format!("is of trust domain `{}`, not of `{domain}`", self.domain);
            return Err(Refusal::Issuer(why));
        }
        let validity = self.certificate.validity();
        if validity.contains(issued) {
            return Ok(());
        }
        let (not_before, not_after) = (validity.not_before, validity.not_after);
        Err(Refusal::IssuerNotValid { not_before, not_after, issued })
    }

    /// Whether it may sign another authority at this moment.
    pub(crate) fn check_may_certify_issuers(&self, issued: Timestamp) -> Result<(), Refusal> {
        if !self.signs_authorities() {
            return Err(Refusal::Issuer("may not sign other authorities".to_owned()));
        }
        self.check(&self.domain, issued)
    }
}
