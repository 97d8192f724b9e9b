//! Who we are.

use std::fmt;
use std::sync::Arc;

use countersign_identity::{Serial, SpiffeId, Timestamp};
use countersign_pki::{Certificate, Chain, Verified};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Why a chain and a key do not make an identity that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum BadOwnIdentity {
    /// The key is not PKCS#8, or of a kind that TLS cannot sign with.
    #[error("the private key cannot be used: {0}")]
    Key(rustls::Error),
    /// The key is another one than the leaf's.
    #[error("the private key does not belong to the leaf certificate of `{0}`")]
    Mismatch(SpiffeId),
    /// The leaf names no identity.
    #[error("the leaf certificate names no identity: {0}")]
    NoIdentity(String),
}

/// Our own X.509-SVID, ready to be shown: the chain, and the private key inside the crypto provider.
///
/// It promises that the key belongs to the leaf. It does not promise that anybody trusts it:
/// [`Trust::set_identity`](crate::Trust::set_identity) verifies that.
#[derive(Clone)]
pub struct Identity {
    id: SpiffeId,
    chain: Chain,
    expires: Timestamp,
    key: Arc<CertifiedKey>, // INVARIANT: its key belongs to the leaf of `chain`
}

impl Identity {
    /// Takes a chain, leaf first, and the leaf's private key in PKCS#8.
    ///
    /// # Errors
    /// When the key is unusable or another one's, or the leaf names no identity.
    pub fn new(chain: Chain, pkcs8: &[u8]) -> Result<Self, BadOwnIdentity> {
        let id =
            chain.leaf().spiffe_id().map_err(|refused| BadOwnIdentity::NoIdentity(refused.why))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
        let key = any_supported_type(&key).map_err(BadOwnIdentity::Key)?;
        let certificates = chain.certificates().iter();
        let ders = certificates.map(|certificate| CertificateDer::from(certificate.der().to_vec()));
        let certified = CertifiedKey::new(ders.collect(), key);
        certified.keys_match().map_err(|_mismatch| BadOwnIdentity::Mismatch(id.clone()))?;
        // The peer stops counting on us at the first end in the chain, so that is when we end, too.
        let ends = chain.certificates().iter().map(|certificate| certificate.validity().not_after);
        let expires = ends.min().expect("a chain is never empty");
        Ok(Self { id, chain, expires, key: Arc::new(certified) })
    }

    /// The SPIFFE ID.
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf.
    pub fn leaf(&self) -> &Certificate {
        self.chain.leaf()
    }

    /// The leaf and the certificates above it, as they are shown.
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The leaf's serial, when it is one of ours.
    pub fn serial(&self) -> Option<Serial> {
        self.leaf().serial()
    }

    /// The last moment at which the whole chain is valid.
    pub const fn expires(&self) -> Timestamp {
        self.expires
    }

    /// As rustls wants it.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }
}

/// What we show, and what our own verifier found when it was taken.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) identity: Arc<Identity>,
    pub(crate) verified: Verified,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, until {})", self.id, self.expires)
    }
}
