//! What signs for an authority: a key in memory, a token, a cloud service.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{PrivateKey, PublicKey, SignFault};

/// A private key that is used and not seen.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    /// The public half.
    fn public(&self) -> &PublicKey;

    /// Signs: ECDSA over SHA-256 in ASN.1 form, or Ed25519.
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault>;

    /// Whether it could sign now. Asked before something is recorded that it is to sign.
    async fn ready(&self) -> Result<(), SignFault> {
        Ok(())
    }

    /// What kept it from signing when it was last asked to; nothing once it does.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A place outside of this process where keys lie that are used and not seen: tokens, a cloud service. A key is named by a URI.
#[async_trait]
pub trait KeyVault: fmt::Debug + Send + Sync + 'static {
    /// Whether this names a key in a place that is reached from here; says what is wrong with it otherwise.
    fn check(&self, uri: &str) -> Result<(), String>;

    /// The public half of a key that is there.
    async fn find(&self, uri: &str) -> Result<PublicKey, SignFault>;

    /// The public half of a key, which is made if it is not there.
    async fn find_or_make(&self, uri: &str) -> Result<PublicKey, SignFault>;

    /// What signs with a key. The place is reached when it signs, and not before: it may be away.
    fn signer(&self, uri: &str, public: PublicKey) -> Result<Arc<dyn Signer>, SignFault>;
}

/// No such place: this program reaches none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVault;

#[async_trait]
impl KeyVault for NoVault {
    fn check(&self, uri: &str) -> Result<(), String> {
        Err(no_vault(uri).to_string())
    }

    async fn find(&self, uri: &str) -> Result<PublicKey, SignFault> {
        Err(no_vault(uri))
    }

    async fn find_or_make(&self, uri: &str) -> Result<PublicKey, SignFault> {
        Err(no_vault(uri))
    }

    fn signer(&self, uri: &str, public: PublicKey) -> Result<Arc<dyn Signer>, SignFault> {
        Ok(Arc::new(Unreachable { uri: uri.to_owned(), public }))
    }
}

/// A key in a place that is not reached from here.
#[derive(Debug)]
struct Unreachable {
    uri: String,
    public: PublicKey,
}

#[async_trait]
impl Signer for Unreachable {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    async fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, SignFault> {
        Err(no_vault(&self.uri))
    }

    async fn ready(&self) -> Result<(), SignFault> {
        Err(no_vault(&self.uri))
    }
}

fn no_vault(uri: &str) -> SignFault {
    SignFault::Unavailable(format!("this program was built without what reaches `{uri}`"))
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
