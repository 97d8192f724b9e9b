//! The keys that sign: made, sealed, opened, and succeeded in time.

mod create;
mod outside;
mod rotate;
mod sealed;

use std::sync::Arc;

use countersign_identity::{Code, KeyId, Timestamp, Validity};
use countersign_pki::{Certificate, Issuer, Signer};

use crate::refusal::Refused;

pub(crate) use create::{
    Ceremony, First, NewRoot, copy, create_first, create_first_of, create_outside, imported_event,
    internal, keep_outside,
};
pub(crate) use outside::{Imported, Wanted, read_chain};
pub(crate) use rotate::Rotation;
pub(crate) use sealed::{
    ISSUER, Kept, KeptKey, KeyToKeep, ROOT, Unsealed, destroy, destroy_request, issuer_name, keep,
    keep_request, open_authority, open_request, open_waiting, root_name, seal_waiting, unseal,
};

/// The authorities of this trust domain that sign now, swapped as one value.
pub(crate) struct Authorities {
    /// The root, which is in the bundle and signs issuers.
    pub(crate) root: Certificate,
    /// What signs for the root; nothing when its key is with somebody else.
    pub(crate) root_signer: Option<Arc<dyn Signer>>,
    /// The issuer, which signs SVIDs.
    pub(crate) issuer: Issuer,
    /// The authorities between the issuer and the root, the nearest first: none, unless the root is somebody else's.
    pub(crate) above: Vec<Certificate>,
    /// What signs for the issuer.
    pub(crate) signer: Arc<dyn Signer>,
}

/// An authority and what signs for it.
#[derive(Clone)]
pub(crate) struct Signing {
    pub(crate) issuer: Issuer,
    /// What stands between it and its root.
    pub(crate) above: Vec<Certificate>,
    pub(crate) signer: Arc<dyn Signer>,
}

impl Authorities {
    /// The authority of this key, if it is one of these, and its key is at hand.
    pub(crate) fn signing(&self, key: KeyId) -> Option<Signing> {
        if self.issuer.key_id() == key {
            return Some(self.issuing());
        }
        if self.root.key_id() == key { self.root_signing().ok() } else { None }
    }

    /// The root and what signs for it.
    ///
    /// # Errors
    /// When its key is with somebody else: what to do then.
    pub(crate) fn root_signing(&self) -> Result<Signing, Refused> {
        let Some(signer) = &self.root_signer else {
            let why = format!(
                "root `{}` is held outside and signs by ceremony: `countersign authority prepare --root-key external` makes \
                 the request that it has to sign, and `countersign authority import` takes what it signed",
                self.root.key_id()
            );
            return Err(Refused::new(Code::Forbidden, why));
        };
        let issuer = Issuer::from_certificate(self.root.clone()).map_err(internal)?;
        Ok(Signing { issuer, above: Vec::new(), signer: Arc::clone(signer) })
    }

    /// Whether the root's key is with somebody else.
    pub(crate) fn is_outside(&self) -> bool {
        self.root_signer.is_none()
    }

    /// What signs SVIDs.
    pub(crate) fn issuing(&self) -> Signing {
        let (issuer, above) = (self.issuer.clone(), self.above.clone());
        Signing { issuer, above, signer: Arc::clone(&self.signer) }
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
        &self.root
    }

    /// Whether the issuer is past half of its life, and a successor due; or before it, where a clock was ahead when it was
    /// made.
    pub(crate) fn successor_due(&self, now: Timestamp) -> bool {
        self.succession() <= now || now < self.issuer_validity().not_before
    }

    /// When that is.
    pub(crate) fn succession(&self) -> Timestamp {
        let Validity { not_before, not_after } = self.issuer_validity();
        not_before + not_after.since(not_before) / 2
    }
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authorities(root {}, issuer {})", self.root.key_id(), self.issuer.key_id())
    }
}
