//! Certificate signing requests: how a key's holder proves that it holds it.

use countersign_identity::{Code, TrustDomain};

use crate::der::{self, BadDer, Reader};
use crate::{BadKey, BadSignature, PrivateKey, PublicKey, SignFault, oid, write};

/// The longest request that is read.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

const VERSION_1: &[u8] = &[0x02, 0x01, 0x00];
const EMPTY_NAME: &[u8] = &[0x30, 0x00];
const NO_ATTRIBUTES: &[u8] = &[0xa0, 0x00];

/// A public key whose holder has shown that it holds the private half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenKey(PublicKey);

impl ProvenKey {
    /// Claims the proof. Only what has just verified a signature of the key, or holds it, may.
    fn assertion(key: PublicKey) -> Self {
        Self(key)
    }

    /// The key of somebody who signed a statement with it. What the statement says, and that it is
    /// fresh, the caller checks.
    ///
    /// # Errors
    /// When the signature is not this key's over this statement.
    pub fn by_statement(
        key: &PublicKey,
        statement: &[u8],
        signature: &[u8],
    ) -> Result<Self, BadSignature> {
        key.verify(statement, signature)?;
        Ok(Self::assertion(key.clone()))
    }

    /// The key of somebody who holds it in this very process.
    pub fn of(key: &PrivateKey) -> Self {
        Self::assertion(key.public().clone())
    }

    /// The key.
    pub fn public(&self) -> &PublicKey {
        &self.0
    }
}

/// Why a signing request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrRefused {
    /// Over the bound.
    #[error("a signing request of {bytes} bytes is over the limit of {CSR_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Not the DER of a PKCS#10 request.
    #[error("the signing request does not parse: {0}")]
    Malformed(String),
    /// A key that we do not certify.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Signed with something else than the key's own algorithm.
    #[error("the signing request's signature algorithm is not the one of its key")]
    Algorithm,
    /// Not signed by the key that it holds.
    #[error("the signing request is not signed by the key in it")]
    Signature,
}

impl CsrRefused {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Long { .. } => Code::TooLarge,
            Self::Malformed(_) | Self::Key(BadKey::Malformed(_)) => Code::NotUnderstood,
            Self::Key(BadKey::Weak(_)) | Self::Algorithm => Code::WeakKey,
            Self::Signature => Code::BadPossession,
        }
    }
}

impl From<BadDer> for CsrRefused {
    fn from(bad: BadDer) -> Self {
        Self::Malformed(bad.to_string())
    }
}

/// Makes a request (PKCS#10, RFC 2986) that says nothing but: this is my key.
///
/// # Errors
/// When the key cannot sign.
pub fn make_csr(key: &PrivateKey) -> Result<Vec<u8>, SignFault> {
    sign_csr(key, EMPTY_NAME, NO_ATTRIBUTES)
}

/// Makes a request for an issuer's certificate, to be signed by somebody else's authority: it asks for the extensions that an
/// issuer of this trust domain needs, so that the authority only has to copy them.
///
/// # Errors
/// When the key cannot sign.
pub fn make_authority_csr(key: &PrivateKey, domain: &TrustDomain) -> Result<Vec<u8>, SignFault> {
    let extensions = der::write(der::SEQUENCE, &[&write::issuer_extensions(domain)]);
    let id = der::write(der::OID, &[oid::EXTENSION_REQUEST]);
    let wanted = der::write(der::SEQUENCE, &[&id, &der::write(der::SET, &[&extensions])]);
    let attributes = der::write(der::context_constructed(0), &[&wanted]);
    sign_csr(key, &write::issuer_name(domain), &attributes)
}

fn sign_csr(key: &PrivateKey, subject: &[u8], attributes: &[u8]) -> Result<Vec<u8>, SignFault> {
    let contents = [VERSION_1, subject, key.public().spki(), attributes];
    let info = der::write(der::SEQUENCE, &contents);
    let signature = der::write_bytes_as_bits(&key.sign(&info)?);
    let algorithm = key.public().kind().signature_algorithm();
    Ok(der::write(der::SEQUENCE, &[&info, algorithm, &signature]))
}

/// Takes the key out of a request, and nothing else: names and extensions in it are not looked at.
///
/// # Errors
/// When it is too long, is not strict DER, holds a key that we do not certify, or is not signed by it.
pub fn open_csr(csr: &[u8]) -> Result<ProvenKey, CsrRefused> {
    if CSR_BYTES_MAX < csr.len() {
        return Err(CsrRefused::Long { bytes: csr.len() });
    }
    let mut reader = Reader::new(csr);
    let mut request = reader.take(der::SEQUENCE, "signing request")?.inside();
    reader.end("signing request")?;
    let info = request.take(der::SEQUENCE, "request info")?;
    let algorithm = request.take(der::SEQUENCE, "signature algorithm")?;
    let signature = request.take(der::BIT_STRING, "signature")?.whole_bytes()?;
    request.end("signing request")?;

    let mut inside = info.inside();
    if inside.take(der::INTEGER, "version")?.raw() != VERSION_1 {
        return Err(CsrRefused::Malformed("the version is not 1".to_owned()));
    }
    inside.take(der::SEQUENCE, "subject")?;
    let spki = inside.take(der::SEQUENCE, "public key")?;
    inside.optional(der::context_constructed(0), "attributes")?;
    inside.end("request info")?;

    let key = PublicKey::from_spki(spki.raw())?;
    if algorithm.raw() != key.kind().signature_algorithm() {
        return Err(CsrRefused::Algorithm);
    }
    key.verify(info.raw(), signature).map_err(|_bad| CsrRefused::Signature)?;
    Ok(ProvenKey::assertion(key))
}
