//! Public keys and signature algorithms as they stand in certificates, from anybody's software.

use aws_lc_rs::signature::{self, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::der::{self, BadDer, Reader, Value};

/// The `AlgorithmIdentifier` of `ecdsa-with-SHA256` (RFC 5758, 3.2).
pub(crate) const ECDSA_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// The `AlgorithmIdentifier` of `ecdsa-with-SHA384` (RFC 5758, 3.2).
pub(crate) const ECDSA_SHA384: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const ECDSA_SHA512: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
/// The `AlgorithmIdentifier` of `id-Ed25519`, of a key as of a signature (RFC 8410, 3).
pub(crate) const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// The `AlgorithmIdentifier` of a key on P-256: `id-ecPublicKey`, `prime256v1` (RFC 5480, 2.1.1).
pub(crate) const P256_KEY: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// The `AlgorithmIdentifier` of a key on P-384: `id-ecPublicKey`, `secp384r1` (RFC 5480, 2.1.1).
pub(crate) const P384_KEY: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
    0x00, 0x22,
];
/// The `AlgorithmIdentifier` of an RSA key, with its NULL (RFC 3279, 2.3.1).
pub(crate) const RSA_KEY: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// The `AlgorithmIdentifier` of `sha256WithRSAEncryption`, with its NULL (RFC 4055, 5).
pub(crate) const RSA_SHA256: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];

/// `sha…WithRSAEncryption` up to its last byte; what follows is NULL or nothing (RFC 4055, 5).
const RSA_PKCS1: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const RSA_PSS: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
/// A SHA-2 digest's identifier up to its last byte.
const SHA2: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
const MGF1: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
const NULL: &[u8] = &[0x05, 0x00];

const RSA_BITS_MIN: usize = 2048;
/// The cost of a verification grows with the square of it.
const RSA_BITS_MAX: usize = 8192;
/// The exponents that others may use: of 1 anybody can sign, an even one is no key, and a long one costs its verifier.
const RSA_EXPONENT_MIN: u64 = 3;
const RSA_EXPONENT_MAX: u64 = 1 << 33;

/// The y coordinates of the points of order 1, 2, 4 and 8.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    [
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0x7f,
    ],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];

/// What kind of key a `SubjectPublicKeyInfo` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyAlgorithm {
    P256,
    P384,
    Rsa,
    Ed25519,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignatureAlgorithm {
    Ecdsa(Digest),
    Pkcs1(Digest),
    Pss(Digest),
    Ed25519,
}

/// A key that verifies signatures: its kind, and the form in which the library takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerifyingKey<'a> {
    pub(crate) algorithm: KeyAlgorithm,
    bytes: &'a [u8],
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSignature {
    #[error("the signature algorithm is not accepted")]
    WeakAlgorithm,
    #[error("the signature algorithm does not fit the signer's key")]
    WrongAlgorithm,
    #[error("the signature does not verify")]
    Wrong,
}

/// Why a public key is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not the DER of a public key.
    #[error("the public key does not parse: {0}")]
    Malformed(String),
    /// Another kind of key than the accepted ones, a curve given by its parameters, or a size out of range.
    #[error("the public key is {0}, which is not accepted")]
    Weak(String),
}

impl From<BadDer> for BadKey {
    fn from(bad: BadDer) -> Self {
        Self::Malformed(bad.to_string())
    }
}

/// Splits a `SubjectPublicKeyInfo` into algorithm and key bits, whatever the algorithm.
pub(crate) fn split_spki<'a>(spki: &Value<'a>) -> Result<(Value<'a>, &'a [u8]), BadDer> {
    let mut inside = spki.inside();
    let algorithm = inside.take(der::SEQUENCE, "key algorithm")?;
    algorithm.inside().take(der::OID, "key algorithm")?.oid()?;
    let key = inside.take(der::BIT_STRING, "key")?.whole_bytes()?;
    inside.end("public key")?;
    Ok((algorithm, key))
}

