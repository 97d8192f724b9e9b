//! Documents that an authority signs: JSON Web Signatures in the flattened JSON form (RFC 7515, 7.2.2), so that any JOSE
//! library can check them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_identity::Code;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::algorithm::VerifyingKey;
use crate::der::{self, Reader};
use crate::{Certificate, KeyKind, PublicKey, Refused, SignFault, Signer, json};

/// The longest document that is read, as it travels.
const JWS_BYTES_MAX: usize = 1024 * 1024;
/// The most certificates in a header.
const SHOWN_MAX: usize = 4;
/// Half of an ECDSA signature on P-256, and on P-384.
const P256_HALF: usize = 32;
const P384_HALF: usize = 48;

/// A signed document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jws {
    /// What is signed, in base64url.
    payload: String,
    /// How it is signed, in base64url: `alg`, `typ` and `x5c`.
    protected: String,
    /// The signature, in base64url.
    signature: String,
}

impl Jws {
    /// Signs a document of this media type (without `application/`) for an authority. Those who vouch for it stand `above` it,
    /// the nearest first; a root needs none.
    ///
    /// # Errors
    /// When the signer is not the authority's, or fails.
    pub async fn sign(
        document: &[u8],
        media_type: &str,
        authority: &Certificate,
        above: &[Certificate],
        signer: &dyn Signer,
    ) -> Result<Self, SignFault> {
        let key = signer.public();
        if key.id() != authority.key_id() {
            return Err(SignFault::WrongKey { expected: authority.key_id(), found: key.id() });
        }
        let shown = [authority].into_iter().chain(above);
        let shown: Vec<_> = shown.map(|one| STANDARD.encode(one.der())).collect();
        let header = json!({ "alg": algorithm(key.kind()), "typ": media_type, "x5c": shown });
        let payload = URL_SAFE_NO_PAD.encode(document);
        let protected = URL_SAFE_NO_PAD.encode(header.to_string());
        let signature = signer.sign(format!("{protected}.{payload}").as_bytes()).await?;
        let signature = match key.kind() {
            KeyKind::Ed25519 | KeyKind::Rsa2048 | KeyKind::Rsa3072 => signature,
            KeyKind::P256 => halves(&signature, P256_HALF).ok_or(SignFault::BadSignature)?,
            KeyKind::P384 => halves(&signature, P384_HALF).ok_or(SignFault::BadSignature)?,
        };
        Ok(Self { payload, protected, signature: URL_SAFE_NO_PAD.encode(signature) })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is over 1 MiB, or not of the form.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        if JWS_BYTES_MAX < bytes.len() {
            let why = format!("a signed document of {} bytes is over {JWS_BYTES_MAX}", bytes.len());
            return Err(Refused::new(Code::TooLarge, why));
        }
        let value = json::parse(bytes).map_err(|_bad| malformed("it is no JSON"))?;
        serde_json::from_value(value).map_err(|_bad| {
            malformed("it does not consist of the texts `payload`, `protected` and `signature`")
        })
    }

    /// The document, when one of these authorities, or one that it vouches for, signed it as one of this media type. A document
    /// is not of one moment, so nobody asks when the certificates end.
    ///
    /// # Errors
    /// When the key is none of theirs, the algorithm is not that key's, or the signature does not verify.
    pub fn verify(&self, media_type: &str, trusted: &[Certificate]) -> Result<Vec<u8>, Refused> {
        let header = decode(&self.protected)?;
        let header = json::parse(&header).map_err(|_bad| malformed("its header is no JSON"))?;
        let (algorithm_named, shown) = read_header(&header, media_type)?;
        let authority = signer_of(&shown, trusted)?;
        let key = authority
            .public_key()
            .map_err(|bad| Refused::new(Code::WeakAlgorithm, bad.to_string()))?;
        if algorithm_named != algorithm(key.kind()) {
            let why = format!("`{algorithm_named}` is not the algorithm of the authority's key");
            return Err(Refused::new(Code::WeakAlgorithm, why));
        }
        let message = format!("{}.{}", self.protected, self.payload);
        check(&key, message.as_bytes(), &decode(&self.signature)?)?;
        decode(&self.payload)
    }
}

