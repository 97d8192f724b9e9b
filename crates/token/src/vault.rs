//! Keys in tokens, as those see them who sign.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use countersign_pki::{KeyVault, PublicKey, SignFault, Signer, ecdsa_signature};

use crate::module::{Opened, Trouble, Wish, with_key};
use crate::{PinFrom, TokenUri};

/// The tokens that this machine reaches.
#[derive(Clone, Debug)]
pub struct Tokens {
    pin: PinFrom,
}

impl Tokens {
    /// Those whose PIN comes from there.
    pub fn new(pin: PinFrom) -> Self {
        Self { pin }
    }

    /// The public half of a key.
    async fn look(&self, uri: &str, wish: Wish) -> Result<PublicKey, SignFault> {
        let looked = with_key(parse(uri)?, self.pin.clone(), wish, |_uri, key| public(&key.point));
        looked.await.map_err(unavailable)
    }
}

fn parse(uri: &str) -> Result<TokenUri, SignFault> {
    uri.parse().map_err(|bad: crate::BadTokenUri| SignFault::Failed(bad.to_string()))
}

fn public(point: &[u8]) -> Result<PublicKey, Trouble> {
    PublicKey::from_p256_point(point).map_err(|bad| Trouble::Final(bad.to_string()))
}

fn same(uri: &TokenUri, key: &Opened, expected: &PublicKey) -> Result<(), Trouble> {
    let found = public(&key.point)?;
    if found == *expected {
        return Ok(());
    }
    Err(Trouble::Final(format!("key `{uri}` is another one by now: `{}`", found.id())))
}

fn unavailable(trouble: Trouble) -> SignFault {
    SignFault::Unavailable(trouble.into_text())
}

#[async_trait]
impl KeyVault for Tokens {
    fn check(&self, uri: &str) -> Result<(), String> {
        uri.parse().map(|_uri: TokenUri| ()).map_err(|bad: crate::BadTokenUri| bad.to_string())
    }

    async fn find(&self, uri: &str) -> Result<PublicKey, SignFault> {
        self.look(uri, Wish::Find).await
    }

    async fn find_or_make(&self, uri: &str) -> Result<PublicKey, SignFault> {
        self.look(uri, Wish::FindOrMake).await
    }

    fn signer(&self, uri: &str, public: PublicKey) -> Result<Arc<dyn Signer>, SignFault> {
        let (uri, pin, trouble) = (parse(uri)?, self.pin.clone(), Mutex::new(None));
        Ok(Arc::new(TokenSigner { uri, public, pin, trouble }))
    }
}

/// A key in a token.
#[derive(Debug)]
struct TokenSigner {
    uri: TokenUri,
    public: PublicKey,
    pin: PinFrom,
    /// What kept it from signing when it was last asked to.
    trouble: Mutex<Option<String>>,
}

impl TokenSigner {
    /// Opens the key, if it is the one that is meant, and gives it to `act`.
    async fn with<T: Send + 'static>(
        &self,
        act: impl Fn(&TokenUri, &Opened) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, SignFault> {
        let (uri, pin, expected) = (self.uri.clone(), self.pin.clone(), self.public.clone());
        let done = with_key(uri, pin, Wish::Find, move |uri, key| {
            same(uri, key, &expected)?;
            act(uri, key)
        });
        let done = done.await.map_err(unavailable);
        let trouble = done.as_ref().err().map(ToString::to_string);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        done
    }
}

#[async_trait]
impl Signer for TokenSigner {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    async fn ready(&self) -> Result<(), SignFault> {
        self.with(|_uri, _key| Ok(())).await
    }

    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        let digest = digest(&SHA256, message);
        let halves = self.with(move |uri, key| key.sign(uri, digest.as_ref())).await?;
        let signature = ecdsa_signature(&halves).ok_or(SignFault::BadSignature)?;
        // What is foreign is not believed.
        self.public.verify(message, &signature).map_err(|_bad| SignFault::BadSignature)?;
        Ok(signature)
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