impl<'a> VerifyingKey<'a> {
    /// Takes the DER of a `SubjectPublicKeyInfo`.
    pub(crate) fn from_spki(spki: &'a [u8]) -> Result<Self, BadKey> {
        let mut reader = Reader::new(spki);
        let value = reader.take(der::SEQUENCE, "public key")?;
        reader.end("public key")?;
        let (algorithm, bytes) = split_spki(&value)?;
        let algorithm = match algorithm.raw() {
            P256_KEY => point(bytes, 32).map(|()| KeyAlgorithm::P256)?,
            P384_KEY => point(bytes, 48).map(|()| KeyAlgorithm::P384)?,
            RSA_KEY => rsa(bytes).map(|_numbers| KeyAlgorithm::Rsa)?,
            ED25519 => edwards(bytes).map(|()| KeyAlgorithm::Ed25519)?,
            other => return Err(BadKey::Weak(describe(other))),
        };
        Ok(Self { algorithm, bytes })
    }

    /// Bits of the modulus, and the exponent, of an RSA key.
    pub(crate) fn rsa_size(&self) -> Option<(usize, u64)> {
        match self.algorithm {
            KeyAlgorithm::Rsa => rsa(self.bytes).ok().map(|key| (key.bits, key.exponent_number)),
            KeyAlgorithm::P256 | KeyAlgorithm::P384 | KeyAlgorithm::Ed25519 => None,
        }
    }

    /// Has the library read it, which finds out whether the numbers make a key: a point on its curve. What comes of that verifies
    /// signatures by the one algorithm with which we sign.
    pub(crate) fn read(&self) -> Result<ParsedPublicKey, BadKey> {
        let verifier: &'static dyn VerificationAlgorithm = match self.algorithm {
            KeyAlgorithm::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            KeyAlgorithm::P384 => &signature::ECDSA_P384_SHA384_ASN1,
            KeyAlgorithm::Rsa => &signature::RSA_PKCS1_2048_8192_SHA256,
            KeyAlgorithm::Ed25519 => &signature::ED25519,
        };
        ParsedPublicKey::new(verifier, self.bytes)
            .map_err(|rejected| BadKey::Malformed(rejected.to_string()))
    }

    /// Verifies the signature, whose algorithm is given as the DER of an `AlgorithmIdentifier`.
    pub(crate) fn verify(
        &self,
        algorithm: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), NoSignature> {
        let algorithm = SignatureAlgorithm::parse(algorithm).ok_or(NoSignature::WeakAlgorithm)?;
        let verifier = verifier(self.algorithm, algorithm).ok_or(NoSignature::WrongAlgorithm)?;
        UnparsedPublicKey::new(verifier, self.bytes)
            .verify(message, signature)
            .map_err(|_unspecified| NoSignature::Wrong)
    }
}

/// Only the uncompressed form of a point: one key has one encoding, and so one key id.
fn point(bytes: &[u8], width: usize) -> Result<(), BadKey> {
    match bytes {
        [4, xy @ ..] if xy.len() == 2 * width => Ok(()),
        _ => Err(BadKey::Malformed("a curve point is not in its uncompressed form".to_owned())),
    }
}

/// An Ed25519 key in its one encoding, and none for which anybody can make signatures.
fn edwards(bytes: &[u8]) -> Result<(), BadKey> {
    let Ok(mut y) = <[u8; 32]>::try_from(bytes) else {
        return Err(BadKey::Malformed("an Ed25519 key is not of 32 bytes".to_owned()));
    };
    y[31] &= 0x7f; // The highest bit is the sign of x (RFC 8032, 5.1.2).
    let [low, middle @ .., high] = y;
    if high == 0x7f && middle == [0xff; 30] && 0xed <= low {
        return Err(BadKey::Malformed("an Ed25519 key is not below 2^255 - 19".to_owned()));
    }
    if SMALL_ORDER.contains(&y) {
        return Err(BadKey::Weak("an Ed25519 point of small order".to_owned()));
    }
    Ok(())
}

