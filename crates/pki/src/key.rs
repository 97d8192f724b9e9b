//! Our own keys: public halves with their ids, and private halves that sign.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey, RSA_PKCS1_SHA256, RsaKeyPair,
};
use countersign_identity::{KeyId, Sha256};
use zeroize::Zeroizing;

use crate::algorithm::{self, BadKey, KeyAlgorithm, VerifyingKey};
use crate::der::{self, Reader};

/// The kinds of key that we make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    P256,
    /// ECDSA on P-384 with SHA-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 bits, for clients that know nothing else.
    Rsa2048,
    /// RSA of 3072 bits, for clients that know nothing else.
    Rsa3072,
}

/// A text that names no kind of key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a kind of key: expected `ecdsa-p256`, `ecdsa-p384`, `ed25519`, `rsa-2048` or `rsa-3072`"
)]
pub struct BadKeyKind(String);

/// A public key of a kind that we make, with its canonical `SubjectPublicKeyInfo`. Cheap to clone.
#[derive(Clone)]
pub struct PublicKey(Arc<Read>);

/// A public key that the library has read, so that it does not read it again for each signature.
struct Read {
    kind: KeyKind,
    spki: Box<[u8]>, // INVARIANT: the one DER encoding of a key of this kind
    id: KeyId,       // INVARIANT: SHA-256 of these bytes
    verifier: ParsedPublicKey,
}

/// A private key in memory, wiped when dropped. It cannot be cloned and does not print.
pub struct PrivateKey {
    pair: Pair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

enum Pair {
    Ecdsa(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// Why a private key could not be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The library could not make one: no randomness or no memory.
    #[error("a private key could not be made")]
    NotMade,
    /// The bytes are not one of ours.
    #[error("not a PKCS#8 private key on P-256, P-384, Ed25519 or of RSA with 2048 or 3072 bits")]
    Malformed,
}

/// A signature that does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// Why something was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignFault {
    /// The signer is away: a token, a cloud service.
    #[error("the signer is not reachable: {0}")]
    Unavailable(String),
    /// The signer answered with an error.
    #[error("the signer failed: {0}")]
    Failed(String),
    /// The signer holds another key than the issuer's certificate.
    #[error("the signer's key `{found}` is not the issuer's `{expected}`")]
    WrongKey {
        /// The issuer's.
        expected: KeyId,
        /// The signer's.
        found: KeyId,
    },
    /// The receipt is for other contents.
    #[error("the record holds `{recorded}`, which is not what would be signed, `{reviewed}`")]
    WrongReceipt {
        /// What was reviewed.
        reviewed: Sha256,
        /// What the receipt says.
        recorded: Sha256,
    },
    /// What the signer gave is no signature of its key: a broken or tampered signer.
    #[error("the signer gave a signature that does not verify")]
    BadSignature,
    /// The finished certificate fails our own checks.
    #[error("the finished certificate is not one that we would accept: {0}")]
    BadResult(String),
}

impl SignFault {
    /// The stable code.
    pub fn code(&self) -> countersign_identity::Code {
        use countersign_identity::Code;
        match self {
            Self::Unavailable(_) => Code::Unavailable,
            Self::Failed(_)
            | Self::WrongKey { .. }
            | Self::WrongReceipt { .. }
            | Self::BadSignature
            | Self::BadResult(_) => Code::Internal,
        }
    }
}

/// An ECDSA signature on P-256 in ASN.1 form, of its two numbers in 32 bytes each; nothing when they are not that long.
pub fn ecdsa_signature(halves: &[u8]) -> Option<Vec<u8>> {
    crate::jws::of_halves(halves, 32)
}

/// SHA-256 of the bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

impl KeyKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::P256, Self::P384, Self::Ed25519, Self::Rsa2048, Self::Rsa3072];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "ecdsa-p256",
            Self::P384 => "ecdsa-p384",
            Self::Ed25519 => "ed25519",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
        }
    }

    /// Whether making one takes so long (a tenth of a second and more) that it needs a thread of its own.
    pub const fn is_slow_to_make(self) -> bool {
        self.is_rsa()
    }

    /// Whether it is RSA, which is for workloads alone whose clients know nothing else.
    pub const fn is_rsa(self) -> bool {
        match self {
            Self::Rsa2048 | Self::Rsa3072 => true,
            Self::P256 | Self::P384 | Self::Ed25519 => false,
        }
    }

    /// The `AlgorithmIdentifier` of its signatures.
    pub(crate) const fn signature_algorithm(self) -> &'static [u8] {
        match self {
            Self::P256 => algorithm::ECDSA_SHA256,
            Self::P384 => algorithm::ECDSA_SHA384,
            Self::Ed25519 => algorithm::ED25519,
            Self::Rsa2048 | Self::Rsa3072 => algorithm::RSA_SHA256,
        }
    }
}

