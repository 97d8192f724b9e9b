//! Authorities at rest: certificates and their key, sealed together, so that neither can be swapped for another's.

use std::sync::Arc;

use countersign_identity::{Code, Entropy, KeyId};
use countersign_pki::{Certificate, Issuer, KeyVault, PrivateKey, Signer, SoftwareSigner};
use countersign_seal::{Kek, OpenRefused};
use countersign_store::{Op, Store};
use zeroize::Zeroizing;

use crate::authority::{Authorities, Signing};
use crate::refusal::Refused;

/// Where the root is kept.
pub(crate) const ROOT: &str = "authority/root";
/// Where the issuer is kept that signs now.
pub(crate) const ISSUER: &str = "authority/issuer";
/// Where the key is kept that waits for a certificate from outside.
const REQUEST: &str = "authority/request";

/// What follows the certificates: the private key itself.
const HERE: u8 = 0;
/// What follows the certificates: nothing, the key is not ours.
const OUTSIDE: u8 = 1;
/// What follows the certificates: the name of the key in a token.
const TOKEN: u8 = 2;

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

/// An authority as it is kept.
pub(crate) struct Kept {
    /// Its certificate.
    pub(crate) certificate: Certificate,
    /// The authorities between it and its root, the nearest first.
    pub(crate) above: Vec<Certificate>,
    /// Its private key.
    pub(crate) key: KeptKey,
}

/// Where the private key of an authority is.
pub(crate) enum KeptKey {
    /// Here.
    Here(PrivateKey),
    /// With somebody else, who signs by ceremony.
    Outside,
    /// In a token, under this name.
    Token(String),
}

/// The same, to be sealed.
#[derive(Clone, Copy)]
pub(crate) enum KeyToKeep<'a> {
    /// Here.
    Here(&'a PrivateKey),
    /// With somebody else.
    Outside,
    /// In a token.
    Token(&'a str),
}

impl KeptKey {
    /// What is sealed of it.
    pub(crate) fn to_keep(&self) -> KeyToKeep<'_> {
        match self {
            Self::Here(key) => KeyToKeep::Here(key),
            Self::Outside => KeyToKeep::Outside,
            Self::Token(uri) => KeyToKeep::Token(uri),
        }
    }
}

impl Kept {
    /// What signs for it; nothing when its key is outside.
    fn signer(self, vault: &dyn KeyVault) -> Result<Option<Arc<dyn Signer>>, Refused> {
        match self.key {
            KeptKey::Here(key) => Ok(Some(Arc::new(SoftwareSigner::from(key)))),
            KeptKey::Outside => Ok(None),
            KeptKey::Token(uri) => {
                let public = self.certificate.public_key();
                let public = public.map_err(|bad| broken(&bad.to_string()))?;
                Ok(Some(vault.signer(&uri, public)?))
            }
        }
    }

    /// The operation that keeps it under another name.
    ///
    /// # Errors
    /// As for [`keep`].
    pub(crate) fn keep_as(
        &self,
        name: &str,
        kek: &Kek,
        entropy: &dyn Entropy,
    ) -> Result<Op, Refused> {
        let certificates: Vec<_> = [&self.certificate].into_iter().chain(&self.above).collect();
        keep(name, &certificates, self.key.to_keep(), kek, entropy)
    }
}

/// The operation that keeps an authority under a name: its certificate, those between it and its root, and its key.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn keep(
    name: &str,
    certificates: &[&Certificate],
    key: KeyToKeep<'_>,
    kek: &Kek,
    entropy: &dyn Entropy,
) -> Result<Op, Refused> {
    let (kind, secret) = match key {
        KeyToKeep::Here(key) => (HERE, key.pkcs8()),
        KeyToKeep::Outside => (OUTSIDE, &[][..]),
        KeyToKeep::Token(uri) => (TOKEN, uri.as_bytes()),
    };
    let length: usize = certificates.iter().map(|one| 4 + one.der().len()).sum();
    // As long as it becomes, so that no copy of the key is left behind by growth.
    let mut plain = Zeroizing::new(Vec::with_capacity(2 + length + secret.len()));
    plain.push(u8::try_from(certificates.len()).expect("a path to a root is short"));
    for certificate in certificates {
        let der = certificate.der();
        let length = u32::try_from(der.len()).expect("a certificate is shorter than 4 GiB");
        plain.extend_from_slice(&length.to_be_bytes());
        plain.extend_from_slice(der);
    }
    plain.push(kind);
    plain.extend_from_slice(secret);
    put(name, &plain, kek, entropy)
}

/// The operation that keeps a key which waits for its certificate.
///
/// # Errors
/// As for [`keep`].
pub(crate) fn keep_request(
    key: &PrivateKey,
    kek: &Kek,
    entropy: &dyn Entropy,
) -> Result<Op, Refused> {
    put(REQUEST, key.pkcs8(), kek, entropy)
}

/// The operation that throws that key away.
pub(crate) fn destroy_request() -> Op {
    destroy(REQUEST.to_owned())
}