/// The numbers of an `RSAPublicKey`, without leading zeros.
struct RsaNumbers<'a> {
    modulus: &'a [u8],
    exponent: &'a [u8],
    bits: usize,
    exponent_number: u64,
}

/// Reads an `RSAPublicKey` whose size and exponent are accepted; its arithmetic is the library's.
fn rsa(bytes: &[u8]) -> Result<RsaNumbers<'_>, BadKey> {
    let mut reader = Reader::new(bytes);
    let mut key = reader.take(der::SEQUENCE, "RSA key")?.inside();
    reader.end("RSA key")?;
    let modulus = key.take(der::INTEGER, "modulus")?.integer()?;
    let exponent = key.take(der::INTEGER, "exponent")?.integer()?;
    key.end("RSA key")?;
    if modulus[0] & 0x80 != 0 || exponent[0] & 0x80 != 0 {
        return Err(BadKey::Malformed("an RSA key with a negative number".to_owned()));
    }
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let exponent = exponent.strip_prefix(&[0]).unwrap_or(exponent);
    let zeros = modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    let bits = modulus.len() * 8 - zeros;
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(BadKey::Weak(format!("RSA of {bits} bits")));
    }
    let number = exponent.iter().fold(0_u64, |number, byte| {
        number.checked_mul(256).map_or(u64::MAX, |number| number | u64::from(*byte))
    });
    if !(RSA_EXPONENT_MIN..=RSA_EXPONENT_MAX).contains(&number) || number % 2 == 0 {
        return Err(BadKey::Weak(
            "RSA with an exponent that is even, 1 or over 33 bits".to_owned(),
        ));
    }
    Ok(RsaNumbers { modulus, exponent, bits, exponent_number: number })
}

/// The members of a JSON Web Key (RFC 7517, 7518 and 8037); for an unknown kind of key only an empty `kty`,
/// which every reader passes over.
pub(crate) fn jwk_members(spki: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    let members = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
    };
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let Ok(key) = VerifyingKey::from_spki(spki) else { return members(&[("kty", "")]) };
    let curve = |name: &str| {
        let (x, y) = key.bytes[1..].split_at(key.bytes.len() / 2);
        members(&[("kty", "EC"), ("crv", name), ("x", &text(x)), ("y", &text(y))])
    };
    match key.algorithm {
        KeyAlgorithm::P256 => curve("P-256"),
        KeyAlgorithm::P384 => curve("P-384"),
        KeyAlgorithm::Ed25519 => {
            members(&[("kty", "OKP"), ("crv", "Ed25519"), ("x", &text(key.bytes))])
        }
        KeyAlgorithm::Rsa => {
            let Ok(numbers) = rsa(key.bytes) else { return members(&[("kty", "")]) };
            members(&[
                ("kty", "RSA"),
                ("n", &text(numbers.modulus)),
                ("e", &text(numbers.exponent)),
            ])
        }
    }
}

fn describe(algorithm: &[u8]) -> String {
    let oid = Reader::new(algorithm)
        .any()
        .and_then(|value| value.inside().take(der::OID, "key algorithm"))
        .map(|oid| crate::oid::dotted(oid.content));
    match oid {
        Ok(oid) => format!("of the kind `{oid}`"),
        Err(_) => "of an unknown kind".to_owned(),
    }
}

impl SignatureAlgorithm {
    /// Compares with the few encodings that are allowed, byte by byte; parameters are not interpreted.
    fn parse(identifier: &[u8]) -> Option<Self> {
        match identifier {
            ECDSA_SHA256 => return Some(Self::Ecdsa(Digest::Sha256)),
            ECDSA_SHA384 => return Some(Self::Ecdsa(Digest::Sha384)),
            ECDSA_SHA512 => return Some(Self::Ecdsa(Digest::Sha512)),
            ED25519 => return Some(Self::Ed25519),
            _ => {}
        }
        [Digest::Sha256, Digest::Sha384, Digest::Sha512].into_iter().find_map(|digest| {
            let pkcs1 = [RSA_PKCS1, &[digest.pkcs1()]].concat();
            if identifier == der::write(der::SEQUENCE, &[&pkcs1, NULL])
                || identifier == der::write(der::SEQUENCE, &[&pkcs1])
            {
                return Some(Self::Pkcs1(digest));
            }
            digest.pss().iter().any(|pss| identifier == pss).then_some(Self::Pss(digest))
        })
    }
}