/// The exponent of every RSA key that is made today (F4).
const RSA_EXPONENT: u64 = 65_537;

/// The kind of an RSA key of this size; others are not certified, and not made.
fn rsa_kind(bits: usize, exponent: u64) -> Result<KeyKind, BadKey> {
    match (bits, exponent) {
        (2048, RSA_EXPONENT) => Ok(KeyKind::Rsa2048),
        (3072, RSA_EXPONENT) => Ok(KeyKind::Rsa3072),
        (bits, RSA_EXPONENT) => Err(BadKey::Weak(format!("RSA of {bits} bits"))),
        (_, exponent) => Err(BadKey::Weak(format!("RSA with the exponent {exponent}"))),
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyKind {
    type Err = BadKeyKind;

    fn from_str(text: &str) -> Result<Self, BadKeyKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| BadKeyKind(text.chars().take(80).collect()))
    }
}

impl serde::Serialize for KeyKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for KeyKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl PublicKey {
    /// Takes the DER of a `SubjectPublicKeyInfo`: a point on P-256 or P-384 in its uncompressed form, an Ed25519 key, or an
    /// RSA key of 2048 or 3072 bits with the usual exponent.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_spki(spki: &[u8]) -> Result<Self, BadKey> {
        let key = VerifyingKey::from_spki(spki)?;
        let kind = match key.algorithm {
            KeyAlgorithm::P256 => KeyKind::P256,
            KeyAlgorithm::P384 => KeyKind::P384,
            KeyAlgorithm::Ed25519 => KeyKind::Ed25519,
            KeyAlgorithm::Rsa => {
                let (bits, exponent) = key.rsa_size().unwrap_or_default();
                rsa_kind(bits, exponent)?
            }
        };
        let verifier = key.read()?;
        let id = KeyId::from_bytes(sha256(spki));
        Ok(Self(Arc::new(Read { kind, spki: spki.into(), id, verifier })))
    }

    /// The DER of the `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.0.kind
    }

    /// SHA-256 of the `SubjectPublicKeyInfo`.
    pub fn id(&self) -> KeyId {
        self.0.id
    }

    /// Verifies a signature as [`Signer::sign`](crate::Signer::sign) makes it.
    ///
    /// # Errors
    /// When it is not this key's signature over this message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        self.0.verifier.verify_sig(message, signature).map_err(|_unspecified| BadSignature)
    }

    /// A key on P-256, of its point in the uncompressed form.
    ///
    /// # Errors
    /// When that is no point on the curve.
    pub fn from_p256_point(point: &[u8]) -> Result<Self, BadKey> {
        let bits = der::write_bytes_as_bits(point);
        Self::from_spki(&der::write(der::SEQUENCE, &[algorithm::P256_KEY, &bits]))
    }

    /// From the key bits alone, which the library made.
    fn from_bits(algorithm: &[u8], bits: &[u8]) -> Result<Self, KeyFault> {
        let bits = der::write_bytes_as_bits(bits);
        let spki = der::write(der::SEQUENCE, &[algorithm, &bits]);
        Self::from_spki(&spki).map_err(|_bad| KeyFault::Malformed)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.spki.hash(state);
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.kind(), self.id())
    }
}

