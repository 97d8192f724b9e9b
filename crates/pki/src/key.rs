//! Our own keys: public halves with their ids, and private halves that sign.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use countersign_identity::{KeyId, Sha256};
use zeroize::Zeroizing;

use crate::algorithm::{self, BadKey, KeyAlgorithm, VerifyingKey};
use crate::der;

/// The kinds of key that we make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    P256,
    /// Ed25519.
    Ed25519,
}

/// A text that names no kind of key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of key: expected `ecdsa-p256` or `ed25519`")]
pub struct BadKeyKind(String);

/// A public key of a kind that we make, with its canonical `SubjectPublicKeyInfo`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    kind: KeyKind,
    spki: Arc<[u8]>, // INVARIANT: the one DER encoding of a key of this kind
}

/// A private key in memory, wiped when dropped. It cannot be cloned and does not print.
pub struct PrivateKey {
    pair: Pair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

enum Pair {
    P256(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// Why a private key could not be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The library could not make one: no randomness or no memory.
    #[error("a private key could not be made")]
    NotMade,
    /// The bytes are not one of ours.
    #[error("not a PKCS#8 private key on P-256 or Ed25519")]
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

/// SHA-256 of the bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

impl KeyKind {
    const ALL: [Self; 2] = [Self::P256, Self::Ed25519];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "ecdsa-p256",
            Self::Ed25519 => "ed25519",
        }
    }

    /// The `AlgorithmIdentifier` of its signatures.
    pub(crate) const fn signature_algorithm(self) -> &'static [u8] {
        match self {
            Self::P256 => algorithm::ECDSA_SHA256,
            Self::Ed25519 => algorithm::ED25519,
        }
    }

    const fn key_algorithm(self) -> &'static [u8] {
        match self {
            Self::P256 => algorithm::P256_KEY,
            Self::Ed25519 => algorithm::ED25519,
        }
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
    /// Takes the DER of a `SubjectPublicKeyInfo`: a point on P-256 in its uncompressed form, or an Ed25519 key.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_spki(spki: &[u8]) -> Result<Self, BadKey> {
        let key = VerifyingKey::from_spki(spki)?;
        let kind = match key.algorithm {
            KeyAlgorithm::P256 => KeyKind::P256,
            KeyAlgorithm::Ed25519 => KeyKind::Ed25519,
            KeyAlgorithm::P384 => return Err(BadKey::Weak("on P-384".to_owned())),
            KeyAlgorithm::Rsa => return Err(BadKey::Weak("of RSA".to_owned())),
        };
        key.check_arithmetic()?;
        Ok(Self { kind, spki: spki.into() })
    }

    /// The DER of the `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// SHA-256 of the `SubjectPublicKeyInfo`.
    pub fn id(&self) -> KeyId {
        KeyId::from_bytes(sha256(&self.spki))
    }

    /// Verifies a signature as [`Signer::sign`](crate::Signer::sign) makes it.
    ///
    /// # Errors
    /// When it is not this key's signature over this message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        VerifyingKey::from_spki(&self.spki)
            .ok()
            .and_then(|key| key.verify(self.kind.signature_algorithm(), message, signature).ok())
            .ok_or(BadSignature)
    }

    /// From the key bits alone, which the library made.
    fn from_bits(kind: KeyKind, bits: &[u8]) -> Result<Self, KeyFault> {
        let bits = der::write_bytes_as_bits(bits);
        let spki = der::write(der::SEQUENCE, &[kind.key_algorithm(), &bits]);
        Self::from_spki(&spki).map_err(|_bad| KeyFault::Malformed)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.kind, self.id())
    }
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyFault> {
        let not_made = |_unspecified| KeyFault::NotMade;
        match kind {
            KeyKind::P256 => {
                let pair =
                    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(not_made)?;
                Self::from_p256(pair)
            }
            KeyKind::Ed25519 => Self::from_ed25519(Ed25519KeyPair::generate().map_err(not_made)?),
        }
    }

    /// Reads an unencrypted PKCS#8 document.
    ///
    /// # Errors
    /// When it does not hold a key of a kind that we make, or its two halves do not match.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyFault> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8) {
            return Self::from_p256(pair);
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
            .map_err(|_rejected| KeyFault::Malformed)?;
        Self::from_ed25519(pair)
    }

    fn from_p256(pair: EcdsaKeyPair) -> Result<Self, KeyFault> {
        // Version 1 of PKCS#8, which every reader knows.
        let pkcs8 = pair.to_pkcs8v1().map_err(|_unspecified| KeyFault::NotMade)?;
        Ok(Self {
            public: PublicKey::from_bits(KeyKind::P256, pair.public_key().as_ref())?,
            pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()),
            pair: Pair::P256(Box::new(pair)),
        })
    }

    fn from_ed25519(pair: Ed25519KeyPair) -> Result<Self, KeyFault> {
        let pkcs8 = pair.to_pkcs8v1().map_err(|_unspecified| KeyFault::NotMade)?;
        Ok(Self {
            public: PublicKey::from_bits(KeyKind::Ed25519, pair.public_key().as_ref())?,
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

    /// Signs: ECDSA over SHA-256 in ASN.1 form, or Ed25519.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        let signature = match &self.pair {
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), message),
            Pair::Ed25519(pair) => pair.try_sign(message),
        };
        match signature {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(_unspecified) => Err(SignFault::Failed("the library gave no reason".to_owned())),
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}