/// Opens the key that waits for its certificate; nothing when none does.
///
/// # Errors
/// When the store does not answer, or the key does not open.
pub(crate) async fn open_request(
    store: &dyn Store,
    kek: &Kek,
) -> Result<Option<PrivateKey>, Refused> {
    match store.secret(REQUEST).await? {
        Some(sealed) if !sealed.is_empty() => open_waiting(&sealed, kek).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Seals the key of a trust domain that has no store yet.
///
/// # Errors
/// As for [`keep`].
pub(crate) fn seal_waiting(
    key: &PrivateKey,
    kek: &Kek,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, Refused> {
    let sealed = countersign_seal::seal(kek, REQUEST, key.pkcs8(), entropy);
    sealed.map_err(|refused| Refused::new(Code::Internal, refused.to_string()))
}

/// Opens what that came to.
///
/// # Errors
/// When it does not open.
pub(crate) fn open_waiting(sealed: &[u8], kek: &Kek) -> Result<PrivateKey, Refused> {
    let opened = countersign_seal::open(kek, REQUEST, sealed)
        .map_err(|refused| Refused::new(Code::Sealed, refused.to_string()))?;
    PrivateKey::from_pkcs8(&opened).map_err(|bad| broken(&bad.to_string()))
}

fn put(name: &str, plain: &[u8], kek: &Kek, entropy: &dyn Entropy) -> Result<Op, Refused> {
    let sealed = countersign_seal::seal(kek, name, plain, entropy)
        .map_err(|refused| Refused::new(Code::Internal, refused.to_string()))?;
    Ok(Op::PutSecret { name: name.to_owned(), sealed })
}

/// Opens the authorities that the store keeps.
///
/// # Errors
/// When the store does not answer, or what was opened is not what was sealed.
pub(crate) async fn unseal(
    store: &dyn Store,
    kek: &Kek,
    vault: &dyn KeyVault,
) -> Result<Unsealed, Refused> {
    let root = match open(store, ROOT, kek).await? {
        Opened::Authority(kept) => kept,
        Opened::Refused(refused) => return Ok(Unsealed::Sealed(refused.to_string())),
    };
    let issuer = match open(store, ISSUER, kek).await? {
        Opened::Authority(kept) => kept,
        Opened::Refused(refused) => return Ok(Unsealed::Sealed(refused.to_string())),
    };
    Ok(Unsealed::Open(Authorities::of(root, issuer, vault)?))
}

impl Authorities {
    /// What signs, of what was kept.
    ///
    /// # Errors
    /// When the issuer is none, or its key is not here.
    pub(crate) fn of(root: Kept, issuer: Kept, vault: &dyn KeyVault) -> Result<Self, Refused> {
        let certificate = root.certificate.clone();
        let Signing { issuer, above, signer } =
            signing(issuer, vault)?.ok_or_else(|| broken("the issuer's key is not here"))?;
        Ok(Self { root: certificate, root_signer: root.signer(vault)?, issuer, above, signer })
    }
}

/// Opens one authority.
///
/// # Errors
/// When the store does not answer, its key was destroyed, or it does not open.
pub(crate) async fn open_authority(
    store: &dyn Store,
    name: &str,
    kek: &Kek,
) -> Result<Kept, Refused> {
    match open(store, name, kek).await? {
        Opened::Authority(kept) => Ok(kept),
        Opened::Refused(refused) => Err(Refused::new(Code::Sealed, refused.to_string())),
    }
}

/// Opens an authority that signs no more, or not yet; nothing when none of this key is kept, or its key is not here any more,
/// or never was.
///
/// # Errors
/// When the store does not answer, or what is kept does not open.
pub(crate) async fn former(
    store: &dyn Store,
    kek: &Kek,
    vault: &dyn KeyVault,
    key: KeyId,
) -> Result<Option<Signing>, Refused> {
    for name in [issuer_name(key), root_name(key)] {
        if store.secret(&name).await?.is_none_or(|sealed| sealed.is_empty()) {
            continue;
        }
        return signing(open_authority(store, &name, kek).await?, vault);
    }
    Ok(None)
}

fn signing(kept: Kept, vault: &dyn KeyVault) -> Result<Option<Signing>, Refused> {
    let (certificate, above) = (kept.certificate.clone(), kept.above.clone());
    let Some(signer) = kept.signer(vault)? else { return Ok(None) };
    let issuer = Issuer::from_certificate(certificate);
    Ok(Some(Signing { issuer: issuer.map_err(|bad| broken(&bad.to_string()))?, above, signer }))
}

enum Opened {
    Authority(Kept),
    Refused(OpenRefused),
}

async fn open(store: &dyn Store, name: &str, kek: &Kek) -> Result<Opened, Refused> {
    let sealed =
        store.secret(name).await?.ok_or_else(|| broken(&format!("the store holds no `{name}`")))?;
    if sealed.is_empty() {
        return Err(broken(&format!("the key of `{name}` was destroyed when it retired")));
    }
    match countersign_seal::open(kek, name, &sealed) {
        Ok(plain) => Ok(Opened::Authority(read(&plain)?)),
        Err(refused) => Ok(Opened::Refused(refused)),
    }
}

/// Takes apart what [`keep`] put together.
fn read(plain: &[u8]) -> Result<Kept, Refused> {
    let short = || broken("it is too short");
    let (count, mut rest) = plain.split_first().ok_or_else(short)?;
    let mut certificates = Vec::new();
    for _certificate in 0..*count {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (der, after) = after.split_at_checked(length).ok_or_else(short)?;
        let parsed = Certificate::parse(der).map_err(|bad| broken(&bad.to_string()))?;
        certificates.push(parsed);
        rest = after;
    }
    let (kind, secret) = rest.split_first().ok_or_else(short)?;
    let key = match *kind {
        HERE => {
            KeptKey::Here(PrivateKey::from_pkcs8(secret).map_err(|bad| broken(&bad.to_string()))?)
        }
        OUTSIDE => KeptKey::Outside,
        TOKEN => KeptKey::Token(String::from_utf8_lossy(secret).into_owned()),
        other => return Err(broken(&format!("its key is kept in way {other}"))),
    };
    let mut certificates = certificates.into_iter();
    let certificate = certificates.next().ok_or_else(short)?;
    Ok(Kept { certificate, above: certificates.collect(), key })
}

fn broken(why: &str) -> Refused {
    Refused::new(Code::Internal, format!("a sealed authority cannot be used: {why}"))
}