/// Who signed: what the document shows is a claim, so the first that is shown must be trusted, or lead to one that is.
fn signer_of(shown: &[Certificate], trusted: &[Certificate]) -> Result<Certificate, Refused> {
    let unknown = || {
        let why = "it is signed by an authority that is not among those that are trusted";
        Refused::new(Code::UnknownIssuer, why)
    };
    let first = shown.first().ok_or_else(unknown)?;
    for (position, authority) in shown.iter().enumerate() {
        if trusted.contains(authority) {
            return Ok(first.clone());
        }
        if !authority.is_authority() {
            return Err(unknown());
        }
        if trusted.iter().any(|above| vouches(above, authority)) {
            return Ok(first.clone());
        }
        if !shown.get(position + 1).is_some_and(|above| vouches(above, authority)) {
            return Err(unknown());
        }
    }
    Err(unknown())
}

fn vouches(above: &Certificate, below: &Certificate) -> bool {
    let key = VerifyingKey::from_spki(above.spki());
    above.is_authority() && key.is_ok_and(|key| below.check_signed_by(&key).is_ok())
}

fn read_header<'a>(
    header: &'a Value,
    media_type: &str,
) -> Result<(&'a str, Vec<Certificate>), Refused> {
    let members = header.as_object().ok_or_else(|| malformed("the header is no object"))?;
    // Closed: a member that is not understood may change what the others mean (`crit`, `jku`, `jwk`, `b64`).
    if let Some(unknown) =
        members.keys().find(|name| !["alg", "typ", "x5c"].contains(&name.as_str()))
    {
        return Err(malformed(&format!("the header has a member `{}`", unknown.escape_debug())));
    }
    if members.get("typ").and_then(Value::as_str) != Some(media_type) {
        return Err(malformed(&format!("the header's `typ` is not `{media_type}`")));
    }
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let algorithm = text("alg").ok_or_else(|| malformed("the header has no `alg`"))?;
    let shown = members.get("x5c").and_then(Value::as_array).map(Vec::as_slice);
    let shown = shown.filter(|shown| (1..=SHOWN_MAX).contains(&shown.len()));
    let shown = shown.ok_or_else(|| malformed("the header's `x5c` does not hold certificates"))?;
    let read = |one: &Value| {
        let text =
            one.as_str().ok_or_else(|| malformed("`x5c` holds something else than texts"))?;
        let der = STANDARD.decode(text).map_err(|_bad| malformed("`x5c` is not base64"))?;
        Certificate::parse(&der).map_err(|bad| malformed(&format!("`x5c`: {bad}")))
    };
    Ok((algorithm, shown.iter().map(read).collect::<Result<_, _>>()?))
}

fn check(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), Refused> {
    let bad = || Refused::new(Code::BadSignature, "the signature does not verify");
    let signature = match key.kind() {
        KeyKind::Ed25519 | KeyKind::Rsa2048 | KeyKind::Rsa3072 => signature.to_vec(),
        KeyKind::P256 => of_halves(signature, P256_HALF).ok_or_else(bad)?,
        KeyKind::P384 => of_halves(signature, P384_HALF).ok_or_else(bad)?,
    };
    key.verify(message, &signature).map_err(|_bad| bad())
}

/// The name of the algorithm (RFC 7518, 3.1; RFC 8037, 3.1).
const fn algorithm(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::P256 => "ES256",
        KeyKind::P384 => "ES384",
        KeyKind::Ed25519 => "EdDSA",
        KeyKind::Rsa2048 | KeyKind::Rsa3072 => "RS256",
    }
}

/// The ASN.1 form of an ECDSA signature that stands as its two numbers, each in as many bytes as its curve asks for.
pub(crate) fn of_halves(signature: &[u8], half: usize) -> Option<Vec<u8>> {
    let (first, second) = signature.split_at_checked(half)?;
    if second.len() != half {
        return None;
    }
    let integers = [der::write_unsigned(first), der::write_unsigned(second)];
    Some(der::write(der::SEQUENCE, &[&integers[0], &integers[1]]))
}

/// The two numbers of an ECDSA signature, each in as many bytes as its curve asks for (RFC 7518, 3.4).
fn halves(signature: &[u8], half: usize) -> Option<Vec<u8>> {
    let mut reader = Reader::new(signature);
    let mut numbers = reader.take(der::SEQUENCE, "signature").ok()?.inside();
    let mut both = Vec::with_capacity(2 * half);
    for _number in 0..2 {
        let number = numbers.take(der::INTEGER, "number").ok()?.integer().ok()?;
        let digits = number.strip_prefix(&[0]).unwrap_or(number);
        both.extend(std::iter::repeat_n(0, half.checked_sub(digits.len())?));
        both.extend_from_slice(digits);
    }
    Some(both)
}

fn decode(text: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_bad| malformed("a part is not base64url"))
}

fn malformed(why: &str) -> Refused {
    Refused::new(Code::NotUnderstood, format!("this is not a signed document: {why}"))
}
