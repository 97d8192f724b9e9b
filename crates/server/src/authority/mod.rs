//! The keys that sign: made, sealed, opened, and succeeded in time.

mod create;
mod rotate;
mod sealed;

use std::sync::Arc;

use countersign_identity::{KeyId, Timestamp, Validity};
use countersign_pki::{Certificate, Issuer, Signer};

pub(crate) use create::{Ceremony, First, copy, create_first, create_first_of, internal};
pub(crate) use rotate::Rotation;
pub(crate) use sealed::{
    ISSUER, ROOT, Unsealed, destroy, issuer_name, keep, open_authority, root_name, unseal,
};

/// The authorities of this trust domain that sign now, swapped as one value.
pub(crate) struct Authorities {
    /// The root, which is in the bundle and signs issuers.
    pub(crate) root: Issuer,
    /// What signs for the root.
    pub(crate) root_signer: Arc<dyn Signer>,
    /// The issuer, which signs SVIDs.
    pub(crate) issuer: Issuer,
    /// What signs for the issuer.
    pub(crate) signer: Arc<dyn Signer>,
}

/// An authority and what signs for it.
#[derive(Clone)]
pub(crate) struct Signing {
    pub(crate) issuer: Issuer,
    pub(crate) signer: Arc<dyn Signer>,
}

impl Authorities {
    /// The authority of this key, if it is one of these.
    pub(crate) fn signing(&self, key: KeyId) -> Option<Signing> {
        let pairs = [(&self.issuer, &self.signer), (&self.root, &self.root_signer)];
        let (issuer, signer) = pairs.into_iter().find(|(issuer, _)| issuer.key_id() == key)?;
        Some(Signing { issuer: issuer.clone(), signer: Arc::clone(signer) })
    }

    /// What signs SVIDs.
    pub(crate) fn issuing(&self) -> Signing {
        Signing { issuer: self.issuer.clone(), signer: Arc::clone(&self.signer) }
    }

    /// The name of the root's key, which joining agents are told to trust.
    pub(crate) fn trust(&self) -> KeyId {
        self.root.key_id()
    }

    /// From when to when the issuer may sign.
    pub(crate) fn issuer_validity(&self) -> Validity {
        self.issuer.certificate().validity()
    }

    /// The root's certificate.
    pub(crate) fn root_certificate(&self) -> &Certificate {
        self.root.certificate()
    }

    /// Whether the issuer is past half of its life, and a successor due.
    pub(crate) fn successor_due(&self, now: Timestamp) -> bool {
        let Validity { not_before, not_after } = self.issuer_validity();
        not_before + not_after.since(not_before) / 2 <= now
    }
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authorities(root {}, issuer {})", self.root.key_id(), self.issuer.key_id())
    }
}
