//! What signs for an authority: a key in memory, a token, a cloud service.

use async_trait::async_trait;

use crate::{PrivateKey, PublicKey, SignFault};

/// A private key that is used and not seen.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    /// The public half.
    fn public(&self) -> &PublicKey;

    /// Signs: ECDSA over SHA-256 in ASN.1 form, or Ed25519.
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault>;
}

/// A key in this process's memory.
#[derive(Debug)]
pub struct SoftwareSigner(PrivateKey);

impl From<PrivateKey> for SoftwareSigner {
    fn from(key: PrivateKey) -> Self {
        Self(key)
    }
}

#[async_trait]
impl Signer for SoftwareSigner {
    fn public(&self) -> &PublicKey {
        self.0.public()
    }

    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        self.0.sign(message)
    }
}
