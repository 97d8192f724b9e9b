//! Authorities at rest: a certificate and its key, sealed together, so that neither can be swapped for another's.

use std::sync::Arc;

use countersign_identity::{Code, Entropy, KeyId};
use countersign_pki::{Certificate, Issuer, PrivateKey, SoftwareSigner};
use countersign_seal::{Kek, OpenRefused};
use countersign_store::{Op, Store};
use zeroize::Zeroizing;

use crate::authority::{Authorities, Signing};
use crate::refusal::Refused;

/// Where the root is kept.
pub(crate) const ROOT: &str = "authority/root";
/// Where the issuer is kept that signs now.
pub(crate) const ISSUER: &str = "authority/issuer";

/// Where a root is kept that does not sign now.
pub(crate) fn root_name(key: KeyId) -> String {
    format!("{ROOT}/{key}")
}

/// The operation that destroys the key of an authority: its name is kept, its bytes are not.
pub(crate) fn destroy(name: String) -> Op {
    Op::PutSecret { name, sealed: Vec::new() }
}

/// Where each issuer is kept besides, from its beginning: a successor takes the other place, and what this one signed is
/// out for longer.
pub(crate) fn issuer_name(key: KeyId) -> String {
    format!("{ISSUER}/{key}")
}

/// What opening the sealed authorities came to.
#[derive(Debug)]
pub(crate) enum Unsealed {
    /// They are in memory.
    Open(Authorities),
    /// The key-encryption key does not open them. The server starts sealed.
    Sealed(String),
}

/// The operation that keeps an authority under a name.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn keep(
    name: &str,
    certificate: &Certificate,
    key: &PrivateKey,
    kek: &Kek,
    entropy: &dyn Entropy,
) -> Result<Op, Refused> {
    let der = certificate.der();
    let length = u32::try_from(der.len()).expect("a certificate is shorter than 4 GiB");
    let mut plain = Zeroizing::new(Vec::with_capacity(4 + der.len() + key.pkcs8().len()));
    plain.extend_from_slice(&length.to_be_bytes());
    plain.extend_from_slice(der);
    plain.extend_from_slice(key.pkcs8());
    let sealed = countersign_seal::seal(kek, name, &plain, entropy)
        .map_err(|refused| Refused::new(Code::Internal, refused.to_string()))?;
    Ok(Op::PutSecret { name: name.to_owned(), sealed })
}

/// Opens the authorities that the store keeps.
///
/// # Errors
/// When the store does not answer, or what was opened is not what was sealed.
pub(crate) async fn unseal(store: &dyn Store, kek: &Kek) -> Result<Unsealed, Refused> {
    let root = match open(store, ROOT, kek).await? {
        Opened::Authority(certificate, key) => (certificate, key),
        Opened::Refused(refused) => return Ok(Unsealed::Sealed(refused.to_string())),
    };
    let issuer = match open(store, ISSUER, kek).await? {
        Opened::Authority(certificate, key) => (certificate, key),
        Opened::Refused(refused) => return Ok(Unsealed::Sealed(refused.to_string())),
    };
    let authority = |certificate: Certificate| {
        Issuer::from_certificate(certificate).map_err(|refusal| broken(&refusal.to_string()))
    };
    Ok(Unsealed::Open(Authorities {
        root: authority(root.0)?,
        root_signer: Arc::new(SoftwareSigner::from(root.1)),
        issuer: authority(issuer.0)?,
        signer: Arc::new(SoftwareSigner::from(issuer.1)),
    }))
}

/// Opens one authority.
///
/// # Errors
/// When the store does not answer, its key was destroyed, or it does not open.
pub(crate) async fn open_authority(
    store: &dyn Store,
    name: &str,
    kek: &Kek,
) -> Result<(Certificate, PrivateKey), Refused> {
    match open(store, name, kek).await? {
        Opened::Authority(certificate, key) => Ok((certificate, key)),
        Opened::Refused(refused) => Err(Refused::new(Code::Sealed, refused.to_string())),
    }
}

/// Opens an authority that signs no more, or not yet; nothing when none of this key is kept, or its key was destroyed.
///
/// # Errors
/// When the store does not answer, or what is kept does not open.
pub(crate) async fn former(
    store: &dyn Store,
    kek: &Kek,
    key: KeyId,
) -> Result<Option<Signing>, Refused> {
    for name in [issuer_name(key), root_name(key)] {
        if store.secret(&name).await?.is_none_or(|sealed| sealed.is_empty()) {
            continue;
        }
        let (certificate, private) = open_authority(store, &name, kek).await?;
        let issuer = Issuer::from_certificate(certificate);
        let issuer = issuer.map_err(|bad| broken(&bad.to_string()))?;
        return Ok(Some(Signing { issuer, signer: Arc::new(SoftwareSigner::from(private)) }));
    }
    Ok(None)
}

enum Opened {
    Authority(Certificate, PrivateKey),
    Refused(OpenRefused),
}

async fn open(store: &dyn Store, name: &str, kek: &Kek) -> Result<Opened, Refused> {
    let sealed =
        store.secret(name).await?.ok_or_else(|| broken(&format!("the store holds no `{name}`")))?;
    if sealed.is_empty() {
        return Err(broken(&format!("the key of `{name}` was destroyed when it retired")));
    }
    let plain = match countersign_seal::open(kek, name, &sealed) {
        Ok(plain) => plain,
        Err(refused) => return Ok(Opened::Refused(refused)),
    };
    let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(|| broken("it is too short"))?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let (der, pkcs8) = rest.split_at_checked(length).ok_or_else(|| broken("it is too short"))?;
    let certificate = Certificate::parse(der).map_err(|bad| broken(&bad.to_string()))?;
    let key = PrivateKey::from_pkcs8(pkcs8).map_err(|bad| broken(&bad.to_string()))?;
    Ok(Opened::Authority(certificate, key))
}

fn broken(why: &str) -> Refused {
    Refused::new(Code::Internal, format!("a sealed authority cannot be used: {why}"))
}
