//! Questions about certificates (OCSP, RFC 6960 and the profile of RFC 5019), read strictly and within bounds.

use countersign_identity::Serial;

use crate::algorithm::split_spki;
use crate::der::{self, BadDer, Reader, Value};
use crate::extension::only;
use crate::{Certificate, oid};

/// The longest request that is read.
pub const OCSP_REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Certificates that one request may ask about.
pub const OCSP_QUESTIONS_MAX: usize = 32;
/// The longest nonce (RFC 9654, 2.1).
const NONCE_BYTES_MAX: usize = 128;
/// Each is compared with each.
const EXTENSIONS_MAX: usize = 16;

/// A request. Whoever sent it, and whether it is signed, makes no difference: what is answered is for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OcspRequest {
    /// What it asks about: at least one, at most [`OCSP_QUESTIONS_MAX`].
    pub questions: Vec<OcspQuestion>,
    /// What the answer is to repeat, so that it cannot be an old one: 1 to 128 bytes.
    pub nonce: Option<Vec<u8>>,
}

/// One certificate that is asked about (`CertID`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OcspQuestion {
    /// The very bytes, which the answer repeats.
    pub(crate) id: Vec<u8>,
    digest: Option<Digest>,
    name: Vec<u8>,
    key: Vec<u8>,
    serial: Option<Serial>,
}

/// By which digest an issuer is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Digest {
    Sha1,
    Sha256,
}

/// The digests of an authority's name and key, by which questions name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OcspIssuer {
    sha1: [Vec<u8>; 2],
    sha256: [Vec<u8>; 2],
}

/// Why bytes are not a request. The answer is `malformedRequest`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOcspRequest {
    /// Over the bound.
    #[error("a request of {bytes} bytes is over the limit of {OCSP_REQUEST_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Not the DER of a request.
    #[error("the request does not parse: {0}")]
    Malformed(String),
}

impl From<BadDer> for BadOcspRequest {
    fn from(bad: BadDer) -> Self {
        Self::Malformed(bad.to_string())
    }
}

impl OcspIssuer {
    /// Those of an authority.
    pub fn of(authority: &Certificate) -> Self {
        let name = authority.subject();
        let spki = Reader::new(authority.spki()).any();
        // The key's bits alone, without tag, length and count of unused bits (RFC 6960, 4.1.1).
        let key = spki.and_then(|spki| split_spki(&spki)).map_or(&[][..], |(_, key)| key);
        Self {
            sha1: [Digest::Sha1.of(name), Digest::Sha1.of(key)],
            sha256: [Digest::Sha256.of(name), Digest::Sha256.of(key)],
        }
    }
}

impl OcspQuestion {
    /// Whether it is about a certificate of this authority.
    pub fn is_about(&self, issuer: &OcspIssuer) -> bool {
        let [name, key] = match self.digest {
            Some(Digest::Sha1) => &issuer.sha1,
            Some(Digest::Sha256) => &issuer.sha256,
            None => return false,
        };
        self.name == *name && self.key == *key
    }

    /// The serial, if it has the form of ours.
    pub fn serial(&self) -> Option<Serial> {
        self.serial
    }
}

impl Digest {
    fn of(self, bytes: &[u8]) -> Vec<u8> {
        use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
        let algorithm = match self {
            // It names, and protects nothing: a collision would have to be in a name and a key of ours.
            Self::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &SHA256,
        };
        digest(algorithm, bytes).as_ref().to_vec()
    }
}

/// SHA-1 of a key's bits: the `KeyHash` of a responder (RFC 6960, 4.2.1).
pub(crate) fn key_hash(spki: &[u8]) -> Vec<u8> {
    let spki = Reader::new(spki).any();
    Digest::Sha1.of(spki.and_then(|spki| split_spki(&spki)).map_or(&[][..], |(_, key)| key))
}