impl Digest {
    fn pkcs1(self) -> u8 {
        match self {
            Self::Sha256 => 0x0b,
            Self::Sha384 => 0x0c,
            Self::Sha512 => 0x0d,
        }
    }

    /// The last byte of the digest's identifier, and its length.
    fn sha2(self) -> (u8, u8) {
        match self {
            Self::Sha256 => (1, 32),
            Self::Sha384 => (2, 48),
            Self::Sha512 => (3, 64),
        }
    }

    /// `RSASSA-PSS` with the digest in both places and a salt of its length (RFC 4055, 3.1), the
    /// digest's parameters NULL or absent.
    fn pss(self) -> [Vec<u8>; 2] {
        let (last, length) = self.sha2();
        [NULL, &[]].map(|parameters| {
            let digest = der::write(der::SEQUENCE, &[SHA2, &[last], parameters]);
            let mask = der::write(der::SEQUENCE, &[MGF1, &digest]);
            let parameters = der::write(
                der::SEQUENCE,
                &[
                    &der::write(der::context_constructed(0), &[&digest]),
                    &der::write(der::context_constructed(1), &[&mask]),
                    &der::write(der::context_constructed(2), &[&der::write_unsigned(&[length])]),
                ],
            );
            der::write(der::SEQUENCE, &[RSA_PSS, &parameters])
        })
    }
}

/// The verifier for a pair of key and signature algorithm; `None` when they do not fit.
fn verifier(
    key: KeyAlgorithm,
    signature: SignatureAlgorithm,
) -> Option<&'static dyn VerificationAlgorithm> {
    use {KeyAlgorithm as Key, SignatureAlgorithm as Sign};
    Some(match (key, signature) {
        (Key::P256, Sign::Ecdsa(Digest::Sha256)) => &signature::ECDSA_P256_SHA256_ASN1,
        (Key::P256, Sign::Ecdsa(Digest::Sha384)) => &signature::ECDSA_P256_SHA384_ASN1,
        (Key::P256, Sign::Ecdsa(Digest::Sha512)) => &signature::ECDSA_P256_SHA512_ASN1,
        (Key::P384, Sign::Ecdsa(Digest::Sha256)) => &signature::ECDSA_P384_SHA256_ASN1,
        (Key::P384, Sign::Ecdsa(Digest::Sha384)) => &signature::ECDSA_P384_SHA384_ASN1,
        (Key::P384, Sign::Ecdsa(Digest::Sha512)) => &signature::ECDSA_P384_SHA512_ASN1,
        (Key::Rsa, Sign::Pkcs1(Digest::Sha256)) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (Key::Rsa, Sign::Pkcs1(Digest::Sha384)) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Key::Rsa, Sign::Pkcs1(Digest::Sha512)) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (Key::Rsa, Sign::Pss(Digest::Sha256)) => &signature::RSA_PSS_2048_8192_SHA256,
        (Key::Rsa, Sign::Pss(Digest::Sha384)) => &signature::RSA_PSS_2048_8192_SHA384,
        (Key::Rsa, Sign::Pss(Digest::Sha512)) => &signature::RSA_PSS_2048_8192_SHA512,
        (Key::Ed25519, Sign::Ed25519) => &signature::ED25519,
        (Key::P256 | Key::P384, Sign::Pkcs1(_) | Sign::Pss(_) | Sign::Ed25519)
        | (Key::Rsa, Sign::Ecdsa(_) | Sign::Ed25519)
        | (Key::Ed25519, Sign::Ecdsa(_) | Sign::Pkcs1(_) | Sign::Pss(_)) => return None,
    })
}