impl PrivateKey {
    /// Makes a new key. One that [is slow to make](KeyKind::is_slow_to_make) is not for a thread on which others wait.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyFault> {
        let not_made = |_unspecified| KeyFault::NotMade;
        match kind {
            KeyKind::P256 | KeyKind::P384 => {
                let (signing, algorithm) = ecdsa(kind).ok_or(KeyFault::NotMade)?;
                Self::from_ecdsa(EcdsaKeyPair::generate(signing).map_err(not_made)?, algorithm)
            }
            KeyKind::Ed25519 => Self::from_ed25519(Ed25519KeyPair::generate().map_err(not_made)?),
            KeyKind::Rsa2048 => {
                Self::from_rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(not_made)?)
            }
            KeyKind::Rsa3072 => {
                Self::from_rsa(RsaKeyPair::generate(KeySize::Rsa3072).map_err(not_made)?)
            }
        }
    }

    /// Reads an unencrypted PKCS#8 document.
    ///
    /// # Errors
    /// When it does not hold a key of a kind that we make, or its two halves do not match.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyFault> {
        let malformed = |_rejected| KeyFault::Malformed;
        // What the document says that it holds is what it is read as.
        let said = said_algorithm(pkcs8).map_err(|_bad| KeyFault::Malformed)?;
        match said {
            algorithm::ED25519 => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(malformed)?;
                Self::from_ed25519(pair)
            }
            algorithm::RSA_KEY => Self::from_rsa(RsaKeyPair::from_pkcs8(pkcs8).map_err(malformed)?),
            said => {
                let kind = [KeyKind::P256, KeyKind::P384].into_iter().filter_map(ecdsa);
                let (signing, algorithm) = kind
                    .into_iter()
                    .find(|(_, algorithm)| *algorithm == said)
                    .ok_or(KeyFault::Malformed)?;
                let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8).map_err(malformed)?;
                Self::from_ecdsa(pair, algorithm)
            }
        }
    }

    fn from_ecdsa(pair: EcdsaKeyPair, algorithm: &[u8]) -> Result<Self, KeyFault> {
        // Version 1 of PKCS#8, which every reader knows.
        let pkcs8 = pair.to_pkcs8v1().map_err(|_unspecified| KeyFault::NotMade)?;
        Ok(Self {
            public: PublicKey::from_bits(algorithm, pair.public_key().as_ref())?,
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            pair: Pair::Ecdsa(Box::new(pair)),
        })
    }

    fn from_rsa(pair: RsaKeyPair) -> Result<Self, KeyFault> {
        // Of version 1, too.
        let pkcs8 = pair.as_der().map_err(|_unspecified| KeyFault::NotMade)?;
        Ok(Self {
            public: PublicKey::from_bits(algorithm::RSA_KEY, pair.public_key().as_ref())?,
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            pair: Pair::Rsa(Box::new(pair)),
        })
    }

    fn from_ed25519(pair: Ed25519KeyPair) -> Result<Self, KeyFault> {
        let pkcs8 = pair.to_pkcs8v1().map_err(|_unspecified| KeyFault::NotMade)?;
        Ok(Self {
            public: PublicKey::from_bits(algorithm::ED25519, pair.public_key().as_ref())?,
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            pair: Pair::Ed25519(Box::new(pair)),
        })
    }

    /// The unencrypted PKCS#8 document, version 1.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs: ECDSA in ASN.1 form over SHA-256 (on P-384 SHA-384), Ed25519, or RSA's PKCS#1 over SHA-256.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message).map(to_bytes),
            Pair::Ed25519(pair) => pair.try_sign(message).map(to_bytes),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let random = SystemRandom::new();
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map(|()| signature)
            }
        };
        signature.map_err(|_unspecified| SignFault::Failed("the library gave no reason".to_owned()))
    }
}

fn to_bytes(signature: aws_lc_rs::signature::Signature) -> Vec<u8> {
    signature.as_ref().to_vec()
}

/// How keys on this curve sign, and how they are named.
fn ecdsa(kind: KeyKind) -> Option<(&'static EcdsaSigningAlgorithm, &'static [u8])> {
    match kind {
        KeyKind::P256 => Some((&ECDSA_P256_SHA256_ASN1_SIGNING, algorithm::P256_KEY)),
        KeyKind::P384 => Some((&ECDSA_P384_SHA384_ASN1_SIGNING, algorithm::P384_KEY)),
        KeyKind::Ed25519 | KeyKind::Rsa2048 | KeyKind::Rsa3072 => None,
    }
}

/// The `AlgorithmIdentifier` in a PKCS#8 document (RFC 5958, 2).
fn said_algorithm(pkcs8: &[u8]) -> Result<&[u8], der::BadDer> {
    let mut document = Reader::new(pkcs8).take(der::SEQUENCE, "private key")?.inside();
    document.take(der::INTEGER, "version")?;
    Ok(document.take(der::SEQUENCE, "key algorithm")?.raw())
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}