impl OcspRequest {
    /// Reads one request, and nothing after it.
    ///
    /// # Errors
    /// When it is over 8 KiB, is not strict DER, asks about nothing or too much, brings a nonce of a wrong length, or
    /// what is critical and not understood.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadOcspRequest> {
        if OCSP_REQUEST_BYTES_MAX < bytes.len() {
            return Err(BadOcspRequest::Long { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let whole = reader.take(der::SEQUENCE, "request")?;
        reader.end("request")?;
        let mut outer = whole.inside();
        let contents = outer.take(der::SEQUENCE, "contents")?;
        // A signature says who asks, which makes no difference.
        if let Some(signature) = outer.optional(der::context_constructed(0), "signature")? {
            only(&signature, der::SEQUENCE, "signature")?;
        }
        outer.end("request")?;
        let mut fields = contents.inside();
        // Version 1 is the default, which DER leaves out, and there is no other.
        if let Some(requestor) = fields.optional(der::context_constructed(1), "requestor")? {
            let mut name = requestor.inside();
            name.any()?;
            name.end("requestor")?;
        }
        let questions = questions(&fields.take(der::SEQUENCE, "list of questions")?)?;
        let nonce = match fields.optional(der::context_constructed(2), "extensions")? {
            Some(wrapped) => nonce(&only(&wrapped, der::SEQUENCE, "extensions")?)?,
            None => None,
        };
        fields.end("contents")?;
        Ok(Self { questions, nonce })
    }
}

fn questions(list: &Value<'_>) -> Result<Vec<OcspQuestion>, BadDer> {
    let mut reader = list.inside();
    let mut questions = Vec::new();
    while !reader.is_empty() {
        if OCSP_QUESTIONS_MAX <= questions.len() {
            return Err(list.bad(format!("more than {OCSP_QUESTIONS_MAX} questions")));
        }
        let mut fields = reader.take(der::SEQUENCE, "question")?.inside();
        questions.push(question(&fields.take(der::SEQUENCE, "certificate's name")?)?);
        if let Some(wrapped) = fields.optional(der::context_constructed(0), "extensions")? {
            // Of a single question none is understood.
            each(&only(&wrapped, der::SEQUENCE, "extensions")?, |_, _| Ok(false))?;
        }
        fields.end("question")?;
    }
    if questions.is_empty() { Err(list.bad("no question")) } else { Ok(questions) }
}

fn question(value: &Value<'_>) -> Result<OcspQuestion, BadDer> {
    let mut fields = value.inside();
    let mut algorithm = fields.take(der::SEQUENCE, "digest algorithm")?.inside();
    let digest = match algorithm.take(der::OID, "digest algorithm")?.oid()? {
        oid::SHA1 => Some(Digest::Sha1),
        oid::SHA256 => Some(Digest::Sha256),
        _ => None,
    };
    // NULL, or nothing (RFC 5754, 2).
    if let Some(null) = algorithm.optional(der::NULL, "parameters")?
        && !null.content.is_empty()
    {
        return Err(null.bad("a NULL with contents"));
    }
    algorithm.end("digest algorithm")?;
    let name = fields.take(der::OCTET_STRING, "digest of the name")?.content.to_vec();
    let key = fields.take(der::OCTET_STRING, "digest of the key")?.content.to_vec();
    let serial = Serial::from_integer(fields.take(der::INTEGER, "serial number")?.integer()?);
    fields.end("certificate's name")?;
    Ok(OcspQuestion { id: value.raw().to_vec(), digest, name, key, serial })
}

/// The nonce; what else stands there is skipped unless it is critical.
fn nonce(list: &Value<'_>) -> Result<Option<Vec<u8>>, BadDer> {
    let mut nonce = None;
    each(list, |id, octets| {
        if id != oid::OCSP_NONCE {
            return Ok(false);
        }
        let value = only(octets, der::OCTET_STRING, "nonce")?;
        if !(1..=NONCE_BYTES_MAX).contains(&value.content.len()) {
            let what = format!("a nonce that is not of 1 to {NONCE_BYTES_MAX} bytes");
            return Err(value.bad(what));
        }
        nonce = Some(value.content.to_vec());
        Ok(true)
    })?;
    Ok(nonce)
}

/// Walks extensions, none of which may stand there twice; `take` says whether it understood one.
fn each<'a>(
    list: &Value<'a>,
    mut take: impl FnMut(&[u8], &Value<'a>) -> Result<bool, BadDer>,
) -> Result<(), BadDer> {
    let mut reader = list.inside();
    let mut seen: Vec<&[u8]> = Vec::new();
    while !reader.is_empty() {
        let value = reader.take(der::SEQUENCE, "extension")?;
        let mut fields = value.inside();
        let id = fields.take(der::OID, "extension")?.oid()?;
        let critical = fields.default_false("critical")?;
        let octets = fields.take(der::OCTET_STRING, "extension value")?;
        fields.end("extension")?;
        if seen.contains(&id) || EXTENSIONS_MAX <= seen.len() {
            return Err(value.bad("an extension that stands there twice, or too many"));
        }
        seen.push(id);
        if !take(id, &octets)? && critical {
            return Err(value.bad(format!("`{}` is critical and not understood", oid::dotted(id))));
        }
    }
    Ok(())
}
